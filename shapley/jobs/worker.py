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
   many workers, about 64 do at once, and more the longer it takes.
5. When a round is complete, helpers merge it, a stream each, and all go on with the next without being started again. Nothing
   depends on that: whoever has waited for longer than a new start would take ends, and the merge that waits for all workers
   to end does what was not done. Where not all shards have started, as on a cluster with fewer GPUs than shards, nobody
   waits, as others wait for the place.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from shapley.errors import ShapleyError
from shapley.files import write_error
from shapley.jobs.advance import finish, merge_stream
from shapley.jobs.attempt import SILENT_SECONDS, Attempt, Watch
from shapley.jobs.folder import RunFolder
from shapley.jobs.kinds import job_of
from shapley.jobs.segments import SUFFIX, Item, Sample, Shelf, write_segment
from shapley.jobs.sharing import Shard, choose, owner, slice_of
from shapley.jobs.signals import Pause, Signals, Stopped, signals
from shapley.jobs.slurm import requeue_self
from shapley.jobs.stream import Compute, Job, Stream
from shapley.keyed import keyed_rng

_SHARE = 0.01  # of the time, for saving
_SHORTEST, _LONGEST = 2.0, 600.0  # seconds between segments
_HELPERS = 64  # of a larger number of workers, so many help at once when they are done
_LATE = 16.0  # times ``SILENT_SECONDS`` after which all others do, who join one after the other
_SCAN_SECONDS = 10.0
_PATIENCE = 180.0  # seconds without work: what it takes to queue, start, and load a model
_PATIENCE_ITEMS = 4  # and so many of the longest items: the end of a round is a matter of a few of them
_MERGE_PATIENCE = 900.0  # while somebody merges
_CLAIM = ".merging"  # how the names of files end that say that somebody merges a stream
_LOOKS_A_SECOND = 500.0  # of all who wait, at most


@dataclass
class Bench:
    """A stream's present round, ready to be worked at."""

    shelf: Shelf
    items: list[Item]
    compute: Compute


class Task(NamedTuple):
    """An item, of the ``bench``-th stream at work."""

    bench: int
    item: Item


def work(run: RunFolder, shard: int, of: int, device: str = "auto") -> str:
    """Do a shard of the present round of every stream, and of the rounds after it.

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
    with Attempt(run.workers, shard, of) as attempt, signals() as asked:
        try:
            Worker(run, attempt, device, asked).run()
        except Stopped:
            requeued = asked.asked_for == signal.SIGUSR2 and requeue_self()
            attempt.say(state="stopped", error="sent back to the queue" if requeued else "")
            return "stopped"
        attempt.done()
        return "done"


class Worker:
    """See ``work``."""

    def __init__(self, run: RunFolder, attempt: Attempt, device: str, asked: Signals) -> None:
        self._run, self._attempt, self._device, self._signals = run, attempt, device, asked
        self._own: Shard = (attempt.report.shard, attempt.report.of)
        self._segments = 0
        self._pending: dict[tuple[int, str], dict[Item, Sample]] = {}  # by bench and ending of the segment's name
        self._saved = time.monotonic()
        self._interval = _SHORTEST
        self._longest = 0.0  # seconds, of an item
        self._opened: Any = None
        self._rounds: dict[str, int] = {}  # at work, by stream

    def run(self) -> None:
        """Round after round."""
        while self._round():
            pass

    def _round(self) -> bool:
        """Do what there is to do in the present round; returns whether to go on with the next."""
        benches = self._benches()
        tasks = [Task(i, item) for i, bench in enumerate(benches) for item in bench.items]
        order = keyed_rng("help", self._attempt.name)
        early = order.random() * self._own[1] < _HELPERS
        watch = Watch(self._run.workers, self._attempt.report.rounds)
        try:
            self._do_own(benches, tasks, watch if early else None)
            if not early:
                # With others waiting for the place, it is the few who help; else all do, one after the other.
                if not self._all_started():
                    return False
                begins = self._wait(float(order.uniform(1, _LATE)) * SILENT_SECONDS)
                if begins is not None:
                    return begins
            return self._help(benches, tasks, watch, order) and bool(self._wait(self._patience, watch))
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

    def _do_own(self, benches: list[Bench], tasks: list[Task], watch: Watch | None) -> None:
        """The own slice, but for what others did. ``watch`` sees in time whose attempts have died."""
        scanned = looked = time.monotonic()
        for index in slice_of(len(tasks), self._own):
            now, task = time.monotonic(), tasks[index]
            shelf = benches[task.bench].shelf
            if now - scanned > _SCAN_SECONDS:
                shelf.scan(_done_for(self._own))
                scanned = now
            if watch and now - looked > SILENT_SECONDS:
                watch.look()
                looked = now
            if task.item not in shelf.places:
                self._do(benches, task)
        self._save(benches)

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

    def _help(self, benches: list[Bench], tasks: list[Task], watch: Watch, order: np.random.Generator) -> bool:
        """Until everything is done, or all that is left has been in the hands of the living for a while; returns whether it is
        done."""
        pause, n_tasks = self._pause(), len(tasks)
        patience = self._patience if self._all_started() else SILENT_SECONDS
        left = list(range(n_tasks))
        while True:
            for bench in benches:
                bench.shelf.scan()
            mine = {Task(index, item) for (index, _), samples in self._pending.items() for item in samples}
            left = [i for i in left if tasks[i].item not in benches[tasks[i].bench].shelf.places]
            open_ones = [i for i in left if tasks[i] not in mine]
            # Who only helps does not know of how many shards the others are.
            watch.look({owner(i, n_tasks, self._own[1])[0] for i in left} if self._own[0] >= 0 else None)
            chosen, whose = choose(open_ones, n_tasks, watch.alive() - {self._own}, order)
            if chosen is not None:
                self._do(benches, tasks[chosen], _done_for(whose))
                pause = self._pause()
                continue
            self._save(benches)
            if not left:
                return True
            if pause.seconds > patience:
                return False
            pause.wait()

    def _wait(self, patience: float, watch: Watch | None = None) -> bool | None:
        """Wait for the next round; with a ``watch``, the present one is complete, and is merged here if nobody does yet.

        Returns:
            whether there is one, or nothing when patience is at its end.
        """
        if not self._all_started():
            return False
        pause, many = self._pause(), True
        if watch:
            watch.look()
            many = 2 * len(watch.alive()) >= self._own[1]
        while True:
            limit = _MERGE_PATIENCE if any(self._run.workers.glob(f"*{_CLAIM}")) else patience
            streams = [stream for stream in job_of(self._run).streams if not stream.finished]
            behind = [stream for stream in streams if stream.round == self._rounds.get(stream.name)]
            if not behind:
                return bool(streams)
            if not many:
                return False  # the few would go on alone, and the many could not start again before they end
            if watch and not self._merge(behind, watch):
                return True  # what is damaged is done again
            if pause.seconds > limit:
                return None
            pause.wait()

    def _merge(self, streams: list[Stream], watch: Watch) -> bool:
        """Merge what nobody merges; returns whether all of that was there."""
        for stream in streams:
            at_work = self._rounds[stream.name]
            claim = self._run.workers / f"{stream.path.name}-{at_work:04d}{_CLAIM}"
            with _claimed(claim, self._attempt.name) as mine:
                if not mine:
                    _give_up_for_dead(claim, watch)
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

    def _pause(self) -> Pause:
        return Pause(self._signals, self._own[1] / _LOOKS_A_SECOND)


def _nothing_to_do(item: Item) -> tuple[tuple[np.ndarray, ...], int]:
    raise AssertionError(f"{item} was there already")


def _done_for(shard: Shard) -> str:
    """How the names of segments end that were made for another shard: it needs to read no others."""
    return f"-for-{shard[0]}-of-{shard[1]}"


@contextmanager
def _claimed(path: Path, name: str) -> Iterator[bool]:
    """Have a file with this attempt's name for as long as the block runs; whether it was this process that made it. Holds on
    network file systems, too."""
    try:
        with path.open("x") as file:
            file.write(name)
    except FileExistsError:
        yield False
        return
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)


def _give_up_for_dead(claim: Path, watch: Watch) -> None:
    """Remove the claim of an attempt that was seen to stand still. If it lives after all, two merge, which does no harm."""
    try:
        name = claim.read_text()
    except OSError:
        return
    if name:
        watch.look({int(name[:5])})
        if not watch.lives(name):
            claim.unlink(missing_ok=True)
