"""Merging: pooled moments equal those of all samples together, and what cannot be pooled is refused."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from shapley.errors import ShapleyError
from shapley.merge import merge_scores
from shapley.store import ScoreFile, TopicScores, write_scores
from tests.test_store import MODEL, topic_attrs, topic_scores

pytestmark = pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:Degrees of freedom")


def drawn(n, key, missing=0.0):
    """``[n, 2, 6]`` samples, some not seen."""
    rng = np.random.default_rng(key)
    samples = rng.normal(3.0, np.arange(1, 13).reshape(2, 6), size=(n, 2, 6))
    samples[rng.random(samples.shape) < missing] = np.nan
    return samples


def moments(samples, /, seed=0, **settings):
    """Mean, standard error, count and 16 replicates, by numpy."""
    count = np.isfinite(samples).sum(axis=0)
    return TopicScores(
        np.nanmean(samples, axis=0),
        np.nanstd(samples, axis=0, ddof=1) / np.sqrt(count),
        count,
        np.full((2, 6), 2),
        np.stack([np.nanmean(samples[group::16], axis=0) for group in range(16)]).astype(np.float32),
        topic_attrs(seed, **settings),
    )


def merge(tmp_path, *files, model=MODEL):
    """Write a file for each dictionary of topics and merge them."""
    paths = [tmp_path / f"{i}.h5" for i in range(len(files))]
    for path, topics in zip(paths, files, strict=True):
        write_scores(path, model, topics, keep=False)
    merge_scores(paths, tmp_path / "merged.h5")
    return ScoreFile(tmp_path / "merged.h5")


def assert_pooled(found, samples):
    expected = moments(samples)
    np.testing.assert_array_equal(found.count, expected.count)
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-12)
    np.testing.assert_allclose(found.stderr, expected.stderr, rtol=1e-12)


@pytest.mark.parametrize("sizes", [(20, 20), (2, 50), (1, 30), (1, 1), (16, 33, 8)])
def test_two_seeds_equal_all_samples_together(tmp_path, sizes):
    parts = [drawn(n, key=i) for i, n in enumerate(sizes)]
    merged = merge(tmp_path, *({"t": moments(part, seed=i)} for i, part in enumerate(parts)))
    assert_pooled(merged["t"], np.concatenate(parts))


def test_neurons_with_different_counts_or_none_are_pooled_each_by_its_own(tmp_path):
    a, b = drawn(20, 1, missing=0.4), drawn(30, 2, missing=0.4)
    a[:, 0, :2] = np.nan
    b[:, 0, 1:3] = np.nan
    merged = merge(tmp_path, {"t": moments(a)}, {"t": moments(b, seed=1)})["t"]
    assert_pooled(merged, np.concatenate([a, b]))
    assert np.isnan(merged.score[0, 1]) and merged.count[0, 1] == 0


@pytest.mark.parametrize("name", ["score", "stderr", "count", "truncated", "replicates"])
@pytest.mark.parametrize("sizes", [(20, 40, 16), (5, 40, 12)], ids=["full groups", "empty groups"])
def test_order_does_not_matter(tmp_path, sizes, name):
    parts = [{"t": moments(drawn(n, key=n), seed=n)} for n in sizes]
    found = [merge(tmp_path, *order).array("t", name) for order in itertools.permutations(parts)]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-4)


@pytest.mark.parametrize("sizes", [(32, 32), (16, 48)])
def test_replicates_are_pooled_group_by_group(tmp_path, sizes):
    a, b = drawn(sizes[0], 1), drawn(sizes[1], 2)
    merged = merge(tmp_path, {"t": moments(a)}, {"t": moments(b, seed=1)})["t"]
    assert merged.replicates.shape == (16, 2, 6) and merged.replicates.dtype == np.float32
    for group in range(16):
        together = np.concatenate([a[group::16], b[group::16]]).mean(axis=0)
        np.testing.assert_allclose(merged.replicates[group], together, rtol=1e-4)


@pytest.mark.parametrize("sizes", [(4, 16), (16, 4)])
def test_an_empty_group_takes_the_other_files(tmp_path, sizes):
    parts = [drawn(n, key=n) for n in sizes]
    merged = merge(tmp_path, *({"t": moments(part, seed=len(part))} for part in parts))["t"]
    np.testing.assert_allclose(merged.replicates[4:], max(parts, key=len)[4:], rtol=1e-6)


def test_topics_stand_side_by_side(tmp_path):
    files = {"athlete": topic_scores(1)}, {"artist": topic_scores(2), "company": topic_scores(3)}
    merged = merge(tmp_path, *files)
    assert sorted(merged.topics) == ["artist", "athlete", "company"]
    assert merged.model == MODEL
    for topic, scores in (files[0] | files[1]).items():
        for name in ("score", "stderr", "count", "truncated", "replicates"):
            np.testing.assert_array_equal(getattr(merged[topic], name), getattr(scores, name))
        assert merged.attrs(topic) == scores.attrs


def test_costs_add_up_and_seeds_are_recorded(tmp_path):
    merged = merge(tmp_path, *({"t": moments(drawn(8, seed), seed=seed)} for seed in (3, 5, 9)))
    attrs = merged.attrs("t")
    assert (attrs["forward_rows"], attrs["wall_seconds"]) == (300, 6.0)
    assert json.loads(attrs["merged_seeds"]) == [3, 5, 9]
    assert merged["t"].truncated.tolist() == np.full((2, 6), 6).tolist()
    assert attrs["efficiency_gap"] == pytest.approx(-1.0 + 9.0 - merged["t"].score.sum())


class TestMergesOfMerges:
    def merged(self, tmp_path, name, seeds):
        paths = [tmp_path / f"{name}-{seed}.h5" for seed in seeds]
        for path, seed in zip(paths, seeds, strict=True):
            write_scores(path, MODEL, {"t": moments(drawn(8, seed), seed=seed)}, keep=False)
        merge_scores(paths, tmp_path / f"{name}.h5")
        return tmp_path / f"{name}.h5"

    def test_they_pool_as_the_files_would(self, tmp_path):
        parts = [self.merged(tmp_path, "one", [0, 1]), self.merged(tmp_path, "two", [2, 3])]
        merge_scores(parts, tmp_path / "out.h5")
        merged = ScoreFile(tmp_path / "out.h5")
        assert_pooled(merged["t"], np.concatenate([drawn(8, seed) for seed in range(4)]))
        assert json.loads(merged.attrs("t")["merged_seeds"]) == [0, 1, 2, 3]

    @pytest.mark.parametrize("again", [[1], [2, 1]])
    @pytest.mark.parametrize("first", [True, False])
    def test_a_seed_inside_one_is_not_counted_twice(self, tmp_path, again, first):
        parts = [self.merged(tmp_path, "one", [0, 1]), self.merged(tmp_path, "two", again)]
        with pytest.raises(ShapleyError, match="counted twice"):
            merge_scores(parts if first else parts[::-1], tmp_path / "out.h5")


class TestRefusals:
    def test_the_same_seed_twice(self, tmp_path):
        with pytest.raises(ShapleyError, match=r"1\.h5 holds topic 't' with seed 4.*counted twice"):
            merge(tmp_path, {"t": topic_scores(1, seed=4)}, {"t": topic_scores(2, seed=4)})
        assert not (tmp_path / "merged.h5").exists()

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"estimator": "gradient"}, "estimator = 'gradient'.*'permutation'"),
            ({"impairment": {"kind": "mean"}}, "impairment = .*mean.*zero"),
            ({"layers": [0]}, r"layers = \[0\].*None"),
        ],
    )
    def test_other_settings_are_named(self, tmp_path, settings, words):
        with pytest.raises(ShapleyError, match=words):
            merge(tmp_path, {"t": moments(drawn(8, 1))}, {"t": moments(drawn(8, 2), seed=1, **settings)})

    def test_other_numbers_of_samples_are_no_obstacle(self, tmp_path):
        files = {"t": moments(drawn(8, 1), samples=8)}, {"t": moments(drawn(9, 2), seed=1, samples=9, budget=100)}
        assert merge(tmp_path, *files)["t"].count.tolist() == np.full((2, 6), 17).tolist()

    def test_another_model(self, tmp_path):
        write_scores(tmp_path / "a.h5", MODEL, {"t": topic_scores(1)}, keep=False)
        write_scores(tmp_path / "b.h5", MODEL | {"fingerprint": "beef"}, {"u": topic_scores(2)}, keep=False)
        with pytest.raises(ShapleyError, match=r"b\.h5 belongs to another model"):
            merge_scores([tmp_path / "a.h5", tmp_path / "b.h5"], tmp_path / "out.h5")
        assert not (tmp_path / "out.h5").exists()
