"""Exact semivalues by enumeration of all coalitions, for up to 20 players.

    phi_i = sum over S without i of  w(|S|) / C(n-1, |S|) * (v(S + i) - v(S))          (Shapley 1953; weights w: semivalue)

Where values depend on a noise draw, each draw is enumerated; the score is their mean.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from scipy.special import comb

from shapley.errors import ShapleyError
from shapley.estimators.base import Estimator, Game
from shapley.estimators.semivalue import Semivalue
from shapley.types import BoolArray, FloatArray, IntArray

MAX_PLAYERS = 20
_CHUNK = 1024


class Exact(Estimator):
    """Enumeration; ``samples`` counts noise draws (1 where the game is deterministic)."""

    name: ClassVar[str] = "exact"

    def __init__(
        self, game: Game, *, semivalue: Semivalue, seed: int = 0, key: str = "", samples: int | None = None
    ) -> None:
        n = game.n_players
        if n > MAX_PLAYERS:
            raise ShapleyError(f"estimator 'exact' enumerates 2^n coalitions: {n} players are more than {MAX_PLAYERS}")
        n_draws = (samples or 8) if game.stochastic else 1
        self._chunks = -(-(1 << n) // _CHUNK)
        self._values: FloatArray = np.full(1 << n, np.nan)
        super().__init__(
            game,
            semivalue=semivalue,
            seed=seed,
            key=key,
            n_units=n_draws * self._chunks,
            samples_per_unit=1,
            rows_per_unit=min(_CHUNK, 1 << n) * game.n_prompts,
        )

    def advance(self) -> FloatArray:
        """Evaluate a chunk of coalitions."""
        draw, _ = divmod(self.unit, self._chunks)
        codes = self._codes()
        return self.game.values(members(codes, self.game.n_players), draws=np.full(len(codes), draw))

    def add(self, sample: FloatArray) -> None:
        """Keep the chunk; after a draw's last, score the draw."""
        draw, chunk = divmod(self.unit, self._chunks)
        self._values[self._codes()] = sample
        if chunk == self._chunks - 1:
            self.moments.add(enumerate_semivalue(self._values, self.semivalue), replicate=draw)

    def _codes(self) -> IntArray:
        chunk = self.unit % self._chunks
        return np.arange(chunk * _CHUNK, min((chunk + 1) * _CHUNK, len(self._values)))

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
