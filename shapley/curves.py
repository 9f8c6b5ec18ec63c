"""Curves of performance under impairment, with intervals over prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shapley.records import Sweep
from shapley.types import FloatArray, ValueName

Z95 = 1.96


@dataclass(frozen=True)
class Curve:
    """A mean with a 95% interval at every strength.

    The prompts are the sample: a prompt's values are averaged over noise seeds first, and the interval is the normal one of
    their mean over prompts.
    """

    strengths: FloatArray
    mean: FloatArray
    low: FloatArray
    high: FloatArray


def curve(sweep: Sweep, topic: str, cluster: str, name: ValueName = "logprob", *, change: bool = False) -> Curve:
    """One topic under one cluster's impairment; with ``change``, prompt by prompt against strength zero."""
    values = sweep.metric(topic, cluster, name).mean(axis=1)  # [strength, prompt]
    if change:
        values = values - values[:1]
    mean = values.mean(axis=1)
    n = values.shape[1]
    half = Z95 * values.std(axis=1, ddof=1) / np.sqrt(n) if n > 1 else np.full(len(mean), np.nan)
    return Curve(sweep.strengths, mean, mean - half, mean + half)


def mean_of_curves(curves: Sequence[Curve]) -> Curve:
    """The mean of several curves, with the range that their means span."""
    means = np.stack([line.mean for line in curves])
    return Curve(curves[0].strengths, means.mean(axis=0), means.min(axis=0), means.max(axis=0))


@dataclass(frozen=True)
class Contrast:
    """At one strength: the topic's drop, the other topics' mean drop, and the topic's drop under random clusters, each with
    its standard error over prompts (for the last over random clusters, NaN with one; NaN all through where there is nothing
    to measure)."""

    strength: float
    target: float
    target_stderr: float
    others: float
    others_stderr: float
    control: float
    control_stderr: float

    @property
    def specific(self) -> bool:
        """Whether the topic falls by more than the others and by more than under random clusters, by two standard errors
        of the difference."""
        against = [(self.others, self.others_stderr), (self.control, self.control_stderr)]
        against = [(other, np.nan_to_num(error)) for other, error in against if np.isfinite(other)]
        return bool(against) and all(
            self.target - other > 2 * np.hypot(self.target_stderr, error) for other, error in against
        )


def contrast(sweep: Sweep, topic: str, cluster: str, level: int = -1, name: ValueName = "logprob") -> Contrast:
    """The drops at one strength (the last by default)."""

    def drops(which: str, where: str) -> FloatArray:
        values = sweep.metric(which, where, name).mean(axis=1)
        sign = -1 if name == "loss" else 1
        return sign * (values[0] - values[level])

    def stderr(sample: FloatArray) -> float:
        return float(sample.std(ddof=1) / np.sqrt(len(sample))) if len(sample) > 1 else float("nan")

    target = drops(topic, cluster)
    others = [drops(other, cluster) for other in sweep.records if other != topic]
    controls = np.array([drops(topic, other).mean() for other in sweep.controls(cluster)])
    return Contrast(
        float(sweep.strengths[level]),
        float(target.mean()),
        stderr(target),
        float(np.mean([sample.mean() for sample in others])) if others else float("nan"),
        float(np.sqrt(sum(stderr(sample) ** 2 for sample in others)) / len(others)) if others else float("nan"),
        float(controls.mean()) if len(controls) else float("nan"),
        stderr(controls),
    )
