"""From the stored records to what is claimed (``experiments.lab.effects``); from a stored file only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import t as student

from experiments.bases.run import BASES, CLUSTER, CONCENTRATION, IDENTITY, SIMPLE, STANDARD
from experiments.lab.effects import Effect, below_smallest, drawn_interval, effect, matched, resampled, totals
from experiments.lab.results import Stored
from shapley.shape import Interval, percentiles
from shapley.types import FloatArray


@dataclass(frozen=True)
class Concentrated:
    """How a basis concentrates scores: means over topics and seeds, with t intervals over topics; seeds are held as they are,
    and the coalitions, which topics share. NaN where fewer than two topics have a value.

    Attributes:
        half: the least number of players that hold half of the peak, geometric mean.
        share: the same, of all players.
        fewer: by how many times fewer than in the standard basis of the site, topic by topic.
        gini, gain: of absolute scores; what is above the standard basis's, topic by topic.
        total: what all scores sum to, nats.
        agreement: correlation of the two estimates, and the least over topics.
        topics: that have a value.
    """

    half: Interval
    share: float
    fewer: Interval
    gini: Interval
    gain: Interval
    total: float
    agreement: tuple[float, float]
    topics: int


@dataclass(frozen=True)
class Specific:
    """What clusters of a basis do; ``gain``: of selectivity, above the standard basis's of the site, on the same resampled
    prompts; ``seeds``: the selectivity of each seed of the basis."""

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
    the same resampled prompts. NaN where the damage is not reached; ``below`` what the smallest clusters cost, ``gain_below``
    where those of the basis or the neurons' do."""

    target: Interval
    others: Interval
    selectivity: Interval
    gain: Interval
    below: bool
    gain_below: bool


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
        half, standard_half = (np.log(self._by_topic(own, "half")) for own in (basis, STANDARD[basis]))
        gini, standard_gini = (self._by_topic(own, "gini") for own in (basis, STANDARD[basis]))
        agreement = self._by_topic(basis, "agreement")
        found = _exp(_over_topics(half))
        return Concentrated(
            found,
            found.estimate / self.n_players(basis),
            _exp(_over_topics(standard_half - half)),
            _over_topics(gini),
            _over_topics(gini - standard_gini),
            float(self._by_topic(basis, "total").mean()),
            (float(agreement.mean()), float(agreement.min())),
            int(np.isfinite(half).sum()),
        )

    def n_players(self, basis: str) -> int:
        """Of all layers."""
        players: int = self._found(basis, CONCENTRATION)[0]["n_players"]
        return players

    @property
    def refined(self) -> int:
        """Players that got exact differences, in all estimates together."""
        return sum(sum(record["refined"]) for record in self.records if record["what"] == CONCENTRATION)

    def curve(self, basis: str) -> tuple[FloatArray, FloatArray]:
        """Shares of all players, best first, and the share of the peak that so many hold: the mean over topics and seeds, where
        the two estimates agree."""
        found = [record for record in self._found(basis, CONCENTRATION) if record["half"] is not None]
        players = np.array(self._found(basis, CONCENTRATION)[0]["players"])
        shares = [record["share"] for record in found] or [np.full(len(players), np.nan)]
        return players / self.n_players(basis), np.mean(shares, axis=0)

    def specific(self, basis: str, fraction: float) -> Specific:
        """What a basis's clusters of a size do."""
        by_seed, standard = self._drops(basis, fraction), self._drops(STANDARD[basis], fraction)[0]
        drops = by_seed.mean(axis=0)
        own, seeds = self._effect(drops), [self._effect(one).selectivity.estimate for one in by_seed]
        above = own.selectivity.estimate - self._effect(standard).selectivity.estimate
        drawn = self._selectivities(drops) - self._selectivities(standard)
        return Specific(own, percentiles(above, drawn), tuple(seeds))

    def matched(self, basis: str, level: float) -> Matched:
        """What a basis's clusters do at a rise of plain text's perplexity."""
        own, neurons = self._by_size(basis), self._by_size(IDENTITY)
        target, others, selectivity = np.mean([self._matched(drops, level) for drops in zip(*own, strict=True)], axis=0)
        gain = selectivity - self._matched([drops[0] for drops in neurons], level)[2]
        below, neurons_below = (
            below_smallest(drops[0].mean(axis=0), self.head["watched"], self.topics, level) for drops in (own, neurons)
        )
        return Matched(*map(drawn_interval, (target, others, selectivity, gain)), below, below or neurons_below)

    def _by_size(self, basis: str) -> list[FloatArray]:
        """Smallest first, each ``[seeds, topics, prompts]``."""
        return [self._drops(basis, fraction) for fraction in self.fractions]

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
        """``[topics]``, means over seeds; NaN where the two estimates told nothing."""
        found = self._found(basis, CONCENTRATION)
        values = [[r[key] for r in found if r["topic"] == topic] for topic in self.topics]
        return np.asarray(np.array(values, dtype=np.float64).mean(axis=1))

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
    """Their mean, with Student's interval over topics (a bootstrap of so few is too narrow)."""
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return Interval(np.nan, np.nan, np.nan)
    mean = float(values.mean())
    margin = float(student.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return Interval(mean, mean - margin, mean + margin)


def _exp(found: Interval) -> Interval:
    return Interval(*(float(np.exp(x)) for x in (found.estimate, found.low, found.high)))
