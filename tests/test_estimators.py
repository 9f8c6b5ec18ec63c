"""Every estimator against closed forms and against enumeration by independent code."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from shapley.errors import ShapleyError
from shapley.estimators.coalitions import antithetic_coalitions
from shapley.estimators.exact import Exact
from shapley.estimators.gradient import Gradient
from shapley.estimators.permutation import Permutation
from shapley.estimators.registry import ESTIMATORS, Plan, build, choose
from shapley.estimators.semivalue import Semivalue
from shapley.estimators.tmab import Tmab
from tests.games import (
    Additive,
    SumOfUnanimity,
    banzhaf_weight,
    beta_weight,
    closed_form_games,
    random_multilinear,
    semivalue_by_definition,
    shapley_weight,
)

SHAPLEY = Semivalue.parse("shapley")
GAMES = closed_form_games()


def make(name: str, game, **options):
    options = {"semivalue": SHAPLEY, "seed": 1} | options
    if name == "tmab":
        options.setdefault("top_k", 3)
    if name != "exact":
        options.setdefault("samples", 4000 if name == "gradient" else 400 if game.n_players < 12 else 6000)
    return ESTIMATORS[name](game, **options)


@pytest.mark.parametrize("game", GAMES.values(), ids=GAMES.keys())
def test_exact_gives_the_closed_form(game):
    result = make("exact", game).run()
    np.testing.assert_allclose(result.score, game.truth, atol=1e-12)
    assert abs(result.efficiency_gap) < 1e-12


@pytest.mark.parametrize("name", ["permutation", "tmab", "gradient"])
@pytest.mark.parametrize("game", GAMES.values(), ids=GAMES.keys())
def test_sampling_estimators_agree_with_the_closed_form_within_their_errors(name, game):
    if name == "gradient" and not game.differentiable:
        pytest.skip("no gradient")
    result = make(name, game).run()
    error = np.abs(result.score - game.truth)
    assert (error <= 4.5 * result.stderr + 1e-6).all()
    assert (result.stderr < 0.2 * np.ptp(game.truth) + 0.02).all()


@pytest.mark.parametrize("name", ["permutation", "tmab"])
def test_permutation_scores_are_efficient(name):
    result = make(name, GAMES["airport"], samples=7).run()
    assert abs(result.efficiency_gap) < 1e-9 or result.details.get("separated")


WEIGHTS = {"shapley": shapley_weight, "banzhaf": banzhaf_weight, "beta(1,8)": lambda n: beta_weight(n, 1, 8)}


@pytest.mark.parametrize("semivalue", [*WEIGHTS, "beta(4,2)"])
def test_semivalues_against_their_definition(semivalue):
    game = random_multilinear(7, seed=5)
    weight = WEIGHTS.get(semivalue, lambda n: beta_weight(n, 4, 2))(7)

    def value(members):
        row = np.zeros(7, dtype=bool)
        row[list(members)] = True
        return game.value(row)

    truth = semivalue_by_definition(7, value, weight)
    parsed = Semivalue.parse(semivalue)
    np.testing.assert_allclose(make("exact", game, semivalue=parsed).run().score, truth, atol=1e-10)
    for name in ("permutation", "gradient"):
        result = make(name, game, semivalue=parsed, samples=6000).run()
        assert (np.abs(result.score - truth) < 4.5 * result.stderr + 1e-6).all(), name


@pytest.mark.parametrize("name", ["permutation", "gradient"])
def test_95_percent_intervals_cover(name):
    """Over 200 seeds and 12 players: coverage between 93 and 97%."""
    game = random_multilinear(12, seed=11)
    covered = []
    for seed in range(200):
        result = make(name, game, seed=seed, samples=100 if name == "permutation" else 640).run()
        quantile = stats.t.ppf(0.975, result.count - 1)
        uncertain = result.stderr > 1e-6
        covered.append((np.abs(result.score - game.truth) <= quantile * result.stderr)[uncertain])
    assert 0.93 <= np.concatenate(covered).mean() <= 0.97


@pytest.mark.parametrize("name", ["exact", "permutation", "tmab", "gradient"])
def test_a_run_resumed_anywhere_gives_the_same_numbers(name):
    def fresh():
        return make(name, random_multilinear(12, seed=2), samples=64, seed=9)

    whole = fresh().run()
    for stop in (1, 2, 3):
        first = fresh()
        for _ in range(stop):
            if not first.finished:
                first.step()
        state = {key: np.array(value) for key, value in first.state().items()}
        second = fresh()
        second.load(state)
        resumed = second.run()
        for field in ("score", "stderr", "count", "truncated", "replicates"):
            np.testing.assert_array_equal(getattr(whole, field), getattr(resumed, field))
        assert resumed.forward_rows == whole.forward_rows


def test_coalitions_are_paired_and_stratified():
    coalitions, _ = antithetic_coalitions(20_000, SHAPLEY, seed=0, unit=0)
    first, second = coalitions[::2], coalitions[1::2]
    assert (first != second).mean() > 0.9999  # complements, but for ties
    fractions = first.mean(axis=1)
    assert (np.abs(8 * fractions - np.arange(8) - 0.5) < 0.55).all()
    assert antithetic_coalitions(500, Semivalue.parse("beta(1,16)"), 0, 0)[0].mean() > 0.85


def test_truncated_marginals_are_missing_and_counted():
    game = SumOfUnanimity(40, [((0, 1), 1.0)])  # the value is gone as soon as one of two players is
    result = make("permutation", game, samples=20, truncation=0.01).run()
    assert result.truncated.sum() > 300
    assert result.details["truncated_marginals"] == result.truncated.sum()
    never = result.truncated == 20
    assert np.isnan(result.score[never]).all()
    assert result.forward_rows < 20 * 40


def test_walks_do_not_depend_on_the_chunk(monkeypatch):
    game = random_multilinear(30, seed=4)
    runs = []
    for chunk in (1, 7, 64):
        monkeypatch.setattr("shapley.estimators.walk._CHUNK", chunk)
        runs.append(make("permutation", game, samples=10, truncation=0.05).run().score)
    np.testing.assert_array_equal(runs[0], runs[1])
    np.testing.assert_array_equal(runs[0], runs[2])


def test_tmab_separates_the_top_and_keeps_decided_players_in_the_game():
    weights = np.array([0.2] * 4 + [0.0] * 16)
    result = Tmab(Additive(weights), semivalue=SHAPLEY, seed=0, samples=5000, top_k=4).run()
    assert result.details["separated"] and result.details["values_in_range"]
    assert set(np.argsort(-result.score)[:4]) == {0, 1, 2, 3}
    assert result.details["samples"] < 5000


def test_tmab_is_unbiased_for_players_decided_late():
    """An eliminated player is still impaired in its turn: the estimand of the others does not change."""
    game = SumOfUnanimity(10, [((0, 5), 1.0), ((1,), 0.6), ((2,), 0.4), ((3, 6, 7), 0.9)])
    result = Tmab(game, semivalue=SHAPLEY, seed=3, samples=3000, top_k=2, bound="asymptotic").run()
    assert (np.abs(result.score - game.truth) < 5 * result.stderr + 1e-9).all()


def test_published_tmab_is_available():
    result = Tmab(GAMES["airport"], semivalue=SHAPLEY, samples=200, top_k=2, bound="published", delta=0.2).run()
    assert result.details["truncation"] == 0.2
    assert set(np.argsort(-result.score)[:2]) == {6, 7}


def test_false_top_k_claims_are_at_most_delta():
    """200 runs of the valid bound on a game with a close boundary: no more than delta of them claim a wrong top k."""
    wrong = 0
    for seed in range(200):
        game = SumOfUnanimity(6, [((0, 1), 0.5), ((2,), 0.2), ((3, 4), 0.38), ((5,), 0.05)])
        result = Tmab(game, semivalue=SHAPLEY, seed=seed, samples=60, top_k=2, delta=0.1, bound="valid").run()
        claimed = result.details["separated"]
        wrong += claimed and set(np.argsort(-result.score)[:2]) != {0, 1}
    assert wrong <= 0.1 * 200


class TestChoice:
    def test_auto(self):
        assert choose(Plan(), random_multilinear(8, 0))[0] == "exact"
        assert choose(Plan(), random_multilinear(30, 0))[0] == "permutation"
        assert choose(Plan(), random_multilinear(800, 0))[0] == "two-stage"
        assert choose(Plan(budget=300), random_multilinear(40, 0))[0] == "two-stage"
        assert choose(Plan(budget=4000), GAMES["voting"])[0] == "permutation"
        assert choose(Plan(budget=40), GAMES["voting"])[0] == "tmab"

    @pytest.mark.parametrize("name", ["permutation", "gradient", "tmab"])
    def test_budget_is_an_upper_bound(self, name):
        game = random_multilinear(24, 0)
        estimator, _ = build(Plan(estimator=name, budget=700, top_k=5 if name == "tmab" else None), game)
        assert 300 < estimator.run().forward_rows <= 700

    def test_refusals_name_what_is_wrong(self):
        for plan, words in [
            (dict(estimator="gradiant"), "gradient"),
            (dict(semivalue="beta(1)"), "beta"),
            (dict(samples=0), "samples"),
            (dict(delta=2.0), "delta"),
        ]:
            with pytest.raises(ShapleyError, match=words):
                Plan(**plan)
        with pytest.raises(ShapleyError, match="budget"):
            build(Plan(estimator="gradient", budget=3), random_multilinear(24, 0))
        with pytest.raises(ShapleyError, match="top-k"):
            build(Plan(estimator="tmab", top_k=24), random_multilinear(24, 0))
        with pytest.raises(ShapleyError, match="20"):
            Exact(random_multilinear(21, 0), semivalue=SHAPLEY)


def test_replicates_average_to_the_score():
    result = Gradient(random_multilinear(12, 0), semivalue=SHAPLEY, samples=1024).run()
    np.testing.assert_allclose(result.replicates.mean(axis=0), result.score, rtol=1e-4, atol=1e-6)


def test_permutations_are_common_to_games_of_other_topics():
    one = Permutation(random_multilinear(12, 0), semivalue=SHAPLEY, key="athlete", samples=4).run()
    two = Permutation(random_multilinear(12, 0), semivalue=SHAPLEY, key="artist", samples=4).run()
    np.testing.assert_array_equal(one.score, two.score)
