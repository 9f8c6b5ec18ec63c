"""Runs from layer k only, against whole runs of plainly turned coalitions."""

from __future__ import annotations

import numpy as np
import pytest

from shapley.game import NeuronGame
from shapley.hf.scoring import RowScorer
from shapley.impairment import Impairment
from shapley.prompts import TopicPrompts
from tests.test_scoring import PROMPTS
from tests.tiny import FAMILIES, tiny_lm

TOPIC = TopicPrompts("t", PROMPTS)


def turned_marginals(game, coalitions, players, **rows):
    """By the definition: one value with the player in, one with it out."""
    out = np.empty((len(coalitions), len(players)))
    for j, player in enumerate(players):
        inside, outside = coalitions.copy(), coalitions.copy()
        inside[:, player], outside[:, player] = True, False
        out[:, j] = game.values(inside, **rows) - game.values(outside, **rows)
    return out


def random_coalitions(game, n, seed=0):
    return np.random.default_rng(seed).random((n, game.n_players)) < 0.8


@pytest.mark.parametrize("family", FAMILIES)
def test_marginals_are_differences_of_whole_runs_in_every_family(family):
    game = NeuronGame(tiny_lm(family), TOPIC)
    coalitions = random_coalitions(game, 3)
    players = np.array([1, 30, 25, 70, 5, 60])
    rows = dict(prompts=np.array([0, 2, 1]))
    expected = turned_marginals(game, coalitions, players, **rows)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(game.marginals(coalitions, players, **rows), expected, atol=2e-5)


@pytest.mark.parametrize("site", ["mlp_in", "mlp_hidden", "mlp_out"])
@pytest.mark.parametrize("kind", ["zero", "mean", "noise", "negative-noise", "shift", "scale", "resample"])
def test_marginals_of_every_impairment(kind, site):
    impairment = Impairment(kind, 0.6, site)
    game = NeuronGame(tiny_lm("llama"), TOPIC, impairment)
    coalitions = random_coalitions(game, 4)
    players = np.array([0, 20, 21, 40])
    rows = dict(prompts=np.array([3, 0, 1, 2]), draws=np.array([5, 6, 7, 8]))
    expected = turned_marginals(game, coalitions, players, **rows)
    np.testing.assert_allclose(game.marginals(coalitions, players, **rows), expected, atol=2e-5)


def test_mean_over_prompts_and_a_part_of_the_layers():
    game = NeuronGame(tiny_lm("gpt2"), TOPIC, layers=[1, 2])
    coalitions = random_coalitions(game, 2)
    players = np.array([47, 3])
    np.testing.assert_allclose(
        game.marginals(coalitions, players), turned_marginals(game, coalitions, players), atol=2e-5
    )


def test_memory_and_batches_change_nothing_but_rounding(monkeypatch):
    coalitions = random_coalitions(NeuronGame(tiny_lm("llama"), TOPIC), 4)
    players, rows = np.arange(0, 72, 5), dict(prompts=np.arange(4))
    whole = NeuronGame(tiny_lm("llama"), TOPIC).marginals(coalitions, players, **rows)
    small = NeuronGame(tiny_lm("llama"), TOPIC, memory=20_000)
    assert small._scorer._prefixes(3, small._plan(4, np.arange(4), None)) < 50
    monkeypatch.setattr("shapley.hf.scoring._CPU_TOKENS", 25)
    monkeypatch.setattr(RowScorer, "_prefixes", lambda *args: 2)
    np.testing.assert_allclose(small.marginals(coalitions, players, **rows), whole, atol=2e-6)


def test_cost_and_nothing_left_behind():
    lm = tiny_lm("gpt2")
    game = NeuronGame(lm, TOPIC)
    game.marginals(random_coalitions(game, 3), np.array([5, 50]), prompts=np.array([0, 1, 1]))
    assert game.forward_rows == 3 * (1 + 2)
    assert game.marginals(random_coalitions(game, 3), np.array([], dtype=int), prompts=np.zeros(3, int)).shape == (3, 0)
    assert game.forward_rows == 9
    assert all("forward" not in vars(block.block) for block in lm.sites.blocks)


def test_blocks_run_again_after_an_error(monkeypatch):
    lm = tiny_lm("gpt2")
    game = NeuronGame(lm, TOPIC)
    coalitions = random_coalitions(game, 1)
    expected = game.values(coalitions)
    monkeypatch.setattr("shapley.hf.scoring.row_values", lambda *args: (_ for _ in ()).throw(KeyError("broken")))
    with pytest.raises(KeyError, match="broken"):
        game.marginals(coalitions, np.array([50]))
    monkeypatch.undo()
    np.testing.assert_array_equal(game.values(coalitions), expected)
