"""From the stored records to what is claimed (``experiments.lab.effects``); from a stored file only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.bases.run import BASES, CLUSTER, CONCENTRATION, IDENTITY, SIMPLE
from experiments.lab.effects import Effect, below_smallest, drawn_interval, effect, matched, resampled, totals
from experiments.lab.results import Stored
from shapley.keyed import keyed_rng
from shapley.shape import Interval, percentiles
from shapley.types import FloatArray

_BOOTSTRAPS = 2000


@dataclass(frozen=True)
class Concentrated:
    """How a basis concentrates scores: means over topics and seeds, with intervals over topics.

    Attributes:
        half: the least number of players that hold half of the peak, geometric mean.
        fewer: by how many times fewer than neurons', topic by topic.
        gini, gain: of absolute scores; what is above neurons', topic by topic.
        total: what all scores sum to, nats.
        agreement: correlation of the two estimates, and the least over topics.
    """

    half: Interval
    fewer: Interval
    gini: Interval
    gain: Interval
    total: float
    agreement: tuple[float, float]


@dataclass(frozen=True)
class Specific:
    """What clusters of a basis do; ``gain``: of selectivity, above neurons', on the same resampled prompts; ``seeds``: the
    selectivity of each seed of the basis."""

    effect: Effect
    gain: Interval
    seeds: tuple[float, ...]

    @property
    def share(self) -> float:
        """What the others lose, of what the topic loses."""
        return self.effect.others.estimate / self.effect.target.estimate


@dataclass(frozen=True)
class Matched:
    """What clusters do at matched general damage, means over seeds of the basis; ``gain``: of selectivity, above neurons', on
    the same resampled prompts. NaN where the damage is not reached; ``below`` what the smallest clusters cost."""

    target: Interval
    others: Interval
    selectivity: Interval
    gain: Interval
    below: bool


@dataclass(frozen=True)
class Results(Stored):
    """A stored file of the experiment: its head, and records of concentration and of clusters."""

    @property
    def topics(self) -> list[str]:
        topics: list[str] = self.head["config"]["topics"]
        return topics

    @property
    def fractions(self) -> list[float]:
        fractions: list[float] = self.head["config"]["fractions"]
        return fractions

    def concentrated(self, basis: str) -> Concentrated:
        """How a basis concentrates scores."""
        half, neurons_half = (np.log(self._by_topic(own, "half")) for own in (basis, IDENTITY))
        gini, neurons_gini = (self._by_topic(own, "gini") for own in (basis, IDENTITY))
        agreement = self._by_topic(basis, "agreement")
        return Concentrated(
            _exp(_over_topics(half)),
            _exp(_over_topics(neurons_half - half)),
            _over_topics(gini),
            _over_topics(gini - neurons_gini),
            float(self._by_topic(basis, "total").mean()),
            (float(agreement.mean()), float(agreement.min())),
        )

    def curve(self, basis: str) -> tuple[FloatArray, FloatArray]:
        """Numbers of players, and the share of the peak that so many hold: the mean over topics and seeds."""
        found = self._found(basis, CONCENTRATION)
        return np.array(found[0]["players"]), np.mean([record["share"] for record in found], axis=0)

    def specific(self, basis: str, fraction: float) -> Specific:
        """What a basis's clusters of a size do."""
        by_seed, neurons = self._drops(basis, fraction), self._drops(IDENTITY, fraction)[0]
        drops = by_seed.mean(axis=0)
        own, seeds = self._effect(drops), [self._effect(one).selectivity.estimate for one in by_seed]
        above = own.selectivity.estimate - self._effect(neurons).selectivity.estimate
        drawn = self._selectivities(drops) - self._selectivities(neurons)
        return Specific(own, percentiles(above, drawn), tuple(seeds))

    def matched(self, basis: str, level: float) -> Matched:
        """What a basis's clusters do at a rise of plain text's perplexity."""
        by_size = [self._drops(basis, fraction) for fraction in self.fractions]  # each [seeds, topics, prompts]
        own = np.mean([self._matched(drops, level) for drops in zip(*by_size, strict=True)], axis=0)
        neurons = self._matched([self._drops(IDENTITY, fraction)[0] for fraction in self.fractions], level)
        target, others, selectivity = own
        below = below_smallest(by_size[0].mean(axis=0), self.head["watched"], self.topics, level)
        return Matched(*map(drawn_interval, (target, others, selectivity, selectivity - neurons[2])), below)

    def _matched(self, drops: Sequence[FloatArray], level: float) -> FloatArray:
        return matched(drops, self.head["watched"], self.topics, level, self.head["seed"])

    def players(self, basis: str, fraction: float) -> int:
        """In a cluster."""
        found = self._found(basis, CLUSTER)
        players: int = next(record["players"] for record in found if record["fraction"] == fraction)
        return players

    def simple(self, basis: str) -> FloatArray:
        """Of players of all seeds, the shares of their variance that simple rules predict."""
        return np.concatenate([record["explained"] for record in self._found(basis, SIMPLE)])

    def _found(self, basis: str, what: str) -> list[dict[str, Any]]:
        return [record for record in self.records if record["basis"] == basis and record["what"] == what]

    def _by_topic(self, basis: str, key: str) -> FloatArray:
        """``[topics]``, means over seeds."""
        found = self._found(basis, CONCENTRATION)
        return np.array([np.mean([r[key] for r in found if r["topic"] == topic]) for topic in self.topics])

    def _drops(self, basis: str, fraction: float) -> FloatArray:
        """``[seeds, topics, prompts]``."""
        found = [record for record in self._found(basis, CLUSTER) if record["fraction"] == fraction]
        drops = {(record["seed"], record["topic"]): record["drop"] for record in found}
        return np.array([[drops[seed, topic] for topic in self.topics] for seed in sorted({r["seed"] for r in found})])

    def _effect(self, drops: FloatArray) -> Effect:
        return effect(drops, self.head["watched"], self.topics, self.head["seed"])

    def _selectivities(self, drops: FloatArray) -> FloatArray:
        """``[resamples]``; of the same prompts for all bases."""
        selectivities: FloatArray = totals(resampled(drops, self.head["watched"], self.topics, self.head["seed"]))[2]
        return selectivities

    @property
    def bases(self) -> Sequence[str]:
        """In order."""
        measured = {record["basis"] for record in self.records}
        return [basis for basis in BASES if basis in measured]


def _over_topics(values: FloatArray) -> Interval:
    """Their mean, with an interval over topics drawn anew."""
    chosen = keyed_rng(0, "bases", "topics").integers(len(values), size=(_BOOTSTRAPS, len(values)))
    return percentiles(float(values.mean()), values[chosen].mean(axis=1))


def _exp(found: Interval) -> Interval:
    return Interval(*(float(np.exp(x)) for x in (found.estimate, found.low, found.high)))
