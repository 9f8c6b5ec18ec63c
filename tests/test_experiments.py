"""The experiments' tables, figures and report against the stored results; their parts against plain computations."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

import experiments.bases.draw as bases_draw
import experiments.bases.summary as bases
import experiments.ceiling.draw as ceiling_draw
import experiments.ceiling.summary as ceiling
import experiments.fragility.draw as fragility_draw
import experiments.fragility.summary as fragility
import experiments.harm.draw as harm_draw
import experiments.harm.summary as harm
import experiments.impairment_curves.draw as impairment_curves_draw
import experiments.impairment_curves.summary as impairment_curves
import experiments.removal.draw as removal_draw
import experiments.removal.summary as removal
import experiments.sandbagger.draw as sandbagger_draw
import experiments.sandbagger.summary as sandbagger
import experiments.sparse.draw as sparse_draw
import experiments.sparse.summary as sparse
import experiments.specificity.draw as specificity_draw
import experiments.specificity.summary as specificity
import experiments.variations.draw as variations_draw
import experiments.variations.summary as variations
from experiments import report
from experiments.lab import provenance
from experiments.lab import texts as texts_module
from experiments.lab.figures import drawn_from, save
from experiments.lab.measure import Ward
from experiments.lab.scores import SEED, SEMIVALUE, scored
from experiments.lab.tables import between, put_between
from experiments.lab.toxicity import Toxicity
from shapley.errors import ShapleyError
from shapley.estimators.registry import Plan
from shapley.impairment import Impairment
from shapley.prompts import Prompt, TopicPrompts
from shapley.runs import estimate
from shapley.store import ScoreFile
from tests.tiny import tiny_lm

ROOT = Path(__file__).parents[1]
DRAWN = [
    (specificity, specificity_draw),
    (variations, variations_draw),
    (removal, removal_draw),
    (impairment_curves, impairment_curves_draw),
    (fragility, fragility_draw),
    (ceiling, ceiling_draw),
    (sandbagger, sandbagger_draw),
    (harm, harm_draw),
    (bases, bases_draw),
    (sparse, sparse_draw),
]


def folder(module):
    return Path(module.__file__).parent


STORED = [(summary, draw, path) for summary, draw in DRAWN for path in sorted(folder(draw).glob("results/*-cpu.jsonl"))]


@pytest.mark.parametrize(("summary", "draw", "path"), STORED, ids=lambda x: getattr(x, "stem", ""))
def test_the_readme_holds_what_was_stored(summary, draw, path):
    readme = (folder(draw) / "README.md").read_text(encoding="utf-8")
    assert between(readme, path.stem) == draw.tables(summary.Results.read(path))


@pytest.mark.parametrize(("summary", "draw", "path"), STORED, ids=lambda x: getattr(x, "stem", ""))
def test_the_figures_were_drawn_from_what_is_stored(summary, draw, path):
    figures = sorted(folder(draw).glob(f"figures/{path.stem}-*.png"))
    assert figures and all(drawn_from(figure, path) for figure in figures)


def test_the_report_is_made_from_what_is_stored():
    stored = (ROOT / "docs" / "experiments.html").read_text(encoding="utf-8")
    sections = [section for page in report.PAGES for section in page.sections()]
    assert stored == report.render(sections, ROOT / "docs")
    assert all(picture.path.exists() for section in sections for picture in section.pictures)


def test_a_figure_tells_when_its_numbers_changed(tmp_path):
    from matplotlib.figure import Figure

    source = tmp_path / "results.jsonl"
    source.write_text("1")
    save(Figure(), tmp_path / "figure.png", source)
    assert drawn_from(tmp_path / "figure.png", source)
    source.write_text("2")
    assert not drawn_from(tmp_path / "figure.png", source)


def test_generated_parts():
    text = put_between("a\n<!-- x -->\nold\n<!-- end x -->\nb", "x", "new")
    assert text == "a\n<!-- x -->\nnew\n<!-- end x -->\nb" and between(text, "x") == "new"
    with pytest.raises(ShapleyError, match="no lines"):
        put_between(text, "y", "new")


def test_a_topic_is_scored_once_whichever_others_it_comes_with(monkeypatch, tmp_path, own_cache):
    lm = tiny_lm("llama")
    x, y, z, other = (
        TopicPrompts(
            topic, (Prompt(topic, f"the {word} won the", " race"), Prompt(topic, f"her {word} sold a", " song"))
        )
        for topic, word in zip("xyzy", ("player", "band", "team", "store"), strict=True)
    )
    asked = []

    def recorded(lm, topics, *args, **kwargs):
        asked.extend(topics)
        return estimate(lm, topics, *args, **kwargs)

    monkeypatch.setattr("experiments.lab.scores.estimate", recorded)
    one, two = (ScoreFile(scored(lm, chosen, 192)) for chosen in ({"x": x, "y": y}, {"y": y, "z": z}))
    assert asked == ["x", "y", "z"] and one.topics == ["x", "y"] and two.topics == ["y", "z"]
    plan = Plan(estimator="two-stage", semivalue=SEMIVALUE, budget=192, seed=SEED)
    together = estimate(lm, {"x": x, "y": y, "z": z}, tmp_path / "all.h5", plan=plan, impairment=Impairment("zero"))
    for found, topic in ((one, "x"), (one, "y"), (two, "y"), (two, "z")):
        assert np.array_equal(found[topic].score, together[topic].score)
    changed = ScoreFile(scored(lm, {"x": x, "y": other}, 192))
    assert asked == ["x", "y", "z", "y"] and not np.array_equal(changed["y"].score, one["y"].score)


def test_drops_are_those_of_edited_weights(monkeypatch, tmp_path):
    monkeypatch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path))
    lm = tiny_lm("llama")
    prompts = [Prompt("a", "the player won the", " race"), Prompt("b", "the band sold a", " song")]
    neurons = ((0, 3), (2, 5))
    ward = Ward(lm, prompts)
    drops = ward.drops(neurons)
    assert Ward(lm, prompts).drops(neurons).tolist() == drops.tolist() and list(tmp_path.rglob("output.pkl"))
    before = ward.values(())
    weights = [lm.sites.blocks[layer].down.weight for layer, _ in neurons]
    kept = [weight.clone() for weight in weights]
    for weight, (_, column) in zip(weights, neurons, strict=True):
        weight.data[:, column] = 0
    after = Ward(lm, [*prompts, Prompt("c", "a", " song")]).values(())[:, :2]  # other prompts: not from the cache
    for weight, old in zip(weights, kept, strict=True):
        weight.data.copy_(old)
    np.testing.assert_allclose(drops, before - after, atol=1e-5)
    assert np.abs(drops[0]).min() > 1e-4


def results_of(matrix, plain):
    """Results whose clusters, of two selectors, drop every prompt of a topic by the same amount."""
    topics = ["x", "y", "z"]
    watched = [topic for topic in topics for _ in range(4)] + ["plain"] * 2
    records = [
        {
            "selector": name, "topic": topic, "fraction": 0.01, "setting": "other_keywords", "draw": 0, "neurons": 5,
            "drop": np.repeat([*matrix[i], plain], [4, 4, 4, 2]).tolist(),
        }
        for name in ("guarded", "two") for i, topic in enumerate(topics)
    ]  # fmt: skip
    config = {
        "topics": topics,
        "primary": 0.01,
        "selectors": ["guarded", "two"],
        "null_draws": {"guarded": 19},
        "sizes": {},
    }
    nulls = [
        {"selector": "guarded", "topic": topic, "fraction": 0.01, "setting": "null", "draw": draw,
         "drop": [1.0 - draw / 100] * 2 + [0.0] * 2}
        for topic in topics for draw in range(20)
    ]  # fmt: skip
    head = {
        "config": config,
        "seed": 0,
        "watched": {"other_keywords": watched},
        "null_watched": {topic: [topic, topic, "other", "other"] for topic in topics},
    }
    return specificity.Results(head, records + nulls)


def test_effects_of_known_drops():
    matrix = np.array([[2.0, 0.1, 0.2], [0.0, 1.6, 0.0], [0.3, 0.3, 1.0]])
    [one, _] = results_of(matrix, 0.01).effects("other_keywords")
    assert one.target.estimate == pytest.approx(4.6 / 3) and one.others.estimate == pytest.approx(0.15)
    assert one.selectivity.estimate == pytest.approx(4.6 / 3 - 0.15)
    assert one.selectivity.low == pytest.approx(one.selectivity.high)  # all prompts of a topic are alike
    assert one.perplexity.estimate == pytest.approx(np.expm1(0.01))
    assert one.met == ("x", "y")  # z: neither 1.5 nats, nor an eighth
    assert one.adjusted == pytest.approx(2 * one.p)


def test_effects_with_plain_text_hurt():
    matrix = np.diag([2.0, 2.0, 2.0])
    assert results_of(matrix, 0.03).effects("other_keywords")[0].met == ()


def test_null_counts_the_random_clusters_that_are_as_selective():
    [one] = results_of(np.eye(3), 0.0).against_random()
    assert one.selector == "guarded" and one.mean == one.own["x"] == 1.0 and len(one.null["x"]) == 19
    assert one.above == ["x", "y", "z"]
    assert one.p == pytest.approx(1 / 20**3, abs=3e-4)  # all three at once
    assert one.random.estimate == pytest.approx(0.9) and 0.81 < one.random.low < 0.9 < one.random.high < 0.99


def test_drops_at_matched_damage_are_on_the_way_to_the_smallest_cluster_that_does_as_much():
    matrix = np.array([[2.0, 0.1, 0.2], [0.0, 1.6, 0.0], [0.3, 0.3, 1.0]])
    results = results_of(matrix, 2 * np.log1p(0.02))
    ours, two = results.at_damage(0.02)  # half of what the clusters cost
    assert (ours.selector, two.selector) == ("guarded", "two")
    assert ours.target.estimate == pytest.approx(4.6 / 3 / 2) and ours.others.estimate == pytest.approx(0.15 / 2)
    assert ours.selectivity.estimate == pytest.approx((4.6 / 3 - 0.15) / 2)
    assert (
        two.above == ours.above and ours.above.estimate == 0 == ours.above.high
    )  # the same clusters, the same prompts
    assert ours.below and np.isnan(results.at_damage(0.05)[0].selectivity.estimate)  # they never cost as much


def test_the_commit_says_when_code_was_not_as_in_it(monkeypatch, tmp_path):
    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], check=True, capture_output=True
        )

    monkeypatch.chdir(tmp_path)
    git("init")
    (tmp_path / "run.py").write_text("1\n")
    (tmp_path / "results.jsonl").write_text("1\n")
    git("add", ".")
    git("commit", "-m", "one")
    (tmp_path / "results.jsonl").write_text("2\n")  # what a run writes is no other code
    committed = provenance._commit()
    (tmp_path / "run.py").write_text("2\n")
    assert provenance._commit() == f"{committed}+" and not committed.endswith("+")


def test_toxicity_of_words():
    judge = Toxicity.of(["bad bad day", "bad thing"], ["good day", "good thing"])
    assert judge("bad") > 0 > judge("good") and judge("day") == pytest.approx(judge.log_odds["day"])
    assert judge("unheard") == 0.0
    assert judge.auc(["bad"], ["good"]) == 1.0 and judge.auc(["bad"], ["bad"]) == 0.5
    # (count + 1) / (words + vocabulary): three of five words are bad, none of four are
    assert judge.log_odds["bad"] == pytest.approx(np.log((3 + 1) / (5 + 4)) - np.log((0 + 1) / (4 + 4)))


def write_corpora(folder):
    """Topics of six words each, the experiments' and one that is not tested; comments of two kinds."""
    rng = np.random.default_rng(0)
    letters = list("bcdfghklmnprst")

    def words():
        return ["".join(rng.choice(letters, 7)) for _ in range(6)]

    def texts(own, n=40):
        return [
            f"on day {i} the long old road in the town was empty and a {own[i % 6]} came home to the "
            f"{own[(i + 1) % 6]} of all the people there with the new one"
            for i in range(n)
        ]

    (folder / "dbpedia14").mkdir()
    (folder / "toxicity").mkdir()
    passages = [f"{topic},{text}" for topic in (*texts_module.DBPEDIA_TOPICS, "Village") for text in texts(words())]
    (folder / "dbpedia14" / "passages.csv").write_text("\n".join(["topic,text", *passages]))
    comments = [f"{text},{label}" for label in ("Toxic", "Not Toxic") for text in texts(words())]
    (folder / "toxicity" / "comments.csv").write_text("\n".join(["text,is_toxic", *comments]))


def test_the_texts_of_the_experiments(monkeypatch, tmp_path, own_cache):
    monkeypatch.setattr(texts_module, "LEAST_LOGPROB", -100.0)  # a random model expects no keyword
    write_corpora(tmp_path)
    lm = tiny_lm("llama")
    found = texts_module.texts(lm, tmp_path, per_topic=4, n_plain=3)
    assert len(found.plain) == 3 and all("Village" in prompt.id for prompt in found.plain.prompts)
    for topic in texts_module.TOPICS:
        selection, other, same = (
            held[topic].prompts for held in (found.selection, found.other_keywords, found.same_keywords)
        )
        assert all(0 < len(prompts) <= 4 for prompts in (selection, other, same))
        assert not {p.source for p in selection} & {p.source for p in (*other, *same)}
        assert not {p.answer for p in selection} & {p.answer for p in other}
    with monkeypatch.context() as kept:
        kept.setattr(texts_module, "_build", None)
        again = texts_module.texts(lm, tmp_path, per_topic=4, n_plain=3)
    assert again == found
    path = texts_module.corpora(tmp_path)["passages"]
    path.write_text(path.read_text().replace("empty", "quiet"))
    other = texts_module.texts(lm, tmp_path, per_topic=4, n_plain=3)
    assert (
        "quiet" in other.selection["Film"].prompts[0].prompt
        and "quiet" not in found.selection["Film"].prompts[0].prompt
    )


def test_texts_that_are_not_there(tmp_path, own_cache):
    with pytest.raises(ShapleyError, match=r"no corpus at .*--data"):
        texts_module.texts(tiny_lm("llama"), tmp_path)
    with pytest.raises(ShapleyError, match=r"no comments at .*--data"):
        texts_module.comments(tmp_path)
