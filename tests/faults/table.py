"""What many trials came to, a line for each kind of disturbance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tests.faults.trial import Outcome

_HEAD = ("disturbance", "runs", "disturbed", "failed", "wrong bits", "computed again", "links", "seconds a run")


def table(outcomes: Sequence[Outcome], skipped: Iterable[tuple[str, str]] = ()) -> str:
    """In Markdown; the last line is of all."""
    names = list(dict.fromkeys(outcome.name for outcome in outcomes))
    rows = [_HEAD, tuple("---" if i == 0 else "---:" for i in range(len(_HEAD)))]
    rows += [_row(name, [outcome for outcome in outcomes if outcome.name == name]) for name in names]
    rows.append(_row("all", outcomes))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([*lines, *(f"\nSkipped: {name}: {why}." for name, why in skipped)])


def _row(name: str, outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    items = sum(outcome.items for outcome in outcomes)
    return (
        name,
        str(len(outcomes)),
        str(sum(outcome.hits for outcome in outcomes)),
        str(sum(bool(outcome.error) for outcome in outcomes)),
        str(sum(sum(outcome.wrong.values()) for outcome in outcomes)),
        f"{100 * sum(outcome.again for outcome in outcomes) / items:.1f}%" if items else "not counted",
        f"{sum(outcome.links for outcome in outcomes) / max(len(outcomes), 1):.1f}",
        f"{sum(outcome.seconds for outcome in outcomes) / max(len(outcomes), 1):.2f}",
    )
