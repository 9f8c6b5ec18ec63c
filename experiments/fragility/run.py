"""How each ability falls with general impairment, measured: every neuron is impaired, by degrees. Which ability goes first?

    python -m experiments.fragility.run --model smollm2 --size cpu

Abilities are the topics, plain text, copying, arithmetic and grammar (`abilities.py`). What is kept in the cache is not
measured again; a run that was stopped goes on.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml

from experiments.fragility.abilities import Item
from experiments.fragility.choose import choose
from experiments.fragility.measure import performances
from experiments.lab import models
from experiments.lab.provenance import provenance
from experiments.lab.texts import texts
from shapley.errors import ShapleyError
from shapley.files import cache_directory, digest, write_text
from shapley.hf.load import LanguageModel
from shapley.impairment import NOISE_KINDS, Impairment
from shapley.progress import Progress, say
from shapley.types import FloatArray

HERE = Path(__file__).parent
SEED = 0
UNTOUCHED, FLOOR = "untouched", "floor"


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
        items, abilities = choose(lm, prompts, config)
        records = list(measure(lm, items, config))
    except ShapleyError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    command = f"python -m experiments.fragility.run --model {model} --size {size}"
    head = provenance(lm, prompts, command, {}) | {
        "size": size,
        "vocabulary": lm.model.get_output_embeddings().weight.shape[0],
        "seconds": round(time.monotonic() - start),
        **facts(items, abilities, config),
    }
    write_text(out, "".join(json.dumps(line) + "\n" for line in [head, *records]))
    say(f"{len(records)} impairments measured: {out}")


def facts(items: Sequence[Item], abilities: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """What the numbers depend on, for the head of a result file."""
    prompts = [prompt for item in items for prompt in (item.good, item.bad) if prompt]
    return {
        "config": config,
        "seed": SEED,
        "site": Impairment().site,
        "abilities": abilities,
        "watched": [item.ability for item in items],
        "items": digest(*(text.encode() for prompt in prompts for text in (prompt.prompt, prompt.answer)))[:16],
    }


def measure(lm: LanguageModel, items: Sequence[Item], config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A record for every impairment: of the untouched model, of the floor (every neuron at zero), and of every kind at every
    strength, with each item's performance and accuracy."""
    progress = Progress(2 + sum(map(len, config["strengths"].values())), f"fragility of {lm.name}", "impairments")
    for done, (kind, strength, values) in enumerate(_measured(lm, items, config), start=1):
        performance, accuracy = np.round(values, 4).tolist()
        yield {"kind": kind, "strength": strength, "performance": performance, "accuracy": accuracy}
        progress.reach(done)
    progress.close()


def _measured(
    lm: LanguageModel, items: Sequence[Item], config: Mapping[str, Any]
) -> Iterator[tuple[str, float, FloatArray]]:
    """Kind, strength, and ``[2, items]``."""
    ends = performances(lm, items, Impairment("scale", seed=SEED), [0.0, 1.0])
    yield from zip((UNTOUCHED, FLOOR), (0.0, 1.0), ends, strict=True)
    for kind, strengths in config["strengths"].items():
        impairment = Impairment(kind, unit="sd" if kind in NOISE_KINDS else "absolute", seed=SEED)
        found = performances(lm, items, impairment, strengths, config["draws"])
        yield from zip([kind] * len(strengths), strengths, found, strict=True)


if __name__ == "__main__":
    main()
