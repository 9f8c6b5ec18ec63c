"""shapiq's approximators of the Shapley value (Muschalik et al. 2024), as its documentation recommends: default sampling
weights, ``pairing_trick`` where there is one (its SVARM, KernelSHAP and unbiased KernelSHAP draw complements together)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from problem import CannotRunError, Evaluations

from shapley.types import BoolArray, FloatArray

_ENDS = 2  # evaluations that shapiq counts and ``Evaluations`` already holds


def permutation(game: Any, variant: str, budget: int, seed: int) -> FloatArray:
    """ApproShapley (Castro et al. 2009). One permutation a batch, so that each can have its prompt."""
    from shapiq.approximator import PermutationSamplingSV

    evaluations = Evaluations(game, variant, seed, walk=True)
    left = evaluations.left(budget)
    if left < game.n_players - 1:
        raise CannotRunError("the budget does not hold one permutation")

    def play(coalitions: BoolArray) -> FloatArray:
        if coalitions.ndim == 2:  # a permutation, not an end
            evaluations.next_walk()
        return evaluations(coalitions)

    found = PermutationSamplingSV(game.n_players, random_state=seed).approximate(left + _ENDS, play, batch_size=1)
    return _singles(found, game.n_players)


def approximator(name: str, **options: Any) -> Callable[[Any, str, int, int], FloatArray]:
    """A run of the approximator of this name."""

    def run(game: Any, variant: str, budget: int, seed: int) -> FloatArray:
        import shapiq.approximator

        evaluations = Evaluations(game, variant, seed)
        made = getattr(shapiq.approximator, name)(n=game.n_players, random_state=seed, **options)
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            found = made.approximate(evaluations.left(budget) + _ENDS, evaluations)
        scores = _singles(found, game.n_players)
        if not np.isfinite(scores).any():
            raise CannotRunError("all scores are NaN")
        return scores

    return run


def _singles(found: Any, n: int) -> FloatArray:
    """``[n]`` of first order."""
    values = found.get_n_order_values(1)
    return np.asarray(values, dtype=np.float64).reshape(n)
