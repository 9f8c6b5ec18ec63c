"""A worker: computes its shard of every stream's present round, then helps where nobody works; saves as it goes; and goes on
with the next round.

1. The rounds' items are listed in order, all streams in a row; a shard is an even slice of the list. What is in a segment is
   done, whoever did it.
2. Samples go into a segment every so often: so rarely that saving costs 1% of the time, but at least every ten minutes.
3. At SIGTERM, or SIGUSR2 before a time limit, the item at work is given up, the rest is saved, and the worker ends; after
   USR2 it asks Slurm to run it again. Nothing depends on either signal: a killed worker loses what it had since its last
   segment.
4. When its own items are done it takes up those of shards whose attempts are not seen to live (killed, still in the queue),
   then the last ones of those that have most left, who come to them last. So workers can be added or taken away at any time.
   Two who take up the same item do the same work twice, and it counts once. To help, one has to look at all segments: of
   many workers, about 64 do.
5. When a round is complete, helpers merge it, a stream each, and all go on with the next without being started again. Nothing
   depends on that: whoever has waited for longer than a new start would take ends, and the merge that waits for all workers
   to end does what was not done. Where not all shards have started, as on a cluster with fewer GPUs than shards, nobody
   waits, as others wait for the place.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shapley.errors import ShapleyError
from shapley.files import write_error
from shapley.jobs.advance import finish, merge_stream
from shapley.jobs.attempt import BEAT_SECONDS, SILENT_SECONDS, Attempt, Watch
from shapley.jobs.folder import RunFolder
from shapley.jobs.kinds import job_of
from shapley.jobs.segments import SUFFIX, Item, Sample, Shelf, write_segment
from shapley.jobs.slurm import requeue_self
from shapley.jobs.stream import Compute, Job, Stream
from shapley.keyed import keyed_rng

_SHARE = 0.01  # of the time, for saving
_SHORTEST, _LONGEST = 2.0, 600.0  # seconds between segments
_HELPERS = 64  # of a larger number of workers, so many help when they are done
_SCAN_SECONDS = 10.0
_PATIENCE = 180.0  # seconds without work: what it takes to queue, start, and load a model
_PATIENCE_ITEMS = 4  # and so many of the longest items: the end of a round is a matter of a few of them
_MERGE_PATIENCE = 900.0  # while somebody merges
_CLAIM = ".merging"  # how the names of files end that say that somebody merges a stream
_SHORTEST_PAUSE = 0.1
_LOOKS_A_SECOND = 500.0  # of all who wait, at most


class Stopped(BaseException):
    """A signal asked the worker to end; not an error."""


@dataclass
class Bench:
    """A stream's present round, ready to be worked at."""

    shelf: Shelf
    items: list[Item]
    compute: Compute


@dataclass(frozen=True)
class Task:
    """An item, of the ``bench``-th stream that has something left."""

    bench: int
    item: Item


def work(run: RunFolder, shard: int, of: int, device: str = "auto") -> str:
    """Do a shard of the present round of every stream.

    Args:
        run: whose.
        shard, of: which of how many; -1 has no items of its own and helps from the start.
        device: for the model.

    Returns:
        ``done`` when the run is finished, or there is nothing left that nobody works at; or ``stopped``.

    Raises:
        ShapleyError: other code than was submitted, another model than was prepared, a run that was not prepared, or a
            full disk.
    """
    if not -1 <= shard < of:
        raise ShapleyError(f"shard {shard} of {of}: expected 0 to {of - 1}")
    run.check_code()
    with Attempt(run.workers, shard, of) as attempt, _signals() as signals:
        try:
            Worker(run, attempt, device, signals).run()
        except Stopped:
            requeued = signals.asked_for == signal.SIGUSR2 and requeue_self()
            attempt.say(state="stopped", error="sent back to the queue" if requeued else "")
            return "stopped"
        attempt.say(state="done")
        return "done"


class Worker:
    """See ``work``."""

    def __init__(self, run: RunFolder, attempt: Attempt, device: str, signals: _Signals) -> None:
        self._run, self._attempt, self._device, self._signals = run, attempt, device, signals
        self._own = (attempt.report.shard, attempt.report.of)
        self._scanned = time.monotonic()
        self._segments = 0
        self._pending: dict[tuple[int, str], dict[Item, Sample]] = {}  # by bench and ending of the segment's name
        self._saved = time.monotonic()
        self._interval = _SHORTEST
        self._longest = 0.0  # seconds, of an item
        self._opened: Any = None
        self._rounds: dict[str, int] = {}  # at work, by stream

    def run(self) -> None:
        """Round after round."""
        while True:
            complete = self._round()
            if complete is False or not self._next_begins(bool(complete)):
                return

    def _round(self) -> bool | None:
        """What there is to do in the present round; returns whether it is complete, or nothing if others have to see to it."""
        benches = self._benches()
        tasks = [Task(i, item) for i, bench in enumerate(benches) for item in bench.items]
        try:
            for task in _slice(tasks, *self._own):
                shelf = benches[task.bench].shelf
                if time.monotonic() - self._scanned > _SCAN_SECONDS:
                    shelf.scan(_done_for(self._own))
                    self._scanned = time.monotonic()
                if task.item not in shelf.places:
                    self._do(benches, task)
            self._save(benches)
            order = keyed_rng("help", self._attempt.name)
            return self._help(benches, tasks, order) if order.random() * self._own[1] < _HELPERS else None
        except Stopped:
            self._save(benches)
            raise

    def _benches(self) -> list[Bench]:
        job = job_of(self._run)
        benches = []
        streams = [stream for stream in job.streams if not stream.finished]
        for stream in streams:
            if not stream.prepared:
                raise ShapleyError(f"{stream.name!r} of {self._run.path} was not prepared: see 'shapley status'")
        self._rounds = {stream.name: stream.round for stream in streams}
        for stream in streams:
            present = stream.present()
            present.shelf.scan()
            compute: Compute = _nothing_to_do
            if present.shelf.missing(present.items):
                if self._opened is None:  # the model is loaded only where there is something to do
                    self._opened = self._open(job, stream)
                compute = stream.compute(present.number, self._opened)
            # With the complete ones too: whenever a worker starts, its list and so its slice must be those of all others.
            benches.append(Bench(present.shelf, present.items, compute))
        self._attempt.say(rounds=" ".join(f"{name}:{number}" for name, number in self._rounds.items()))
        return benches

    def _open(self, job: Job, stream: Stream) -> Any:
        model, opened = job.open(self._device)
        if model["fingerprint"] != stream.model["fingerprint"]:
            raise ShapleyError(
                f"{self._run.path} was prepared with another model: {stream.model['name']} had fingerprint "
                f"{stream.model['fingerprint']}, now it has {model['fingerprint']}"
            )
        return opened

    def _do(self, benches: list[Bench], task: Task, ending: str = "") -> None:
        start = time.monotonic()
        with self._signals.at_once():
            arrays, rows = benches[task.bench].compute(task.item)
        seconds = time.monotonic() - start
        self._longest = max(self._longest, seconds)
        self._pending.setdefault((task.bench, ending), {})[task.item] = Sample(arrays, rows, seconds)
        self._attempt.add_rows(rows)
        if time.monotonic() - self._saved > self._interval:
            self._save(benches)

    def _save(self, benches: list[Bench]) -> None:
        """Put what is pending into segments, one a stream and owner."""
        start = time.monotonic()
        for (index, ending), samples in self._pending.items():
            bench = benches[index]
            path = bench.shelf.folder / f"{self._attempt.name}-{self._segments:05d}{ending}{SUFFIX}"
            write_segment(path, bench.shelf.settings, samples)
            self._segments += 1
        if self._pending:
            self._interval = float(np.clip((time.monotonic() - start) / _SHARE, _SHORTEST, _LONGEST))
        self._pending.clear()
        self._saved = time.monotonic()
        self._signals.check()

    def _help(self, benches: list[Bench], tasks: list[Task], order: np.random.Generator) -> bool:
        """Until everything is done, or all that is left has been in the hands of the living for a while."""
        watch, pause = Watch(self._run.workers, self._attempt.report.rounds), self._pause()
        patience = self._patience if self._all_started() else SILENT_SECONDS
        while True:
            for bench in benches:
                bench.shelf.scan()
            mine = {Task(index, item) for (index, _), samples in self._pending.items() for item in samples}
            left = [task for task in tasks if task.item not in benches[task.bench].shelf.places and task not in mine]
            watch.look()
            task, owner = _choose(tasks, left, watch.alive() - {self._own}, order)
            if task:
                self._do(benches, task, _done_for(owner))
                pause = self._pause()
                continue
            self._save(benches)
            if not left:
                return True
            if pause.seconds > patience:
                return False
            pause.wait()

    def _next_begins(self, complete: bool) -> bool:
        """Wait for the next round, if that may be worth it; merge the present one if it is complete and nobody does yet."""
        if not self._all_started():
            return False
        pause, watch = self._pause(), Watch(self._run.workers, self._attempt.report.rounds)
        while True:
            patience = _MERGE_PATIENCE if any(self._run.workers.glob(f"*{_CLAIM}")) else self._patience
            if complete:
                watch.look()
            streams = [stream for stream in job_of(self._run).streams if not stream.finished]
            behind = [stream for stream in streams if stream.round == self._rounds.get(stream.name)]
            if not behind:
                return bool(streams)
            if complete and 2 * len(watch.alive()) < self._own[1]:
                return False  # the few would go on alone, and the many could not start again before they end
            if complete and not self._merge(behind):
                return True  # what is damaged is done again
            if pause.seconds > patience:
                return False
            pause.wait()

    def _merge(self, streams: list[Stream]) -> bool:
        """Merge what nobody merges; returns whether all of that was there."""
        for stream in streams:
            at_work = self._rounds[stream.name]
            with _claimed(self._run.workers / f"{stream.path.name}-{at_work:04d}{_CLAIM}") as mine:
                # Somebody may have merged it since it was looked at.
                if mine and not stream.finished and stream.round == at_work:
                    if merge_stream(stream)[0]:
                        return False
                    finish(self._run)  # does something for whoever merges the last one
        return True

    def _all_started(self) -> bool:
        """Whether every shard of this array has been started once."""
        return len(self._attempt.started()) >= self._own[1]

    @property
    def _patience(self) -> float:
        return _PATIENCE + _PATIENCE_ITEMS * self._longest

    def _pause(self) -> _Pause:
        return _Pause(self._signals, self._own[1] / _LOOKS_A_SECOND)


def _choose(
    tasks: list[Task], left: list[Task], alive: set[tuple[int, int]], order: np.random.Generator
) -> tuple[Task | None, tuple[int, int]]:
    """A task of a shard that nobody is seen to work at, in an order of one's own; else one of the last of the living shard
    that has most left, if that is more than the one at work; and whose it is."""
    wanted = set(left)
    kept = {shard: [task for task in _slice(tasks, *shard) if task in wanted] for shard in alive}
    theirs = {task for own in kept.values() for task in own}
    if orphans := [task for task in left if task not in theirs]:
        return orphans[int(order.integers(len(orphans)))], (-1, 0)
    shard = max(kept, key=lambda shard: len(kept[shard]), default=(-1, 0))
    theirs_left = kept.get(shard, [])
    if len(theirs_left) < 2:
        return None, shard
    return theirs_left[-1 - int(order.integers(len(theirs_left) // 2))], shard


def _nothing_to_do(item: Item) -> tuple[tuple[np.ndarray, ...], int]:
    raise AssertionError(f"{item} was there already")


def _done_for(shard: tuple[int, int]) -> str:
    """How the names of segments end that were made for another shard: it needs to read no others."""
    return f"-for-{shard[0]}-of-{shard[1]}"


@contextmanager
def _claimed(path: Path) -> Iterator[bool]:
    """Make an empty file for as long as the block runs; whether it was this process that made it. Holds on network file
    systems, too."""
    try:
        path.open("x").close()
    except FileExistsError:
        yield False
        return
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)


class _Pause:
    """Waits, longer and longer, up to a beat.

    Attributes:
        seconds: since the first.
    """

    def __init__(self, signals: _Signals, shortest: float) -> None:
        self._signals, self._shortest, self._start = signals, max(shortest, _SHORTEST_PAUSE), time.monotonic()
        self.seconds = 0.0

    def wait(self) -> None:
        with self._signals.at_once():
            time.sleep(min(max(self.seconds / 4, self._shortest), BEAT_SECONDS))
        self.seconds = time.monotonic() - self._start


class _Signals:
    """SIGTERM, SIGUSR2 and Ctrl-C raise ``Stopped``: at once within ``at_once``, else at the next ``check``."""

    def __init__(self) -> None:
        self.asked_for: int | None = None
        self._now = False

    def ring(self, number: int, frame: Any) -> None:
        self.asked_for = number
        if self._now:
            self._now = False
            raise Stopped

    def check(self) -> None:
        if self.asked_for is not None:
            raise Stopped

    @contextmanager
    def at_once(self) -> Iterator[None]:
        self.check()
        self._now = True
        try:
            yield
        finally:
            self._now = False


@contextmanager
def _signals() -> Iterator[_Signals]:
    found = _Signals()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = {number: signal.signal(number, found.ring) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _slice(tasks: list[Task], shard: int, of: int) -> list[Task]:
    """An even, contiguous share; nothing for those who only help."""
    if shard < 0:
        return []
    return tasks[len(tasks) * shard // of : len(tasks) * (shard + 1) // of]
