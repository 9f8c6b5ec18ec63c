"""Hypothesis B, measured: does impairing a topic's cluster hurt that topic and no other? For every selector.

    python -m experiments.specificity.run --model smollm2 --size cpu

Neurons are selected on one set of prompts. What zeroing them does is measured on two others: of other documents and other
keywords, and of other documents and the same keywords. Scores, rankings and rows are kept in the cache; a run that was
stopped goes on.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml

from experiments.lab import models
from experiments.lab.measure import Ward
from experiments.lab.provenance import provenance
from experiments.lab.rankings import ranked
from experiments.lab.scores import SEED, SEMIVALUE, scored
from experiments.lab.texts import Texts, texts
from shapley.clusters import Cluster, select
from shapley.errors import ShapleyError
from shapley.files import cache_directory, write_text
from shapley.hf.load import LanguageModel
from shapley.progress import Progress, say
from shapley.prompts import Prompt, TopicPrompts
from shapley.selectors.base import Evidence
from shapley.selectors.matched import activation_norm, matched_random
from shapley.store import ScoreFile

HERE = Path(__file__).parent
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


@click.command(help=__doc__)
@click.option("--model", type=click.Choice(models.MODELS), default="smollm2", show_default=True)
@click.option("--size", type=click.Choice(["small", "cpu", "full"]), default="small", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="[default: results/MODEL-SIZE.jsonl beside this file]")
@click.option("--device", help="As torch names it. [default: the GPU where there is one]")
def main(model: str, size: str, data: Path, out: Path | None, device: str | None) -> None:
    config = yaml.safe_load((HERE / "config.yaml").read_text())[size]
    out = out or HERE / "results" / f"{model}-{size}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    try:
        lm = models.load(model, device)
        prompts = texts(lm, data, cache_directory("experiments", "texts", model))
        scores = scored(lm, prompts, config)
        records = list(measure(lm, prompts, ScoreFile(scores), config))
    except ShapleyError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    command = f"python -m experiments.specificity.run --model {model} --size {size}"
    head = provenance(lm, prompts, command, {"scores": scores}) | {
        "size": size,
        "config": config,
        "seed": SEED,
        "semivalue": SEMIVALUE,
        "impairment": "zero",
        "seconds": round(time.monotonic() - start),
        "watched": {setting: topics_of(watched(prompts, setting, config)) for setting in SETTINGS},
        "null_watched": {topic: topics_of(few_watched(prompts, topic, config)) for topic in config["topics"]},
    }
    write_text(out, "".join(json.dumps(line) + "\n" for line in [head, *records]))
    say(f"{len(records)} clusters measured: {out}")


def measure(
    lm: LanguageModel, prompts: Texts, scores: ScoreFile, config: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """A record for every cluster."""
    chosen = {topic: prompts.selection[topic] for topic in config["topics"]}
    evidence = Evidence(scores, lm, chosen, seed=SEED)
    tasks = list(plan(lm, evidence, config))
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
    for name in config["selectors"]:
        fractions = [config["primary"], *(config["fractions"] if name in config["sized"] else ())]
        for topic in config["topics"]:
            others = [other for other in config["topics"] if other != topic]
            for fraction in fractions:
                k = max(1, round(fraction * n))
                ranking, guard = ranked(lm, evidence, config, name, topic, others, k)
                neurons = select(ranking, top_k=k)
                primary = fraction == config["primary"]
                for setting in SETTINGS if primary and name in config["same"] else SETTINGS[:1]:
                    yield Task(name, topic, fraction, setting, 0, neurons, guard)
                if primary and name in config["random_for"]:
                    yield Task(name, topic, fraction, "null", 0, neurons, guard)
                    for draw in range(1, config["null_draws"] + 1):
                        matched = matched_random(Cluster(neurons), norm, SEED, draw)
                        yield Task(name, topic, fraction, "null", draw, matched.neurons, guard)


def watched(prompts: Texts, setting: str, config: Mapping[str, Any]) -> list[Prompt]:
    """The prompts that every cluster is measured on: some of each topic, and plain text."""
    by_topic: Mapping[str, TopicPrompts] = getattr(prompts, setting)
    own = [prompt for topic in config["topics"] for prompt in by_topic[topic].first(config["watched"]).prompts]
    return [*own, *prompts.plain.first(config["plain"]).prompts]


def few_watched(prompts: Texts, topic: str, config: Mapping[str, Any]) -> list[Prompt]:
    """Of these, the topic's own and as many of the other topics, dealt out in turn: what its random clusters are measured
    on, since there are many of them."""
    watch = config["watched"]
    by_topic = {name: prompts.other_keywords[name].first(watch).prompts for name in config["topics"]}
    others = [own for name, own in by_topic.items() if name != topic]
    in_turn = [own[i] for i in range(watch) for own in others if i < len(own)]
    return [*by_topic[topic], *in_turn[:watch]]


def topics_of(prompts: Sequence[Prompt]) -> list[str]:
    return [prompt.topic for prompt in prompts]


if __name__ == "__main__":
    main()
