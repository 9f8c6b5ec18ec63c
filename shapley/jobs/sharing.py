"""Who does what: even slices of a list of tasks, and what to take up when one's own is done."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np

Shard = tuple[int, int]  # number, of how many


def slice_of(n_tasks: int, shard: Shard) -> range:
    """An even, contiguous share; nothing for those who only help, with number -1."""
    number, of = shard
    return range(0) if number < 0 else range(n_tasks * number // of, n_tasks * (number + 1) // of)


def owner(task: int, n_tasks: int, of: int) -> Shard:
    """Whose slice a task is in."""
    return ((task + 1) * of - 1) // n_tasks, of


def choose(
    left: Sequence[int], n_tasks: int, alive: Collection[Shard], order: np.random.Generator
) -> tuple[int | None, Shard]:
    """A task to take up, and whose it is: one of a shard that nobody is seen to work at, in an order of one's own; else one of
    the last of the living shard that has most left, if that is more than the one at work.

    Args:
        left: tasks that nobody has done, in order.
        n_tasks: all there are.
        alive: shards at work.
        order: for the order.
    """
    kept: dict[Shard, list[int]] = defaultdict(list)
    orphans = []
    counts = {of for _, of in alive}
    for task in left:
        owners = [shard for shard in (owner(task, n_tasks, of) for of in counts) if shard in alive]
        for shard in owners:
            kept[shard].append(task)
        if not owners:
            orphans.append(task)
    if orphans:
        return orphans[int(order.integers(len(orphans)))], (-1, 0)
    most = max(kept, key=lambda shard: len(kept[shard]), default=(-1, 0))
    theirs = kept.get(most, [])
    if len(theirs) < 2:
        return None, most
    return theirs[-1 - int(order.integers(len(theirs) // 2))], most
