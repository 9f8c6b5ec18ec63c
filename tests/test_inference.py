"""Claims from drops: intervals that cover, p values that are uniform under their null, and examples worked by hand."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from shapley.errors import ShapleyError
from shapley.inference import (
    Matched,
    at_matched_damage,
    holm,
    matrix_contrast,
    paired_difference,
    permutation_p,
    selectivity,
    stratified_permutation_p,
)

NAN = float("nan")


class TestSelectivity:
    def test_topics_count_alike_however_many_prompts_they_have(self):
        found = selectivity([3.0, 5], [[1.0, 1, 1, 1], [0.0, 4]])
        assert found.estimate == pytest.approx(4 - (1 + 2) / 2)
        assert found.low <= found.estimate <= found.high

    def test_interval_adds_the_topics_variances(self):
        rng = np.random.default_rng(0)
        target, one, two = rng.normal(2, 1, 100), rng.normal(0, 2, 200), rng.normal(0, 1, 50)
        found = selectivity(target, [one, two], n=8000)
        error = np.sqrt(target.var() / 100 + (one.var() / 200 + two.var() / 50) / 4)
        assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)

    def test_topics_are_resampled_by_themselves(self):
        """The same drops on two topics would cancel if the same prompts were drawn."""
        drops = np.random.default_rng(0).normal(size=50)
        found = selectivity(drops, [drops])
        assert found.estimate == 0
        assert found.low < -0.1 < 0.1 < found.high

    def test_covers_the_truth(self):
        rng = np.random.default_rng(1)
        covered = []
        for i in range(300):
            target, others = 1 + rng.exponential(size=60), [rng.normal(size=60), rng.normal(size=30)]
            found = selectivity(target, others, n=300, seed=i)
            covered.append(found.low <= 2 <= found.high)
        assert 0.9 <= np.mean(covered) <= 0.99

    def test_one_prompt_somewhere_leaves_no_interval(self):
        for target, others in (([1.0], [[0.0, 1]]), ([1.0, 1], [[0.5], [0.0, 1]])):
            found = selectivity(target, others)
            assert found.estimate == 0.5
            assert np.isnan([found.low, found.high]).all()

    def test_equal_drops(self):
        found = selectivity([0.3] * 5, [[0.3] * 5])
        assert (found.estimate, found.low, found.high) == pytest.approx((0, 0, 0), abs=1e-12)

    @pytest.mark.parametrize(
        ("target", "others", "message"),
        [
            ([1.0], [], "another topic"),
            ([1.0, NAN], [[1.0]], "finite"),
            ([1.0], [[1.0], [NAN]], "finite"),
            ([1.0], [[]], "at least one"),
            ([[1.0]], [[1.0]], "axes"),
        ],
    )
    def test_refused(self, target, others, message):
        with pytest.raises(ShapleyError, match=message):
            selectivity(target, others)


class TestPairedDifference:
    def test_what_is_common_to_a_prompt_cancels(self):
        rng = np.random.default_rng(0)
        common = rng.normal(scale=100, size=50)
        found = paired_difference(common + 1, common)
        assert (found.estimate, found.low, found.high) == pytest.approx((1, 1, 1))

    def test_covers_the_truth(self):
        rng = np.random.default_rng(2)
        covered = []
        for i in range(300):
            common = rng.normal(scale=3, size=50)
            found = paired_difference(common + rng.normal(0.5, 1, 50), common + rng.normal(size=50), n=300, seed=i)
            covered.append(found.low <= 0.5 <= found.high)
        assert 0.9 <= np.mean(covered) <= 0.99

    def test_one_prompt(self):
        found = paired_difference([2.0], [0.5])
        assert found.estimate == 1.5
        assert np.isnan([found.low, found.high]).all()

    @pytest.mark.parametrize(("a", "b"), [([1.0, 2], [1.0]), ([1.0, NAN], [1.0, 1]), ([[1.0]], [[1.0]])])
    def test_refused(self, a, b):
        with pytest.raises(ShapleyError):
            paired_difference(a, b)


class TestMatchedDamage:
    def test_linear_between_doses(self):
        assert at_matched_damage([0, 1, 3], [0, 2, 3], 2) == Matched(2.5, reached=True)

    @pytest.mark.parametrize("damage", [0, 1, 3])
    def test_ends_and_doses_themselves(self, damage):
        assert at_matched_damage([0, 1, 3], [0, 2, 6], damage) == Matched(2 * damage, reached=True)

    @pytest.mark.parametrize("damage", [-0.1, 3.1])
    def test_not_reached(self, damage):
        found = at_matched_damage([0, 1, 3], [0, 2, 6], damage)
        assert np.isnan(found.drop)
        assert not found.reached

    def test_doses_that_do_no_more_damage_are_one(self):
        """Damage 2, 1 is pooled to 1.5, twice; the drop there is the mean of 2 and 4."""
        assert at_matched_damage([0, 2, 1, 4], [0, 2, 4, 5], 1.5) == Matched(3, reached=True)

    def test_a_drop_that_recovers_is_pooled(self):
        found = [at_matched_damage([0, 1, 2, 3], [0, 3, 1, 4], damage).drop for damage in (1, 1.5, 2, 3)]
        assert found == pytest.approx([2, 2, 2, 4])

    def test_doses_weigh_alike(self):
        """Drop 5 at two doses of one damage, then 2 at one dose."""
        assert at_matched_damage([0, 2, 1, 4], [0, 5, 5, 2], 3) == Matched(4, reached=True)

    def test_damage_that_never_rises_reaches_itself_only(self):
        assert at_matched_damage([1, 1], [2, 4], 1) == Matched(3, reached=True)
        assert not at_matched_damage([1, 1], [2, 4], 1.1).reached
        assert at_matched_damage([1], [2], 1) == Matched(2, reached=True)

    def test_selectors_differ_at_one_strength_and_agree_at_one_damage(self):
        """The second selector does everything at twice the dose."""
        doses = np.linspace(0, 4, 401)
        drops = [at_matched_damage(rate * doses, np.sqrt(rate * doses), 1.7).drop for rate in (1, 0.5)]
        assert drops == pytest.approx([np.sqrt(1.7)] * 2, rel=1e-4)

    @pytest.mark.parametrize(
        ("damages", "drops", "damage"),
        [([0, 1], [0], 1), ([0, NAN], [0, 1], 1), ([0, 1], [0, NAN], 1), ([0, 1], [0, 1], NAN)],
    )
    def test_refused(self, damages, drops, damage):
        with pytest.raises(ShapleyError):
            at_matched_damage(damages, drops, damage)


class TestPermutationP:
    def test_counts_what_was_observed(self):
        assert permutation_p(3, [1, 2, 3, 4]) == 3 / 5
        assert permutation_p(5, [1, 2, 3, 4]) == 1 / 5
        assert permutation_p(0, [1, 2, 3, 4]) == 1
        assert permutation_p(0, []) == 1

    def test_ties_up_to_rounding(self):
        assert permutation_p(0.1 + 0.2, [0.3, 0.3]) == 1
        assert permutation_p(0.0, [-1e-17, 1.0]) == 1

    def test_uniform_under_the_null(self):
        draws = np.random.default_rng(0).normal(size=(2000, 20))
        p = [permutation_p(row[0], row[1:]) for row in draws]
        counts = np.bincount(np.round(np.array(p) * 20).astype(int), minlength=21)[1:]
        assert stats.chisquare(counts).pvalue > 0.01

    @pytest.mark.parametrize(("observed", "null"), [(NAN, [1.0]), (1.0, [NAN])])
    def test_refused(self, observed, null):
        with pytest.raises(ShapleyError, match="finite"):
            permutation_p(observed, null)


class TestStratifiedPermutationP:
    def test_against_all_sums_gone_through(self):
        rng = np.random.default_rng(0)
        observed, nulls = rng.normal(1, 1, size=3), [rng.normal(size=n) for n in (3, 4, 6)]
        members = [np.append(own, null) for own, null in zip(observed, nulls, strict=True)]
        exact = np.mean([sum(chosen) >= observed.sum() - 1e-12 for chosen in itertools.product(*members)])
        found = stratified_permutation_p(observed, nulls, n_permutations=100_000)
        assert 0.02 < exact < 0.98 and found == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 100_000))

    def test_many_strata_show_what_one_cannot(self):
        null = list(range(9))
        assert permutation_p(9, null) == 0.1
        assert stratified_permutation_p([9] * 6, [null] * 6) <= 5 / 10_001  # exactly a millionth

    def test_uniform_under_the_null(self):
        draws = np.random.default_rng(1).normal(size=(600, 4, 6)) * np.array([1, 2, 3, 4])[:, None]
        p = [
            stratified_permutation_p(row[:, 0], list(row[:, 1:]), n_permutations=999, seed=i)
            for i, row in enumerate(draws)
        ]
        assert stats.kstest(p, "uniform").pvalue > 0.01

    @pytest.mark.parametrize(
        ("observed", "nulls"), [([1.0], []), ([NAN], [[1.0]]), ([1.0], [[NAN]]), ([[1.0]], [[1.0]])]
    )
    def test_refused(self, observed, nulls):
        with pytest.raises(ShapleyError):
            stratified_permutation_p(observed, nulls)


class TestHolm:
    @pytest.mark.parametrize(
        ("p", "expected"),
        [
            ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
            ([0.01, 0.01, 0.01], [0.03, 0.03, 0.03]),
            ([0.3, 0.5, 0.9], [0.9, 1, 1]),
            ([0.02], [0.02]),
            ([0, 1], [0, 1]),
            ([], []),
        ],
    )
    def test_by_hand(self, p, expected):
        np.testing.assert_allclose(holm(np.array(p)), expected)

    def test_what_was_not_tested_does_not_count(self):
        np.testing.assert_allclose(holm([0.01, NAN, 0.04, NAN]), [0.02, NAN, 0.04, NAN])
        np.testing.assert_array_equal(holm([NAN, NAN]), [NAN, NAN])

    def test_keeps_the_order_and_lies_between_the_raw_and_bonferroni(self):
        p = np.random.default_rng(0).random(50) ** 3
        adjusted = holm(p)
        assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()
        assert ((adjusted >= p) & (adjusted <= np.minimum(50 * p, 1))).all()

    def test_family_wise_error(self):
        """Ten true nulls: some is rejected at 5% in one family of twenty."""
        p = np.random.default_rng(1).random((2000, 10))
        assert np.mean([holm(row).min() <= 0.05 for row in p]) == pytest.approx(0.05, abs=0.015)

    @pytest.mark.parametrize("p", [[-0.1], [1.1, 0.5], [[0.5]], 0.5, [np.inf]])
    def test_refused(self, p):
        with pytest.raises(ShapleyError, match="p values"):
            holm(p)


class TestMatrixContrast:
    @pytest.mark.parametrize("n", [2, 3, 5, 7])
    def test_a_planted_diagonal_has_the_least_p_there_is(self, n):
        matrix = np.random.default_rng(0).random((n, n)) + 2 * np.eye(n)
        difference, p = matrix_contrast(matrix)
        off = matrix[~np.eye(n, dtype=bool)].mean()
        assert difference == pytest.approx(matrix.diagonal().mean() - off)
        assert p == pytest.approx(1 / np.prod(np.arange(1, n + 1)))

    def test_many_topics_are_drawn_and_the_identity_counts(self):
        matrix = np.random.default_rng(0).random((8, 8)) + 5 * np.eye(8)
        assert matrix_contrast(matrix, n_permutations=99)[1] == pytest.approx(1 / 100)
        noise = np.random.default_rng(1).random((8, 8))
        assert matrix_contrast(noise, 99, seed=1) == matrix_contrast(noise, 99, seed=1)
        assert matrix_contrast(noise, 99, seed=1) != matrix_contrast(noise, 99, seed=2)

    def test_one_sided(self):
        assert matrix_contrast(-np.eye(4))[1] == 1

    def test_topics_that_anything_hurts_are_no_evidence(self):
        """Rows and columns of their own levels, up to rounding: every matching is as good."""
        rows, columns = np.random.default_rng(0).random((2, 5))
        difference, p = matrix_contrast(rows[:, None] + 10 * columns)
        assert difference == pytest.approx(0, abs=1e-12)
        assert p == 1

    def test_equal_drops(self):
        assert matrix_contrast(np.full((3, 3), 0.1)) == pytest.approx((0, 1), abs=1e-12)

    @pytest.mark.parametrize(("n", "draws"), [(4, 10_000), (8, 23)])
    def test_uniform_on_noise(self, n, draws):
        """In both cases p has the 24 values k / 24."""
        rng = np.random.default_rng(n)
        p = np.array([matrix_contrast(rng.normal(size=(n, n)), draws, seed=i)[1] for i in range(2400)])
        assert stats.chisquare(np.bincount(np.round(24 * p).astype(int), minlength=25)[1:]).pvalue > 0.01

    @pytest.mark.parametrize("matrix", [[[1.0]], [[1.0, 2]], [1.0, 2], 1.0, [[1.0, NAN], [0, 1]]])
    def test_refused(self, matrix):
        with pytest.raises(ShapleyError):
            matrix_contrast(matrix)
