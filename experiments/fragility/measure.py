"""How well items go with every neuron impaired, each (model, items, impairment, strength) measured once and kept on disk."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from joblib import Memory

from experiments.fragility.abilities import Item
from shapley.files import cache_directory, digest
from shapley.hf.load import LanguageModel
from shapley.hf.scoring import RowPlan, RowScorer
from shapley.impairment import Impairment
from shapley.types import FloatArray

_METRICS = ("logprob", "accuracy", "loss")


def performances(
    lm: LanguageModel, items: Sequence[Item], impairment: Impairment, strengths: Iterable[float], n_draws: int = 1
) -> Iterator[FloatArray]:
    """For each strength, ``[2, items]`` with every neuron impaired: performance and accuracy, means over draws of noise.

    Performance is the answer's log-probability, nats a token; of a pair, by how much the good continuation's exceeds the bad
    one's, whole. Accuracy is greedy decoding's; of a pair, whether the good one is likelier. Draws are keyed by seed and
    prompt: the same at every strength and for every kind.
    """
    prompts = [item.good for item in items] + [item.bad for item in items if item.bad]
    scorer = RowScorer(lm, prompts, impairment)
    texts = (text for prompt in prompts for text in (prompt.prompt, prompt.answer, prompt.key))
    key = digest(*(text.encode() for text in (lm.fingerprint, *texts)))
    measure: Any = Memory(cache_directory("experiments", "rows"), verbose=0).cache(_measure, ignore=["scorer"])
    paired = np.array([item.bad is not None for item in items])
    for strength in strengths:
        draws = n_draws if impairment.is_random else 1
        logprob, accuracy, total = measure(key, impairment.to_json(), float(strength), draws, scorer)
        performance, right = logprob[:, : len(items)], accuracy[:, : len(items)]
        good, bad = np.split(total, [len(items)], axis=1)
        performance[:, paired] = good[:, paired] - bad
        right[:, paired] = performance[:, paired] > 0
        yield np.stack([performance.mean(axis=0), right.mean(axis=0)])


def _measure(key: str, impairment: str, strength: float, n_draws: int, scorer: RowScorer) -> FloatArray:
    """``[metrics, draws, prompts]``."""
    n = len(scorer.prompts)
    draws = np.repeat(np.arange(n_draws), n)
    plan = RowPlan(np.tile(np.arange(n), n_draws), draws=draws, strength=np.full(len(draws), strength))
    return scorer.values(_METRICS, plan).reshape(len(_METRICS), n_draws, n)
