"""SVARM and stratified SVARM in a few vector operations: shapiq's take players x strata x coalitions of Python and do not end
at these sizes. (Kolpaczki et al. 2024, "Approximating the Shapley value without marginal contributions".)

phi_i = phi_i^+ - phi_i^-: the mean value of coalitions with i minus that of coalitions without, both over sizes drawn so that
every size of S without i has weight 1/n. One coalition updates every player's half.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from problem import Evaluations

from shapley.types import BoolArray, FloatArray, IntArray

_CHUNK = 64


def svarm(game: Any, variant: str, budget: int, seed: int) -> FloatArray:
    """Algorithm 1: half of the evaluations from P+ (which updates members), half from P- (the others)."""
    evaluations = Evaluations(game, variant, seed)
    rng, n = np.random.default_rng(seed), game.n_players
    sizes = np.arange(1, n + 1)
    law = 1 / sizes / np.sum(1 / sizes)
    total, count = np.zeros((2, n)), np.zeros((2, n))
    base = (evaluations.full + evaluations.empty) / 2  # differences are what counts: less noise in the halves
    left = evaluations.left(budget)
    while left > 0:
        m = min(_CHUNK, left)
        with_player = np.arange(m) % 2 == 0
        drawn = rng.choice(sizes, m, p=law)
        coalitions = _coalitions(rng, n, np.where(with_player, drawn, n - drawn))
        values = evaluations(coalitions) - base
        for half, rows, updated in ((0, with_player, coalitions), (1, ~with_player, ~coalitions)):
            total[half] += values[rows] @ updated[rows]
            count[half] += updated[rows].sum(axis=0)
        left -= m
    mean = total / np.maximum(count, 1)
    return np.where((count > 0).all(axis=0), mean[0] - mean[1], 0.0)


def stratified_svarm(game: Any, variant: str, budget: int, seed: int) -> FloatArray:
    """Algorithm 2 (S-SVARM+): a mean for every player, size and half; a coalition updates members and others. Sizes 2 to n - 2
    are drawn as its exact calculation (sizes 1 and n - 1) allows, which costs 2n evaluations and is left out where it would be
    more than half of the budget."""
    evaluations = Evaluations(game, variant, seed)
    rng, n = np.random.default_rng(seed), game.n_players
    total = np.zeros((2, n, n), dtype=np.float32)  # half, size of S without the player, player
    count = np.zeros((2, n, n), dtype=np.float32)
    base = (evaluations.full + evaluations.empty) / 2
    total[0, n - 1], count[0, n - 1] = evaluations.full - base, 1
    total[1, 0], count[1, 0] = evaluations.empty - base, 1
    left = evaluations.left(budget)
    exact = 2 * n <= left // 2
    if exact:
        for start in range(0, n, _CHUNK):
            single = np.eye(n, dtype=bool)[start : start + _CHUNK]
            for coalitions in (single, ~single):
                _update(total, count, coalitions, evaluations(coalitions) - base)
        left -= 2 * n
    sizes = np.arange(2, n - 1) if exact else np.arange(1, n)
    # Small and large sizes more often, as in the paper: a size s updates each of its strata with chance s / n.
    law = 1 / np.minimum(sizes, n - sizes)
    law = law / law.sum()
    while left > 0:
        m = min(_CHUNK, left)
        coalitions = _coalitions(rng, n, rng.choice(sizes, m, p=law))
        _update(total, count, coalitions, evaluations(coalitions) - base)
        left -= m
    mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
    seen = np.maximum((count > 0).sum(axis=1), 1)
    return (mean[0].sum(axis=0) / seen[0] - mean[1].sum(axis=0) / seen[1]).astype(np.float64)


def _update(total: FloatArray, count: FloatArray, coalitions: BoolArray, values: FloatArray) -> None:
    for coalition, value, size in zip(coalitions, values, coalitions.sum(axis=1), strict=True):
        if size > 0:
            total[0, size - 1] += np.where(coalition, value, 0)
            count[0, size - 1] += coalition
        if size < len(coalition):
            total[1, size] += np.where(coalition, 0, value)
            count[1, size] += ~coalition


def _coalitions(rng: np.random.Generator, n: int, sizes: IntArray) -> BoolArray:
    """``[len(sizes), n]``, each a random set of its size."""
    order = np.argsort(rng.random((len(sizes), n), dtype=np.float32), axis=1)
    coalitions = np.zeros((len(sizes), n), dtype=bool)
    np.put_along_axis(coalitions, order, np.arange(n) < sizes[:, None], axis=1)
    return coalitions
