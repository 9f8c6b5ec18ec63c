"""``shapley estimate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import click

from shapley.cli.options import (
    command_line,
    impairment_options,
    make_impairment,
    model_options,
    output_options,
    parse_layers,
    parse_memory,
)
from shapley.estimators.registry import DEFAULT_BUDGET, ESTIMATORS, Plan
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
@click.option("--value", type=click.Choice(get_args(ValueName)), default="logprob", show_default=True)
@click.option("--semivalue", default="shapley", show_default=True, help="shapley, banzhaf or beta(a,b).")
@click.option("--samples", type=int, help="Permutations (permutation, tmab) or coalitions (gradient).")
@click.option("--budget", type=int, help=f"At most so many forward rows a topic. [default: {DEFAULT_BUDGET}]")
@click.option(
    "--top-k", type=int, help="How many players tmab separates from the rest. [default: a tenth, at most 100]"
)
@click.option("--delta", type=float, help="Failure probability of tmab's bounds. [default: 0.05]")
@click.option(
    "--bound",
    type=click.Choice(["valid", "asymptotic", "published"]),
    help="Of tmab: over all players and looks; as the central limit theorem has it; as published. [default: valid]",
)
@click.option("--truncation", type=float, help="Stop a permutation within this fraction of v(N) - v(0) of v(0).")
@click.option("--seed", default=0, show_default=True)
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
    value: Any,
    dtype: str,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **rest: Any,
) -> None:
    """Score every neuron for every topic of a prompts file."""
    impairment = make_impairment(rest, strength)
    plan = Plan(**rest)
    # What can be refused without a model is refused before torch is even imported.
    from shapley.prompts import read_prompts

    by_topic = read_prompts(prompts, topics)
    chosen_layers, limit = parse_layers(layers), parse_memory(memory)
    from shapley.files import check_output

    check_output(out, resume=resume, overwrite=overwrite, inputs=[prompts])
    if known_only:
        by_topic = {topic: group.known_only() for topic, group in by_topic.items()}
    from shapley.hf.load import load_model
    from shapley.runs import estimate as run

    lm = load_model(model, device=device, trust_remote_code=trust_remote_code)
    scores = run(
        lm,
        by_topic,
        out,
        plan=plan,
        impairment=impairment,
        value=value,
        layers=chosen_layers,
        dtype=dtype,
        memory=limit,
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
