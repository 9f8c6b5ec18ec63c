"""Mask gradients at random coalitions: a first-order marginal of every player from one backward pass.

In the multilinear extension of the game (Owen 1972) a player's Shapley value is the integral over q of its derivative at
coalitions that hold every player with chance q; the derivative of a multilinear game at a coalition is the exact marginal.
A model is not multilinear in its gates, and the derivative there is a first-order estimate whose bias no number of samples
removes (docs/estimators.md); ``two-stage`` goes on from here.

1. A unit is 8 antithetic pairs of coalitions, q stratified (``coalitions``), each pair with one prompt and noise draw.
2. A unit's sample is the mean gradient of its 16 rows; units are independent, so their spread is the standard error.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from shapley.estimators.base import DifferentiableGame, Estimator, Game
from shapley.estimators.coalitions import ROWS_PER_UNIT, antithetic_coalitions, pairs_of, prompts_of
from shapley.estimators.semivalue import Semivalue
from shapley.types import FloatArray


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
        coalitions, _ = antithetic_coalitions(self.game.n_players, self.semivalue, self.seed, self.unit)
        prompts = prompts_of(self.unit, self.game.n_prompts, self.seed, self.key)
        _, gradients = self._differentiable.gradients(
            coalitions, prompts=np.repeat(prompts, 2), draws=np.repeat(pairs_of(self.unit), 2)
        )
        return gradients.mean(axis=0, dtype=np.float64)

    def add(self, sample: FloatArray) -> None:
        self.moments.add(sample, replicate=self.unit)
