"""TMAB-Shapley: truncated multi-armed-bandit Shapley (Ghorbani and Zou 2020, Algorithm 1).

Repeat until the top k is known or the budget is spent:
1. Draw a permutation of all players; impair them one after another, starting from the whole model. (lines 5-6)
2. The marginal of each player that is still undecided is the drop of the value when it is impaired; once performance
   is gone, the walk is truncated. (lines 7-12)
3. Update mean and variance of the undecided players. (lines 13-14)
4. Update confidence bounds, and decide the players whose interval lies clear of the k-th value. (lines 15-17)

Decided players stay in the game: they are impaired in their turn, so what is estimated does not change. With
``bound="published"`` this is the published procedure: its bound, a truncated marginal counted as zero, a player decided
when its interval leaves the (k+1)-th mean. By default the bound holds over all players and looks, there is no truncation,
and a player is decided when its interval clears those of the players on the other side.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from shapley.errors import ShapleyError, unknown_name
from shapley.estimators.base import Estimator, Game
from shapley.estimators.bounds import BoundName, radius, separated
from shapley.estimators.moments import Moments
from shapley.estimators.semivalue import Semivalue
from shapley.estimators.walk import Truncation, Walk, walk_in_turn
from shapley.keyed import keyed_rng
from shapley.types import BoolArray, FloatArray

PUBLISHED_TRUNCATION = 0.2


class Tmab(Estimator):
    """``samples`` counts permutations, and is the most that will be drawn.

    Args:
        top_k: how many players to separate from the rest; a tenth of all, at most 100, by default.
        delta: the chance that what is said of the top k is wrong.
        bound: a name in ``bounds``.
        truncation: a fraction of v(N) - v(0); none by default, 0.2 as published.
    """

    name: ClassVar[str] = "tmab"
    options: ClassVar[frozenset[str]] = frozenset({"top_k", "delta", "bound", "truncation"})
    apart: ClassVar[bool] = False  # every unit may decide players, and the next leaves those out

    def __init__(
        self,
        game: Game,
        *,
        semivalue: Semivalue,
        seed: int = 0,
        key: str = "",
        samples: int = 100,
        top_k: int | None = None,
        delta: float = 0.05,
        bound: BoundName = "valid",
        truncation: float | None = None,
    ) -> None:
        if top_k is None:
            top_k = min(100, -(-game.n_players // 10))
        if not 0 < top_k < game.n_players:
            raise ShapleyError(f"--top-k {top_k} must be at least 1 and less than the {game.n_players} players")
        if bound not in ("valid", "asymptotic", "published"):
            raise unknown_name("bound", bound, ("valid", "asymptotic", "published"))
        self.top_k, self.delta, self.bound = top_k, delta, bound
        self.truncation = (PUBLISHED_TRUNCATION if bound == "published" else 0.0) if truncation is None else truncation
        n = game.n_players
        super().__init__(
            game,
            semivalue=semivalue,
            seed=seed,
            key=key,
            samples=samples,
        )
        self._weight = n * semivalue.size_law(n)
        self._walk_values: FloatArray = np.full((1, n + 1), np.nan)
        low, high = game.value_range
        self._span = 2 * (high - low) * float(self._weight.max())
        self._undecided: BoolArray = np.ones(n, dtype=bool)
        self._in_range = True

    @classmethod
    def unit_cost(cls, game: Game) -> tuple[int, int]:
        return 1, game.n_players * game.n_prompts

    @property
    def finished(self) -> bool:
        return super().finished or not self._undecided.any()

    def advance(self) -> tuple[FloatArray, BoolArray] | None:
        """A chunk of the unit's walk; at its end the marginals ``[n]`` and which were seen."""
        n = self.game.n_players
        order = keyed_rng(self.seed, "permutation", self.unit).permutation(n)  # line 5
        stop = Truncation(self.truncation, self.value_full, self.value_empty)
        walk = Walk(self.game, order, self.unit, stop, self._undecided, self._walk_values[0])
        if not walk_in_turn([walk]):  # lines 6-12
            return None
        marginals, seen = walk.marginals()
        return marginals * self._weight[n - 1 - np.argsort(order)], seen

    def add(self, sample: tuple[FloatArray, BoolArray]) -> None:
        marginals, seen = sample
        self._in_range &= bool(np.abs(marginals).max() <= self._span / 2)
        self.moments.truncated += self._undecided & ~seen
        counted = self._undecided if self.bound == "published" else seen
        self.moments.add(marginals, replicate=self.unit, seen=counted)  # lines 13-14
        self._walk_values[:] = np.nan
        self._decide(look=self.unit + 1)  # lines 15-17

    def _decide(self, look: int) -> None:
        moments = self.moments
        if moments.count.min() < 2:
            return
        half = self._radius(look)
        if self.bound == "published":
            threshold = np.partition(moments.mean, -self.top_k - 1)[-self.top_k - 1]
            self._undecided &= np.abs(moments.mean - threshold) < half
            if self._undecided.sum() == 1:  # the published loop ends with the one player that is the threshold
                self._undecided[:] = False
        else:
            inside, outside = separated(moments.mean, half, self.top_k)
            self._undecided &= ~(inside | outside)

    def _radius(self, look: int) -> np.ndarray:
        span = self._span / 2 if self.bound == "published" else self._span
        variance = np.nan_to_num(self.moments.variance())
        return radius(self.bound, variance, self.moments.count, span=span, delta=self.delta, look=look)

    def details(self) -> dict[str, Any]:
        return {
            "bound": self.bound,
            "delta": self.delta,
            "top_k": self.top_k,
            "undecided": int(self._undecided.sum()),
            "separated": not self._undecided.any(),
            "values_in_range": self._in_range,
            "truncation": self.truncation,
            "truncated_marginals": int(self.moments.truncated.sum()),
        }

    def state(self) -> dict[str, np.ndarray]:
        return super().state() | {
            "undecided": self._undecided,
            "in_range": np.array(self._in_range),
            "walk_values": self._walk_values,
        }

    def load(self, state: dict[str, np.ndarray]) -> None:
        super().load(state)
        self._undecided = np.array(state["undecided"])
        self._in_range = bool(state["in_range"])
        self._walk_values = np.array(state["walk_values"])

    def _new_moments(self) -> Moments:
        return Moments(self.game.n_players, uneven=True)
