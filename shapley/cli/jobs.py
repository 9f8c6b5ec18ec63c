"""``shapley submit``, ``prepare``, ``work``, ``status`` and ``cancel``: runs on a cluster, or by several processes here."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from shapley.cli.options import command_line, model_options
from shapley.cli.play import Wanted, estimate_options
from shapley.errors import ShapleyError
from shapley.jobs.folder import RunFolder, create
from shapley.jobs.games import game_record

_RUN = click.argument("run", type=click.Path(path_type=Path))
_PROFILE = click.option("--profile", type=click.Path(path_type=Path), help="A site's profile, as slurm/gpu.yaml.")


@click.group()
def submit() -> None:
    """Share an estimate among the GPUs of a Slurm cluster, or of this machine."""


@submit.command()
@model_options
@estimate_options
@click.option("--run", "folder", required=True, type=click.Path(path_type=Path), help="The folder of the run.")
@click.option("--shards", type=int, default=8, show_default=True, help="Tasks that share the work of each round.")
@_PROFILE
@click.option("--here", is_flag=True, help="Run it now on this machine, a process for each shard.")
@click.option("--dry-run", is_flag=True, help="Print the batch scripts, and do nothing.")
def estimate(
    device: str, folder: Path, shards: int, profile: Path | None, here: bool, dry_run: bool, **rest: Any
) -> None:
    """Score every neuron for every topic of a prompts file. The same command again goes on where a run stopped."""
    from shapley.jobs import submit as jobs
    from shapley.jobs.profile import read_profile

    if here == (profile is not None):
        raise ShapleyError("give --profile SITE.yaml to submit to Slurm, or --here to run on this machine")
    wanted = Wanted.of(rest)
    site = read_profile(profile) if profile else None
    if shards < 1:
        raise ShapleyError(f"--shards {shards} must be at least 1")
    if dry_run:
        if site is None:
            raise ShapleyError("--dry-run shows batch scripts: give it a --profile")
        _show(folder, shards, site)
        return
    if site is not None:
        from shapley.jobs.slurm import max_array_size

        max_array_size()  # before a folder is made: is there a Slurm?
    local = Path(wanted.model)
    game = game_record(
        str(local.absolute()) if local.is_dir() else wanted.model,
        trust_remote_code=wanted.trust_remote_code,
        impairment=json.loads(wanted.impairment.to_json()),
        value=wanted.value,
        layers=wanted.layers,
        dtype=wanted.dtype,
        memory=wanted.memory,
    )
    run = create(folder, wanted.topics, wanted.plan, game, shards, command_line())
    if site is None:
        _run_here(run, device, shards)
        return
    ids = jobs.submit(run, site)
    click.echo(f"{run.path}: {len(ids)} jobs, {ids[0]} to {ids[-1]}; see 'shapley status {run.path} --watch'")


def _show(folder: Path, shards: int, site: Any) -> None:
    from shapley.jobs import submit as jobs

    for name, text in jobs.scripts(folder, shards, site).items():
        click.echo(f"# {folder / 'slurm' / name}\n{text}")
    before = ""
    for link in jobs.chain(folder, shards):
        after = f" --dependency={link.kind}:{before} --kill-on-invalid-dep=yes" if before else ""
        click.echo(f"sbatch --parsable{after} {folder / 'slurm' / link.script}")
        before = "<the one before>"


def _run_here(run: RunFolder, device: str, shards: int) -> None:
    import torch

    from shapley.jobs.local import run_here

    named = device.split(",")
    if named == ["auto"]:
        named = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    devices = [named[i % len(named)] for i in range(shards)]
    run_here(run, devices, max(1, torch.get_num_threads() // shards))


@submit.command()
@_RUN
@click.option("--add", type=int, required=True, help="How many more workers.")
@_PROFILE
def workers(run: Path, add: int, profile: Path | None) -> None:
    """Add workers to a run that is going on; take some away with scancel."""
    from shapley.jobs.profile import Profile, read_profile
    from shapley.jobs.submit import add_workers

    folder = RunFolder(run)
    saved = run / "slurm" / "profile.json"
    if profile is None and not saved.exists():
        raise ShapleyError(f"{run} was not submitted to Slurm: give --profile")
    site = read_profile(profile) if profile else Profile.from_record(json.loads(saved.read_text()))
    click.echo(f"job {add_workers(folder, add, site)}: {add} workers help with {run}")


@click.command(hidden=True)
@_RUN
@click.option("--device", default="auto")
def prepare(run: Path, device: str) -> None:
    """Load a run's model once, choose its estimators and begin the first round: the first job of a run."""
    from shapley.jobs.advance import prepare as begin

    begin(RunFolder(run), device)


@click.command(hidden=True)
@_RUN
@click.option("--shard", type=int, required=True)
@click.option("--of", type=int, required=True)
@click.option("--device", default="auto")
def work(run: Path, shard: int, of: int, device: str) -> None:
    """Do a shard of a run's present round: what the tasks of its arrays do."""
    from shapley.jobs.worker import work as compute

    click.echo(f"shard {shard} of {of}: {compute(RunFolder(run), shard, of, device)}")


@click.command()
@_RUN
@click.option("--watch", is_flag=True, help="Look again every ten seconds until it is finished.")
@click.option("--logs", is_flag=True, help="Name the logs of workers that failed, and show their errors whole.")
@click.option("--json", "as_json", is_flag=True)
def status(run: Path, watch: bool, logs: bool, as_json: bool) -> None:
    """How a run stands: rounds, workers, errors, time to finish, and the top neurons so far."""
    from shapley.jobs.status import describe
    from shapley.jobs.status import status as look

    folder = RunFolder(run)
    while True:
        found = look(folder)
        click.echo(json.dumps(asdict(found), default=str) if as_json else describe(folder, found, logs))
        if not watch or found.finished:
            return
        time.sleep(10)


@click.command()
@_RUN
def cancel(run: Path) -> None:
    """Cancel the Slurm jobs of a run; what was computed stays, and the same 'submit' goes on with it."""
    from shapley.jobs.submit import cancel as end

    jobs = end(RunFolder(run))
    click.echo(f"{run}: {len(jobs)} jobs cancelled" if jobs else f"{run}: no job of it is in the queue")
