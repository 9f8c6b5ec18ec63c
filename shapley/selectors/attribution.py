"""Selectors that rank by gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shapley.clusters import DEFAULT_GUARD, Ranking
from shapley.hf.scoring import RowPlan, RowScorer
from shapley.impairment import Impairment
from shapley.selectors.base import Evidence, Measure, guarded, needed
from shapley.types import FloatArray


@dataclass(frozen=True)
class Attribution:
    """Gradient times activation, summed over tokens: what zeroing the neuron costs to first order, with all others intact."""

    name: ClassVar[str] = "attribution"
    source: ClassVar[str] = "attribution patching, Nanda 2023; AtP, Kramár et al. 2024 (the counterfactual is zero)"
    reads: ClassVar[str] = "model"
    compares: ClassVar[bool] = False

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
    compares: ClassVar[bool] = True

    def rank(self, evidence: Evidence, topic: str, others: Sequence[str]) -> Ranking:
        plain = Attribution()
        elsewhere = [plain.measure(evidence, other) for other in needed(self.name, others)]
        return guarded(plain.measure(evidence, topic), elsewhere, self.guard)


@dataclass(frozen=True)
class KnowledgeNeurons:
    """Integrated gradients of the answer's probability along each layer's activation, from zero to what it is, all other layers
    intact (Dai et al. 2022, equation 3: the paper scales a neuron alone, its code a layer's neurons together, as here).

    Of each prompt's attributions those above ``threshold`` times the largest are kept. Neurons kept for at least ``share`` of
    the prompts come first, then the others; within both, by mean attribution. (The paper moves the share until few are left.)

    Args:
        steps: of the Riemann sum.
        prompts: the first so many of a topic are used: each costs layers x steps gradient rows.
    """

    steps: int = 20
    threshold: float = 0.2
    share: float = 0.5
    prompts: int = 8
    name: ClassVar[str] = "knowledge-neurons"
    source: ClassVar[str] = "Dai et al. 2022, Knowledge neurons in pretrained transformers"
    reads: ClassVar[str] = "model"
    compares: ClassVar[bool] = False

    def rank(self, evidence: Evidence, topic: str, others: Sequence[str]) -> Ranking:
        own = evidence.once(self.name, topic, lambda: self._measure(evidence, topic))
        return Ranking(own.value, own.stderr)

    def _measure(self, evidence: Evidence, topic: str) -> Measure:
        lm = evidence.model(self.name)
        prompts = evidence.prompts_of(topic).first(self.prompts).prompts
        scorer = RowScorer(lm, prompts, Impairment("zero"), memory=evidence.memory)
        attributions = np.stack([self._integrated(scorer, i) for i in range(len(prompts))])
        kept = attributions > self.threshold * attributions.max(axis=(1, 2), keepdims=True)
        mean = attributions.mean(axis=0)
        step = 1 + 2 * float(np.abs(mean).max())
        value = mean + step * (kept.mean(axis=0) >= self.share)
        return Measure(value, np.full_like(value, np.nan))

    def _integrated(self, scorer: RowScorer, prompt: int) -> FloatArray:
        """``[n_layers, d_mlp]`` of one prompt."""
        n_layers, width = len(scorer.layers), scorer.width
        alphas = np.arange(1, self.steps + 1, dtype=np.float32) / self.steps
        total = np.empty((n_layers, width))
        plan = RowPlan(np.full(self.steps, prompt), np.arange(self.steps))
        for layer in range(n_layers):
            gates = np.ones((self.steps, n_layers, width), dtype=np.float32)
            gates[:, layer] = alphas[:, None]
            values, gradients = scorer.gradients("loss", plan, gates.reshape(self.steps, -1))
            # The gradient with respect to a gate is the activation times the gradient with respect to it.
            own = gradients.reshape(self.steps, n_layers, width)[:, layer]
            total[layer] = (np.exp(values)[:, None] * own).mean(axis=0)  # of the probability: p grad log p
        return total
