"""Players that are groups: exact values against enumeration from weight edits, gradients, partitions, and the way from the
command line to a cluster."""

from __future__ import annotations

import json
from dataclasses import replace

import h5py
import numpy as np
import pytest

from shapley import groups
from shapley.clusters import Ranking, rank, select
from shapley.errors import ShapleyError
from shapley.estimators.registry import Plan, build
from shapley.game import NeuronGame
from shapley.groups import GroupGame, Partition
from shapley.hdf5 import seal
from shapley.impairment import Impairment
from shapley.merge import merge_scores
from shapley.runs import estimate
from shapley.store import ScoreFile
from tests.games import semivalue_by_definition, shapley_weight
from tests.test_cli import cache, model, prompts, shapley  # noqa: F401 (fixtures)
from tests.test_game import FAMILIES, TOPIC, edited_value, small
from tests.test_runs import LM, TOPICS

PAIRS = {"odd": [(0, 1), (2, 3), (0, 3)], "one": [(1, 0)], "rest": [(2, 0), (1, 2)]}  # of 3 layers of 4 neurons


def scattered(game):
    return groups.from_neurons(PAIRS, game)


def partition_file(path, by_name, **other):
    record = {"format": "neuron-shapley-partition", "version": 1, "groups": by_name} | other
    path.write_text(json.dumps(record))
    return path


def truth(lm, partition):
    """Shapley values of groups by the definition, from weight edits; neurons in no group are never touched."""
    free = set(np.flatnonzero(partition.group_of < 0).tolist())

    def value(coalition):
        inside = {i for i, g in enumerate(partition.group_of.tolist()) if g in coalition}
        return edited_value(lm, frozenset(inside | free))

    n = len(partition)
    return semivalue_by_definition(n, value, shapley_weight(n))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("make", [groups.layers, scattered], ids=["layers", "scattered"])
def test_exact_scores_are_those_of_edited_weights(family, make):
    game = NeuronGame(small(family), TOPIC)
    result = build(Plan(estimator="exact"), GroupGame(game, make(game)))[0].run()
    np.testing.assert_allclose(result.score, truth(small(family), make(game)), atol=2e-5)
    assert abs(result.efficiency_gap) < 1e-5


@pytest.mark.parametrize("make", [groups.layers, scattered], ids=["layers", "scattered"])
def test_gradients_are_sums_of_neurons(make):
    game = NeuronGame(small("llama"), TOPIC, Impairment("noise"), dtype="float32")
    grouped = GroupGame(game, make(game))
    coalitions = np.random.default_rng(0).random((5, grouped.n_players)) < 0.5
    at, draws = np.array([0, 1, 2, 1, 0]), np.arange(5)
    values, gradients = grouped.gradients(coalitions, prompts=at, draws=draws)
    group_of = grouped.partition.group_of
    inside = np.array([[g < 0 or row[g] for g in group_of] for row in coalitions])
    same, neurons = game.gradients(inside, prompts=at, draws=draws)
    np.testing.assert_array_equal(values, same)
    for g in range(grouped.n_players):
        np.testing.assert_allclose(gradients[:, g], neurons[:, group_of == g].sum(axis=1), atol=1e-6)


@pytest.mark.parametrize("plan", [Plan(estimator="permutation", samples=4), Plan(estimator="gradient", samples=48)])
def test_blocks_of_one_neuron_are_the_neurons_game(plan, tmp_path):
    plan = replace(plan, seed=5)
    one = estimate(LM, TOPICS, tmp_path / "n.h5", plan=plan, layers=[0, 2], show=False)
    blocks = lambda game: groups.blocks(game, 1)  # noqa: E731
    other = estimate(LM, TOPICS, tmp_path / "g.h5", plan=plan, layers=[0, 2], groups=blocks, show=False)
    for topic in TOPICS:
        for name in ("score", "stderr", "count", "truncated", "replicates"):
            np.testing.assert_array_equal(one.array(topic, name), other.array(topic, name))
        assert one.attrs(topic)["efficiency_gap"] == other.attrs(topic)["efficiency_gap"]


class TestPartitions:
    game = NeuronGame(LM, TOPICS["artist"], layers=[0, 2])  # 24 neurons a layer

    def test_layers(self):
        partition = groups.layers(self.game)
        assert partition.names == ("layer 0", "layer 2") and partition.description == "layers"
        np.testing.assert_array_equal(partition.group_of, [0] * 24 + [1] * 24)

    def test_blocks_stay_in_their_layer(self):
        partition = groups.blocks(self.game, 10)
        np.testing.assert_array_equal(np.bincount(partition.group_of), [10, 10, 4, 10, 10, 4])
        assert partition.names[2:4] == ("layer 0, 20 to 23", "layer 2, 0 to 9")
        assert groups.blocks(self.game, 1000).names == ("layer 0, 0 to 23", "layer 2, 0 to 23")

    def test_a_file(self, tmp_path):
        path = partition_file(tmp_path / "p.json", {"a": [[2, 0], [0, 5]], "b": [[0, 0]]})
        partition = groups.from_file(path, self.game)
        assert partition.names == ("a", "b") and np.flatnonzero(partition.group_of == 0).tolist() == [5, 24]
        assert (partition.group_of >= 0).sum() == 3

    def test_the_record_tells_partitions_apart(self, tmp_path):
        a, b = (groups.blocks(self.game, size).record()["sha256"] for size in (3, 4))
        names = (
            partition_file(tmp_path / "n.json", {"x": [[0, 0]]}),
            partition_file(tmp_path / "m.json", {"y": [[0, 0]]}),
        )
        c, d = (groups.from_file(path, self.game).record()["sha256"] for path in names)
        assert len({a, b, c, d}) == 4 and a == groups.blocks(self.game, 3).record()["sha256"]

    @pytest.mark.parametrize(
        ("by_name", "message"),
        [
            ({"a": [[0, 1], [0, 2]], "b": [[0, 2]]}, r"neuron \[0, 2\] is in group 'a' and again in 'b'"),
            ({"a": [[0, 1], [0, 1]]}, "is in group 'a' and again in 'a'"),
            ({"a": [[3, 0]]}, "not in the model, which has 3 layers of 24"),
            ({"a": [[0, 24]]}, "not in the model"),
            ({"a": [[0, -1]]}, "not in the model"),
            ({"a": [[1, 0]]}, "does not play"),
            ({"a": [[0, 0]], "b": []}, "group 'b' is empty"),
            ({"a": {"0": 1}}, "group 'a' is empty or not a list"),
            ({"a": [[0]]}, r"\[0\] is not a \[layer, neuron\] pair"),
            ({"a": [[0, 1.5]]}, "not a .* pair"),
            ({"a": [[0, True]]}, "not a .* pair"),
            ({"a": ["01"]}, "not a .* pair"),
            ({}, "must hold lists"),
            ([[0, 1]], "must hold lists"),
        ],
    )
    def test_bad_groups(self, by_name, message, tmp_path):
        path = partition_file(tmp_path / "p.json", by_name)
        with pytest.raises(ShapleyError, match=message) as error:
            groups.from_file(path, self.game)
        assert "\n" not in str(error.value) and str(path) in str(error.value)

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("{", "cannot read partition file"),
            ("[]", "not a partition file of version 1"),
            ('{"format": "neuron-shapley-cluster", "version": 1}', "not a partition file"),
            ('{"format": "neuron-shapley-partition", "version": 2}', "not a partition file"),
            ('{"groups": {"a": [[0, 1]], "a": [[0, 2]]}}', "'a' is there twice"),
            ("\udcff", "cannot read partition file"),
        ],
    )
    def test_broken_files(self, text, message, tmp_path):
        path = tmp_path / "p.json"
        path.write_bytes(text.encode(errors="surrogateescape"))
        with pytest.raises(ShapleyError, match=message):
            groups.from_file(path, self.game)

    def test_other_mistakes(self, tmp_path):
        with pytest.raises(ShapleyError, match="no partition file"):
            groups.from_file(tmp_path / "none.json", self.game)
        with pytest.raises(ShapleyError, match="at least 1"):
            groups.blocks(self.game, 0)
        with pytest.raises(ShapleyError, match="a group at least"):
            Partition(np.full(4, -1), (), "nothing")


PLAN = Plan(estimator="permutation", samples=4)
FEW = {"a": [[0, 0], [2, 1]], "b": [[1, 5]]}


def from_few(game):
    return groups.from_neurons(FEW, game)


def test_the_file_holds_each_groups_score_for_each_of_its_neurons(tmp_path):
    scores = estimate(LM, TOPICS, tmp_path / "s.h5", plan=PLAN, groups=from_few, show=False)
    with h5py.File(tmp_path / "s.h5") as file:
        topic = file["topics/artist"]
        group, score = topic["group"][()], topic["score"][()]
        assert group.dtype == np.int64 and topic["group_names"].asstr()[()].tolist() == ["a", "b"]
        assert topic["count"][0, 0] == 2 and topic["count"][0, 1] == 0 and topic["replicates"].shape == (16, 3, 24)
        attrs = dict(topic.attrs)
    expected = np.full((3, 24), -1)
    expected[[0, 2], [0, 1]], expected[1, 5] = 0, 1
    np.testing.assert_array_equal(group, expected)
    np.testing.assert_array_equal(np.isfinite(score), expected >= 0)
    assert score[0, 0] == score[2, 1]
    gap = attrs["value_full"] - attrs["value_empty"] - score[0, 0] - score[1, 5]
    assert attrs["efficiency_gap"] == pytest.approx(gap, abs=1e-9) and abs(gap) < 1e-5
    assert json.loads(attrs["settings"])["partition"]["description"] == "2 groups of a file"
    np.testing.assert_array_equal(scores["artist"].group, expected)
    assert scores["artist"].group_names == ("a", "b") and scores.groups("artist")[1] == ("a", "b")


def test_more_names_than_an_attribute_holds(tmp_path):
    names = tuple(f"{i} {'x' * 1000}" for i in range(72))
    topic, plan = {"artist": TOPICS["artist"]}, Plan(estimator="gradient", samples=16)
    long = Partition(np.arange(72), names, "long names")
    scores = estimate(LM, topic, tmp_path / "s.h5", plan=plan, groups=lambda game: long, show=False)
    assert scores.groups("artist")[1] == names


class TestGoingOn:
    def test_another_partition_is_refused(self, tmp_path):
        out = tmp_path / "s.h5"
        estimate(LM, TOPICS, out, plan=PLAN, groups=groups.layers, show=False)
        before = out.read_bytes()
        for other in (from_few, None):
            with pytest.raises(ShapleyError, match=r"cannot resume: .* with partition = "):
                estimate(LM, TOPICS, out, plan=PLAN, groups=other, resume=True, show=False)
        estimate(LM, TOPICS, out, plan=PLAN, groups=groups.layers, resume=True, show=False)
        assert out.read_bytes() == before

    def test_files_made_before_there_were_groups(self, tmp_path):
        out = tmp_path / "s.h5"
        estimate(LM, TOPICS, out, plan=PLAN, show=False)
        with h5py.File(out, "a") as file:
            for topic in file["topics"].values():
                settings = json.loads(topic.attrs["settings"])
                del settings["partition"]
                topic.attrs["settings"] = json.dumps(settings)
                seal(topic)
        estimate(LM, TOPICS, out, plan=PLAN, resume=True, show=False)
        assert rank(ScoreFile(out), "artist", ["athlete"]).group is None
        with pytest.raises(ShapleyError, match="cannot resume"):
            estimate(LM, TOPICS, out, plan=PLAN, groups=groups.layers, resume=True, show=False)

    def test_merging(self, tmp_path):
        paths = [tmp_path / f"{seed}.h5" for seed in range(3)]
        for seed, path in enumerate(paths):
            made = groups.layers if seed < 2 else from_few
            estimate(LM, TOPICS, path, plan=replace(PLAN, seed=seed), groups=made, show=False)
        merge_scores(paths[:2], tmp_path / "m.h5")
        one, two, both = (ScoreFile(path)["artist"] for path in (*paths[:2], tmp_path / "m.h5"))
        np.testing.assert_allclose(both.score, (one.score + two.score) / 2, atol=1e-12)
        np.testing.assert_array_equal(both.group, one.group)
        assert both.group_names == one.group_names and abs(both.attrs["efficiency_gap"]) < 1e-5
        with pytest.raises(ShapleyError, match="was scored with partition"):
            merge_scores([paths[0], paths[2]], tmp_path / "n.h5")

    def test_no_contrast_of_other_groups(self, tmp_path):
        out = tmp_path / "s.h5"
        estimate(LM, {"artist": TOPICS["artist"]}, out, plan=PLAN, groups=groups.layers, show=False)
        estimate(LM, {"athlete": TOPICS["athlete"]}, out, plan=PLAN, groups=from_few, resume=True, show=False)
        with pytest.raises(ShapleyError, match="with other players"):
            rank(ScoreFile(out), "artist", ["athlete"])


class TestRanking:
    group = np.array([[0, -1, 1], [2, 0, 3]])
    score = np.array([[1.0, np.nan, 3.0], [2.0, 1.0, np.nan]])
    ranking = Ranking(score, score / 10, group, ("a", "b", "c", "d"))

    def test_groups_are_ranked_once(self):
        rows = self.ranking.top(3)
        assert [(row["group"], row["neurons"], row["score"]) for row in rows] == [("b", 1, 3), ("c", 1, 2), ("a", 2, 1)]
        assert list(rows[0]) == ["rank", "group", "neurons", "score", "stderr"]
        with pytest.raises(ShapleyError, match="top 4 of 3 scored groups"):
            self.ranking.top(4)

    def test_whole_groups_are_selected(self):
        assert select(self.ranking, top_k=3) == ((0, 2), (1, 0), (0, 0), (1, 1))
        assert select(self.ranking, fraction=0.7) == ((0, 2), (1, 0))
        with pytest.raises(ShapleyError, match="--per-layer is for scores of neurons"):
            select(self.ranking, fraction=0.5, per_layer=True)


class TestWithin:
    @pytest.fixture
    def coarse(self, tmp_path):
        blocks = lambda game: groups.blocks(game, 8)  # noqa: E731
        return estimate(LM, TOPICS, tmp_path / "coarse.h5", plan=PLAN, groups=blocks, show=False)

    def test_players_are_neurons_of_the_top_groups(self, coarse, tmp_path):
        inside = lambda game: groups.within(coarse.path, 2, game)  # noqa: E731
        fine = estimate(LM, TOPICS, tmp_path / "fine.h5", plan=PLAN, groups=inside, show=False)
        for topic in TOPICS:
            group, score = coarse.array(topic, "group"), coarse.array(topic, "score")
            strongest = sorted(np.unique(np.abs(score)))[-2:]
            expected = np.isin(np.abs(score), strongest)
            found = fine[topic]
            np.testing.assert_array_equal(np.isfinite(found.score), expected)
            assert found.group is None and expected.sum() == 16 and len(np.unique(group[expected])) == 2
            game = NeuronGame(LM, TOPICS[topic])
            out = (~expected).ravel()[None]  # everyone in no group, and nobody else
            assert found.attrs["value_empty"] == pytest.approx(game.values(out)[0], abs=1e-6)
            assert "layer" in json.loads(found.attrs["settings"])["partition"]["description"]
        assert set(rank(fine, "artist").top(3)[0]) == {"rank", "layer", "neuron", "score", "stderr"}
        with pytest.raises(ShapleyError, match="other players"):
            rank(fine, "artist", ["athlete"])

    def test_neurons_in_no_group_are_never_among_them(self, tmp_path):
        coarse = estimate(LM, TOPICS, tmp_path / "few.h5", plan=PLAN, groups=from_few, show=False)
        score = np.abs(coarse.array("artist", "score"))
        partition = groups.within(coarse.path, 1, NeuronGame(LM, TOPICS["artist"]))
        np.testing.assert_array_equal(partition.group_of >= 0, (score == np.nanmax(score)).ravel())
        assert len(groups.within(coarse.path, 2, NeuronGame(LM, TOPICS["artist"]))) == 3

    def test_refusals(self, coarse, tmp_path):
        game = NeuronGame(LM, TOPICS["artist"])
        with pytest.raises(ShapleyError, match="--top-groups 10 of 9"):
            groups.within(coarse.path, 10, game)
        with pytest.raises(ShapleyError, match="does not play"):
            groups.within(coarse.path, 9, NeuronGame(LM, TOPICS["artist"], layers=[0]))
        with pytest.raises(ShapleyError, match="scores at mlp_hidden, this run is at mlp_out"):
            groups.within(coarse.path, 1, NeuronGame(LM, TOPICS["artist"], Impairment(site="mlp_out")))
        with pytest.raises(ShapleyError, match="another model"):
            groups.within(coarse.path, 1, NeuronGame(small("llama"), TOPICS["artist"]))
        plain = estimate(LM, TOPICS, tmp_path / "p.h5", plan=PLAN, show=False)
        with pytest.raises(ShapleyError, match="of neurons for 'artist', not of groups"):
            groups.within(plain.path, 1, game)


def test_from_groups_to_a_cluster(shapley, model, prompts, tmp_path):  # noqa: F811
    scores, cluster, fine = (tmp_path / name for name in ("s.h5", "c.json", "fine.h5"))
    words = ("estimate", "--model", model, "--prompts", prompts)
    code, _, err = shapley(*words, "--out", scores, "--groups", "blocks:10")
    assert code == 0 and "9 players" in err
    code, out, _ = shapley("top", scores, "--topic", "artist", "-k", 9, "--versus", "athlete", "--json")
    rows = json.loads(out)
    assert code == 0 and sum(row["neurons"] for row in rows) == 72
    assert list(rows[0]) == ["rank", "group", "neurons", "score", "stderr"]
    _, table, _ = shapley("top", scores, "--topic", "artist", "-k", 9, "--versus", "athlete")
    assert table.splitlines()[0].split() == ["rank", "group", "neurons", "score", "stderr"]
    assert rows[0]["group"] in table.splitlines()[1] and len({len(line) for line in table.splitlines()}) == 1
    _, text, _ = shapley("top", scores, "--topic", "artist", "-k", 2, "--format", "csv")
    assert text.splitlines()[0] == "rank,group,neurons,score,stderr"

    code, out, _ = shapley(
        "cluster", scores, "--topic", "artist", "--versus", "athlete", "--top-k", 2, "--out", cluster
    )
    record = json.loads(cluster.read_text())
    names = {row["group"] for row in rows[:2]}
    group, all_names = ScoreFile(scores).groups("artist")
    assert code == 0 and record["rule"]["of"] == "groups"
    assert {all_names[group[layer, neuron]] for layer, neuron in record["neurons"]} == names
    assert len(record["neurons"]) == rows[0]["neurons"] + rows[1]["neurons"]

    code, _, err = shapley(*words, "--out", fine, "--within", scores, "--top-groups", 2, "--samples", 16)
    assert code == 0 and np.isfinite(ScoreFile(fine).array("artist", "score")).sum() in (8, 14, 20)
    code, _, err = shapley("report", tmp_path)
    assert code == 2


MISTAKES = {
    "word": (["--groups", "layrs"], "expected layers, blocks:SIZE or a partition file"),
    "no size": (["--groups", "blocks:"], "as blocks:64"),
    "size": (["--groups", "blocks:0"], "as blocks:64"),
    "negative": (["--groups", "blocks:-3"], "as blocks:64"),
    "no file": (["--groups", "none.json"], "no partition file at none.json"),
    "overlap": (["--groups", "{overlap}"], "must not overlap"),
    "layers": (["--groups", "{second}", "--layers", "0"], "does not play"),
    "both": (["--groups", "layers", "--within", "{second}", "--top-groups", "1"], "exclude each other"),
    "half": (["--within", "{second}"], "go together"),
    "other half": (["--top-groups", "3"], "go together"),
    "not scores": (["--within", "{second}", "--top-groups", "3"], "not an HDF5 file"),
    "budget": (["--groups", "layers", "--estimator", "permutation", "--budget", "3"], "too few"),
    "over its partition": (["--groups", "{second}", "--out", "{second}", "--overwrite"], "is an input of this command"),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(words, message, shapley, model, prompts, tmp_path):  # noqa: F811
    places = {
        "overlap": partition_file(tmp_path / "overlap.json", {"a": [[0, 0]], "b": [[0, 0]]}),
        "second": partition_file(tmp_path / "second.json", {"a": [[1, 0]]}),
    }
    words = [word.format(**places) for word in words]
    out = [] if "--out" in words else ["--out", tmp_path / "s.h5"]
    code, _, err = shapley("estimate", "--model", model, "--prompts", prompts, *out, *words)
    last = err.strip().splitlines()[-1]
    assert code == 2 and message in last and last.startswith("shapley") and not (tmp_path / "s.h5").exists()


def test_reports_are_of_neurons(shapley, tmp_path):  # noqa: F811
    estimate(LM, TOPICS, tmp_path / "s.h5", plan=PLAN, groups=groups.layers, show=False)
    code, _, err = shapley("report", tmp_path)
    assert code == 2 and "holds scores of groups" in err
