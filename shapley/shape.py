"""The shape of a curve of performance under impairment: how far it falls, at which strength, and how steeply (docs/curves.md).

Performance is a value of which more is better (``Sweep.metric``, with the loss negated), averaged over noise seeds. Functions
of a curve take one mean curve; ``bootstrap`` puts an interval over prompts around whatever they make of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.integrate import trapezoid
from scipy.optimize import isotonic_regression

from shapley.errors import ShapleyError
from shapley.keyed import keyed_rng
from shapley.types import FloatArray


@dataclass(frozen=True)
class Dose:
    """A strength at which something happens; censored where it had not happened by the largest one, which is the value."""

    value: float
    censored: bool


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% interval; ``undefined`` is the share of resamples in which there was nothing to estimate."""

    estimate: float
    low: float
    high: float
    undefined: float = 0.0


def retention(values: ArrayLike, floor: ArrayLike, axis: int = 0) -> FloatArray:
    """The share of the untouched model's performance above a floor that is left: 1 untouched, 0 at the floor.

    Args:
        values: ``[..., strengths, ...]``, strengths along ``axis``, strength zero first.
        floor: what counts as nothing left (chance, or the model with every player impaired), in the unit of the values; a
            number, or an array that broadcasts against the values at one strength.

    Returns:
        In the shape of ``values``: (value - floor) / (value at strength zero - floor). Take it of a mean curve: ratios of
        single prompts have wild tails.

    Raises:
        ShapleyError: not finite, or the untouched model is at its floor or below.
    """
    values, floor = finite("values", values), finite("floor", floor)
    baseline = np.take(values, [0], axis=axis)
    if (baseline <= floor).any():
        raise ShapleyError(
            "the untouched model is not above the floor: there is no performance of which a share could be left"
        )
    return np.asarray((values - floor) / (baseline - floor))


def monotone_fit(strengths: ArrayLike, mean: ArrayLike, weights: ArrayLike | None = None) -> tuple[FloatArray, float]:
    """The decreasing curve nearest to a mean curve in least squares, and how much of the curve it explains (hypothesis A).

    Pool adjacent violators (Ayer et al. 1955), for which only the order of the strengths counts.

    Args:
        strengths: ``[strengths]``, increasing.
        mean: ``[strengths]``.
        weights: ``[strengths]``, positive, such as one over the squared standard error; equal by default.

    Returns:
        The fit, ``[strengths]``, and R^2 = 1 - SS(mean - fit) / SS(mean - its average), in [0, 1]: 1 if the curve never
        rises, 0 if it never falls; NaN if it does not vary.

    Raises:
        ShapleyError: not finite, lengths differ, strengths that do not increase, or a weight that is not positive.
    """
    _, mean = _curve(strengths, mean)
    weights = np.ones_like(mean) if weights is None else finite("weights", weights)
    if weights.shape != mean.shape or not (weights > 0).all():
        raise ShapleyError("weights: expected a positive number for every strength")
    fitted = np.asarray(isotonic_regression(mean, weights=weights, increasing=False).x)
    if np.ptp(mean) == 0:
        return fitted, float("nan")
    spread = weights @ (mean - np.average(mean, weights=weights)) ** 2
    return fitted, float(1 - weights @ (mean - fitted) ** 2 / spread)


def impairment_dose(strengths: ArrayLike, retention: ArrayLike, level: float) -> Dose:
    """The least strength at which retention is down to a level: ID50 for 0.5, ID95 for 0.05 (as the ED50 of dose-response
    curves, without their parametric form).

    Retention is made decreasing (``monotone_fit``) and is linear between strengths.

    Args:
        strengths: ``[strengths]``, increasing from 0.
        retention: ``[strengths]``, from 1.
        level: between 0 and 1.

    Returns:
        The dose, in the unit of the strengths.

    Raises:
        ShapleyError: as ``monotone_fit``, or a curve that does not start with retention 1 at strength 0, or another level.
    """
    if not 0 < level < 1:
        raise ShapleyError(f"level {level}: expected a share of performance between 0 and 1, as 0.5 for ID50")
    strengths, retention = _retention_curve(strengths, retention)
    return _crossing(strengths, monotone_fit(strengths, retention)[0], level)


def _crossing(strengths: FloatArray, fitted: FloatArray, level: float) -> Dose:
    after = int(
        np.searchsorted(-fitted, -level)
    )  # the first strength at which fitted <= level; never 0, where it is >= 1
    if after == len(fitted):
        return Dose(float(strengths[-1]), censored=True)
    way = (fitted[after - 1] - level) / (fitted[after - 1] - fitted[after])
    return Dose(float(strengths[after - 1] + way * (strengths[after] - strengths[after - 1])), censored=False)


def slope(strengths: ArrayLike, retention: ArrayLike) -> float:
    """The steepness of the fall at its middle: the retention lost over the doubling of strength that is centred on ID50.

    With f the decreasing fit, linear in log2 strength between positive strengths: f(ID50 / sqrt 2) - f(ID50 sqrt 2), in
    [0, 1] where retention is. NaN where ID50 is censored, or where that doubling leaves the positive
    strengths: the fall was not measured there.

    Args:
        strengths: ``[strengths]``, increasing from 0.
        retention: ``[strengths]``, from 1.

    Raises:
        ShapleyError: as ``impairment_dose``.
    """
    strengths, retention = _retention_curve(strengths, retention)
    fitted = monotone_fit(strengths, retention)[0]
    half = _crossing(strengths, fitted, 0.5)
    if half.censored:
        return float("nan")
    around = np.log2(half.value) + np.array([-0.5, 0.5])
    before, after = np.interp(around, np.log2(strengths[1:]), fitted[1:], left=np.nan, right=np.nan)
    return float(before - after)


def log_area(strengths: ArrayLike, retention: ArrayLike) -> float:
    """The mean of retention over log strength, from the least positive strength to the largest: 1 unharmed, 0 at the floor
    throughout. By trapezoids, of the curve as it is measured; defined also where ID50 is censored.

    Args:
        strengths: ``[strengths]``, increasing from 0.
        retention: ``[strengths]``, from 1.

    Raises:
        ShapleyError: as ``impairment_dose``, or fewer than two positive strengths.
    """
    strengths, retention = _retention_curve(strengths, retention)
    if len(strengths) < 3:
        raise ShapleyError("the area over log strength needs two positive strengths or more")
    places = np.log(strengths[1:])
    return float(trapezoid(retention[1:], places) / (places[-1] - places[0]))


def bootstrap(statistic: Callable[[FloatArray], float], values: ArrayLike, n: int = 2000, seed: int = 0) -> Interval:
    """The percentile interval of a statistic of the mean curve, over prompts (Efron and Tibshirani 1993, chapter 13).

    Whole curves of prompts are resampled, so that strengths stay paired. One seed gives the same prompts to every curve with
    as many. A resample in which the statistic is NaN or refuses is left out, and counted in ``undefined``: an interval with
    many of those is of the prompts for which there is something to estimate.

    Args:
        statistic: of a ``[strengths]`` mean curve.
        values: ``[strengths, prompts]``, averaged over noise seeds.
        n: resamples.

    Returns:
        The statistic of all prompts, and its interval: NaN with one prompt, or if undefined in every resample.

    Raises:
        ShapleyError: not finite, not of two axes, or the statistic refuses the mean of all prompts.
    """
    values = finite("values", values)
    if values.ndim != 2:
        raise ShapleyError(
            f"expected values [strengths, prompts], not {values.ndim} axes: average over noise seeds first"
        )
    estimate = float(statistic(values.mean(axis=1)))
    if values.shape[1] == 1:
        return Interval(estimate, float("nan"), float("nan"))

    def of(mean: FloatArray) -> float:
        try:
            return float(statistic(mean))
        except ShapleyError:
            return float("nan")

    return percentiles(estimate, np.array([of(mean) for mean in resampled_means(values, n, seed)]))


def resampled_means(values: FloatArray, n: int, *key: object) -> FloatArray:
    """``[n, strengths]`` means of ``[strengths, prompts]`` over prompts drawn with replacement."""
    prompts = values.shape[1]
    # How often each prompt is drawn is multinomial, and a mean depends on nothing else: one matrix product.
    counts = keyed_rng(*key, "bootstrap").multinomial(prompts, np.full(prompts, 1 / prompts), size=n)
    return np.asarray(counts @ values.T / prompts)


def percentiles(estimate: float, drawn: FloatArray) -> Interval:
    """The interval between the 2.5th and the 97.5th percentile of ``[n]`` resampled estimates; NaN are left out."""
    defined = drawn[~np.isnan(drawn)]
    low, high = np.quantile(defined, [0.025, 0.975]) if len(defined) else (np.nan, np.nan)
    return Interval(estimate, float(low), float(high), 1 - len(defined) / len(drawn))


def finite(what: str, values: ArrayLike) -> FloatArray:
    """As an array of floats.

    Raises:
        ShapleyError: empty, or something in it is not a finite number.
    """
    array = np.asarray(values, dtype=float)
    if not array.size or not np.isfinite(array).all():
        raise ShapleyError(f"{what}: expected finite numbers, at least one; leave out what was not measured")
    return array


def _curve(strengths: ArrayLike, values: ArrayLike) -> tuple[FloatArray, FloatArray]:
    strengths, values = finite("strengths", strengths), finite("curve", values)
    if strengths.ndim != 1 or strengths.shape != values.shape:
        raise ShapleyError(f"expected a value for every strength, not shapes {strengths.shape} and {values.shape}")
    if not (np.diff(strengths) > 0).all():
        raise ShapleyError("strengths must increase")
    return strengths, values


def _retention_curve(strengths: ArrayLike, retention: ArrayLike) -> tuple[FloatArray, FloatArray]:
    strengths, retention = _curve(strengths, retention)
    if strengths[0] != 0 or not np.isclose(retention[0], 1):
        raise ShapleyError(
            "expected retention 1 at strength 0, first: divide by the untouched model's, as retention() does"
        )
    return strengths, retention
