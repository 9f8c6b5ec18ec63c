"""What sparse layers cost, and how evenly their units are used; from a stored file only. Intervals (95%) are of a bootstrap
over held-out documents, paired; seeds are averaged first, and held as they are. Arms are compared with as many winners as in
training, in which they are alike; where more win at inference, what that does is told apart."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.lab.results import Stored
from shapley.shape import Interval, bootstrap
from shapley.types import FloatArray

AT_INFERENCE, AT_K = "at_inference", "at_k"


@dataclass(frozen=True)
class Results(Stored):
    """A stored file of the experiment: a record for every place, arm and seed."""

    @property
    def places(self) -> list[str]:
        return list(dict.fromkeys(record["place"] for record in self.records))

    @property
    def arms(self) -> list[str]:
        return list(self.head["config"]["arms"])

    def factor(self, arm: str) -> float:
        """How many times as many units win at inference as in training."""
        return float(self.head["config"]["arms"][arm].get("inference_factor", 1.0))

    def raises_k(self, arm: str) -> bool:
        """Whether more units win at inference than in training."""
        return self.factor(arm) > 1

    def of(self, place: str, arm: str) -> list[dict[str, Any]]:
        """By seed."""
        return [record for record in self.records if (record["place"], record["arm"]) == (place, arm)]

    @property
    def seconds(self) -> int:
        """Of all trainings; the run's own are fewer where it went on from checkpoints."""
        return sum(record["seconds"] for record in self.records)

    @property
    def original(self) -> float:
        """Loss of the untouched model, nats a held-out token."""
        return float(np.average(self._untouched, weights=self._tokens))

    def cost(self, place: str, arm: str, winners: str = AT_K) -> Interval:
        """Loss above the original model's, nats a held-out token; a mean over seeds."""
        return self._interval(self.mean(place, arm, "losses", winners) - self._untouched)

    def against(self, place: str, arm: str, other: str) -> Interval:
        """Loss of an arm above that of another."""
        return self._interval(self.mean(place, arm, "losses") - self.mean(place, other, "losses"))

    def costs(self, place: str, arm: str) -> list[float]:
        """As ``cost``, by seed."""
        changes = [np.array(record[AT_K]["losses"]) - self._untouched for record in self.of(place, arm)]
        return [float(np.average(change, weights=self._tokens)) for change in changes]

    def curve(self, place: str, arm: str) -> tuple[FloatArray, FloatArray]:
        """``[points]`` tokens, mean over seeds, and ``[seeds, points]`` loss above the original model's on held-out text, with
        the winners of inference."""
        curves = [record["curve"] for record in self.of(place, arm)]
        tokens = np.array([[point["tokens"] for point in curve] for curve in curves])
        held_out = np.array([[point["held_out"] for point in curve] for curve in curves])
        return tokens.mean(axis=0), held_out - self.original

    def simple(self, place: str, arm: str) -> FloatArray:
        """Of units of all seeds, the shares of their variance that simple rules predict."""
        return np.concatenate([record["simple"] for record in self.of(place, arm)])

    def mean(self, place: str, arm: str, name: str, winners: str = AT_K) -> Any:
        """Of a number, or of a list of them, over seeds; with as many winners as in training, or those of inference."""
        return np.mean([record[winners][name] for record in self.of(place, arm)], axis=0)

    @property
    def _untouched(self) -> FloatArray:
        return np.array(self.head["original"]["losses"])

    @property
    def _tokens(self) -> FloatArray:
        return np.array(self.head["original"]["tokens"], dtype=np.float64)

    def _interval(self, change: FloatArray) -> Interval:
        """Of a change by document, a mean over tokens."""
        values = np.stack([change * self._tokens, self._tokens])
        return bootstrap(lambda mean: float(mean[0] / mean[1]), values, seed=self.head["seed"])
