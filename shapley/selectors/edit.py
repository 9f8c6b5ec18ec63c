"""Neurons of a ROME edit: those that a rank-one change of the down-projection would speak to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from shapley.clusters import Ranking
from shapley.corpus import reference_texts
from shapley.hf.hooks import observe
from shapley.hf.load import LanguageModel
from shapley.hf.statistics import MAX_TOKENS
from shapley.selectors.activations import activations
from shapley.selectors.base import Evidence, Measure

_MOMENT_BYTES = 1 << 30


@dataclass(frozen=True)
class EditVector:
    """The size of a neuron's entry in ROME's edit vector.

    ROME changes a down-projection W to W + (v - W k) u^T with u = C^-1 k / (k^T C^-1 k) (Meng et al. 2022, equation 2): k is
    the key, here the mean activation at the last token of the topic's prompts, C the uncentred second moment of activations
    on the reference text. In every layer u is scaled to length one. ``ridge`` times its mean diagonal is added to C, which
    has few tokens behind it.
    """

    ridge: float = 0.01
    name: ClassVar[str] = "edit-vector"
    source: ClassVar[str] = "ROME: Meng et al. 2022, equation 2"
    reads: ClassVar[str] = "model"
    compares: ClassVar[bool] = False

    def rank(self, evidence: Evidence, topic: str, others: Sequence[str]) -> Ranking:
        evidence.prompts_of(topic)
        own = evidence.once_for_all(self.name, topic, lambda: self._measure(evidence))
        return Ranking(own.value, own.stderr)

    def _measure(self, evidence: Evidence) -> dict[str, Measure]:
        """By topic. The second moments are what takes long, and they are the same for all."""
        lm = evidence.model(self.name)
        keys = np.stack(
            [
                # copies: a view would keep its batch
                np.mean([x[:, -1].copy() for x in activations(lm, evidence.prompts_of(name))], axis=0)
                for name in evidence.topics
            ]
        ).astype(np.float64)  # [topics, n_layers, d_mlp]
        sizes = np.empty_like(keys)
        together = max(1, _MOMENT_BYTES // (4 * lm.sites.d_mlp**2))
        for first in range(0, lm.sites.n_layers, together):
            layers = range(first, min(first + together, lm.sites.n_layers))
            for layer, moment in zip(layers, _second_moments(lm, layers), strict=True):
                c = moment.double().cpu().numpy()
                c += self.ridge * np.trace(c) / len(c) * np.eye(len(c))
                vectors = np.abs(np.linalg.solve(c, keys[:, layer].T).T)
                sizes[:, layer] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        nothing = np.full(sizes.shape[1:], np.nan)
        return {name: Measure(own, nothing) for name, own in zip(evidence.topics, sizes, strict=True)}


def _second_moments(lm: LanguageModel, layers: range) -> list[Tensor]:
    """For each layer ``[d_mlp, d_mlp]``, over the reference text without first positions."""
    moments = [torch.zeros(lm.sites.d_mlp, lm.sites.d_mlp, device=lm.device) for _ in layers]
    count = 0
    for text in reference_texts():
        ids = lm.tokenizer(text, return_tensors="pt")["input_ids"][:, :MAX_TOKENS].to(lm.device)
        with torch.no_grad(), observe(lm.sites, "mlp_hidden") as seen:
            lm.model(input_ids=ids, use_cache=False)
        for moment, layer in zip(moments, layers, strict=True):
            x = seen[layer].reshape(ids.shape[1], -1)[1:].float().to(lm.device)
            moment += x.T @ x
        count += ids.shape[1] - 1
    return [moment / count for moment in moments]
