"""``shapley estimate``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from shapley.cli.options import command_line, model_options, output_options, parse_devices
from shapley.cli.play import Wanted, estimate_options
from shapley.errors import ShapleyError
from shapley.files import check_output
from shapley.groups import Partitioner, parse_groups
from shapley.groups import within as neurons_within


@click.command()
@model_options
@estimate_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The score file to write.")
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
@click.option(
    "--workers",
    type=int,
    metavar="N",
    help="Processes that share the work, a copy of the model each. [default: as many as --device names, as cuda:0,cuda:1]",
)
@output_options
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def estimate(
    device: str,
    prompts: Path,
    out: Path,
    groups: str | None,
    within: Path | None,
    top_groups: int | None,
    workers: int | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **rest: Any,
) -> None:
    """Score every neuron, or group of neurons, for every topic of a prompts file."""
    # What can be refused without a model is refused before torch is even imported.
    wanted = Wanted.of({**rest, "prompts": prompts})
    devices, n_workers = parse_devices(device, workers)
    players = _players(groups, within, top_groups)
    check_output(out, resume=resume, overwrite=overwrite, inputs=[path for path in (prompts, groups, within) if path])
    from shapley.hf.load import load_model, weights_dtype
    from shapley.runs import estimate as run

    dtype = weights_dtype(devices[0], wanted.dtype)
    lm = load_model(wanted.model, device=devices[0], dtype=dtype, trust_remote_code=wanted.trust_remote_code)
    by_topic = wanted.topics
    scores = run(
        lm,
        by_topic,
        out,
        plan=wanted.plan,
        impairment=wanted.impairment,
        value=wanted.value,
        layers=wanted.layers,
        groups=players,
        dtype=wanted.dtype,
        memory=wanted.memory,
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
