"""The neuron game on tiny models: values against weight edits, gradients against finite differences, and every estimator
against Shapley values enumerated by independent code."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from shapley.errors import ShapleyError
from shapley.estimators.registry import Plan, build
from shapley.game import NeuronGame
from shapley.hf.hooks import Rows, impair
from shapley.hf.sites import write_weights
from shapley.impairment import Impairment
from shapley.prompts import Prompt, TopicPrompts
from tests.games import semivalue_by_definition, shapley_weight
from tests.tiny import tiny_lm

SENTENCES = (  # of ten tokens each, so that the independent code can run them together without padding
    ("the player won his last race in the old", " city"),
    ("a singer in the city with her first", " album song"),
    ("the old company in the city sold a small", " bank"),
)
TOPIC = TopicPrompts("toy", tuple(Prompt("toy", prompt, answer) for prompt, answer in SENTENCES))
FAMILIES = ("gpt2", "llama")


def small(family):
    return tiny_lm(family, n_layers=3, d_mlp=4)


def edited_value(lm, intact):
    """v(S) with the down-projections' rows of the others set to zero: no hooks."""
    before = [lm.tokenizer(prompt)["input_ids"] for prompt, _ in SENTENCES]
    ids = torch.tensor([lm.tokenizer(prompt + answer)["input_ids"] for prompt, answer in SENTENCES])
    writes = [write_weights(block) for block in lm.sites.blocks]
    saved = [weight.clone() for weight in writes]
    with torch.no_grad():
        try:
            for layer, weight in enumerate(writes):
                for neuron in range(lm.sites.d_mlp):
                    if layer * lm.sites.d_mlp + neuron not in intact:
                        weight[neuron] = 0
            logprobs = lm.model(input_ids=ids, use_cache=False).logits.double().log_softmax(-1)
        finally:
            for weight, whole in zip(writes, saved, strict=True):
                weight.copy_(whole)
    per_prompt = [
        np.mean([float(logprobs[row, i - 1, ids[row, i]]) for i in range(len(prompt), ids.shape[1])])
        for row, prompt in enumerate(before)
    ]
    return float(np.mean(per_prompt))


@cache
def truth(family):
    """Shapley values of the 12 neurons by the definition, from weight edits."""
    lm = small(family)
    values = cache(lambda intact: edited_value(lm, intact))
    return semivalue_by_definition(12, values, shapley_weight(12))


@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_those_of_edited_weights(family):
    lm = small(family)
    coalitions = np.random.default_rng(0).random((6, 12)) < 0.5
    coalitions[0], coalitions[1] = True, False
    values = NeuronGame(lm, TOPIC).values(coalitions)
    expected = [edited_value(lm, frozenset(np.flatnonzero(row).tolist())) for row in coalitions]
    np.testing.assert_allclose(values, expected, atol=2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_exact_is_the_shapley_value_of_edited_weights(family):
    estimator, _ = build(Plan(estimator="exact"), NeuronGame(small(family), TOPIC))
    result = estimator.run()
    np.testing.assert_allclose(result.score, truth(family), atol=2e-5)
    assert abs(result.efficiency_gap) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["permutation", "tmab"])
def test_sampled_scores_are_within_their_error(family, name):
    plan = Plan(estimator=name, samples=150, seed=4, top_k=3 if name == "tmab" else None)
    result = build(plan, NeuronGame(small(family), TOPIC))[0].run()
    assert (np.abs(result.score - truth(family)) < 4.5 * result.stderr + 1e-5).all()
    assert result.stderr.max() < 0.25 * np.ptp(truth(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradient_scores_are_first_order(family):
    """Their error has a part that does not shrink with samples; on these models it stays below a third of the scores'
    spread, and the ranking holds."""
    plan = Plan(estimator="gradient", samples=4096)
    result = build(plan, NeuronGame(small(family), TOPIC, dtype="float32"))[0].run()
    error = result.score - truth(family)
    assert np.sqrt(np.mean(error**2)) < 0.35 * truth(family).std()
    assert np.corrcoef(result.score, truth(family))[0, 1] > 0.9


@pytest.mark.parametrize("kind", ["zero", "noise", "negative-noise", "scale", "mean", "resample"])
@pytest.mark.parametrize("value", ["logprob", "loss", "margin"])
def test_gradients_are_derivatives_of_the_gate(kind, value, monkeypatch, tmp_path):
    """Against central differences of the value between the impaired and the intact activation of one player."""
    monkeypatch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path))
    lm = small("llama")
    game = NeuronGame(lm, TOPIC, Impairment(kind, 0.6), value=value, dtype="float32")
    coalition = np.random.default_rng(1).random((1, 12)) < 0.6
    values, gradients = game.gradients(coalition, prompts=np.array([1]), draws=np.array([5]))
    np.testing.assert_allclose(values, game.values(coalition, prompts=np.array([1]), draws=np.array([5])), atol=1e-5)
    step = 1e-2
    for player in (0, 5, 11):
        sides = []
        for sign in (1, -1):
            gate = torch.tensor(coalition, dtype=torch.float32)
            gate[0, player] += sign * step
            sides.append(_value_at(lm, game, gate, value))
        assert gradients[0, player] == pytest.approx((sides[0] - sides[1]) / (2 * step), abs=3e-3, rel=2e-2)


def _value_at(lm, game, gate, value):
    """The value of the second prompt with a gate that need not be 0 or 1."""
    prompt, answer = SENTENCES[1]
    before = lm.tokenizer(prompt)["input_ids"]
    ids = before + lm.tokenizer(answer)["input_ids"]
    rows = Rows(prompt_keys=[TOPIC.prompts[1].key], draws=[5], intact=list(gate.split(4, dim=1)))
    with torch.no_grad(), impair(lm, game.impairment, rows=rows):
        logits = lm.model(input_ids=torch.tensor([ids])).logits[0].double()
    per_token = []
    for i in range(len(before), len(ids)):
        if value == "margin":
            others = logits[i - 1].clone()
            others[ids[i]] = -torch.inf
            per_token.append(float(logits[i - 1, ids[i]] - others.max()))
        else:
            per_token.append(float(logits[i - 1].log_softmax(-1)[ids[i]]))
    return sum(per_token) if value == "loss" else float(np.mean(per_token))


@pytest.mark.parametrize("kind", ["zero", "noise"])
def test_numbers_do_not_depend_on_the_batch(kind, monkeypatch):
    """To float32 rounding: matrix products of other shapes round differently."""
    lm = small("gpt2")
    coalitions = np.random.default_rng(2).random((9, 12)) < 0.5
    prompts, draws = np.arange(9) % 3, np.arange(9) // 2

    def run():
        game = NeuronGame(lm, TOPIC, Impairment(kind), dtype="float32")
        return game.values(coalitions, draws=draws), *game.gradients(coalitions, prompts=prompts, draws=draws)

    whole = run()
    monkeypatch.setattr("shapley.hf.scoring._CPU_TOKENS", 25)
    for one, other in zip(whole, run(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_forward_rows_are_counted_and_a_backward_is_two():
    game = NeuronGame(small("gpt2"), TOPIC)
    game.values(np.ones((2, 12), dtype=bool))
    assert game.forward_rows == 6
    game.gradients(np.ones((2, 12), dtype=bool), prompts=np.array([0, 1]))
    assert game.forward_rows == 6 + 6


def test_mean_gradients_over_prompts():
    game = NeuronGame(small("gpt2"), TOPIC, dtype="float32")
    coalition = np.random.default_rng(0).random((1, 12)) < 0.7
    value, gradient = game.gradients(coalition)
    values, each = game.gradients(coalition.repeat(3, axis=0), prompts=np.arange(3))
    np.testing.assert_allclose(value, [values.mean()], atol=1e-6)
    np.testing.assert_allclose(gradient[0], each.mean(axis=0), atol=1e-6)


def test_players_of_some_layers_only():
    lm = small("llama")
    game = NeuronGame(lm, TOPIC, layers=[2, 0])
    assert game.layers == (0, 2) and game.n_players == 8
    coalition = np.ones((1, 8), dtype=bool)
    coalition[0, 5] = False  # layer 2, neuron 1
    expected = edited_value(lm, frozenset(range(12)) - {9})
    np.testing.assert_allclose(game.values(coalition), [expected], atol=2e-5)
    grid = game.to_grid(np.arange(8.0))
    assert np.isnan(grid[1]).all() and grid[2].tolist() == [4, 5, 6, 7]


def test_noise_draws_are_common_to_coalitions_and_differ_between_draws():
    game = NeuronGame(small("gpt2"), TOPIC, Impairment("noise", 1.0))
    coalition = np.zeros((3, 12), dtype=bool)
    a, b, c = game.values(coalition, draws=np.array([1, 1, 2]))
    assert a == pytest.approx(b, abs=1e-6) and abs(a - c) > 1e-4


def test_estimates_with_noise_as_impairment_agree_with_enumeration():
    """v depends on a draw: exact averages a few draws, permutation has one a pair; both estimate the mean game."""
    game = NeuronGame(small("gpt2"), TOPIC, Impairment("noise", 2.0))
    exact = build(Plan(estimator="exact", samples=12), game)[0].run()
    sampled = build(Plan(estimator="permutation", samples=300), game)[0].run()
    assert (np.abs(exact.score - sampled.score) < 4.5 * np.hypot(exact.stderr, sampled.stderr)).all()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"value": "logprop"}, "logprob"),
        ({"layers": [3]}, "0 to 2"),
        ({"layers": []}, "layers"),
        ({"dtype": "int8"}, "bfloat16"),
        ({"impairment": Impairment("shift", scope="batch")}, "batch"),
    ],
)
def test_refusals(options, words):
    with pytest.raises(ShapleyError, match=words):
        NeuronGame(small("gpt2"), TOPIC, **options)
    with pytest.raises(ShapleyError, match="value with a gradient"):
        build(Plan(estimator="gradient"), NeuronGame(small("gpt2"), TOPIC, value="accuracy"))
