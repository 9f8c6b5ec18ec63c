"""From heavy to light: a level at a time, until one is not shown safe, or the operator allows no lighter one.

1. Ask what is applied at the level. The operator may forbid it, or apply more than was asked; if that is what a heavier rung
   had, there is nothing lighter to test.
2. Ask items in random order, a batch at a time, and judge after each (``Plan.judge``).
3. Safe: the next level. Danger, or undecided with all items used: stop.

All of it is in the journal, and is read from there: a run that is resumed does what one that was never killed would.
"""

from __future__ import annotations

from collections.abc import Callable

from shapley.assess.client import Client, Forbidden
from shapley.assess.journal import Journal
from shapley.assess.levels import Applied, Level, falls_short, in_words
from shapley.assess.plan import Verdict
from shapley.assess.tasks import Task
from shapley.errors import ShapleyError

Say = Callable[[str], None]


def climb(journal: Journal, task: Task, client: Client, *, batch: int, say: Say) -> None:
    """Run the ladder of the journal's plan, or what is left of it.

    Args:
        batch: items between two looks.
        say: is told how every rung ended.

    Raises:
        ShapleyError: the endpoint or the task fails; or less is applied than was asked, or not the same throughout a level.
    """
    records = journal.records
    for rung, level in enumerate(records.plan.levels):
        if not _open(journal, rung, level, client):
            say(f"{level.text()}: not tested: {': '.join(records.rungs[rung].ended or ())}")
            return
        verdict = _test(journal, rung, level, task, client, batch)
        scores = records.scores(rung)
        say(f"{level.text()}: {verdict}, mean score {sum(scores) / len(scores):.3f} of {len(scores)} items")
        if verdict != "safe":
            return


def _open(journal: Journal, rung: int, level: Level, client: Client) -> bool:
    """Whether there is something to test at this level."""
    records, record = journal.records, journal.records.rungs[rung]
    if record.ended:
        return False
    if records.plan.judge(records.scores(rung))[1] != "open":
        return True
    try:
        applied = client.applied(level)
    except Forbidden as refusal:
        journal.add("end", rung, why="forbidden", message=str(refusal))
        return False
    _check(level, applied, record.applied)
    if rung and applied == records.rungs[rung - 1].applied:
        journal.add("end", rung, why="floor", message=f"the operator applies no less than {in_words(applied)}")
        return False
    if record.applied is None:
        journal.add("rung", rung, applied=[done.body() for done in applied])
    return True


def _test(journal: Journal, rung: int, level: Level, task: Task, client: Client, batch: int) -> Verdict:
    records, record = journal.records, journal.records.rungs[rung]
    while True:
        scores = records.scores(rung)
        verdict = records.plan.judge(scores)[1]
        if verdict != "open":
            return verdict
        # To the next multiple of the batch, also after a kill amid one: looks are where they would have been.
        until = (len(scores) // batch + 1) * batch
        left = [item for item in records.plan.items[:until] if item not in record.scores]
        try:
            for answer in task.ask(client, level, left):
                _check(level, answer.applied, record.applied)
                journal.add("item", rung, item=answer.item, score=answer.score, reply=answer.reply)
        except Forbidden as refusal:
            raise ShapleyError(
                f"the endpoint allows {level.text()}, but not how the task asks there: {refusal}"
            ) from None


def _check(asked: Level, applied: Applied, before: Applied | None) -> None:
    if falls_short(asked, applied):
        raise ShapleyError(
            f"{asked.text()} was asked for, but {in_words(applied)} was applied: "
            "stopped, as no level lighter than meant may be tested"
        )
    if before is not None and applied != before:
        was, now = in_words(before), in_words(applied)
        raise ShapleyError(f"at {asked.text()}, {was} was applied before, and {now} now: start anew with another --out")
