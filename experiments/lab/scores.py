"""The Shapley scores that experiments share, in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shapley.estimators.registry import Plan
from shapley.files import cache_directory
from shapley.hf.load import LanguageModel
from shapley.prompts import TopicPrompts
from shapley.runs import estimate
from shapley.store import ScoreFile

SEMIVALUE = "beta(1,16)"
SEED = 0


def scored(lm: LanguageModel, chosen: Mapping[str, TopicPrompts], budget: int, semivalue: str = SEMIVALUE) -> Path:
    """The score file of a semivalue and a budget (forward rows a topic): the topics' scores are estimated, or gone on with,
    where it does not hold them."""
    path = cache_directory("experiments", "scores") / f"{lm.name}-{lm.fingerprint[:8]}-{semivalue}-{budget}.h5"
    if not (path.exists() and set(chosen) <= set(ScoreFile(path).topics)):
        plan = Plan(estimator="two-stage", semivalue=semivalue, budget=budget, seed=SEED)
        estimate(lm, chosen, path, plan=plan, resume=path.exists())
    return path
