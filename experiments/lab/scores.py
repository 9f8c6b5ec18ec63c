"""The Shapley scores that experiments share, in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shapley.estimators.registry import Plan
from shapley.files import cache_directory, digest
from shapley.hf.load import LanguageModel
from shapley.impairment import Impairment
from shapley.merge import merge_scores
from shapley.prompts import TopicPrompts
from shapley.runs import estimate
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
    """The score file of these topics, by a semivalue, with a budget (forward rows a topic) and the coalitions of a seed.

    A topic is estimated once, or gone on with, whichever others it is asked for with.
    """
    kind = f"{lm.name}-{lm.fingerprint[:8]}-{site}-{semivalue}-{budget}-{seed}"
    parts = []
    for topic, prompts in chosen.items():
        part = cache_directory("experiments", "scores", "topics") / f"{kind}-{topic}-{prompts.sha256[:12]}.h5"
        if not part.exists():
            plan = Plan(estimator="two-stage", semivalue=semivalue, budget=budget, seed=seed)
            impairment = Impairment("zero", site=site)
            estimate(lm, {topic: prompts}, part, plan=plan, impairment=impairment, resume=True)
        parts.append(part)
    key = digest(*(part.name.encode() for part in parts))[:12]
    together = cache_directory("experiments", "scores") / f"{kind}-{key}.h5"
    if not together.exists():
        merge_scores(parts, together)
    return together
