"""The rounds of a two-stage estimate, as the real estimator plans them from made-up samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scale_cluster import Job

from shapley.estimators.coalitions import N_PAIRS, ROWS_PER_UNIT
from shapley.estimators.registry import Plan, build
from shapley.estimators.two_stage import _PART_PLAYERS, Sample, TwoStage
from shapley.jobs.segments import Item
from shapley.jobs.synthetic import SyntheticGame
from shapley.prompts import Prompt, TopicPrompts

_POOL = 8  # different gradients, used in turn


@dataclass(frozen=True)
class Rounds:
    """One topic's items, round by round. ``diagonal`` is the rows of preparing."""

    diagonal: int
    jobs: list[Job]


@dataclass(frozen=True)
class Cut:
    """How exact differences become items; the estimator cuts by players only.

    Attributes:
        players: of an item.
        pairs: whether each pair of coalitions is an item of its own.
    """

    players: int = _PART_PLAYERS
    pairs: bool = False


def rounds(model: str, budget: int, n_prompts: int, top_k: int, cut: Cut) -> Rounds:
    """Play a topic with made-up samples.

    Args:
        model: a synthetic one, as ``synthetic:48x6400``.
        budget: forward rows.
        n_prompts: of the topic.
        top_k: players to separate; among so many here, the budget is spent before.
        cut: of exact differences.
    """
    prompts = tuple(Prompt("topic", f"{i} is", " so") for i in range(n_prompts))
    game = SyntheticGame.parse(model, TopicPrompts("topic", prompts))
    estimator, _ = build(Plan(estimator="two-stage", budget=budget, top_k=top_k), game, key="topic")
    assert isinstance(estimator, TwoStage)
    samples = _Samples(game)
    estimator.value_full, estimator.value_empty = -1.0, -20.0
    estimator.prior = samples.gradient(0)
    found = []
    while not estimator.finished:
        units = range(estimator.unit, estimator.unit + estimator.units_ahead())
        sizes: dict[Item, tuple[int, int]] = {}
        for unit in units:
            players = estimator._at_work()
            sizes |= _items(unit, len(players), game.n_players, cut)
            estimator.take(samples.sample(unit, players))
        job = Job({item: rows for item, (rows, _) in sizes.items()}, {item: size for item, (_, size) in sizes.items()})
        found.append(job)
    return Rounds(3 * estimator.details()["diagonal_rows"], found)


def _items(unit: int, n_at_work: int, n_players: int, cut: Cut) -> dict[Item, tuple[int, int]]:
    """Rows and bytes of a unit's items."""
    found = {Item(unit, 0): (3 * ROWS_PER_UNIT, 8 * n_players + 8 * N_PAIRS * n_at_work)}
    pieces = N_PAIRS if cut.pairs else 1
    for first in range(0, n_at_work, cut.players):
        size = min(cut.players, n_at_work - first)
        for _ in range(pieces):
            found[Item(unit, len(found))] = (ROWS_PER_UNIT // pieces * (size + 1), 8 * N_PAIRS // pieces * size)
    return found


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
