"""Hypothesis B, measured: does impairing a topic's cluster hurt that topic and no other? For every selector.

    python -m experiments.specificity.run --model smollm2 --size cpu

Neurons are selected on one set of prompts. What zeroing them does is measured on two others: of other documents and other
keywords, and of other documents and the same keywords. Scores, rankings and rows are kept in the cache; a run that was
stopped goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab.commands import Measured, run_command
from experiments.lab.measure import Ward
from experiments.lab.rankings import ranked
from experiments.lab.scores import SEED, SEMIVALUE, scored
from experiments.lab.texts import Texts
from shapley.clusters import Cluster, select
from shapley.hf.load import LanguageModel
from shapley.progress import Progress
from shapley.prompts import Prompt, TopicPrompts
from shapley.selectors.base import Evidence
from shapley.selectors.matched import activation_norm, matched_random
from shapley.store import ScoreFile

SETTINGS = ("other_keywords", "same_keywords")


@dataclass(frozen=True)
class Task:
    """A cluster to be measured: ``draw`` is 0 for the selector's own, 1 and on for the random ones matched to it."""

    selector: str
    topic: str
    fraction: float
    setting: str
    draw: int
    neurons: tuple[tuple[int, int], ...]
    guard: float | None


def work(lm: LanguageModel, prompts: Texts, config: Mapping[str, Any], data: Path) -> Measured:
    """All of it."""
    scores = scored(lm, {topic: prompts.selection[topic] for topic in config["topics"]}, config["budget"])
    head = {
        "seed": SEED,
        "semivalue": SEMIVALUE,
        "impairment": "zero",
        "watched": {setting: topics_of(watched(prompts, setting, config)) for setting in SETTINGS},
        "null_watched": {topic: topics_of(few_watched(prompts, topic, config)) for topic in config["topics"]},
    }
    return Measured(list(measure(lm, prompts, ScoreFile(scores), config)), head, {"scores": scores})


def measure(
    lm: LanguageModel, prompts: Texts, scores: ScoreFile, config: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """A record for every cluster."""
    chosen = {topic: prompts.selection[topic] for topic in config["topics"]}
    evidence = Evidence(scores, lm, chosen, seed=SEED)
    tasks = sorted(plan(lm, evidence, config), key=lambda task: task.draw)  # random clusters last
    wards = {setting: Ward(lm, watched(prompts, setting, config)) for setting in SETTINGS}
    wards |= {topic: Ward(lm, few_watched(prompts, topic, config)) for topic in config["topics"]}
    progress = Progress(len(tasks), f"specificity of {lm.name}", "clusters")
    for done, task in enumerate(tasks):
        progress.reach(done)
        drops, accuracy = wards[task.topic if task.setting == "null" else task.setting].drops(task.neurons)
        layers = np.bincount([layer for layer, _ in task.neurons], minlength=lm.sites.n_layers)
        yield {
            "selector": task.selector,
            "topic": task.topic,
            "fraction": task.fraction,
            "setting": task.setting,
            "draw": task.draw,
            "neurons": len(task.neurons),
            "guard": task.guard,
            "layers": layers.tolist() if task.draw == 0 else None,
            "drop": np.round(drops, 4).tolist(),
            "accuracy_drop": np.round(accuracy, 4).tolist() if task.draw == 0 else None,
        }
    progress.reach(len(tasks))
    progress.close()


def plan(lm: LanguageModel, evidence: Evidence, config: Mapping[str, Any]) -> Iterator[Task]:
    """The clusters to measure, the primary ones first."""
    norm = activation_norm(lm)
    n = lm.sites.n_layers * lm.sites.d_mlp
    choices = [
        (name, topic, fraction)
        for name in config["selectors"]
        for topic in config["topics"]
        for fraction in (config["primary"], *config["sizes"].get(name, ()))
    ]
    progress = Progress(len(choices), f"selecting in {lm.name}", "clusters")
    for done, (name, topic, fraction) in enumerate(choices):
        progress.reach(done)
        k = max(1, round(fraction * n))
        others = [other for other in config["topics"] if other != topic]
        ranking, guard = ranked(lm, evidence, config, name, topic, others, k)
        neurons = select(ranking, top_k=k)
        primary = fraction == config["primary"]
        for setting in SETTINGS if fraction in config["same"].get(name, ()) else SETTINGS[:1]:
            yield Task(name, topic, fraction, setting, 0, neurons, guard)
        if primary and name in config["null_draws"]:
            yield Task(name, topic, fraction, "null", 0, neurons, guard)
            for draw in range(1, config["null_draws"][name] + 1):
                matched = matched_random(Cluster(neurons), norm, SEED, draw)
                yield Task(name, topic, fraction, "null", draw, matched.neurons, guard)
    progress.reach(len(choices))
    progress.close()


def watched(prompts: Texts, setting: str, config: Mapping[str, Any]) -> list[Prompt]:
    """The prompts that every cluster is measured on: some of each topic, and plain text."""
    by_topic: Mapping[str, TopicPrompts] = getattr(prompts, setting)
    own = [prompt for topic in config["topics"] for prompt in by_topic[topic].first(config["watched"]).prompts]
    return [*own, *prompts.plain.first(config["plain"]).prompts]


def few_watched(prompts: Texts, topic: str, config: Mapping[str, Any]) -> list[Prompt]:
    """Of these, the topic's own, and ``null_watched`` of the other topics (one of each at least), dealt out in turn, from
    another prompt on for each topic: what its random clusters are measured on, since there are many of them."""
    watch = config["null_watched"]
    by_topic = {name: prompts.other_keywords[name].first(watch).prompts for name in config["topics"]}
    first = config["topics"].index(topic)
    others = [own for name, own in by_topic.items() if name != topic]
    in_turn = [own[(first + i) % len(own)] for i in range(watch) for own in others]
    return [*by_topic[topic], *in_turn[: max(watch, len(others))]]


def topics_of(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.topic for prompt in prompts]


main = run_command(__file__, __doc__, work)

if __name__ == "__main__":
    main()
