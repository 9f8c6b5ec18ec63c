"""What a peer is given: a game, a budget of forward rows, and evaluations in two variants.

``all``: each evaluation is the mean over all prompts, ``n_prompts`` rows. ``one``: each evaluation (or each walk down a
permutation) sees one random prompt, a row. In the second, what a prompt's ends v_p(0) and v_p(N) differ by from the mean's is
taken off in proportion to the coalition's size: an estimator need not suffer from this noise. It costs 2 x prompts rows once.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shapley.types import BoolArray, FloatArray, IntArray


class CannotRunError(Exception):
    """The peer has no answer for this game or budget; the message says why."""


class Evaluations:
    """Coalitions to values, as peers call them.

    Args:
        game: with ``values``.
        variant: ``all`` or ``one``.
        seed: of the choice of prompts.
        walk: in variant ``one``, whether the prompt changes by ``next_walk`` only, instead of at every evaluation.
    """

    def __init__(self, game: Any, variant: str, seed: int, walk: bool = False) -> None:
        self.game, self.variant, self.walk = game, variant, walk
        self.n = game.n_players
        self._rng = np.random.default_rng([seed, 77])
        self.rows_each = game.n_prompts if variant == "all" else 1
        everyone = np.ones(self.n, dtype=bool)
        if variant == "one":
            prompts = np.arange(game.n_prompts)
            ends = np.repeat(np.array([everyone, ~everyone]), game.n_prompts, axis=0)
            values = game.values(ends, prompts=np.tile(prompts, 2)).reshape(2, -1)
            self._shift = values.mean(axis=1, keepdims=True) - values  # [full and empty, prompts]
            self.full, self.empty = values.mean(axis=1).tolist()
        else:
            self.full, self.empty = game.values(np.array([everyone, ~everyone])).tolist()
        self.next_walk()

    def next_walk(self) -> None:
        self._prompt = int(self._rng.integers(self.game.n_prompts))

    def left(self, budget: int) -> int:
        """How many evaluations the rest of the budget holds.

        Raises:
            CannotRunError: not one.
        """
        left = (budget - self.game.forward_rows) // self.rows_each
        if left < 1:
            raise CannotRunError("the budget does not hold one evaluation")
        return int(left)

    def __call__(self, coalitions: BoolArray) -> FloatArray:
        """``[C, n]`` or ``[n]`` -> ``[C]``. The two ends cost nothing more: they are known."""
        coalitions = np.atleast_2d(np.asarray(coalitions, dtype=bool))
        size = coalitions.sum(axis=1)
        out = np.where(size == 0, self.empty, self.full)
        inner = np.flatnonzero((size > 0) & (size < self.n))
        if len(inner):
            out[inner] = self._inner(coalitions[inner], size[inner])
        return out

    def _inner(self, coalitions: BoolArray, size: IntArray) -> FloatArray:
        if self.variant == "all":
            return self.game.values(coalitions)
        if self.walk:
            prompts = np.full(len(coalitions), self._prompt)
        else:
            prompts = self._rng.integers(self.game.n_prompts, size=len(coalitions))
        share = size / self.n
        return (
            self.game.values(coalitions, prompts=prompts)
            + share * self._shift[0, prompts]
            + (1 - share) * self._shift[1, prompts]
        )
