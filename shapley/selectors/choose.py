"""Choosing the guard on the selection prompts: by what zeroing the cluster does to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from shapley.clusters import Ranking, select
from shapley.errors import ShapleyError, unknown_name
from shapley.impairment import Impairment
from shapley.prompts import TopicPrompts
from shapley.types import FloatArray, Site

if TYPE_CHECKING:
    from shapley.hf.load import LanguageModel

GUARDS = (1.0, 2.0, 4.0, 8.0, 16.0)
SHARE = 1 / 8  # off-topic drop over target drop, at most


@dataclass(frozen=True)
class Choice:
    """A guard, and by guard what its cluster takes from the topic and, in the mean, from the others, in nats."""

    guard: float
    target: dict[float, float]
    others: dict[float, float]


def choose_guard(
    lm: LanguageModel,
    prompts: Mapping[str, TopicPrompts],
    topic: str,
    rankings: Mapping[float, Ranking],
    k: int,
    *,
    site: Site = "mlp_hidden",
    intact: FloatArray | None = None,
    memory: int | None = None,
) -> Choice:
    """Of several guards, the one whose cluster of ``k`` neurons takes most from the topic, among those that take at most an
    eighth as much from the others; where none does so, the one with the largest target drop minus eight times the others'.
    Of equals, the smaller guard.

    Args:
        prompts: to select on, of all topics.
        rankings: for ``topic``, by guard.
        k: neurons of a cluster; groups, where groups are ranked.
        site: of what is ranked, and zeroed.
        intact: ``[prompts]``, log-probabilities of the prompts of all topics, in order, in the untouched model, where they are
            known.

    Raises:
        ShapleyError: no prompts of ``topic``, or of no other.
    """
    if topic not in prompts:
        raise unknown_name("topic", topic, prompts)
    if len(prompts) < 2:
        raise ShapleyError(f"a guard is chosen by what other topics lose, and there are prompts of {topic!r} only")
    from shapley.hf.scoring import RowPlan, RowScorer

    every = [prompt for own in prompts.values() for prompt in own.prompts]
    of = np.array([prompt.topic for prompt in every])
    width = lm.sites.width(site)
    coalitions = np.ones((len(rankings), lm.sites.n_layers * width), dtype=bool)
    for row, ranking in zip(coalitions, rankings.values(), strict=True):
        layers, columns = np.array(select(ranking, top_k=k)).T
        row[layers * width + columns] = False
    n = len(every)
    plan = RowPlan(np.tile(np.arange(n), len(coalitions)), np.repeat(np.arange(len(coalitions)), n))
    scorer = RowScorer(lm, every, Impairment("zero", site=site), memory=memory)
    values = scorer.values(["logprob"], plan, coalitions=coalitions)[0].reshape(len(coalitions), n)
    drops = (scorer.values(["logprob"], RowPlan(np.arange(n)), cluster=())[0] if intact is None else intact) - values
    by_topic = {other: drops[:, of == other].mean(axis=1) for other in prompts}
    target = by_topic.pop(topic)
    others = np.mean(list(by_topic.values()), axis=0)
    specific = (target > 0) & (others <= SHARE * target)
    worth = np.where(specific, target, -np.inf) if specific.any() else target - np.maximum(others, 0) / SHARE
    guards = list(rankings)
    best = max(range(len(guards)), key=lambda i: (worth[i], -guards[i]))
    return Choice(
        guards[best],
        dict(zip(guards, map(float, target), strict=True)),
        dict(zip(guards, map(float, others), strict=True)),
    )
