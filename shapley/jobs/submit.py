"""A run as a chain of Slurm jobs: prepare, and then links of an array of workers and a merge, each after the one before.

All links are alike: workers do what the present round wants, the merge begins the next. So it does not matter which link a
round falls into, or how often one has to be repeated; nothing has to stay alive between them, and no job submits another.
The merge that finishes a run cancels the links that are left.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shapley.errors import ShapleyError
from shapley.files import write_text
from shapley.jobs import slurm
from shapley.jobs.folder import RunFolder
from shapley.jobs.profile import Profile
from shapley.jobs.sealed import read_sealed, write_sealed
from shapley.jobs.slurm import TASK, Step

# A screen, an audit, and rounds of at least a fourth of what is left; and some to spare for links in which work was lost.
LINKS = 10


@dataclass(frozen=True)
class Link:
    """A job of the chain. ``kind`` says what it wants of the job before it: ``afterok``, ``afterany``."""

    step: Step
    script: str
    kind: str


def chain(run: Path, shards: int, device: str = "auto") -> list[Link]:
    """The jobs of a run, in order.

    Args:
        run: the folder.
        shards: tasks of each array.
        device: for the model, as ``load_model`` takes it.
    """
    folder = str(run.absolute())
    workers = Step("work", ("work", folder, "--shard", TASK, "--of", str(shards), "--device", device), array=shards)
    merge = Step("merge", ("merge", folder), gpu=False)
    links = [Link(Step("prepare", ("prepare", folder, "--device", device)), "prepare.sh", "afterok")]
    for _ in range(LINKS):
        links += [Link(workers, "work.sh", "afterok"), Link(merge, "merge.sh", "afterany")]
    return links


def scripts(run: Path, shards: int, profile: Profile, device: str = "auto") -> dict[str, str]:
    """The batch scripts by file name. Pure.

    Raises:
        ShapleyError: a path that a batch script cannot name.
    """
    return {link.script: slurm.render(link.step, profile, run, run / "code") for link in chain(run, shards, device)}


def submit(run: RunFolder, shards: int, profile: Profile, device: str = "auto") -> list[str]:
    """Hand the chain to Slurm, with ``shards`` tasks an array; returns the jobs' ids.

    Raises:
        ShapleyError: no Slurm, a partition that it does not know, more shards than an array holds, or a run that is
            finished or in the queue already. Jobs that were accepted before one was refused are cancelled.
    """
    if run.result.exists():
        raise ShapleyError(f"{run.path} is finished: its result is {run.result}")
    if slurm.queue(jobs_of(run)):
        raise ShapleyError(f"{run.path} is in the queue already: see 'shapley status {run.path}', or cancel it first")
    largest = slurm.max_array_size()
    if shards > largest:
        raise ShapleyError(
            f"--shards {shards}: this cluster's arrays have {largest} tasks at most; shards need not be GPUs, so take fewer"
        )
    folder = run.path / "slurm"
    folder.mkdir(exist_ok=True)
    for name, text in scripts(run.path, shards, profile, device).items():
        write_text(folder / name, text)
    write_sealed(folder / "profile.json", profile.record(), indent=1)
    ids: list[str] = []
    try:
        for link in chain(run.path, shards, device):
            ids.append(slurm.submit(folder / link.script, after=ids[-1] if ids else None, kind=link.kind))
            _record(run, ids[-1], link.step)
    except ShapleyError:
        with suppress(ShapleyError):
            slurm.cancel(ids)
        raise
    return ids


def add_workers(run: RunFolder, n: int, profile: Profile, device: str = "auto") -> str:
    """Start ``n`` more workers, which help where they can; returns their job's id."""
    if n < 1:
        raise ShapleyError(f"--add {n} must be at least 1")
    if run.result.exists():
        raise ShapleyError(f"{run.path} is finished: its result is {run.result}")
    if not slurm.queue(jobs_of(run)):
        raise ShapleyError(
            f"{run.path} has nothing in the queue that workers could help with: give 'shapley submit' again"
        )
    step = Step("help", ("work", str(run.path.absolute()), "--shard", "-1", "--of", "1", "--device", device), array=n)
    script = run.path / "slurm" / "help.sh"
    script.parent.mkdir(exist_ok=True)
    write_text(script, slurm.render(step, profile, run.path, run.code))
    job = slurm.submit(script)
    _record(run, job, step)
    return job


def profile_of(run: RunFolder) -> Profile:
    """The profile that a run was submitted with.

    Raises:
        ShapleyError: it never was, or the file is damaged.
    """
    path = run.path / "slurm" / "profile.json"
    return Profile.from_record(
        read_sealed(path, f"{run.path} was not submitted to Slurm: give --profile", "give --profile")
    )


def cancel(run: RunFolder) -> list[str]:
    """Cancel all jobs of a run; returns the ids of those that were in the queue."""
    known = slurm.queue(jobs_of(run))
    jobs = sorted({entry.split("_")[0] for entry in known})
    slurm.cancel(jobs)
    return jobs


def end_chain(run: RunFolder) -> None:
    """Cancel the links that a finished run has left, and what of this one still waits; called by whoever finishes it."""
    if not slurm.in_slurm():
        return
    own = os.environ.get("SLURM_ARRAY_JOB_ID") or os.environ["SLURM_JOB_ID"]
    with suppress(ShapleyError):
        slurm.cancel([job for job in jobs_of(run) if job != own])
        slurm.cancel([own], only_waiting=True)


def jobs_of(run: RunFolder) -> list[str]:
    """Ids of every job of a run, the first submitted first."""
    return [job["id"] for job in _jobs(run)]


def _record(run: RunFolder, job: str, step: Step) -> None:
    """At once, so that a submission that is killed leaves no job that nobody knows."""
    jobs = [*_jobs(run), {"id": job, "step": step.name, "array": step.array}]
    write_sealed(run.path / "jobs.json", {"jobs": jobs})


def _jobs(run: RunFolder) -> list[dict[str, Any]]:
    path = run.path / "jobs.json"
    if not path.exists():
        return []
    found: list[dict[str, Any]] = read_sealed(path, "", "remove it; 'squeue --me' still lists its jobs")["jobs"]
    return found
