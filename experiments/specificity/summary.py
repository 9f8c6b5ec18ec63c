"""From the measured drops to what is claimed (``experiments.lab.effects``): p values too; from a stored file only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.lab.effects import Effect, effect, matrix_of
from experiments.lab.results import Stored
from shapley.inference import holm, matrix_contrast, permutation_p
from shapley.types import FloatArray

SETTINGS = {"other_keywords": "other keywords", "same_keywords": "same keywords"}


@dataclass(frozen=True)
class Tested(Effect):
    """What a selector's clusters do.

    Attributes:
        neurons: in a cluster.
        p: that the diagonal of ``matrix`` stands out by chance, by permutation of its columns; ``adjusted``, by Holm over the
            selectors of the setting.
    """

    selector: str
    neurons: int
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

    def effects(self, setting: str, fraction: float | None = None) -> list[Tested]:
        """Of all selectors that were measured so, in the order of the configuration; by default at the primary size."""
        fraction = fraction or self.head["config"]["primary"]
        found = [name for name in self.head["config"]["selectors"] if self.own(setting, name, fraction)]
        effects = [
            effect(
                self._drops(setting, name, fraction),
                self.head["watched"][setting],
                self.topics,
                *(self.head["seed"], setting, name, fraction),
            )
            for name in found
        ]
        p = np.array([matrix_contrast(own.matrix, seed=self.head["seed"])[1] for own in effects])
        return [
            Tested(**vars(own), selector=name, neurons=self._size(setting, name, fraction),
                p=float(chance), adjusted=float(adjusted))
            for name, own, chance, adjusted in zip(found, effects, p, holm(p), strict=True)
        ]  # fmt: skip

    def matrix(self, setting: str, selector: str, fraction: float) -> FloatArray:
        """``[topics, topics + 1]``, mean drops; the last column is plain text."""
        return matrix_of(self._drops(setting, selector, fraction), self.head["watched"][setting], self.topics)

    def _drops(self, setting: str, selector: str, fraction: float) -> FloatArray:
        return np.array([record["drop"] for record in self.own(setting, selector, fraction)])

    def _size(self, setting: str, selector: str, fraction: float) -> int:
        return round(float(np.mean([record["neurons"] for record in self.own(setting, selector, fraction)])))

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
