"""From a sweep to the records of the result file: each curve, point by point, and its shape."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from experiments.lab.scores import SEED
from shapley.records import METRICS, Sweep
from shapley.shape import Interval, bootstrap, impairment_dose, log_area, monotone_fit, retention, slope
from shapley.types import FloatArray, ValueName

RANDOM = "/random"  # after a cluster's name: the mean over the random clusters beside it
_HALF = 0.5
_BOOTSTRAPS = 1000
_DIGITS = 5


def records_of(sweep: Sweep, floors: dict[str, float]) -> Iterator[dict[str, Any]]:
    """For every cluster and topic a record for each strength, and one for the shape of the curve of log-probability."""
    for cluster in clusters_in(sweep):
        for topic, floor in floors.items():
            where = {"cluster": cluster, "topic": topic}
            values = {name: by_prompt(sweep, topic, cluster, name) for name in METRICS}
            for level, strength in enumerate(sweep.strengths):
                yield {
                    "record": "curve",
                    **where,
                    "strength": float(strength),
                    **{name: _number(own[level].mean()) for name, own in values.items()},
                    **{f"{name}_stderr": _number(_stderr(own[level])) for name, own in values.items()},
                }
            size = sweep.sizes[sweep.clusters.index(cluster.removesuffix(RANDOM))]
            yield {"record": "fit", **where, "columns": size, **fit(sweep.strengths, values["logprob"], floor)}


def clusters_in(sweep: Sweep) -> list[str]:
    """Each cluster, and its random ones together as one."""
    names: list[str] = []
    for name in sweep.clusters:
        if f"{RANDOM}-" not in name:
            names += [name, f"{name}{RANDOM}"] if sweep.controls(name) else [name]
    return names


def by_prompt(sweep: Sweep, topic: str, cluster: str, name: ValueName) -> FloatArray:
    """``[strength, prompt]``: the mean over seeds and, of random clusters, over them."""
    arms = sweep.controls(cluster.removesuffix(RANDOM)) if cluster.endswith(RANDOM) else [cluster]
    mean: FloatArray = np.mean([sweep.metric(topic, arm, name).mean(axis=1) for arm in arms], axis=0)
    return mean


def fit(strengths: FloatArray, logprob: FloatArray, floor: float) -> dict[str, Any]:
    """The shape of a curve (docs/curves.md), of ``[strength, prompt]`` log-probabilities. All but R^2 is ``None`` where the
    untouched model is not above the floor."""

    def smooth(mean: FloatArray) -> float:
        return monotone_fit(strengths, mean)[1]

    def half(mean: FloatArray) -> float:
        return impairment_dose(strengths, retention(mean, floor), _HALF).value

    mean = logprob.mean(axis=1)
    shape: dict[str, Any] = {
        "prompts": logprob.shape[1],
        "floor": _number(floor),
        **_interval("r2", bootstrap(smooth, logprob, _BOOTSTRAPS, SEED)),
    }
    if mean[0] <= floor:
        return shape | dict.fromkeys(("id50", "id50_low", "id50_high", "censored", "undefined", "slope", "log_area"))
    kept = retention(mean, floor)
    dose = bootstrap(half, logprob, _BOOTSTRAPS, SEED)
    return shape | {
        **_interval("id50", dose),
        "censored": impairment_dose(strengths, kept, _HALF).censored,
        "undefined": _number(dose.undefined),
        "slope": _number(slope(strengths, kept)),
        "log_area": _number(log_area(strengths, kept)),
    }


def _interval(name: str, found: Interval) -> dict[str, float | None]:
    return {
        name: _number(found.estimate),
        f"{name}_low": _number(found.low),
        f"{name}_high": _number(found.high),
    }


def _stderr(sample: FloatArray) -> float:
    return float(sample.std(ddof=1) / np.sqrt(len(sample))) if len(sample) > 1 else math.nan


def _number(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return None if math.isnan(value) else round(float(value), _DIGITS)
