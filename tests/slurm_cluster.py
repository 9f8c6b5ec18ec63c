"""A real Slurm for tests: the fixture ``cluster``, which conftest.py takes in."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from filelock import FileLock

from shapley.jobs.slurm import QueueEntry, queue

SCRIPT = Path(__file__).parents[1] / "slurm" / "dev-cluster.sh"
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")


@dataclass(frozen=True)
class Cluster:
    """A running Slurm.

    Attributes:
        folder: of its configuration, logs and pid files (``run/slurmd.n2.pid``).
        env: for processes that use it.
    """

    folder: Path
    env: dict[str, str]

    def script(self, action: str) -> subprocess.CompletedProcess[str]:
        """``up`` (also after a node has died), ``status`` or ``down``."""
        return subprocess.run([SCRIPT, action, self.folder], capture_output=True, text=True, timeout=600)

    def wait(self, job_ids: Sequence[str], seconds: float = 60) -> None:
        """Until the queue has none of these jobs any more."""
        self.wait_until(lambda entries: not entries, job_ids, seconds)

    def wait_until(self, ready, job_ids: Sequence[str], seconds: float = 60) -> dict[str, QueueEntry]:
        """Until the queue's entries of these jobs are as wanted; returns them."""
        end = time.monotonic() + seconds
        while not ready(entries := queue(job_ids)):
            assert time.monotonic() < end, f"still queued: {entries}"
            time.sleep(0.2)
        return entries


def installed() -> bool:
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return all(shutil.which(program, path=path) for program in PROGRAMS)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory) -> Iterator[Cluster]:
    """Slurm with two nodes, and SLURM_CONF set to it until the end of the file. Installs Debian's packages as root only."""
    with FileLock(Path(tempfile.gettempdir()) / "neuron-shapley-test-slurm.lock"):  # a machine has one
        yield from _running(tmp_path_factory.mktemp("slurm"))


def _running(folder: Path) -> Iterator[Cluster]:
    if not installed() and (os.getuid() != 0 or not shutil.which("apt-get")):
        pytest.skip("Slurm is not installed, and can be only by root with apt-get")
    cluster = Cluster(folder, {**os.environ, "SLURM_CONF": str(folder / "etc" / "slurm.conf")})
    try:
        started = cluster.script("up")
        if started.returncode and not installed():
            pytest.skip(f"Slurm could not be installed: {started.stderr.strip()}")
        assert started.returncode == 0, started.stderr
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SLURM_CONF", cluster.env["SLURM_CONF"])
            yield cluster
    finally:
        cluster.script("down")
