"""Selectors that rank by Shapley scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shapley.clusters import DEFAULT_GUARD, Ranking, rank
from shapley.selectors.base import Evidence, needed


@dataclass(frozen=True)
class Shapley:
    """The topic's score."""

    name: ClassVar[str] = "shapley"
    source: ClassVar[str] = "Ghorbani and Zou 2020"
    reads: ClassVar[str] = "scores"
    compares: ClassVar[bool] = False

    def rank(self, evidence: Evidence, topic: str, others: Sequence[str]) -> Ranking:
        return rank(evidence.score_file(self.name), topic)


@dataclass(frozen=True)
class Contrast:
    """The topic's score minus the mean of the others'."""

    name: ClassVar[str] = "contrast"
    source: ClassVar[str] = (
        "Ghorbani and Zou 2020; Shapley values are linear in the game, so this is the value of a difference"
    )
    reads: ClassVar[str] = "scores"
    compares: ClassVar[bool] = True

    def rank(self, evidence: Evidence, topic: str, others: Sequence[str]) -> Ranking:
        return rank(evidence.score_file(self.name), topic, needed(self.name, others), guard=0)


@dataclass(frozen=True)
class Guarded:
    """The topic's score minus ``guard`` times the largest absolute score elsewhere (``shapley.clusters.rank``)."""

    guard: float = DEFAULT_GUARD
    name: ClassVar[str] = "guarded"
    source: ClassVar[str] = "ours, after Ghorbani and Zou 2020"
    reads: ClassVar[str] = "scores"
    compares: ClassVar[bool] = True

    def rank(self, evidence: Evidence, topic: str, others: Sequence[str]) -> Ranking:
        return rank(evidence.score_file(self.name), topic, needed(self.name, others), self.guard)


@dataclass(frozen=True)
class Interval:
    """The lower end of the topic's interval minus ``guard`` times the largest upper end of an absolute score elsewhere: a
    neuron must be known to matter here, and known not to matter there. Ends lie ``z`` standard errors out."""

    guard: float = DEFAULT_GUARD
    z: float = 1.0
    name: ClassVar[str] = "interval"
    source: ClassVar[str] = "ours, after Ghorbani and Zou 2020"
    reads: ClassVar[str] = "scores"
    compares: ClassVar[bool] = True

    def rank(self, evidence: Evidence, topic: str, others: Sequence[str]) -> Ranking:
        scores, others = evidence.score_file(self.name), needed(self.name, others)
        rank(scores, topic, others, self.guard)  # refuses what is no contrast: other players, itself, a guard < 0
        own, elsewhere = rank(scores, topic), [rank(scores, other) for other in others]
        upper = [np.abs(other.score) + self.z * np.nan_to_num(other.stderr) for other in elsewhere]
        lower = own.score - self.z * np.nan_to_num(own.stderr)
        return Ranking(lower - self.guard * np.max(upper, axis=0), own.stderr, own.group, own.names)
