"""The options of an estimate that say what is played and how: shared by ``estimate`` and ``submit estimate``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

import click

from shapley.cli.options import impairment_options, make_impairment, parse_layers, parse_memory
from shapley.estimators.registry import DEFAULT_BUDGET, ESTIMATORS, Plan
from shapley.impairment import Impairment
from shapley.prompts import TopicPrompts, read_prompts
from shapley.types import ValueName

F = TypeVar("F", bound=Callable[..., Any])

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option(
        "--prompts", required=True, type=click.Path(path_type=Path), help="JSON lines of topic, prompt, answer."
    ),
    click.option("--topic", "topics", multiple=True, help="Only this topic (may be given again). [default: all]"),
    click.option("--known-only", is_flag=True, help="Only prompts that the unimpaired model gets right."),
    click.option("--estimator", type=click.Choice(["auto", *ESTIMATORS]), default="auto", show_default=True),
    impairment_options,
    click.option("--strength", default="1", show_default=True, help="Of the impairment that takes a player out."),
    click.option("--layers", help="Layers whose neurons play, as 0-11 or 3,5. [default: all]"),
    click.option("--value", type=click.Choice(get_args(ValueName)), default="logprob", show_default=True),
    click.option("--semivalue", default="shapley", show_default=True, help="shapley, banzhaf or beta(a,b)."),
    click.option(
        "--samples",
        type=int,
        help="Permutations (permutation, tmab) or coalitions (gradient; two-stage: of its first stage).",
    ),
    click.option("--budget", type=int, help=f"At most so many forward rows a topic. [default: {DEFAULT_BUDGET}]"),
    click.option(
        "--top-k", type=int, help="How many players to separate from the rest. [default: a tenth, at most 100]"
    ),
    click.option(
        "--delta", type=float, help="Failure probability of the top-k claim (two-stage, tmab). [default: 0.05]"
    ),
    click.option(
        "--tolerance", type=float, help="Of two-stage: the top k may be so much worse than others. [default: 0]"
    ),
    click.option(
        "--bound",
        type=click.Choice(["valid", "asymptotic", "published"]),
        help="Over all players and looks (tmab), as the central limit theorem has it (two-stage, tmab), as published (tmab).",
    ),
    click.option("--truncation", type=float, help="Stop a permutation within this fraction of v(N) - v(0) of v(0)."),
    click.option("--seed", default=0, show_default=True),
    click.option(
        "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True
    ),
)


def estimate_options(command: F) -> F:
    """All but the model's, the output's, and who plays."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Wanted:
    """What the options of ``model_options`` (but the device) and ``estimate_options`` ask for."""

    model: str
    trust_remote_code: bool
    topics: dict[str, TopicPrompts]
    plan: Plan
    impairment: Impairment
    value: Any
    layers: list[int] | None
    dtype: str
    memory: int | None

    @classmethod
    def of(cls, options: dict[str, Any]) -> Wanted:
        """Raises ShapleyError for what can be refused without a model."""
        rest = dict(options)
        names = (
            "model",
            "trust_remote_code",
            "memory",
            "prompts",
            "topics",
            "known_only",
            "strength",
            "layers",
            "value",
        )
        model, trust, memory, prompts, topics, known_only, strength, layers, value = (rest.pop(name) for name in names)
        dtype = rest.pop("dtype")
        impairment = make_impairment(rest, strength)
        plan = Plan(**rest)
        by_topic = read_prompts(prompts, topics)
        chosen, limit = parse_layers(layers), parse_memory(memory)
        if known_only:
            by_topic = {topic: group.known_only() for topic, group in by_topic.items()}
        return cls(model, trust, by_topic, plan, impairment, value, chosen, dtype, limit)
