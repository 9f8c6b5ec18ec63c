"""The two-stage estimator: unbiased where it refines, honest where it does not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from shapley.errors import ShapleyError
from shapley.estimators.allocation import Standing, chance_of_wrong_side, choose_players, round_gain
from shapley.estimators.audit import Audit, audit_sizes, drawn_by_size
from shapley.estimators.gradient import Gradient
from shapley.estimators.marginals import marginals
from shapley.estimators.refinement import Refinement
from shapley.estimators.registry import Plan, build
from shapley.estimators.semivalue import Semivalue
from shapley.estimators.two_stage import TwoStage
from shapley.game import NeuronGame
from shapley.impairment import Impairment
from tests.games import (
    Additive,
    Saturating,
    beta_weight,
    closed_form_games,
    random_multilinear,
    semivalue_by_definition,
)
from tests.test_game import TOPIC, small, truth

SHAPLEY = Semivalue.parse("shapley")
DIFFERENTIABLE = {name: game for name, game in closed_form_games().items() if game.differentiable}


def saturating():
    """30 players in groups of 1 to 6; the five best are two groups."""
    return Saturating(
        [2, 3, 1, 4, 5, 6, 3, 3, 2, 1], [5, 5, 1, 2, 1, -2, 0.4, -0.3, 0.2, 0.1], [3, 2, 1, 4, 2, 3, 2, 2, 1, 3]
    )


def wide(result):
    """``[n]`` half-widths of intervals that one in 10,000 misses; some players have four units only."""
    return stats.t.ppf(1 - 5e-5, np.maximum(result.count - 1, 1)) * result.stderr


def run(game, **options):
    return TwoStage(game, **({"semivalue": SHAPLEY, "seed": 0, "samples": 640, "top_k": 3} | options)).run()


@pytest.mark.parametrize("game", [*DIFFERENTIABLE.values(), saturating()], ids=[*DIFFERENTIABLE, "saturating"])
def test_refined_scores_agree_with_the_closed_form_within_their_errors(game):
    result = run(game, samples=3200, top_k=min(5, game.n_players - 1))
    error = np.abs(result.score - game.truth)[result.exact]
    assert result.exact.sum() >= 3
    assert (error <= wide(result)[result.exact] + 1e-6).all()


def test_refined_players_are_unbiased_where_gradients_are_not():
    """Means over 60 seeds: refined players lie within their error of the truth, the gradients do not."""
    game = saturating()
    scores = np.stack([run(game, seed=seed, samples=320, top_k=29).score for seed in range(60)])
    exact = np.stack([run(game, seed=seed, samples=320, top_k=29).exact for seed in range(3)])
    first_order = np.stack(
        [Gradient(game, semivalue=SHAPLEY, seed=seed, samples=320).run().score for seed in range(60)]
    )
    always = exact.all(axis=0)
    assert always.sum() >= 2

    def z(rows):
        return np.abs(rows.mean(axis=0) - game.truth) / (rows.std(axis=0, ddof=1) / np.sqrt(len(rows)) + 1e-6)

    assert np.max(z(scores)[always]) < 4
    assert np.max(z(first_order)[always]) > 20
    # The two-point screen takes most of the bias away, refined or not.
    rms = [np.sqrt(((rows.mean(axis=0) - game.truth) ** 2).mean()) for rows in (scores, first_order)]
    assert rms[0] < 0.3 * rms[1]


def test_95_percent_intervals_cover():
    game = random_multilinear(12, seed=3)
    moving = np.abs(game.truth) > 0
    hits = []
    for seed in range(150):
        result = run(random_multilinear(12, seed=3), seed=seed)
        half = stats.t.ppf(0.975, result.count - 1) * result.stderr + 1e-7
        hits.append((np.abs(result.score - game.truth) <= half)[moving & result.exact])
    assert 0.935 <= np.mean(np.concatenate(hits)) <= 0.99


@pytest.mark.parametrize(
    ("game", "samples"),
    [(saturating, 480), (lambda: random_multilinear(20, seed=1), 1120)],
    ids=["saturating", "multilinear"],
)
def test_false_top_k_claims_are_at_most_delta(game, samples):
    """1,000 runs in all, delta .2 so that false claims have room; every claim is checked against the true top k."""
    k, delta, claims, false = 5, 0.2, 0, 0
    top = set(np.argsort(-game().truth, kind="stable")[:k].tolist())
    for seed in range(500):
        result = run(game(), seed=seed, samples=samples, top_k=k, delta=delta)
        if result.details["separated"]:
            claims += 1
            false += set(np.argsort(-result.score, kind="stable")[:k].tolist()) != top
    assert claims > 100
    assert false <= delta * 500


def test_it_stops_when_the_top_is_separated_and_says_so():
    game = Additive(np.linspace(0.1, 2, 20))
    result = run(game, samples=3200, top_k=3)
    assert result.details["stopped"] == "the top k is separated"
    assert result.forward_rows < 0.7 * TwoStage(game, semivalue=SHAPLEY, samples=3200, top_k=3).planned_rows
    equal = run(Additive(np.ones(20)), samples=320, top_k=3)
    assert equal.details["stopped"] == "the budget is spent" and not equal.details["separated"]


def test_a_tolerance_lets_near_ties_pass():
    tied = Saturating([4, 4, 4], [2.0, 1.0, 0.1], [2, 2, 2])  # the top 3 cuts through a group of four equals
    assert not run(tied, samples=1600, top_k=3).details["separated"]
    assert run(tied, samples=1600, top_k=3, tolerance=0.2).details["separated"]


@pytest.mark.parametrize("stop", [3, 41, 44, 47])
def test_a_run_resumed_anywhere_gives_the_same_numbers(stop):
    whole = run(saturating())
    first = TwoStage(saturating(), semivalue=SHAPLEY, seed=0, samples=640, top_k=3)
    while first.unit < stop and not first.finished:
        first.step()
    second = TwoStage(saturating(), semivalue=SHAPLEY, seed=0, samples=640, top_k=3)
    second.load({name: np.array(value) for name, value in first.state().items()})
    resumed = second.run()
    for name in ("score", "stderr", "count", "replicates", "exact"):
        np.testing.assert_array_equal(getattr(resumed, name), getattr(whole, name), err_msg=name)
    assert resumed.forward_rows == whole.forward_rows and resumed.details == whole.details


@pytest.mark.parametrize("budget", [125, 300, 1000, 3072, 20_000])
def test_the_budget_is_kept(budget):
    game = saturating()
    estimator, _ = build(Plan(estimator="two-stage", budget=budget, top_k=3), game)
    result = estimator.run()
    assert result.forward_rows <= estimator.planned_rows <= budget
    assert result.details["separated"] or result.forward_rows > 0.75 * budget - 150


def test_every_player_stays_in_the_coalitions_and_is_screened_to_the_end():
    estimator = TwoStage(saturating(), semivalue=SHAPLEY, samples=320, top_k=3)
    estimator.run()
    assert estimator.gradient.count == estimator.unit > estimator.n_screen + 4


def test_replicates_carry_the_standard_error():
    result = run(saturating(), samples=1600)
    spread = result.replicates.std(axis=0, ddof=1) / np.sqrt(len(result.replicates))
    np.testing.assert_allclose(result.replicates.mean(axis=0), result.score, atol=0.15 * np.abs(result.score).max())
    moving = result.stderr > 1e-6
    assert 0.5 < np.median(spread[moving] / result.stderr[moving]) < 1.5


def refinement_by_hand(units, gradient, gradient_variance, n_units):
    """One player's score and variance from lists of (marginals, gradients) by pair, by the formulas in the docstring."""
    halves = [units[0::2], units[1::2]]

    def beta(half):
        if not half:
            return 1.0
        d, g = (np.concatenate([unit[i] for unit in half]) for i in (0, 1))
        return np.cov(d, g)[0, 1] / g.var(ddof=1)

    total, used, ys = 0.0, [], []
    for own, other in (halves, halves[::-1]):
        b = beta(other)
        outside = (n_units * gradient - sum(unit[1].mean() for unit in other)) / (n_units - len(other))
        for d, g in own:
            ys.append(d.mean() - b * (g.mean() - outside))
            used.append(b)
    total = np.mean(ys)
    variance = np.var(ys, ddof=1) / len(ys) + np.mean(used) ** 2 * gradient_variance / n_units
    return total, variance


def test_refinement_is_the_formula_in_its_docstring():
    rng = np.random.default_rng(0)
    refinement, by_hand = Refinement(9), {2: [], 5: [], 7: []}
    for players in ([2, 5], [5, 7], [2, 5, 7], [7, 5], [2]):
        g = rng.normal(1, 1, (8, len(players)))
        d = 0.7 * g + rng.normal(0, 0.2, g.shape)
        refinement.add(np.array(players), d, g)
        for j, player in enumerate(players):
            by_hand[player].append((d[:, j], g[:, j]))
    assert refinement.players.tolist() == [2, 5, 7]
    gradient, spread = np.array([1.1, 0.9, 1.0]), np.array([0.1, 0.2, 0.3])
    known = refinement.scores(gradient, spread, 50)
    for j, player in enumerate([2, 5, 7]):
        score, variance = refinement_by_hand(by_hand[player], gradient[j], spread[j], 50)
        assert known.score[j] == pytest.approx(score)
        assert known.variance[j] == pytest.approx(variance)
    assert known.units.tolist() == [3, 4, 3]


def test_the_control_variate_is_not_trusted_where_it_is_noise():
    rng = np.random.default_rng(1)
    refinement = Refinement(2)
    for _ in range(40):
        noise = rng.normal(0, 10, (8, 1))
        d = rng.normal(1, 0.1, (8, 2))
        refinement.add(np.arange(2), d, np.hstack([noise, d[:, 1:]]))
    known = refinement.scores(np.array([0.0, 1.0]), np.array([100.0 / 8, 0.01 / 8]), 400)
    assert known.score == pytest.approx([1, 1], abs=0.03)
    assert known.variance[0] < 0.01 / 8 / 40 * 2  # that of the marginals alone: nothing of the gradient's noise


def test_marginals_of_a_game_without_a_shorter_way():
    game = saturating()
    coalitions = np.random.default_rng(0).random((5, 30)) < 0.5
    players = np.array([0, 7, 29])
    found = marginals(game, coalitions, players, np.zeros(5, int), np.zeros(5, int))
    for j, player in enumerate(players):
        inside, outside = coalitions.copy(), coalitions.copy()
        inside[:, player], outside[:, player] = True, False
        np.testing.assert_allclose(found[:, j], game.values(inside) - game.values(outside))


def test_the_audit_finds_the_bias_and_its_noise():
    rng = np.random.default_rng(0)
    alike = np.ones(29, dtype=bool)
    found = []
    for _ in range(300):
        bias = rng.normal(0, 1.0, 29)
        found.append(Audit.measure(bias + rng.normal(0, 0.5, 29), np.full(29, 0.25), np.ones(29), alike))
    assert np.mean([audit.rms**2 for audit in found]) == pytest.approx(1.0, rel=0.1)
    inside = [stats.norm.cdf(audit.bound) - stats.norm.cdf(-audit.bound) >= audit.covers for audit in found]
    assert np.mean(inside) >= 0.95
    assert found[0].covers == pytest.approx(0.9, abs=0.005)
    assert Audit.from_array(found[0].array()) == found[0]
    assert Audit.measure(np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool)).players == 0


def test_the_audit_by_size_sees_what_a_few_players_hold():
    """Of 10,000 players ten have large gradients and all of the bias."""
    rng = np.random.default_rng(1)
    size, bias = np.full(10_000, 1e-4), np.zeros(10_000)
    large = rng.choice(10_000, 10, replace=False)
    size[large], bias[large] = 1.0, 0.5
    shares = []
    for seed in range(200):
        uniform = np.random.default_rng(seed).choice(10_000, 29, replace=False)
        by_size = drawn_by_size(size, 8, uniform, np.random.default_rng([seed, 1]))
        assert not np.isin(by_size, uniform).any() and len(set(by_size.tolist())) == 8
        players = np.concatenate([uniform, by_size])
        alike = np.isin(players, uniform)
        audit = Audit.measure(bias[players], np.zeros(len(players)), size[players], alike)
        shares.append(audit.share)
        assert audit.players == 29 and audit.bound_ratio in (0.0, 0.5)
    # The share of all players' squared bias in their sizes; drawn without replacement, so a little too small.
    assert np.mean(shares) == pytest.approx((bias**2).sum() / size.sum(), rel=0.2)


def test_how_many_are_audited():
    assert audit_sizes(1000, 1000) == (29, 24) and audit_sizes(5, 1000) == (3, 2)
    assert audit_sizes(1000, 10.9) == (6, 4) and audit_sizes(1000, -3) == (0, 0)
    assert len(drawn_by_size(np.array([1.0, 0.0, 2.0]), 3, np.array([2]), np.random.default_rng(0))) == 1


def test_places_go_to_the_boundary_and_to_large_errors():
    score = np.array([10.0, 5.0, 4.9, 1.0, 0.0, 0.0])
    variance = np.array([0.01, 0.1, 0.1, 0.01, 0.01, 0.01])
    bias = np.array([0.0, 0.0, 0.0, 0.0, 9.0, 0.0])
    standing = Standing(score, variance, bias, np.array([4, 0, 0, 0, 0, 0]), np.full(6, 0.01), screened=20)
    costs = dict(round_units=4, difference_rows=16, gradient_rows=48)
    chosen = choose_players(standing, 2, 6, **costs).tolist()
    assert set(chosen[:3]) == {1, 2, 4}
    assert 5 not in chosen  # four rounds would halve its error, and that is little
    assert choose_players(standing, 2, 1, **costs).tolist() == chosen[:1]
    assert not len(choose_players(standing, 2, 6, **costs | {"gradient_rows": 1e-9}))  # gradients for nothing
    assert chance_of_wrong_side(standing, 2)[0] < 1e-6 < chance_of_wrong_side(standing, 2)[1]
    assert round_gain(standing, 4)[4] == pytest.approx(9) and round_gain(standing, 4)[0] == pytest.approx(0.005)
    assert (chance_of_wrong_side(standing, 6) == 0).all()


def allowed(result):
    """Wide intervals, and the audit's bound for players that were only screened (all twelve are audited)."""
    return wide(result) + np.where(result.exact, 1e-5, result.details["audit"]["bias_bound"])


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_shapley_values_of_a_model_against_weight_edits(family):
    game = NeuronGame(small(family), TOPIC)
    result = run(game, samples=1600, top_k=6)
    error = np.abs(result.score - truth(family))
    assert result.exact.any()
    assert (error <= allowed(result)).all()
    assert np.sqrt((error**2).mean()) < 0.15 * truth(family).std()


@pytest.mark.parametrize("kind", ["mean", "noise", "negative-noise", "shift", "scale", "resample"])
def test_every_impairment_takes_players_out(kind):
    """Against plain permutations on the same game."""
    impairment = Impairment(kind, 0.7)
    two, plain = (NeuronGame(small("llama"), TOPIC, impairment) for _ in range(2))
    result = run(two, samples=800, top_k=6)
    other = build(Plan(estimator="permutation", samples=200), plain)[0].run()
    assert (np.abs(result.score - other.score) <= allowed(result) + 4.5 * other.stderr).all()


def test_accuracy_is_screened_by_a_smooth_stand_in_and_refined_by_itself():
    game = NeuronGame(small("gpt2"), TOPIC, value="accuracy")
    assert not game.differentiable
    values, gradients = game.gradients(np.ones((1, 12), dtype=bool))
    assert 0 < values[0] < 1 and np.abs(gradients).max() > 0
    result = run(game, samples=1600, top_k=6)
    exact = build(Plan(estimator="exact"), NeuronGame(small("gpt2"), TOPIC, value="accuracy"))[0].run()
    assert result.exact.any()
    assert (np.abs(result.score - exact.score) <= allowed(result)).all()


def test_semivalues_against_their_definition():
    game = random_multilinear(7, seed=5)

    def value(members):
        row = np.zeros(7, dtype=bool)
        row[list(members)] = True
        return float(game.values(row[None])[0])

    expected = semivalue_by_definition(7, value, beta_weight(7, 1, 8))
    result = run(game, semivalue=Semivalue.parse("beta(1,8)"), samples=3200, top_k=6)
    assert (np.abs(result.score - expected) <= wide(result) + 1e-5).all()


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (dict(bound="valid"), "tmab"),
        (dict(top_k=31), "more than the 30 players"),
        (dict(truncation=0.1), "no --truncation"),
    ],
)
def test_refusals(plan, words):
    with pytest.raises(ShapleyError, match=words):
        build(Plan(estimator="two-stage", **plan), saturating())
    with pytest.raises(ShapleyError, match="tolerance"):
        Plan(tolerance=-1.0)


def test_a_small_budget_is_all_screen():
    result = run(saturating(), samples=16)
    assert result.details["refined"] == 0 and not result.exact.any() and np.isfinite(result.score).all()
