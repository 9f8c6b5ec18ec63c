"""The games of a run, from its record: of a model, or synthetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from shapley.impairment import Impairment
from shapley.jobs.synthetic import SyntheticGame, is_synthetic
from shapley.prompts import TopicPrompts

GameMaker = Callable[[TopicPrompts], Any]


def game_record(
    model: str,
    *,
    trust_remote_code: bool,
    impairment: Mapping[str, Any],
    value: str,
    layers: list[int] | None,
    dtype: str,
    memory: int | None,
) -> dict[str, Any]:
    """What ``open_games`` needs, for JSON. Arguments as for ``load_model`` and ``NeuronGame``."""
    return {
        "model": model,
        "trust_remote_code": trust_remote_code,
        "impairment": dict(impairment),
        "value": value,
        "layers": layers,
        "dtype": dtype,
        "memory": memory,
    }


def open_games(record: Mapping[str, Any], device: str) -> tuple[dict[str, Any], GameMaker]:
    """Load the model.

    Returns:
        what score files record of it, and a maker of games.

    Raises:
        ShapleyError: as ``load_model`` and ``NeuronGame``.
    """
    if is_synthetic(record["model"]):
        return SyntheticGame.describe(record["model"]), lambda topic: SyntheticGame.parse(record["model"], topic)
    from shapley.game import NeuronGame
    from shapley.hf.load import describe, load_model, weights_dtype

    lm = load_model(
        record["model"],
        device=device,
        dtype=weights_dtype(device, record["dtype"]),
        trust_remote_code=record["trust_remote_code"],
    )

    def make(topic: TopicPrompts) -> NeuronGame:
        return NeuronGame(
            lm,
            topic,
            Impairment(**record["impairment"]),
            value=record["value"],
            layers=record["layers"],
            dtype=record["dtype"],
            memory=record["memory"],
        )

    return describe(lm), make
