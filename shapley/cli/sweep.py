"""``shapley sweep``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from shapley.cli.options import (
    command_line,
    impairment_options,
    make_impairment,
    model_options,
    output_options,
    parse_memory,
)
from shapley.clusters import Cluster
from shapley.errors import ShapleyError


@click.command()
@model_options
@click.option("--prompts", required=True, type=click.Path(path_type=Path), help="Best the held-out ones.")
@click.option("--topic", "topics", multiple=True, help="Only this topic (may be given again). [default: all]")
@click.option(
    "--cluster",
    "clusters",
    multiple=True,
    required=True,
    metavar="C.json|all",
    help="A cluster file, or 'all' for every column of the site (may be given again).",
)
@impairment_options
@click.option("--strength", default="0:1:0.25", show_default=True, help="START:STOP:STEP or A,B,C; zero is added.")
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1), help="Noise draws.")
@click.option(
    "--random",
    "n_random",
    default=3,
    show_default=True,
    type=click.IntRange(0),
    help="Random clusters of the same size per layer.",
)
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The sweep file to write.")
@click.option("--plot", type=click.Path(path_type=Path), help="Draw the curves into this PNG or SVG.")
@click.option(
    "--dtype", type=click.Choice(["auto", "float32", "bfloat16", "float16"]), default="auto", show_default=True
)
@output_options
@click.option("--json", "as_json", is_flag=True, help="Print the mean curves as JSON.")
def sweep(
    model: str,
    device: str,
    trust_remote_code: bool,
    memory: str | None,
    prompts: Path,
    topics: tuple[str, ...],
    clusters: tuple[str, ...],
    strength: str,
    seeds: int,
    n_random: int,
    out: Path,
    plot: Path | None,
    dtype: str,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **rest: Any,
) -> None:
    """Impair clusters by degrees and measure every topic."""
    impairment = make_impairment(rest)
    from shapley.files import check_output
    from shapley.prompts import read_prompts

    by_topic = read_prompts(prompts, topics)
    chosen: dict[str, Cluster | None] = {}
    for name in clusters:
        key = "everything" if name == "all" else Path(name).stem
        if key in chosen:
            raise ShapleyError(f"two clusters are called {key!r}: rename one file")
        chosen[key] = None if name == "all" else Cluster.load(name)
    inputs: list[str | Path] = [prompts, *(name for name in clusters if name != "all")]
    check_output(out, resume=resume, overwrite=overwrite, inputs=inputs)
    if plot is not None and plot.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ShapleyError(f"--plot {plot}: expected a name that ends in .png, .svg or .pdf")
    limit = parse_memory(memory)
    from shapley.records import METRICS, parse_strengths

    levels = parse_strengths(strength)
    from shapley.hf.load import load_model
    from shapley.sweeps import sweep as run

    lm = load_model(model, device=device, trust_remote_code=trust_remote_code)
    result = run(
        lm,
        by_topic,
        chosen,
        impairment,
        levels,
        out,
        n_seeds=seeds,
        n_random=n_random,
        dtype=dtype,
        memory=limit,
        resume=resume,
        overwrite=overwrite,
        argv=command_line(),
    )
    if plot is not None:
        from shapley.plots import save, sweep_figure

        save(sweep_figure(result), plot)
    curves = {
        name: {
            topic: {metric: result.metric(topic, name, metric).mean(axis=(1, 2)).tolist() for metric in METRICS}
            for topic in result.records
        }
        for name in result.clusters
    }
    if as_json:
        click.echo(json.dumps({"records": str(out), "strengths": result.strengths.tolist(), "curves": curves}))
        return
    click.echo("strength " + " ".join(f"{strength:g}" for strength in result.strengths))
    for name, topics_of in curves.items():
        for topic, means in topics_of.items():
            line = " ".join(f"{value:.2f}" for value in means["logprob"])
            click.echo(f"{name}: {topic}: mean log-probability {line}")
    click.echo(f"records in {out}" + (f", curves in {plot}" if plot else ""))
