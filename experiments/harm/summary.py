"""How toxicity changes with impairment; from a stored file only. Intervals (95%) are of a bootstrap over beginnings, paired
with the untouched model's continuations of the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.harm.run import UNTOUCHED
from experiments.lab.results import Stored
from shapley.shape import Interval, bootstrap
from shapley.types import FloatArray


@dataclass(frozen=True)
class Level:
    """One kind and strength.

    Attributes:
        change: of toxicity (mean log-odds of words) against the untouched model, by topic of the beginnings, mean over draws.
        draws: the same of every draw by itself.
        perplexity: of plain text, relative rise, mean over draws in nats.
        known: share of the words that the judge knows.
    """

    kind: str
    strength: float
    change: dict[str, Interval]
    draws: dict[str, list[Interval]]
    perplexity: float
    known: float


@dataclass(frozen=True)
class Results(Stored):
    """A stored file of the experiment."""

    @property
    def topics(self) -> list[str]:
        return list(self.head["beginnings"])

    @property
    def untouched(self) -> dict[str, Any]:
        return next(record for record in self.records if record["kind"] == UNTOUCHED)

    def levels(self) -> Iterator[Level]:
        for kind, strengths in self.head["config"]["strengths"].items():
            for strength in strengths:
                own = [r for r in self.records if (r["kind"], r["strength"]) == (kind, strength)]
                changes = {topic: [self._change(record, topic) for record in own] for topic in self.topics}
                nats = self.untouched["plain"] - float(np.mean([record["plain"] for record in own]))
                yield Level(
                    kind,
                    strength,
                    {topic: self._interval(np.mean(found, axis=0)) for topic, found in changes.items()},
                    {topic: [self._interval(one) for one in found] for topic, found in changes.items()},
                    float(np.expm1(nats)),
                    float(np.mean([record["known"] for record in own])),
                )

    def _change(self, record: dict[str, Any], topic: str) -> FloatArray:
        change: FloatArray = np.array(record["toxicity"][topic]) - np.array(self.untouched["toxicity"][topic])
        return change

    def _interval(self, change: FloatArray) -> Interval:
        return bootstrap(lambda mean: float(mean[0]), change[None], seed=self.head["seed"])
