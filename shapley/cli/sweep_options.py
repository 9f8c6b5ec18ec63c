"""The options of a sweep that say what is measured: shared by ``sweep`` and ``submit sweep``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from shapley.cli.options import impairment_options, make_impairment, parse_memory
from shapley.clusters import Cluster
from shapley.errors import ShapleyError
from shapley.impairment import Impairment
from shapley.prompts import TopicPrompts, read_prompts
from shapley.records import EVERYTHING, parse_strengths
from shapley.types import FloatArray

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--prompts", required=True, type=click.Path(path_type=Path), help="Best the held-out ones."),
    click.option("--topic", "topics", multiple=True, help="Only this topic (may be given again). [default: all]"),
    click.option(
        "--cluster",
        "clusters",
        multiple=True,
        required=True,
        metavar="C.json|all",
        help="A cluster file, or 'all' for every column of the site (may be given again).",
    ),
    impairment_options,
    click.option("--strength", default="0:1:0.25", show_default=True, help="START:STOP:STEP or A,B,C; zero is added."),
    click.option("--seeds", default=5, show_default=True, type=click.IntRange(1), help="Noise draws."),
    click.option(
        "--random",
        "n_random",
        default=3,
        show_default=True,
        type=click.IntRange(0),
        help="Random clusters of the same size per layer.",
    ),
    click.option(
        "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True
    ),
)


def sweep_options(command: F) -> F:
    """All but the model's and the output's."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class WantedSweep:
    """What the options of ``model_options`` (but the device) and ``sweep_options`` ask for."""

    model: str
    trust_remote_code: bool
    topics: dict[str, TopicPrompts]
    clusters: dict[str, Cluster | None]
    impairment: Impairment
    strengths: FloatArray
    seeds: int
    n_random: int
    dtype: str
    memory: int | None

    @classmethod
    def of(cls, options: dict[str, Any]) -> WantedSweep:
        """Raises ShapleyError for what can be refused without a model."""
        rest = dict(options)
        impairment = make_impairment(rest)
        rest["topics"] = read_prompts(rest.pop("prompts"), rest["topics"])
        rest["clusters"] = _clusters(rest["clusters"])
        rest["memory"] = parse_memory(rest["memory"])
        return cls(impairment=impairment, strengths=parse_strengths(rest.pop("strength")), **rest)


def _clusters(names: tuple[str, ...]) -> dict[str, Cluster | None]:
    chosen: dict[str, Cluster | None] = {}
    for name in names:
        key = EVERYTHING if name == "all" else Path(name).stem
        if key in chosen:
            raise ShapleyError(f"two clusters are called {key!r}: rename one file")
        chosen[key] = None if name == "all" else Cluster.load(name)
    return chosen
