"""Settings of the whole test run."""

from __future__ import annotations

import pytest
import torch

from tests.slurm_cluster import cluster  # noqa: F401  (a fixture)


@pytest.fixture(autouse=True)
def threads(request):
    """Tiny models are slower on two threads than on one, much slower where something else runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if request.node.get_closest_marker("real_model") else 1)
    yield
    torch.set_num_threads(before)
