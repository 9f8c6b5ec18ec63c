"""Who does what, as pure functions."""

from __future__ import annotations

import numpy as np
import pytest

from shapley.jobs.sharing import choose, owner, slice_of


def order(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("n_tasks", [1, 2, 7, 64, 1000])
@pytest.mark.parametrize("of", [1, 2, 3, 7, 64, 999, 1000, 1001])
def test_slices_share_everything_once_and_evenly(n_tasks, of):
    slices = [slice_of(n_tasks, (shard, of)) for shard in range(of)]
    assert [task for own in slices for task in own] == list(range(n_tasks))
    assert max(map(len, slices)) - min(map(len, slices)) <= 1
    assert all(owner(task, n_tasks, of) == (shard, of) for shard, own in enumerate(slices) for task in own)
    assert len(slice_of(n_tasks, (-1, of))) == 0


def test_orphans_come_first_in_an_order_of_ones_own():
    alive = {(0, 3), (2, 3)}  # shard 1, tasks 4 to 7, is nobody's
    chosen = {choose(range(12), 12, alive, order(seed))[0] for seed in range(40)}
    assert chosen == {4, 5, 6, 7}
    assert choose(range(12), 12, alive, order())[1] == (-1, 0)


def test_then_the_last_of_whoever_has_most_left():
    alive = {(0, 3), (1, 3), (2, 3)}
    left = [3, *range(4, 8), 10, 11]
    found = [choose(left, 12, alive, order(seed)) for seed in range(40)]
    assert {task for task, _ in found} == {6, 7} and {shard for _, shard in found} == {(1, 3)}


def test_nobodys_only_item_is_taken_away():
    alive = {(0, 3), (1, 3), (2, 3)}
    assert choose([3, 7, 11], 12, alive, order()) == (None, (0, 3))
    assert choose([3, 6, 7, 11], 12, alive, order()) == (7, (1, 3))
    assert choose([], 12, alive, order())[0] is None


def test_shards_of_different_counts_own_what_they_own():
    """As when more workers are submitted while others still run."""
    assert choose([0, 11], 12, {(0, 2), (3, 4)}, order())[0] is None
    assert choose([0, 5, 11], 12, {(0, 4), (3, 4), (1, 6)}, order())[0] == 5
    assert choose([0, 11], 12, {(-1, 1)}, order())[0] in (0, 11)  # who only helps owns nothing
