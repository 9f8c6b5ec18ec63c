"""The experiment on bases: concentration against its definitions, and claims drawn from stored records."""

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
from click.testing import CliRunner

import experiments.bases.run as run_module
from experiments.bases.concentration import concentration, gini
from experiments.bases.draw import draw, tables
from experiments.bases.page import section
from experiments.bases.summary import Results
from experiments.lab import commands
from experiments.lab.results import store
from shapley.errors import ShapleyError
from shapley.files import write_text
from shapley.hf.load import load_model
from shapley.store import ScoreFile
from tests.test_experiments_variations import tiny_texts


def test_how_few_players_hold_the_value():
    scores = np.array([0.0, 3, 1, 0, -1, 5])
    found = concentration(scores, scores)
    assert (
        found["half"] == 1
        and found["total"] == 8
        and found["peak"] == 9
        and found["share"][:3] == [0.5556, 0.8889, 1.0]
    )
    one, equal = np.array([0.0, 0, 0, 4]), np.ones(4)
    assert concentration(one, one)["gini"] == 0.75 and gini(equal, equal) == 0
    absolute = np.abs(scores)
    pairs = np.abs(absolute[:, None] - absolute).sum()  # the Gini coefficient's definition
    assert found["gini"] == pytest.approx(pairs / (2 * len(scores) * absolute.sum()), abs=1e-4)
    # Noise about the scores looks like concentration to one estimate alone, and like less of it to two.
    rng = np.random.default_rng(0)
    truth = 1 + 0.8 * rng.standard_normal(20_000)
    noisy = [truth + 2 * rng.standard_normal(len(truth)) for _ in range(2)]
    alone, exact, two = (concentration(*pair)["half"] for pair in ((noisy[0], noisy[0]), (truth, truth), noisy))
    assert alone < 0.75 * exact and exact < two < 10_000


def test_estimates_that_do_not_agree_tell_nothing():
    rng = np.random.default_rng(0)
    found = concentration(*rng.standard_normal((2, 1000)))
    assert (
        found["half"] is None and found["gini"] is None and abs(found["agreement"]) < 0.1 and found["n_players"] == 1000
    )
    nothing = concentration(np.zeros(5), np.zeros(5))
    assert nothing["half"] is None and nothing["agreement"] is None and nothing["share"] == [0.0] * 5
    assert np.isnan(gini(np.ones(3), -np.ones(3)))
    json.dumps([found, nothing], allow_nan=False)


def test_bases_are_compared(tmp_path):
    """Results in which directions hold more, and take more of their topic: of the figures and tables as well."""
    watched = [topic for topic in "xy" for _ in range(3)] + ["plain"] * 2
    records = []
    of = [
        ("identity", 0, 1.0, 100), ("random", 0, 0.4, 400), ("random", 1, 0.6, 400), ("pca", 0, 2.0, 25),
        ("stream", 0, 1.0, 50), ("stream-pca", 0, 1.0, 50),
    ]  # fmt: skip
    for basis, seed, own, half in of:
        head = {"basis": basis, "seed": seed}
        records.append({**head, "what": "simple", "explained": [0.1, 0.2, own]})
        for i, topic in enumerate("xyz"):
            curve = {
                "players": [1, 10, 100],
                "share": [0.1, 0.4, 0.9],
                "half": None if basis == "pca" and topic == "z" else half,
                "gini": None if basis == "pca" and topic == "z" else 0.5,
                "total": 3,
                "agreement": None if basis == "pca" and topic == "z" else 0.7,
                "n_players": 200 if basis.startswith("stream") else 400,
                "refined": [0, 0],
            }
            records.append({**head, "what": "concentration", "topic": topic, **curve})
            drop = np.repeat(np.roll([own, 0.1, 0.1], i), 3).tolist() + [0.05 if basis != "stream" else 0.03] * 2
            records.append({**head, "what": "cluster", "topic": topic, "fraction": 0.01, "players": 5, "drop": drop})
    head = {
        "config": {"topics": ["x", "y", "z"], "fractions": [0.01], "budget": 1, "seeds": 2, "passages": 9},
        "seed": 0, "watched": [*watched[:6], "z", "z", "z", *watched[6:]], "model": {"name": "m"}, "command": "c", "seconds": 1,
        "hardware": "h", "time": "t",
    }  # fmt: skip
    results = Results(head, records)
    assert results.bases == ["identity", "random", "pca", "stream", "stream-pca"] and not results.refined
    pca = results.concentrated("pca")
    assert pca.fewer.estimate == pytest.approx(4) and pca.topics == 2 and pca.half.estimate == pytest.approx(25)
    assert results.concentrated("random").fewer.high == pytest.approx(0.25)
    stream = results.concentrated("stream-pca")  # half as many players hold half, as there are half as many
    assert stream.fewer.estimate == pytest.approx(1)
    assert (stream.share, results.concentrated("identity").share) == pytest.approx((0.25, 0.25))
    random = results.specific("random", 0.01)
    assert random.effect.target.estimate == pytest.approx(0.5) and random.seeds == pytest.approx((0.3, 0.5))
    assert results.specific("pca", 0.01).gain.low == pytest.approx(1.0) and random.gain.high < 0
    share = np.log1p(0.02) / 0.05  # along a straight line from no player on
    matched = results.matched("random", 0.02)
    assert (matched.target.estimate, matched.gain.low) == pytest.approx((0.5 * share, -0.5 * share))
    assert matched.below and np.isnan(results.matched("pca", 0.1).target.estimate)
    store(tmp_path / "m.jsonl", head, records)
    draw(results, tmp_path / "m.jsonl", tmp_path, "m")
    assert len(list(tmp_path.glob("*.png"))) == 2 and "| 5 | pca | 2.00 [2.00, 2.00] |" in tables(results)
    part = section(results, "m")
    assert "fewer than the standard basis of the site (the neurons, or the stream's columns), beyond" in part.answers[0]
    assert part.answers[0].endswith("over 3 topics: pca.") and "in which no players got exact" in part.caveats[1]
    assert "on the same prompts, beyond the interval: pca" in part.answers[1]
    assert "up by 2%, selectivity is" in part.answers[1] and "above neurons': pca †, stream †" in part.answers[1]


def test_a_difference_is_marked_where_the_neurons_side_is_below_their_smallest_clusters():
    """Random directions cost plain text 1% and 9%, neurons 8% and 20%: at 5% only the neurons are on the line from nothing."""
    records, watched = [], ["x", "x", "y", "y", "plain", "plain"]
    for basis, costs in (("identity", (0.08, 0.2)), ("random", (0.01, 0.09))):
        for fraction, cost in zip((0.001, 0.01), costs, strict=True):
            for i, topic in enumerate("xy"):
                drop = [*np.repeat(np.roll([1.0, 0.1], i), 2), cost, cost]
                records.append(
                    {"basis": basis, "seed": 0, "what": "cluster", "topic": topic, "fraction": fraction, "drop": drop}
                )
    results = Results(
        {"config": {"topics": ["x", "y"], "fractions": [0.001, 0.01]}, "seed": 0, "watched": watched}, records
    )
    found = results.matched("random", 0.05)
    assert not found.below and found.gain_below and results.matched("identity", 0.05).below
    assert not results.matched("random", 0.085).gain_below


def test_the_experiment_end_to_end(monkeypatch, folder, own_cache):
    """All bases of a tiny model, then once more from what is kept."""

    def load(name, device=None):
        lm = load_model(str(folder / "model"), device="cpu")
        lm.name = name
        return lm

    for module in (run_module, commands.models):
        monkeypatch.setattr(module, "load", load)
        monkeypatch.setattr(module, "source", lambda name: str(folder / "model"))
    monkeypatch.setattr(commands, "texts", lambda lm, *args: tiny_texts(lm))
    size = {
        "topics": ["x", "y", "z"], "selection": 4, "watched": 2, "plain": 2, "seeds": 2, "steps": 2, "fractions": [0.05, 0.2],
        "budget": 192, "passages": 12, "chosen_on": 2, "processes": 1,
    }  # fmt: skip
    monkeypatch.setattr(commands.yaml, "safe_load", lambda text: {"small": size})
    words = "the player won the race in a city . her last song was a small band"
    (folder / "dbpedia14").mkdir()
    rows = [f"{topic},{words[i:]}" for i in range(0, 24, 4) for topic in ("Athlete", "Artist")]
    (folder / "dbpedia14" / "passages.csv").write_text("\n".join(["topic,text", *rows]) + "\n")
    outs = [folder / "one.jsonl", folder / "two.jsonl"]
    for out in outs:
        done = CliRunner().invoke(run_module.main, ["--out", str(out), "--data", str(folder)])
        assert done.exit_code == 0, done.output
        monkeypatch.setattr("experiments.lab.scores.estimate", None)  # the second run has all scores
    first, second = map(Results.read, outs)
    kept = folder / "cache" / "experiments" / "scores"
    assert first.records == second.records and first.bases == list(run_module.BASES)
    simple = [(own["basis"], own["seed"]) for own in first.records if own["what"] == "simple"]
    assert len(set(simple)) == 9 and ("random", 1) in simple and ("stream-random", 1) in simple
    assert len(list(kept.glob("*.h5"))) == 2 * 9
    for basis, width, site in (("identity", 24, "mlp_hidden"), ("stream-pca", 16, "mlp_out")):
        assert first.n_players(basis) == 3 * width and first.players(basis, 0.2) == round(0.2 * 3 * width)
        assert {ScoreFile(path).attrs("x")["site"] for path in kept.glob(f"*-{site}-*")} == {site}
    draw(first, outs[0], folder / "figures", "smollm2-small")
    assert "| stream-random |" in tables(first)


def test_a_process_that_was_killed_is_told_in_a_line(monkeypatch, folder, own_cache):
    monkeypatch.setattr(run_module, "of_basis", killed)
    config = {"topics": ["x", "y", "z"], "selection": 4, "watched": 2, "plain": 2, "seeds": 1, "processes": 2}
    lm = load_model(str(folder / "model"), device="cpu")
    with pytest.raises(ShapleyError, match="a process was killed: run the command again"):
        run_module.work(lm, tiny_texts(lm), config, folder)


def test_processes_go_with_their_parent(monkeypatch, folder, own_cache):
    """Else a run that was killed would go on beside the next one, and write what that one writes."""
    path = folder / "child"
    script = f"""
import os, time
from joblib import Parallel, delayed
from tests.test_experiments_bases import followed
Parallel(n_jobs=2)(delayed(followed)(os.getpid(), {str(path)!r}) for _ in range(2))
"""
    with subprocess.Popen([sys.executable, "-c", script], cwd=Path(__file__).parents[1]) as parent:
        while not path.exists():
            time.sleep(0.1)
        parent.kill()
    child = int(path.read_text())
    while alive(child):
        time.sleep(0.1)


def followed(parent, path):
    """In a process of the script's: a basis that takes long."""
    run_module.load = lambda *arguments: (write_text(Path(path), str(os.getpid())), time.sleep(600))
    run_module.of_basis(parent, "m", "cpu", "identity", 0, {}, [], {"steps": 0}, Path())


def alive(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return "zombie" not in Path(f"/proc/{process}/status").read_text()


def killed(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
