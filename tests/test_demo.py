"""The whole pipeline on the real demo model, at a small size: what `make demo` does in full."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from shapley import demo
from shapley.cli import main as entry
from shapley.clusters import Cluster
from shapley.hf.load import load_model
from shapley.prompts import read_prompts
from shapley.records import read_sweep
from shapley.store import ScoreFile

pytestmark = pytest.mark.real_model


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(demo, "PER_TOPIC", 3)
    monkeypatch.setattr(demo, "PLAN", replace(demo.PLAN, samples=16))
    sweeps = [
        replace(plan, strengths=plan.strengths[-1:], prompts=2, n_random=min(plan.n_random, 1)) for plan in demo.SWEEPS
    ]
    monkeypatch.setattr(demo, "SWEEPS", tuple(sweeps))


def test_the_demo(small, tmp_path):
    said = []
    report = demo.run_demo(tmp_path, resume=False, say=said.append)
    assert [line[:3] for line in said if line[1:3] == "/6"] == ["1/6", "2/6", "3/6", "4/6", "5/6", "6/6"]
    scores = ScoreFile(tmp_path / "scores.h5")
    assert set(scores.topics) == set(demo.TOPICS)
    assert scores["athlete"].score.shape == (30, 1536)
    selection, held_out = read_prompts(tmp_path / "prompts.jsonl"), read_prompts(tmp_path / "prompts.held-out.jsonl")
    for topic in demo.TOPICS:
        assert len(selection[topic]) == len(held_out[topic]) == 3
        assert len(Cluster.load(tmp_path / f"cluster-{topic}.json")) == 46
    for plan in demo.SWEEPS:
        assert list(read_sweep(tmp_path / plan.file).strengths) == [0.0, plan.strengths[-1]]
    page = report.read_text()
    assert "shared by two halves" in page and page.count("data:image/png") >= 10
    assert (tmp_path / "specificity.png").read_bytes()[:4] == b"\x89PNG"

    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.h5")}
    demo.run_demo(tmp_path, resume=True, say=said.append)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.h5")} == before


def test_a_demo_that_is_there_is_not_replaced(tmp_path, monkeypatch, capsys):
    (tmp_path / "scores.h5").write_bytes(b"mine")
    monkeypatch.setattr("sys.argv", ["shapley", "demo", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stop:
        entry.main()
    assert stop.value.code == 2 and "--overwrite to run it again, or --resume" in capsys.readouterr().err
    assert (tmp_path / "scores.h5").read_bytes() == b"mine"


def test_check_on_the_demo_model(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["shapley", "check", "smollm2", "--json"])
    with pytest.raises(SystemExit) as stop:
        entry.main()
    found = json.loads(capsys.readouterr().out)
    assert (
        stop.value.code == 0 and found["model"]["n_layers"] == 30 and all(check["holds"] for check in found["checks"])
    )


def test_padding_does_not_move_values_on_the_demo_model():
    """Tiny random models are far from a real one's activations: one prompt alone and beside a longer one."""
    import numpy as np

    from shapley.hf.scoring import RowPlan, RowScorer
    from shapley.impairment import Impairment
    from shapley.prompts import Prompt

    lm = load_model("smollm2")
    short = Prompt("t", "Michael Jordan was an American professional basketball", " player")
    long = Prompt(
        "t", "In the years after the war the small firm grew, opened offices abroad and became a public", " company"
    )
    rows = RowScorer(lm, [short, long], Impairment("noise", 0.05))
    together = rows.values(["logprob"], RowPlan(np.array([0, 1])))
    alone = rows.values(["logprob"], RowPlan(np.array([0])))
    assert together[0, 0] == pytest.approx(alone[0, 0], abs=1e-4)
