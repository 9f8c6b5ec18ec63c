"""The merge of a large round, measured: its segments are real files, its samples made up.

python experiments/benchmarks/scale_merge.py [--shards 1008] [--topics 14] [--units 14] [--model synthetic:48x6400] [--folder .]

A round of the screen: every shard has ``--units`` items (16 gradient rows for all players, 8 bytes a player) of one topic in
one segment, the first of each topic the diagonal's too; 35 GB with the defaults. The merge runs in a process of its own,
which reports time, peak memory, bytes read and files opened. Preparing, looking at the run and scanning many small segments
are timed too.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from shapley.estimators.coalitions import ROWS_PER_UNIT
from shapley.estimators.registry import Plan, build
from shapley.jobs.advance import merge, prepare
from shapley.jobs.folder import ENDS, RunFolder, create
from shapley.jobs.games import game_record
from shapley.jobs.segments import Item, Sample, Shelf, write_segment
from shapley.jobs.status import status
from shapley.jobs.synthetic import SyntheticGame
from shapley.prompts import Prompt, TopicPrompts

_POOL = 8  # different samples, used in turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="synthetic:48x6400")
    parser.add_argument("--shards", type=int, default=1008)
    parser.add_argument("--topics", type=int, default=14)
    parser.add_argument("--units", type=int, default=14, help="of each shard")
    parser.add_argument("--folder", type=Path, help="where there is room")
    parser.add_argument("--merge", type=Path, help="merge this run in this process and report")
    options = parser.parse_args()
    if options.merge:
        print(json.dumps(_merged(options.merge)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        run = make_run(Path(folder, "run"), options)
        show("prepare", lambda: prepare(run, show=False))
        fill(run, options.shards // options.topics, options.units)
        show("look at the run (status)", lambda: status(run))
        command = [sys.executable, __file__, "--merge", str(run.path)]
        print(
            "merge", subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip(), flush=True
        )
        for count in (1000, 10_000):
            shelf = small_segments(Path(folder, f"small-{count}"), count)
            show(f"scan {count} new segments", shelf.scan)
            show(f"scan {count} known segments", shelf.scan)


def make_run(path: Path, options: Any) -> RunFolder:
    """A run whose first round is ``options.units`` units for each of a topic's shards."""
    topics = {}
    for i in range(options.topics):
        prompts = (Prompt(f"topic-{i}", f"{word} is", " so") for word in "abcdefgh")
        topics[f"topic-{i}"] = TopicPrompts(f"topic-{i}", tuple(prompts))
    wanted = options.shards // options.topics * options.units
    game = SyntheticGame.parse(options.model, topics["topic-0"])
    units = next(n for n in range(wanted, 2 * wanted + 9) if screen_units(game, n) >= wanted)
    record = game_record(
        options.model,
        trust_remote_code=False,
        impairment={"kind": "zero"},
        value="logprob",
        layers=None,
        dtype="auto",
        memory=None,
    )
    plan = Plan(estimator="two-stage", samples=units * ROWS_PER_UNIT)
    return create(path, topics, plan, record, options.shards, [])


def screen_units(game: Any, units: int) -> int:
    """Units of the first round, without the diagonal."""
    estimator, _ = build(Plan(estimator="two-stage", samples=units * ROWS_PER_UNIT), game, key="topic-0")
    return estimator.unit + estimator.units_ahead()


def fill(run: RunFolder, shards: int, units: int) -> None:
    """Write the segments of a round, a file for each of a topic's shards."""
    game = run.topics[0].game()
    rng = np.random.default_rng(0)
    weights = rng.standard_exponential(game.n_players) ** 3 / game.n_players
    pool = [_sample(weights, rng) for _ in range(_POOL)]
    diagonal = Sample((weights,), 48, 1.0)
    ends = Sample((np.array([-1.0, -20.0]),), 16, 1.0)
    start, size = time.perf_counter(), 0
    for topic in run.topics:
        shelf = topic.shelf(0)
        before = [item for item in topic.round(0).items(topic.estimator(topic.game())) if item.unit < 0]
        path = shelf.folder / f"00000-0-{0:012x}-99999.segment"
        write_segment(path, shelf.settings, {item: ends if item == ENDS else diagonal for item in before})
        for shard in range(shards):
            own = range(shard * units, (shard + 1) * units)
            path = shelf.folder / f"{shard:05d}-0-{0:012x}-00000.segment"
            write_segment(path, shelf.settings, {Item(unit, 0): pool[unit % _POOL] for unit in own})
            size += path.stat().st_size
    seconds = time.perf_counter() - start
    print(
        f"{shards * len(run.topics)} segments, {size / 1e9:.1f} GB, written in {seconds:.0f} s, {size / seconds / 1e6:.0f} MB/s"
    )


def _sample(weights: np.ndarray, rng: np.random.Generator) -> Sample:
    plain = weights * (1 + 0.3 * rng.standard_normal(len(weights)))
    correction = 0.1 * weights * rng.standard_normal(len(weights))
    none = np.empty((8, 0))
    return Sample((plain.astype(np.float32), correction.astype(np.float32), none), 48, 1.0)


def small_segments(folder: Path, count: int) -> Shelf:
    """A shelf with so many segments of one small sample."""
    folder.mkdir()
    write_segment(folder / "00000.segment", "settings", {Item(0, 0): Sample((np.zeros(64),), 48, 1.0)})
    for i in range(1, count):
        os.link(folder / "00000.segment", folder / f"{i:05d}.segment")
    return Shelf(folder, "settings")


def show(what: str, action: Callable[[], Any]) -> None:
    """Do it and print what it took."""
    print(what, json.dumps(measured(action)), flush=True)


def measured(action: Callable[[], Any]) -> dict[str, Any]:
    """Wall and processor seconds, and file operations by kind, as Python's audit events and ``os.fsync`` tell."""
    counts: Counter[str] = Counter()
    _counters.append(counts)
    start, before = time.perf_counter(), os.times()
    try:
        action()
    finally:
        _counters.remove(counts)
    used = os.times()
    processor = used.user + used.system - before.user - before.system
    return {"seconds": round(time.perf_counter() - start, 3), "cpu": round(processor, 2), "files": dict(counts)}


def _merged(path: Path) -> dict[str, Any]:
    found = measured(lambda: _merge(RunFolder(path)))
    read = int(Path("/proc/self/io").read_text().split()[1])
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return {
        **found,
        "children's cpu": round(children.ru_utime + children.ru_stime, 1),
        "peak MiB": own.ru_maxrss >> 10,
        "peak MiB of a child": children.ru_maxrss >> 10,
        "read MB": read // 10**6,
    }


def _merge(run: RunFolder) -> None:
    missing = merge(run, show=False).missing
    assert {items[0].unit for items in missing.values()} != {0}, "the first round was not complete"


_counters: list[Counter[str]] = []
_EVENTS = {"open": "open", "os.listdir": "list", "os.scandir": "list", "os.rename": "rename", "os.remove": "remove"}


def _count(event: str, arguments: tuple[Any, ...]) -> None:
    if _counters and event in _EVENTS:
        for counts in _counters:
            counts[_EVENTS[event]] += 1


def _counted_fsync(descriptor: int, fsync: Callable[[int], None] = os.fsync) -> None:
    for counts in _counters:
        counts["fsync"] += 1
    fsync(descriptor)


if __name__ == "__main__":
    sys.addaudithook(_count)
    os.fsync = _counted_fsync
    main()
