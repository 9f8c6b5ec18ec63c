"""The Shapley scores that experiments share, in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shapley.estimators.registry import Plan
from shapley.files import cache_directory, digest
from shapley.hf.load import LanguageModel
from shapley.impairment import Impairment
from shapley.prompts import TopicPrompts
from shapley.runs import estimate
from shapley.store import ScoreFile
from shapley.types import Site

SEMIVALUE = "beta(1,16)"
SEED = 0


def scored(
    lm: LanguageModel,
    chosen: Mapping[str, TopicPrompts],
    budget: int,
    semivalue: str = SEMIVALUE,
    *,
    site: Site = "mlp_hidden",
    seed: int = SEED,
) -> Path:
    """The score file of a semivalue, a budget (forward rows a topic) and the coalitions of a seed: the topics' scores are
    estimated, or gone on with, where it does not hold them."""
    key = digest(*(prompts.sha256.encode() for prompts in chosen.values()), str(seed).encode())[:12]
    name = f"{lm.name}-{lm.fingerprint[:8]}-{site}-{semivalue}-{budget}-{key}.h5"
    path = cache_directory("experiments", "scores") / name
    if not (path.exists() and set(chosen) <= set(ScoreFile(path).topics)):
        plan = Plan(estimator="two-stage", semivalue=semivalue, budget=budget, seed=seed)
        estimate(lm, chosen, path, plan=plan, impairment=Impairment("zero", site=site), resume=True)
    return path
