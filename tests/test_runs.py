"""``shapley.estimate``: what it writes, checkpoints, and that an interrupted run goes on to the same numbers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from shapley import runs
from shapley.errors import ShapleyError
from shapley.estimators.base import Estimator
from shapley.estimators.registry import Plan
from shapley.impairment import Impairment
from shapley.prompts import Prompt, TopicPrompts
from shapley.runs import estimate
from shapley.store import ScoreFile
from tests.tiny import tiny_lm

LM = tiny_lm("gpt2", n_layers=3, d_mlp=24)
TEXTS = {
    "athlete": [("the player won his last", " race"), ("a coach in his first season with the", " team")],
    "artist": [("a singer with her first", " album song"), ("the band sang the last", " song")],
}
TOPICS = {t: TopicPrompts(t, tuple(Prompt(t, *pair) for pair in pairs)) for t, pairs in TEXTS.items()}
PLANS = {
    "gradient": Plan(estimator="gradient", samples=96, seed=3),
    "permutation": Plan(estimator="permutation", samples=4, truncation=0.02),
    "tmab": Plan(estimator="tmab", samples=3, top_k=5, bound="asymptotic"),
}
NUMBERS = ("score", "stderr", "count", "truncated", "replicates")


def same(one, other, topics=TOPICS):
    for topic in topics:
        a, b = ScoreFile(one)[topic], ScoreFile(other)[topic]
        for name in NUMBERS:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        for name in ("forward_rows", "value_full", "value_empty", "details"):
            assert a.attrs[name] == b.attrs[name]


def test_what_is_written(tmp_path):
    plan = Plan(estimator="gradient", samples=32, seed=7, semivalue="beta(1,4)")
    scores = estimate(LM, TOPICS, tmp_path / "s.h5", plan=plan, layers=[0, 2], argv=["shapley", "estimate"], show=False)
    assert scores.topics == ["artist", "athlete"]
    assert scores.model == {
        "name": "tiny-gpt2", "revision": "local", "fingerprint": LM.fingerprint, "architecture": "GPT2LMHeadModel",
        "n_layers": 3, "d_mlp": 24,
    }  # fmt: skip
    found = scores["athlete"]
    assert found.score.shape == (3, 24) and np.isnan(found.score[1]).all() and np.isfinite(found.score[[0, 2]]).all()
    assert found.count[0, 0] == 2 and found.count[1, 0] == 0
    attrs = found.attrs
    expected = {
        "estimator": "gradient",
        "semivalue": "beta(1,4)",
        "value": "logprob",
        "site": "mlp_hidden",
        "seed": 7,
        "n_prompts": 2,
    }
    assert {name: attrs[name] for name in expected} == expected
    assert json.loads(attrs["impairment"]) == json.loads(Impairment("zero").to_json())
    assert attrs["prompts_sha256"] == TOPICS["athlete"].sha256
    assert attrs["forward_rows"] == 2 * 2 + 3 * 32
    assert attrs["value_full"] > -20 and attrs["wall_seconds"] > 0
    assert json.loads(attrs["argv"]) == ["shapley", "estimate"] and attrs["package_version"]


def test_topics_see_the_same_coalitions(tmp_path):
    """The same prompts under another topic's name: only the order of prompts differs, so one prompt gives equal scores."""
    one = TopicPrompts("one", TOPICS["athlete"].prompts[:1])
    two = TopicPrompts("two", one.prompts)
    scores = estimate(LM, {"one": one, "two": two}, tmp_path / "s.h5", plan=PLANS["gradient"], show=False)
    np.testing.assert_array_equal(scores["one"].score, scores["two"].score)


class Stop(Exception):
    pass


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop])
def test_an_interrupted_run_goes_on_to_the_same_numbers(name, error, tmp_path, monkeypatch):
    """Stopped by Ctrl-C, and by a crash between checkpoints; in the first topic and in the second."""
    whole, broken = tmp_path / "whole.h5", tmp_path / "broken.h5"
    estimate(LM, TOPICS, whole, plan=PLANS[name], show=False)
    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", 0.0)
    step = Estimator.step
    per_run, left = 4, [4]

    def limited(self):
        if left[0] == 0:
            raise error
        left[0] -= 1
        step(self)

    monkeypatch.setattr(Estimator, "step", limited)
    attempts = 0
    while True:
        attempts += 1
        left[0] = per_run
        try:
            estimate(LM, TOPICS, broken, plan=PLANS[name], resume=True, show=False)
            break
        except ShapleyError as stop:
            assert "go on with --resume" in str(stop) and error is KeyboardInterrupt
        except Stop:
            assert error is Stop
    assert attempts > 2
    same(whole, broken)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["broken.h5", "whole.h5"]


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path):
    """kill -9, wherever it happens to be, twice."""
    script = tmp_path / "run.py"
    script.write_text(
        "from shapley import runs\n"
        "from tests.test_runs import LM, TOPICS, Plan, estimate\n"
        "runs.CHECKPOINT_SECONDS = 0.0\n"
        f"estimate(LM, TOPICS, {str(tmp_path / 'killed.h5')!r}, plan=Plan(estimator='gradient', samples=16000), resume=True)\n"
    )
    root = Path(__file__).parents[1]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    checkpoint = tmp_path / "killed.h5.checkpoint"
    for _ in range(2):
        process = subprocess.Popen([sys.executable, script], cwd=root, env=environment, stderr=subprocess.DEVNULL)
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
            time.sleep(0.05)
        time.sleep(0.4)
        assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    state = runs.read_checkpoint(checkpoint)[1]
    assert 0 < int(state["unit"]) < 1000
    short = Plan(estimator="gradient", samples=16 * (int(state["unit"]) + 3))
    whole = estimate(LM, {"athlete": TOPICS["athlete"]}, tmp_path / "whole.h5", plan=short, show=False)
    estimator, _ = runs.build(short, runs.NeuronGame(LM, TOPICS["athlete"]), key="athlete")
    estimator.load(state)
    np.testing.assert_array_equal(estimator.run().score, whole["athlete"].score.ravel())


class TestRefusals:
    plan = Plan(estimator="gradient", samples=16)

    def test_an_output_that_exists(self, tmp_path):
        out = tmp_path / "s.h5"
        estimate(LM, TOPICS, out, plan=self.plan, show=False)
        before = out.read_bytes()
        with pytest.raises(ShapleyError, match=r"--overwrite .* --resume"):
            estimate(LM, TOPICS, out, plan=self.plan, show=False)
        with pytest.raises(ShapleyError, match="exclude each other"):
            estimate(LM, TOPICS, out, plan=self.plan, resume=True, overwrite=True, show=False)
        assert out.read_bytes() == before

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"plan": Plan(estimator="gradient", samples=16, seed=1)}, "seed = 0, now it is 1"),
            ({"value": "margin"}, "value = 'logprob', now it is 'margin'"),
            ({"impairment": Impairment("noise")}, "impairment"),
            ({"layers": [1]}, "layers"),
            ({"lm": tiny_lm("llama")}, "another model"),
        ],
    )
    def test_a_resume_with_other_settings(self, change, words, tmp_path):
        out = tmp_path / "s.h5"
        estimate(LM, TOPICS, out, plan=self.plan, show=False)
        options = {"plan": self.plan} | change
        with pytest.raises(ShapleyError, match=words):
            estimate(options.pop("lm", LM), TOPICS, out, resume=True, show=False, **options)

    def test_other_prompts_of_a_finished_topic(self, tmp_path):
        out = tmp_path / "s.h5"
        estimate(LM, TOPICS, out, plan=self.plan, show=False)
        with pytest.raises(ShapleyError, match="prompts_sha256"):
            estimate(LM, {"artist": TOPICS["artist"].first(1)}, out, plan=self.plan, resume=True, show=False)

    def test_a_checkpoint_of_a_topic_that_is_not_asked_for_is_kept(self, tmp_path):
        out, checkpoint = tmp_path / "s.h5", tmp_path / "s.h5.checkpoint"
        runs.write_checkpoint(checkpoint, json.dumps({"topic": "company", "settings": {}, "seconds": 1}), {})
        with pytest.raises(ShapleyError, match="company"):
            estimate(LM, TOPICS, out, plan=self.plan, resume=True, show=False)
        assert checkpoint.exists()

    def test_work_that_was_stopped_is_not_begun_again_unasked(self, tmp_path):
        out, checkpoint = tmp_path / "s.h5", tmp_path / "s.h5.checkpoint"
        runs.write_checkpoint(checkpoint, json.dumps({"topic": "athlete", "settings": {}, "seconds": 1}), {})
        before = checkpoint.read_bytes()
        with pytest.raises(ShapleyError, match=r"s\.h5\.checkpoint holds the work .* --resume .* --overwrite"):
            estimate(LM, TOPICS, out, plan=self.plan, show=False)
        assert checkpoint.read_bytes() == before and not out.exists()

    def test_past_a_damaged_checkpoint_finished_topics_are_kept(self, tmp_path):
        out, checkpoint = tmp_path / "s.h5", tmp_path / "s.h5.checkpoint"
        first, second = TOPICS
        estimate(LM, {first: TOPICS[first]}, out, plan=self.plan, show=False)
        whole = ScoreFile(out)[first].score
        checkpoint.write_text("text")
        with pytest.raises(
            ShapleyError, match=f"cannot read checkpoint .*not one.*: delete it to start '{second}' again"
        ):
            estimate(LM, TOPICS, out, plan=self.plan, resume=True, show=False)
        checkpoint.unlink()
        scores = estimate(LM, TOPICS, out, plan=self.plan, resume=True, show=False)
        assert scores.topics == sorted(TOPICS) and np.array_equal(scores[first].score, whole, equal_nan=True)

    def test_a_refused_overwrite_keeps_what_is_there(self, tmp_path):
        out = tmp_path / "s.h5"
        estimate(LM, TOPICS, out, plan=self.plan, show=False)
        before = out.read_bytes()
        bad = TOPICS | {"worse": TopicPrompts("worse", (Prompt("worse", "the player", "  "),))}
        with pytest.raises(ShapleyError, match="tokenises to nothing"):
            estimate(LM, bad, out, plan=self.plan, overwrite=True, show=False)
        with pytest.raises(ShapleyError, match="too few"):
            estimate(LM, TOPICS, out, plan=Plan(estimator="permutation", budget=10), overwrite=True, show=False)
        assert out.read_bytes() == before


def test_a_topic_can_be_added_later(tmp_path):
    both, later = tmp_path / "both.h5", tmp_path / "later.h5"
    estimate(LM, TOPICS, both, plan=PLANS["gradient"], show=False)
    estimate(LM, {"artist": TOPICS["artist"]}, later, plan=PLANS["gradient"], show=False)
    estimate(LM, {"athlete": TOPICS["athlete"]}, later, plan=PLANS["gradient"], resume=True, show=False)
    same(both, later)


def test_auto_says_what_it_picked_and_why(tmp_path, capsys):
    estimate(LM, {"artist": TOPICS["artist"]}, tmp_path / "s.h5", plan=Plan(budget=200))
    assert (
        "estimator two-stage (72 players: gradients for all, exact differences where they matter)"
        in capsys.readouterr().err
    )
