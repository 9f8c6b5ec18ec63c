"""From the measured drops to what is claimed: effects, intervals, p values; from a stored file only.

A drop is by how much a prompt's answer loses log-probability, in nats; of plain text, by token. *Target* is the mean over the
cluster's own topic, *others* the mean over the other topics of their means, *selectivity* the difference. All three are means
over topics here. Intervals are of a bootstrap over prompts, within topics; topics and clusters are held as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.lab.results import Stored
from shapley.inference import holm, matrix_contrast, permutation_p
from shapley.shape import Interval, resampled_means
from shapley.types import FloatArray

SETTINGS = {"other_keywords": "other keywords", "same_keywords": "same keywords"}
PLAIN = "plain"
TARGET, SHARE, PERPLEXITY = 1.5, 1 / 8, 0.02  # the aim: nats, off-topic over target, rise of plain text's perplexity
_BOOTSTRAPS = 2000


@dataclass(frozen=True)
class Effect:
    """What a selector's clusters do, over all topics.

    Attributes:
        matrix: ``[topics, topics]``, mean drop of the second topic's prompts under the first one's cluster.
        plain: ``[topics]``, drop of plain text under each topic's cluster, nats a token.
        met: topics for which the aim is met.
        p: that the diagonal of ``matrix`` stands out by chance, by permutation of its columns; ``adjusted``, by Holm over the
            selectors of the setting.
    """

    selector: str
    setting: str
    fraction: float
    neurons: int
    target: Interval
    others: Interval
    selectivity: Interval
    perplexity: Interval
    matrix: FloatArray
    plain: FloatArray
    met: tuple[str, ...]
    p: float
    adjusted: float


@dataclass(frozen=True)
class Results(Stored):
    """A stored file of the experiment: its head and a record for every cluster."""

    @property
    def topics(self) -> list[str]:
        topics: list[str] = self.head["config"]["topics"]
        return topics

    def own(self, setting: str, selector: str, fraction: float) -> list[dict[str, Any]]:
        """The records of a selector's own clusters, in the order of the topics."""
        by_topic = {
            record["topic"]: record
            for record in self.records
            if (record["setting"], record["selector"], record["fraction"], record["draw"])
            == (setting, selector, fraction, 0)
        }
        return [by_topic[topic] for topic in self.topics] if by_topic else []

    def effects(self, setting: str, fraction: float | None = None) -> list[Effect]:
        """Of all selectors that were measured so, in the order of the configuration; by default at the primary size."""
        fraction = fraction or self.head["config"]["primary"]
        found = [name for name in self.head["config"]["selectors"] if self.own(setting, name, fraction)]
        matrices = [self.matrix(setting, name, fraction) for name in found]
        p = np.array([matrix_contrast(matrix[:, :-1], seed=self.head["seed"])[1] for matrix in matrices])
        return [
            self._effect(setting, name, fraction, matrix, float(own_p), float(adjusted))
            for name, matrix, own_p, adjusted in zip(found, matrices, p, holm(p), strict=True)
        ]

    def matrix(self, setting: str, selector: str, fraction: float) -> FloatArray:
        """``[topics, topics + 1]``, mean drops; the last column is plain text."""
        drops = np.array([record["drop"] for record in self.own(setting, selector, fraction)])
        return self._means(drops, self._places(setting))

    def _places(self, setting: str) -> list[np.ndarray]:
        watched = np.array(self.head["watched"][setting])
        return [np.flatnonzero(watched == topic) for topic in (*self.topics, PLAIN)]

    @staticmethod
    def _means(drops: FloatArray, places: Sequence[np.ndarray]) -> FloatArray:
        return np.stack([drops[:, place].mean(axis=1) for place in places], axis=1)

    def _effect(
        self, setting: str, selector: str, fraction: float, matrix: FloatArray, p: float, adjusted: float
    ) -> Effect:
        own = self.own(setting, selector, fraction)
        drops = np.array([record["drop"] for record in own])
        places = self._places(setting)
        key = (self.head["seed"], setting, selector, fraction)
        resampled = [resampled_means(drops[:, place], _BOOTSTRAPS, *key, i) for i, place in enumerate(places)]
        drawn = _totals(np.stack(resampled, axis=2))
        intervals = [
            Interval(float(value), *map(float, np.quantile(column, [0.025, 0.975])))
            for value, column in zip(_totals(matrix), drawn, strict=True)
        ]
        met = tuple(
            topic
            for i, topic in enumerate(self.topics)
            if matrix[i, i] >= TARGET
            and _others(matrix)[i] <= SHARE * matrix[i, i]
            and np.expm1(matrix[i, -1]) < PERPLEXITY
        )
        neurons = round(float(np.mean([record["neurons"] for record in own])))
        return Effect(
            selector, setting, fraction, neurons, *intervals, matrix[:, :-1], matrix[:, -1], met, p, adjusted
        )  # fmt: skip

    def null(self, selector: str) -> dict[str, tuple[float, FloatArray, float]]:
        """By topic: the selectivity of a selector's cluster on the few prompts that its random clusters are measured on,
        ``[draws]`` theirs, and its p value, by Holm over topics."""
        found: dict[str, list[tuple[int, float]]] = {topic: [] for topic in self.topics}
        for record in self.records:
            if record["setting"] == "null" and record["selector"] == selector:
                own = np.array(self.head["null_watched"][record["topic"]]) == record["topic"]
                drop = np.array(record["drop"])
                found[record["topic"]].append((record["draw"], float(drop[own].mean() - drop[~own].mean())))
        values = {topic: np.array([value for _, value in sorted(pairs)]) for topic, pairs in found.items() if pairs}
        p = holm(np.array([permutation_p(own[0], own[1:]) for own in values.values()]))
        return {
            topic: (float(own[0]), own[1:], float(value)) for (topic, own), value in zip(values.items(), p, strict=True)
        }


def _totals(matrix: FloatArray) -> FloatArray:
    """Target, others, selectivity, rise of perplexity, each over topics, of ``[..., topics, topics + 1]`` matrices whose last
    column is plain text: ``[4, ...]``."""
    target, others = _own(matrix).mean(axis=-1), _others(matrix).mean(axis=-1)
    return np.stack([target, others, target - others, np.expm1(matrix[..., -1].mean(axis=-1))])


def _own(matrix: FloatArray) -> FloatArray:
    """``[..., topics]``: each cluster's own topic."""
    return matrix[..., :-1].diagonal(axis1=-2, axis2=-1)


def _others(matrix: FloatArray) -> FloatArray:
    """``[..., topics]``: under each cluster, the mean over the other topics."""
    topics = matrix[..., :-1]
    return np.asarray((topics.sum(axis=-1) - _own(matrix)) / (topics.shape[-1] - 1))
