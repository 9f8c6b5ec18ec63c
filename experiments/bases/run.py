"""Are neurons the right players? Scores and clusters of directions of other bases of the same activations, beside the neurons'.

    python -m experiments.bases.run --model smollm2 --size cpu

The model computes the same in every basis. Two estimates of the scores are made: by one players are ranked, of the
other their shares are summed, so that the noise of the scores does not look like concentration. Clusters are by the guarded
contrast of the first. Scores, rankings, rows and the learned basis are kept in the cache; a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.bases.concentration import concentration
from experiments.lab.commands import Measured, run_command
from experiments.lab.measure import Ward
from experiments.lab.models import source
from experiments.lab.rankings import ranked
from experiments.lab.scores import SEED, SEMIVALUE
from experiments.lab.texts import Texts
from shapley.clusters import select
from shapley.estimators.registry import Plan
from shapley.files import cache_directory, digest
from shapley.hf.learned import learn
from shapley.hf.load import LanguageModel, load_model
from shapley.progress import say
from shapley.prompts import Prompt, TopicPrompts
from shapley.runs import estimate
from shapley.selectors.base import Evidence
from shapley.store import ScoreFile

IDENTITY, RANDOM, PCA, LEARNED = BASES = ("identity", "random", "pca", "learned")
CONCENTRATION, CLUSTER = "concentration", "cluster"
_SELECTOR = "guarded"


def work(lm: LanguageModel, prompts: Texts, config: Mapping[str, Any], data: Path) -> Measured:
    """All of it."""
    chosen = {topic: prompts.selection[topic].first(config["selection"]) for topic in config["topics"]}
    watched = watched_of(prompts, config)
    records: list[dict[str, Any]] = []
    files: dict[str, Path] = {}
    for basis, seed in [(IDENTITY, 0), *((RANDOM, seed) for seed in range(config["seeds"])), (PCA, 0), (LEARNED, 0)]:
        say(f"{lm.name}: the basis {basis} {seed}")
        turned = in_basis(lm, basis, seed, config["steps"])
        scores = [scored(turned, chosen, config["budget"], own) for own in (SEED, SEED + 1)]
        files |= {f"scores {own} of {basis} {seed}": path for own, path in enumerate(scores)}
        found = (
            *concentrations(*map(ScoreFile, scores), chosen),
            *clusters(turned, scores[0], chosen, watched, config),
        )
        records += [{"basis": basis, "seed": seed, **record} for record in found]
    head = {"seed": SEED, "semivalue": SEMIVALUE, "watched": [prompt.topic for prompt in watched]}
    return Measured(records, head, files)


def in_basis(lm: LanguageModel, basis: str, seed: int, steps: int) -> LanguageModel:
    """The model with directions for players, under a name of its own."""
    if basis == IDENTITY:
        return lm
    named = f"{basis}:{seed}" if basis == RANDOM else basis
    if basis == LEARNED:
        named = str(learned(lm, steps))
    turned = load_model(f"{source(lm.name)}@{named}", device=str(lm.device))
    turned.name = f"{lm.name}@{basis}-{steps if basis == LEARNED else seed}"
    return turned


def learned(lm: LanguageModel, steps: int) -> Path:
    """The file of the learned basis, in the cache."""
    path = cache_directory("experiments", "bases") / f"{lm.name}-{lm.fingerprint[:12]}-{steps}.safetensors"
    if not path.exists():
        learn(lm, path, steps, SEED)
    return path


def scored(lm: LanguageModel, chosen: Mapping[str, TopicPrompts], budget: int, seed: int) -> Path:
    """The score file of a budget (forward rows a topic) and of the coalitions of a seed, in the cache."""
    key = digest(*(prompts.sha256.encode() for prompts in chosen.values()), str(seed).encode())[:12]
    path = cache_directory("experiments", "scores") / f"{lm.name}-{lm.fingerprint[:8]}-{SEMIVALUE}-{budget}-{key}.h5"
    if not (path.exists() and set(chosen) <= set(ScoreFile(path).topics)):
        plan = Plan(estimator="two-stage", semivalue=SEMIVALUE, budget=budget, seed=seed)
        estimate(lm, chosen, path, plan=plan, resume=path.exists())
    return path


def concentrations(one: ScoreFile, other: ScoreFile, chosen: Mapping[str, TopicPrompts]) -> Iterator[dict[str, Any]]:
    """A record a topic."""
    for topic in chosen:
        yield {
            "what": CONCENTRATION,
            "topic": topic,
            **concentration(one[topic].score.ravel(), other[topic].score.ravel()),
        }


def clusters(
    lm: LanguageModel,
    scores: Path,
    chosen: Mapping[str, TopicPrompts],
    watched: list[Prompt],
    config: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """A record for every topic's cluster of every size: by how much each watched prompt falls when it is zeroed."""
    evidence = Evidence(ScoreFile(scores), lm, dict(chosen), seed=SEED)
    ward = Ward(lm, watched)
    for fraction in config["fractions"]:
        k = max(1, round(fraction * lm.sites.n_layers * lm.sites.d_mlp))
        for topic in config["topics"]:
            others = [other for other in config["topics"] if other != topic]
            ranking, guard = ranked(lm, evidence, config, _SELECTOR, topic, others, k)
            drop, _ = ward.drops(select(ranking, top_k=k))
            yield {
                "what": CLUSTER,
                "topic": topic,
                "fraction": fraction,
                "players": k,
                "guard": guard,
                "drop": np.round(drop, 4).tolist(),
            }


def watched_of(prompts: Texts, config: Mapping[str, Any]) -> list[Prompt]:
    """Some held-out prompts of each topic, of other keywords than selected on, and plain text."""
    own = [p for topic in config["topics"] for p in prompts.other_keywords[topic].first(config["watched"]).prompts]
    return [*own, *prompts.plain.first(config["plain"]).prompts]


main = run_command(__file__, __doc__, work)

if __name__ == "__main__":
    main()
