"""A run over a thousand shards, simulated: how long it takes against perfect sharing, and where the time goes.

    python experiments/benchmarks/scale.py [--shards 1000] [--topics 14] [--budget 720000] [--rate 4] [--preempted 0 1]

The rounds are the real estimator's, the workers the real ones in virtual time (``scale_cluster``). What a merge takes is what
``scale_merge.py`` measured: ``--merge-item`` seconds of one core for each item of gradients and ``--merge-topic`` for each
topic and round. All rates are assumptions: give your own.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from scale_cluster import Cluster, Ledger, Link, Round
from scale_plan import rounds

_ENDS_ROWS = 2  # v(N) and v(0), of each prompt
_HELD = ("useful", "done twice", "lost work", "saving", "start-up", "ready to help", "merging", "while others merge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="synthetic:48x6400")
    parser.add_argument("--shards", type=int, default=1000)
    parser.add_argument("--topics", type=int, default=14)
    parser.add_argument("--prompts", type=int, default=64, help="of a topic")
    parser.add_argument("--budget", type=int, nargs="+", default=[720_000], help="forward rows of a topic")
    parser.add_argument("--rate", type=float, nargs="+", default=[4.0], help="forward rows a second of one shard")
    parser.add_argument("--preempted", type=float, nargs="+", default=[0.0, 1.0], help="times an hour and shard")
    parser.add_argument("--warned", action="store_true", help="preemption sends SIGTERM first")
    parser.add_argument("--merge-item", type=float, default=Cluster.merge_item)
    parser.add_argument("--merge-topic", type=float, default=Cluster.merge_topic)
    options = parser.parse_args()
    for budget in options.budget:
        plan = rounds(options.model, budget, options.prompts, 100)
        describe(options, budget, plan)
        for rate in options.rate:
            for preempted in options.preempted:
                cluster = Cluster(
                    options.shards,
                    rate,
                    preempted=preempted,
                    warned=options.warned,
                    merge_item=options.merge_item,
                    merge_topic=options.merge_topic,
                )
                started = time.monotonic()
                print(report(simulate(plan, options.topics, options.prompts, cluster), cluster))
                print(f"  (simulated in {time.monotonic() - started:.0f} s)", flush=True)


@dataclass
class Outcome:
    """Seconds of a run by what they went to, if every shard had them; and what the workers counted.

    Attributes:
        perfect: if all shards shared all rows evenly and did nothing else.
        wall: from the submission to the end.
        preparing, between: before the first array, and between one and the next.
        arrays: while they run, of which there are ``n_arrays``.
    """

    perfect: float
    wall: float
    preparing: float
    between: float
    arrays: float
    n_arrays: int
    ledger: Ledger


def simulate(plan: list[Round], n_topics: int, n_prompts: int, cluster: Cluster) -> Outcome:
    """A run from its submission to its end."""
    first = _ENDS_ROWS * n_prompts / cluster.rate  # of one topic
    preparing, between, arrays, ledger = (
        cluster.delay + cluster.start + cluster.load + first,
        cluster.delay,
        0.0,
        Ledger(),
    )
    link: Link | None = None
    n_arrays = 0
    while link is None or not link.finished:
        if link:  # the merge waits for the array before it, the array for the merge
            between += 2 * cluster.delay + cluster.start + (0.0 if link.left else link.unmerged * link.merging)
            link.merge(range(n_topics))
        link = Link(cluster, plan, n_topics, n_arrays, link)
        n_arrays += 1
        arrays += link.run()
        ledger.add(link.ledger)
    rows = n_topics * sum(sum(each.rows.values()) for each in plan)
    perfect = rows / cluster.rate / cluster.shards
    return Outcome(perfect, preparing + between + arrays, preparing, between, arrays, n_arrays, ledger)


def describe(options: Any, budget: int, plan: list[Round]) -> None:
    """The rounds, in words."""
    print(f"{options.model}, {options.topics} topics, {budget} forward rows each, {options.shards} shards")
    for number, each in enumerate(plan):
        rows, size = (options.topics * sum(every.values()) for every in (each.rows, each.bytes))
        print(f"  round {number}: {options.topics * len(each.rows)} items, {rows} rows, {size / 1e9:.2f} GB of samples")


def report(found: Outcome, cluster: Cluster) -> str:
    """In words and percent of the wall time."""
    n, ledger = cluster.shards, found.ledger
    held = sum(ledger.seconds[what] for what in _HELD) + found.preparing
    lines = [
        f"rate {cluster.rate:g} rows/s, {cluster.preempted:g} preemptions an hour and shard ({ledger.preemptions} in all): "
        f"perfect {_hours(found.perfect)}, simulated {_hours(found.wall)}, efficiency {found.perfect / found.wall:.1%}; "
        f"of the time that shards were held {found.perfect * n / held:.1%}; arrays: {found.n_arrays}"
    ]
    shares: Counter[str] = Counter({what: seconds / n for what, seconds in ledger.seconds.items()})
    shares.update({"preparing": found.preparing, "between jobs": found.between})
    lines += [f"  {what:<22}{seconds:>9.0f} s {seconds / found.wall:>7.1%}" for what, seconds in shares.most_common()]
    files = ", ".join(f"{count} {kind}" for kind, count in sorted(ledger.files.items()))
    lines.append(f"  workers' files: {files}; {ledger.bytes / 1e9:.1f} GB written")
    lines.append(f"  file operations a second, on average: {sum(ledger.files.values()) / found.arrays:.0f}")
    return "\n".join(lines)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.2f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    main()
