"""Generated parts of a README, between two comments that name what they are of."""

from __future__ import annotations

from shapley.errors import ShapleyError


def put_between(text: str, name: str, part: str) -> str:
    """``text`` with ``part`` between its marks ``<!-- NAME -->`` and ``<!-- end NAME -->``.

    Raises:
        ShapleyError: the marks are missing.
    """
    start, end = marks(name)
    if start not in text or end not in text:
        raise ShapleyError(f"no lines {start} and {end} to write between: put them where the part belongs")
    before, _, rest = text.partition(start)
    return f"{before}{start}\n{part}\n{end}{rest.partition(end)[2]}"


def between(text: str, name: str) -> str:
    """The part that ``put_between`` put there."""
    start, end = marks(name)
    return text.partition(start)[2].partition(end)[0].strip("\n")


def marks(name: str) -> tuple[str, str]:
    return f"<!-- {name} -->", f"<!-- end {name} -->"
