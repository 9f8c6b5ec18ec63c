"""Neurons that mean several things: impaired only where they are as active as other topics seldom make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from joblib import Memory
from torch import Tensor

from experiments.lab.measure import METRICS
from shapley.clusters import Cluster
from shapley.files import cache_directory, digest
from shapley.hf.hooks import attach
from shapley.hf.load import LanguageModel
from shapley.hf.scoring import RowPlan, RowScorer
from shapley.impairment import Impairment
from shapley.prompts import Prompt, TopicPrompts
from shapley.selectors.activations import activations
from shapley.types import FloatArray, IntArray, Kind


def values_where_active(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    cluster: Cluster,
    kind: Kind,
    reference: Sequence[TopicPrompts],
    above: float,
) -> FloatArray:
    """``[metric, prompt]`` with the cluster's neurons impaired only at tokens where they are active; kept on disk.

    Args:
        cluster: of neurons.
        kind: ``zero`` or ``mean``.
        reference: whose tokens say when a neuron is active: where its activation, in size, is above their quantile ``above``.
    """
    texts = [lm.fingerprint, *(prompt.key for prompt in prompts), *(own.sha256 for own in reference)]
    key = digest(*(text.encode() for text in texts))
    measure: Any = Memory(cache_directory("experiments", "rows"), verbose=0).cache(
        _measure, ignore=["lm", "prompts", "reference"]
    )
    values: FloatArray = measure(key, tuple(sorted(cluster.neurons)), kind, above, lm, prompts, reference)
    return values


def _measure(
    key: str,
    neurons: tuple[tuple[int, int], ...],
    kind: Kind,
    above: float,
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    reference: Sequence[TopicPrompts],
) -> FloatArray:
    layers, columns = np.array(neurons).T
    thresholds = thresholds_of(lm, layers, columns, reference, above)
    targets = (
        lm.statistics("mlp_hidden").mean.cpu().numpy()[layers, columns] if kind == "mean" else np.zeros(len(layers))
    )
    scorer = RowScorer(lm, prompts, Impairment("zero"))
    with replaced_above(lm, layers, columns, thresholds, targets):
        return scorer.values(METRICS, RowPlan(np.arange(len(prompts))), cluster=())


def thresholds_of(
    lm: LanguageModel, layers: IntArray, columns: IntArray, reference: Sequence[TopicPrompts], above: float
) -> FloatArray:
    """``[neurons]``: the quantile ``above`` of the neuron's absolute activation over the reference's tokens."""
    seen = [x[layers, :, columns] for own in reference for x in activations(lm, own)]
    return np.asarray(np.quantile(np.abs(np.concatenate(seen, axis=1)), above, axis=1))


@contextmanager
def replaced_above(
    lm: LanguageModel, layers: IntArray, columns: IntArray, thresholds: FloatArray, targets: FloatArray
) -> Iterator[None]:
    """The model with ``targets`` in place of activations that are above their thresholds in size; all ``[neurons]``."""
    with ExitStack() as stack:
        for layer in np.unique(layers):
            own = layers == layer
            block = lm.sites.blocks[int(layer)]
            stack.callback(attach(block, "mlp_hidden", _replace(columns[own], thresholds[own], targets[own])).remove)
        yield


def _replace(columns: IntArray, thresholds: FloatArray, targets: FloatArray) -> Callable[[Tensor], Tensor]:
    def edit(x: Tensor) -> Tensor:
        where = torch.from_numpy(columns).to(x.device)
        threshold, target = (torch.from_numpy(part).to(x) for part in (thresholds, targets))
        own = x[..., where]
        edited = x.clone()
        edited[..., where] = torch.where(own.abs() > threshold, target, own)
        return edited

    return edit
