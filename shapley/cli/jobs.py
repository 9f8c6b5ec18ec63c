"""``shapley prepare``, ``work``, ``status`` and ``cancel``: what is done with a run that was submitted."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path

import click

from shapley.jobs.folder import RunFolder

_RUN = click.argument("run", type=click.Path(path_type=Path))


@click.command(hidden=True)
@_RUN
@click.option("--device", default="auto")
def prepare(run: Path, device: str) -> None:
    """Load a run's model once, choose what is left open and begin the first round: the first job of a run."""
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
