"""``shapley submit``: start runs on a cluster, or by several processes here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from shapley.cli.launch import Launch, launch_options, profile_option
from shapley.cli.options import command_line, device_option, model_options
from shapley.cli.play import Wanted, estimate_options
from shapley.cli.sweep_options import WantedSweep, sweep_options
from shapley.jobs.estimate import check_apart
from shapley.jobs.folder import RunFolder, create
from shapley.jobs.games import game_record
from shapley.jobs.profile import read_profile
from shapley.jobs.submit import add_workers, profile_of
from shapley.jobs.sweep import create_sweep, sweep_record


@click.group()
def submit() -> None:
    """Share an estimate or a sweep among the GPUs of a Slurm cluster, or of this machine."""


@submit.command()
@model_options
@estimate_options
@launch_options
def estimate(**options: Any) -> None:
    """Score every neuron for every topic of a prompts file. The same command again goes on where a run stopped."""
    launch = Launch.of(options)
    wanted = Wanted.of(options)
    check_apart(wanted.plan.estimator)
    game = game_record(
        _from_anywhere(wanted.model),
        trust_remote_code=wanted.trust_remote_code,
        impairment=json.loads(wanted.impairment.to_json()),
        value=wanted.value,
        layers=wanted.layers,
        dtype=wanted.dtype,
        memory=wanted.memory,
    )
    launch.start(lambda: create(launch.folder, wanted.topics, wanted.plan, game, launch.shards, command_line()))


@submit.command()
@model_options
@sweep_options
@launch_options
def sweep(**options: Any) -> None:
    """Impair clusters by degrees and measure every topic. The same command again goes on where a run stopped."""
    launch = Launch.of(options)
    wanted = WantedSweep.of(options)
    record = sweep_record(
        _from_anywhere(wanted.model),
        trust_remote_code=wanted.trust_remote_code,
        impairment=json.loads(wanted.impairment.to_json()),
        strengths=wanted.strengths.tolist(),
        seeds=wanted.seeds,
        random=wanted.n_random,
        dtype=wanted.dtype,
        memory=wanted.memory,
    )
    launch.start(
        lambda: create_sweep(launch.folder, wanted.topics, wanted.clusters, record, launch.shards, command_line())
    )


def _from_anywhere(model: str) -> str:
    """A model's name for jobs, which run in a folder of their own."""
    from shapley.hf.bases import RESIDUAL, SPARSE, split_name

    name, basis = split_name(model)
    name = str(Path(name).absolute()) if Path(name).is_dir() else name
    if basis is None:
        return name
    prefix = next((prefix for prefix in (RESIDUAL, SPARSE) if basis.startswith(prefix)), "")
    own = basis.removeprefix(prefix)
    return f"{name}@{prefix}{Path(own).absolute() if Path(own).is_file() else own}"


@submit.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--add", type=int, required=True, help="How many more workers.")
@profile_option
@device_option
def workers(run: Path, add: int, profile: Path | None, device: str) -> None:
    """Add workers to a run that is going on; take some away with scancel."""
    folder = RunFolder(run)
    site = read_profile(profile) if profile else profile_of(folder)
    click.echo(f"job {add_workers(folder, add, site, device)}: {add} workers help with {run}")
