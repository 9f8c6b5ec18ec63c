"""impairment-curves on a tiny model: what it stores against a plain computation from the sweeps, and its figures."""

from __future__ import annotations

import json

import numpy as np
import pytest

import experiments.impairment_curves.draw as drawing
from experiments.impairment_curves import run, shapes
from experiments.impairment_curves.originals import ORIGINALS, clusters_of, watched
from experiments.impairment_curves.page import falls_before, section
from experiments.impairment_curves.shapes import by_prompt, clusters_in, fit
from experiments.impairment_curves.summary import Place, Results, fitted
from experiments.lab.figures import drawn_from
from experiments.lab.measure import Ward
from experiments.lab.texts import Texts
from shapley.curves import Curve
from shapley.errors import ShapleyError
from shapley.estimators.registry import Plan
from shapley.prompts import Prompt, TopicPrompts
from shapley.records import read_sweep
from shapley.runs import estimate
from shapley.store import ScoreFile
from tests.tiny import tiny_lm

TOPICS = ["Athlete", "Artist", "Company", "toxic", "harmless"]
CONFIG = {
    "budget": 192,
    "topics": TOPICS,
    "tests": {1: ["mlp_out"], 2: ["mlp_hidden", "mlp_in"], 3: ["mlp_in"]},
    "kinds": ["noise", "shift", "scale"],
    "clusters": ["shapley", "guarded"],
    "fraction": 0.1,
    "prompts": 5,
    "plain": 2,
    "strengths": {"noise": [0.5, 1, 4], "scale": [0.25, 0.5, 1]},
    "seeds": 2,
    "random": 2,
}


def topic_prompts(topic, answers):
    texts = ("the player and coach of the", "a new song was")
    pairs = [(f"{text} {topic.lower()}", answer) for answer in answers for text in texts]
    return TopicPrompts(topic, tuple(Prompt(topic, text, f" {answer}") for text, answer in pairs))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The experiment run on a tiny model: the model, prompts, scores, stored file and the folder of its sweeps."""
    folder = tmp_path_factory.mktemp("curves")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURON_SHAPLEY_CACHE", str(folder / "cache"))
        patch.setattr(shapes, "_BOOTSTRAPS", 20)
        lm = tiny_lm("llama")
        answers = (("race", "song"), ("club", "team"), ("band", "old"))
        sides = [{topic: topic_prompts(topic, words) for topic in TOPICS} for words in answers]
        plain = [Prompt("plain", "the a", " new club and race"), Prompt("plain", "his old", " city was")]
        prompts = Texts(*sides, TopicPrompts("plain", tuple(plain)))
        scores = folder / "scores.h5"
        estimate(lm, prompts.selection, scores, plan=Plan(estimator="gradient", samples=4), show=False)
        records = list(run.measure(lm, prompts, ScoreFile(scores), CONFIG))
        again = list(run.measure(lm, prompts, ScoreFile(scores), CONFIG))
    assert records == again
    head = {
        "command": "run",
        "seconds": 1,
        "hardware": "none",
        "time": "now",
        "model": {"name": "tiny"},
        "config": CONFIG,
    }
    path = folder / "tiny-cpu.jsonl"
    path.write_text("".join(json.dumps(line, allow_nan=False) + "\n" for line in [head, *records]))
    return lm, prompts, ScoreFile(scores), path, folder / "cache" / "experiments" / "sweeps"


def test_what_is_measured(measured):
    *_, path, sweeps = measured
    results = Results.read(path)
    assert results.places == [
        Place(1, "noise", "mlp_out"),
        Place(1, "scale", "mlp_out"),
        *(Place(2, kind, site) for site in ("mlp_hidden", "mlp_in") for kind in ("noise", "shift", "scale")),
        Place(3, "noise", "mlp_in"),
        Place(3, "scale", "mlp_in"),
    ]
    arms = ["shapley", "shapley/random", "guarded", "guarded/random", "everything"]
    assert list(results.arms()) == arms
    fits = [record for record in results.records if record["record"] == "fit"]
    assert len(fits) == len(results.places) * len(arms) * 4
    assert len(results.records) == len(fits) * (1 + 4)
    # A file for each place, and the floors of the two sets of prompts: tests 1 and 3 share theirs.
    assert len(list(sweeps.iterdir())) == len(results.places) + 2


def sweep_at(sweeps, place, topics):
    """The stored sweep of a place, found by what it holds."""
    files = sweeps.glob(f"*-{place.kind}-{place.site}-*.h5")
    return next(
        found for found in map(read_sweep, files) if set(found.records) == set(topics) and len(found.clusters) > 1
    )


def test_curves_are_means_of_the_sweeps(measured):
    *_, path, sweeps = measured
    results = Results.read(path)
    place = Place(2, "noise", "mlp_hidden")
    sweep = sweep_at(sweeps, place, results.topics(2))
    one = sweep.records["Athlete"][0, sweep.clusters.index("guarded")]  # log-probability, [strength, seed, prompt]
    assert one.shape == (4, 2, 5)
    loss = results.loss(place, "guarded", "Athlete")
    np.testing.assert_allclose(loss.mean, -one.mean(axis=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(
        loss.high - loss.mean, 1.96 * one.mean(axis=1).std(axis=1, ddof=1) / np.sqrt(5), atol=3e-5
    )
    assert loss.strengths.tolist() == [0, 0.5, 1, 4]
    right = sweep.records["Athlete"][2, sweep.clusters.index("guarded")].mean(axis=1)
    accuracy = results.accuracy(place, "guarded", "Athlete")
    np.testing.assert_allclose(accuracy.mean, right.mean(axis=1), atol=1e-5)
    assert accuracy.low.min() >= 0 and accuracy.high.max() <= 1 and (accuracy.low <= accuracy.mean).all()
    both = sweep.records["Athlete"][0, [sweep.clusters.index(f"guarded/random-{draw}") for draw in (1, 2)]]
    np.testing.assert_allclose(
        results.loss(place, "guarded/random", "Athlete").mean, -both.mean(axis=(0, 2, 3)), atol=1e-5
    )
    point = next(r for r in results.records if r["record"] == "curve" and r["topic"] == "plain" and r["strength"] == 4)
    own = sweep_at(sweeps, Place(1, "noise", "mlp_out"), results.topics(1))
    assert point["loss"] == pytest.approx(-own.records["plain"][1, 0, -1].mean(), abs=1e-5)
    assert point["accuracy"] == pytest.approx(own.records["plain"][2, 0, -1].mean())


def test_floors_are_those_of_a_model_without_neurons(measured):
    lm, prompts, _, path, _ = measured
    own = watched(prompts, ORIGINALS[2], CONFIG)["Artist"]
    everything = [(layer, column) for layer in range(lm.sites.n_layers) for column in range(lm.sites.d_mlp)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURON_SHAPLEY_CACHE", str(path.parent / "other"))
        zero = Ward(lm, own.prompts).values(everything)[0].mean()
    floor = Results.read(path).fit(Place(2, "scale", "mlp_in"), "everything", "Artist")["floor"]
    assert floor == pytest.approx(zero, abs=1e-2)  # sweeps may run in bfloat16


def test_clusters_and_prompts_of_the_tests(measured):
    lm, prompts, scores, *_ = measured
    by_layer = clusters_of(lm, scores, ORIGINALS[1], CONFIG)
    assert all(cluster.per_layer(3).tolist() == [2, 2, 2] for cluster in by_layer.values())  # a tenth of 24
    best = clusters_of(lm, scores, ORIGINALS[2], CONFIG)["shapley"]
    order = np.argsort(-scores.array("Athlete", "score").ravel())[:7]
    assert {24 * layer + column for layer, column in best.neurons} == set(order.tolist())
    found = watched(prompts, ORIGINALS[1], CONFIG)
    assert list(found) == ["harmless", "toxic", "Athlete", "plain"]
    assert [prompt.answer for prompt in found["toxic"].prompts] == [" club", " club", " team", " team", " band"]


def test_shape_of_a_known_curve():
    strengths = np.array([0.0, 1.0, 2.0, 4.0])
    mean = np.array([-1.0, -2.0, -4.0, -3.0])  # the last two are pooled at -3.5
    found = fit(strengths, mean[:, None] + np.array([0.0, 0.0]), floor=-5.0)
    assert found["r2"] == pytest.approx(1 - 0.5 / ((mean - mean.mean()) ** 2).sum(), abs=1e-5)
    assert found["id50"] == pytest.approx(1 + 1 / 1.5, abs=1e-5)  # -3 is half of the way to the floor
    assert not found["censored"] and found["id50_low"] == found["id50_high"] == found["id50"]
    shallow = fit(strengths, np.array([[-1.0], [-1.1], [-1.2], [-1.3]]), floor=-5.0)
    assert shallow["censored"] and shallow["id50"] == 4 and shallow["slope"] is None and shallow["id50_low"] is None
    lost = fit(strengths, mean[:, None], floor=-1.0)
    assert lost["id50"] is None and lost["r2"] == found["r2"]
    assert fitted(Curve(strengths, -mean, -mean, -mean)).tolist() == [1, 2, 3.5, 3.5]


def test_the_strength_that_takes_nearly_all():
    def results(*logprobs):
        where = {"test": 2, "kind": "scale", "site": "mlp_hidden", "cluster": "guarded", "topic": "Athlete"}
        points = [
            {"record": "curve", **where, "strength": strength, "logprob": value, "logprob_stderr": 0.0}
            for strength, value in enumerate(logprobs)
        ]
        return Results({}, [*points, {"record": "fit", **where, "floor": -5.0}])

    place = Place(2, "scale", "mlp_hidden")
    dose = results(-1.0, -3.0, -5.0).id95(place, "guarded", "Athlete")  # -4.8 is 5% above the floor
    assert dose.value == pytest.approx(1.9) and not dose.censored
    assert results(-1.0, -3.0, -4.0).id95(place, "guarded", "Athlete").censored
    assert results(-5.5, -5.5, -6.0).id95(place, "guarded", "Athlete") is None


def test_smoothness_is_of_plain_text_with_everything_impaired(measured):
    *_, path, sweeps = measured
    results = Results.read(path)
    found = {(one.kind, one.site): one for one in results.smoothness()}
    assert set(found) == {("noise", "mlp_out"), ("scale", "mlp_out")} | {
        (kind, site) for kind in ("noise", "shift", "scale") for site in ("mlp_hidden", "mlp_in")
    }
    sweep = sweep_at(sweeps, Place(2, "scale", "mlp_hidden"), results.topics(2))
    assert clusters_in(sweep) == list(results.arms())
    loss = -by_prompt(sweep, "plain", "everything", "logprob").mean(axis=1)
    one = found["scale", "mlp_hidden"]
    assert one.rise == pytest.approx(loss[-1] - loss[0], abs=2e-5)
    left = ((loss - fitted(Curve(sweep.strengths, loss, loss, loss))) ** 2).sum()
    explained = 1 - left / ((loss - loss.mean()) ** 2).sum()
    assert one.general.estimate == pytest.approx(explained, abs=1e-5) and one.holds == (explained >= 0.95)
    assert len(one.clusters) == 2 * 4  # clusters and topics of test 2
    assert len(found["noise", "mlp_in"].clusters) == 2 * 2 * 4  # and of test 3


def test_figures_and_tables(measured, tmp_path):
    *_, path, _ = measured
    results = Results.read(path)
    drawing.draw(results, path, tmp_path / "figures", "tiny-cpu")
    names = {figure.name for figure in (tmp_path / "figures").iterdir()}
    assert names == {"tiny-cpu-smooth.png"} | {
        f"tiny-cpu-test-{test}-{what}.png" for test in (1, 2, 3) for what in ("shapley", "guarded", "accuracy")
    }
    assert all(drawn_from(figure, path) for figure in (tmp_path / "figures").iterdir())
    tables = drawing.tables(results)
    assert tables.count("| yes |") + tables.count("| no |") == 8
    assert "| noise | guarded/random | 3 |" in tables and "toxic (5 prompts)" in tables and "nan" not in tables
    assert tables.count("| ID95 | slope at ID50 | area |") == 3
    part = section(results, "tiny-cpu")
    assert {picture.path.name for picture in part.pictures} == names and len(part.answers) == 4


def test_falling_before_is_by_intervals_that_do_not_overlap():
    own = {"id50": 1.0, "id50_low": 0.5, "id50_high": 2.0, "censored": False}
    assert falls_before(own, own | {"id50_low": 2.1, "id50": 3.0}) and not falls_before(own, own)
    assert falls_before(own, own | {"id50_low": 5.0, "id50": 5.0, "censored": True})
    assert not falls_before(own | {"censored": True}, own | {"id50_low": 2.1}) and not falls_before(own, {"id50": None})


def test_no_results_yet(tmp_path):
    with pytest.raises(ShapleyError, match=r"no results at .*impairment_curves.run makes them"):
        Results.read(tmp_path / "none.jsonl")
