"""Sweep files, the strengths that sweeps take, and the curves and contrasts drawn from them."""

from __future__ import annotations

import json
import math

import h5py
import numpy as np
import pytest

from shapley.curves import Curve, contrast, curve, mean_of_curves
from shapley.errors import ShapleyError
from shapley.impairment import Impairment
from shapley.records import METRICS, Sweep, parse_strengths, read_sweep, write_sweep
from shapley.store import ScoreFile

CLUSTERS = ["cluster-a", "cluster-a/random-1", "cluster-a/random-2", "everything"]
STRENGTHS = np.array([0.0, 0.5, 2.0])


def sweep_of(logprob, clusters=CLUSTERS, strengths=STRENGTHS):
    """A sweep from log-probabilities ``[cluster, strength, seed, prompt]`` by topic; loss is twice that, accuracy none."""
    records = {}
    for topic, values in logprob.items():
        values = np.asarray(values, dtype=float)
        records[topic] = np.stack([values, 2 * values, np.zeros_like(values)])
    absolute = np.tile(np.asarray(strengths)[:, None], (1, 3))
    impairment = Impairment("noise", unit="sd", seed=4)
    attrs = {"wall_seconds": 1.5, "forward_rows": 30, "settings": json.dumps({"seeds": 2})}
    return Sweep(records, list(clusters), [3] * len(clusters), np.asarray(strengths), absolute, impairment, attrs)


@pytest.fixture
def random_sweep():
    rng = np.random.default_rng(0)
    return sweep_of({topic: -rng.random((4, 3, 2, n)) for topic, n in (("a", 5), ("b", 7), ("c", 4))})


class TestStrengths:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("0:2:0.5", [0, 0.5, 1, 1.5, 2]),
            ("0:1:0.1", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]),
            ("0:0.3:0.1", [0, 0.1, 0.2, 0.3]),
            ("0:1:0.4", [0, 0.4, 0.8]),
            ("1:2:0.5", [0, 1, 1.5, 2]),
            ("3:3:1", [0, 3]),
            ("0,0.5,1", [0, 0.5, 1]),
            ("2, 1", [0, 1, 2]),
            ("1,1,0", [0, 1]),
            ("1e-3", [0, 0.001]),
        ],
    )
    def test_forms(self, text, expected):
        np.testing.assert_allclose(parse_strengths(text), expected, rtol=1e-12)

    @pytest.mark.parametrize(
        "text",
        "|a,b|1,,2|0:1|0:1:2:3|0:1:0|0:1:-0.1|1:0:0.1|-1|-1:1:0.5|0,nan|inf|0:inf:1|nan:1:0.5|0:1:nan|0,1:2|0:1,2".split(
            "|"
        ),
    )
    def test_refusals_repeat_what_was_given(self, text):
        with pytest.raises(ShapleyError) as caught:
            parse_strengths(text)
        assert f"--strength {text!r}" in str(caught.value)


class TestFile:
    def test_contract(self, tmp_path, random_sweep):
        write_sweep(tmp_path / "s.h5", random_sweep)
        with h5py.File(tmp_path / "s.h5") as file:
            assert (file.attrs["format"], file.attrs["version"]) == ("neuron-shapley-sweep", 1)
            assert json.loads(file.attrs["impairment"])["kind"] == "noise"
            assert file.attrs["forward_rows"] == 30
            assert [name.decode() for name in file["cluster"][()]] == CLUSTERS
            assert file["cluster_size"][()].tolist() == [3, 3, 3, 3]
            assert file["strength"][()].tolist() == STRENGTHS.tolist()
            assert file["strength_absolute"].shape == (3, 3)
            assert set(file["topics"]) == {"a", "b", "c"}
            assert set(file["topics/a"]) == {"logprob", "loss", "accuracy"}
            assert file["topics/b/loss"].shape == (4, 3, 2, 7)
            assert list(file["topics/b/loss"].attrs["axes"]) == ["cluster", "strength", "seed", "prompt"]

    def test_loss_is_stored_as_cross_entropy(self, tmp_path, random_sweep):
        write_sweep(tmp_path / "s.h5", random_sweep)
        with h5py.File(tmp_path / "s.h5") as file:
            logprob, loss = file["topics/a/logprob"][()], file["topics/a/loss"][()]
        assert (loss >= 0).all()
        np.testing.assert_array_equal(loss, -2 * logprob)

    def test_round_trip(self, tmp_path, random_sweep):
        write_sweep(tmp_path / "s.h5", random_sweep)
        found = read_sweep(tmp_path / "s.h5")
        assert found.records.keys() == random_sweep.records.keys()
        for topic, records in random_sweep.records.items():
            np.testing.assert_array_equal(found.records[topic], records)
        for name in ("clusters", "sizes", "impairment", "attrs"):
            assert getattr(found, name) == getattr(random_sweep, name)
        np.testing.assert_array_equal(found.strengths, random_sweep.strengths)
        np.testing.assert_array_equal(found.absolute, random_sweep.absolute)

    def test_a_failed_write_leaves_the_old_file(self, tmp_path, random_sweep):
        write_sweep(tmp_path / "s.h5", random_sweep)
        before = (tmp_path / "s.h5").read_bytes()
        random_sweep.attrs["bad"] = object()
        with pytest.raises(TypeError):
            write_sweep(tmp_path / "s.h5", random_sweep)
        assert (tmp_path / "s.h5").read_bytes() == before
        assert [path.name for path in tmp_path.iterdir()] == ["s.h5"]

    def test_a_sweep_is_not_a_score_file(self, tmp_path, random_sweep):
        write_sweep(tmp_path / "s.h5", random_sweep)
        with pytest.raises(ShapleyError, match="is not a score file"):
            ScoreFile(tmp_path / "s.h5")

    def test_missing_or_cut_short(self, tmp_path, random_sweep):
        with pytest.raises(ShapleyError, match="no sweep file at"):
            read_sweep(tmp_path / "s.h5")
        write_sweep(tmp_path / "s.h5", random_sweep)
        (tmp_path / "s.h5").write_bytes((tmp_path / "s.h5").read_bytes()[:-500])
        with pytest.raises(ShapleyError, match="cut short"):
            read_sweep(tmp_path / "s.h5")


class TestMetric:
    def test_axes_and_signs(self, random_sweep):
        records = random_sweep.records["b"]
        for i, (name, sign) in enumerate(zip(METRICS, (1, -1, 1), strict=True)):
            found = random_sweep.metric("b", "cluster-a/random-2", name)
            assert found.shape == (3, 2, 7)
            np.testing.assert_array_equal(found, sign * records[i, 2])

    def test_controls_are_those_of_the_cluster(self):
        names = ["x", "x/random-1", "x-y", "x-y/random-1", "x-y/random-2", "everything"]
        sweep = sweep_of({"a": np.zeros((6, 3, 1, 2))}, names)
        assert sweep.controls("x") == ["x/random-1"]
        assert sweep.controls("x-y") == ["x-y/random-1", "x-y/random-2"]
        assert sweep.controls("everything") == []


def by_prompt(*rows):
    """``[1, strength, seed, prompt]`` where every strength's row holds the prompts' means over two seeds."""
    rows = np.array(rows)
    return np.stack([rows - 0.5, rows + 0.5], axis=1)[None]


class TestCurve:
    sweep = sweep_of({"a": by_prompt([-1.0, -2.0, -3.0], [-2.0, -4.0, -3.0], [-5.0, -5.0, -8.0])}, ["c"])

    def test_mean_and_interval_over_prompts(self):
        line = curve(self.sweep, "a", "c")
        half = 1.96 * np.array([1.0, 1.0, math.sqrt(3.0)]) / math.sqrt(3)
        np.testing.assert_array_equal(line.strengths, STRENGTHS)
        np.testing.assert_allclose(line.mean, [-2, -3, -6])
        np.testing.assert_allclose(line.low, np.array([-2, -3, -6]) - half)
        np.testing.assert_allclose(line.high, np.array([-2, -3, -6]) + half)

    def test_change_is_prompt_by_prompt(self):
        line = curve(self.sweep, "a", "c", change=True)
        half = 1.96 * np.array([0.0, 1.0, 1.0]) / math.sqrt(3)  # changes (-1, -2, 0) and (-4, -3, -5)
        np.testing.assert_allclose(line.mean, [0, -1, -4])
        np.testing.assert_allclose(line.high - line.mean, half, atol=1e-12)
        np.testing.assert_allclose(line.mean - line.low, half, atol=1e-12)

    def test_loss_rises_as_log_probability_falls(self):
        np.testing.assert_allclose(curve(self.sweep, "a", "c", "loss").mean, [4, 6, 12])

    def test_one_prompt_has_no_interval(self):
        line = curve(sweep_of({"a": by_prompt([-1.0], [-2.0], [-3.0])}, ["c"]), "a", "c")
        assert line.mean.tolist() == [-1, -2, -3]
        assert np.isnan(line.low).all() and np.isnan(line.high).all()

    def test_mean_of_curves_spans_their_means(self):
        lines = [Curve(STRENGTHS, mean, mean - 9, mean + 9) for mean in np.array([[0, 2, 4], [0, 6, 1], [3, 1, 1.0]])]
        found = mean_of_curves(lines)
        assert (found.mean.tolist(), found.low.tolist(), found.high.tolist()) == ([1, 3, 2], [0, 1, 1], [3, 6, 4])


def drops(*last):
    """``[cluster, strength, 1, prompt]``: each cluster's prompts start at -1 and fall by ``last``, half way by half."""
    last = np.array(last, dtype=float)
    values = np.full((len(last), 3, 1, last.shape[1]), -1.0)
    values[:, 2, 0] -= last
    values[:, 1, 0] -= last / 2
    return values


class TestContrast:
    sweep = sweep_of(
        {
            "a": drops([1, 2, 3], [0.1, 0.2, 0.3], [0.3, 0.4, 0.5], [9, 9, 9]),
            "b": drops([0, 1], [5, 5], [5, 5], [9, 9]),
            "c": drops([0.5, 0.5, 0.5, 1.5], [5] * 4, [5] * 4, [9] * 4),
        }
    )

    def test_by_hand(self):
        found = contrast(self.sweep, "a", "cluster-a")
        assert found.strength == 2.0
        assert found.target == pytest.approx(2)
        assert found.target_stderr == pytest.approx(1 / math.sqrt(3))
        assert found.others == pytest.approx((0.5 + 0.75) / 2)
        assert found.others_stderr == pytest.approx(math.sqrt(0.5**2 + 0.25**2) / 2)
        assert found.control == pytest.approx((0.2 + 0.4) / 2)
        assert found.control_stderr == pytest.approx(0.1)

    def test_at_another_strength(self):
        found = contrast(self.sweep, "a", "cluster-a", level=1)
        assert (found.strength, found.target, found.control) == pytest.approx((0.5, 1.0, 0.15))

    def test_in_loss_a_drop_is_a_rise(self):
        found = contrast(self.sweep, "a", "cluster-a", name="loss")
        assert (found.target, found.others, found.control) == pytest.approx((4.0, 1.25, 0.6))

    def test_seeds_are_averaged_before_prompts(self):
        values = np.concatenate([drops([0, 0, 0]), drops([2, 4, 6])], axis=2)
        found = contrast(sweep_of({"a": values}, ["cluster-a"]), "a", "cluster-a")
        assert (found.target, found.target_stderr) == pytest.approx((2, 1 / math.sqrt(3)))

    def test_without_others_and_controls(self):
        found = contrast(sweep_of({"a": drops([1, 2, 3])}, ["cluster-a"]), "a", "cluster-a")
        assert np.isnan([found.others, found.control]).all()


class TestSpecific:
    """The topic must fall by more than the others and than under random clusters, by two standard errors."""

    @pytest.mark.parametrize(
        ("own", "other", "random", "expected"),
        [
            ([2.0, 2.2, 2.4], [0.1, 0.2, 0.3], [0.3, 0.4], True),
            ([2.0, 2.2, 2.4], [1.9, 2.0, 2.1], [0.3, 0.4], False),
            ([2.0, 2.2, 2.4], [0.1, 0.2, 0.3], [2.1, 2.2], False),
            ([2.0, 2.2, 2.4], [0.1, 0.2, 0.3], [0.0, 3.0], False),
            ([0.0, 2.2, 4.4], [0.1, 0.2, 0.3], [0.3, 0.4], False),
            ([-1.0, -1.1, -0.9], [0.1, 0.2, 0.3], [0.3, 0.4], False),
        ],
        ids=[
            "yes",
            "others fall as much",
            "random ones do as much",
            "random ones scatter",
            "prompts scatter",
            "it rises",
        ],
    )
    def test_specific(self, own, other, random, expected):
        sweep = sweep_of(
            {
                "a": drops(own, *([[drop] * 3 for drop in random]), own),
                "b": drops(other, *([other] * len(random)), other),
            }
        )
        assert contrast(sweep, "a", "cluster-a").specific is expected

    @pytest.mark.parametrize(("gap", "expected"), [(1.99, False), (2.01, True)])
    def test_two_standard_errors_of_the_difference(self, gap, expected):
        """Both topics have a standard error of 1/sqrt(3), so their difference has sqrt(2/3)."""
        own = np.array([1.0, 2.0, 3.0]) + gap * math.sqrt(2 / 3)
        sweep = sweep_of({"a": drops(own), "b": drops([1.0, 2.0, 3.0])}, ["cluster-a"])
        assert contrast(sweep, "a", "cluster-a").specific == expected

    def test_nothing_to_compare_with_is_not_specific(self):
        sweep = sweep_of({"a": drops([0.0, 0.0, 0.0])}, ["cluster-a"])
        assert not contrast(sweep, "a", "cluster-a").specific
