"""A run on one machine: the same workers as processes, the same merges between them, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

from joblib import Parallel, delayed

from shapley.errors import ShapleyError
from shapley.jobs.advance import merge, prepare
from shapley.jobs.folder import RunFolder
from shapley.jobs.kinds import job_of
from shapley.jobs.worker import work
from shapley.progress import say


def run_here(run: RunFolder, devices: Sequence[str], threads: int, show: bool = True) -> None:
    """Run all rounds, with a worker on each of the devices.

    Args:
        run: to go on with.
        devices: of the workers; one may be named several times.
        threads: of torch on the CPU, for each worker.

    Raises:
        ShapleyError: a worker failed, was stopped, or got nowhere; what was done is kept.
    """
    prepare(run, devices[0], show)
    before = -1
    while not (standing := merge(run, show)).finished:
        done = _progress(run)
        if standing.missing and done == before:
            count = sum(map(len, standing.missing.values()))
            raise ShapleyError(f"{count} items of work in {run.path} stay undone: see 'shapley status {run.path}'")
        before = done
        try:
            ends = Parallel(n_jobs=len(devices), backend="loky")(
                delayed(_work)(str(run.path), shard, len(devices), device, threads)
                for shard, device in enumerate(devices)
            )
        except BrokenProcessPool:
            raise ShapleyError(
                "a worker process was killed (out of memory?); what was saved is kept: go on with the same command"
            ) from None
        if "stopped" in ends:
            raise ShapleyError(f"stopped; go on with the same command, or 'shapley status {run.path}'")
    say(f"finished: {job_of(run).hint}", show=show)


def _work(path: str, shard: int, of: int, device: str, threads: int) -> str:
    if device == "cpu":
        import torch

        torch.set_num_threads(threads)
    return work(RunFolder(path), shard, of, device)


def _progress(run: RunFolder) -> int:
    """A number that grows whenever anything was computed or merged."""
    return sum(len(list(stream.path.rglob("*.*"))) for stream in job_of(run).streams)
