"""From the measured drops to what is claimed (``experiments.lab.effects``); from a stored file only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.lab.effects import Effect, below_smallest, drawn_interval, effect, matched
from experiments.lab.results import Stored
from experiments.variations.arms import arms_of
from experiments.variations.run import FIRST, SECOND, WHOLE
from shapley.inference import holm, matrix_contrast
from shapley.shape import Interval, monotone_fit
from shapley.types import FloatArray


@dataclass(frozen=True)
class Matched:
    """What an arm takes where it costs as much as the others: at one rise of plain text's perplexity; ``below`` what its
    smallest clusters cost (``experiments.lab.effects.below_smallest``)."""

    target: Interval
    others: Interval
    below: bool


@dataclass(frozen=True)
class Step:
    """What one strength of a kind does; ``adjusted`` is the p value of the diagonal, by Holm over all steps."""

    kind: str
    strength: float
    effect: Effect
    adjusted: float


@dataclass(frozen=True)
class Results(Stored):
    """A stored file of the experiment: its head and a record for every cluster and impairment."""

    @property
    def topics(self) -> list[str]:
        topics: list[str] = self.head["config"]["topics"]
        return topics

    @property
    def arms(self) -> list[str]:
        return list(self.head["config"]["arms"])

    @property
    def primary(self) -> float:
        return float(self.head["config"]["primary"])

    def effect(self, arm: str, fraction: float | None = None) -> Effect:
        """Of an arm's clusters, impaired wholly; by default at the primary size."""
        return self._effect(self._wholly(arm, fraction or self.primary))

    def columns(self, arm: str, fraction: float | None = None) -> int:
        """That a cluster has, over topics."""
        kind = arms_of(self.head["config"])[arm].kind
        found = [
            record["columns"]
            for record in self.records
            if (record["arm"], record["fraction"], record["part"], record["kind"], record["strength"])
            == (arm, fraction or self.primary, WHOLE, kind, 1.0)
        ]
        return round(float(np.mean(found)))

    def matched(self, arm: str, level: float) -> Matched:
        """The drops at a rise of plain text's perplexity, along the sizes from no neuron on; NaN where it is not reached."""
        drops = [self._wholly(arm, fraction) for fraction in self.head["config"]["fractions"]]
        target, others, _ = matched(drops, self.head["watched"], self.topics, level, self.head["seed"])
        below = below_smallest(drops[0], self.head["watched"], self.topics, level)
        return Matched(drawn_interval(target), drawn_interval(others), below)

    def interaction(self, arm: str) -> tuple[Interval, Interval]:
        """By how much a whole cluster takes more from its topic than its two random halves do one by one, and what the whole
        takes: nats."""
        whole, first, second = (self._drops(arm, self.primary, part) for part in (WHOLE, FIRST, SECOND))
        return self._effect(whole - first - second).target, self._effect(whole).target

    def dial(self) -> dict[str, list[Step]]:
        """By kind, its strengths."""
        config = self.head["config"]["dial"]
        arm = config["arm"]
        steps = [(kind, strength) for kind, strengths in config["kinds"].items() for strength in strengths]
        effects = [self._effect(self._drops(arm, self.primary, WHOLE, kind, strength)) for kind, strength in steps]
        p = holm(np.array([matrix_contrast(own.matrix, seed=self.head["seed"])[1] for own in effects]))
        found: dict[str, list[Step]] = {kind: [] for kind in config["kinds"]}
        for (kind, strength), own, chance in zip(steps, effects, p, strict=True):
            found[kind].append(Step(kind, strength, own, float(chance)))
        return found

    def _wholly(self, arm: str, fraction: float) -> FloatArray:
        return self._drops(arm, fraction, WHOLE, arms_of(self.head["config"])[arm].kind, 1.0)

    def _drops(
        self, arm: str, fraction: float, part: str, kind: str | None = None, strength: float = 1.0
    ) -> FloatArray:
        """``[topics, prompts]``; by default of the arm's own kind."""
        kind = kind or arms_of(self.head["config"])[arm].kind
        by_topic = {
            record["topic"]: record["drop"]
            for record in self.records
            if (record["arm"], record["fraction"], record["part"], record["kind"], record["strength"])
            == (arm, fraction, part, kind, strength)
        }
        return np.array([by_topic[topic] for topic in self.topics])

    def _effect(self, drops: FloatArray) -> Effect:
        return effect(drops, self.head["watched"], self.topics, self.head["seed"])


def smoothness(strengths: Sequence[float], drops: Sequence[float]) -> float:
    """R^2 of the monotone fit of a drop over strengths, zero first (docs/curves.md)."""
    return monotone_fit([0.0, *strengths], -np.array([0.0, *drops]))[1]
