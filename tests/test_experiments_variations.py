"""experiments/variations: gated impairment and summaries against plain computations, and the experiment on a tiny model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import experiments.variations.draw as draw_module
import experiments.variations.run as run_module
from experiments.lab import commands
from experiments.lab.figures import drawn_from
from experiments.lab.texts import Texts
from experiments.variations.active import thresholds_of, values_where_active
from experiments.variations.arms import HALF, selection
from experiments.variations.page import section
from experiments.variations.summary import Results, smoothness
from shapley.clusters import Cluster
from shapley.errors import ShapleyError
from shapley.hf.baseline import score_baseline
from shapley.hf.hooks import observe
from shapley.hf.scoring import RowPlan, RowScorer
from shapley.impairment import Impairment
from shapley.prompts import Prompt, TopicPrompts
from tests.tiny import WORDS, tiny_lm

NEURONS = ((0, 1), (0, 5), (1, 2))


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path / "cache"))


def reference():
    texts = ["the player won the", "the band sold a small", "in the city", "her last song was"]
    return [TopicPrompts("other", tuple(Prompt("other", text, " race") for text in texts))]


def hidden(lm, text):
    """``[n_layers, tokens, d_mlp]`` of one text."""
    ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
    with torch.no_grad(), observe(lm.sites, "mlp_hidden") as seen:
        lm.model(input_ids=ids)
    return np.stack([x.view(ids.shape[1], -1).numpy() for x in seen])


def test_thresholds_are_quantiles_of_the_size_of_activations():
    lm = tiny_lm("llama")
    layers, columns = np.array(NEURONS).T
    tokens = [np.abs(hidden(lm, prompt.prompt))[:, 1:] for prompt in reference()[0].prompts]
    wanted = np.quantile(np.concatenate(tokens, axis=1)[layers, :, columns], 0.9, axis=1)
    np.testing.assert_allclose(thresholds_of(lm, layers, columns, reference(), 0.9), wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_where_every_token_is_active_it_is_plain_impairment_and_where_none_is_nothing(kind, monkeypatch):
    lm = tiny_lm("llama")
    prompts, cluster = [Prompt("x", "the player won the", " race")], Cluster(NEURONS)
    everywhere = RowScorer(lm, prompts, Impairment(kind)).values(["logprob"], RowPlan(np.arange(1)), cluster=NEURONS)
    for threshold, wanted in ((-1.0, everywhere[0]), (np.inf, [score_baseline(lm, prompts)[0].logprob])):
        monkeypatch.setattr(
            "experiments.variations.active.thresholds_of", lambda *args, at=threshold: np.full(len(NEURONS), at)
        )
        found = values_where_active(lm, prompts, cluster, kind, reference(), threshold)
        np.testing.assert_allclose(found[0], wanted, atol=1e-4)


def test_only_tokens_above_the_threshold_are_replaced():
    lm = tiny_lm("llama")
    text = "the player won the"
    layers, columns = np.array([0]), np.array([1])
    from experiments.variations.active import replaced_above

    whole = hidden(lm, text)[0, :, 1]
    threshold = float(np.sort(np.abs(whole))[-2])  # one token only is above
    seen = []
    with replaced_above(lm, layers, columns, np.array([threshold]), np.array([7.0])):
        handle = lm.sites.blocks[0].down.register_forward_pre_hook(lambda module, args: seen.append(args[0].clone()))
        with torch.no_grad():
            lm.model(input_ids=torch.tensor([lm.tokenizer(text)["input_ids"]]))
        handle.remove()
    found = seen[0].view(len(whole), -1)[:, 1].numpy()
    np.testing.assert_allclose(found, np.where(np.abs(whole) > threshold, 7.0, whole), rtol=1e-5)
    assert (found == 7.0).sum() == 1


def stored(matrices, **dial):
    """Results of arms by size: ``matrices[arm][fraction]`` is ``[topics, topics + 1]``; prompts of a topic are alike."""
    topics = ["x", "y", "z"]
    watched = [topic for topic in (*topics, "plain") for _ in range(3)]

    def record(arm, i, fraction, row, part="whole", kind="zero", strength=1.0):
        return {
            "arm": arm, "topic": topics[i], "fraction": fraction, "part": part, "kind": kind, "strength": strength,
            "columns": 5, "guard": None, "drop": np.repeat(row, 3).tolist(),
        }  # fmt: skip

    records = [
        record(arm, i, fraction, matrix[i])
        for arm, sizes in matrices.items() for fraction, matrix in sizes.items() for i in range(3)
    ]  # fmt: skip
    for part, share in (("first half", 0.25), ("second half", 0.5)):
        records += [record("reference", i, 0.01, share * matrices["reference"][0.01][i], part) for i in range(3)]
    for kind, by_strength in dial.items():
        for strength, matrix in by_strength.items():
            records += [record("reference", i, 0.01, matrix[i], kind=kind, strength=strength) for i in range(3)]
    config = {
        "topics": topics, "primary": 0.01, "fractions": [0.001, 0.01], "arms": {name: {} for name in matrices},
        "halved": ["reference"], "dial": {"arm": "reference", "kinds": {k: list(v) for k, v in dial.items()}},
    }  # fmt: skip
    return Results({"config": config, "seed": 0, "watched": watched}, records)


def matrix(own, other, plain):
    return np.column_stack([np.full((3, 3), other) + (own - other) * np.eye(3), np.full(3, plain)])


def test_arms_are_compared_where_they_cost_as_much():
    rise = 2 * np.log1p(0.02)
    results = stored(
        {
            "reference": {0.001: matrix(1.0, 0.2, 0.0), 0.01: matrix(2.0, 0.4, rise)},
            "random": {0.001: matrix(0.1, 0.1, 0.0), 0.01: matrix(0.3, 0.1, np.log1p(0.01))},
        }
    )
    found = results.matched("reference", 0.02)
    # Sizes zero and the first cost nothing: they are one dose, of their mean drop.
    assert found.target.estimate == pytest.approx((0.5 + 2.0) / 2) and found.others.estimate == pytest.approx(0.25)
    assert found.target.low == pytest.approx(found.target.high)
    assert np.isnan(results.matched("random", 0.02).target.estimate)
    interaction, whole = results.interaction("reference")
    assert whole.estimate == pytest.approx(2.0) and interaction.estimate == pytest.approx(0.5)
    assert results.effect("reference").selectivity.estimate == pytest.approx(1.6)


def test_the_dial_counts_all_of_its_steps():
    own = {0.01: matrix(2.0, 0.4, 0.0), 0.001: matrix(1.0, 0.0, 0.0)}
    results = stored({"reference": own}, noise={1.0: matrix(1.0, 0.1, 0.1), 2.0: matrix(1.5, 0.1, 0.2)})
    steps = results.dial()["noise"]
    assert [step.effect.target.estimate for step in steps] == pytest.approx([1.0, 1.5])
    assert [step.adjusted for step in steps] == pytest.approx([2 / 6, 2 / 6])  # the least p of three topics, twice
    assert smoothness([1.0, 2.0], [1.0, 1.5]) == 1.0 and smoothness([1.0, 2.0, 3.0], [1.0, 0.5, 1.5]) < 1


def tiny_texts(lm):
    beginnings = ["the player won the", "the band sold a small", "in the city", "her last song was"]

    def expected(topic, beginning):
        options = score_baseline(lm, [Prompt(topic, beginning, f" {word}") for word in WORDS])
        return max(options, key=lambda prompt: prompt.logprob)

    topics = {topic: TopicPrompts(topic, tuple(expected(topic, text) for text in beginnings)) for topic in "xyz"}
    plain = TopicPrompts("plain", tuple(Prompt("plain", "the player", " won the race", id=str(i)) for i in range(18)))
    return Texts(topics, topics, topics, plain)


def test_plain_text_is_not_selected_on_where_it_is_watched():
    texts = tiny_texts(tiny_lm("llama"))
    chosen = selection(texts, {"topics": ["x"], "plain": HALF})
    assert [prompt.id for prompt in chosen["plain"].prompts] == ["16", "17"]
    with pytest.raises(ShapleyError, match="at most 16 passages"):
        selection(texts, {"topics": ["x"], "plain": 17})


def test_the_experiment_end_to_end(monkeypatch, tmp_path):
    lm = tiny_lm("llama")
    lm.name = "smollm2"
    monkeypatch.setattr(commands.models, "load", lambda name, device=None: lm)
    monkeypatch.setattr(commands, "texts", lambda *args: tiny_texts(lm))
    size = {
        "topics": ["x", "y", "z"], "watched": 2, "plain": 2, "fractions": [0.02, 0.1], "primary": 0.1,
        "arms": {"reference": {}, "plain+mean": {"plain": True, "kind": "mean"}, "active": {"above": 0.5},
                 "after": {"site": "mlp_out"}, "uniform": {"semivalue": "shapley"}, "random": {"selector": "random"}},
        "halved": ["reference"], "dial": {"arm": "reference", "kinds": {"noise": [0.5, 1], "scale": [0.5]}},
        "draws": 2, "budget": 192, "chosen_on": 2,
    }  # fmt: skip
    monkeypatch.setattr(commands.yaml, "safe_load", lambda text: {"small": size})
    out = tmp_path / "smollm2-small.jsonl"
    done = CliRunner().invoke(run_module.main, ["--out", str(out)])
    assert done.exit_code == 0, done.output
    results = Results.read(out)
    assert len(results.records) == 3 * (6 * 2 + 2 + 3)
    watched = tiny_texts(lm).watched(size)
    assert results.head["watched"] == [prompt.topic for prompt in watched]
    draw_module.draw(results, out, tmp_path / "figures", "smollm2-small")
    figures = sorted((tmp_path / "figures").iterdir())
    assert len(figures) == 3 and all(drawn_from(figure, out) for figure in figures)
    part = section(results, "smollm2-small")
    assert "| reference |" in draw_module.tables(results) and part.answers[0].startswith("The reference takes")
