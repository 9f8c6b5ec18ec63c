"""One attempt at a shard: the small file that says it is alive, how far it is, and what went wrong.

Nobody compares clocks: an attempt counts beats, and whoever watches sees whether the count goes up.
"""

from __future__ import annotations

import os
import platform
import threading
import time
import traceback
import uuid
from collections.abc import Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shapley.errors import ShapleyError
from shapley.jobs.sealed import read_sealed, write_sealed

BEAT_SECONDS = 10.0
SILENT_SECONDS = 3 * BEAT_SECONDS  # after which an attempt is taken to be dead


@dataclass(frozen=True)
class Report:
    """What an attempt says of itself.

    Attributes:
        step: what it does: ``work``, ``prepare`` or ``merge``.
        shard, of: its share of the work.
        name: of its file; of those who work, unique.
        beat: counts up while it lives.
        state: ``working``, ``done``, ``stopped`` (by a signal) or ``failed``.
        rows: forward rows so far; ``seconds``, of work.
        error: the last line of what went wrong, and ``traceback``, all of it.
        job: its Slurm job, or nothing.
        rounds: at which it works; nothing before it is ready to.
    """

    shard: int
    of: int
    name: str
    host: str
    pid: int
    step: str = "work"
    job: str = ""
    rounds: str = ""
    beat: int = 0
    state: str = "working"
    rows: int = 0
    seconds: float = 0.0
    error: str = ""
    traceback: str = ""


class Attempt:
    """Says what it does in a file of its own, every few seconds, from a thread; as a context manager."""

    def __init__(self, folder: Path, shard: int = -1, of: int = 1, step: str = "work") -> None:
        job = os.environ.get("SLURM_ARRAY_JOB_ID")
        # Of preparing and merging the last one counts.
        name = f"{shard:05d}-{job or 0}-{uuid.uuid4().hex[:12]}" if step == "work" else step
        task = f"{job}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if job else os.environ.get("SLURM_JOB_ID", "")
        self.report = Report(shard, of, name, platform.node(), os.getpid(), step, task)
        self._folder, self._path = folder, folder / f"{name}.json"
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._start = time.monotonic()

    @property
    def name(self) -> str:
        return self.report.name

    def __enter__(self) -> Attempt:
        self.say()
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._over.set()
        self._thread.join()
        if error is None:
            return
        line = str(error) if isinstance(error, ShapleyError) else f"{type(error).__name__}: {error}"
        text = "".join(traceback.format_exception(error))[-4000:]
        self.say(state="failed", error=" ".join(line.split())[:500], traceback=text)

    def done(self) -> None:
        """Say that all went well."""
        self.say(state="done")

    def say(self, **changes: Any) -> None:
        """Write the report, with these fields changed. A full disk is no reason to stop the work."""
        with self._lock:
            seconds = time.monotonic() - self._start
            self.report = replace(self.report, beat=self.report.beat + 1, seconds=seconds, **changes)
            with suppress(ShapleyError):
                write_sealed(self._path, asdict(self.report))

    def add_rows(self, rows: int) -> None:
        """Count forward rows; they are said with the next beat."""
        with self._lock:
            self.report = replace(self.report, rows=self.report.rows + rows)

    def started(self) -> set[int]:
        """Shards of the same array, or of none as this, that were ever started."""
        array = self.name.rsplit("-", 1)[0].split("-")[-1]
        shards = (int(path.name[:5]) for path in self._folder.glob(f"?????-{array}-*.json"))
        return {shard for shard in shards if shard >= 0}

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            self.say()


def read_reports(folder: Path, shards: Collection[int] | None = None) -> list[Report]:
    """Of all attempts, or those at some shards, the latest of each; what cannot be read is left out."""
    found = []
    wanted = None if shards is None else {f"{shard:05d}" for shard in shards}
    for path in sorted(folder.glob("*.json")):
        if wanted is not None and path.name[:5] not in wanted:
            continue
        with suppress(ShapleyError, TypeError):  # of another version, too
            found.append(Report(**read_sealed(path, "", "")))
    return found


class Watch:
    """Which shards have an attempt that lives, as far as one observer has seen.

    Args:
        folder: of reports.
        rounds: only attempts at these count. One that still loads its model does not: who is idle need not wait for it.
    """

    def __init__(self, folder: Path, rounds: str) -> None:
        self._folder, self._rounds = folder, rounds
        self._seen: dict[str, tuple[int, float]] = {}  # beat, and when it was first seen, by this process's own clock
        self._shards: dict[str, tuple[int, int]] = {}

    def look(self, shards: Collection[int] | None = None) -> None:
        """Take note of all beats, or of those of some shards; more often than attempts fall silent, best from the start."""
        now = time.monotonic()
        for report in read_reports(self._folder, shards):
            if report.state != "working" or report.rounds != self._rounds:
                self._seen.pop(report.name, None)
            elif self._seen.get(report.name, (-1, 0.0))[0] != report.beat:
                self._seen[report.name] = (report.beat, now)
                self._shards[report.name] = (report.shard, report.of)

    def alive(self) -> set[tuple[int, int]]:
        """Shards, as (number, of how many), whose attempt was seen to beat a short while ago."""
        return {self._shards[name] for name in self._seen if self.lives(name)}

    def lives(self, name: str) -> bool:
        """Whether an attempt was seen to beat a short while ago."""
        return name in self._seen and self._seen[name][1] > time.monotonic() - SILENT_SECONDS
