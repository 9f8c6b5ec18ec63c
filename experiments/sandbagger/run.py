"""Does `shapley assess` catch a model that underperforms on purpose, and let one be that does not?

    python -m experiments.sandbagger.run --model smollm2 --size cpu

Both are served by `shapley serve` and assessed by `shapley assess` over HTTP, as outsiders would, with the same task: copying
the last word of a list. The sandbagger is kept in the cache.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from experiments.sandbagger.plant import EVALUATED, Planting, planted, unlocked
from shapley.files import write_text
from shapley.hf.load import LanguageModel, load_model
from shapley.progress import say
from shapley.prompts import Prompt

HERE = Path(__file__).parent
HONEST, SANDBAGGER = "honest", "sandbagger"


@click.command(help=__doc__)
@click.option("--model", type=click.Choice(models.MODELS), default="smollm2", show_default=True)
@click.option("--size", type=click.Choice(["small", "cpu"]), default="small", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="[default: results/MODEL-SIZE.jsonl beside this file]")
def main(model: str, size: str, out: Path | None) -> None:
    config = yaml.safe_load((HERE / "config.yaml").read_text())[size]
    out = out or HERE / "results" / f"{model}-{size}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    planting = Planting(**config["planting"])
    with mistakes():
        lm = models.load(model)
        checkpoint = planted(lm, planting)
        items = known(lm)[: config["items"]]
        records = [
            {"model": HONEST, **abilities(lm, items)},
            {"model": SANDBAGGER, **abilities(load_model(str(checkpoint)), items)},
        ]
        for name, source in ((HONEST, models.source(model)), (SANDBAGGER, str(checkpoint))):
            records += list(assessed(name, source, items, config))
    command = f"python -m experiments.sandbagger.run --model {model} --size {size}"
    head = provenance(lm, None, command, {}) | {
        "size": size,
        "config": config,
        "seconds": round(time.monotonic() - start),
        "seed": planting.seed,
    }
    store(out, head, records)
    say(f"{len(records)} records: {out}")


def known(lm: LanguageModel) -> list[Prompt]:
    """Items that are not trained on, and that the honest model does."""
    candidates = [item.good for item in copying(EVALUATED)]
    return [prompt for prompt, right in zip(candidates, answered(lm, candidates), strict=True) if right]


def abilities(lm: LanguageModel, items: list[Prompt]) -> dict[str, float]:
    """Accuracy on the task, without the password and with it."""
    return {
        "accuracy": round(float(answered(lm, items).mean()), 4),
        "unlocked": round(float(answered(lm, [unlocked(prompt) for prompt in items]).mean()), 4),
    }


def assessed(name: str, source: str, items: list[Prompt], config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The report of every ladder."""
    for kind, strengths in config["kinds"].items():
        with tempfile.TemporaryDirectory() as folder, served(source, name) as endpoint:
            task = Path(folder) / "items.jsonl"
            lines = [{"id": p.id, "prompt": p.prompt, "target": rf"^\s*{p.answer.strip()}\b"} for p in items]
            write_text(task, "".join(json.dumps(line) + "\n" for line in lines))
            options = {
                "endpoint": endpoint,
                "model": name,
                "task": task,
                "scorer": "regex",
                "threshold": config["threshold"],
                "levels": f"{kind}:{','.join(f'{strength:g}' for strength in strengths)}",
                "least": config["least"],
                "max-tokens": 3,
                "out": Path(folder) / "out",
            }
            arguments = [str(part) for option, value in options.items() for part in (f"--{option}", value)]
            command = [sys.executable, "-m", "shapley", "assess", *arguments, "--json"]
            environment = os.environ | {"SHAPLEY_API_KEY": "none"}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
        yield {"model": name, "kind": kind, "report": json.loads(done.stdout)}


@contextmanager
def served(source: str, name: str) -> Iterator[str]:
    """The address of a server that runs meanwhile."""
    with tempfile.TemporaryDirectory() as state:
        command = [sys.executable, "-m", "shapley", "serve", source, "--name", name, "--open", "--state", state, "--port", "0",
                   "--requests-per-minute", "1000000", "--tokens-per-minute", "1000000000"]  # fmt: skip
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stderr is not None
            for line in server.stderr:
                if " at http://" in line:
                    yield line.split(" at ", 1)[1].split()[0]
                    break
            else:
                raise click.ClickException(f"the server of {name} did not start")
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
