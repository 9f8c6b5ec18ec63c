"""Confidence radii for the mean of t samples, and what they allow to be said of the top k.

- ``published``: empirical Bernstein with range R and failure probability delta for one player at one look, as the Neuron
  Shapley code has it. With many players and repeated looks it does not hold; it is here to compare with.
- ``valid``: empirical Bernstein (Maurer and Pontil 2009, Theorem 4, both sides) with delta spent over all players and
  all looks: delta / (n k (k + 1)) at look k. It holds for samples in a known range.
- ``asymptotic``: normal quantiles with delta spent in the same way, from 30 samples on. It needs no range, and holds
  only as the central limit theorem does.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import stats

from shapley.types import BoolArray, FloatArray, IntArray

BoundName = Literal["valid", "asymptotic", "published"]
_LEAST_ASYMPTOTIC = 30


def radius(
    bound: BoundName, variance: FloatArray, count: IntArray, *, span: float, delta: float, look: int
) -> FloatArray:
    """Half-widths of the players' confidence intervals, infinite with too few samples.

    Args:
        variance: ``[n]`` sample variances.
        count: ``[n]`` numbers of samples.
        span: width of the interval that samples lie in.
        delta: failure probability over everything (``published``: of one interval).
        look: 1, 2, …: how often bounds have been looked at.
    """
    t = np.maximum(count, 2)
    share = delta / (len(count) * look * (look + 1))
    if bound == "asymptotic":
        half = stats.norm.isf(share / 2) * np.sqrt(variance / t)
    else:
        log = np.log(2 / delta) if bound == "published" else np.log(4 / share)
        half = np.sqrt(2 * variance * log / t) + 7 * span * log / (3 * (t - 1))
    return np.where(count >= (_LEAST_ASYMPTOTIC if bound == "asymptotic" else 2), half, np.inf)


def spent_quantile(share: float, df: IntArray) -> FloatArray:
    """Two-sided Student quantiles for failure probability ``share`` at ``df`` degrees of freedom."""
    return np.asarray(stats.t.isf(share / 2, np.maximum(df, 1)))


def separated(score: FloatArray, half: FloatArray, k: int, tolerance: float = 0.0) -> tuple[BoolArray, BoolArray]:
    """Which players are certainly in the top ``k`` and which certainly are not, given intervals that all hold; players
    that differ by at most ``tolerance`` may take each other's place."""
    lower, upper = score - half + tolerance, score + half
    kth_lower = np.partition(lower, -k)[-k]
    next_upper = np.partition(upper, -k - 1)[-k - 1] if k < len(score) else -np.inf
    return lower > next_upper, upper < kth_lower
