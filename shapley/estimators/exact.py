"""Exact semivalues by enumeration of all coalitions, for up to 20 players.

    phi_i = sum over S without i of  w(|S|) / C(n-1, |S|) * (v(S + i) - v(S))          (Shapley 1953; weights w: semivalue)

Where values depend on a noise draw, each draw is enumerated; the score is their mean.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from scipy.special import comb

from shapley.errors import ShapleyError
from shapley.estimators.base import Estimator, Game, chunk_size
from shapley.estimators.semivalue import Semivalue
from shapley.types import BoolArray, FloatArray, IntArray

MAX_PLAYERS = 20


class Exact(Estimator):
    """``samples`` counts noise draws (1 where the game is deterministic)."""

    name: ClassVar[str] = "exact"

    def __init__(
        self, game: Game, *, semivalue: Semivalue, seed: int = 0, key: str = "", samples: int | None = None
    ) -> None:
        n = game.n_players
        if n > MAX_PLAYERS:
            raise ShapleyError(f"estimator 'exact' enumerates 2^n coalitions: {n} players are more than {MAX_PLAYERS}")
        self._values: FloatArray = np.full(1 << n, np.nan)  # of the draw at work, indexed by coalition code
        super().__init__(
            game,
            semivalue=semivalue,
            seed=seed,
            key=key,
            samples=(samples or 8) if game.stochastic else 1,
        )

    @classmethod
    def unit_cost(cls, game: Game) -> tuple[int, int]:
        return 1, (1 << game.n_players) * game.n_prompts

    def advance(self) -> FloatArray | None:
        """Evaluate a chunk of coalitions; after a draw's last, its scores ``[n]``."""
        codes = np.flatnonzero(np.isnan(self._values))[: chunk_size(self.game)]
        draws = np.full(len(codes), self.unit)
        self._values[codes] = self.game.values(members(codes, self.game.n_players), draws=draws)
        return None if np.isnan(self._values[-1]) else enumerate_semivalue(self._values, self.semivalue)

    @property
    def midway(self) -> bool:
        return not bool(np.isnan(self._values).all())

    def adopt(self, unit: int, ends: tuple[float, float], shared: dict[str, np.ndarray]) -> None:
        super().adopt(unit, ends, shared)
        self._values[:] = np.nan

    def add(self, sample: FloatArray) -> None:
        self.moments.add(sample, replicate=self.unit)
        self._values[:] = np.nan

    def state(self) -> dict[str, np.ndarray]:
        return super().state() | {"values": self._values}

    def load(self, state: dict[str, np.ndarray]) -> None:
        super().load(state)
        self._values = np.array(state["values"])


def members(codes: IntArray, n_players: int) -> BoolArray:
    """Coalition codes, one bit a player, as rows of membership."""
    return (codes[:, None] >> np.arange(n_players) & 1).astype(bool)


def enumerate_semivalue(values: FloatArray, semivalue: Semivalue) -> FloatArray:
    """The semivalue of a game given by all its ``2^n`` values, indexed by coalition code."""
    n = int(np.log2(len(values)))
    codes = np.arange(1 << n)
    sizes = members(codes, n).sum(axis=1)
    sizes_without = np.arange(n)
    weight = semivalue.size_law(n) / comb(n - 1, sizes_without)
    scores = np.empty(n)
    for i in range(n):
        without = codes[(codes >> i & 1) == 0]
        scores[i] = weight[sizes[without]] @ (values[without | 1 << i] - values[without])
    return scores
