"""Workers that go on with the next round by themselves."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import pytest

from shapley.jobs import signals, worker
from shapley.jobs.advance import merge, merge_stream, prepare
from shapley.jobs.attempt import Attempt, read_reports
from shapley.jobs.worker import work
from tests.test_jobs import PLANS, assert_same, new_run
from tests.test_jobs_sweep import flip


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.setattr(worker, "_PATIENCE", 1.0)
    monkeypatch.setattr(worker, "_MERGE_PATIENCE", 2.0)


@pytest.fixture(params=["two-stage", "permutation"])
def run(request, tmp_path):
    run = new_run(tmp_path, PLANS[request.param])
    prepare(run, show=False)
    return run


def rounds(run):
    return [topic.rounds()[-1] for topic in run.topics]


def test_one_worker_does_it_all(run):
    assert work(run, 0, 1) == "done"
    assert_same(run, run.plan)
    assert not list(run.workers.glob("*.merging"))


def test_two_at_once_do_it_all(run, monkeypatch):
    monkeypatch.setattr(worker, "_PATIENCE", 60.0)
    threads = [threading.Thread(target=work, args=(run, shard, 2)) for shard in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert_same(run, run.plan)
    assert [report.state for report in read_reports(run.workers) if report.step == "work"] == ["done", "done"]


def test_nobody_waits_where_others_wait_for_the_place(run, monkeypatch):
    monkeypatch.setattr(worker, "SILENT_SECONDS", -1.0)
    monkeypatch.setattr(signals.time, "sleep", lambda seconds: pytest.fail("it waits"))
    for shard in range(2):  # of three; the helpers do what nobody does, but leave the merge to the merge
        assert work(run, shard, 3) == "done"
    assert rounds(run) == [0, 0]


def test_the_few_do_not_go_on_alone(run):
    for shard in range(3):
        work(run, shard, 3)
    assert rounds(run) == [0, 0] and not run.result.exists()
    merge(run, show=False)
    assert run.result.exists() == (run.plan.estimator == "permutation")


def test_other_arrays_do_not_count(run, monkeypatch):
    for job in ("7", "8"):
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", job)
        for shard in range(2):
            with Attempt(run.workers, shard, 2) as attempt:
                assert attempt.started() == set(range(shard + 1))


def test_a_merge_that_was_killed_holds_nobody_up_for_good(run, monkeypatch):
    """One that is not known to have been."""
    monkeypatch.setattr(worker, "_claimed", lambda path, name: path.touch() or nullcontext(False))
    assert work(run, 0, 1) == "done" and rounds(run) == [0, 0]
    merge(run, show=False)
    assert run.result.exists() == (run.plan.estimator == "permutation")


def test_the_claim_of_a_dead_worker_is_taken_over(run, monkeypatch):
    monkeypatch.setattr("shapley.jobs.attempt.SILENT_SECONDS", 0.5)
    monkeypatch.setattr(worker, "_MERGE_PATIENCE", 60.0)
    dead = Attempt(run.workers, 0, 2)
    for topic in run.topics:
        (run.workers / f"{topic.path.name}-0000.merging").write_text(dead.name)
    with Attempt(run.workers, 1, 2):  # so that many live
        dead.say(rounds="one:0 two:0")
        assert work(run, 0, 1) == "done"
    assert_same(run, run.plan)


def test_what_is_damaged_is_done_again_before_the_next_round(run, monkeypatch):
    flipped = []

    def damaging(stream):
        if stream.name == "two" and not flipped:
            flipped.append(sorted((run.topics[1].path / "round-0000").glob("*.segment"))[0])
            flip(flipped[0], -1)
        return merge_stream(stream)

    monkeypatch.setattr(worker, "merge_stream", damaging)
    assert work(run, 0, 1) == "done"
    assert flipped[0].with_suffix(".damaged").exists()
    assert_same(run, run.plan)
