"""Walks from the whole model down a permutation, impairing one player after another.

The inner loop of permutation sampling (Castro, Gomez and Tejada 2009) and of truncated Monte Carlo (Ghorbani and Zou
2019, Algorithm 1). It is evaluated in chunks and can stop and go on between them; truncation is decided value by value,
so the chunk size changes nothing but speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shapley.estimators.base import Game, chunk_size
from shapley.types import BoolArray, FloatArray, IntArray

_CHUNK = 32  # coalitions: more would be wasted where truncation stops the walk
_PATIENCE = 5


@dataclass(frozen=True)
class Truncation:
    """Stop when the value has come within ``tolerance`` (a fraction of v(N) - v(0)) of v(0) six times running, as the
    published code does. Tolerance 0 never stops."""

    tolerance: float
    value_full: float
    value_empty: float

    def reached(self, values: FloatArray) -> BoolArray:
        if self.tolerance == 0:
            return np.zeros(len(values), dtype=bool)
        return np.abs(values - self.value_empty) <= self.tolerance * abs(self.value_full - self.value_empty)


class Walk:
    """One walk.

    Args:
        game: what is played.
        order: ``[n]``, the permutation; all players are impaired in their turn.
        draw: the noise draw of the whole walk.
        truncation: when to stop.
        wanted: ``[n]``, the players whose marginals are wanted; values are computed around those only.
        values: ``[n + 1]``, the value after each number of impaired players, NaN where not computed; filled in place.
    """

    def __init__(
        self, game: Game, order: IntArray, draw: int, truncation: Truncation, wanted: BoolArray, values: FloatArray
    ) -> None:
        self.game, self.order, self.draw, self.truncation, self.values = game, order, draw, truncation, values
        self._steps = np.flatnonzero(wanted[order])  # impairing order[step] leads from values[step] to values[step + 1]
        self._needed = np.union1d(self._steps, self._steps + 1)
        self._rank = np.empty(len(order), dtype=np.int64)
        self._rank[order] = np.arange(len(order))
        values[0] = truncation.value_full  # nobody impaired: no draw enters

    @property
    def finished(self) -> bool:
        return len(self._pending()) == 0 or self._stop() is not None

    def advance(self) -> None:
        """Evaluate the next chunk of coalitions."""
        self.evaluate(self._pending()[: walk_chunk(self.game)])

    def evaluate(self, counts: IntArray) -> None:
        """Evaluate the coalitions with so many impaired players, in one call."""
        draws = np.full(len(counts), self.draw)
        self.values[counts] = self.game.values(self._rank[None, :] >= counts[:, None], draws=draws)

    def marginals(self) -> tuple[FloatArray, BoolArray]:
        """``[n]`` marginal contributions (0 where not seen) and ``[n]`` which players were seen."""
        stop = self._stop()
        steps = self._steps if stop is None else self._steps[: stop + 1]
        marginals, seen = np.zeros(len(self.order)), np.zeros(len(self.order), dtype=bool)
        marginals[self.order[steps]] = self.values[steps] - self.values[steps + 1]
        seen[self.order[steps]] = True
        return marginals, seen

    def _pending(self) -> IntArray:
        return self._needed[np.isnan(self.values[self._needed])]

    def _stop(self) -> int | None:
        """Index among the steps of the one at which truncation stops, if it does."""
        after = self.values[self._steps + 1]
        after = after[: len(after) if not np.isnan(after).any() else int(np.argmax(np.isnan(after)))]
        reached = self.truncation.reached(after)
        run = np.arange(len(after)) - np.maximum.accumulate(np.where(reached, -1, np.arange(len(after))))
        stops = np.flatnonzero(run > _PATIENCE)
        return int(stops[0]) if len(stops) else None


def walk_chunk(game: Game) -> int:
    """Coalitions that ``Walk.advance`` evaluates in one call."""
    return min(_CHUNK, chunk_size(game))


def walk_in_turn(walks: Sequence[Walk]) -> bool:
    """Advance the first walk that is not finished; returns whether all are."""
    for walk in walks:
        if not walk.finished:
            walk.advance()
            break
    return all(walk.finished for walk in walks)
