"""Rankings, contrasts, selection rules, cluster files, and random clusters to compare with."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from shapley.clusters import Cluster, Ranking, random_like, rank, select
from shapley.errors import ShapleyError
from shapley.store import ScoreFile, TopicScores, write_scores
from tests.test_store import MODEL, topic_attrs

NAN = np.nan


def ranking(scores):
    scores = np.array(scores, dtype=float)
    return Ranking(scores, scores / 10)


def places(rows):
    return [(row["layer"], row["neuron"]) for row in rows]


class TestOrder:
    scores = ranking([[1.0, NAN, 3.0, -2.0], [3.0, 0.5, NAN, 1.0]])

    def test_highest_first_nan_left_out_ties_in_place(self):
        assert self.scores.order().tolist() == [2, 4, 0, 7, 5, 3]

    @pytest.mark.parametrize("k", range(1, 7))
    def test_the_top_is_the_head_of_the_order(self, k):
        assert places(self.scores.top(k)) == [(0, 2), (1, 0), (0, 0), (1, 3), (1, 1), (0, 3)][:k]

    def test_records(self):
        assert self.scores.top(2) == [
            {"rank": 1, "layer": 0, "neuron": 2, "score": 3.0, "stderr": pytest.approx(0.3)},
            {"rank": 2, "layer": 1, "neuron": 0, "score": 3.0, "stderr": pytest.approx(0.3)},
        ]

    @pytest.fixture
    def tied(self):
        return np.random.default_rng(0).integers(0, 4, (5, 40)).astype(float)

    def test_ties_stay_in_place_in_the_order(self, tied):
        assert ranking(tied).order().tolist() == sorted(range(200), key=lambda i: -tied.flat[i])

    @pytest.mark.parametrize("k", [1, 7, 40, 100])
    def test_ties_across_the_cut_go_to_the_earlier_neuron(self, tied, k):
        assert places(ranking(tied).top(k)) == sorted(np.ndindex(5, 40), key=lambda place: -tied[place])[:k]

    @pytest.mark.parametrize("k", [0, -1, 7])
    def test_more_than_there_are_or_none_is_refused(self, k):
        with pytest.raises(ShapleyError, match=f"top {k} of 6 scored neurons: choose between 1 and 6"):
            self.scores.top(k)


def score_file(tmp_path, **topics):
    """A file from replicates ``[R, n_layers, width]`` by topic; scores are their means unless given beside them."""
    entries = {}
    for topic, replicates in topics.items():
        score, replicates = replicates if isinstance(replicates, tuple) else (None, replicates)
        replicates = np.asarray(replicates, dtype=float)
        score = replicates.mean(axis=0) if score is None else np.array(score, dtype=float)
        whole = np.ones(score.shape, dtype=int)
        entries[topic] = TopicScores(
            score, np.full(score.shape, 0.25), whole, whole, replicates.astype(np.float32), topic_attrs()
        )
    write_scores(tmp_path / "s.h5", MODEL, entries, keep=False)
    return ScoreFile(tmp_path / "s.h5")


OWN = ((5.0, 1.0), (2.0, NAN))
SCORES = {"a": OWN, "b": ((1.0, -3.0), (0.0, 1.0)), "c": ((-2.0, 1.0), (1.0, 1.0))}


class TestContrast:
    @pytest.fixture
    def file(self, tmp_path):
        return score_file(tmp_path, **{topic: (score, np.zeros((2, 2, 2))) for topic, score in SCORES.items()})

    def test_without_others_it_is_the_score(self, file):
        found = rank(file, "a")
        np.testing.assert_array_equal(found.score, OWN)
        np.testing.assert_array_equal(found.stderr, np.full((2, 2), 0.25))

    def test_plain(self, file):
        np.testing.assert_allclose(rank(file, "a", ["b", "c"], guard=0).score, [[5.5, 2.0], [1.5, NAN]])

    def test_guarded_by_the_largest_absolute_other(self, file):
        np.testing.assert_allclose(rank(file, "a", ["b", "c"], guard=2).score, [[1.0, -5.0], [0.0, NAN]])
        np.testing.assert_allclose(rank(file, "a", ["b"], guard=0.5).score, [[4.5, -0.5], [2.0, NAN]])

    def test_the_guard_is_four_by_default(self, file):
        np.testing.assert_allclose(rank(file, "a", ["c"]).score, [[-3.0, -3.0], [-2.0, NAN]])

    @pytest.mark.parametrize("guard", [0.0, 2.0])
    def test_a_neuron_that_another_topic_lacks_is_not_ranked(self, file, guard):
        found = rank(file, "b", ["a"], guard)
        assert np.isnan(found.score).tolist() == [[False, False], [False, True]]
        assert 3 not in found.order()

    @pytest.mark.parametrize(
        ("versus", "guard", "words"),
        [(["b", "a"], 0, "ranked against itself"), (["b"], -1, "at least 0"), (["bb"], 0, "did you mean 'b'|choose")],
    )
    def test_refusals(self, file, versus, guard, words):
        with pytest.raises(ShapleyError, match=words):
            rank(file, "a", versus, guard)

    def test_standard_error_by_hand(self, tmp_path):
        a = np.array([[[1.0, 2.0, 3.0]], [[3.0, NAN, NAN]], [[8.0, 4.0, NAN]]])
        b = np.array([[[1.0, 1.0, 1.0]], [[2.0, 1.0, 1.0]], [[3.0, 5.0, 1.0]]])
        file = score_file(tmp_path, a=([[4.0, 3.0, 3.0]], a), b=([[-2.0, 2.0, 2.0]], b))
        # differences 0, 1, 5 and 1, -1; one group has no spread
        expected = [[np.sqrt(7.0) / np.sqrt(3), np.sqrt(2.0) / np.sqrt(2), NAN]]
        np.testing.assert_allclose(rank(file, "a", ["b"], guard=0).stderr, expected, rtol=1e-6)
        # b is negative in neuron 0: |b| = -b, so a + 2 b, which is 3, 7, 14; and a - 2 b in neuron 1: 0, -6
        expected = [[np.std([3, 7, 14], ddof=1) / np.sqrt(3), np.std([0, -6], ddof=1) / np.sqrt(2), NAN]]
        np.testing.assert_allclose(rank(file, "a", ["b"], guard=2).stderr, expected, rtol=1e-6)

    @pytest.mark.parametrize(("guard", "sign"), [(0, 1), (2, 1), (2, -1), (1, 1)])
    def test_standard_error_is_that_of_correlated_estimates(self, tmp_path, guard, sign):
        """Topics that share their coalitions have correlated scores; the contrast's error knows it."""
        rng = np.random.default_rng(guard)
        n_groups, shape, shared, single = 16, (4, 500), 2.0, 0.5
        common = rng.normal(0, shared, (n_groups, *shape))
        a = 30.0 + common + rng.normal(0, single, (n_groups, *shape))
        b = sign * 20.0 + common + rng.normal(0, single, (n_groups, *shape))
        found = rank(score_file(tmp_path, a=a, b=b), "a", ["b"], guard)
        weight = sign * guard if guard else 1  # a - weight b
        truth = 30.0 - weight * sign * 20.0
        error = np.sqrt(((1 - weight) ** 2 * shared**2 + (1 + weight**2) * single**2) / n_groups)
        assert np.sqrt((found.stderr**2).mean()) == pytest.approx(error, rel=0.04)
        covered = np.abs(found.score - truth) < stats.t.ppf(0.975, n_groups - 1) * found.stderr
        assert covered.mean() == pytest.approx(0.95, abs=0.02)


class TestSelect:
    scores = ranking([[1.0, 8.0, 3.0, 2.0], [7.0, 6.0, 5.0, 4.0], [NAN] * 4])

    def test_top_k(self):
        assert select(self.scores, top_k=3) == ((0, 1), (1, 0), (1, 1))

    @pytest.mark.parametrize(("fraction", "n"), [(0.5, 4), (0.25, 2), (0.3, 2), (0.001, 1), (1, 8)])
    def test_a_fraction_of_the_scored_and_at_least_one(self, fraction, n):
        assert (
            select(self.scores, fraction=fraction)
            == ((0, 1), (1, 0), (1, 1), (1, 2), (1, 3), (0, 2), (0, 3), (0, 0))[:n]
        )

    @pytest.mark.parametrize(
        ("fraction", "expected"), [(0.5, ((0, 1), (0, 2), (1, 0), (1, 1))), (0.01, ((0, 1), (1, 0)))]
    )
    def test_a_fraction_of_each_layer_that_is_scored(self, fraction, expected):
        assert select(self.scores, fraction=fraction, per_layer=True) == expected

    @pytest.mark.parametrize(
        ("rule", "words"),
        [
            ({}, "one of the two"),
            ({"top_k": 3, "fraction": 0.5}, "one of the two"),
            ({"fraction": 0.0}, "between 0 and 1"),
            ({"fraction": 1.5}, "between 0 and 1"),
            ({"fraction": NAN}, "between 0 and 1"),
            ({"top_k": 3, "per_layer": True}, "--per-layer goes with --fraction"),
            ({"top_k": 9}, "top 9 of 8"),
            ({"top_k": 0}, "top 0 of 8"),
        ],
    )
    def test_refusals(self, rule, words):
        with pytest.raises(ShapleyError, match=words):
            select(self.scores, **rule)


class TestFile:
    cluster = Cluster(
        ((1, 5), (0, 2)), "mlp_out", {"name": "tiny", "fingerprint": "f00d"}, {"topic": "athlete", "k": 2}
    )

    def test_contract(self, tmp_path):
        self.cluster.save(tmp_path / "c.json")
        assert json.loads((tmp_path / "c.json").read_text(encoding="utf-8")) == {
            "format": "neuron-shapley-cluster",
            "version": 1,
            "model": {"name": "tiny", "fingerprint": "f00d"},
            "site": "mlp_out",
            "neurons": [[1, 5], [0, 2]],
            "rule": {"topic": "athlete", "k": 2},
        }

    def test_round_trip(self, tmp_path):
        self.cluster.save(tmp_path / "c.json")
        assert Cluster.load(tmp_path / "c.json") == self.cluster

    def test_a_hand_written_one_needs_no_more_than_neurons(self, tmp_path):
        (tmp_path / "c.json").write_text(
            '{"format": "neuron-shapley-cluster", "version": 1, "model": "tiny", "neurons": [[0, 3]]}'
        )
        found = Cluster.load(tmp_path / "c.json")
        assert (found.neurons, found.site, found.model, found.rule) == (((0, 3),), "mlp_hidden", {"name": "tiny"}, {})
        found.check_model(MODEL, "c.json")

    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (b"[[0, 1]]", "is not a cluster file"),
            (b"{", "is no cluster file, which is JSON"),
            (b"\xff\xfe\x00", "is no cluster file, which is JSON"),
            (b'{"format": "neuron-shapley", "version": 1, "neurons": []}', "is not a cluster file"),
            (
                b'{"format": "neuron-shapley-cluster", "version": 2, "neurons": []}',
                "is not a cluster file of version 1",
            ),
            (b'{"format": "neuron-shapley-cluster", "version": 1}', "'neurons' must be"),
            (b'{"format": "neuron-shapley-cluster", "version": 1, "neurons": 3}', "'neurons' must be"),
            (b'{"format": "neuron-shapley-cluster", "version": 1, "neurons": [1, 2]}', "'neurons' must be"),
            (b'{"format": "neuron-shapley-cluster", "version": 1, "neurons": [[1, 2, 3]]}', "'neurons' must be"),
            (b'{"format": "neuron-shapley-cluster", "version": 1, "neurons": [[0, "x"]]}', "'neurons' must be"),
            (b'{"format": "neuron-shapley-cluster", "version": 1, "neurons": []}', "each once, but there are none"),
            (b'{"format": "neuron-shapley-cluster", "version": 1, "neurons": [[1, 1], [1, 1]]}', "one is there twice"),
        ],
    )
    def test_bad_files_are_refused(self, tmp_path, content, words):
        (tmp_path / "c.json").write_bytes(content)
        with pytest.raises(ShapleyError, match=words):
            Cluster.load(tmp_path / "c.json")

    def test_missing(self, tmp_path):
        with pytest.raises(ShapleyError, match=r"no cluster file at .*c\.json"):
            Cluster.load(tmp_path / "c.json")

    def test_another_model_is_refused(self):
        self.cluster.check_model(MODEL, "c.json")
        with pytest.raises(ShapleyError, match=r"c\.json belongs to another model: tiny.*f00d.*big.*beef"):
            self.cluster.check_model({"name": "big", "fingerprint": "beef"}, "c.json")

    def test_counts_per_layer(self):
        assert len(self.cluster) == 2
        assert Cluster(((2, 1), (0, 3), (2, 4))).per_layer(4).tolist() == [1, 0, 2, 0]


class TestRandomLike:
    cluster = Cluster((*((0, i) for i in range(10)), (3, 7), (3, 30)), "mlp_hidden", {"fingerprint": "f00d"})

    def drawn(self, seed=0, draw=1):
        return random_like(self.cluster, (4, 40), seed, draw)

    @pytest.mark.parametrize("draw", range(1, 6))
    def test_as_many_in_each_layer_and_none_in_common(self, draw):
        found = self.drawn(draw=draw)
        assert found.per_layer(4).tolist() == [10, 0, 0, 2]
        assert len(set(found.neurons)) == 12
        assert not set(found.neurons) & set(self.cluster.neurons)
        assert all(0 <= column < 40 for _, column in found.neurons)
        assert (found.site, found.model) == ("mlp_hidden", {"fingerprint": "f00d"})

    def test_keyed_by_seed_and_draw(self):
        assert self.drawn() == self.drawn()
        assert len({self.drawn(seed, draw).neurons for seed in range(3) for draw in range(3)}) == 9

    def test_every_free_neuron_comes_up_alike(self):
        counts = np.zeros(40)
        for draw in range(600):
            counts[[column for layer, column in self.drawn(draw=draw).neurons if layer == 0]] += 1
        assert counts[:10].sum() == 0
        assert np.abs(counts[10:] - 200).max() < 5 * np.sqrt(600 * (1 / 3) * (2 / 3))
