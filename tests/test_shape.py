"""The shape of impairment curves: closed forms, steps, curves that never fall, noise, and what bootstrap intervals cover."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import exp1

from shapley.errors import ShapleyError
from shapley.shape import Dose, bootstrap, impairment_dose, log_area, monotone_fit, retention, slope

FINE = np.concatenate([[0], np.geomspace(1e-3, 1e2, 4001)])
TAU = 3.0
DECAY = np.exp(-FINE / TAU)
COARSE = np.array([0.0, 0.5, 1, 2, 4])
NAN = float("nan")


class TestRetention:
    def test_one_untouched_and_zero_at_the_floor(self):
        np.testing.assert_allclose(retention([-1.0, -2, -4, -5], -5), [1, 0.75, 0.25, 0])

    def test_strengths_along_any_axis_and_a_floor_for_each_prompt(self):
        values = np.random.default_rng(0).random((4, 3)) + 1  # [strength, prompt]
        floor = np.array([0.0, 0.5, -2])
        expected = (values - floor) / (values[0] - floor)
        np.testing.assert_array_equal(retention(values, floor), expected)
        np.testing.assert_array_equal(retention(values.T, floor[:, None], axis=1), expected.T)

    def test_above_the_untouched_model_and_below_the_floor_are_kept(self):
        np.testing.assert_allclose(retention([1.0, 1.5, -0.5], 0), [1, 1.5, -0.5])

    @pytest.mark.parametrize("floor", [1.0, 2.0, NAN])
    def test_nothing_to_lose(self, floor):
        with pytest.raises(ShapleyError, match="floor"):
            retention([1.0, 0.5], floor)

    @pytest.mark.parametrize("values", [[1.0, NAN], [1.0, -np.inf], []])
    def test_not_finite(self, values):
        with pytest.raises(ShapleyError, match="values: expected finite"):
            retention(values, 0)


class TestMonotoneFit:
    def test_a_curve_that_never_rises_is_its_own_fit(self):
        fitted, r2 = monotone_fit(FINE, DECAY)
        np.testing.assert_allclose(fitted, DECAY)
        assert r2 == pytest.approx(1)

    def test_a_curve_that_never_falls_is_not_explained(self):
        fitted, r2 = monotone_fit(COARSE, COARSE)
        np.testing.assert_allclose(fitted, 1.5)
        assert r2 == pytest.approx(0)

    def test_violators_are_pooled_by_hand(self):
        fitted, r2 = monotone_fit([0, 1, 2, 3], [4, 1, 3, 0])
        np.testing.assert_allclose(fitted, [4, 2, 2, 0])
        assert r2 == pytest.approx(1 - 2 / 10)

    def test_weights_count_as_repetitions(self):
        fitted, r2 = monotone_fit([0, 1, 2, 3], [4, 1, 3, 0], weights=[1, 3, 1, 2])
        np.testing.assert_allclose(fitted, [4, 1.5, 1.5, 0])
        repeated = np.array([4, 1, 1, 1, 3, 0, 0])
        assert r2 == pytest.approx(1 - (3 * 0.25 + 2.25) / ((repeated - repeated.mean()) ** 2).sum())

    def test_a_flat_curve_has_nothing_to_explain(self):
        fitted, r2 = monotone_fit([0, 1, 2], [0.1, 0.1, 0.1])
        np.testing.assert_allclose(fitted, 0.1)
        assert np.isnan(r2)

    def test_noise_is_explained_in_part_and_decay_with_noise_in_the_main(self):
        noise = np.random.default_rng(0).normal(size=len(FINE))
        assert 0 <= monotone_fit(FINE, noise)[1] < 0.02
        assert 0.9 < monotone_fit(FINE, DECAY + 0.05 * noise)[1] < 1

    @pytest.mark.parametrize(
        ("strengths", "mean", "weights", "message"),
        [
            ([0, 1, 1], [3, 2, 1], None, "increase"),
            ([0, 1], [3, 2, 1], None, "every strength"),
            ([0, 1, 2], [3, NAN, 1], None, "finite"),
            ([0, NAN, 2], [3, 2, 1], None, "finite"),
            ([0, 1, 2], [3, 2, 1], [1, 0, 1], "positive"),
            ([0, 1, 2], [3, 2, 1], [1, 1], "positive"),
        ],
    )
    def test_refused(self, strengths, mean, weights, message):
        with pytest.raises(ShapleyError, match=message):
            monotone_fit(strengths, mean, weights)


class TestDose:
    @pytest.mark.parametrize(("level", "halvings"), [(0.5, np.log(2)), (0.05, np.log(20))])
    def test_of_exponential_decay(self, level, halvings):
        dose = impairment_dose(FINE, DECAY, level)
        assert dose.value == pytest.approx(TAU * halvings, rel=1e-5)
        assert not dose.censored

    def test_linear_between_strengths(self):
        assert impairment_dose([0, 1, 3], [1, 0.8, 0.2], 0.5) == Dose(2, censored=False)
        assert impairment_dose([0, 1], [1, 0], 0.75) == Dose(0.25, censored=False)

    def test_of_a_step_is_halfway_and_a_strength_at_the_level_is_the_dose(self):
        assert impairment_dose([0, 1, 2, 3], [1, 1, 0, 0], 0.5) == Dose(1.5, censored=False)
        assert impairment_dose([0, 1, 2, 3], [1, 0.5, 0.5, 0], 0.5) == Dose(1, censored=False)

    @pytest.mark.parametrize("after", [[1, 1, 1, 1], [0.9, 0.8, 0.7, 0.6], [1, 1.2, 1.5, 2]])
    def test_never_crossed(self, after):
        assert impairment_dose(COARSE, [1, *after], 0.5) == Dose(4, censored=True)

    def test_a_dip_that_recovers_is_no_fall(self):
        """One low strength among high ones is pooled with what follows; the raw curve crosses at 0.75."""
        assert impairment_dose(COARSE, [1, 1, 0.4, 0.9, 0.9], 0.5).censored

    def test_survives_noise(self):
        noisy = DECAY + np.random.default_rng(1).normal(scale=0.1, size=len(FINE))
        noisy[0] = 1
        assert impairment_dose(FINE, noisy, 0.5).value == pytest.approx(TAU * np.log(2), rel=0.1)

    @pytest.mark.parametrize(
        ("strengths", "kept", "level", "message"),
        [
            (COARSE, [1, 1, 1, 1, 1], 1, "level"),
            (COARSE, [1, 1, 1, 1, 1], 0, "level"),
            (COARSE, [1, 1, 1, 1, 1], NAN, "level"),
            (COARSE, [0.9, 0.5, 0, 0, 0], 0.5, "retention 1 at strength 0"),
            ([1, 2], [1, 0], 0.5, "retention 1 at strength 0"),
            (COARSE, [1, NAN, 0, 0, 0], 0.5, "finite"),
        ],
    )
    def test_refused(self, strengths, kept, level, message):
        with pytest.raises(ShapleyError, match=message):
            impairment_dose(strengths, kept, level)


class TestSlope:
    @pytest.mark.parametrize("tau", [0.5, TAU])
    def test_of_exponential_decay_whatever_its_constant(self, tau):
        expected = 2 ** -(2**-0.5) - 2 ** -(2**0.5)
        assert slope(FINE, np.exp(-FINE / tau)) == pytest.approx(expected, rel=1e-4)

    def test_of_a_step_is_all(self):
        assert slope(FINE, FINE < 1) == 1

    def test_linear_in_log_strength_by_hand(self):
        """A quarter a doubling from 1/2 to 4, and ID50 at 1 (linear in strength there too, as it is a strength)."""
        assert slope(COARSE, [1, 0.75, 0.5, 0.25, 0]) == pytest.approx(0.25)

    def test_is_of_the_decreasing_fit(self):
        """0.4 and 0.6 are pooled to a half at 1 and 2: the fall around ID50 = 1 is half a doubling's, before it."""
        assert slope(COARSE, [1, 0.75, 0.4, 0.6, 0]) == pytest.approx(0.125)

    @pytest.mark.parametrize(
        "after",
        [
            [1, 1, 0.9, 0.9],  # never down to a half
            [0.2, 0.1, 0, 0],  # ID50 below the least positive strength
            [1, 1, 0.9, 0.45],  # ID50 sqrt 2 above the largest
        ],
    )
    def test_not_measured_around_id50(self, after):
        assert np.isnan(slope(COARSE, [1, *after]))

    def test_refused(self):
        with pytest.raises(ShapleyError, match="retention 1"):
            slope(COARSE, [0.5, 0, 0, 0, 0])


class TestLogArea:
    def test_ends(self):
        assert log_area(COARSE, np.ones(5)) == 1
        assert log_area(COARSE, [1, 0, 0, 0, 0]) == 0

    def test_of_exponential_decay(self):
        """The integral of exp(-s / tau) / s is a difference of exponential integrals."""
        area = (exp1(FINE[1] / TAU) - exp1(FINE[-1] / TAU)) / np.log(FINE[-1] / FINE[1])
        assert log_area(FINE, DECAY) == pytest.approx(area, rel=1e-5)

    def test_of_a_step_is_where_it_lies_on_the_log_axis(self):
        assert log_area(FINE, FINE < 0.1) == pytest.approx(2 / 5, abs=1e-3)  # two decades of five

    def test_unit_of_strength_does_not_matter(self):
        kept = np.random.default_rng(0).random(5)
        kept[0] = 1
        assert log_area(7 * COARSE, kept) == pytest.approx(log_area(COARSE, kept))

    def test_needs_two_positive_strengths(self):
        with pytest.raises(ShapleyError, match="two positive"):
            log_area([0, 1], [1, 0])


class TestBootstrap:
    def test_of_a_mean_is_near_the_normal_interval(self):
        values = np.random.default_rng(0).normal(size=(1, 200))
        found = bootstrap(lambda mean: mean[0], values, n=4000)
        half = 1.96 * values.std() / np.sqrt(200)
        assert found.estimate == pytest.approx(values.mean())
        assert (found.low, found.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
        assert found.undefined == 0

    def test_strengths_stay_paired(self):
        """Prompts differ by much, but all fall by one."""
        values = np.random.default_rng(0).normal(scale=100, size=30) - np.array([[0], [1]])
        found = bootstrap(lambda mean: mean[0] - mean[1], values)
        assert (found.estimate, found.low, found.high) == pytest.approx((1, 1, 1))

    def test_is_a_function_of_its_seed(self):
        values = np.random.default_rng(0).normal(size=(3, 20))
        one, same, other = (bootstrap(np.sum, values, n=100, seed=seed) for seed in (0, 0, 1))
        assert one == same
        assert one != other

    def test_one_prompt_has_no_interval(self):
        found = bootstrap(np.sum, [[1.0], [2.0]])
        assert found.estimate == 3
        assert np.isnan([found.low, found.high]).all()

    def test_equal_prompts_have_none_to_speak_of(self):
        found = bootstrap(lambda mean: mean[0], np.full((2, 10), 0.1))
        assert (found.low, found.high) == pytest.approx((0.1, 0.1))

    def test_resamples_without_an_answer_are_counted(self):
        """Half the resamples of a half and a half lie above their mean, or so; NaN and refusals count alike."""
        values = np.tile([[0.0, 1.0]], 50)

        def refuses(mean):
            if mean[0] < 0.5:
                raise ShapleyError("nothing here")
            return mean[0]

        found = bootstrap(refuses, values)
        assert 0.4 < found.undefined < 0.5
        assert found.low >= 0.5
        assert bootstrap(lambda mean: mean[0] if mean[0] >= 0.5 else NAN, values) == found

    def test_undefined_throughout(self):
        found = bootstrap(lambda mean: NAN, np.ones((2, 3)), n=10)
        assert np.isnan([found.estimate, found.low, found.high]).all()
        assert found.undefined == 1

    def test_censored_doses_bound_the_interval(self):
        """Some prompts never fall: the upper end is the largest strength, which reads as at least."""
        values = np.array([[1, 0.4, 0.3], [1, 0.9, 0.8]] * 4).T
        found = bootstrap(lambda mean: impairment_dose([0, 1, 2], retention(mean, 0), 0.5).value, values)
        assert found.high == 2

    @pytest.mark.parametrize(
        ("values", "message"),
        [([1.0, 2], "axes"), (np.ones((2, 3, 4)), "axes"), ([[1.0, NAN]], "finite"), ([[]], "finite")],
    )
    def test_refused(self, values, message):
        with pytest.raises(ShapleyError, match=message):
            bootstrap(np.sum, values)

    def test_what_the_statistic_refuses_of_all_prompts(self):
        with pytest.raises(ShapleyError, match="not above the floor"):
            bootstrap(lambda mean: retention(mean, 2)[0], np.ones((2, 3)))

    def test_covers_the_truth(self):
        """300 samples of 40 prompts that decay at rates of their own; ID50 and area of the mean curve of all prompts."""
        rng = np.random.default_rng(3)
        strengths = np.array([0, 0.5, 1, 2, 4, 8])

        def prompts(n):
            rates = rng.gamma(4, 0.1, n)
            return 2 * np.exp(-strengths[:, None] * rates) + rng.normal(scale=0.2, size=(len(strengths), n))

        def id50(mean):
            return impairment_dose(strengths, retention(mean, 0), 0.5).value

        def area(mean):
            return log_area(strengths, retention(mean, 0))

        truth = 2 * (1 + 0.1 * strengths) ** -4  # the gamma distribution's Laplace transform
        samples = [prompts(40) for _ in range(300)]
        for statistic in (id50, area):
            found = [bootstrap(statistic, values, n=150, seed=i) for i, values in enumerate(samples)]
            covered = np.mean([interval.low <= statistic(truth) <= interval.high for interval in found])
            assert 0.9 <= covered <= 0.99
