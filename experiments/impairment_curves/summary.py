"""From the stored records to what is claimed: curves with bands, and how smooth they are; from a stored file only.

Loss is by token, minus the log-probability of the answer: so plain text and keywords have one scale. *General* loss is that of
plain text with everything impaired. A curve counts as smooth (hypothesis A) if a monotone fit explains 95% of how it varies
over strengths (docs/curves.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.impairment_curves.originals import ORIGINALS
from experiments.impairment_curves.shapes import RANDOM
from experiments.lab.results import Stored
from experiments.lab.texts import PLAIN
from shapley.curves import Z95, Curve
from shapley.records import EVERYTHING
from shapley.shape import Dose, Interval, impairment_dose, monotone_fit, retention
from shapley.types import FloatArray, ValueName

SMOOTH = 0.95
_LOST = 0.95  # of what is above the floor, at ID95


@dataclass(frozen=True)
class Place:
    """Where a curve was measured: which test, and how and where it impairs."""

    test: int
    kind: str
    site: str


@dataclass(frozen=True)
class Smoothness:
    """Of one kind at one site, how well monotone fits explain the curves.

    Attributes:
        general: R^2 of the general loss.
        rise: of the general loss at the largest strength, nats a token.
        clusters: R^2 of every topic under every cluster; without random clusters, whose curves may be flat.
    """

    kind: str
    site: str
    general: Interval
    rise: float
    clusters: tuple[float, ...]

    @property
    def holds(self) -> bool:
        return self.general.estimate >= SMOOTH


@dataclass(frozen=True)
class Results(Stored):
    """A stored file of the experiment: its head, and records of curves and their fits."""

    @property
    def places(self) -> list[Place]:
        """In the order that they were measured in."""
        return list(dict.fromkeys(_place(record) for record in self.records))

    @property
    def tests(self) -> list[int]:
        return list(dict.fromkeys(place.test for place in self.places))

    @property
    def clusters(self) -> list[str]:
        names: list[str] = self.head["config"]["clusters"]
        return names

    def topics(self, test: int) -> list[str]:
        """That are watched."""
        return [*ORIGINALS[test].topics, PLAIN]

    def kinds(self, test: int) -> list[str]:
        return list(dict.fromkeys(place.kind for place in self.places if place.test == test))

    def sites(self, test: int) -> list[str]:
        """The test's own first."""
        return list(dict.fromkeys(place.site for place in self.places if place.test == test))

    def arms(self) -> Iterator[str]:
        """Each cluster and its random ones; and everything."""
        for name in self.clusters:
            yield name
            if self.head["config"]["random"]:
                yield name + RANDOM
        yield EVERYTHING

    def loss(self, place: Place, cluster: str, topic: str) -> Curve:
        """By strength, with a 95% band over prompts; nats a token."""
        strengths, mean, half = self._means("logprob", place, cluster, topic)
        return Curve(strengths, -mean, -mean - half, -mean + half)

    def accuracy(self, place: Place, cluster: str, topic: str) -> Curve:
        """By strength, with a 95% band over prompts: the share of prompts whose answer is what the model expects most."""
        strengths, mean, half = self._means("accuracy", place, cluster, topic)
        return Curve(strengths, mean, np.clip(mean - half, 0, 1), np.clip(mean + half, 0, 1))

    def fit(self, place: Place, cluster: str, topic: str) -> dict[str, Any]:
        """The shape of the curve of log-probability."""
        return self._find("fit", place, cluster, topic)[0]

    def id95(self, place: Place, cluster: str, topic: str) -> Dose | None:
        """The strength at which 95% of the log-probability above the floor is lost; none where the untouched model is at it."""
        loss, floor = self.loss(place, cluster, topic), self.fit(place, cluster, topic)["floor"]
        if -loss.mean[0] <= floor:
            return None
        return impairment_dose(loss.strengths, retention(-loss.mean, floor), 1 - _LOST)

    def general(self) -> list[Place]:
        """One place for each kind and site: tests share the general loss."""
        return list({(place.kind, place.site): place for place in reversed(self.places)}.values())[::-1]

    def smoothness(self) -> list[Smoothness]:
        """For every kind and site."""
        found = []
        for one in self.general():
            loss, shape = self.loss(one, EVERYTHING, PLAIN), self.fit(one, EVERYTHING, PLAIN)
            general = Interval(*(_known(shape[name]) for name in ("r2", "r2_low", "r2_high")))
            clusters = tuple(
                _known(self.fit(place, cluster, topic)["r2"])
                for place in self.places
                if (place.kind, place.site) == (one.kind, one.site)
                for cluster in self.clusters
                for topic in self.topics(place.test)
            )
            found.append(Smoothness(one.kind, one.site, general, float(loss.mean[-1] - loss.mean[0]), clusters))
        return found

    def _means(
        self, name: ValueName, place: Place, cluster: str, topic: str
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        """``[strengths]``: strengths, means over prompts, half the widths of their 95% bands."""
        points = self._find("curve", place, cluster, topic)
        mean, stderr = (np.array([_known(point[what]) for point in points]) for what in (name, f"{name}_stderr"))
        return np.array([point["strength"] for point in points]), mean, Z95 * stderr

    def _find(self, what: str, place: Place, cluster: str, topic: str) -> list[dict[str, Any]]:
        return [
            record
            for record in self.records
            if (record["record"], record["cluster"], record["topic"]) == (what, cluster, topic)
            and _place(record) == place
        ]


def fitted(loss: Curve) -> FloatArray:
    """The rising curve nearest to a loss."""
    return -monotone_fit(loss.strengths, -loss.mean)[0]


def _place(record: dict[str, Any]) -> Place:
    return Place(record["test"], record["kind"], record["site"])


def _known(value: float | None) -> float:
    return float("nan") if value is None else value
