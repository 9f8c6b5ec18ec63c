"""What a run is to give: the scores of one process that computes everything and is not disturbed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from shapley.estimators.registry import Plan, build
from shapley.jobs.games import game_record
from shapley.jobs.synthetic import SyntheticGame
from shapley.outcome import attrs_of, scores_of, settings_of
from shapley.prompts import Prompt, TopicPrompts
from shapley.store import ScoreFile, TopicScores

TOPICS = {
    topic: TopicPrompts(topic, tuple(Prompt(topic, f"prompt {i}", " a") for i in range(4))) for topic in ("one", "two")
}
_ARRAYS = ("score", "stderr", "count", "truncated", "replicates", "exact")
_VARY = ("wall_seconds", "argv")


@dataclass(frozen=True)
class Case:
    """A game and what is to be estimated of it; ``MS`` a forward row make a run last a second or two."""

    model: str
    plan: Plan

    def record(self) -> dict[str, Any]:
        """For ``shapley.jobs.folder.create``."""
        return game_record(
            self.model,
            trust_remote_code=False,
            impairment={},
            value="logprob",
            layers=None,
            dtype="auto",
            memory=None,
        )


CASES = {
    "two-stage": Case("synthetic:4x64@0.2", Plan(estimator="two-stage", budget=2500, top_k=8)),
    "rounds": Case("synthetic:4x64@0.1", Plan(estimator="two-stage", budget=6000, top_k=30, delta=1e-9, seed=2)),
    "gradient": Case("synthetic:4x64@0.3", Plan(estimator="gradient", samples=600, seed=1)),
    "permutation": Case("synthetic:3x24@0.1", Plan(estimator="permutation", samples=24)),
}


@cache
def expected(case: Case) -> Mapping[str, TopicScores]:
    """Computed in this process, by the estimator alone: no folders, no workers."""
    found = {}
    name = case.model.split("@")[0]  # its price does not change its values
    for topic, prompts in TOPICS.items():
        game: Any = SyntheticGame.parse(name, prompts)
        model = SyntheticGame.describe(name)
        estimator, _ = build(case.plan, game, key=topic)
        result = estimator.run()
        facts: Any = _Facts(game)
        attrs = attrs_of(facts, estimator, result, settings_of(facts, case.plan, model), 0.0, [])
        found[topic] = scores_of(facts, result, attrs)
    return found


class _Facts:
    """The game with a grid."""

    def __init__(self, game: SyntheticGame) -> None:
        self._game = game

    def __getattr__(self, name: str) -> Any:
        return getattr(self._game, name)

    def to_grid(self, per_player: Any, missing: float = np.nan) -> Any:
        return per_player.reshape(self._game.shape)


def wrong_bits(path: Path, case: Case) -> dict[str, int]:
    """How many bits of a score file are not what they are to be, by topic and name; nothing where all are right."""
    file, wanted = ScoreFile(path), expected(case)
    found = {"topics": 1} if file.topics != list(wanted) else {}
    for topic, scores in wanted.items():
        there = file[topic]
        for name in _ARRAYS:
            found[f"{topic}: {name}"] = _different(getattr(scores, name), getattr(there, name))
        for name in sorted({*scores.attrs, *there.attrs} - {*_VARY}):
            same = _plain(scores.attrs.get(name)) == _plain(there.attrs.get(name))
            found[f"{topic}: {name}"] = 0 if same else 64
    return {name: bits for name, bits in found.items() if bits}


def _different(a: np.ndarray | None, b: np.ndarray | None) -> int:
    if a is None or b is None:
        return 0 if a is b else 64
    if a.dtype != b.dtype or a.shape != b.shape:
        return 8 * max(a.nbytes, b.nbytes)
    raw = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (a, b))
    return int(np.unpackbits(np.bitwise_xor(*raw)).sum())


def _plain(value: Any) -> Any:
    """JSON by its meaning; other values as they are."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value
