"""What the unimpaired model makes of prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shapley.hf.load import LanguageModel
from shapley.hf.scoring import RowPlan, RowScorer
from shapley.impairment import Impairment
from shapley.prompts import Prompt


def score_baseline(lm: LanguageModel, prompts: Sequence[Prompt], memory: int | None = None) -> list[Prompt]:
    """The prompts with the unimpaired model's log-probability, and whether it answers them right."""
    scorer = RowScorer(lm, prompts, Impairment("zero"), memory=memory)
    logprob, right = scorer.values(["logprob", "accuracy"], RowPlan(np.arange(len(prompts))), cluster=())
    return [
        replace(prompt, logprob=round(float(value), 4), known=bool(hit))
        for prompt, value, hit in zip(prompts, logprob, right, strict=True)
    ]
