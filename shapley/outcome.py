"""What a finished estimate leaves behind: settings, scores and attributes, as score files hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from shapley import __version__
from shapley.estimators.base import Estimate, Estimator
from shapley.estimators.registry import Plan
from shapley.facts import GameFacts
from shapley.groups import GroupGame
from shapley.store import TopicScores

if TYPE_CHECKING:  # what adds samples up does without torch
    from shapley.game import NeuronGame

Played: TypeAlias = "NeuronGame | GroupGame | GameFacts"


def settings_of(game: Played, plan: Plan, model: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the numbers depend on."""
    return {
        **asdict(plan),
        "impairment": json.loads(game.impairment.to_json()),
        "value": game.value,
        "layers": list(game.layers),
        "partition": game.partition.record() if isinstance(game, GroupGame) else None,
        "dtypes": [str(game.value_dtype), str(game.gradient_dtype)],
        "prompts_sha256": game.topic.sha256,
        "model": model["fingerprint"],
        "version": __version__,
    }


def scores_of(game: Played, result: Estimate, attrs: dict[str, Any]) -> TopicScores:
    """For ``write_scores``."""
    names = game.partition.names if isinstance(game, GroupGame) else ()
    replicates = np.stack([game.to_grid(part) for part in result.replicates]).astype(np.float32)
    return TopicScores(
        game.to_grid(result.score),
        game.to_grid(result.stderr),
        game.to_grid(result.count, missing=0),
        game.to_grid(result.truncated, missing=0),
        replicates,
        attrs,
        None if result.exact is None else game.to_grid(result.exact.astype(np.uint8), missing=0).astype(bool),
        game.to_grid(np.arange(game.n_players), missing=-1) if names else None,
        names,
    )


def attrs_of(
    game: Played,
    estimator: Estimator,
    result: Estimate,
    settings: dict[str, Any],
    seconds: float,
    argv: Sequence[str],
) -> dict[str, Any]:
    """A topic's attributes in a score file."""
    return {
        "estimator": estimator.name,
        "semivalue": estimator.semivalue.name,
        "value": game.value,
        "impairment": game.impairment.to_json(),
        "site": game.impairment.site,
        "seed": estimator.seed,
        "prompts_sha256": game.topic.sha256,
        "n_prompts": game.n_prompts,
        "value_full": result.value_full,
        "value_empty": result.value_empty,
        "efficiency_gap": result.efficiency_gap,
        "forward_rows": result.forward_rows,
        "wall_seconds": seconds,
        "package_version": __version__,
        "argv": json.dumps(list(argv)),
        "details": json.dumps(result.details),
        "settings": json.dumps(settings),
    }
