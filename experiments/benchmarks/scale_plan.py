"""The rounds of a two-stage estimate, as the real estimator plans them from made-up samples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scale_cluster import Round

from shapley.estimators.coalitions import N_PAIRS, ROWS_PER_UNIT
from shapley.estimators.registry import Plan, build
from shapley.estimators.two_stage import _PART_PLAYERS, Sample, TwoStage
from shapley.jobs.folder import ENDS
from shapley.jobs.segments import Item
from shapley.jobs.synthetic import SyntheticGame
from shapley.prompts import Prompt, TopicPrompts

_POOL = 8  # different gradients, used in turn
_GRADIENT_ROWS = 3 * ROWS_PER_UNIT
_ENDS_ROWS = 2  # of each prompt


def rounds(model: str, budget: int, n_prompts: int, top_k: int) -> list[Round]:
    """Play a topic with made-up samples.

    Args:
        model: a synthetic one, as ``synthetic:48x6400``.
        budget: forward rows.
        n_prompts: of the topic.
        top_k: players to separate; among so many here, the budget is spent before.
    """
    prompts = tuple(Prompt("topic", f"{i} is", " so") for i in range(n_prompts))
    game = SyntheticGame.parse(model, TopicPrompts("topic", prompts))
    estimator, _ = build(Plan(estimator="two-stage", budget=budget, top_k=top_k), game, key="topic")
    assert isinstance(estimator, TwoStage)
    samples = _Samples(game)
    estimator.value_full, estimator.value_empty = -1.0, -20.0
    found = []
    while not estimator.finished:
        items: dict[Item, tuple[int, int]] = {}
        for unit in range(estimator.unit, estimator.unit + estimator.units_ahead()):
            players = estimator._at_work()
            sizes = list(_parts(estimator.parts(), unit, len(players), game.n_players))
            assert len(sizes) == estimator.parts()
            items |= {Item(unit, part): size for part, size in enumerate(sizes)}
            estimator.take(samples.gradient(0) if unit < 0 else samples.sample(unit, players))
        if not found:
            items[ENDS] = _ENDS_ROWS * n_prompts, 16
        rows, size = ({item: both[i] for item, both in items.items()} for i in (0, 1))
        found.append(Round(rows, size))
    return found


def _parts(n_parts: int, unit: int, n_at_work: int, n_players: int) -> Iterator[tuple[int, int]]:
    """Rows and bytes of a unit's parts."""
    if unit < 0:
        yield from [(_GRADIENT_ROWS, 8 * n_players)] * n_parts
        return
    yield _GRADIENT_ROWS, 8 * n_players + 8 * N_PAIRS * n_at_work
    for first in range(0, n_at_work, _PART_PLAYERS):
        size = min(_PART_PLAYERS, n_at_work - first)
        yield from [(2 * (size + 1), 8 * size)] * N_PAIRS


class _Samples:
    """A unit's sample that looks like a model's: a few large scores, noise in proportion, some curvature."""

    def __init__(self, game: Any) -> None:
        self._rng = np.random.default_rng(0)
        self._weights = game._weights.astype(np.float32)
        self._noise = [self._rng.standard_normal(game.n_players, dtype=np.float32) for _ in range(_POOL)]

    def gradient(self, unit: int) -> np.ndarray:
        return self._weights * (1 + 0.5 * np.roll(self._noise[unit % _POOL], 7919 * unit))

    def sample(self, unit: int, players: np.ndarray) -> Sample:
        plain, correction = self.gradient(unit), 0.1 * self._weights * self._noise[(unit + 1) % _POOL]
        gradients = plain[players] + 0.1 * self._weights[players] * self._rng.normal(size=(8, len(players)))
        exact = gradients + 0.1 * self._weights[players] * (1 + self._rng.normal(size=(8, len(players))))
        return plain, correction, exact, gradients
