"""What a cluster's impairment does to prompts, each (model, cluster, impairment, prompts) measured once and kept on disk, so
that an experiment that was stopped goes on where it was, and experiments share what they measure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from joblib import Memory

from shapley.clusters import Cluster
from shapley.files import cache_directory, digest
from shapley.hf.load import LanguageModel
from shapley.hf.scoring import RowPlan, RowScorer
from shapley.impairment import Impairment
from shapley.prompts import Prompt
from shapley.types import BoolArray, FloatArray, Site

METRICS = ("logprob", "accuracy")


def gain_site(lm: LanguageModel) -> Site:
    """Where scaling everything does something: at the neurons, or behind the norm after the MLP, which would undo that. Without
    such a norm both are the same."""
    return "mlp_out" if lm.sites.undoes_gain else "mlp_hidden"


def answered(lm: LanguageModel, prompts: Sequence[Prompt]) -> BoolArray:
    """``[prompt]``: whether the untouched model's likeliest tokens are the answer."""
    scorer = RowScorer(lm, prompts, Impairment("zero"))
    right: BoolArray = scorer.values(["accuracy"], RowPlan(np.arange(len(prompts))), cluster=())[0] > 0
    return right


class Ward:
    """A model whose clusters are impaired, and prompts that it is given then.

    Args:
        lm: the model.
        prompts: of all topics that are watched.
        impairment: kind, site, strength and seed.
        n_draws: of noise; what is measured is their mean.
    """

    def __init__(
        self, lm: LanguageModel, prompts: Sequence[Prompt], impairment: Impairment | None = None, n_draws: int = 1
    ) -> None:
        self.impairment = impairment or Impairment("zero")
        self.n_draws = n_draws if self.impairment.is_random else 1
        self._scorer = RowScorer(lm, prompts, self.impairment)
        self._key = digest(*(text.encode() for text in (lm.fingerprint, *(prompt.key for prompt in prompts))))
        self._measure: Any = Memory(cache_directory("experiments", "rows"), verbose=0).cache(
            _measure, ignore=["scorer"]
        )

    def values(self, neurons: Sequence[tuple[int, int]] | Cluster) -> FloatArray:
        """``[metric, prompt]`` with these neurons (or columns of another site) impaired; with none, of the untouched model."""
        pairs = neurons.neurons if isinstance(neurons, Cluster) else neurons
        chosen = tuple(sorted((int(layer), int(column)) for layer, column in pairs))
        values: FloatArray = self._measure(self._key, chosen, self.impairment.to_json(), self.n_draws, self._scorer)
        return values

    def drops(self, neurons: Sequence[tuple[int, int]] | Cluster) -> FloatArray:
        """``[metric, prompt]``: by how much each prompt falls, in nats and in accuracy."""
        drops: FloatArray = self.values(()) - self.values(neurons)
        return drops


def _measure(
    key: str, chosen: tuple[tuple[int, int], ...], impairment: str, n_draws: int, scorer: RowScorer
) -> FloatArray:
    n = len(scorer.prompts)
    plan = RowPlan(np.tile(np.arange(n), n_draws), draws=np.repeat(np.arange(n_draws), n))
    values = scorer.values(METRICS, plan, cluster=chosen)
    return values.reshape(len(METRICS), n_draws, n).mean(axis=1)
