"""Settings of the whole test run."""

from __future__ import annotations

import os

import pytest
import torch

from tests.slurm_cluster import cluster  # noqa: F401  (a fixture)

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


@pytest.fixture(autouse=True)
def threads(request):
    """Tiny models are slower on two threads than on one, much slower where something else runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // WORKERS) if request.node.get_closest_marker("real_model") else 1)
    yield
    torch.set_num_threads(before)
