"""The short version of ``python -m tests.faults``: each disturbance of a run, once or twice, with random moments."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

from tests.faults.disturbances import disturbances
from tests.faults.instruments import items_computed
from tests.faults.play import Disturbance, Play, drive
from tests.faults.reference import CASES, TOPICS, expected, wrong_bits
from tests.faults.table import table
from tests.faults.trial import trial

BY_NAME = {one.name: one for one in disturbances()}
NAMES = list(BY_NAME)
MEMORY = Path("/dev/shm")


@pytest.fixture
def folder(tmp_path):
    """In memory where there is some: hundreds of small files are written, each with three fsyncs."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path / "run"
        return
    with tempfile.TemporaryDirectory(prefix="shapley-faults-", dir=MEMORY) as name:
        yield Path(name) / "run"


@pytest.mark.parametrize("number", range(len(NAMES)), ids=NAMES)
def test_the_scores_are_those_of_an_undisturbed_run(folder, number):
    one = BY_NAME[NAMES[number]]
    if why := one.unavailable():
        pytest.skip(why)
    outcome = trial(one, np.random.default_rng([7, number]), folder, case=one.cases[number % len(one.cases)])
    assert outcome.good, outcome.error or outcome.wrong


def test_a_worker_that_is_started_as_users_do(folder):
    outcome = trial(BY_NAME["kill -9 of a worker"], np.random.default_rng(3), folder, mode="exec", case="gradient")
    assert outcome.good, outcome.error or outcome.wrong


def test_an_undisturbed_run_loses_nothing_and_says_so(folder):
    play = Play(folder, CASES["rounds"], np.random.default_rng(0))
    assert drive(play, Disturbance()) == {}
    assert 5 <= play.links <= 10  # five rounds; on a busy machine a worker may be taken for dead
    per_topic = [
        sum(name.startswith(topic.path.name) for name in items_computed(play.items)) for topic in play.run.topics
    ]
    assert min(per_topic) > 60 and not play.unsaved()


def test_wrong_bits_are_counted(folder, monkeypatch):
    """One bit of a score, and a row too many."""
    play = Play(folder, CASES["permutation"], np.random.default_rng(0))
    drive(play, Disturbance())
    scores = expected(play.case)["one"]
    scores.score.view(np.int64)[0, 0] ^= 1
    monkeypatch.setitem(scores.attrs, "forward_rows", scores.attrs["forward_rows"] + 1)
    try:
        assert wrong_bits(play.run.scores, play.case) == {"one: score": 1, "one: forward_rows": 64}
    finally:
        scores.score.view(np.int64)[0, 0] ^= 1
    assert list(TOPICS) == ["one", "two"] and not wrong_bits(play.run.scores, play.case).get("one: score")


def test_the_table(folder):
    outcome = trial(Disturbance(), np.random.default_rng(0), folder, case="permutation")
    text = table([outcome, outcome], [("disk full", "only root can mount a tmpfs")])
    assert "| none | 2 | 0 | 0 | 0 |" in text and "Skipped: disk full: only root can mount a tmpfs." in text
    assert not folder.exists()
