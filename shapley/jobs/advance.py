"""The work between rounds: prepare a run, merge its rounds, write the result. One process at a time, and without a model
but for preparing.

A round is merged when all of its samples are there, in the order of their items; so the numbers are those of one process
that does everything, however the work was cut, lost and done again. What is written can be computed again from what was
there: a merge that is killed is started anew.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from shapley.errors import ShapleyError
from shapley.jobs.attempt import Attempt
from shapley.jobs.folder import RunFolder
from shapley.jobs.kinds import job_of
from shapley.jobs.segments import DamagedError, Item, Reader, Sample
from shapley.jobs.slurm import in_slurm
from shapley.jobs.stream import Present, Stream
from shapley.jobs.submit import end_chain
from shapley.progress import say

_AT_ONCE = 4  # streams: each needs memory for its sums, and reading is not for free either


@dataclass(frozen=True)
class Standing:
    """What a merge found.

    Attributes:
        finished: whether the result is written.
        missing: by stream, the items that no segment holds.
        damaged: a line for each segment that is not what was written.
    """

    finished: bool
    missing: dict[str, list[Item]]
    damaged: list[str]


def prepare(run: RunFolder, device: str = "auto", show: bool = True) -> None:
    """Load the model once, before any array starts; choose what is left open, and begin round 0. A job that fails at it takes
    what waits for it out of the queue.

    Raises:
        ShapleyError: what is wrong with the model, the prompts or the settings; or other code than was submitted.
    """
    try:
        with Attempt(run.workers, step="prepare") as attempt:
            run.check_code()
            job = job_of(run)
            if not (run.frozen and all(stream.sound for stream in job.streams)):
                job.prepare(device, show)
            attempt.done()
    except Exception:
        end_chain(run)
        if in_slurm() and not run.frozen:  # nothing was done for it: the folder is free for a corrected command
            (run.path / "jobs.json").unlink(missing_ok=True)
        raise


def merge(run: RunFolder, show: bool = True) -> Standing:
    """Merge every round that is complete, and write the results of streams that are finished.

    Raises:
        ShapleyError: segments of other settings, or other code than was submitted.
    """
    with Attempt(run.workers, step="merge") as attempt:
        standing = _merge(run, show)
        attempt.done()
        return standing


def _merge(run: RunFolder, show: bool) -> Standing:
    run.check_code()
    job = job_of(run)
    streams = [stream for stream in job.streams if not stream.finished]
    if not all(stream.prepared for stream in streams):
        raise ShapleyError(f"{run.path} was not prepared: run 'shapley prepare {run.path}' first")
    # Threads are enough: numpy, checksums and files let go of Python's lock. Streams know nothing of each other.
    with ThreadPoolExecutor(min(_AT_ONCE, len(os.sched_getaffinity(0)))) as pool:
        found = list(pool.map(lambda stream: merge_stream(stream, show), streams))
    missing = {stream.name: left for stream, (left, _) in zip(streams, found, strict=True) if left}
    damaged = [line for _, lines in found for line in lines]
    return Standing(finish(run, show), missing, damaged)


def finish(run: RunFolder, show: bool = True) -> bool:
    """Write the run's result if all of its streams are finished; returns whether they are."""
    job = job_of(run)
    finished = all(stream.finished for stream in job.streams)
    if finished:
        job.collect(show)
        end_chain(run)
    return finished


def merge_stream(stream: Stream, show: bool = True) -> tuple[list[Item], list[str]]:
    """Merge a stream's round if it is complete; returns what is missing, and what is damaged."""
    damaged: list[str] = []
    while True:
        ledger = stream.ledger()
        present = ledger.present
        present.shelf.scan()
        left = present.shelf.missing(present.items)
        if not left:
            try:
                ledger.take(_samples(present))
            except DamagedError as error:
                damaged.append(str(error))
                continue
            say(f"{stream.name}: {ledger.close()}", show=show)
        damaged += [*ledger.damaged, *present.shelf.damaged.values()]
        return left, damaged


def _samples(present: Present) -> Iterator[tuple[Item, Sample]]:
    """Of a complete round, one in memory at a time.

    Raises:
        DamagedError: one is not what was written; its segment is put aside.
    """
    with Reader() as reader:
        for item in present.items:
            place = present.shelf.places[item]
            try:
                sample = reader.read(place)
            except DamagedError as error:
                with suppress(FileNotFoundError):  # another merge may have seen it, too
                    place.path.rename(place.path.with_suffix(".damaged"))
                raise error
            yield item, sample
