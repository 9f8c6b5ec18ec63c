"""A run over a thousand shards, simulated: how long it takes against perfect sharing, and where the time goes.

python experiments/benchmarks/scale.py [--shards 1000] [--topics 14] [--budget 120000] [--rate 0.1] [--preempted 0 1]

The rounds are the real estimator's, the workers the real ones in virtual time (``scale_cluster``). What a merge takes is what
``scale_merge.py`` measured: ``--merge-item`` seconds for each item of gradients and ``--merge-topic`` for each topic and
round. All rates are assumptions: give your own.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scale_cluster import Cluster, Job, Ledger, Link
from scale_plan import Cut, Rounds, rounds

from shapley.jobs.segments import Item

_ENDS_ROWS = 2  # v(N) and v(0), of each prompt
_PREPARED_ROWS = 48  # of an item, if preparing had some


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="synthetic:48x6400")
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--topics", type=int, default=14)
    parser.add_argument("--prompts", type=int, default=64, help="of a topic")
    parser.add_argument("--budget", type=int, default=120_000, help="forward rows of a topic")
    parser.add_argument("--rate", type=float, nargs="+", default=[0.1], help="forward rows a second of one shard")
    parser.add_argument("--preempted", type=float, nargs="+", default=[0.0, 1.0], help="times an hour and shard")
    parser.add_argument("--warned", action="store_true", help="preemption sends SIGTERM first")
    parser.add_argument("--merge-item", type=float, default=0.0042)
    parser.add_argument("--merge-topic", type=float, default=0.12)
    parser.add_argument("--share-preparing", action="store_true", help="what if the diagonal were a round of its own")
    parser.add_argument("--by-pair", action="store_true", help="what if exact differences were cut by pairs, too")
    parser.add_argument("--part-players", type=int, default=Cut().players, help="what if an item had so many players")
    parser.add_argument("--drop-waiting", action="store_true", help="what if requeued tasks went when all is done")
    options = parser.parse_args()
    plan = rounds(options.model, options.budget, options.prompts, 100, Cut(options.part_players, options.by_pair))
    _describe(options, plan)
    for rate in options.rate:
        for preempted in options.preempted:
            cluster = Cluster(
                options.shards, rate, preempted=preempted, warned=options.warned, dropped=options.drop_waiting
            )
            started = time.monotonic()
            print(report(simulate(plan, options, cluster), cluster))
            print(f"  (simulated in {time.monotonic() - started:.0f} s)", flush=True)


@dataclass
class Outcome:
    """Seconds of a run by what they went to, if every shard had them; and the same for files."""

    perfect: float
    wall: float
    preparing: float
    between: float
    merging: float
    arrays: float
    n_arrays: int
    ledger: Ledger


def simulate(plan: Rounds, options: Any, cluster: Cluster) -> Outcome:
    """A run from its submission to its end."""
    first = plan.diagonal + _ENDS_ROWS * options.prompts
    total, ledger = 0.0, Ledger()
    preparing = cluster.delay + cluster.start + cluster.load
    jobs = plan.jobs
    if options.share_preparing:
        rows = {Item(i, 0): _PREPARED_ROWS for i in range(first // _PREPARED_ROWS)}
        jobs = [Job(rows, dict.fromkeys(rows, 0)), *jobs]
    else:
        preparing += first * options.topics / cluster.rate
        total += first * options.topics / cluster.rate
    between = merging = arrays = 0.0
    n_arrays = 0
    for job in jobs:
        link: Link | None = None
        while link is None or link.left:  # what an array leaves undone, the next one does
            link = Link(cluster, [job] * options.topics, n_arrays, link)
            n_arrays += 1
            arrays += link.run()
            ledger.add(link.ledger)
            between += (
                2 * cluster.delay + cluster.start
            )  # the array waits for the merge before it, the merge for the array
        merging += options.topics * (options.merge_topic + _gradient_items(job) * options.merge_item)
        total += options.topics * sum(job.rows.values()) / cluster.rate
    wall = preparing + between + merging + arrays
    return Outcome(total / cluster.shards, wall, preparing, between, merging, arrays, n_arrays, ledger)


def _gradient_items(job: Job) -> int:
    return sum(item.part == 0 and job.bytes[item] > 0 for item in job.rows)


def _describe(options: Any, plan: Rounds) -> None:
    print(f"{options.model}, {options.topics} topics, {options.budget} forward rows each, {options.shards} shards")
    for number, job in enumerate(plan.jobs):
        rows, size = (options.topics * sum(each.values()) for each in (job.rows, job.bytes))
        print(f"  round {number}: {options.topics * len(job.rows)} items, {rows} rows, {size / 1e9:.2f} GB of samples")


def report(found: Outcome, cluster: Cluster) -> str:
    """In words and percent of the wall time."""
    n, ledger = cluster.shards, found.ledger
    held = sum(ledger.seconds[what] for what in _HELD) + found.preparing
    lines = [
        f"rate {cluster.rate:g} rows/s, {cluster.preempted:g} preemptions an hour and shard ({ledger.preemptions} in all): "
        f"perfect {_hours(found.perfect)}, simulated {_hours(found.wall)}, efficiency {found.perfect / found.wall:.1%}; "
        f"of the time that shards were held {found.perfect * n / held:.1%}; {found.n_arrays} arrays"
    ]
    shares: Counter[str] = Counter({what: seconds / n for what, seconds in ledger.seconds.items()})
    shares.update({"preparing": found.preparing, "between jobs": found.between, "merging": found.merging})
    lines += [f"  {what:<22}{seconds:>9.0f} s {seconds / found.wall:>7.1%}" for what, seconds in _sorted(shares)]
    files = ", ".join(f"{count} {kind}" for kind, count in sorted(ledger.files.items()))
    lines.append(f"  workers' files: {files}; {ledger.bytes / 1e9:.1f} GB written")
    lines.append(f"  at most {sum(ledger.files.values()) / found.arrays:.0f} file operations a second on average")
    return "\n".join(lines)


_HELD = ("useful", "done twice", "lost work", "saving", "start-up", "ready to help")


def _sorted(shares: Counter[str]) -> Sequence[tuple[str, float]]:
    return shares.most_common()


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    main()
