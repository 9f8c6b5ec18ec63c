"""``python -m tests.faults.cost``: what a kill costs at the usual pace, and what saving costs when nothing is killed.

One worker on one shard of a run with a single round, at random moments killed; segments tell when it last saved.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from shapley.estimators.registry import Plan
from shapley.jobs import worker
from tests.faults.instruments import Instruments
from tests.faults.play import Play
from tests.faults.reference import Case

_INTERVAL, _SHARE = worker._SHORTEST, worker._SHARE

# Games by what an item is: seconds and megabytes are of one gradient unit of 16 coalitions, 48 forward rows.
GAMES = {
    "256 players, 0.1 s an item": "synthetic:4x64@2",
    "36,864 players, 0.2 s an item, 0.3 MB": "synthetic:12x3072@3.5",
    "307,200 players, 1.5 s an item, 2.5 MB": "synthetic:75x4096@25",
}


@dataclass(frozen=True)
class Clocked(Instruments):
    """At the usual pace; also lists when and how long the worker saved."""

    interval: float = _INTERVAL
    share: float = _SHARE
    beat: float = 10.0

    def apply(self) -> None:
        super().apply()
        workers: Any = worker.Worker
        save, file = workers._save, self.items.with_name("saves")

        def clocked(self: Any, *arguments: Any) -> None:
            pending, start = bool(self._pending), time.monotonic()
            try:
                save(self, *arguments)
            finally:
                if pending:
                    with file.open("a") as lines:
                        lines.write(json.dumps([start, time.monotonic(), self._interval]) + "\n")

        workers._save = clocked


class Usual(Play):
    """A run at the usual pace."""

    instruments = Clocked


def saves(play: Play) -> np.ndarray:
    """``[n, 3]``: begin and end of each save, and the interval to the next."""
    path = play.folder / "saves"
    return np.array([json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []).reshape(
        -1, 3
    )


@click.command()
@click.option("--kills", default=8, show_default=True, help="Of each game.")
@click.option("--seconds", default=20.0, show_default=True, help="A kill comes after so long, at most.")
@click.option("--folder", type=click.Path(path_type=Path), default=Path("/tmp/shapley-faults"), show_default=True)
def main(kills: int, seconds: float, folder: Path) -> None:
    """Print a table: work lost to a kill against the interval between segments, and the share of time that saving takes."""
    click.echo("| game | kills | lost, mean | lost, most | interval | lost / interval, most | saving |")
    click.echo("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for number, (name, model) in enumerate(GAMES.items()):
        rng = np.random.default_rng(number)
        case = Case(model, Plan(estimator="gradient", samples=16 * 4000))
        plays = [Usual(folder / f"cost-{number}-{i}", case, rng) for i in range(kills)]
        for play in plays:
            play.ended(play.prepare())
        lost, intervals, shares = [], [], []
        for play in plays:
            began = time.monotonic()
            victim = play.worker(0, 1)
            time.sleep(float(rng.uniform(4, seconds)))
            victim.kill()
            ended, found = time.monotonic(), saves(play)
            last = found[-1, 1] if len(found) else began
            lost.append(ended - last)
            intervals.append(found[-1, 2] if len(found) else _INTERVAL)
            if len(found):
                shares.append((found[:, 1] - found[:, 0]).sum() / (found[-1, 1] - began))
            play.clear()
        ratio = np.array(lost) / intervals
        click.echo(
            f"| {name} | {kills} | {np.mean(lost):.2f} s | {np.max(lost):.2f} s | {np.mean(intervals):.2f} s "
            f"| {ratio.max():.2f} | {100 * np.mean(shares):.2f}% |"
        )


if __name__ == "__main__":
    main()
