"""A cluster in virtual time: the real ``shapley.jobs.worker.Worker``, a thousand times, on segments that are only remembered.

What is real: how a round is cut into shards, when a worker saves, whom it helps, who merges and who waits for it, and when it
goes. What is not: the model (an item takes its rows over a rate), the disk (a write takes a latency and its bytes over a
bandwidth), the merge (it takes what ``scale_merge.py`` measured), and Slurm (a task starts after a delay; a preempted one
waits in the queue and starts again).
"""

from __future__ import annotations

import functools
import math
import threading
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from scale_clock import Clock, Killed, Process

from shapley.jobs import attempt, signals, worker
from shapley.jobs.attempt import BEAT_SECONDS
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
        merge_item, merge_topic: of a merge, for each item of gradients and for each topic.
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
    merge_item: float = 0.0051
    merge_topic: float = 0.24
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
class Round:
    """The items of one topic, with rows and bytes of each."""

    rows: Mapping[Item, int]
    bytes: Mapping[Item, int]

    def merging(self, cluster: Cluster) -> float:
        """Seconds that it takes to merge a topic."""
        n_gradients = sum(item.part == 0 or item.unit < 0 for item in self.rows)
        return cluster.merge_topic + n_gradients * cluster.merge_item


@dataclass
class _Life:
    """An attempt, as others see it."""

    name: str
    report: Any
    start: float
    end: float = math.inf
    killed: bool = False

    def at(self, now: float) -> Any:
        """Its report: a killed one says for ever that it works, but beats no more."""
        state = "working" if self.end == math.inf or self.killed else "done"
        beat = int((min(now, self.end) - self.start) / BEAT_SECONDS)
        return SimpleNamespace(**vars(self.report), name=self.name, state=state, beat=beat)


class _State:
    """What is there of a round: by topic, when each item was first saved, when each segment came, and whether it is merged; and
    by the ending of their names, how many segments."""

    def __init__(self, number: int, items: list[Item], n_topics: int) -> None:
        self.number, self.items = number, items
        self.done: list[dict[Item, float]] = [{} for _ in range(n_topics)]
        self.segments: list[list[float]] = [[] for _ in range(n_topics)]
        self.helped: Counter[str] = Counter()
        self.merged: set[int] = set()

    @property
    def left(self) -> int:
        return sum(len(self.items) - len(done) for done in self.done)


class Link:
    """One array: all shards work, round after round, until all have left.

    Args:
        cluster, rounds, n_topics: what works, and at what; all topics have the same rounds.
        seed: of its accidents.
        before: the array before, where that left something undone.
    """

    def __init__(
        self, cluster: Cluster, rounds: Sequence[Round], n_topics: int, seed: int, before: Link | None = None
    ) -> None:
        self.ledger = Ledger()
        self.n_topics = n_topics
        self._cluster, self._rounds = cluster, rounds
        self._clock = Clock()
        self._rng = np.random.default_rng([cluster.seed, seed])
        self._speed = 1 + cluster.spread * self._rng.uniform(-1, 1, cluster.shards)
        self._state = before._state if before else self._begin(0)
        for done in self._state.done:
            done.update(dict.fromkeys(done, 0.0))
        self._claims: dict[str, str] = {}  # by file, whose
        self._started: set[int] = set()
        self._lives: dict[str, _Life] = {}
        self._ends: dict[int, float] = {}
        self._last = 0.0  # of them
        self._at_work = threading.local()  # whose thread it is

    def _begin(self, number: int) -> _State:
        items = list(self._rounds[number].rows) if number < len(self._rounds) else []
        return _State(number, items, self.n_topics)

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
    def finished(self) -> bool:
        return self._state.number == len(self._rounds)

    @property
    def left(self) -> int:
        """Items of the present round that nobody did."""
        return self._state.left

    @property
    def merging(self) -> float:
        """Seconds that the merge of one topic's present round takes."""
        return self._rounds[self._state.number].merging(self._cluster)

    @property
    def unmerged(self) -> int:
        """Topics."""
        return self.n_topics - len(self._state.merged)

    def merge(self, topics: Iterable[int]) -> None:
        """Topics are merged; when all are, the next round begins. (In truth each begins the next by itself, and the workers
        wait for the others.)"""
        if not self.finished and not self._state.left:
            self._state.merged.update(topics)
            if not self.unmerged:
                self._state = self._begin(self._state.number + 1)

    def _start(self, shard: int, attempt: int, at: float) -> None:
        rate = self._cluster.preempted / 3600
        life = float(self._rng.exponential(1 / rate)) if rate else math.inf
        process = Process(at + life)
        self._clock.start(process, lambda: self._attempt(shard, attempt, process), at)

    def _attempt(self, shard: int, attempt: int, process: Process) -> None:
        """From the start of a task to its end, or to its end before its time and the next one's start."""
        if self.finished:  # what still waits is cancelled
            return
        self._started.add(shard)
        name = f"{shard:05d}-{attempt:012x}"
        own = self._at_work.own = _Own(self, name, shard, process)
        life = self._lives[name] = _Life(name, own.report, self._clock.now)
        try:
            try:
                own.spend("start-up", self._cluster.start)
                own.worker.run()
            except signals.Stopped:
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
        self.report = SimpleNamespace(shard=shard, of=link._cluster.shards, rounds="")
        self.signals = signals.Signals()
        run = SimpleNamespace(workers=self, record={})
        attempt: Any = SimpleNamespace(
            report=self.report, name=name, add_rows=lambda rows: None, say=self._say, started=lambda: link._started
        )
        process.dying = self._end
        self.killed = False
        self.streams = [_Stream(self, i) for i in range(link.n_topics)]
        self.worker = worker.Worker(run, attempt, "", self.signals)  # type: ignore[arg-type]

    def _say(self, rounds: str) -> None:
        self.report.rounds = rounds

    def __truediv__(self, name: str) -> _Claim:
        return _Claim(self, name)

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

    def compute(self, number: int, item: Item) -> tuple[tuple[Any, ...], int]:
        rows, start = self.link._rounds[number].rows[item], self.link._clock.now
        try:
            self.link._clock.sleep(rows / self.link._cluster.rate / self.speed)
        finally:
            self.unsaved += self.link._clock.now - start
        return (), rows

    def save(self, shelf: _Shelf, items: Sequence[Item], ending: str) -> None:
        """A segment: its time, its bytes; done, or done again."""
        link, cluster, state, stream = self.link, self.link._cluster, shelf._state, shelf._index
        at_work = link._rounds[state.number]
        size = sum(at_work.bytes[item] for item in items)
        self.spend("saving", cluster.latency + size / cluster.bandwidth)
        link.ledger.files += Counter(_SEGMENT)
        link.ledger.bytes += size
        state.segments[stream].append(link._clock.now)
        state.helped[ending] += 1
        again = [item for item in items if item in state.done[stream]]
        rows = at_work.rows
        double = sum(rows[item] for item in again) / cluster.rate / self.speed
        useful = sum(rows[item] for item in items) / cluster.rate / self.speed - double
        link.ledger.seconds["useful"] += useful
        link.ledger.seconds["done twice"] += double
        self.unsaved -= useful + double
        for item in items:
            state.done[stream].setdefault(item, link._clock.now)

    def merge(self, stream: _Stream) -> tuple[list[Item], list[str]]:
        """The present round of a topic."""
        if stream._index not in self.link._state.merged:
            self.spend("merging", self.link.merging)
            self.link.merge([stream._index])
        return [], []

    def glob(self, pattern: str) -> Iterator[str]:
        return iter(self.link._claims)

    def _end(self) -> None:
        if not self.link._cluster.warned:
            self.killed = True
            raise Killed
        self.signals.ring(15, None)


class _Claim:
    """Stands in for the file that says that somebody merges."""

    def __init__(self, own: _Own, name: str) -> None:
        self._own, self._name = own, name

    @contextmanager
    def held(self, name: str) -> Iterator[bool]:
        claims = self._own.link._claims
        if self._name in claims:
            yield False
            return
        claims[self._name] = name
        try:
            yield True
        finally:
            if not self._own.killed:  # the dead leave it
                claims.pop(self._name, None)

    def read_text(self) -> str:
        return self._own.link._claims.get(self._name, "")

    def unlink(self, missing_ok: bool) -> None:
        self._own.link._claims.pop(self._name, None)


class _Stream:
    """Stands in for a ``Stream``, for one worker."""

    prepared = True

    def __init__(self, own: _Own, index: int) -> None:
        self._own, self._index = own, index
        self.model = {"fingerprint": "", "name": ""}
        self.name, self.path = str(index), Path(str(index))

    @property
    def finished(self) -> bool:
        return self._own.link.finished

    @property
    def round(self) -> int:
        return self._own.link._state.number

    def present(self) -> _Shelf:
        return _Shelf(self._own, self._index)

    def compute(self, number: int, opened: None) -> Any:
        return functools.partial(self._own.compute, number)


class _Shelf:
    """Stands in for a ``Present`` and its ``Shelf``, for one worker."""

    def __init__(self, own: _Own, index: int) -> None:
        self._own, self._index, self._state = own, index, own.link._state
        self._scanned, self._known, self._known_helped = -1.0, 0, 0
        self.folder, self.items, self.number = Path(str(index)), self._state.items, self._state.number
        self.shelf = self.places = self
        self.settings = self  # what write_segment is given

    def scan(self, ending: str = "") -> None:
        link = self._own.link
        self._scanned = link._clock.now
        if ending:
            new = self._state.helped[ending] - self._known_helped
            self._known_helped += new
        else:
            new = len(self._state.segments[self._index]) - self._known
            self._known += new
        link.ledger.files += Counter({"list": 1, "read": new})

    def __contains__(self, item: object) -> bool:
        return self._state.done[self._index].get(item, math.inf) <= self._scanned  # type: ignore[call-overload]

    def missing(self, items: Sequence[Item]) -> list[Item]:
        return [item for item in items if item not in self]


@contextmanager
def _patched(link: Link) -> Iterator[None]:
    """The worker's module with virtual time and remembered segments."""

    def write(path: Path, shelf: _Shelf, samples: Mapping[Item, Any]) -> None:
        ending = path.stem[len("00000-000000000000-00000") :]  # after the attempt's name and a number
        shelf._own.save(shelf, list(samples), ending)

    def wait(seconds: float) -> None:
        link._at_work.own.spend("while others merge" if link._claims else "ready to help", seconds)

    def job(run: Any) -> _Own:
        own: _Own = run.workers
        link.ledger.files["list"] += link.n_topics
        return own

    def reports(own: _Own, shards: Collection[int] | None) -> list[Any]:
        wanted = [life for life in link._lives.values() if shards is None or life.report.shard in shards]
        link.ledger.files += Counter({"list": 1, "read": len(wanted)})
        return [life.at(link._clock.now) for life in wanted]

    clock = SimpleNamespace(monotonic=link._clock.monotonic, sleep=wait)
    fakes = {
        "time": clock,
        "write_segment": write,
        "job_of": job,
        "merge_stream": lambda stream: stream._own.merge(stream),
        "finish": lambda run: None,
        "_claimed": _Claim.held,
        "Task": functools.cache(worker.Task),  # one of each for all workers, to spare memory
    }
    with (
        mock.patch.multiple(worker, **fakes),
        mock.patch.object(signals, "time", clock),
        mock.patch.multiple(attempt, time=clock, read_reports=reports),
    ):
        yield
