"""Settings of the whole test run."""

from __future__ import annotations

import os

import pytest
import torch

from tests.slurm_cluster import cluster  # noqa: F401  (a fixture)
from tests.tiny import tiny_lm

WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))


@pytest.fixture(autouse=True)
def threads(request):
    """Tiny models are slower on two threads than on one, much slower where something else runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // WORKERS) if request.node.get_closest_marker("real_model") else 1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_cache(monkeypatch, tmp_path):
    """Nothing that other tests kept."""
    monkeypatch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """With a model in it, to be loaded by its path."""
    lm = tiny_lm("llama")
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path
