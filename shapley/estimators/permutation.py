"""Permutation sampling with antithetic pairs and optional truncation.

1. Draw a permutation; walk down it from the whole model, then down its reverse (Mitchell et al. 2022, section 3).
2. A player's sample is the mean of its two marginals, weighted by coalition size for semivalues other than Shapley.
3. With truncation, marginals after the stop are missing, not zero: they are counted in ``truncated``, and the
   efficiency gap says what they are worth. Truncated scores are means over the coalitions that were reached, and are
   biased for the Shapley value; without truncation the estimator is unbiased.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from shapley.estimators.base import Estimator, Game
from shapley.estimators.moments import Moments
from shapley.estimators.semivalue import Semivalue
from shapley.estimators.walk import Truncation, Walk, walk_chunk, walk_in_turn
from shapley.keyed import keyed_rng
from shapley.types import BoolArray, FloatArray, IntArray

_PART_ROWS = 16384  # forward rows of a part, about: a minute or so of work


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
        walks = self._walks()
        return self._sample(walks) if walk_in_turn(walks) else None

    def parts(self) -> int:
        """Without truncation, stretches of the two walks; a truncated walk is one piece, as nobody knows where it ends."""
        return 1 if self.truncation else 2 * self._stretches

    def part(self, index: int) -> tuple[np.ndarray, ...]:
        """The values along a stretch, evaluated in the chunks of ``advance``, so that they are the same to the last bit."""
        if self.truncation:
            return super().part(index)
        which, stretch = divmod(index, self._stretches)
        walk, n, chunk = self._walks()[which], self.game.n_players, walk_chunk(self.game)
        first = 1 + stretch * self._stretch
        end = min(first + self._stretch, n + 1)
        for count in range(first, end, chunk):
            walk.evaluate(np.arange(count, min(count + chunk, end)))
        return (walk.values[first:end].copy(),)

    def join(self, parts: Sequence[tuple[np.ndarray, ...]]) -> tuple[FloatArray, IntArray]:
        if self.truncation:
            marginals, seen = parts[0]
            return marginals, seen
        walks = self._walks()
        for i, walk in enumerate(walks):
            walk.values[1:] = np.concatenate(
                [part[0] for part in parts[i * self._stretches : (i + 1) * self._stretches]]
            )
        return self._sample(walks)

    @property
    def _stretch(self) -> int:
        """Coalitions of a part: whole chunks."""
        chunk = walk_chunk(self.game)
        return max(1, _PART_ROWS // (chunk * self.game.n_prompts)) * chunk

    @property
    def _stretches(self) -> int:
        return -(-self.game.n_players // self._stretch)

    def _walks(self) -> list[Walk]:
        n = self.game.n_players
        order = keyed_rng(self.seed, "permutation", self.unit).permutation(n)
        stop = Truncation(self.truncation, self.value_full, self.value_empty)
        everyone: BoolArray = np.ones(n, dtype=bool)
        return [
            Walk(self.game, pi, self.unit, stop, everyone, values)
            for pi, values in zip((order, order[::-1]), self._walk_values, strict=True)
        ]

    def _sample(self, walks: Sequence[Walk]) -> tuple[FloatArray, IntArray]:
        n = self.game.n_players
        total, seen = np.zeros(n), np.zeros(n, dtype=np.int64)
        for walk in walks:
            marginals, reached = walk.marginals()
            total += marginals * self._weight[n - 1 - np.argsort(walk.order)]  # members behind each player
            seen += reached
        return total / np.maximum(seen, 1), seen

    @property
    def needs_ends(self) -> bool:
        return self.truncation > 0

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
