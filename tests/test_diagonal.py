"""The diagonal and what two-stage makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate

from shapley.estimators.diagonal import Diagonal
from shapley.estimators.semivalue import Semivalue
from shapley.estimators.shrinkage import reliability
from shapley.estimators.two_stage import TwoStage
from shapley.game import NeuronGame
from shapley.groups import GroupGame, blocks
from tests.games import Additive, SumOfUnanimity, random_multilinear
from tests.test_game import TOPIC, small

SHAPLEY = Semivalue.parse("shapley")


def test_every_prompt_meets_every_node_once():
    for n_prompts in (3, 4, 8):
        plan = Diagonal.plan(SHAPLEY, n_prompts, 1000, 0, "t")
        assert len(plan) == 4 * n_prompts
        assert len(set(zip(plan.gates.tolist(), plan.prompts.tolist(), strict=True))) == 4 * n_prompts
    assert sorted(set(plan.gates)) == [0.125, 0.375, 0.625, 0.875]


def test_few_rows_share_prompts_and_nodes_evenly():
    plan = Diagonal.plan(SHAPLEY, 100, 42, 0, "t")
    assert len(plan) == 42 == len(set(plan.prompts.tolist()))
    assert np.unique(plan.gates, return_counts=True)[1].min() == 10
    assert len(Diagonal.plan(SHAPLEY, 8, 3, 0, "t")) == 0  # not one row a node
    assert set(Diagonal.plan(Semivalue.parse("banzhaf"), 8, 99, 0, "t").gates) == {0.5}


def test_it_is_the_path_integral_of_a_multilinear_game():
    game = SumOfUnanimity(4, [((0, 1), 2.0), ((1, 2, 3), 1.0), ((3,), 0.5)])
    plan = Diagonal.plan(SHAPLEY, 1, 99, 0, "")
    found = plan.scores(plan.part(game, index) for index in range(plan.parts))
    q = (np.arange(4) + 0.5) / 4
    by_hand = [2 * q.mean(), 2 * q.mean() + (q**2).mean(), (q**2).mean(), (q**2).mean() + 0.5]
    np.testing.assert_allclose(found, by_hand, rtol=1e-6)
    assert found[0] == pytest.approx(
        integrate.quad(lambda x: 2 * x, 0, 1)[0]
    )  # the midpoint rule is exact to first order


@pytest.mark.parametrize("grouped", [False, True])
def test_gradients_at_gates_are_finite_differences(grouped):
    """Of neurons, and of groups."""
    neurons = NeuronGame(small("gpt2"), TOPIC, dtype="float32")
    game = GroupGame(neurons, blocks(neurons, 3)) if grouped else neurons
    gates = np.random.default_rng(0).random((1, game.n_players)).astype(np.float32)
    _, gradient = game.gradients(gates)
    for player in range(game.n_players):
        ends = np.repeat(gates, 2, axis=0)
        ends[:, player] += np.array([-0.02, 0.02], dtype=np.float32)
        values, _ = game.gradients(ends)
        assert gradient[0, player] == pytest.approx((values[1] - values[0]) / 0.04, abs=2e-3, rel=0.02)


def test_reliability_by_hand():
    deviation, noise = np.array([3.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0])
    scale = np.array([2.0, 1.0, 0.0])
    worth = ((9 - 1) / 2 + (1 - 1) / 1) / 2
    expected = [2 * worth / (2 * worth + 1), worth / (worth + 1), 0]
    wild = reliability(
        np.append(deviation, 0.0), np.append(noise, 1e9), np.append(scale, 1e9)
    )  # one does not decide for all
    assert wild[0] == pytest.approx(2 / 3)  # a proportion of (4 + 0 - 1) / 3
    np.testing.assert_allclose(reliability(deviation, noise, scale), expected)
    assert (reliability(np.zeros(3), noise, scale) == 0).all()
    assert (reliability(deviation, noise, np.zeros(3)) == 0).all()


def test_an_additive_game_is_known_at_once():
    result = TwoStage(Additive(np.linspace(-1, 1, 20)), semivalue=SHAPLEY, samples=64, top_k=3).run()
    np.testing.assert_allclose(result.score, np.linspace(-1, 1, 20), atol=1e-6)


def test_the_diagonal_takes_noise_away():
    """Mean square errors over twelve seeds, with it and without, at few rows and at many."""
    game = random_multilinear(60, seed=2)

    def error(samples, diagonal):
        errors = []
        for seed in range(12):
            estimator = TwoStage(game, semivalue=SHAPLEY, samples=samples, seed=seed, top_k=5)
            if not diagonal:
                estimator._diagonal, estimator.unit = Diagonal.plan(SHAPLEY, 1, 0, 0, ""), 0
            errors.append(((estimator.run().score - game.truth) ** 2).mean())
        return np.mean(errors)

    assert error(32, True) < 0.1 * error(32, False)
    assert error(2048, True) < error(2048, False)


def test_the_prior_survives_a_resume():
    game = random_multilinear(30, seed=1)
    whole = TwoStage(game, semivalue=SHAPLEY, samples=160, top_k=3)
    whole.step()
    again = TwoStage(game, semivalue=SHAPLEY, samples=160, top_k=3)
    again.load({name: np.array(value) for name, value in whole.state().items()})
    np.testing.assert_array_equal(again.prior, whole.prior)
    np.testing.assert_array_equal(again.run().score, whole.run().score)
