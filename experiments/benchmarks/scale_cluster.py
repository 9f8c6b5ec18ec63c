"""A cluster in virtual time: the real ``shapley.jobs.worker.Worker``, a thousand times, on segments that are only remembered.

What is real: how a round is cut into shards, when a worker saves, whom it helps and when it goes. What is not: the model
(an item takes its rows over a rate), the disk (a write takes a latency and its bytes over a bandwidth), and Slurm (a task
starts after a delay; a preempted one waits in the queue and starts again).
"""

from __future__ import annotations

import functools
import math
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from scale_clock import Clock, Killed, Process

from shapley.jobs import worker
from shapley.jobs.attempt import BEAT_SECONDS, SILENT_SECONDS
from shapley.jobs.segments import Item

# Of files.atomic_path; a segment is synced once more. Opened: the file, again to sync it, the folder.
BEAT = {"open": 3, "fsync": 2, "rename": 1, "remove": 1}
_SEGMENT = {**BEAT, "fsync": 3}


@dataclass(frozen=True)
class Cluster:
    """What is assumed. Times in seconds, ``spread`` of the shards' speeds (uniform, plus and minus).

    Attributes:
        rate: forward rows a second of one shard.
        delay: between the end of a job and the start of the one that waits for it.
        start: of a process, without the model; ``load``, of the model.
        preempted: an hour and shard. ``warned``: whether SIGTERM comes before the end.
        requeue: shortest and longest time in the queue after it.
        latency, bandwidth: of a write, in bytes a second.
        dropped: whether tasks in the queue are cancelled when nothing is left to do (nobody does that).
    """

    shards: int = 1000
    rate: float = 10.0
    spread: float = 0.05
    delay: float = 15.0
    start: float = 10.0
    load: float = 50.0
    preempted: float = 0.0
    warned: bool = False
    requeue: tuple[float, float] = (60.0, 120.0)
    latency: float = 0.02
    bandwidth: float = 200e6
    dropped: bool = False
    seed: int = 0


@dataclass
class Ledger:
    """Shard-seconds by what they went to, file operations by kind, and bytes written."""

    seconds: Counter[str] = field(default_factory=Counter)
    files: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    preemptions: int = 0

    def add(self, other: Ledger) -> None:
        self.seconds += other.seconds
        self.files += other.files
        self.bytes += other.bytes
        self.preemptions += other.preemptions


@dataclass(frozen=True)
class Job:
    """The items of one topic in a round, with rows and bytes of each."""

    rows: Mapping[Item, int]
    bytes: Mapping[Item, int]


@dataclass
class _Life:
    """An attempt, as others see it."""

    shard: tuple[int, int]
    start: float
    end: float = math.inf
    killed: bool = False


class Link:
    """One array: all shards work at the jobs of a round until nobody has anything to do.

    Args:
        cluster, jobs: what works, and at what.
        seed: of its accidents.
        before: the array before, where that left something undone.
    """

    def __init__(self, cluster: Cluster, jobs: Sequence[Job], seed: int, before: Link | None = None) -> None:
        self.ledger = Ledger()
        self._cluster, self._jobs = cluster, jobs
        self._items = [list(job.rows) for job in jobs]
        self._clock = Clock()
        self._rng = np.random.default_rng([cluster.seed, seed])
        self._speed = 1 + cluster.spread * self._rng.uniform(-1, 1, cluster.shards)
        self._done: list[dict[Item, float]] = [
            dict.fromkeys(before._done[i], 0.0) if before else {} for i in range(len(jobs))
        ]
        self._segments: list[list[float]] = [[] for _ in jobs]
        self._helped: Counter[str] = Counter()  # segments by the ending of their names
        self._lives: dict[str, _Life] = {}
        self._ends: dict[int, float] = {}
        self._last = 0.0  # of them
        self._at_work = threading.local()  # whose thread it is

    def run(self) -> float:
        """Returns seconds from the first start to the last end."""
        threading.stack_size(1 << 18)
        with _patched(self):
            for shard in range(self._cluster.shards):
                self._start(shard, 0, 0.0)
            self._clock.run()
        spent = self.ledger.seconds
        spent["waiting for the last"] = sum(self._last - own for own in self._ends.values())
        return self._last

    @property
    def left(self) -> int:
        """Items that nobody did."""
        return sum(len(job.rows) - len(done) for done, job in zip(self._done, self._jobs, strict=True))

    def _start(self, shard: int, attempt: int, at: float) -> None:
        rate = self._cluster.preempted / 3600
        life = float(self._rng.exponential(1 / rate)) if rate else math.inf
        process = Process(at + life)
        self._clock.start(process, lambda: self._attempt(shard, attempt, process), at)

    def _attempt(self, shard: int, attempt: int, process: Process) -> None:
        """From the start of a task to its end, or to its end before its time and the next one's start."""
        if attempt and self._cluster.dropped and not self.left:
            self._ends[shard] = self._last
            return
        name = f"{shard:05d}-{attempt:012x}"
        own = self._at_work.own = _Own(self, name, shard, process)
        life = self._lives[name] = _Life((shard, self._cluster.shards), self._clock.now)
        try:
            try:
                own.spend("start-up", self._cluster.start)
                own.worker.run()
            except worker.Stopped:
                raise Killed from None
        except Killed:
            life.killed = not self._cluster.warned
            self.ledger.preemptions += 1
            self.ledger.seconds["lost work"] += own.unsaved
            wait = float(self._rng.uniform(*self._cluster.requeue))
            self.ledger.seconds["in the queue again"] += wait
            self._start(shard, attempt + 1, self._clock.now + wait)
        else:
            self._ends[shard] = self._last = self._clock.now
        finally:
            life.end = self._clock.now
            beats = 2 + int((life.end - life.start) / BEAT_SECONDS)
            self.ledger.files += Counter({kind: beats * n for kind, n in BEAT.items()})


class _Own:
    """What one worker is given in place of files, a model and signals."""

    def __init__(self, link: Link, name: str, shard: int, process: Process) -> None:
        self.link, self.process = link, process
        self.unsaved = 0.0  # seconds of work in no segment
        self.speed = float(link._speed[shard])
        report = SimpleNamespace(shard=shard, of=link._cluster.shards, rounds="")
        self.signals = worker._Signals()
        run = SimpleNamespace(workers=self, record={})
        attempt: Any = SimpleNamespace(report=report, name=name, add_rows=lambda rows: None, say=lambda rounds: None)
        process.dying = self._end
        self.streams = [_Stream(self, i) for i in range(len(link._jobs))]
        self.worker = worker.Worker(run, attempt, "", self.signals)  # type: ignore[arg-type]

    def open(self, device: str) -> tuple[dict[str, str], _Own]:
        self.spend("start-up", self.link._cluster.load)
        return {"fingerprint": ""}, self

    def spend(self, what: str, seconds: float) -> None:
        """Virtual time, for one thing; what a killed process spent counts too."""
        start = self.link._clock.now
        try:
            self.link._clock.sleep(seconds)
        finally:
            self.link.ledger.seconds[what] += self.link._clock.now - start

    def compute(self, stream: int, item: Item) -> tuple[tuple[Any, ...], int]:
        rows, start = self.link._jobs[stream].rows[item], self.link._clock.now
        try:
            self.link._clock.sleep(rows / self.link._cluster.rate / self.speed)
        finally:
            self.unsaved += self.link._clock.now - start
        return (), rows

    def save(self, stream: int, items: Sequence[Item], ending: str) -> None:
        """A segment: its time, its bytes; done, or done again."""
        link, cluster = self.link, self.link._cluster
        size = sum(link._jobs[stream].bytes[item] for item in items)
        self.spend("saving", cluster.latency + size / cluster.bandwidth)
        link.ledger.files += Counter(_SEGMENT)
        link.ledger.bytes += size
        link._segments[stream].append(link._clock.now)
        link._helped[ending] += 1
        again = [item for item in items if item in link._done[stream]]
        rows = link._jobs[stream].rows
        double = sum(rows[item] for item in again) / cluster.rate / self.speed
        useful = sum(rows[item] for item in items) / cluster.rate / self.speed - double
        link.ledger.seconds["useful"] += useful
        link.ledger.seconds["done twice"] += double
        self.unsaved -= useful + double
        for item in items:
            link._done[stream].setdefault(item, link._clock.now)

    def _end(self) -> None:
        if not self.link._cluster.warned:
            raise Killed
        self.signals.ring(15, None)


class _Stream:
    """Stands in for a ``Stream``, its ``Present`` and its ``Shelf``, for one worker."""

    finished, prepared = False, True
    number = 0

    def __init__(self, own: _Own, index: int) -> None:
        self._own, self._index = own, index
        self._scanned, self._known, self._known_helped = -1.0, 0, 0
        self.model = {"fingerprint": "", "name": ""}
        self.name, self.folder = str(index), Path(str(index))
        self.items = own.link._items[index]
        self.shelf = self.places = self
        self.settings = own  # what write_segment is given

    def present(self) -> _Stream:
        return self

    def compute(self, number: int, opened: None) -> Any:
        return functools.partial(self._own.compute, self._index)

    def scan(self, ending: str = "") -> None:
        link = self._own.link
        self._scanned = link._clock.now
        if ending:
            new = link._helped[ending] - self._known_helped
            self._known_helped += new
        else:
            new = len(link._segments[self._index]) - self._known
            self._known += new
        link.ledger.files += Counter({"list": 1, "read": new})

    def __contains__(self, item: object) -> bool:
        return self._own.link._done[self._index].get(item, math.inf) <= self._scanned  # type: ignore[call-overload]

    def missing(self, items: Sequence[Item]) -> list[Item]:
        return [item for item in items if item not in self]


class _Watch:
    """Stands in for ``Watch``, by its rule: alive is who was seen to beat a short while ago."""

    def __init__(self, own: _Own, rounds: str) -> None:
        self._link = own.link
        self._first = own.link._clock.now

    def look(self) -> None:
        self._link.ledger.files += Counter({"list": 1, "read": len(self._link._lives)})

    def alive(self) -> set[tuple[int, int]]:
        now = self._link._clock.now
        # A killed worker's report says that it works, and has to be seen to stand still.
        since = math.inf if now - self._first > SILENT_SECONDS else 0.0
        return {
            life.shard
            for life in self._link._lives.values()
            if life.end == math.inf or (life.killed and life.end > min(since, now - SILENT_SECONDS))
        }


@contextmanager
def _patched(link: Link) -> Iterator[None]:
    """The worker's module with virtual time and remembered segments."""

    def write(path: Path, own: _Own, samples: Mapping[Item, Any]) -> None:
        ending = path.stem[len("00000-000000000000-00000") :]
        own.save(int(path.parent.name), list(samples), ending)

    def wait(seconds: float) -> None:
        link._at_work.own.spend("ready to help", seconds)

    fakes = {
        "time": SimpleNamespace(monotonic=link._clock.monotonic, sleep=wait),
        "write_segment": write,
        "job_of": lambda run: run.workers,
        "Watch": _Watch,
        "Task": functools.cache(worker.Task),  # one of each for all workers, to spare memory
    }
    with mock.patch.multiple(worker, **fakes):
        yield
