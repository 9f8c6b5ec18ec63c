"""Generated parts of a README, between two comments that name what they are of."""

from __future__ import annotations

from pathlib import Path

from shapley.errors import ShapleyError
from shapley.files import write_text


def show(readme: Path, name: str, part: str) -> None:
    """Write ``part`` into the README where it has a place for it; print it where it has none, as for runs to try things."""
    text = readme.read_text(encoding="utf-8")
    if all(mark in text for mark in marks(name)):
        write_text(readme, put_between(text, name, part))
    else:
        print(part)


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
