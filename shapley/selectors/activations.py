"""Selectors that read activations only: how often, how strongly and for which topics neurons are active.

Activations are those at ``mlp_hidden`` over the tokens of the topic's prompts. The first position is left out: it carries
massive activations whatever the text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from shapley.clusters import Ranking
from shapley.errors import ShapleyError
from shapley.hf.hooks import observe
from shapley.hf.load import LanguageModel
from shapley.hf.scoring import encode
from shapley.hf.sites import write_weights
from shapley.hf.statistics import pad_right
from shapley.prompts import Prompt, TopicPrompts
from shapley.selectors.base import Evidence, Measure, needed
from shapley.types import FloatArray

_BATCH = 16


@dataclass(frozen=True)
class FrequencyDifference:
    """The share of tokens at which the neuron is active, in the topic minus the mean over the others. Active is a standard
    deviation above the neuron's mean on the reference text: the product of a gated MLP has no zero of its own."""

    name: ClassVar[str] = "frequency"
    source: ClassVar[str] = "difference of activation frequencies; the threshold is ours"
    reads: ClassVar[str] = "model"
    compares: ClassVar[bool] = True

    def rank(self, evidence: Evidence, topic: str, others: Sequence[str]) -> Ranking:
        needed(self.name, others)
        own = frequency(evidence, topic)
        elsewhere = [frequency(evidence, other) for other in others]
        error = np.sqrt(own.stderr**2 + np.sum([other.stderr**2 for other in elsewhere], axis=0) / len(others) ** 2)
        return Ranking(own.value - np.mean([other.value for other in elsewhere], axis=0), error)


@dataclass(frozen=True)
class ExpertUnits:
    """How well the neuron's largest activation tells the topic's prompts from the others': its average precision."""

    name: ClassVar[str] = "expert-units"
    source: ClassVar[str] = "Suau et al. 2022, Self-conditioning pre-trained language models"
    reads: ClassVar[str] = "model"
    compares: ClassVar[bool] = True

    def rank(self, evidence: Evidence, topic: str, others: Sequence[str]) -> Ranking:
        largest = {name: _largest(evidence, name) for name in (topic, *needed(self.name, others))}
        score = np.concatenate(list(largest.values()))
        positive = np.repeat([True] + [False] * len(others), [len(own) for own in largest.values()])
        precision = average_precision(score.reshape(len(score), -1), positive).reshape(score.shape[1:])
        return Ranking(precision, np.full_like(precision, np.nan))


@dataclass(frozen=True)
class Entropy:
    """Language activation probability entropy, with topics for languages: neurons whose activity is confined to few topics.

    A neuron belongs to the topic where it is most often active; of those that are ever active often (the ``filter`` quantile of
    all probabilities), the topic's own come first, by low entropy, then the other topics'. The rest comes last.
    """

    filter: float = 0.95
    name: ClassVar[str] = "entropy"
    source: ClassVar[str] = "LAPE: Tang et al. 2024, Language-specific neurons"
    reads: ClassVar[str] = "model"
    compares: ClassVar[bool] = True

    def rank(self, evidence: Evidence, topic: str, others: Sequence[str]) -> Ranking:
        probability = np.stack([frequency(evidence, name).value for name in (topic, *needed(self.name, others))])
        share = probability / np.maximum(probability.sum(axis=0), 1e-12)
        entropy = -(share * np.log(np.maximum(share, 1e-12))).sum(axis=0)
        often = probability.max(axis=0) >= np.quantile(probability, self.filter)
        own = probability.argmax(axis=0) == 0
        # Entropy lies below log(topics) < this: classes never mix.
        step = 1 + np.log(len(probability))
        score = -entropy - step * ~own - 2 * step * ~often
        return Ranking(score, np.full_like(score, np.nan))


@dataclass(frozen=True)
class Norm:
    """How much the neuron writes: its root mean square activation on the topic times the norm of its output weights."""

    name: ClassVar[str] = "norm"
    source: ClassVar[str] = "activation norm times output-weight norm, a baseline of pruning"
    reads: ClassVar[str] = "model"
    compares: ClassVar[bool] = False

    def rank(self, evidence: Evidence, topic: str, others: Sequence[str]) -> Ranking:
        own = evidence.once(self.name, topic, lambda: self._measure(evidence, topic))
        return Ranking(own.value, own.stderr)

    def _measure(self, evidence: Evidence, topic: str) -> Measure:
        lm = evidence.model(self.name)
        weights = torch.stack([write_weights(block).float().norm(dim=1).cpu() for block in lm.sites.blocks]).numpy()
        square = [np.square(x).mean(axis=1) for x in activations(lm, evidence.prompts_of(topic))]
        value = np.sqrt(np.mean(square, axis=0)) * weights
        return Measure(value, np.full_like(value, np.nan))


def frequency(evidence: Evidence, topic: str) -> Measure:
    """The share of a prompt's tokens at which each neuron is active, mean over the topic's prompts."""

    def measure() -> Measure:
        lm = evidence.model("frequency")
        statistics = lm.statistics("mlp_hidden")
        threshold = (statistics.mean + statistics.std).cpu().numpy()
        return Measure.over_prompts(
            [(x > threshold[:, None]).mean(axis=1) for x in activations(lm, evidence.prompts_of(topic))]
        )

    return evidence.once("frequency", topic, measure)


def _largest(evidence: Evidence, topic: str) -> FloatArray:
    """``[prompts, n_layers, d_mlp]``, each prompt's largest activation."""

    def measure() -> FloatArray:
        lm = evidence.model("expert-units")
        return np.stack([x.max(axis=1) for x in activations(lm, evidence.prompts_of(topic))])

    return evidence.once("expert-units", topic, measure)


def activations(lm: LanguageModel, prompts: TopicPrompts) -> Iterator[FloatArray]:
    """For each prompt ``[n_layers, tokens - 1, d_mlp]`` float32, its first position left out; the shortest prompt first, as
    batches are of like length. One batch is held at a time: all prompts' tokens would be many times what is kept of them.

    The answer is left out too: what is looked for is what makes the model say it.

    Raises:
        ShapleyError: a prompt of one token, of which nothing is left.
    """
    ids = sorted((_prompt_tokens(lm, prompt) for prompt in prompts.prompts), key=len)
    for start in range(0, len(ids), _BATCH):
        tokens, valid = pad_right(ids[start : start + _BATCH], lm.pad_id)
        with torch.no_grad(), observe(lm.sites, "mlp_hidden") as seen:
            lm.model(input_ids=tokens.to(lm.device), attention_mask=valid.long().to(lm.device), use_cache=False)
        layers = torch.stack([x.view(*tokens.shape, -1).float().cpu() for x in seen]).numpy()
        for row, keep in enumerate(valid):
            yield layers[:, row, 1 : int(keep.sum())]


def _prompt_tokens(lm: LanguageModel, prompt: Prompt) -> tuple[int, ...]:
    """The tokens before the answer, as they are scored: without the end token that some tokenizers add."""
    encoded = encode(lm, prompt)
    if encoded.start == 1:
        raise ShapleyError(
            f"prompt {prompt.id or repr(prompt.prompt[:40])} has one token, and activations leave out the first: "
            "give it a longer prompt"
        )
    return encoded.ids[: encoded.start]


def average_precision(score: FloatArray, positive: np.ndarray) -> FloatArray:
    """``[columns]`` of ``[samples, columns]`` scores: the sum over thresholds of precision times the rise of recall.

    Samples of one score enter at once, as in scikit-learn's ``average_precision_score``.
    """
    order = np.argsort(-score, axis=0, kind="stable")
    sorted_scores = np.take_along_axis(score, order, axis=0)
    hits = positive[order].cumsum(axis=0)
    precision = hits / np.arange(1, len(score) + 1)[:, None]
    last = np.ones(score.shape, dtype=bool)  # of those with one score
    last[:-1] = sorted_scores[:-1] != sorted_scores[1:]
    # Among ties, every sample counts with the precision at the last of them.
    places = np.where(last, np.arange(len(score))[:, None], len(score))
    ends = np.minimum.accumulate(places[::-1], axis=0)[::-1]
    at_end = np.take_along_axis(precision, ends, axis=0)
    return np.asarray((at_end * positive[order]).sum(axis=0) / positive.sum())
