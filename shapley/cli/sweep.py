"""``shapley sweep``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from shapley.cli.options import command_line, model_options, output_options
from shapley.cli.sweep_options import WantedSweep, sweep_options
from shapley.errors import ShapleyError
from shapley.files import check_output
from shapley.records import METRICS


@click.command()
@model_options
@sweep_options
@click.option("--out", required=True, type=click.Path(path_type=Path), help="The sweep file to write.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path),
    help="Draw the curves into this PNG, SVG or PDF: bands are 95% over prompts, dashed are random clusters.",
)
@output_options
@click.option("--json", "as_json", is_flag=True, help="Print the mean curves as JSON.")
def sweep(
    device: str,
    out: Path,
    plot: Path | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Impair clusters by degrees and measure every topic."""
    wanted = WantedSweep.of(options)
    inputs = [options["prompts"], *(name for name in options["clusters"] if name != "all")]
    check_output(out, resume=resume, overwrite=overwrite, inputs=inputs)
    if plot is not None:
        if plot.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise ShapleyError(f"--plot {plot}: expected a name that ends in .png, .svg or .pdf")
        check_output(plot, overwrite=True, inputs=[*inputs, out])
    from shapley.hf.load import load_model, weights_dtype
    from shapley.sweeps import sweep as run

    dtype = weights_dtype(device, wanted.dtype)
    lm = load_model(wanted.model, device=device, dtype=dtype, trust_remote_code=wanted.trust_remote_code)
    result = run(
        lm,
        wanted.topics,
        wanted.clusters,
        wanted.impairment,
        wanted.strengths,
        out,
        n_seeds=wanted.seeds,
        n_random=wanted.n_random,
        dtype=wanted.dtype,
        memory=wanted.memory,
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
