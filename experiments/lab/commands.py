"""What the experiments' command lines have in common: ``run`` measures and stores, ``draw`` makes figures and tables of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import yaml

from experiments.lab import models
from experiments.lab.provenance import provenance
from experiments.lab.results import Stored, store
from experiments.lab.tables import show
from experiments.lab.texts import PER_TOPIC, Texts, texts
from shapley.errors import ShapleyError
from shapley.hf.load import LanguageModel
from shapley.progress import say


def _model(names: Sequence[str]) -> Callable[[click.decorators.FC], click.decorators.FC]:
    return click.option("--model", type=click.Choice(names), default=names[0], show_default=True)


_SIZE = click.option("--size", type=click.Choice(["small", "cpu", "full"]), default="small", show_default=True)


@dataclass(frozen=True)
class Measured:
    """What an experiment found.

    Attributes:
        records: to be stored.
        head: what its numbers depend on, beside the configuration and what all experiments say.
        files: that it read, by what they are.
    """

    records: list[dict[str, Any]]
    head: dict[str, Any]
    files: dict[str, Path] = field(default_factory=dict)


Measure = Callable[[LanguageModel, Texts, Mapping[str, Any], Path], Measured]


def run_command(file: str, doc: str | None, measure: Measure) -> click.Command:
    """``python -m experiments.NAME.run``.

    Args:
        file: the module's; ``config.yaml`` is beside it, and results go into ``results/``.
        doc: its help.
        measure: of a model, its prompts, the configuration of a size, and the folder with the data.
    """
    here = Path(file).parent

    @click.command(help=doc)
    @_model(models.MODELS)
    @_SIZE
    @click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
    @click.option("--out", type=click.Path(path_type=Path), help="[default: results/MODEL-SIZE.jsonl beside this file]")
    @click.option("--device", help="As torch names it. [default: the GPU where there is one]")
    def main(model: str, size: str, data: Path, out: Path | None, device: str | None) -> None:
        config = yaml.safe_load((here / "config.yaml").read_text())[size]
        out = out or here / "results" / f"{model}-{size}.jsonl"
        out.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with mistakes():
            lm = models.load(model, device)
            prompts = texts(lm, data, config.get("per_topic", PER_TOPIC))
            found = measure(lm, prompts, config, data)
            command = f"python -m experiments.{here.name}.run --model {model} --size {size}"
            head = provenance(lm, prompts, command, found.files) | {
                "size": size,
                "config": config,
                "seconds": round(time.monotonic() - start),
                **found.head,
            }
            store(out, head, found.records)
        say(f"{len(found.records)} records: {out}")

    return main


def draw_command(
    file: str,
    doc: str | None,
    read: Callable[[Path], Stored],
    draw: Callable[[Any, Path, Path, str], None],
    tables: Callable[[Any], str],
    names: Sequence[str] = models.MODELS,
) -> click.Command:
    """``python -m experiments.NAME.draw``.

    Args:
        file: the module's.
        doc: its help.
        read: the results of a stored file.
        draw: figures of results, their file, into a folder, under a name.
        tables: of results, for the README.
        names: what `--model` may be.
    """
    here = Path(file).parent

    @click.command(help=doc)
    @_model(names)
    @_SIZE
    def main(model: str, size: str) -> None:
        name = f"{model}-{size}"
        source = here / "results" / f"{name}.jsonl"
        with mistakes():
            results = read(source)
            draw(results, source, here / "figures", name)
            show(here / "README.md", name, tables(results))

    return main


@contextmanager
def mistakes() -> Iterator[None]:
    """One line for a mistake of the user's."""
    try:
        yield
    except ShapleyError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
