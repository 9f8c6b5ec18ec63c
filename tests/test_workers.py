"""Several worker processes give the numbers of one, and end as one does.

Every test that starts processes costs seconds: there are few of them.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from shapley import runs
from shapley.errors import ShapleyError
from shapley.estimators.base import Estimator
from shapley.estimators.registry import ESTIMATORS, Plan, build
from shapley.estimators.two_stage import ROUND_UNITS
from shapley.groups import blocks
from shapley.hf.load import load_model
from shapley.runs import estimate
from shapley.store import ScoreFile
from shapley.workers import worker_devices, worker_pool
from tests.games import random_multilinear
from tests.test_runs import TEXTS, TOPICS, same
from tests.tiny import tiny_model, word_tokenizer

CPU = torch.device("cpu")
ONE = {"athlete": TOPICS["athlete"]}
PLANS = {
    "gradient": Plan(estimator="gradient", samples=320, seed=3),
    "permutation": Plan(estimator="permutation", samples=6, truncation=0.02),
    "two-stage": Plan(estimator="two-stage", samples=960, top_k=5, delta=1e-12),
}


def save_model(folder, family="gpt2"):
    tiny_model(family).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    save_model(path)
    return path


@pytest.fixture(scope="module")
def lm(folder):
    return load_model(str(folder), device="cpu")


@pytest.fixture(scope="module")
def pool():
    """Two processes for all tests of the numbers, which take seconds to start."""
    with worker_pool(("cpu", "cpu")) as pool:
        yield pool


@pytest.fixture
def shared_pool(pool, monkeypatch):
    def stand_in(devices):
        return nullcontext(pool if len(devices) == 2 else None)

    monkeypatch.setattr(runs, "worker_pool", stand_in)


def stopping(patch, name, calls):
    """Ctrl-C in the place of the call of an estimator's method after so many."""
    method, left = getattr(Estimator, name), [calls]

    def limited(self, *args):
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        method(self, *args)

    patch.setattr(Estimator, name, limited)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.usefixtures("shared_pool")
def test_two_workers_give_the_bits_of_one(name, lm, tmp_path):
    plan = PLANS[name]
    options = {
        "show": False,
        "layers": [0, 2],
        "groups": (lambda game: blocks(game, 3)) if name == "permutation" else None,
    }
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    estimate(lm, TOPICS, one, plan=plan, **options)
    estimate(lm, TOPICS, two, plan=plan, workers=2, **options)
    same(one, two)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["one.h5", "two.h5"]
    if name == "two-stage":
        assert json.loads(ScoreFile(one).attrs("athlete")["details"])["rounds"] > 1


@pytest.mark.usefixtures("shared_pool")
def test_an_interrupted_run_goes_on_with_another_number_of_workers(lm, tmp_path, monkeypatch):
    """With two, then alone to the middle of a pair of permutations, then with two."""
    whole, broken = tmp_path / "whole.h5", tmp_path / "broken.h5"
    plan = Plan(estimator="permutation", samples=10)
    estimate(lm, ONE, whole, plan=plan, show=False)
    for workers, (method, calls) in ((2, ("take", 2)), (1, ("step", 3))):
        with monkeypatch.context() as patch:
            stopping(patch, method, calls)
            with pytest.raises(ShapleyError, match=r"interrupted after .* go on with --resume"):
                estimate(lm, ONE, broken, plan=plan, workers=workers, resume=True, show=False)
    state = runs.read_checkpoint(tmp_path / "broken.h5.checkpoint")[1]
    assert int(state["unit"]) == 2 and np.isfinite(state["walk_values"]).any()
    estimate(lm, ONE, broken, plan=plan, resume=True, workers=2, show=False)
    same(whole, broken, ONE)


@pytest.mark.usefixtures("shared_pool")
def test_what_a_worker_refuses(tmp_path):
    """Its own line, as if it had been found here: the model's folder holds another model by now."""
    folder = tmp_path / "model"
    save_model(folder)
    lm = load_model(str(folder), device="cpu")
    save_model(folder, "llama")
    with pytest.raises(ShapleyError, match=r"workers load model .* anew, and found another one there"):
        estimate(lm, ONE, tmp_path / "s.h5", plan=PLANS["gradient"], workers=2, show=False)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds child processes in /proc")
@pytest.mark.parametrize("how", ["a worker is killed", "Ctrl-C", "Ctrl-C while workers start"])
def test_how_a_run_ends(how, folder, tmp_path):
    """One line and a checkpoint, and no process left."""
    prompts, out = tmp_path / "p.jsonl", tmp_path / "s.h5"
    lines = [{"topic": "athlete", "prompt": prompt, "answer": answer} for prompt, answer in TEXTS["athlete"]]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = (
        f"estimate --model {folder} --prompts {prompts} --out {out} --estimator gradient --samples 16000000 --workers 2"
    )
    code = "from shapley import runs; from shapley.cli.main import main; runs.CHECKPOINT_SECONDS = 0.1; main()"
    run = subprocess.Popen(
        [sys.executable, "-c", code, *words.split()],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Where the tests run in the background of a script, Ctrl-C is ignored, and that is inherited.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    checkpoint = tmp_path / "s.h5.checkpoint"
    early = how == "Ctrl-C while workers start"
    wait_for(lambda: len(workers_among(children_of(run.pid))) == 2 if early else checkpoint.exists())
    children = children_of(run.pid)
    if how == "a worker is killed":
        os.kill(workers_among(children)[0], signal.SIGKILL)
    else:
        time.sleep(0.2)
        os.killpg(run.pid, signal.SIGINT)  # a terminal sends it to all
    out, err = run.communicate(timeout=60)
    wait_for(lambda: not any(map(alive, children)))
    assert checkpoint.exists() and int(runs.read_checkpoint(checkpoint)[1]["unit"]) >= (not early)
    start = "shapley: interrupted after" if "Ctrl-C" in how else "shapley: a worker process was killed"
    lines = [line for line in err.splitlines() if "s left" not in line]  # without the progress
    assert len(lines) == 2, err  # what is estimated, and how it ended
    assert run.returncode == 2 and lines[1].startswith(start) and lines[1].endswith("--resume") and not out


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds child processes in /proc")
def test_a_worker_does_not_outlive_its_parent(tmp_path):
    folder = tmp_path / "pool"
    folder.mkdir()
    worker = "import sys; from shapley.workers import _die_with, Path; _die_with(int(sys.argv[1]), Path(sys.argv[2]))"
    words = f"[sys.executable, '-c', {worker!r}, str(os.getpid()), {str(folder)!r}]"
    code = f"import os, subprocess, sys; subprocess.run({words})"
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1])
    wait_for(lambda: children_of(parent.pid))
    (child,) = children_of(parent.pid)
    parent.kill()
    parent.wait()
    wait_for(lambda: not alive(child))
    assert not folder.exists()


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def children_of(pid):
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def workers_among(pids):
    return [pid for pid in pids if b"popen_loky" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def alive(pid):
    """Whether a process is there, and not only its entry in the table (nobody may be there to take that away)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


class TestUnitsAhead:
    """A copy that knows only what it is told computes the samples of the whole run."""

    @pytest.mark.parametrize("name", [name for name, kind in ESTIMATORS.items() if kind.apart])
    def test_copies(self, name):
        plan = Plan(estimator=name, samples=48 if name in ("gradient", "two-stage") else 6)
        one, other, copy = (build(plan, random_multilinear(6, seed=1), key="k")[0] for _ in range(3))
        one.run()
        other.begin()
        while not other.finished:
            ends, shared = (other.value_full, other.value_empty), other.shared()
            units = range(other.unit, other.unit + other.units_ahead())
            samples = [self.sample(copy, unit, ends, shared) for unit in reversed(units)]
            for sample in reversed(samples):
                other.take(sample)
        np.testing.assert_array_equal(one.estimate().score, other.estimate().score)
        np.testing.assert_array_equal(one.estimate().stderr, other.estimate().stderr)

    def sample(self, copy, unit, ends, shared):
        copy.adopt(unit, ends, shared)
        sample = None
        while sample is None:
            sample = copy.advance()
        return sample

    def test_the_parts_of_two_stages(self):
        estimator, _ = build(Plan(estimator="two-stage", samples=160), random_multilinear(30, seed=1), key="k")
        parts = []
        while not estimator.finished:
            parts.append(estimator.units_ahead())
            for _ in range(parts[-1]):
                estimator.step()
        assert parts[:2] == [11, 1] and set(parts[2:]) == {ROUND_UNITS}


class TestRefusals:
    def test_an_estimator_that_goes_one_unit_at_a_time(self, lm, tmp_path):
        plan = Plan(estimator="tmab", samples=3, top_k=5)
        with pytest.raises(
            ShapleyError, match=r"'tmab' .* no use for 2 workers: .* exact, permutation, gradient, two-stage"
        ):
            estimate(lm, ONE, tmp_path / "s.h5", plan=plan, workers=2, show=False)

    @pytest.mark.parametrize(
        ("words", "line"),
        [
            (["--workers", "0"], "--workers 0 must be at least 1"),
            (["--workers", "3", "--device", "cpu,cpu"], "--device names 2 devices for 3 workers"),
        ],
    )
    def test_the_command_line(self, words, line, folder, tmp_path):
        prompts = tmp_path / "p.jsonl"
        prompts.write_text(json.dumps({"topic": "t", "prompt": "the player", "answer": " race"}) + "\n")
        command = ["estimate", "--model", folder, "--prompts", prompts, "--out", tmp_path / "s.h5", *words]
        found = subprocess.run(
            [sys.executable, "-m", "shapley.cli.main", *map(str, command)], capture_output=True, text=True
        )
        assert found.returncode == 2 and line in found.stderr and len(found.stderr.splitlines()) == 1


class TestDevices:
    def test_which_worker_has_which(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert worker_devices((), CPU, 3) == ("cpu",) * 3
        assert worker_devices(("auto",), torch.device("cuda"), 2) == ("cuda:0", "cuda:1")
        assert worker_devices(("cuda",), torch.device("cuda"), 2) == ("cuda:0", "cuda:1")
        assert worker_devices(("cuda:1", "cuda:0"), torch.device("cuda:1"), 2) == ("cuda:1", "cuda:0")
        assert worker_devices(("cuda:1",), torch.device("cuda:1"), 1) == ("cuda:1",)

    @pytest.mark.parametrize(
        ("devices", "workers", "line"),
        [
            ((), 0, "--workers 0"),
            (("cuda",), 3, "3 workers, and 2 GPUs"),
            (("cuda:1",), 2, "names 1 devices for 2 workers"),
            (("cpu", "cpu"), 1, "names 2 devices for 1 workers"),
        ],
    )
    def test_wrong_numbers(self, devices, workers, line, monkeypatch):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(ShapleyError, match=line):
            worker_devices(devices, CPU, workers)
