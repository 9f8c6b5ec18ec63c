"""Selectors by scores, the guard that is chosen, and all of them from the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from shapley.clusters import Cluster, Ranking, rank
from shapley.errors import ShapleyError
from shapley.estimators.registry import Plan
from shapley.groups import parse_groups
from shapley.hf.load import load_model
from shapley.impairment import Impairment
from shapley.prompts import Prompt, TopicPrompts, read_prompts
from shapley.runs import estimate
from shapley.selectors import NAMES, selector
from shapley.selectors.base import Evidence
from shapley.selectors.choose import choose_guard
from shapley.selectors.matched import NEAREST, activation_norm, matched_random
from shapley.selectors.scores import Contrast, Guarded, Interval, Shapley
from shapley.store import ScoreFile, TopicScores, write_scores
from tests.test_cli import PROMPTS, cache, model, shapley  # noqa: F401  (fixtures)
from tests.test_clusters import score_file
from tests.test_store import MODEL, topic_attrs
from tests.tiny import tiny_lm

NAN = np.nan
SCORES = {"a": [[5.0, 1.0], [2.0, NAN]], "b": [[1.0, -3.0], [0.0, 1.0]], "c": [[-2.0, 1.0], [1.0, 1.0]]}


@pytest.fixture
def evidence(tmp_path):
    return Evidence(score_file(tmp_path, **{t: (score, np.zeros((2, 2, 2))) for t, score in SCORES.items()}))


def test_shapley_contrast_and_guarded_are_the_rules_of_rank(evidence):
    for found, expected in (
        (Shapley().rank(evidence, "a", []), rank(evidence.scores, "a")),
        (Contrast().rank(evidence, "a", ["b", "c"]), rank(evidence.scores, "a", ["b", "c"], 0)),
        (Guarded(3.0).rank(evidence, "a", ["b", "c"]), rank(evidence.scores, "a", ["b", "c"], 3)),
    ):
        np.testing.assert_array_equal(found.score, expected.score)
        np.testing.assert_array_equal(found.stderr, expected.stderr)


def test_interval_by_hand(evidence):
    # every standard error is .25: 5 - .5 - 2 (2 + .5), 1 - .5 - 2 (3 + .5), 2 - .5 - 2 (1 + .5)
    found = Interval(guard=2.0, z=2.0).rank(evidence, "a", ["b", "c"])
    np.testing.assert_allclose(found.score, [[-0.5, -6.5], [-1.5, NAN]])


def written(tmp_path, scores, errors, settings):
    """Evidence of a file with ``scores``, ``errors`` and ``settings`` by topic."""
    ones = np.ones((1, 2), dtype=int)
    topics = {
        topic: TopicScores(
            np.array(scores[topic]),
            np.array(errors[topic]),
            ones,
            ones,
            np.zeros((2, 1, 2), dtype=np.float32),
            topic_attrs(**settings[topic]),
        )
        for topic in scores
    }
    write_scores(tmp_path / "w.h5", MODEL, topics, keep=False)
    return Evidence(ScoreFile(tmp_path / "w.h5"))


def test_interval_without_a_standard_error_is_the_score(tmp_path):
    scores, errors = {"a": [[9.0, 9.0]], "b": [[-3.0, 1.0]]}, {"a": [[NAN, 1.0]], "b": [[0.5, NAN]]}
    found = Interval(guard=2.0).rank(written(tmp_path, scores, errors, {"a": {}, "b": {}}), "a", ["b"])
    np.testing.assert_allclose(found.score, [[9.0 - 2 * 3.5, 8.0 - 2 * 1.0]])


@pytest.mark.parametrize(
    ("guard", "others", "said"),
    [(-1.0, ["b"], "at least 0"), (NAN, ["b"], "at least 0"), (1.0, ["a"], "against itself")],
)
def test_interval_refuses_what_guarded_refuses(evidence, guard, others, said):
    for own in (Interval(guard), Guarded(guard)):
        with pytest.raises(ShapleyError, match=said):
            own.rank(evidence, "a", others)


@pytest.mark.parametrize("name", ["contrast", "guarded", "interval"])
def test_topics_of_other_players_are_refused(tmp_path, name):
    ones = {"a": [[1.0, 1.0]], "b": [[1.0, 1.0]]}
    evidence = written(tmp_path, ones, ones, {"a": {}, "b": {"partition": "of another file"}})
    with pytest.raises(ShapleyError, match="scored with other players"):
        selector(name).rank(evidence, "a", ["b"])


@pytest.mark.parametrize("name", [name for name in NAMES if selector(name).compares])
def test_nothing_to_compare_with(evidence, name):
    with pytest.raises(ShapleyError, match=f"'{name}' holds a topic against others"):
        selector(name).rank(evidence, "a", [])


def test_every_selector_says_what_it_is():
    for name in NAMES:
        own = selector(name)
        assert own.name == name and own.source and own.reads in ("scores", "model", "scores or model")
    with pytest.raises(ShapleyError, match="did you mean 'guarded'"):
        selector("guardd")


@pytest.mark.parametrize(
    "module", ["selectors", "selectors.choose", "selectors.matched", "selectors.scores", "cli.cluster"]
)
def test_scores_are_selected_from_without_torch(module):
    code = f"import sys, shapley.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_scores_of_another_model_are_refused(evidence):
    with pytest.raises(ShapleyError, match="model"):
        Evidence(evidence.scores, tiny_lm("gpt2"))


def by_weights(lm, given, neurons):
    """Log-probability of one-token answers, with rows of the down-projection set to zero."""
    weights = [lm.sites.blocks[layer].down.weight for layer, _ in neurons]
    kept = [weight.detach().clone() for weight in weights]
    for weight, (_, column) in zip(weights, neurons, strict=True):
        weight.data[:, column] = 0
    values = []
    with torch.no_grad():
        for prompt in given:
            ids = lm.tokenizer(prompt.prompt + prompt.answer, return_tensors="pt")["input_ids"]
            values.append(float(lm.model(input_ids=ids).logits[0, -2].log_softmax(0)[ids[0, -1]]))
    for weight, old in zip(weights, kept, strict=True):
        weight.data.copy_(old)
    return np.array(values)


def rank_first(lm, neurons):
    score = np.zeros((lm.sites.n_layers, lm.sites.d_mlp))
    for i, pair in enumerate(neurons):
        score[pair] = 10.0 - i
    return Ranking(score, score)


def test_the_guard_is_chosen_by_what_its_cluster_does():
    lm = tiny_lm("llama")
    topics = {
        "sport": TopicPrompts("sport", (Prompt("sport", "the player won the", " race"), Prompt("sport", "a old", " coach"))),
        "music": TopicPrompts("music", (Prompt("music", "the singer sold a", " song"),)),
    }  # fmt: skip
    rng = np.random.default_rng(0)
    clusters = {
        float(guard): [(int(rng.integers(3)), int(c)) for c in rng.choice(24, 6, replace=False)] for guard in range(12)
    }
    rankings = {g: rank_first(lm, pairs) for g, pairs in clusters.items()}
    choice = choose_guard(lm, topics, "sport", rankings, 6)
    before = {name: by_weights(lm, own.prompts, []) for name, own in topics.items()}
    drops = {
        g: {name: (before[name] - by_weights(lm, own.prompts, pairs)).mean() for name, own in topics.items()}
        for g, pairs in clusters.items()
    }
    for g, drop in drops.items():
        assert choice.target[g] == pytest.approx(drop["sport"], abs=1e-5)
        assert choice.others[g] == pytest.approx(drop["music"], abs=1e-5)
    known = choose_guard(
        lm, topics, "sport", rankings, 6, intact=1 + np.concatenate([before["sport"], before["music"]])
    )
    assert known.target == pytest.approx({g: 1 + drop for g, drop in choice.target.items()}, abs=1e-5)
    specific = {g: d["sport"] for g, d in drops.items() if d["sport"] > 0 and d["music"] <= d["sport"] / 8}
    assert specific and choice.guard == max(specific, key=specific.get)
    unspecific = {g: rank_first(lm, clusters[g]) for g in clusters if g not in specific}
    choice = choose_guard(lm, topics, "sport", unspecific, 6)
    assert choice.guard == max(unspecific, key=lambda g: drops[g]["sport"] - 8 * max(0, drops[g]["music"]))


def test_of_equal_guards_the_smaller():
    lm = tiny_lm("llama")
    topics = {
        name: TopicPrompts(name, (Prompt(name, text, answer),))
        for name, text, answer in (("sport", "the player won the", " race"), ("music", "the singer sold a", " song"))
    }
    same = rank_first(lm, [(0, 1), (2, 3)])
    assert choose_guard(lm, topics, "sport", {8.0: same, 2.0: same, 4.0: same}, 2).guard == 2.0
    with pytest.raises(ShapleyError, match=r"'sports'.*did you mean 'sport'"):
        choose_guard(lm, topics, "sports", {1.0: same}, 2)
    with pytest.raises(ShapleyError, match="prompts of 'sport' only"):
        choose_guard(lm, {"sport": topics["sport"]}, "sport", {1.0: same}, 2)


class TestMatchedRandom:
    cluster = Cluster(((0, 10), (0, 11), (2, 40)), "mlp_hidden", {"fingerprint": "f00d"})
    norm = np.tile(np.arange(60.0), (3, 1))  # a neuron's norm is its place

    def drawn(self, seed=0, draw=1):
        return matched_random(self.cluster, self.norm, seed, draw)

    def test_every_one_of_the_nearest_is_drawn_and_no_other(self):
        first, second, third = (
            {own.neurons[i] for own in map(self.drawn, [0] * 400, range(400))} for i in range(len(self.cluster))
        )
        # 11 comes before 10, as its norm is larger; of 30 and 50, as near to 40, the earlier one
        near = {(0, column) for column in (*range(10), *range(12, 60))}
        by_distance = sorted(near, key=lambda place: (abs(place[1] - 11), place[1]))
        assert first == set(by_distance[:NEAREST])
        assert third == {(2, column) for column in range(30, 51) if column != 40}
        assert second <= set(sorted(near, key=lambda place: (abs(place[1] - 10), place[1]))[: NEAREST + 1])

    def test_as_many_in_each_layer_and_none_in_common(self):
        for draw in range(50):
            own = self.drawn(draw=draw)
            assert own.per_layer(3).tolist() == [2, 0, 1] and len(set(own.neurons)) == 3
            assert not set(own.neurons) & set(self.cluster.neurons)
            assert (own.site, own.model) == ("mlp_hidden", {"fingerprint": "f00d"})

    def test_keyed_by_seed_and_draw(self):
        assert self.drawn() == self.drawn()
        assert len({self.drawn(seed, draw).neurons for seed in range(3) for draw in range(3)}) == 9


@pytest.fixture(scope="module")
def files(model, tmp_path_factory):  # noqa: F811
    folder = tmp_path_factory.mktemp("selectors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURON_SHAPLEY_CACHE", str(folder))
        (folder / "p.jsonl").write_text("".join(json.dumps(prompt) + "\n" for prompt in PROMPTS))
        topics = read_prompts(folder / "p.jsonl")
        estimate(load_model(model), topics, folder / "s.h5", plan=Plan(samples=16), show=False)
    return {"{scores}": folder / "s.h5", "{model}": model, "{prompts}": folder / "p.jsonl"}


class TestCommand:
    @pytest.fixture
    def run(self, shapley, files, tmp_path):  # noqa: F811
        def call(*words):
            places = files | {"{out}": tmp_path / "c.json"}
            return shapley("cluster", *(places.get(word, word) for word in words))

        return call

    @pytest.mark.parametrize("name", NAMES)
    def test_every_selector_makes_a_cluster(self, run, name, tmp_path):
        words = () if selector(name).reads == "scores" else ("--model", "{model}", "--prompts", "{prompts}")
        code, _, err = run(
            "{scores}", *words, "--topic", "athlete", "--selector", name, "--top-k", "5", "--out", "{out}"
        )
        assert code == 0, err
        cluster = Cluster.load(tmp_path / "c.json")
        assert len(set(cluster.neurons)) == 5 and cluster.rule["selector"] == name
        assert cluster.rule.get("versus") == (["artist"] if selector(name).compares else None)

    def test_random_clusters_like_a_cluster(self, run, files, tmp_path):
        words = [
            "--model",
            "{model}",
            "--prompts",
            "{prompts}",
            "--topic",
            "artist",
            "--selector",
            "random",
            "--out",
            "{out}",
        ]
        like = tmp_path / "like.json"
        Cluster(((0, 3), (0, 7), (2, 1))).save(like)
        drawn = []
        for seed in ("1", "1", "2"):
            code, out, err = run(*words, "--like", str(like), "--seed", seed, "--overwrite")
            assert code == 0 and "3 neurons in 2 layers" in out, err
            drawn.append(Cluster.load(tmp_path / "c.json"))
        assert drawn[0] == drawn[1] != drawn[2] and drawn[0].rule["like"] == str(like)
        norm = activation_norm(load_model(files["{model}"]))
        assert drawn[0].neurons == matched_random(Cluster.load(like), norm, 1, 1).neurons
        Cluster(((0, 3),), model={"name": "other", "fingerprint": "f00d"}).save(tmp_path / "other.json")
        Cluster(((0, 3),), site="mlp_out").save(tmp_path / "out.json")
        for given, said in (
            (["--like", str(tmp_path / "other.json")], "belongs to another model"),
            (["--like", str(tmp_path / "out.json")], "columns of mlp_out"),
            (["--like", str(tmp_path / "none.json")], "no cluster file"),
            (["--like", str(like), "--top-k", "4"], "3"),
        ):
            code, _, err = run(*words, *given, "--overwrite")
            assert code == 2 and said in err and err.count("\n") == 1, err
        code, _, err = run(
            "{scores}", "--topic", "artist", "--like", str(like), "--top-k", "2", "--out", "{out}", "--overwrite"
        )
        assert code == 2 and "--selector random" in err

    def test_the_model_alone_is_enough(self, run, tmp_path):
        words = ["--model", "{model}", "--prompts", "{prompts}", "--topic", "artist", "--top-k", "4", "--out", "{out}"]
        code, _, err = run(*words, "--selector", "guarded-attribution", "--guard", "2")
        assert code == 0, err
        cluster = Cluster.load(tmp_path / "c.json")
        assert cluster.rule["guard"] == 2.0 and cluster.model["fingerprint"]

    def test_the_guard_by_trial(self, run, tmp_path):
        code, _, err = run(
            "{scores}", "--model", "{model}", "--prompts", "{prompts}", "--topic", "athlete", "--selector", "guarded",
            "--guard", "auto", "--top-k", "5", "--out", "{out}",
        )  # fmt: skip
        assert code == 0, err
        rule = Cluster.load(tmp_path / "c.json").rule
        assert set(rule["tried"]) == {"1", "2", "4", "8", "16"} and f"{rule['guard']:g}" in rule["tried"]

    def test_the_guard_by_trial_counts_groups(self, shapley, files, tmp_path):  # noqa: F811
        topics, scores = read_prompts(files["{prompts}"]), tmp_path / "g.h5"
        plan = Plan(estimator="permutation", samples=4)
        estimate(load_model(files["{model}"]), topics, scores, plan=plan, groups=parse_groups("blocks:8"), show=False)
        words = (
            "cluster", scores, "--model", files["{model}"], "--prompts", files["{prompts}"], "--topic", "athlete",
            "--selector", "guarded", "--guard", "auto", "--top-k", 2, "--out", tmp_path / "c.json",
        )  # fmt: skip
        code, _, err = shapley(*words)
        assert code == 0, err
        cluster, lm = Cluster.load(tmp_path / "c.json"), load_model(files["{model}"])
        assert len(cluster) == 16 and cluster.rule["of"] == "groups"
        own = topics["athlete"].prompts
        drop = by_weights(lm, own, []) - by_weights(lm, own, cluster.neurons)
        assert cluster.rule["tried"][f"{cluster.rule['guard']:g}"][0] == pytest.approx(drop.mean(), abs=1e-5)

    def test_the_site_is_of_what_was_read(self, shapley, files, tmp_path):  # noqa: F811
        topics, scores = read_prompts(files["{prompts}"]), tmp_path / "o.h5"
        estimate(
            load_model(files["{model}"]),
            topics,
            scores,
            impairment=Impairment(site="mlp_out"),
            plan=Plan(samples=4),
            show=False,
        )
        words = ("cluster", scores, "--model", files["{model}"], "--prompts", files["{prompts}"], "--topic", "athlete")
        for name, site in (("guarded", "mlp_out"), ("attribution", "mlp_hidden"), ("random", "mlp_hidden")):
            out = tmp_path / f"{name}.json"
            code, _, err = shapley(*words, "--selector", name, "--seed", 3, "--top-k", 5, "--out", out)
            assert code == 0, err
            assert Cluster.load(out).site == site
            assert Cluster.load(out).rule.get("seed") == (None if name == "guarded" else 3)
        rest = ("--selector", "guarded", "--guard", "auto", "--top-k", 5, "--out", tmp_path / "auto.json")
        code, _, err = shapley(*words, *rest)
        assert code == 0, err
        cluster, lm = Cluster.load(tmp_path / "auto.json"), load_model(files["{model}"])
        own = topics["athlete"].prompts
        before = by_weights(lm, own, [])
        for layer, column in cluster.neurons:  # a column of the output is zero if nothing is written into it
            down = lm.sites.blocks[layer].down
            down.weight.data[column] = 0
            assert down.bias is None
        drop = before - by_weights(lm, own, [])
        assert cluster.rule["tried"][f"{cluster.rule['guard']:g}"][0] == pytest.approx(drop.mean(), abs=1e-5)

    def test_without_a_selector_it_is_the_score_or_its_contrast(self, run, tmp_path):
        for words, name in (
            ([], "shapley"),
            (["--versus", "artist"], "guarded"),
            (["--versus", "artist", "--guard", "0"], "contrast"),
        ):
            assert (
                run("{scores}", "--topic", "athlete", "--top-k", "5", "--out", "{out}", "--overwrite", *words)[0] == 0
            )
            assert Cluster.load(tmp_path / "c.json").rule["selector"] == name

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (["--topic", "artist"], "nothing to select from"),
            (["--model", "{model}", "--topic", "artist"], "--model and --prompts go together"),
            (["{scores}", "--topic", "artist", "--selector", "attribution"], "'attribution' looks into the model"),
            (["--model", "{model}", "--prompts", "{prompts}", "--topic", "artist", "--selector", "shapley"], "reads scores"),
            (["{scores}", "--topic", "artist", "--selector", "guardd"], "did you mean 'guarded'"),
            (["{scores}", "--topic", "artisan", "--selector", "guarded"], "did you mean 'artist'"),
            (["{scores}", "--topic", "artist", "--selector", "guarded", "--versus", "artist"], "against itself"),
            (["{scores}", "--topic", "artist", "--selector", "guarded", "--versus", "athlet"], "did you mean 'athlete'"),
            (["{scores}", "--topic", "artist", "--selector", "shapley", "--versus", "athlete"], "by itself: leave --versus"),
            (["{scores}", "--topic", "artist", "--selector", "contrast", "--guard", "2"], "has no guard"),
            (["{scores}", "--topic", "artist", "--selector", "guarded", "--guard", "-1"], "at least 0, or auto"),
            (["{scores}", "--topic", "artist", "--selector", "guarded", "--guard", "auto"], "tries clusters on the model"),
            (["{scores}", "--topic", "artist", "--device", "cpu"], "--device goes with --model"),
            (["{scores}", "--topic", "artist", "--memory", "1GiB"], "--memory goes with --model"),
            (["{scores}", "--topic", "artist", "--guard", "auto"], "--guard goes with --versus"),
            (["{scores}", "--topic", "artist", "--guard", "2"], "--guard goes with --versus"),
        ],
    )  # fmt: skip
    def test_mistakes(self, run, tmp_path, words, said):
        code, out, err = run(*words, "--top-k", "3", "--out", "{out}")
        assert code == 2 and said in err and err.count("\n") == 1 and not out
        assert not (tmp_path / "c.json").exists()


def test_the_list(shapley):  # noqa: F811
    code, out, _ = shapley("selectors", "--json")
    assert code == 0 and [row["name"] for row in json.loads(out)] == list(NAMES)
    assert all(row["source"] in shapley("selectors")[1] for row in json.loads(out))
