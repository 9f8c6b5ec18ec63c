"""Sweeps on tiny models: what is recorded equals rows scored by hand, interrupted work goes on with the same numbers, and
clusters find their footprint."""

from __future__ import annotations

import copy
import json
import re
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from shapley import sweeps
from shapley.clusters import Cluster
from shapley.errors import ShapleyError
from shapley.footprint import footprint
from shapley.hf.hooks import Rows, impair
from shapley.hf.scoring import RowScorer
from shapley.impairment import Impairment
from shapley.prompts import Prompt, TopicPrompts
from shapley.records import read_sweep
from shapley.store import write_checkpoint
from tests.tiny import tiny_lm

TOPICS = {
    topic: TopicPrompts(topic, tuple(Prompt(topic, *texts) for texts in prompts))
    for topic, prompts in {
        "athlete": [("the player won his last", " race"), ("a coach of the old team", " club is new")],
        "artist": [("she sang her first", " song"), ("the painter sold a", " large album"), ("guitar", " player")],
    }.items()
}
PROMPTS = [prompt for group in TOPICS.values() for prompt in group.prompts]
CLUSTER = Cluster(((0, 3), (0, 7), (2, 20)))
ARMS = ["c", "c/random-1", "c/random-2", "everything"]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def lm():
    return tiny_lm("llama")


def run(lm, out, impairment=None, strengths=(0.5, 1.0), clusters=None, topics=TOPICS, **options):
    clusters = {"c": CLUSTER, "everything": None} if clusters is None else clusters
    options = {"n_seeds": 2, "n_random": 2, "dtype": "float32", "show": False} | options
    return sweeps.sweep(lm, topics, clusters, impairment or Impairment("noise", seed=5), strengths, out, **options)


def by_hand(lm, prompt, impairment=None, cluster=None, draw=0, model=None):
    """Log-probability, loss and accuracy of one prompt, one forward pass by itself."""
    model = model or lm.model
    n = len(lm.tokenizer(prompt.answer)["input_ids"])
    ids = torch.tensor([lm.tokenizer(prompt.prompt + prompt.answer)["input_ids"]])
    rows = Rows(prompt_keys=[prompt.key], draws=[draw])
    with torch.no_grad(), impair(lm, impairment, cluster, rows=rows) if impairment else nullcontext():
        logits = model(input_ids=ids, use_cache=False).logits[0, -n - 1 : -1]
    each = logits.log_softmax(1).gather(1, ids[0, -n:, None])[:, 0]
    return each.mean().item(), -each.sum().item(), float((logits.argmax(1) == ids[0, -n:]).all())


def expected(lm, prompts, **options):
    return np.array([by_hand(lm, prompt, **options) for prompt in prompts]).T


def measured(sweep, cluster, level, seed=0):
    """``[metric, prompt]`` of all topics."""
    names = ("logprob", "loss", "accuracy")
    return np.array(
        [np.concatenate([sweep.metric(topic, cluster, name)[level, seed] for topic in TOPICS]) for name in names]
    )


def assert_same_records(one, two):
    assert one.records.keys() == two.records.keys()
    for topic in one.records:
        np.testing.assert_array_equal(one.records[topic], two.records[topic])
    assert (one.clusters, one.sizes) == (two.clusters, two.sizes)


def test_shapes_names_and_sizes(lm, tmp_path):
    found = run(lm, tmp_path / "s.h5", strengths=[1.0, 0.5])
    assert found.clusters == ARMS
    assert found.sizes == [3, 3, 3, 72]
    assert found.strengths.tolist() == [0.0, 0.5, 1.0]
    assert {topic: records.shape for topic, records in found.records.items()} == {
        "athlete": (3, 4, 3, 2, 2),
        "artist": (3, 4, 3, 2, 3),
    }
    assert not any(np.isnan(records).any() for records in found.records.values())
    assert_same_records(read_sweep(tmp_path / "s.h5"), found)
    assert [path.name for path in tmp_path.glob("s.h5*")] == ["s.h5"]


@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_strength_zero_is_the_untouched_model_for_every_arm_and_seed(family, tmp_path):
    lm = tiny_lm(family)
    found = run(lm, tmp_path / "s.h5")
    untouched = expected(lm, PROMPTS)
    for arm in ARMS:
        for seed in range(2):
            np.testing.assert_allclose(measured(found, arm, 0, seed), untouched, atol=1e-5)


def test_every_record_is_the_row_scored_by_itself(lm, tmp_path):
    """So a seed adds the same noise whatever the strength, the cluster, and what else is swept."""
    impairment = Impairment("noise", seed=5)
    found = run(lm, tmp_path / "s.h5", impairment)
    for arm, cluster in (("c", CLUSTER), ("everything", None)):
        for level, strength in ((1, 0.5), (2, 1.0)):
            for seed in range(2):
                rows = expected(lm, PROMPTS, impairment=impairment.at(strength), cluster=cluster, draw=seed)
                np.testing.assert_allclose(measured(found, arm, level, seed), rows, atol=1e-4)
    assert np.abs(measured(found, "everything", 1, 0) - measured(found, "everything", 1, 1)).max() > 1e-3


def test_a_cluster_of_all_neurons_is_everything(lm, tmp_path):
    whole = Cluster(tuple(np.ndindex(3, 24)))
    found = run(lm, tmp_path / "s.h5", clusters={"whole": whole, "everything": None}, n_random=0)
    for level in (1, 2):
        np.testing.assert_allclose(measured(found, "whole", level), measured(found, "everything", level), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_zero_ablation_equals_editing_the_weights(family, tmp_path):
    lm = tiny_lm(family)
    edited = copy.deepcopy(lm.model)
    for layer, neuron in CLUSTER.neurons:
        with torch.no_grad():
            if family == "llama":
                edited.model.layers[layer].mlp.down_proj.weight[:, neuron] = 0
            else:
                edited.transformer.h[layer].mlp.c_proj.weight[neuron] = 0
    found = run(lm, tmp_path / "s.h5", Impairment("zero"), strengths=[1.0])
    np.testing.assert_allclose(measured(found, "c", 1), expected(lm, PROMPTS, model=edited), atol=1e-5)
    assert np.abs(measured(found, "c", 1) - measured(found, "c", 0)).max() > 1e-3


@pytest.mark.parametrize(
    ("kind", "n_seeds"),
    [("zero", 1), ("scale", 1), ("mean", 1), ("noise", 3), ("negative-noise", 3), ("shift", 3), ("resample", 3)],
)
def test_where_nothing_is_drawn_one_seed_is_run(lm, tmp_path, kind, n_seeds):
    athletes = {"athlete": TOPICS["athlete"]}
    options = {"clusters": {"c": CLUSTER}, "topics": athletes, "n_random": 0, "n_seeds": 3}
    found = run(lm, tmp_path / "s.h5", Impairment(kind), [1.0], **options)
    values = found.metric("athlete", "c")[1]
    assert values.shape == (n_seeds, 2)
    assert len(np.unique(values[:, 0])) == n_seeds


class TestUnits:
    def test_absolute(self, lm, tmp_path):
        found = run(lm, tmp_path / "s.h5")
        assert found.absolute.tolist() == [[0.0] * 3, [0.5] * 3, [1.0] * 3]

    def test_standard_deviations_are_those_of_each_layer(self, lm, tmp_path):
        cluster = {"c": Cluster(((1, 2), (1, 9)))}
        in_units = run(lm, tmp_path / "sd.h5", Impairment("noise", unit="sd"), [0.5], cluster)
        spread = lm.statistics("mlp_hidden").site_std.tolist()
        np.testing.assert_allclose(in_units.absolute, [[0] * 3, [0.5 * x for x in spread]], rtol=1e-6)
        absolute = run(lm, tmp_path / "absolute.h5", Impairment("noise"), [0.5 * spread[1]], cluster)
        np.testing.assert_allclose(measured(in_units, "c", 1), measured(absolute, "c", 1), atol=1e-4)


class Stop:
    """A scorer that raises at its ``at``-th call, and counts."""

    def __init__(self, monkeypatch, at=None, error=KeyboardInterrupt):
        original = RowScorer.values
        self.calls = 0

        def values(scorer, *args, **options):
            self.calls += 1
            if self.calls == at:
                raise error
            return original(scorer, *args, **options)

        monkeypatch.setattr(RowScorer, "values", values)


class TestResume:
    """One call for the untouched model, then one for each of two strengths of each of four arms."""

    @pytest.mark.parametrize(("at", "rows", "left"), [(1, 0, 9), (3, 10, 7), (4, 20, 6), (7, 50, 3), (9, 70, 1)])
    def test_interrupted_work_goes_on_with_the_same_records(self, lm, tmp_path, monkeypatch, at, rows, left):
        whole = run(lm, tmp_path / "whole.h5")
        with monkeypatch.context() as patch:
            Stop(patch, at)
            with pytest.raises(ShapleyError, match=f"interrupted after {rows} of 80 rows.*--resume"):
                run(lm, tmp_path / "s.h5")
        assert [path.name for path in tmp_path.glob("s.h5*")] == ["s.h5.checkpoint"]
        counter = Stop(monkeypatch)
        assert_same_records(run(lm, tmp_path / "s.h5", resume=True), whole)
        assert_same_records(read_sweep(tmp_path / "s.h5"), whole)
        assert counter.calls == left
        assert [path.name for path in tmp_path.glob("s.h5*")] == ["s.h5"]

    def test_after_a_crash_the_last_checkpoint_counts(self, lm, tmp_path, monkeypatch):
        whole = run(lm, tmp_path / "whole.h5")
        with monkeypatch.context() as patch:
            patch.setattr(sweeps, "CHECKPOINT_SECONDS", -1.0)
            Stop(patch, 7, MemoryError)
            with pytest.raises(MemoryError):
                run(lm, tmp_path / "s.h5")
        counter = Stop(monkeypatch)
        assert_same_records(run(lm, tmp_path / "s.h5", resume=True), whole)
        assert counter.calls == 3

    CHANGES = (
        ("strengths", {"strengths": (0.5, 2.0)}),
        ("seeds", {"n_seeds": 3}),
        ("clusters", {"clusters": {"c": Cluster(((0, 4),)), "everything": None}}),
        ("clusters", {"n_random": 1}),
        ("impairment", {"impairment": Impairment("negative-noise", seed=5)}),
        ("prompts", {"topics": {"athlete": TOPICS["athlete"]}}),
        ("dtype", {"dtype": "bfloat16"}),
    )

    @pytest.mark.parametrize(("name", "change"), CHANGES)
    def test_a_checkpoint_of_other_settings_is_refused_by_name(self, lm, tmp_path, monkeypatch, name, change):
        with monkeypatch.context() as patch:
            Stop(patch, 2)
            with pytest.raises(ShapleyError, match="interrupted"):
                run(lm, tmp_path / "s.h5")
        with pytest.raises(ShapleyError, match=rf"cannot resume: .*checkpoint was made with {name} = "):
            run(lm, tmp_path / "s.h5", resume=True, **change)

    @pytest.mark.parametrize(("name", "change"), CHANGES)
    def test_a_finished_file_of_other_settings_is_refused_by_name(self, lm, tmp_path, name, change):
        run(lm, tmp_path / "s.h5")
        before = (tmp_path / "s.h5").read_bytes()
        with pytest.raises(ShapleyError, match=rf"cannot resume: .*s\.h5 was made with {name} = "):
            run(lm, tmp_path / "s.h5", resume=True, **change)
        assert (tmp_path / "s.h5").read_bytes() == before

    def test_a_finished_file_is_returned_as_it_is(self, lm, tmp_path, monkeypatch):
        whole = run(lm, tmp_path / "s.h5")
        before = (tmp_path / "s.h5").read_bytes()
        counter = Stop(monkeypatch)
        assert_same_records(run(lm, tmp_path / "s.h5", resume=True), whole)
        assert counter.calls == 0
        assert (tmp_path / "s.h5").read_bytes() == before

    def test_nothing_to_resume_is_a_run_from_the_start(self, lm, tmp_path):
        assert_same_records(run(lm, tmp_path / "a.h5", resume=True), run(lm, tmp_path / "b.h5"))


class TestOutput:
    def test_what_exists_is_refused(self, lm, tmp_path):
        (tmp_path / "s.h5").write_text("precious")
        with pytest.raises(ShapleyError, match=r"s\.h5 exists: pass --overwrite .*--resume"):
            run(lm, tmp_path / "s.h5")
        assert (tmp_path / "s.h5").read_text() == "precious"

    def test_overwrite_replaces_it_and_a_checkpoint(self, lm, tmp_path):
        run(lm, tmp_path / "s.h5", strengths=[3.0])
        write_checkpoint(tmp_path / "s.h5.checkpoint", "{}", {})
        found = run(lm, tmp_path / "s.h5", overwrite=True)
        assert found.strengths.tolist() == read_sweep(tmp_path / "s.h5").strengths.tolist() == [0.0, 0.5, 1.0]
        assert [path.name for path in tmp_path.glob("s.h5*")] == ["s.h5"]

    def test_both_together_are_refused(self, lm, tmp_path):
        with pytest.raises(ShapleyError, match="exclude each other"):
            run(lm, tmp_path / "s.h5", resume=True, overwrite=True)

    def test_a_missing_folder_is_refused_before_any_work(self, lm, tmp_path, monkeypatch):
        counter = Stop(monkeypatch)
        with pytest.raises(ShapleyError, match=r"the folder .*/nowhere does not exist"):
            run(lm, tmp_path / "nowhere" / "s.h5")
        assert counter.calls == 0

    def test_what_the_file_says_of_the_run(self, lm, tmp_path):
        found = run(lm, tmp_path / "s.h5", argv=["shapley", "sweep"])
        settings = json.loads(found.attrs["settings"])
        assert (settings["strengths"], settings["seeds"]) == ([0.0, 0.5, 1.0], 2)
        assert settings["clusters"]["c"] == [[0, 3], [0, 7], [2, 20]] and settings["clusters"]["everything"] is None
        assert found.attrs["forward_rows"] == 5 + 4 * 2 * 2 * 5
        assert (found.attrs["model_fingerprint"], found.attrs["model_n_layers"]) == (lm.fingerprint, 3)
        assert json.loads(found.attrs["argv"]) == ["shapley", "sweep"]

    def test_the_topics_that_clusters_were_chosen_for(self, lm, tmp_path):
        topic = next(iter(TOPICS))
        own = Cluster(CLUSTER.neurons, rule={"topic": topic})
        for clusters in (
            {"c": own},
            {"c": Cluster(own.neurons, rule={"topic": "elsewhere"}), f"cluster-{topic}": CLUSTER},
        ):
            found = run(lm, tmp_path / "s.h5", clusters=clusters, n_random=1, overwrite=True)
            assert found.of_topics == read_sweep(tmp_path / "s.h5").of_topics == {list(clusters)[-1]: topic}


def cluster_share(lm, layer, neurons, site):
    """``[d_model]``: the cluster's share of the squared weights of every residual dimension, by numpy."""
    weights = {name: value.detach().double().numpy() for name, value in lm.model.named_parameters()}
    if lm.name == "tiny-gpt2":
        write = weights[f"transformer.h.{layer}.mlp.c_proj.weight"]
        reads = [weights[f"transformer.h.{layer}.mlp.c_fc.weight"].T]
    else:
        write = weights[f"model.layers.{layer}.mlp.down_proj.weight"].T
        if lm.name == "tiny-phi3":
            stacked = weights[f"model.layers.{layer}.mlp.gate_up_proj.weight"]
            reads = [stacked[:24], stacked[24:]]
        else:
            reads = [weights[f"model.layers.{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up")]
    squared = write**2 if site == "mlp_out" else sum(read**2 for read in reads)  # [neuron, dimension]
    return squared[neurons].sum(axis=0) / squared.sum(axis=0)


class TestFootprint:
    NEURONS = ((2, 5), (0, 3), (2, 1), (2, 11), (2, 23), (2, 17), (2, 8))

    @pytest.mark.parametrize("site", ["mlp_in", "mlp_out"])
    @pytest.mark.parametrize("family", ["gpt2", "llama", "phi3"])
    def test_the_dimensions_of_which_it_holds_most(self, family, site):
        """16 dimensions and 24 neurons: one neuron has one dimension, six have four."""
        lm = tiny_lm(family)
        found = footprint(lm, Cluster(self.NEURONS), site)
        first = cluster_share(lm, 0, [3], site)
        last = cluster_share(lm, 2, [5, 1, 11, 23, 17, 8], site)
        chosen = [(0, int(np.argmax(first)))] + [(2, int(i)) for i in np.argsort(-last)[:4]]
        assert (found.neurons, found.site) == (tuple(chosen), site)

    @pytest.mark.parametrize(("n", "size"), [(1, 1), (2, 1), (4, 3), (12, 8), (24, 16)])
    def test_it_is_the_same_fraction_of_the_layer(self, lm, n, size):
        assert len(footprint(lm, Cluster(tuple((1, i) for i in range(n))), "mlp_out")) == size

    def test_it_says_what_it_is(self, lm):
        cluster = Cluster(((0, 3),), model={"name": "tiny"}, rule={"topic": "athlete"})
        found = footprint(lm, cluster, "mlp_in")
        assert (found.model, found.rule) == ({"name": "tiny"}, {"topic": "athlete", "footprint": "mlp_in"})

    @pytest.mark.parametrize("site", ["mlp_in", "mlp_hidden", "mlp_out"])
    def test_at_its_own_site_it_is_itself(self, lm, site):
        cluster = Cluster(((0, 3),), site)
        assert footprint(lm, cluster, site) is cluster

    @pytest.mark.parametrize(("of", "at"), [("mlp_out", "mlp_hidden"), ("mlp_out", "mlp_in"), ("mlp_in", "mlp_out")])
    def test_dimensions_have_none_elsewhere(self, lm, tmp_path, of, at):
        words = f"holds dimensions of {of}.* not at {at}"
        with pytest.raises(ShapleyError, match=words):
            footprint(lm, Cluster(((0, 3),), of), at)
        with pytest.raises(ShapleyError, match=words):
            run(lm, tmp_path / "s.h5", Impairment("noise", site=at), clusters={"c": Cluster(((0, 3),), of)})

    @pytest.mark.parametrize("site", ["mlp_in", "mlp_out"])
    def test_a_sweep_there_impairs_it(self, lm, tmp_path, site):
        impairment = Impairment("scale", site=site)
        found = run(lm, tmp_path / "s.h5", impairment, clusters={"c": Cluster(self.NEURONS), "everything": None})
        assert found.sizes == [5, 5, 5, 48]
        placed = footprint(lm, Cluster(self.NEURONS), site)
        rows = expected(lm, PROMPTS, impairment=impairment.at(0.5), cluster=placed)
        np.testing.assert_allclose(measured(found, "c", 1), rows, atol=1e-4)


def test_a_cluster_of_another_model_is_refused(lm, tmp_path, monkeypatch):
    counter = Stop(monkeypatch)
    other = Cluster(((0, 3),), model={"name": "big", "fingerprint": "beef"})
    with pytest.raises(ShapleyError, match=r"cluster 'c' belongs to another model: big.*tiny-llama"):
        run(lm, tmp_path / "s.h5", clusters={"c": other})
    run(lm, tmp_path / "s.h5", clusters={"c": Cluster(((0, 3),), model={"fingerprint": lm.fingerprint})})
    assert counter.calls > 0


@pytest.mark.parametrize("site", ["mlp_in", "mlp_hidden"])
@pytest.mark.parametrize("neuron", [(3, 0), (0, 24), (0, -1)])
def test_a_cluster_outside_the_model_is_refused(lm, tmp_path, neuron, site):
    with pytest.raises(ShapleyError, match=re.escape(str(neuron))):
        run(lm, tmp_path / "s.h5", Impairment("noise", site=site), clusters={"c": Cluster((neuron,))})
