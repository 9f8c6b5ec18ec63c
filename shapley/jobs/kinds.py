"""The kinds of runs."""

from __future__ import annotations

from shapley.jobs.estimate import EstimateJob
from shapley.jobs.folder import RunFolder
from shapley.jobs.stream import Job
from shapley.jobs.sweep import SweepJob


def job_of(run: RunFolder) -> Job:
    """What a run does."""
    return EstimateJob(run) if run.kind == "estimate" else SweepJob(run)
