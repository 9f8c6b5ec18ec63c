"""A game without the model that plays it: enough to add samples up and to write scores, in a process that has no model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from shapley.impairment import Impairment
from shapley.prompts import TopicPrompts
from shapley.types import BoolArray, FloatArray, IntArray

Number = TypeVar("Number", bound=np.number)
_PLAIN = ("n_players", "n_prompts", "stochastic", "differentiable", "value")


@dataclass(frozen=True)
class GameFacts:
    """What ``NeuronGame`` says of itself; the names are the same. The dtypes are theirs as text."""

    topic: TopicPrompts
    impairment: Impairment
    n_players: int
    n_prompts: int
    stochastic: bool
    differentiable: bool
    value: str
    value_range: tuple[float, float]
    shape: tuple[int, int]
    layers: tuple[int, ...]
    value_dtype: str
    gradient_dtype: str
    forward_rows: ClassVar[int] = 0

    @classmethod
    def record_of(cls, game: Any) -> dict[str, Any]:
        """Of a ``NeuronGame``, for JSON."""
        return {
            **{name: getattr(game, name) for name in _PLAIN},
            "value_range": list(game.value_range),
            "shape": list(game.shape),
            "layers": list(game.layers),
            "value_dtype": str(game.value_dtype),
            "gradient_dtype": str(game.gradient_dtype),
            "impairment": json.loads(game.impairment.to_json()),
        }

    @classmethod
    def from_record(cls, record: dict[str, Any], topic: TopicPrompts) -> GameFacts:
        """From what ``record_of`` made."""
        return cls(
            topic=topic,
            impairment=Impairment(**record["impairment"]),
            value_range=(record["value_range"][0], record["value_range"][1]),
            shape=(record["shape"][0], record["shape"][1]),
            layers=tuple(record["layers"]),
            value_dtype=record["value_dtype"],
            gradient_dtype=record["gradient_dtype"],
            **{name: record[name] for name in _PLAIN},
        )

    def to_grid(self, per_player: npt.NDArray[Number], missing: float = np.nan) -> npt.NDArray[Number]:
        """``[n_players]`` -> ``[n_layers, width]``, ``missing`` in layers that do not play."""
        return to_grid(per_player, self.shape, self.layers, missing)

    def values(
        self, coalitions: BoolArray, *, prompts: IntArray | None = None, draws: IntArray | None = None
    ) -> FloatArray:
        """Never called: samples are only added up here."""
        raise NotImplementedError("a game without its model has no values")


def to_grid(
    per_player: npt.NDArray[Number], shape: tuple[int, int], layers: tuple[int, ...], missing: float
) -> npt.NDArray[Number]:
    """``[n_players]`` -> ``[n_layers, width]``, ``missing`` in layers that do not play."""
    grid = np.full(shape, missing, dtype=per_player.dtype)
    grid[list(layers)] = per_player.reshape(len(layers), -1)
    return grid
