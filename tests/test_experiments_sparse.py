"""experiments/sparse: all of it on a tiny model, its figures, tables and page; the command with any model."""

from __future__ import annotations

import numpy as np
import pytest
from click.testing import CliRunner

from experiments.lab.results import store
from experiments.sparse import draw, page, run
from experiments.sparse.summary import AT_INFERENCE, Results
from shapley.sparse.frozen import FrozenText
from shapley.sparse.insert import original_parameters
from shapley.sparse.kept import load_layer
from shapley.sparse.text import split
from tests.tiny import tiny_lm, word_tokenizer


def test_the_experiment_end_to_end(tmp_path):
    lm = tiny_lm("gpt2")
    words = list(word_tokenizer().get_vocab())[4:]
    rng = np.random.default_rng(0)
    corpus = {"a": [" ".join(rng.choice(words, 10)) for _ in range(16)]}
    config = {
        "train": 10, "held_out": 6, "max_tokens": 9, "seeds": [0, 1],
        "training": {"steps": 2, "documents": 3, "rate": 0.01, "warm_up": 1, "evaluate_every": 1},
        "layer": {"density": 0.2, "weight_density": 0.5},
        "arms": {"dense": {"rule": "dense", "weight_density": 1.0}, "boosted": {"boost": 5.0, "inference_factor": 1.5}},
    }  # fmt: skip
    found = run.work(lm, corpus, config, ("replace", "add"), tmp_path)
    assert (
        len(found.records) == 8 and found.records == run.work(lm, corpus, config, ("replace", "add"), tmp_path).records
    )
    assert all(0.8 < record["parameters"] / original_parameters(lm) <= 1 for record in found.records)

    head = {
        "command": "run",
        "seconds": 1,
        "hardware": "here",
        "time": "now",
        "model": {"name": "tiny"},
        "config": config,
    }
    path = tmp_path / "tiny-small.jsonl"
    store(path, head | found.head, found.records)
    results = Results.read(path)
    assert results.costs("add", "dense") == pytest.approx(results.curve("add", "dense")[1][:, -1], abs=1e-4)
    cost = results.cost("add", "dense")
    assert cost.low <= cost.estimate <= cost.high
    assert cost.estimate == pytest.approx(np.mean(results.costs("add", "dense")))
    assert results.cost("add", "dense", AT_INFERENCE) == cost
    assert results.cost("add", "boosted", AT_INFERENCE) != results.cost("add", "boosted")
    assert len(found.head["original"]["simple"]) == 24 and all(x <= 1 for x in results.simple("add", "boosted"))
    assert results.raises_k("boosted") and not results.raises_k("dense")
    assert results.curve("add", "boosted")[1][:, 0] == pytest.approx([0, 0], abs=1e-4)  # it begins as the original
    for kept in found.records:
        layer = load_layer(tmp_path.parent / kept["layer"]).layer
        text = FrozenText(lm, split(corpus, lm.tokenizer, train=10, held_out=6, max_tokens=9).held_out, show=False)
        assert run.by_document(layer, kept["place"], text).tolist() == pytest.approx(
            kept["at_inference"]["losses"], abs=1e-4
        )
    draw.draw(results, path, tmp_path / "figures", "tiny-small")
    assert len(list((tmp_path / "figures").glob("*.png"))) == 2
    assert draw.tables(results).count("\n| replace |") == draw.tables(results).count("\n| add |") == 2
    section = page.section(results, "tiny-small")
    assert (
        "above the original's" in section.answers[0]
        and "Dead units and duty-cycle entropy: dense " in section.answers[0]
    )
    assert "(boosted with 1.5 times the winners, as at inference; crosses: with as" in section.pictures[0].caption


def test_the_command_takes_any_model_and_one_place(monkeypatch, folder, own_cache):
    """As gpt2-xl is asked for: a model that shapley takes by its name or folder, and not one of the experiments' own."""
    words = list(word_tokenizer().get_vocab())[4:]
    rng = np.random.default_rng(0)
    (folder / "dbpedia14").mkdir()
    rows = [f"a,{' '.join(rng.choice(words, 10))}" for _ in range(20)]
    (folder / "dbpedia14" / "passages.csv").write_text("\n".join(["topic,text", *rows]) + "\n")
    size = {
        "train": 10, "held_out": 6, "max_tokens": 9, "seeds": [0],
        "training": {"steps": 2, "documents": 3, "rate": 0.01, "warm_up": 1, "evaluate_every": 1},
        "layer": {"density": 0.2, "weight_density": 0.5}, "arms": {"top-k": {}},
    }  # fmt: skip
    monkeypatch.setattr(run.yaml, "safe_load", lambda text: {"full": size})
    arguments = ["--model", str(folder / "model"), "--size", "full", "--place", "replace", "--data", str(folder)]
    for out in (folder / "one.jsonl", folder / "two.jsonl"):  # the second from what is kept
        done = CliRunner().invoke(run.main, [*arguments, "--out", str(out)])
        assert done.exit_code == 0, done.output
        assert "replace, top-k, seed 0 (1 of 1)" in done.output
    one, two = Results.read(folder / "one.jsonl"), Results.read(folder / "two.jsonl")
    assert one.records == two.records and [(own["place"], own["arm"]) for own in one.records] == [("replace", "top-k")]
    missing = CliRunner().invoke(run.main, [*arguments, "--data", str(folder / "model")])
    assert missing.exit_code == 2 and missing.output.count("\n") == 1 and "passages.csv" in missing.output
