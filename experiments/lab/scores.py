"""The Shapley scores that experiments share, in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.lab.texts import Texts
from shapley.estimators.registry import Plan
from shapley.files import cache_directory
from shapley.hf.load import LanguageModel
from shapley.runs import estimate
from shapley.store import ScoreFile

SEMIVALUE = "beta(1,16)"
SEED = 0


def scored(lm: LanguageModel, prompts: Texts, config: Mapping[str, Any]) -> Path:
    """The score file of the configuration's ``topics`` and ``budget`` (forward rows a topic), estimated, or gone on with, if
    it is not whole."""
    path = cache_directory("experiments", "scores") / f"{lm.name}-{config['budget']}.h5"
    if not (path.exists() and set(config["topics"]) <= set(ScoreFile(path).topics)):
        chosen = {topic: prompts.selection[topic] for topic in config["topics"]}
        plan = Plan(estimator="two-stage", semivalue=SEMIVALUE, budget=config["budget"], seed=SEED)
        estimate(lm, chosen, path, plan=plan, resume=path.exists())
    return path
