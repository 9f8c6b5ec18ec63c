"""From the measured drops to what is claimed (``experiments.lab.effects``): p values too; from a stored file only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.lab.effects import Effect, below_smallest, drawn_interval, effect, matched, matrix_of
from experiments.lab.results import Stored
from shapley.inference import holm, matrix_contrast, stratified_permutation_p
from shapley.keyed import keyed_rng
from shapley.shape import Interval, percentiles
from shapley.types import FloatArray

SETTINGS = {"other_keywords": "other keywords", "same_keywords": "same keywords"}
OURS = "guarded"  # which others are held against
_MEANS = 2000  # drawn, of random clusters


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
class AtDamage:
    """What a selector's clusters do where plain text's perplexity is up by some level; NaN where it is not reached.

    Attributes:
        above: by how much it is more selective than ours, on the same resampled prompts.
        below: whether the level is below what its smallest clusters cost (``experiments.lab.effects.below_smallest``).
    """

    selector: str
    target: Interval
    others: Interval
    selectivity: Interval
    above: Interval
    below: bool


@dataclass(frozen=True)
class AgainstRandom:
    """A selector's clusters beside random ones that are matched to them.

    Attributes:
        own: by topic, the selectivity of its cluster; nats.
        null: by topic, ``[draws]``, those of the random clusters.
        mean: of ``own``.
        random: the mean of ``null``, and between which values 95% of means over topics lie, of one random
            cluster each.
        p: that random clusters are as selective, over all topics at once (stratified permutation); ``adjusted``, by Holm over
            the selectors.
    """

    selector: str
    own: dict[str, float]
    null: dict[str, FloatArray]
    mean: float
    random: Interval
    p: float
    adjusted: float

    @property
    def single(self) -> dict[str, float]:
        """By topic, the p value of its cluster by itself: the share of random ones that are as selective, it among them."""
        return {
            topic: float((1 + (self.null[topic] >= own).sum()) / (1 + len(self.null[topic])))
            for topic, own in self.own.items()
        }

    @property
    def above(self) -> list[str]:
        """Topics whose cluster is more selective than every random one."""
        return [topic for topic, own in self.own.items() if own > self.null[topic].max()]


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

    def sizes(self, selector: str) -> list[float]:
        """Fractions of all neurons in a selector's clusters that were measured, smallest first."""
        config = self.head["config"]
        return sorted({config["primary"], *config["sizes"].get(selector, ())})

    def at_damage(self, level: float) -> list[AtDamage]:
        """Of all selectors, in the order of the configuration, other keywords."""
        names, watched = self.head["config"]["selectors"], self.head["watched"]["other_keywords"]
        drops = {
            name: [self._drops("other_keywords", name, fraction) for fraction in self.sizes(name)] for name in names
        }
        found = {name: matched(own, watched, self.topics, level, self.head["seed"]) for name, own in drops.items()}
        return [
            AtDamage(
                name, *map(drawn_interval, found[name]), drawn_interval(found[name][2] - found[OURS][2]),
                below_smallest(drops[name][0], watched, self.topics, level),
            )
            for name in names
        ]  # fmt: skip

    def against_random(self) -> list[AgainstRandom]:
        """Of every selector with matched random clusters, in the order of the configuration."""
        names = [name for name in self.head["config"]["selectors"] if name in self.head["config"]["null_draws"]]
        selectivities = {name: self._null_selectivities(name) for name in names}
        p = [
            stratified_permutation_p([own[0] for own in by_topic.values()], [own[1:] for own in by_topic.values()])
            for by_topic in selectivities.values()
        ]
        return [
            _against_random(name, by_topic, chance, float(adjusted))
            for (name, by_topic), chance, adjusted in zip(selectivities.items(), p, holm(p), strict=True)
        ]

    def _null_selectivities(self, selector: str) -> dict[str, FloatArray]:
        """By topic ``[1 + draws]``: the selectivity of a selector's cluster on the prompts that random clusters are measured
        on, then theirs."""
        found: dict[str, list[tuple[int, float]]] = {topic: [] for topic in self.topics}
        for record in self.records:
            if record["setting"] == "null" and record["selector"] == selector:
                own = np.array(self.head["null_watched"][record["topic"]]) == record["topic"]
                drop = np.array(record["drop"])
                found[record["topic"]].append((record["draw"], float(drop[own].mean() - drop[~own].mean())))
        return {topic: np.array([value for _, value in sorted(pairs)]) for topic, pairs in found.items()}


def _against_random(selector: str, by_topic: dict[str, FloatArray], p: float, adjusted: float) -> AgainstRandom:
    own = {topic: float(values[0]) for topic, values in by_topic.items()}
    null = {topic: values[1:] for topic, values in by_topic.items()}
    rng = keyed_rng(0, "random means", selector)
    means = np.mean([draws[rng.integers(len(draws), size=_MEANS)] for draws in null.values()], axis=0)
    center = float(np.mean([draws.mean() for draws in null.values()]))
    return AgainstRandom(
        selector, own, null, float(np.mean(list(own.values()))), percentiles(center, means), p, adjusted
    )
