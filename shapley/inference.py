"""Claims about specificity, from drops: by how much a prompt's performance falls under impairment (docs/curves.md).

A drop is the value at strength zero minus the value under impairment, averaged over noise seeds: positive where impairment
hurts. The prompts are the sample; topics and clusters are held as they are.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression

from shapley.errors import ShapleyError
from shapley.keyed import keyed_rng
from shapley.shape import Interval, bootstrap, finite, percentiles, resampled_means
from shapley.types import FloatArray

_MOST_EXACT = 10_000  # permutations of a matrix's columns that are gone through one and all
_ROUNDING = 1e-12  # relative: sums of the same numbers in another order are ties


@dataclass(frozen=True)
class Matched:
    """A drop at a given general damage; NaN where that damage was not ``reached``."""

    drop: float
    reached: bool


def selectivity(target: ArrayLike, others: Sequence[ArrayLike], n: int = 2000, seed: int = 0) -> Interval:
    """The drop on the target topic minus the mean over the other topics of their drops.

    The interval is of a bootstrap over prompts within topics: each topic's are resampled by themselves.

    Args:
        target: ``[prompts]``, drops of the target topic.
        others: for each other topic, ``[prompts]``; as many as it has.
        n: resamples.

    Returns:
        In the unit of the drops; the interval is NaN where a topic has one prompt only.

    Raises:
        ShapleyError: not finite, not of one axis, or no other topic.
    """
    if not others:
        raise ShapleyError("selectivity needs the drops of another topic")
    topics = [_sample("drops", drops) for drops in (target, *others)]
    estimate = float(topics[0].mean() - np.mean([drops.mean() for drops in topics[1:]]))
    if min(map(len, topics)) == 1:
        return Interval(estimate, float("nan"), float("nan"))
    means = np.array([resampled_means(drops[None], n, seed, topic)[:, 0] for topic, drops in enumerate(topics)])
    return percentiles(estimate, means[0] - means[1:].mean(axis=0))


def paired_difference(a: ArrayLike, b: ArrayLike, n: int = 2000, seed: int = 0) -> Interval:
    """The mean over prompts of a minus b, with its bootstrap interval: two selectors' drops on the same prompts.

    What makes a prompt hard for both cancels; differences of two separate intervals would keep it.

    Args:
        a: ``[prompts]``.
        b: ``[prompts]``, in the same order.
        n: resamples.

    Raises:
        ShapleyError: not finite, not of one axis, or not as many.
    """
    a, b = _sample("drops", a), _sample("drops", b)
    if a.shape != b.shape:
        raise ShapleyError(f"expected drops of the same prompts, not of {len(a)} and {len(b)}")
    return bootstrap(lambda mean: float(mean[0]), (a - b)[None], n, seed)


def at_matched_damage(damage_path: ArrayLike, drop_path: ArrayLike, damage: float) -> Matched:
    """The drop at a given general damage, so that selectors can be compared where they cost as much, not at one strength.

    Along the doses damage is made increasing (isotonic, least squares); doses that do the same damage then are one, with
    their mean drop; the drop is made increasing in damage, and is linear between.

    Args:
        damage_path: ``[doses]``, the rise of the loss on plain text along strengths or cluster sizes; begin with dose zero
            (no damage, no drop) if small damages are to count as reached.
        drop_path: ``[doses]``, the topic's drop at the same doses.
        damage: at which to compare.

    Raises:
        ShapleyError: not finite, not of one axis, or not as many.
    """
    damages, drops = _sample("damage", damage_path), _sample("drops", drop_path)
    if damages.shape != drops.shape:
        raise ShapleyError(f"expected a damage and a drop for every dose, not {len(damages)} and {len(drops)}")
    finite("damage", damage)
    levels, level_of, doses = np.unique(isotonic_regression(damages).x, return_inverse=True, return_counts=True)
    means = np.bincount(level_of, weights=drops) / doses
    fitted = isotonic_regression(means, weights=doses).x
    drop = float(np.interp(damage, levels, fitted, left=np.nan, right=np.nan))
    return Matched(drop, reached=not np.isnan(drop))


def permutation_p(observed: float, null: ArrayLike) -> float:
    """The one-sided p value of a statistic against draws of its null: (1 + #null >= observed) / (1 + n).

    What was observed counts as one of the draws. Without it p could be 0, which no finite number of draws shows, and the test
    would reject too often (Phipson and Smyth 2010, "Permutation p-values should never be zero").

    Args:
        observed: large values speak against the null.
        null: ``[n]``; without any, p is 1.

    Raises:
        ShapleyError: not finite.
    """
    observed, null = float(finite("observed", observed)), np.asarray(null, dtype=float)
    if not null.size:
        return 1.0
    rounding = _ROUNDING * max(abs(observed), np.abs(finite("null", null)).max())
    return float((1 + (null >= observed - rounding).sum()) / (1 + null.size))


def stratified_permutation_p(
    observed: ArrayLike, nulls: Sequence[ArrayLike], n_permutations: int = 10_000, seed: int = 0
) -> float:
    """The one-sided p value of a sum over strata (topics, say), each of which has draws of its own null.

    Under the null what was observed in a stratum is any of its members with equal chance, in each stratum by itself: sums of a
    member of each are drawn, and the observed sum counted (``permutation_p``). So a few draws a stratum show what no single
    stratum could (Edgington and Onghena 2007, "Randomization Tests", on combining independent experiments).

    Args:
        observed: ``[strata]``; large values speak against the null.
        nulls: for each stratum, ``[draws]``; as many as it has.
        n_permutations: sums that are drawn.

    Raises:
        ShapleyError: not finite, not of one axis, or not a null for every stratum.
    """
    observed = _sample("observed", observed)
    if len(nulls) != len(observed):
        raise ShapleyError(f"expected a null for each of {len(observed)} strata, not {len(nulls)}")
    members = [np.append(own, _sample("null", null)) for own, null in zip(observed, nulls, strict=True)]
    rng = keyed_rng(seed, "strata")
    drawn = sum((own[rng.integers(len(own), size=n_permutations)] for own in members), np.zeros(n_permutations))
    return permutation_p(sum(map(float, observed)), drawn)


def holm(p: ArrayLike) -> FloatArray:
    """P values adjusted for how many there are, by step-down (Holm 1979): those <= alpha are a set in which the chance of any
    false rejection is alpha at most, whatever the dependence.

    With p sorted from 1 to m, the k-th is the maximum over j <= k of min(1, (m - j + 1) p_j).

    Args:
        p: ``[tests]``; NaN for tests that were not made, which stay NaN and do not count.

    Returns:
        ``[tests]``, in the order given.

    Raises:
        ShapleyError: not of one axis, or outside [0, 1].
    """
    p = np.asarray(p, dtype=float)
    made = np.flatnonzero(~np.isnan(p))
    if p.ndim != 1 or not ((p[made] >= 0) & (p[made] <= 1)).all():
        raise ShapleyError("p values: expected a list of numbers from 0 to 1")
    order = made[np.argsort(p[made], kind="stable")]
    adjusted = np.full(p.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(np.arange(len(order), 0, -1) * p[order]), 1)
    return adjusted


def matrix_contrast(matrix: ArrayLike, n_permutations: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """Whether clusters hurt their own topics: the mean of a drop matrix's diagonal minus the mean of the rest, and its p.

    The null is that topics are matched to clusters at random. A permutation moves whole columns, so a topic that any
    cluster hurts, and a cluster that hurts any topic, stay as they are. All permutations are gone through if they are 10,000
    at most (7 topics); otherwise they are drawn, and the identity counted (``permutation_p``). So p is 1 / n! at least: with
    three topics nothing is below 1/6.

    Args:
        matrix: ``[topics, topics]``, the drop of the column's topic under the cluster of the row's, in the same order.
        n_permutations: drawn where there are too many.

    Returns:
        The contrast, in the unit of the drops, and its one-sided p value.

    Raises:
        ShapleyError: not finite, not square, or a single topic.
    """
    matrix = finite("matrix", matrix)
    n = len(matrix) if matrix.ndim else 0
    if matrix.shape != (n, n) or n < 2:
        raise ShapleyError(f"expected a matrix of two clusters or more and as many topics, not of shape {matrix.shape}")
    identity = np.arange(n)
    if math.factorial(n) <= _MOST_EXACT:
        orders = np.array(
            list(itertools.permutations(range(n)))[1:]
        )  # the first is the identity, which permutation_p adds
    else:
        orders = keyed_rng(seed, "columns").permuted(np.tile(identity, (n_permutations, 1)), axis=1)

    def contrast(order: np.ndarray) -> FloatArray:
        own = matrix[identity, order].sum(axis=-1)
        return np.asarray(own / n - (matrix.sum() - own) / (n * (n - 1)))

    observed = float(contrast(identity))
    return observed, permutation_p(observed, contrast(orders))


def _sample(what: str, values: ArrayLike) -> FloatArray:
    values = finite(what, values)
    if values.ndim != 1:
        raise ShapleyError(f"{what}: expected one number a prompt or dose, not {values.ndim} axes")
    return values
