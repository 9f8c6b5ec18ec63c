"""A game without a model: as many players as one likes, at a price one names. For trying out a cluster, for tests of what
happens to jobs, and for the simulator.

``synthetic:LAYERSxWIDTH`` or ``synthetic:LAYERSxWIDTH@MILLISECONDS`` a forward row. A player adds its weight, and pairs of
neighbours add theirs together; values and gradients follow in O(players).
"""

from __future__ import annotations

import re
import time
from typing import Any

import numpy as np

from shapley.errors import ShapleyError
from shapley.impairment import Impairment
from shapley.keyed import keyed_rng
from shapley.prompts import TopicPrompts
from shapley.types import BoolArray, Float32Array, FloatArray, Gates, IntArray

PREFIX = "synthetic:"
_NAME = re.compile(r"synthetic:(\d+)x(\d+)(?:@([0-9.]+))?")


def is_synthetic(model: str) -> bool:
    return model.startswith(PREFIX)


class SyntheticGame:
    """A topic's game; the interface is ``NeuronGame``'s."""

    stochastic = False
    differentiable = True
    memory = 0
    value = "logprob"
    value_dtype = gradient_dtype = "torch.float32"

    def __init__(self, shape: tuple[int, int], seconds_per_row: float, topic: TopicPrompts) -> None:
        self.shape, self.topic, self.impairment = shape, topic, Impairment()
        self.layers = tuple(range(shape[0]))
        self.n_players, self.n_prompts = shape[0] * shape[1], len(topic)
        self.forward_rows = 0
        self._seconds = seconds_per_row
        rng = keyed_rng("synthetic", topic.topic)
        self._weights = rng.standard_exponential(self.n_players) ** 3 / self.n_players
        self._pairs = rng.normal(0, 1, self.n_players) / self.n_players  # of player i with player i + 1
        self._by_prompt = 1 + 0.3 * rng.normal(size=self.n_prompts)
        self.value_range = (-30.0, 0.0)

    @classmethod
    def parse(cls, name: str, topic: TopicPrompts) -> SyntheticGame:
        """Raises ShapleyError when the name is not one of a synthetic game."""
        match = _NAME.fullmatch(name)
        if not match or not 0 < int(match[1]) * int(match[2]) <= 10**8:
            raise ShapleyError(f"model {name!r}: expected synthetic:LAYERSxWIDTH, as synthetic:12x3072")
        return cls((int(match[1]), int(match[2])), float(match[3] or 0) / 1000, topic)

    @classmethod
    def describe(cls, name: str) -> dict[str, Any]:
        """What score files record of a model."""
        layers, width = cls.parse(name, TopicPrompts("", ())).shape
        model = {"name": name, "revision": "local", "fingerprint": name.split("@")[0], "architecture": "synthetic"}
        return {**model, "n_layers": layers, "d_mlp": width}

    def values(
        self, coalitions: BoolArray, *, prompts: IntArray | None = None, draws: IntArray | None = None
    ) -> FloatArray:
        self._spend(len(coalitions) * (1 if prompts is not None else self.n_prompts))
        return self._factor(prompts) * np.array([self._value(row.astype(np.float32)) for row in coalitions])

    def gradients(
        self, coalitions: Gates, *, prompts: IntArray | None = None, draws: IntArray | None = None
    ) -> tuple[FloatArray, Float32Array]:
        self._spend(3 * len(coalitions) * (1 if prompts is not None else self.n_prompts))
        factor = np.broadcast_to(self._factor(prompts), len(coalitions))
        gradients = np.empty((len(coalitions), self.n_players), dtype=np.float32)
        for row, gates in enumerate(coalitions):
            g = gates.astype(np.float32)
            gradients[row] = factor[row] * (self._weights + self._pairs * np.roll(g, -1) + np.roll(self._pairs * g, 1))
        return factor * np.array([self._value(row.astype(np.float32)) for row in coalitions]), gradients

    def marginals(
        self, coalitions: BoolArray, players: IntArray, *, prompts: IntArray, draws: IntArray | None = None
    ) -> FloatArray:
        self._spend(len(coalitions) * (1 + len(players)))
        after, before = (players + 1) % self.n_players, players - 1
        pairs = self._pairs[players] * coalitions[:, after] + self._pairs[before] * coalitions[:, before]
        return self._by_prompt[prompts][:, None] * (self._weights[players] + pairs)

    def _value(self, gates: Float32Array) -> float:
        return float(gates @ self._weights + (gates * np.roll(gates, -1)) @ self._pairs) - 20.0

    def _factor(self, prompts: IntArray | None) -> FloatArray:
        return np.atleast_1d(self._by_prompt.mean()) if prompts is None else self._by_prompt[prompts]

    def _spend(self, rows: int) -> None:
        self.forward_rows += rows
        if self._seconds:
            time.sleep(rows * self._seconds)
