"""How a run stands: what is done, who works, what failed, when it will be finished, and the top players so far."""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from shapley.errors import ShapleyError
from shapley.jobs import slurm
from shapley.jobs.attempt import Report, read_reports
from shapley.jobs.folder import RunFolder
from shapley.jobs.kinds import job_of
from shapley.jobs.stream import Figures, Stream
from shapley.jobs.submit import jobs_of


@dataclass(frozen=True)
class TopicStatus:
    """One topic, or a sweep.

    Attributes:
        topic: its name.
        state: ``not prepared``, ``working``, ``to be merged`` or ``finished``.
        round: at work; -1 before the first.
        done, items: of the round.
        rows, planned: forward rows merged and in segments, and of the whole run at most.
        top: the best players so far: layer, neuron, score, and half the 95% interval.
        damaged: a line for each damaged segment.
    """

    topic: str
    state: str
    round: int = -1
    done: int = 0
    items: int = 0
    rows: int = 0
    planned: int = 0
    seconds: float = 0.0
    top: list[dict[str, Any]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class RunStatus:
    """All streams, and the attempts at shards.

    Attributes:
        running, done, stopped, failed, lost: attempts by what became of them. ``lost`` say that they work, and are in no
            queue and no process list; ``failed`` are those whose shard nobody took up again.
        queued: Slurm tasks that have not started, by Slurm's reason.
        rate: forward rows a second of those that run.
        left: seconds to the end at this rate, if all planned rows are needed; nothing without a rate.
    """

    path: Path
    finished: bool
    topics: list[TopicStatus]
    running: list[Report]
    done: list[Report]
    stopped: list[Report]
    failed: list[Report]
    lost: list[Report]
    queued: dict[str, int]
    rate: float
    left: float | None


def status(run: RunFolder, n_top: int = 5) -> RunStatus:
    """Look at a run; nothing is changed.

    Raises:
        ShapleyError: a file of the run cannot be read.
    """
    topics = [_topic(stream, n_top) for stream in job_of(run).streams]
    reports, queue = read_reports(run.workers), _queue(run)
    by_state: dict[str, list[Report]] = {"working": [], "done": [], "stopped": [], "failed": []}
    for report in reports:
        by_state[report.state].append(report)
    running = [report for report in by_state["working"] if _lives(report, queue)]
    again = {_place(report) for report in [*running, *by_state["done"]]}
    rate = sum(report.rows / report.seconds for report in running if report.seconds > 0)
    left = sum(topic.planned - topic.rows for topic in topics if topic.state != "finished")
    return RunStatus(
        run.path,
        run.result.exists(),
        topics,
        running,
        by_state["done"],
        by_state["stopped"],
        [report for report in by_state["failed"] if _place(report) not in again],
        [report for report in by_state["working"] if report not in running],
        dict(Counter(entry.reason for entry in queue.values() if entry.state == "PENDING").most_common()),
        rate,
        left / rate if rate > 0 else None,
    )


def describe(run: RunFolder, found: RunStatus, logs: bool = False) -> str:
    """In words."""
    lines = []
    for topic in found.topics:
        line = f"{topic.topic}: {topic.state}"
        if topic.state in ("working", "to be merged"):
            line += f", round {topic.round}: {topic.done} of {topic.items} items, {topic.rows} of at most {topic.planned} rows"
        elif topic.state == "finished":
            line += f", {topic.rows} forward rows, {topic.seconds:.0f} s of work"
        lines.append(line)
        best = (f"({x['layer']}, {x['neuron']}) {x['score']:.4f} +- {x['half_width']:.2g}" for x in topic.top)
        if topic.top:
            lines.append(f"  top: {'; '.join(best)}")
        lines += [f"  damaged: {line}" for line in topic.damaged]
    names = ("running", "done", "stopped", "failed", "lost")
    by_name = {name: sum(report.step == "work" for report in getattr(found, name)) for name in names}
    counts = ", ".join(f"{count} {name}" for name, count in by_name.items())
    reasons = ", ".join(f"{n} {reason or 'new'}" for reason, n in found.queued.items())
    lines.append(
        f"workers: {counts}; {sum(found.queued.values())} tasks in the queue" + f" ({reasons})" * bool(reasons)
    )
    if found.finished:
        return "\n".join([*lines, f"finished: {job_of(run).hint}"])
    if found.left is not None:
        lines.append(f"{found.rate:.1f} forward rows a second, at most {_duration(found.left)} to go")
    for report in found.failed:
        lines.append(f"{_title(report)} on {report.host} failed: {report.error}")
        if logs:
            lines += [f"  log: {_log(run, report)}", *(f"  {line}" for line in report.traceback.splitlines())]
    if found.failed and not logs:
        lines.append(f"their logs: shapley status {run.path} --logs")
    if not found.running and not found.queued:
        lines.append(f"nobody works: the same 'shapley submit' goes on with what is left; logs are in {run.logs}")
    return "\n".join(lines)


def _place(report: Report) -> tuple[str, int, int]:
    """What another attempt has to be to make up for one that failed."""
    return report.step, report.shard, report.of


def _title(report: Report) -> str:
    if report.step != "work":
        return report.step
    return f"shard {report.shard}" if report.shard >= 0 else "an added worker"


def _queue(run: RunFolder) -> dict[str, slurm.QueueEntry]:
    """What Slurm knows of the run's jobs; nothing where there is no Slurm, or it was never asked."""
    jobs = jobs_of(run)
    try:
        return slurm.queue(jobs) if jobs else {}
    except ShapleyError:
        return {}


def _lives(report: Report, queue: dict[str, slurm.QueueEntry]) -> bool:
    if report.job:
        return report.job in queue and queue[report.job].state in ("RUNNING", "COMPLETING")
    return report.host == platform.node() and Path(f"/proc/{report.pid}").exists()


def _log(run: RunFolder, report: Report) -> str:
    found = sorted(run.logs.glob(f"*-{report.job}.log")) if report.job else []
    return str(found[0]) if found else "none: it was not a Slurm job"


def _duration(seconds: float) -> str:
    hours, minutes = divmod(int(seconds) // 60, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {int(seconds) % 60} s"


def _topic(stream: Stream, n_top: int) -> TopicStatus:
    if stream.finished:
        found = stream.figures()
        return TopicStatus(
            stream.name,
            "finished",
            found.round,
            rows=found.rows,
            planned=found.planned,
            seconds=found.seconds,
            top=_top(found, n_top),
        )
    if not stream.prepared:
        return TopicStatus(stream.name, "not prepared")
    ledger = stream.ledger()
    items, shelf, found = ledger.present.items, ledger.present.shelf, ledger.figures()
    shelf.scan()
    there = [shelf.places[item] for item in items if item in shelf.places]
    rows = found.rows + sum(int(place.record["rows"]) for place in there)
    return TopicStatus(
        stream.name,
        "working" if len(there) < len(items) else "to be merged",
        found.round,
        len(there),
        len(items),
        rows,
        max(found.planned, rows),
        found.seconds + sum(float(place.record["seconds"]) for place in there),
        _top(found, n_top),
        list(shelf.damaged.values()),
    )


def _top(figures: Figures, n: int) -> list[dict[str, Any]]:
    """The best players with half their 95% intervals."""
    if figures.scores is None:
        return []
    score, stderr, count = figures.scores
    order = np.argsort(-np.nan_to_num(score, nan=-np.inf), axis=None, kind="stable")[:n]
    found = []
    for flat in order:
        layer, neuron = divmod(int(flat), score.shape[1])
        half = stats.t.ppf(0.975, max(int(count.flat[flat]) - 1, 1)) * float(stderr.flat[flat])
        found.append({"layer": layer, "neuron": neuron, "score": float(score.flat[flat]), "half_width": float(half)})
    return found
