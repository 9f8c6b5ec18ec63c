"""``python -m tests.faults --runs 500``: many disturbed runs, and a table of what came of them.

Nobody may edit ``shapley`` meanwhile: workers refuse other code than was submitted.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before numpy is imported

import sys
import time
from pathlib import Path
from typing import NoReturn

import click
import numpy as np

from tests.faults.disturbances import disturbances
from tests.faults.play import Disturbance
from tests.faults.table import table
from tests.faults.trial import Outcome, trial

_FIRST = "kill -9 of a worker"
_FIRST_SHARE = 0.2  # of all runs
_EXEC_SHARE = 0.06  # the others are forks


@click.command()
@click.option("--runs", default=500, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--only", "words", multiple=True, help="Disturbances whose name has this in it.")
@click.option("--number", type=int, help="This trial alone, as named by a failure.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("/tmp/shapley-faults"), show_default=True)
@click.option("--slurm", is_flag=True, help="Those of a real Slurm instead, once each: ten minutes.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the table here too.")
def main(
    runs: int, seed: int, words: tuple[str, ...], number: int | None, folder: Path, slurm: bool, out: Path | None
) -> None:
    """Disturb runs by real processes, and compare their scores with those of one undisturbed process, bit for bit."""
    if slurm:
        _report(_on_slurm(folder, words), [], out)
    chosen = [one for one in disturbances() if not words or any(word in one.name for word in words)]
    skipped = [(one.name, why) for one in chosen if (why := one.unavailable())]
    chosen = [one for one in chosen if not one.unavailable()]
    if not chosen:
        raise click.ClickException("no such disturbance, or none that this machine can do")
    outcomes: list[Outcome] = []
    start = time.monotonic()
    for i in range(runs) if number is None else [number]:
        rng = np.random.default_rng([seed, i])
        disturbance = _pick(chosen, i, rng)
        place = folder / f"{seed}-{i}"
        outcomes.append(trial(disturbance, rng, place, mode="exec" if rng.random() < _EXEC_SHARE else "fork"))
        if not outcomes[-1].good:
            click.echo(_describe(outcomes[-1], place, i))
        elif i % 50 == 49:
            click.echo(f"{i + 1} runs, {time.monotonic() - start:.0f} s", err=True)
    _report(outcomes, skipped, out)


def _report(outcomes: list[Outcome], skipped: list[tuple[str, str]], out: Path | None) -> NoReturn:
    text = table(outcomes, skipped)
    click.echo(text)
    if out is not None:
        out.write_text(f"{text}\n")
    sys.exit(not all(outcome.good for outcome in outcomes))


def _on_slurm(folder: Path, words: tuple[str, ...]) -> list[Outcome]:
    """On a cluster of its own."""
    from tests.faults.on_slurm import TROUBLES, troubled
    from tests.slurm_cluster import Cluster

    os.environ["SLURM_CONF"] = str(folder / "cluster" / "etc" / "slurm.conf")
    cluster = Cluster(folder / "cluster", dict(os.environ))
    folder.mkdir(parents=True, exist_ok=True)
    started = cluster.script("up")
    if started.returncode:
        raise click.ClickException(f"no Slurm: {started.stderr.strip()}")
    outcomes = []
    try:
        for i, trouble in enumerate(TROUBLES):
            if words and not any(word in trouble.name for word in words):
                continue
            outcomes.append(troubled(cluster, folder / f"slurm-{os.getpid()}-{i}", trouble))
            click.echo(f"{trouble.name}: {outcomes[-1]}", err=True)
    finally:
        cluster.script("down")
    return outcomes


def _pick(chosen: list[Disturbance], number: int, rng: np.random.Generator) -> Disturbance:
    """The main one often, the others in turn."""
    if chosen[0].name == _FIRST and rng.random() < _FIRST_SHARE:
        return chosen[0]
    return chosen[number % len(chosen)]


def _describe(outcome: Outcome, place: Path, number: int) -> str:
    wrong = ", ".join(f"{name} {bits}" for name, bits in outcome.wrong.items())
    why = outcome.error or f"wrong bits: {wrong}"
    return f"FAILED {number} ({outcome.name}, {outcome.case}, {outcome.mode}), see {place}: {_short(why)}"


def _short(text: str) -> str:
    """The beginning and the end of what may be a long traceback."""
    return text if len(text) < 800 else f"{text[:200]} ... {text[-500:]}"


main()
