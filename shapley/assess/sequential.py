"""Is the mean score below a threshold or above it? Looked at after every item, as often as one likes.

Betting (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting", JRSS B 86:1, Theorem 3):
two gamblers bet against every candidate m for the mean of scores X_1, X_2, … in [0, 1]. Each divides the capital among
stakes f that stay as they are (Cover 1991, "Universal portfolios"; Orabona and Jun 2024, IEEE Trans. Inf. Theory 70:1):

    K+_t(m) = mean_f prod_{i <= t} (1 + f (X_i - m) / m)              grows if the mean is above m
    K-_t(m) = mean_f prod_{i <= t} (1 - f (X_i - m) / (1 - m))        grows if the mean is below m

K+ isa non-negative supermartingale that starts at 1 if the mean is m or less, and by Ville's inequality ever reaches 1 / a
with probability a at most: looking after every item and stopping at will is covered. K+ falls with m and K- rises, so what
is not rejected is an interval, and its ends are found by bisection. Stakes that follow the scores (the paper's equation 26)
are as good in the mean, but a run of bad luck at the start, where they are high, can cost a gambler all but nothing of the
capital for good.

**The error of a ladder.** With confidence 1 - a, all verdicts of the ladder are right together. Half of a goes to *safe*,
half to *danger*.

- Safe (the mean is below the threshold) needs no correction for the number of rungs. Levels are tested in an order fixed
  beforehand, and the first that is not shown safe is the last: any false *safe* on the ladder implies one at the first level
  that is really at or above the threshold, and that is one test, at its full share (fixed sequence: Maurer, Hothorn and
  Lehmacher 1995; Westfall and Krishen 2001). It asks nothing of how the score depends on the level, so a sandbagger whose
  score rises with impairment is covered; nor of independence, so all rungs may use the same items.
- Danger (the mean is above) could be said falsely at any rung, so its share is split over the rungs.

The interval of a rung has both bounds, and holds by itself with confidence 1 - a / 2 - a / (2 rungs), at least 1 - a.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp

from shapley.errors import ShapleyError
from shapley.types import FloatArray

_STAKES = (np.arange(16) + 0.5) / 16  # shares of what may be lost at a time
_BISECTIONS = 20  # to 1e-6


@dataclass(frozen=True)
class Shares:
    """The chances of error, at all looks together, that the two sides of a rung's interval may spend."""

    low: float
    high: float


@dataclass(frozen=True)
class Bounds:
    """The mean score is in [low, high]."""

    low: float
    high: float


def spend(confidence: float, rungs: int) -> Shares:
    """What a rung may spend so that the ladder's verdicts hold together with ``confidence``.

    Raises:
        ShapleyError: not a confidence between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ShapleyError(f"confidence {confidence:g}: expected a number between 0 and 1, as 0.95")
    error = 1 - confidence
    return Shares(low=error / 2 / rungs, high=error / 2)


def mean_bounds(scores: ArrayLike, shares: Shares) -> Bounds:
    """The intersection of all intervals up to the last item.

    The scores are independent draws of one distribution, and the mean is of that: the population that items are a random sample
    of, not the items at hand.

    Args:
        scores: ``[items]`` in [0, 1], in the order in which they were asked; that order must not depend on scores.

    Raises:
        ShapleyError: not of one axis, or outside [0, 1].
    """
    x = np.asarray(scores, dtype=float)
    if x.ndim != 1 or not ((x >= 0) & (x <= 1)).all():
        raise ShapleyError("scores: expected a list of numbers from 0 to 1")
    # With scores and candidates mirrored, K- is K+.
    return Bounds(_lower(x, shares.low), 1 - _lower(1 - x, shares.high))


def _lower(x: FloatArray, share: float) -> float:
    """The largest m that is rejected because K+_t(m) reached 1 / share at some t; 0 if none is."""
    low, high = 0.0, 1.0
    for _ in range(_BISECTIONS):
        m = (low + high) / 2
        capitals = np.cumsum(np.log1p(np.multiply.outer(_STAKES, x / m - 1)), axis=1)
        capital = logsumexp(capitals, axis=0) - np.log(len(_STAKES))
        reached = capital.max(initial=0.0) >= -np.log(share)
        low, high = (m, high) if reached else (low, m)
    return low
