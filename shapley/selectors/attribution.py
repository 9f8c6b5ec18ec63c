"""Selectors that rank by gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shapley.clusters import DEFAULT_GUARD, Ranking
from shapley.hf.scoring import RowPlan, RowScorer
from shapley.impairment import Impairment
from shapley.selectors.base import Evidence, Measure, guarded


@dataclass(frozen=True)
class Attribution:
    """Gradient times activation, summed over tokens: what zeroing the neuron costs to first order, with all others intact."""

    name: ClassVar[str] = "attribution"
    source: ClassVar[str] = "attribution patching, Nanda 2023; AtP, Kramár et al. 2024 (the counterfactual is zero)"
    reads: ClassVar[str] = "model"

    def rank(self, evidence: Evidence, topic: str, others: Sequence[str]) -> Ranking:
        own = self.measure(evidence, topic)
        return Ranking(own.value, own.stderr)

    def measure(self, evidence: Evidence, topic: str) -> Measure:
        """Means over the topic's prompts."""
        return evidence.once(self.name, topic, lambda: self._measure(evidence, topic))

    def _measure(self, evidence: Evidence, topic: str) -> Measure:
        lm, prompts = evidence.model(self.name), evidence.prompts_of(topic).prompts
        scorer = RowScorer(lm, prompts, Impairment("zero"), memory=evidence.memory)
        intact = np.ones((1, lm.sites.n_layers * lm.sites.d_mlp), dtype=bool)
        n = len(prompts)
        # The mask gradient at the grand coalition is the gradient times the activation, summed over tokens.
        _, gradients = scorer.gradients("logprob", RowPlan(np.arange(n), np.zeros(n, dtype=int)), intact)
        return Measure.over_prompts(list(gradients.reshape(n, lm.sites.n_layers, lm.sites.d_mlp)))


@dataclass(frozen=True)
class GuardedAttribution:
    """Attribution under the rule of the guarded Shapley contrast, so that scores are compared and not rules."""

    guard: float = DEFAULT_GUARD
    name: ClassVar[str] = "guarded-attribution"
    source: ClassVar[str] = "as attribution, with our rule"
    reads: ClassVar[str] = "model"

    def rank(self, evidence: Evidence, topic: str, others: Sequence[str]) -> Ranking:
        plain = Attribution()
        return guarded(plain.measure(evidence, topic), [plain.measure(evidence, other) for other in others], self.guard)
