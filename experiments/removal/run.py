"""Neuron Shapley's headline figure, for a language model: accuracy as the top neurons are removed; and repair: which to remove
to make continuations less toxic, and what that costs.

    python -m experiments.removal.run --model smollm2 --size cpu

Neurons are ranked for each topic, or in general: by the mean of the topics' scores. Removed is zeroed. What is kept in the
cache is not measured again, but for continuations, which are sampled anew, with the same draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab.commands import Measured, run_command
from experiments.lab.measure import Ward
from experiments.lab.rankings import ranked
from experiments.lab.scores import SEED, SEMIVALUE, scored
from experiments.lab.texts import Texts, comments
from experiments.lab.toxicity import judged
from experiments.removal.continuations import continuations
from shapley.clusters import Ranking, select
from shapley.hf.load import LanguageModel
from shapley.progress import Progress, say
from shapley.prompts import Prompt
from shapley.selectors.base import Evidence
from shapley.store import ScoreFile

GENERAL = "general"


def work(lm: LanguageModel, prompts: Texts, config: Mapping[str, Any], data: Path) -> Measured:
    """All of it."""
    chosen = {topic: prompts.selection[topic] for topic in config["topics"]}
    scores = scored(lm, chosen, config["budget"])
    evidence = Evidence(ScoreFile(scores), lm, chosen, seed=SEED)
    records = list(removed(lm, evidence, prompts, config))
    if config["repair"]:
        records += repaired(lm, evidence, prompts, comments(data), config)
    head = {
        "seed": SEED,
        "semivalue": SEMIVALUE,
        "watched": [prompt.topic for prompt in watched(prompts, config)],
    }
    return Measured(records, head, {"scores": scores})


def removed(
    lm: LanguageModel, evidence: Evidence, prompts: Texts, config: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """A record for every selector, scope (a topic, or general) and number of neurons: each watched prompt's log-probability
    and accuracy."""
    ward = Ward(lm, [*watched(prompts, config)])
    topics: Sequence[str] = config["topics"]
    tasks = [(name, scope) for name in config["selectors"] for scope in (GENERAL, *topics)]
    progress = Progress(len(tasks) * len(config["counts"]), f"removal from {lm.name}", "clusters")
    yield _record("none", GENERAL, 0, ward.values(()))
    for done, (name, scope) in enumerate(tasks):
        ranking = ranking_of(lm, evidence, config, name, scope)
        for i, count in enumerate(config["counts"]):
            progress.reach(done * len(config["counts"]) + i)
            yield _record(name, scope, count, ward.values(select(ranking, top_k=count)))
    progress.close()


def ranking_of(lm: LanguageModel, evidence: Evidence, config: Mapping[str, Any], name: str, scope: str) -> Ranking:
    """A topic's ranking; for the general one, the mean of the topics'."""
    topics: Sequence[str] = config["topics"]
    found = [
        ranked(lm, evidence, config, name, topic, [o for o in topics if o != topic], max(config["counts"]))[0]
        for topic in (topics if scope == GENERAL else [scope])
    ]
    return Ranking(np.mean([ranking.score for ranking in found], axis=0), found[0].stderr)


def watched(prompts: Texts, config: Mapping[str, Any]) -> list[Prompt]:
    """Known prompts of every topic, and plain text."""
    own = [
        prompt
        for topic in config["topics"]
        for prompt in prompts.other_keywords[topic].known_only().first(config["watched"]).prompts
    ]
    return [*own, *prompts.plain.first(config["plain"]).prompts]


def repaired(
    lm: LanguageModel,
    evidence: Evidence,
    prompts: Texts,
    by_topic: Mapping[str, Sequence[str]],
    config: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """A record for every selector and number of neurons: how toxic each continuation is, and plain text's log-probability. The
    classifier learns from half of the comments; beginnings are of the other half."""
    repair = config["repair"]
    found = judged(by_topic)
    beginnings = found.beginnings["toxic"][: repair["beginnings"]]
    ward = Ward(lm, prompts.plain.first(config["plain"]).prompts)

    def record(name: str, neurons: Sequence[tuple[int, int]]) -> dict[str, Any]:
        toxicity = [
            [found.judge(text) for text in continuations(lm, beginnings, neurons, SEED + sample)]
            for sample in range(repair["samples"])
        ]
        return {
            "repair": name,
            "count": len(neurons),
            "toxicity": np.round(np.mean(toxicity, axis=0), 4).tolist(),
            "plain": np.round(ward.values(neurons)[0], 4).tolist(),
            "auc": found.auc,
        }

    yield record("none", ())
    for name in repair["selectors"]:
        ranking = ranking_of(lm, evidence, config, name, "toxic")
        for count in repair["counts"]:
            say(f"repair of {lm.name}: {count} neurons by {name}")
            yield record(name, select(ranking, top_k=count))


def _record(name: str, scope: str, count: int, values: np.ndarray) -> dict[str, Any]:
    logprob, accuracy = values
    return {
        "selector": name,
        "scope": scope,
        "count": count,
        "logprob": np.round(logprob, 4).tolist(),
        "accuracy": np.round(accuracy, 3).tolist(),
    }


main = run_command(__file__, __doc__, work)

if __name__ == "__main__":
    main()
