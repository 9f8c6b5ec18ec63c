"""Permutation sampling with antithetic pairs and optional truncation.

1. Draw a permutation; walk down it from the whole model, then down its reverse (Mitchell et al. 2022, section 3).
2. A player's sample is the mean of its two marginals, weighted by coalition size for semivalues other than Shapley.
3. With truncation, marginals after the stop are missing, not zero: they are counted in ``truncated``, and the
   efficiency gap says what they are worth. Truncated scores are means over the coalitions that were reached, and are
   biased for the Shapley value; without truncation the estimator is unbiased.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from shapley.estimators.base import Estimator, Game
from shapley.estimators.moments import Moments
from shapley.estimators.semivalue import Semivalue
from shapley.estimators.walk import Truncation, Walk, walk_in_turn
from shapley.keyed import keyed_rng
from shapley.types import BoolArray, FloatArray, IntArray


class Permutation(Estimator):
    """``samples`` counts permutations; they come in pairs."""

    name: ClassVar[str] = "permutation"
    options: ClassVar[frozenset[str]] = frozenset({"truncation"})

    def __init__(
        self,
        game: Game,
        *,
        semivalue: Semivalue,
        seed: int = 0,
        key: str = "",
        samples: int = 100,
        truncation: float = 0.0,
    ) -> None:
        n = game.n_players
        self.truncation = truncation
        self._weight = n * semivalue.size_law(n)
        self._walk_values: FloatArray = np.full((2, n + 1), np.nan)
        super().__init__(
            game,
            semivalue=semivalue,
            seed=seed,
            key=key,
            samples=samples,
        )

    @classmethod
    def unit_cost(cls, game: Game) -> tuple[int, int]:
        return 2, 2 * game.n_players * game.n_prompts

    def advance(self) -> tuple[FloatArray, IntArray] | None:
        """A chunk of the unit's walks; at their end the players' mean marginals ``[n]`` and how many of the two each has."""
        n = self.game.n_players
        order = keyed_rng(self.seed, "permutation", self.unit).permutation(n)
        stop = Truncation(self.truncation, self.value_full, self.value_empty)
        everyone: BoolArray = np.ones(n, dtype=bool)
        walks = [
            Walk(self.game, pi, self.unit, stop, everyone, values)
            for pi, values in zip((order, order[::-1]), self._walk_values, strict=True)
        ]
        if not walk_in_turn(walks):
            return None
        total, seen = np.zeros(n), np.zeros(n, dtype=np.int64)
        for walk in walks:
            marginals, reached = walk.marginals()
            total += marginals * self._weight[n - 1 - np.argsort(walk.order)]  # members behind each player
            seen += reached
        return total / np.maximum(seen, 1), seen

    @property
    def midway(self) -> bool:
        return not bool(np.isnan(self._walk_values).all())

    def adopt(self, unit: int, ends: tuple[float, float], shared: dict[str, np.ndarray]) -> None:
        super().adopt(unit, ends, shared)
        self._walk_values[:] = np.nan

    def add(self, sample: tuple[FloatArray, IntArray]) -> None:
        marginals, seen = sample
        self.moments.truncated += 2 - seen
        self.moments.add(marginals, replicate=self.unit, seen=seen > 0)
        self._walk_values[:] = np.nan

    def details(self) -> dict[str, Any]:
        return {"truncation": self.truncation, "truncated_marginals": int(self.moments.truncated.sum())}

    def state(self) -> dict[str, np.ndarray]:
        return super().state() | {"walk_values": self._walk_values}

    def load(self, state: dict[str, np.ndarray]) -> None:
        super().load(state)
        self._walk_values = np.array(state["walk_values"])

    def _new_moments(self) -> Moments:
        return Moments(self.game.n_players, uneven=True)
