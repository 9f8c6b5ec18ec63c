"""On a real Slurm: a node dies while another task is cancelled. ``python -m tests.faults --slurm`` does all else."""

from __future__ import annotations

import pytest

from tests.faults.on_slurm import Trouble, cancel_a_task, node_dies, troubled

pytestmark = pytest.mark.slurm


def test_a_node_dies_and_a_task_is_cancelled(cluster, tmp_path):
    both = Trouble("both", lambda cluster, run: cancel_a_task(cluster, run) + node_dies(cluster, run))
    outcome = troubled(cluster, tmp_path / "run", both)
    assert outcome.good, outcome.error or outcome.wrong
    assert outcome.hits >= 2
