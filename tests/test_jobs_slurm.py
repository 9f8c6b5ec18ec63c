"""A run on a real Slurm: submitted, preempted, requeued, merged; its scores are those of one process, to the bit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from shapley.estimators.registry import Plan, build
from shapley.jobs import slurm
from shapley.jobs.attempt import read_reports
from shapley.jobs.folder import RunFolder
from shapley.jobs.games import open_games
from shapley.jobs.submit import jobs_of
from shapley.prompts import read_prompts
from shapley.store import ScoreFile

pytestmark = pytest.mark.slurm
PROFILE = Path(__file__).parents[1] / "slurm" / "laptop.yaml"
MODEL = "synthetic:4x256@3"
OPTIONS = ["--model", MODEL, "--budget", "12000", "--top-k", "20", "--estimator", "two-stage", "--shards", "3"]


def shapley(*words, fails=False):
    done = subprocess.run(
        [sys.executable, "-m", "shapley", *map(str, words)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    lines = [{"topic": t, "prompt": f"prompt {i}", "answer": " a"} for t in ("one", "two") for i in range(4)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def tasks(run, name):
    """Those of the run's queue whose step is ``name``, by state."""
    ids = [job["id"] for job in json.loads((run / "jobs.json").read_text())["jobs"] if job["step"] == name]
    return slurm.queue(ids)


def wait_for(condition, seconds=90):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.3)
    return found


def test_submit_requeue_preempt_merge_compare(cluster, tmp_path, prompts):
    run = tmp_path / "a run"
    shapley("submit", "estimate", *OPTIONS, "--prompts", prompts, "--run", run, "--profile", PROFILE)
    folder = RunFolder(run)
    # One task is sent back to the queue by hand, and one node's are preempted by a partition that may.
    running = wait_for(lambda: [task for task, entry in tasks(run, "work").items() if entry.state == "RUNNING"])
    wait_for(lambda: list(run.glob("topics/*/round-0000/*.segment")))
    subprocess.run(["scontrol", "requeue", running[0]], check=True)
    script = tmp_path / "urgent.sh"
    script.write_text("#!/bin/bash\nsleep 3\n")
    urgent = subprocess.run(
        ["sbatch", "--parsable", "--partition=high", "--exclusive", "--output=/dev/null", script],
        capture_output=True,
        text=True,
        check=True,
    )
    said = shapley("status", run)
    assert "working, round 0" in said and "running" in said
    assert shapley("submit", "workers", run, "--add", 1).startswith("job ")
    wait_for(lambda: (run / "scores.h5").exists(), seconds=150)
    cluster.wait([*jobs_of(folder), urgent.stdout.strip()])
    cut_short = [report for report in read_reports(folder.workers) if report.state in ("working", "stopped")]
    assert len(cut_short) >= 2  # by the requeue and by the preemption
    file = ScoreFile(run / "scores.h5")
    for topic, group in read_prompts(prompts).items():
        _, make = open_games({"model": MODEL.split("@")[0]}, "cpu")
        plan = Plan(estimator="two-stage", budget=12_000, top_k=20)
        expected = build(plan, make(group), key=topic)[0].run()
        for name in ("score", "stderr", "count", "replicates", "exact"):
            wanted = getattr(expected, name)
            np.testing.assert_array_equal(getattr(file[topic], name).reshape(wanted.shape), wanted, err_msg=name)
        assert file.attrs(topic)["forward_rows"] == expected.forward_rows
    assert "finished: shapley top" in shapley("status", run)
    assert "is finished" in shapley(
        "submit", "estimate", *OPTIONS, "--prompts", prompts, "--run", run, "--profile", PROFILE, fails=True
    )


def test_cancel_and_go_on(cluster, tmp_path, prompts):
    run = tmp_path / "run"
    command = ["submit", "estimate", *OPTIONS, "--prompts", prompts, "--run", run, "--profile", PROFILE]
    shapley(*command)
    wait_for(lambda: list(run.glob("topics/*/round-0000/*.segment")))
    assert "in the queue already" in shapley(*command, fails=True)
    assert "jobs cancelled" in shapley("cancel", run)
    cluster.wait(jobs_of(RunFolder(run)))
    before = len(list(run.glob("topics/*/round-0000/*.segment")))
    assert "nobody works" in shapley("status", run)
    shapley(*command)
    wait_for(lambda: len(list(run.glob("topics/*/round-0000/*.segment"))) > before)
    shapley("cancel", run)
    assert "no job of it" in wait_for(lambda: shapley("cancel", run))
