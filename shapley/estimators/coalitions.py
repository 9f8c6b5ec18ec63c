"""The coalitions that gradient estimators share: stratified, antithetic units of 16 rows."""

from __future__ import annotations

import numpy as np

from shapley.estimators.semivalue import Semivalue
from shapley.keyed import keyed_rng
from shapley.types import BoolArray, FloatArray, IntArray

N_PAIRS = 8
ROWS_PER_UNIT = 2 * N_PAIRS


def antithetic_coalitions(n_players: int, semivalue: Semivalue, seed: int, unit: int) -> tuple[BoolArray, FloatArray]:
    """``[16, n]`` coalitions, and ``[16]`` the chance of a player to be in each.

    Rows 2j and 2j + 1 are a pair. q lies at one place in each eighth of its law; the partner row has 1 - u for every
    uniform u of the first, and the mirrored q. For Shapley and Banzhaf that is the complement coalition.
    """
    rng = keyed_rng(seed, "coalitions", unit)
    p = (np.arange(N_PAIRS) + rng.random(N_PAIRS)) / N_PAIRS
    fractions = np.empty(ROWS_PER_UNIT)
    fractions[0::2], fractions[1::2] = semivalue.intact_fraction(p), semivalue.intact_fraction(1 - p)
    coalitions = np.empty((ROWS_PER_UNIT, n_players), dtype=bool)
    for j in range(N_PAIRS):
        u = rng.random(n_players, dtype=np.float32)
        coalitions[2 * j] = u < fractions[2 * j]
        coalitions[2 * j + 1] = 1 - u < fractions[2 * j + 1]
    return coalitions, fractions


def pairs_of(unit: int) -> IntArray:
    """Numbers of a unit's pairs over the whole run; a pair has one noise draw, of this number."""
    return unit * N_PAIRS + np.arange(N_PAIRS)


def prompts_of(unit: int, n_prompts: int, seed: int, key: str) -> IntArray:
    """``[8]``, the prompt of each pair: prompts are dealt out in random order, all once before any twice."""
    turns, places = np.divmod(pairs_of(unit), n_prompts)
    orders = {turn: keyed_rng(seed, key, "prompts", turn).permutation(n_prompts) for turn in set(turns.tolist())}
    return np.array([orders[turn][place] for turn, place in zip(turns.tolist(), places.tolist(), strict=True)])
