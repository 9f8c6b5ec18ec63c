"""``shapley estimate``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, get_args

import click

from shapley.cli.options import (
    command_line,
    impairment_options,
    make_impairment,
    model_options,
    output_options,
    parse_devices,
    parse_layers,
    parse_memory,
)
from shapley.errors import ShapleyError
from shapley.estimators.registry import DEFAULT_BUDGET, ESTIMATORS, Plan
from shapley.groups import Partitioner, parse_groups
from shapley.groups import within as neurons_within
from shapley.types import ValueName


@click.command()
@model_options
@click.option("--prompts", required=True, type=click.Path(path_type=Path), help="JSON lines of topic, prompt, answer.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The score file to write.")
@click.option("--topic", "topics", multiple=True, help="Only this topic (may be given again). [default: all]")
@click.option("--known-only", is_flag=True, help="Only prompts that the unimpaired model gets right.")
@click.option("--estimator", type=click.Choice(["auto", *ESTIMATORS]), default="auto", show_default=True)
@impairment_options
@click.option("--strength", default="1", show_default=True, help="Of the impairment that takes a player out.")
@click.option("--layers", help="Layers whose neurons play, as 0-11 or 3,5. [default: all]")
@click.option(
    "--groups", metavar="GROUPS", help="Players are groups of neurons: layers, blocks:SIZE or a partition file."
)
@click.option(
    "--within",
    type=click.Path(path_type=Path),
    metavar="SCORES",
    help="Players are the neurons of a topic's top groups in this score file of groups; all others stay intact.",
)
@click.option("--top-groups", type=int, metavar="K", help="With --within: the K groups of the largest absolute score.")
@click.option("--value", type=click.Choice(get_args(ValueName)), default="logprob", show_default=True)
@click.option("--semivalue", default="shapley", show_default=True, help="shapley, banzhaf or beta(a,b).")
@click.option(
    "--samples",
    type=int,
    help="Permutations (permutation, tmab) or coalitions (gradient; two-stage: of its first stage).",
)
@click.option("--budget", type=int, help=f"At most so many forward rows a topic. [default: {DEFAULT_BUDGET}]")
@click.option("--top-k", type=int, help="How many players to separate from the rest. [default: a tenth, at most 100]")
@click.option("--delta", type=float, help="Failure probability of the top-k claim (two-stage, tmab). [default: 0.05]")
@click.option("--tolerance", type=float, help="Of two-stage: the top k may be so much worse than others. [default: 0]")
@click.option(
    "--bound",
    type=click.Choice(["valid", "asymptotic", "published"]),
    help="Over all players and looks (tmab), as the central limit theorem has it (two-stage, tmab), as published (tmab).",
)
@click.option("--truncation", type=float, help="Stop a permutation within this fraction of v(N) - v(0) of v(0).")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--workers",
    type=int,
    metavar="N",
    help="Processes that share the work, a copy of the model each. [default: as many as --device names, as cuda:0,cuda:1]",
)
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True
)
@output_options
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def estimate(
    model: str,
    device: str,
    trust_remote_code: bool,
    memory: str | None,
    prompts: Path,
    out: Path,
    topics: tuple[str, ...],
    known_only: bool,
    strength: str,
    layers: str | None,
    groups: str | None,
    within: Path | None,
    top_groups: int | None,
    value: Any,
    workers: int | None,
    dtype: str,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **rest: Any,
) -> None:
    """Score every neuron, or group of neurons, for every topic of a prompts file."""
    impairment = make_impairment(rest, strength)
    plan = Plan(**rest)
    # What can be refused without a model is refused before torch is even imported.
    from shapley.prompts import read_prompts

    by_topic = read_prompts(prompts, topics)
    chosen_layers, limit = parse_layers(layers), parse_memory(memory)
    devices, n_workers = parse_devices(device, workers)
    players = _players(groups, within, top_groups)
    from shapley.files import check_output

    check_output(out, resume=resume, overwrite=overwrite, inputs=[path for path in (prompts, groups, within) if path])
    if known_only:
        by_topic = {topic: group.known_only() for topic, group in by_topic.items()}
    from shapley.hf.load import load_model
    from shapley.runs import estimate as run

    lm = load_model(model, device=devices[0], trust_remote_code=trust_remote_code)
    scores = run(
        lm,
        by_topic,
        out,
        plan=plan,
        impairment=impairment,
        value=value,
        layers=chosen_layers,
        groups=players,
        dtype=dtype,
        memory=limit,
        workers=n_workers,
        devices=devices,
        resume=resume,
        overwrite=overwrite,
        argv=command_line(),
    )
    if as_json:
        click.echo(json.dumps({"scores": str(out), "topics": {topic: scores.attrs(topic) for topic in by_topic}}))
        return
    for topic in by_topic:
        attrs = scores.attrs(topic)
        click.echo(
            f"{topic}: v(N) {attrs['value_full']:.3f}, v(0) {attrs['value_empty']:.3f}, {attrs['estimator']}, "
            f"{attrs['forward_rows']} forward rows, {attrs['wall_seconds']:.0f} s"
        )
    click.echo(f"scores in {out}; next: shapley top {out} --topic {next(iter(by_topic))}")


def _players(groups: str | None, within: Path | None, top_groups: int | None) -> Partitioner | None:
    """Who plays, where it is not every neuron."""
    if groups is not None and within is not None:
        raise ShapleyError("--groups and --within exclude each other: players are groups, or neurons within groups")
    if (within is None) != (top_groups is None):
        raise ShapleyError("--within and --top-groups go together: a score file of groups, and how many of its groups")
    if within is not None and top_groups is not None:
        return partial(neurons_within, within, top_groups)
    return None if groups is None else parse_groups(groups)
