"""experiments/specificity: what is measured against edited weights, and claims against plain computations on stored records."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from click.testing import CliRunner

import experiments.specificity.draw as draw_module
import experiments.specificity.run as run_module
from experiments.lab import commands
from experiments.lab.figures import drawn_from
from experiments.lab.scores import scored
from experiments.lab.texts import Texts
from experiments.specificity import page
from experiments.specificity.summary import Results
from shapley.clusters import select
from shapley.hf.scoring import RowScorer
from shapley.keyed import keyed_rng
from shapley.prompts import Prompt, TopicPrompts
from shapley.selectors import selector
from shapley.selectors.base import Evidence
from shapley.store import ScoreFile
from tests.tiny import WORDS, tiny_lm

TOPICS = ["sport", "music", "shop"]
SELECTORS = ["shapley", "guarded", "attribution", "guarded-attribution", "random", "knowledge-neurons"]
SMALL = {
    "topics": TOPICS, "watched": 3, "plain": 2, "null_watched": 2, "selectors": SELECTORS, "primary": 0.11,
    "same": {"guarded": [0.03, 0.11], "knowledge-neurons": [0.03], "random": [0.11]},
    "sizes": {"guarded": [0.2, 0.003, 0.03], "guarded-attribution": [0.2], "knowledge-neurons": [0.03]},
    "null_draws": {"guarded": 3, "knowledge-neurons": 2}, "budget": 192, "chosen_on": 2,
    "settings": {"knowledge-neurons": {"steps": 2, "prompts": 2}},
}  # fmt: skip
SIZES = {0.003: 1, 0.03: 2, 0.11: 8, 0.2: 14}  # neurons, of 3 layers of 24


def small_texts(lm):
    """Of each topic four prompts a set, all of their own words; the answer is the word that the model likes best."""

    def likeliest(topic, text):
        with torch.no_grad():
            logits = lm.model(input_ids=lm.tokenizer(text, return_tensors="pt")["input_ids"]).logits[0, -1]
        words = lm.tokenizer(" ".join(WORDS))["input_ids"]
        return Prompt(topic, text, f" {WORDS[int(logits[words].argmax())]}")

    def of(name):
        texts = {topic: keyed_rng(name, topic).choice(WORDS, (4, 4)) for topic in TOPICS}
        return {t: TopicPrompts(t, tuple(likeliest(t, " ".join(words)) for words in own)) for t, own in texts.items()}

    plain = [Prompt("plain", "the player", f" {answer}") for answer in ("won the race", "made a song", "was old")]
    return Texts(of("selection"), of("other"), of("same"), TopicPrompts("plain", tuple(plain)))


def watched_by(texts):
    """By setting, and by topic for random clusters, the prompts of SMALL, written out."""
    plain = list(texts.plain.prompts[:2])
    found = {
        setting: [p for topic in TOPICS for p in getattr(texts, setting)[topic].prompts[:3]] + plain
        for setting in ("other_keywords", "same_keywords")
    }
    few = {
        "sport": [("sport", 0), ("sport", 1), ("music", 0), ("shop", 0)],
        "music": [("music", 0), ("music", 1), ("sport", 1), ("shop", 1)],
        "shop": [("shop", 0), ("shop", 1), ("sport", 0), ("music", 0)],
    }
    return found | {t: [texts.other_keywords[topic].prompts[i] for topic, i in own] for t, own in few.items()}


def values(lm, model, prompts):
    """``[2, prompts]``: the answer's log-probability, mean over its tokens, and whether it is the likeliest; one by one."""
    found = []
    for prompt in prompts:
        ids = lm.tokenizer(prompt.prompt + prompt.answer, return_tensors="pt")["input_ids"]
        answer = lm.tokenizer(prompt.answer, return_tensors="pt")["input_ids"][0]
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, -1 - len(answer) : -1]
        logprob = logits.log_softmax(-1)[torch.arange(len(answer)), answer].mean()
        found.append((float(logprob), float((logits.argmax(-1) == answer).all())))
    return np.array(found).T


def zeroed(lm, neurons):
    """A copy of the model in which the neurons' columns of the down-projection are zero."""
    edited = copy.deepcopy(lm.model)
    for layer, column in neurons:
        edited.model.layers[layer].mlp.down_proj.weight.data[:, column] = 0
    return edited


def key_of(record):
    return tuple(record[name] for name in ("selector", "topic", "fraction", "setting", "draw"))


def wanted():
    """The keys of all records of SMALL, written out."""
    at = {("other_keywords", 0, name, 0.11) for name in SELECTORS}
    at |= {("other_keywords", 0, "guarded", fraction) for fraction in (0.003, 0.03, 0.2)}
    at |= {("other_keywords", 0, "guarded-attribution", 0.2), ("other_keywords", 0, "knowledge-neurons", 0.03)}
    at |= {("same_keywords", 0, "guarded", fraction) for fraction in (0.03, 0.11)}
    at |= {("same_keywords", 0, "knowledge-neurons", 0.03), ("same_keywords", 0, "random", 0.11)}
    at |= {("null", draw, "guarded", 0.11) for draw in (0, 1, 2, 3)}
    at |= {("null", draw, "knowledge-neurons", 0.11) for draw in (0, 1, 2)}
    return sorted((name, topic, fraction, setting, draw) for setting, draw, name, fraction in at for topic in TOPICS)


def test_the_experiment_end_to_end(monkeypatch, tmp_path, own_cache):
    """All of it on a tiny model, then once more from what is kept."""
    lm = tiny_lm("llama")
    lm.name = "smollm2"
    texts = small_texts(lm)
    outs = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    with monkeypatch.context() as patched:
        patched.setattr(commands.models, "load", lambda name, device=None: lm)
        patched.setattr(commands, "texts", lambda *args: texts)
        patched.setattr(commands.yaml, "safe_load", lambda text: {"small": SMALL})
        for out in outs:
            done = CliRunner().invoke(run_module.main, ["--out", str(out)])
            assert done.exit_code == 0, done.output
            patched.setattr("experiments.lab.scores.estimate", None)  # the second run has all scores, rankings and rows
            for name in ("values", "gradients"):
                patched.setattr(RowScorer, name, None)
        evidence = Evidence(ScoreFile(scored(lm, texts.selection, SMALL["budget"])), lm, texts.selection, seed=0)
        clusters = {key_of(vars(task)): task.neurons for task in run_module.plan(lm, evidence, SMALL)}
    first, second = map(Results.read, outs)
    assert first.records == second.records and first.head["files"] == second.head["files"]
    assert sorted(map(key_of, first.records)) == wanted()
    draws = [record["draw"] for record in first.records]
    assert draws == sorted(draws)  # random clusters last
    check_drops(lm, texts, first, clusters)
    check_random_clusters(first, clusters)
    check_own_clusters(first, evidence, clusters)
    monkeypatch.setattr("experiments.lab.effects._MATCHED_BOOTSTRAPS", 40)  # quicker: intervals are tested below
    check_pages(first, outs[0], tmp_path / "figures")


def check_drops(lm, texts, results, clusters):
    """Every record's are those of edited weights, on the prompts of its setting."""
    watched = watched_by(texts)
    topics = {name: [prompt.topic for prompt in prompts] for name, prompts in watched.items()}
    assert results.head["watched"] == {setting: topics[setting] for setting in ("other_keywords", "same_keywords")}
    assert results.head["null_watched"] == {topic: topics[topic] for topic in TOPICS}
    before = {name: values(lm, lm.model, prompts) for name, prompts in watched.items()}
    for record in results.records:
        on = record["topic"] if record["setting"] == "null" else record["setting"]
        drops = before[on] - values(lm, zeroed(lm, clusters[key_of(record)]), watched[on])
        np.testing.assert_allclose(record["drop"], drops[0], atol=1e-4)  # stored with four digits
        assert np.abs(record["drop"]).max() > 0.01
        assert record["accuracy_drop"] == (drops[1].tolist() if record["draw"] == 0 else None)


def check_random_clusters(results, clusters):
    """They hold as many neurons of each layer as the selector's own cluster, and none of it."""
    for record in results.records:
        own, neurons = clusters[key_of(record | {"draw": 0})], clusters[key_of(record)]
        per_layer = [sum(layer == where for layer, _ in neurons) for where in range(3)]
        assert sum(per_layer) == len(set(neurons)) == record["neurons"] == SIZES[record["fraction"]]
        assert per_layer == [sum(layer == where for layer, _ in own) for where in range(3)]
        assert record["layers"] == (per_layer if record["draw"] == 0 else None)
        assert not record["draw"] or not set(own) & set(neurons)
        assert own == clusters[key_of(record | {"draw": 0, "setting": "other_keywords"})]
    for name, draws in SMALL["null_draws"].items():
        for topic in TOPICS:
            drawn = {clusters[name, topic, 0.11, "null", draw] for draw in range(1, draws + 1)}
            assert len(drawn) == draws


def check_own_clusters(results, evidence, clusters):
    """They are the first of the selector's ranking, with its settings and the guard that was chosen."""
    for record in results.records:
        name, topic = record["selector"], record["topic"]
        guard = {"guard": record["guard"]} if name.startswith("guarded") else {}
        assert (record["guard"] in (1, 2, 4, 8, 16)) if guard else record["guard"] is None
        method = replace(selector(name), **guard, **SMALL["settings"].get(name, {}))
        if record["draw"] == 0 and record["setting"] == "other_keywords":
            ranking = method.rank(evidence, topic, [other for other in TOPICS if other != topic])
            assert clusters[key_of(record)] == select(ranking, top_k=record["neurons"])


def check_pages(results, source, figures):
    draw_module.draw(results, source, figures, "smollm2-small")
    drawn = sorted(figures.iterdir())
    assert len(drawn) == 5 and all(drawn_from(figure, source) for figure in drawn)
    other, same, smaller, matched, null = ([row[0] for row in table.rows] for table in page.tables(results))
    assert other == matched == SELECTORS and same == ["guarded", "random"]  # at the primary size
    assert smaller == null == ["guarded", "knowledge-neurons"]
    shown = draw_module.tables(results)
    assert shown.startswith(f"`{results.head['command']}`: {len(wanted())} clusters, ") and "| random |" in shown


def test_the_sizes_of_the_configuration_fit_together():
    """A fraction of ``same`` that is no size would not be measured, without a word."""
    sizes = yaml.safe_load((Path(run_module.__file__).parent / "config.yaml").read_text())
    assert list(sizes) == ["small", "cpu", "full"] and not sizes["full"]["settings"]
    for config in sizes.values():
        for of in ("same", "sizes", "null_draws", "settings"):
            assert set(config[of]) <= set(config["selectors"])
        for name in config["selectors"]:
            measured = [config["primary"], *config["sizes"].get(name, ())]
            assert set(config["same"].get(name, ())) <= set(measured) and len(set(measured)) == len(measured)
        assert config["null_watched"] <= config["watched"]


def numbered(counts, where="other"):
    """By topic, so many prompts, named after topic, place and set."""
    return {
        topic: TopicPrompts(topic, tuple(Prompt(topic, "the", " race", id=f"{topic}{i} {where}") for i in range(n)))
        for topic, n in counts.items()
    }


def some_texts(**counts):
    plain = numbered({"plain": 3})["plain"]
    return Texts(*(numbered(counts, where) for where in ("selection", "other", "same")), plain)


def names(prompts):
    return [prompt.id.split()[0] for prompt in prompts]


def test_clusters_are_watched_on_the_first_prompts_of_every_topic_and_on_plain_text():
    config = {"topics": ["b", "a"], "watched": 2, "plain": 1}
    texts = some_texts(a=3, b=3, c=3)
    for setting, where in (("other_keywords", "other"), ("same_keywords", "same")):
        found = run_module.watched(texts, setting, config)
        assert [prompt.id for prompt in found[:-1]] == [f"{own} {where}" for own in ("b0", "b1", "a0", "a1")]
        assert names(found[-1:]) == ["plain0"]
    assert run_module.topics_of(found) == ["b", "b", "a", "a", "plain"]


@pytest.mark.parametrize(
    ("watch", "topic", "wanted"),
    [
        (4, "a", "a0 a1 a2 a3 b0 c0 b1 c1"),
        (4, "b", "b0 b1 b2 b3 a1 c1 a2 c2"),  # from another prompt on
        (4, "c", "c0 c1 c2 c3 a2 b2 a3 b3"),
        (3, "a", "a0 a1 a2 b0 c0 b1"),  # as many as of its own, though the others do not come out even
        (3, "c", "c0 c1 c2 a2 b2 a0"),  # around again, among the first three
        (1, "b", "b0 a0 c0"),  # one of each at least
    ],
)
def test_random_clusters_are_watched_on_the_topics_own_prompts_and_as_many_of_the_others(watch, topic, wanted):
    found = run_module.few_watched(some_texts(a=5, b=5, c=5), topic, {"topics": ["a", "b", "c"], "null_watched": watch})
    assert names(found) == wanted.split() and all(prompt.id.endswith(" other") for prompt in found)


def test_a_topic_of_few_prompts_is_dealt_its_share():
    config = {"topics": ["a", "b", "c"], "null_watched": 4}
    texts = some_texts(a=5, b=1, c=5)
    assert names(run_module.few_watched(texts, "a", config)) == ["a0", "a1", "a2", "a3", "b0", "c0", "b0", "c1"]
    assert names(run_module.few_watched(texts, "b", config))[0] == "b0"


def stored(records, **head):
    """Results whose records are in no order."""
    order = np.random.default_rng(0).permutation(len(records))
    return Results({"seed": 0} | head, [records[i] for i in order])


def holm_by_hand(p):
    """The k-th smallest of m is the largest of (m - j + 1) times the j-th, j up to k, and 1 at most."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    found = [0.0] * len(p)
    for k, i in enumerate(order):
        found[i] = min(1.0, max((len(p) - j) * p[order[j]] for j in range(k + 1)))
    return found


def test_clusters_against_random_ones():
    """A selector far above all of its random clusters, one a little above, one that is like them."""
    rng = np.random.default_rng(1)
    topics = ["x", "y", "z"]
    null_watched = {"x": ["x", "x", "y", "z", "z"], "y": ["y", "x", "z"], "z": ["z", "z", "z", "x", "y"]}
    shift = {"guarded": 5.0, "like": 0.0, "above": 0.3}
    draws = {"guarded": 5, "like": 6, "above": 4}
    records, selectivity = [], {}
    for name, topic in itertools.product(shift, topics):
        for draw in range(draws[name] + 1):
            drop = rng.normal(size=len(null_watched[topic])).round(4)
            own = [value for value, of in zip(drop, null_watched[topic], strict=True) if of == topic]
            others = [value for value, of in zip(drop, null_watched[topic], strict=True) if of != topic]
            value = sum(own) / len(own) - sum(others) / len(others)
            if draw == 0:  # moved to where it is to be
                drop += (shift[name] - value) * np.array([of == topic for of in null_watched[topic]])
                value = shift[name]
            selectivity[name, topic, draw] = value
            of = {"selector": name, "topic": topic, "fraction": 0.1, "draw": draw, "drop": drop.tolist()}
            records.append(of | {"setting": "null"})
            records.append(of | {"setting": "other_keywords", "drop": [100.0]})  # is not looked at
    config = {"topics": topics, "selectors": ["above", "none", "guarded", "like"], "null_draws": draws}
    tested = stored(records, config=config, null_watched=null_watched).against_random()
    assert [own.selector for own in tested] == ["above", "guarded", "like"]
    for found in tested:
        n = draws[found.selector]
        own = {topic: selectivity[found.selector, topic, 0] for topic in topics}
        null = {topic: [selectivity[found.selector, topic, draw] for draw in range(1, n + 1)] for topic in topics}
        assert found.own == pytest.approx(own) and found.mean == pytest.approx(shift[found.selector])
        assert {topic: list(drawn) for topic, drawn in found.null.items()} == {
            topic: pytest.approx(drawn) for topic, drawn in null.items()
        }
        assert found.above == [topic for topic in topics if all(own[topic] > drawn for drawn in null[topic])]
        beaten = {topic: sum(drawn >= own[topic] for drawn in null[topic]) for topic in topics}
        assert found.single == {topic: pytest.approx((1 + n) / (1 + len(null[topic]))) for topic, n in beaten.items()}
        # Of all ways to take a member of each topic, its own and the random ones, the share with as large a sum.
        sums = np.array([sum(one) for one in itertools.product(*([own[topic], *null[topic]] for topic in topics))])
        share = float((sums >= sum(own.values()) - 1e-9).mean())
        assert found.p == pytest.approx(share, abs=4 * math.sqrt(share * (1 - share) / 10_000) + 1e-4)
        means = np.array([sum(one) / 3 for one in itertools.product(*null.values())])
        assert found.random.estimate == pytest.approx(means.mean())
        below, above = (means < found.random.low).mean(), (means > found.random.high).mean()
        assert below == pytest.approx(0.025, abs=0.015) and above == pytest.approx(0.025, abs=0.015)
    by_name = {own.selector: own for own in tested}
    assert by_name["guarded"].p < 0.01 < 0.3 < by_name["like"].p and by_name["guarded"].above == topics
    assert [own.adjusted for own in tested] == pytest.approx(holm_by_hand([own.p for own in tested]))


def own_clusters(name, setting, fraction, topics, drops):
    """A record for each topic's cluster; ``drops`` by topic."""
    return [
        {"selector": name, "topic": topic, "fraction": fraction, "setting": setting, "draw": 0, "neurons": 5, "drop": drops[i]}
        for i, topic in enumerate(topics)
    ]  # fmt: skip


def test_the_diagonal_is_tested_by_all_permutations_and_adjusted_over_the_selectors_of_the_setting():
    topics = ["x", "y", "z", "w"]
    watched = ["w", "x", "plain", "x", "y", "z", "z", "z"]
    rng = np.random.default_rng(3)
    drops = {name: rng.normal(size=(4, 8)) for name in ("one", "two", "three")}
    for name, diagonal in (("one", 3.0), ("two", 0.8)):
        drops[name] += diagonal * np.array([[of == topic for of in watched] for topic in topics])
    records = [
        record for name in drops for record in own_clusters(name, "other_keywords", 0.1, topics, drops[name].tolist())
    ]
    for name in ("three", "one"):
        records += own_clusters(name, "same_keywords", 0.1, topics, (-drops[name]).tolist())
    records += own_clusters("two", "same_keywords", 0.03, topics, drops["two"].tolist())
    config = {"topics": topics, "selectors": ["two", "three", "one"], "primary": 0.1}
    results = stored(records, config=config, watched=dict.fromkeys(("other_keywords", "same_keywords"), watched))
    for setting, fraction, sign, measured in (
        ("other_keywords", None, 1, ["two", "three", "one"]),
        ("same_keywords", None, -1, ["three", "one"]),
        ("same_keywords", 0.03, 1, ["two"]),
    ):
        found = results.effects(setting, fraction)
        assert [own.selector for own in found] == measured
        p = []
        for own in found:
            matrix = np.array(
                [[drop[np.array(watched) == of].mean() for of in topics] for drop in sign * drops[own.selector]]
            )
            np.testing.assert_allclose(own.matrix, matrix)
            np.testing.assert_allclose(own.plain, sign * drops[own.selector][:, 2])
            target, others = np.trace(matrix) / 4, (matrix.sum() - np.trace(matrix)) / 12
            assert own.target.estimate == pytest.approx(target) and own.others.estimate == pytest.approx(others)
            assert own.selectivity.estimate == pytest.approx(target - others)
            traces = [sum(matrix[i, order[i]] for i in range(4)) for order in itertools.permutations(range(4))]
            p.append(np.mean([trace >= np.trace(matrix) - 1e-9 for trace in traces]))
        assert [own.p for own in found] == pytest.approx(p)
        assert [own.adjusted for own in found] == pytest.approx(holm_by_hand(p))
    found = results.effects("other_keywords")
    assert found[2].p == pytest.approx(1 / 24) and found[1].p > 0.1  # clear, and by chance


def test_selectors_are_compared_where_they_cost_as_much():
    """Between the sizes that lie around the level, however the configuration orders them; differences are of the same
    prompts."""
    topics, watched = ["x", "y"], ["x", "x", "x", "y", "y", "y", "plain", "plain"]
    spread = np.array([-0.3, 0.0, 0.3])  # of a topic's prompts under its own cluster, the same for all clusters

    def clusters(name, fraction, own, other, rise):
        plain = [np.log1p(rise)] * 2
        drops = [[*own + spread, *[other] * 3, *plain], [*[other] * 3, *own + spread, *plain]]
        return own_clusters(name, "other_keywords", fraction, topics, [[float(x) for x in drop] for drop in drops])

    records = [
        *clusters("guarded", 0.01, 1.5, 0.2, 0.04), *clusters("guarded", 0.001, 0.5, 0.1, 0.01),
        *clusters("guarded", 0.03, 3.0, 0.6, 0.2),
        *clusters("better", 0.001, 1.0, 0.1, 0.01), *clusters("better", 0.01, 2.0, 0.2, 0.04),
        *clusters("costly", 0.01, 1.0, 0.4, 0.05),
    ]  # fmt: skip
    config = {
        "topics": topics, "selectors": ["better", "guarded", "costly"], "primary": 0.01,
        "sizes": {"guarded": [0.03, 0.001], "better": [0.001]},
    }  # fmt: skip
    results = stored(records, config=config, watched={"other_keywords": watched})
    assert results.sizes("guarded") == [0.001, 0.01, 0.03] and results.sizes("costly") == [0.01]
    better, ours, costly = results.at_damage(0.02)
    assert [own.selector for own in (better, ours, costly)] == ["better", "guarded", "costly"]
    way = (math.log(1.02) - math.log(1.01)) / (math.log(1.04) - math.log(1.01))
    assert ours.target.estimate == pytest.approx(0.5 + way) and ours.others.estimate == pytest.approx(0.1 + 0.1 * way)
    assert ours.selectivity.estimate == pytest.approx(0.4 + 0.9 * way)
    # Six prompts with that spread, three a topic: their mean's standard error, twice 1.96 of it wide.
    width = 2 * 1.96 * spread.std() / math.sqrt(6)
    assert ours.selectivity.high - ours.selectivity.low == pytest.approx(width, rel=0.15)
    assert ours.above.estimate == ours.above.low == ours.above.high == 0
    assert (better.above.estimate, better.above.low, better.above.high) == pytest.approx((0.5, 0.5, 0.5))
    share = math.log(1.02) / math.log(1.05)  # along the straight line from no neuron
    assert costly.target.estimate == pytest.approx(share) and costly.others.estimate == pytest.approx(0.4 * share)
    assert costly.above.estimate == pytest.approx(0.6 * share - 0.4 - 0.9 * way)
    assert (better.below, ours.below, costly.below) == (False, False, True)
    better, ours, costly = results.at_damage(0.1)
    way = (math.log(1.1) - math.log(1.04)) / (math.log(1.2) - math.log(1.04))
    assert ours.target.estimate == pytest.approx(1.5 + 1.5 * way) and not costly.below
    assert all(np.isnan(x.estimate) for own in (better, costly) for x in (own.target, own.selectivity, own.above))
