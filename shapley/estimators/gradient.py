"""Mask gradients at random coalitions: a first-order marginal of every player from one backward pass.

In the multilinear extension of the game (Owen 1972) a player's Shapley value is the integral over q of its derivative at
coalitions that hold every player with chance q; the derivative of a multilinear game at a coalition is the exact marginal.
A model is not multilinear in its gates, and the derivative there is a first-order estimate whose bias no number of samples
removes (docs/estimators.md).

1. Stratify q: a unit is 8 pairs of rows, with q at one place in each eighth of its law.
2. Pair: the partner row has 1 - u for every uniform u of the first, and the mirrored q. For Shapley and Banzhaf that is
   the complement coalition.
3. Each pair has one prompt, prompts being dealt out in random order, all once before any twice, and one noise draw.
4. A unit's sample is the mean gradient of its 16 rows; units are independent, so their spread is the standard error.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from shapley.estimators.base import DifferentiableGame, Estimator, Game
from shapley.estimators.semivalue import Semivalue
from shapley.keyed import keyed_rng
from shapley.types import BoolArray, FloatArray

N_PAIRS = 8
ROWS_PER_UNIT = 2 * N_PAIRS


class Gradient(Estimator):
    """``samples`` counts coalitions, a row each; they come 16 a unit."""

    name: ClassVar[str] = "gradient"

    def __init__(
        self, game: DifferentiableGame, *, semivalue: Semivalue, seed: int = 0, key: str = "", samples: int = 512
    ) -> None:
        super().__init__(
            game,
            semivalue=semivalue,
            seed=seed,
            key=key,
            samples=samples,
        )
        self._differentiable = game

    @classmethod
    def unit_cost(cls, game: Game) -> tuple[int, int]:
        return ROWS_PER_UNIT, 3 * ROWS_PER_UNIT

    def advance(self) -> FloatArray:
        coalitions = antithetic_coalitions(self.game.n_players, self.semivalue, self.seed, self.unit)
        pairs = self.unit * N_PAIRS + np.arange(N_PAIRS)
        prompts = np.array([self._prompt(int(pair)) for pair in pairs])
        _, gradients = self._differentiable.gradients(
            coalitions, prompts=np.repeat(prompts, 2), draws=np.repeat(pairs, 2)
        )
        return gradients.mean(axis=0, dtype=np.float64)

    def add(self, sample: FloatArray) -> None:
        self.moments.add(sample, replicate=self.unit)

    def _prompt(self, pair: int) -> int:
        """The prompt of a pair: position in a random order of all prompts, a new order each time round."""
        turn, place = divmod(pair, self.game.n_prompts)
        return int(keyed_rng(self.seed, self.key, "prompts", turn).permutation(self.game.n_prompts)[place])


def antithetic_coalitions(n_players: int, semivalue: Semivalue, seed: int, unit: int) -> BoolArray:
    """``[16, n]``: rows 2j and 2j + 1 are a pair."""
    rng = keyed_rng(seed, "coalitions", unit)
    p = (np.arange(N_PAIRS) + rng.random(N_PAIRS)) / N_PAIRS
    q, mirrored = semivalue.intact_fraction(p), semivalue.intact_fraction(1 - p)
    coalitions = np.empty((ROWS_PER_UNIT, n_players), dtype=bool)
    for j in range(N_PAIRS):
        u = rng.random(n_players, dtype=np.float32)
        coalitions[2 * j] = u < q[j]
        coalitions[2 * j + 1] = 1 - u < mirrored[j]
    return coalitions
