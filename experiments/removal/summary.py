"""Accuracy as neurons are removed, and what repair costs; from a stored file only. Intervals (95%) are of a bootstrap over
prompts, or over the beginnings of comments; what is compared is paired."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.lab.results import Stored
from experiments.removal.run import GENERAL
from shapley.shape import Interval, bootstrap
from shapley.types import FloatArray


@dataclass(frozen=True)
class Results(Stored):
    """A stored file of the experiment."""

    @property
    def counts(self) -> list[int]:
        counts: list[int] = [0, *self.head["config"]["counts"]]
        return counts

    def accuracy(self, selector: str, scope: str, where: str) -> list[Interval]:
        """By number of neurons removed, none first.

        Args:
            selector: whose ranking.
            scope: ``general``, or ``topic``: each topic's own ranking.
            where: ``own`` (the topic that the ranking is of), ``others``, or ``all`` topics.

        Prompts are what is resampled: of the others each is under several rankings, over which it is averaged first.
        """
        topics = np.array(self.head["watched"])
        chosen = [GENERAL] if scope == GENERAL else self.head["config"]["topics"]
        counted = np.array(
            [
                {"own": topics == topic, "others": (topics != topic) & (topics != "plain"), "all": topics != "plain"}[
                    where
                ]
                for topic in chosen
            ]
        )  # [rankings, prompts]
        watched = counted.any(axis=0)
        by_count = []
        for count in self.counts:
            accuracy = np.array([self._record(selector, topic, count)["accuracy"] for topic in chosen])
            by_prompt = (accuracy * counted)[:, watched].sum(axis=0) / counted[:, watched].sum(axis=0)
            by_count.append(_estimate(by_prompt, self.head["seed"]))
        return by_count

    def repairs(self) -> list[tuple[str, int, Interval, Interval]]:
        """Selector, neurons removed, change of the continuations' toxicity (mean log-odds of their words), and relative
        change of plain text's perplexity."""
        found = [record for record in self.records if "repair" in record]
        if not found:
            return []
        untouched, seed = self._untouched(), self.head["seed"]
        result = []
        for record in found:
            if record is untouched:
                continue
            change = np.array(record["toxicity"]) - np.array(untouched["toxicity"])
            loss = np.array(untouched["plain"]) - np.array(record["plain"])
            nats = _estimate(loss, seed)
            rise = Interval(*(float(np.expm1(value)) for value in (nats.estimate, nats.low, nats.high)))
            result.append((record["repair"], record["count"], _estimate(change, seed), rise))
        return result

    def judge(self) -> tuple[float, float]:
        """How well the classifier tells held-out comments apart (AUC), and the toxicity of the untouched continuations."""
        untouched = self._untouched()
        return float(untouched["auc"]), float(np.mean(untouched["toxicity"]))

    def repaired_on(self) -> tuple[int, int]:
        """How many beginnings of comments repair rests on, and how many passages of plain text."""
        untouched = self._untouched()
        return len(untouched["toxicity"]), len(untouched["plain"])

    def _untouched(self) -> dict[str, Any]:
        return next(record for record in self.records if record.get("repair") == "none")

    def _record(self, selector: str, scope: str, count: int) -> dict[str, Any]:
        wanted = (selector, scope, count) if count else ("none", GENERAL, 0)
        return next(
            record
            for record in self.records
            if (record.get("selector"), record.get("scope"), record.get("count")) == wanted
        )


def _estimate(values: FloatArray, seed: int) -> Interval:
    return bootstrap(lambda mean: float(mean[0]), values[None], seed=seed)
