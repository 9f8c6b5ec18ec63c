"""Two models that do every item of a test: does `shapley compare` tell them apart?

    python -m experiments.ceiling.run --size cpu

Items are lists to copy and keywords of the topics, those that all of the models get right untouched: accuracy 1 for each of
them. What was swept is kept in the cache.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import yaml

from experiments.fragility.abilities import copying
from experiments.lab import models
from experiments.lab.commands import mistakes
from experiments.lab.measure import answered
from experiments.lab.provenance import provenance
from experiments.lab.results import store
from experiments.lab.texts import Texts, texts
from shapley.files import cache_directory, digest
from shapley.hf.load import LanguageModel
from shapley.progress import say
from shapley.prompts import Prompt, write_prompts

HERE = Path(__file__).parent
KEYWORDS = "keywords"  # of all topics, as a task
SITES = {"noise": "mlp_hidden", "scale": "mlp_out"}  # a norm after Gemma's MLP would undo a scaling of all neurons


@click.command(help=__doc__)
@click.option("--size", type=click.Choice(["small", "cpu"]), default="small", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="[default: results/both-SIZE.jsonl beside this file]")
def main(size: str, data: Path, out: Path | None) -> None:
    config = yaml.safe_load((HERE / "config.yaml").read_text())[size]
    out = out or HERE / "results" / f"both-{size}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with mistakes():
        lms = [models.load(name) for name in models.MODELS]
        found = [texts(lm, data) for lm in lms]
        items = at_the_ceiling(lms, found, config)
        records = list(compared(items, config))
        heads = [
            provenance(lm, prompts, f"python -m experiments.ceiling.run --size {size}", {})
            for lm, prompts in zip(lms, found, strict=True)
        ]
        head = heads[0] | {
            "model": [own["model"] for own in heads],
            "prompts": [own["prompts"] for own in heads],
            "size": size,
            "config": config,
            "items": {task: len(own) for task, own in items.items()},
            "seconds": round(time.monotonic() - start),
            "seed": 0,
        }
        store(out, head, records)
    say(f"{len(records)} comparisons: {out}")


def at_the_ceiling(
    lms: Sequence[LanguageModel], found: Sequence[Texts], config: Mapping[str, Any]
) -> dict[str, list[Prompt]]:
    """By task, items that all models get right."""
    lists = [item.good for item in copying(config["candidates"])]
    by_model = zip(*(answered(lm, lists) for lm in lms), strict=True)
    copied = [prompt for prompt, right in zip(lists, by_model, strict=True) if all(right)]
    return {"copying": copied[: config["items"]], KEYWORDS: keywords(found)[: config["items"]]}


def keywords(found: Sequence[Texts]) -> list[Prompt]:
    """Prompts of the topics that every model's own texts have as known, as prompts of one task."""
    known = [{prompt.key: prompt for prompt in _known(prompts)} for prompts in found]
    shared = [prompt for key, prompt in known[0].items() if all(key in other for other in known[1:])]
    return [replace(prompt, topic=KEYWORDS, logprob=None, known=None) for prompt in shared]


def _known(prompts: Texts) -> Iterator[Prompt]:
    for by_topic in (prompts.selection, prompts.other_keywords, prompts.same_keywords):
        for topic in by_topic.values():
            yield from topic.known_only().prompts


def compared(items: Mapping[str, Sequence[Prompt]], config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """For every kind of impairment, what `shapley compare` records."""
    every = [prompt for own in items.values() for prompt in own]
    for kind, strengths in config["kinds"].items():
        key = digest(
            json.dumps([kind, SITES[kind], strengths, config["seeds"]]).encode(),
            *(prompt.key.encode() for prompt in every),
        )
        folder = cache_directory("experiments", "ceiling", key[:12])
        prompts = folder / "prompts.jsonl"
        write_prompts(prompts, every)
        command = [
            sys.executable, "-m", "shapley", "compare", *map(models.source, models.MODELS), "--prompts", str(prompts),
            "--impairment", kind, "--site", SITES[kind], "--strength", ",".join(map(str, strengths)),
            "--seeds", str(config["seeds"]),
            "--out", str(folder / "compared"), "--resume", "--json",
        ]  # fmt: skip
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        yield {"kind": kind, "compared": json.loads(done.stdout)}


if __name__ == "__main__":
    main()
