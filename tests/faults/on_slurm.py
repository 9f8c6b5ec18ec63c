"""What a real Slurm does to jobs: requeues, preemptions, dead nodes, time limits. Workers run at their usual pace."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from shapley.estimators.registry import Plan
from shapley.jobs import slurm
from shapley.jobs.attempt import read_reports
from shapley.jobs.folder import RunFolder, create
from shapley.jobs.profile import Profile
from shapley.jobs.submit import jobs_of, submit
from tests.faults.reference import TOPICS, Case, wrong_bits
from tests.faults.trial import Outcome
from tests.slurm_cluster import Cluster

_GRADIENT = Plan(estimator="gradient", samples=600, seed=1)
SHORT = Case("synthetic:4x64@7", _GRADIENT)  # 26 seconds of work in one round
ROUNDS = Case("synthetic:4x64@5", Plan(estimator="two-stage", budget=2500, top_k=8))  # 24 in four
LONG = Case("synthetic:4x64@50", _GRADIENT)  # 180
SITE = Profile(partition="main", cpus=1, time="00:10:00", signal_seconds=30, environment={"OMP_NUM_THREADS": "1"})


@dataclass(frozen=True)
class Trouble:
    """Attributes:
    make: is called when workers are in the midst of their work; returns how many tasks it has hit.
    """

    name: str
    make: Callable[[Cluster, RunFolder], int]
    case: Case = SHORT
    site: Profile = SITE


def troubled(cluster: Cluster, folder: Path, trouble: Trouble, shards: int = 3) -> Outcome:
    """Submit, make trouble, wait for the result, compare."""
    start = time.monotonic()
    run = create(folder, TOPICS, trouble.case.plan, trouble.case.record(), shards, ["shapley"])
    submit(run, shards, trouble.site)
    wrong, hits, error = dict[str, int](), 0, ""
    try:
        _until(lambda: list(run.path.rglob("round-*/*.segment")), 60, "no segments")
        hits = trouble.make(cluster, run)
        _until(run.scores.exists, 300, "no result")
        wrong = wrong_bits(run.scores, trouble.case)
    except AssertionError as failure:
        error = str(failure)
    slurm.cancel(jobs_of(run))
    cluster.wait(jobs_of(run))
    reports = read_reports(run.workers)
    again, items = _rows(run, [report.rows for report in reports])
    bad = [report.error for report in reports if report.state == "failed"]
    return Outcome(
        trouble.name,
        "",
        "exec",
        time.monotonic() - start,
        hits,
        wrong,
        again,
        items,
        max((len(topic.rounds()) for topic in run.topics), default=0),
        error or "; ".join(bad),
    )


def _rows(run: RunFolder, computed: list[int]) -> tuple[int, int]:
    """Forward rows that workers say they computed beyond those that were needed, and those."""
    needed = 0
    for topic in run.topics:
        for number in topic.rounds():
            shelf = topic.shelf(number)
            shelf.scan()
            needed += sum(int(place.record["rows"]) for place in shelf.places.values())
    return max(0, sum(computed) - needed), needed


def _until(condition: Callable[[], object], seconds: float, otherwise: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{otherwise} after {seconds:.0f} s"
        time.sleep(0.2)


def running(run: RunFolder) -> dict[str, str]:
    """The run's array tasks at work, and their nodes."""
    entries = slurm.queue(jobs_of(run))
    return {task: entry.node for task, entry in entries.items() if entry.state == "RUNNING" and "_" in task}


def _call(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()


def requeue(cluster: Cluster, run: RunFolder) -> int:
    """Two of the tasks, by hand."""
    tasks = sorted(running(run))[:2]
    for task in tasks:
        _call("scontrol", "requeue", task)
    return len(tasks)


def cancel_a_task(cluster: Cluster, run: RunFolder) -> int:
    """One task for ever: the merge that follows finds its items missing, and the next link computes them."""
    task = sorted(running(run))[-1]
    _call("scancel", task)
    return 1


def preempt(cluster: Cluster, run: RunFolder) -> int:
    """A job of the high partition that wants a node for itself."""
    script = run.path / "urgent.sh"
    script.write_text("#!/bin/bash\nsleep 2\n")
    before = running(run)
    job = _call("sbatch", "--parsable", "--partition=high", "--exclusive", "--output=/dev/null", str(script))
    _until(
        lambda: slurm.queue([job]).get(job, None) is None or slurm.queue([job])[job].state == "RUNNING",
        60,
        "not urgent",
    )
    hit = len(set(before) - set(running(run)))
    cluster.wait([job])
    return hit


def node_dies(cluster: Cluster, run: RunFolder) -> int:
    """Its slurmd is killed, and Slurm told. What runs there goes on, unseen, while the same tasks start elsewhere."""
    nodes = running(run)
    node = sorted(nodes.values())[-1]
    pid = int((cluster.folder / "run" / f"slurmd.{node}.pid").read_text())
    _call("kill", "-9", str(pid))
    _call("scontrol", "update", f"nodename={node}", "state=down", "reason=dead")
    try:
        _until(lambda: node not in running(run).values(), 30, "the node's tasks stay")
        time.sleep(float(np.random.default_rng(0).uniform(3, 6)))
    finally:
        started = cluster.script("up")
        assert started.returncode == 0, started.stderr
    return sum(there == node for there in nodes.values())


def time_limit(cluster: Cluster, run: RunFolder) -> int:
    """Nothing to do but wait: told before the limit, workers save, and send themselves back to the queue."""
    _until(lambda: any(report.state == "stopped" for report in read_reports(run.workers)), 100, "no worker was stopped")
    return sum(report.state == "stopped" for report in read_reports(run.workers))


def killed_at_the_limit(cluster: Cluster, run: RunFolder) -> int:
    """Workers that are told nothing, as they sleep when the signal comes; the chain's next link goes on."""
    for report in read_reports(run.workers):
        if report.state == "working":
            _call("kill", "-STOP", str(report.pid))
    _until(lambda: not running(run), 150, "the limit did not end them")
    return 3  # as many as there are shards


TROUBLES = (
    Trouble("Slurm: scontrol requeue", requeue, ROUNDS),
    Trouble("Slurm: scancel of a task", cancel_a_task),
    Trouble("Slurm: preemption, at once", preempt, ROUNDS),
    Trouble("Slurm: preemption, with notice", preempt, site=replace(SITE, partition="grace")),
    Trouble("Slurm: a node dies", node_dies),
    Trouble("Slurm: time limit", time_limit, LONG, replace(SITE, time="00:01:00", signal_seconds=20)),
    Trouble(
        "Slurm: time limit, signal missed", killed_at_the_limit, LONG, replace(SITE, time="00:01:00", signal_seconds=1)
    ),
)
