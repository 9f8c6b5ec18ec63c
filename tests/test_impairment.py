"""Impairments on running models: what each kind does, generate(), nesting, exceptions, noise, statistics."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from shapley.clusters import Cluster
from shapley.errors import ShapleyError
from shapley.hf import noise
from shapley.hf.hooks import Rows, impair, observe
from shapley.hf.sites import find_sites, write_weights
from shapley.impairment import KINDS, Impairment, impaired
from tests.tiny import FAMILIES, tiny_lm, tiny_model

IDS = torch.tensor([[5, 9, 21, 33, 8, 40], [11, 7, 30, 12, 44, 9]])
TEXTS = [
    "the player won his last race in the old city",
    "the singer sold a small guitar with her band to a company",
] * 3


def logits(model, ids=IDS, **options):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **options).logits


def hooks_of(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class TestFormulas:
    x, s, e, top, target = 3.0, 0.5, 0.2, 1.5, -1.0

    @pytest.mark.parametrize(
        ("kind", "expected"),
        [
            ("noise", 3.1),
            ("negative-noise", 2.35),
            ("shift", 2.25),
            ("scale", 1.5),
            ("zero", 1.5),
            ("mean", 1.0),
            ("resample", 1.0),
        ],
    )
    def test_kinds(self, kind, expected):
        assert impaired(kind, self.x, self.s, self.e, self.top, self.target) == pytest.approx(expected)

    @pytest.mark.parametrize("kind", KINDS)
    def test_strength_zero_is_identity(self, kind):
        assert impaired(kind, self.x, 0.0, self.e, self.top, self.target) == self.x

    def test_round_trip(self):
        spec = Impairment("negative-noise", 0.3, "mlp_in", "sd", "uniform", "token", 7)
        assert Impairment.from_json(spec.to_json()) == spec
        assert spec.at(0.5).strength == 0.5

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"kind": "noize"}, "noise"),
            ({"site": "mlp"}, "mlp_in"),
            ({"strength": float("nan")}, "finite"),
            ({"strength": -1.0}, "at least 0"),
            ({"kind": "zero", "unit": "sd"}, "fraction"),
        ],
    )
    def test_bad_specs_are_refused(self, options, words):
        with pytest.raises(ShapleyError, match=words):
            Impairment(**options)


class TestNoise:
    keys = noise.token_keys(torch.tensor([1, 2], dtype=torch.int32), torch.arange(500).expand(2, 500))
    neurons = torch.arange(300)

    def test_gaussian_moments_and_independence(self):
        draw = noise.draw("gaussian", self.keys, 0, self.neurons).double()
        assert draw.mean().abs() < 0.01 and (draw.std() - 1).abs() < 0.01
        assert (draw.pow(4).mean() - 3).abs() < 0.1
        other = noise.draw("gaussian", self.keys, 1, self.neurons).double()
        flat = torch.stack([draw[0].flatten(), draw[1].flatten(), other[0].flatten(), draw[0].T.flatten()])
        assert (torch.corrcoef(flat) - torch.eye(4)).abs().max() < 0.015
        neighbours = torch.corrcoef(torch.stack([draw[0, :-1].flatten(), draw[0, 1:].flatten()]))[0, 1]
        assert neighbours.abs() < 0.015

    def test_uniform_and_clipped_lie_in_the_unit_interval(self):
        uniform = noise.draw("uniform", self.keys, 0, self.neurons)
        assert uniform.abs().max() <= 1 and uniform.mean().abs() < 0.01 and (uniform.var() - 1 / 3).abs() < 0.01
        clipped = noise.draw("clipped_gaussian", self.keys, 0, self.neurons)
        assert clipped.abs().max() == 1 and (clipped == 1).float().mean() == pytest.approx(0.1587, abs=0.01)

    def test_a_subset_of_neurons_sees_the_same_noise(self):
        some = torch.tensor([7, 250, 3])
        whole = noise.draw("gaussian", self.keys, 5, self.neurons)
        assert torch.equal(noise.draw("gaussian", self.keys, 5, some), whole[..., some])

    def test_choices_are_spread(self):
        chosen = noise.choose(self.keys, noise.key_of("donor", 3), 10)
        assert chosen.min() == 0 and chosen.max() == 9
        assert torch.bincount(chosen.flatten()).float().std() < 25


def test_zero_ablation_of_a_cluster_equals_the_weight_edit():
    model = tiny_model("llama")
    cluster = [(0, 3), (2, 20), (2, 1)]
    edited = copy.deepcopy(model)
    with torch.no_grad():
        for layer, neuron in cluster:
            write_weights(find_sites(edited).blocks[layer])[neuron] = 0
    with impair(model, Impairment("zero"), cluster):
        torch.testing.assert_close(logits(model), logits(edited), atol=1e-5, rtol=1e-5)


def test_noise_in_a_cluster_reaches_the_cluster_only():
    model = tiny_model("gpt2")
    sites = find_sites(model)
    seen = []
    with impair(model, Impairment("noise", 2.0), [(1, 4), (1, 9)]), observe(sites, "mlp_hidden") as after:
        logits(model)
        seen = list(after)
    with observe(sites, "mlp_hidden") as before:
        logits(model)
    changed = (seen[1] - before[1]).abs().amax(dim=(0, 1)) > 0
    assert torch.equal(seen[0], before[0])
    assert changed.nonzero().flatten().tolist() == [4, 9]


@pytest.mark.parametrize("kind", ["noise", "negative-noise", "scale", "zero"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "opt", "bloom", "falcon"])
def test_generate_is_impaired_on_every_decode_step(family, kind):
    """Greedy decoding with a KV cache equals decoding by full forwards over the growing text."""
    model = tiny_model(family)
    impairment = Impairment(kind, strength=0.7, scope="token")
    ids = IDS[:1]
    with impair(model, impairment):
        fast = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=6,
            min_new_tokens=6,
            do_sample=False,
            pad_token_id=0,
        )
        slow = ids
        for _ in range(6):
            scores = logits(model, slow)[:, -1]
            scores[:, 2] = -torch.inf  # min_new_tokens forbids the end
            slow = torch.cat([slow, scores.argmax(1, keepdim=True)], dim=1)
    assert fast.tolist() == slow.tolist()
    untouched = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0
    )
    assert hooks_of(model) == 0
    assert fast.shape == untouched.shape


def test_generate_with_left_padding_and_beams():
    model = tiny_model("llama")
    padded = torch.cat([torch.zeros(1, 2, dtype=torch.int64), IDS[1:, :4]], dim=1)
    mask = (padded != 0).long()
    options = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False, "pad_token_id": 0, "num_beams": 2}
    with impair(model, Impairment("noise", 0.5), rows=Rows(prompt_keys=["one"])):
        left = model.generate(padded, attention_mask=mask, **options)[:, -4:]
        alone = model.generate(IDS[1:, :4], attention_mask=torch.ones(1, 4).long(), **options)[:, -4:]
    assert left.tolist() == alone.tolist()


def test_nesting_applies_both_and_unwinds():
    model = tiny_model("gpt2")
    untouched = logits(model)
    with impair(model, Impairment("scale", 0.5)):
        outer = logits(model)
        with impair(model, Impairment("scale", 0.5)):
            both = logits(model)
        assert torch.equal(logits(model), outer)
    with impair(model, Impairment("scale", 0.75)):
        torch.testing.assert_close(both, logits(model), atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(model), untouched)
    assert hooks_of(model) == 0


def test_hooks_are_gone_after_an_exception():
    model = tiny_model("gpt2")
    with pytest.raises(RuntimeError, match="boom"), impair(model, Impairment("noise")):
        raise RuntimeError("boom")
    assert hooks_of(model) == 0
    with pytest.raises(ShapleyError, match=r"\(9, 0\)"), impair(model, Impairment("zero"), [(9, 0)]):
        pass
    assert hooks_of(model) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_does_not_depend_on_the_batch(family):
    model = tiny_model(family)
    impairment = Impairment("noise", 0.5, seed=3)
    keys = ["a", "b"]
    with impair(model, impairment, rows=Rows(prompt_keys=keys, draws=[0, 5])):
        together = logits(model)
    for row in range(2):
        with impair(model, impairment, rows=Rows(prompt_keys=[keys[row]], draws=[[0, 5][row]])):
            torch.testing.assert_close(logits(model, IDS[row : row + 1])[0], together[row], atol=2e-5, rtol=1e-5)
    with impair(model, impairment, rows=Rows(prompt_keys=keys, draws=[1, 5])):
        assert (logits(model)[0] - together[0]).abs().max() > 1e-3


def test_two_coalitions_of_a_draw_see_the_same_noise():
    model = tiny_model("llama")
    sites = find_sites(model)
    ids = IDS[:1].repeat(2, 1)
    intact = [torch.ones(2, sites.d_mlp) for _ in range(sites.n_layers)]
    intact[0][0, :12] = 0
    intact[0][1, 6:18] = 0
    rows = Rows(prompt_keys=["p", "p"], draws=[2, 2], intact=intact)
    with impair(model, Impairment("noise", 1.0), rows=rows), observe(sites, "mlp_hidden") as seen:
        logits(model, ids)
    with observe(sites, "mlp_hidden") as clean:
        logits(model, ids)
    added = seen[0] - clean[0]
    torch.testing.assert_close(added[0, :, 6:12], added[1, :, 6:12])
    assert added[0, :, :12].abs().min() > 0 and added[0, :, 12:].abs().max() == 0


def test_strengths_per_row():
    model = tiny_model("gpt2")
    rows = Rows(prompt_keys=["p", "p"], strength=[0.25, 1.0])
    ids = IDS[:1].repeat(2, 1)
    with impair(model, Impairment("noise"), rows=rows):
        both = logits(model, ids)
    for row, strength in enumerate((0.25, 1.0)):
        with impair(model, Impairment("noise", strength), rows=Rows(prompt_keys=["p"])):
            torch.testing.assert_close(logits(model, IDS[:1])[0], both[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scope", ["token", "prompt", "batch"])
def test_negative_noise_never_adds_and_its_maximum_is_zero(scope):
    model = tiny_model("llama")
    sites = find_sites(model)
    with impair(model, Impairment("negative-noise", 1.0, scope=scope)), observe(sites, "mlp_hidden") as seen:
        logits(model)
    with observe(sites, "mlp_hidden") as clean:
        logits(model)
    added = seen[0] - clean[0]
    dims = {"token": 2, "prompt": (1, 2), "batch": (0, 1, 2)}[scope]
    assert added.max() < 1e-5
    torch.testing.assert_close(added.amax(dim=dims), torch.zeros_like(added.amax(dim=dims)), atol=1e-5, rtol=0)


def test_shift_is_negative_noise_without_the_noise():
    model = tiny_model("llama")
    sites = find_sites(model)

    def added(kind):
        with impair(model, Impairment(kind, 1.0, scope="prompt")), observe(sites, "mlp_hidden") as seen:
            logits(model)
        with observe(sites, "mlp_hidden") as clean:
            logits(model)
        return seen[0] - clean[0]

    torch.testing.assert_close(added("negative-noise") - added("noise"), added("shift"), atol=1e-5, rtol=1e-4)
    assert added("shift")[0].std() < 1e-5


class TestStatistics:
    lm = tiny_lm("llama")

    @pytest.fixture(autouse=True)
    def cache(self, monkeypatch, tmp_path):
        monkeypatch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path))

    def collected(self, site="mlp_hidden"):
        rows = []
        for text in TEXTS:
            ids = torch.tensor([self.lm.tokenizer(text)["input_ids"]])
            with observe(self.lm.sites, site) as seen:
                logits(self.lm.model, ids)
            rows.append(torch.stack([x[0, 1:] for x in seen]))
        return torch.cat(rows, dim=1)

    @pytest.mark.parametrize("site", ["mlp_in", "mlp_hidden", "mlp_out"])
    def test_mean_and_deviation_leave_out_the_first_position(self, site):
        rows = self.collected(site)
        found = self.lm.statistics(site, TEXTS)
        torch.testing.assert_close(found.mean, rows.mean(dim=1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(found.std, rows.std(dim=1, unbiased=False), atol=1e-5, rtol=1e-3)
        torch.testing.assert_close(
            found.site_std, rows.var(dim=1, unbiased=False).mean(dim=1).sqrt(), atol=1e-5, rtol=1e-3
        )
        assert (found.donors[:, :, None] == rows[:, None]).all(-1).any(-1).float().mean() > 0.5

    def test_they_are_cached_by_model_site_and_text(self, tmp_path):
        lm = tiny_lm("llama")
        first = lm.statistics("mlp_hidden", TEXTS)
        assert len(list((tmp_path / "statistics").iterdir())) == 1
        again = tiny_lm("llama").statistics("mlp_hidden", TEXTS)
        assert torch.equal(first.mean, again.mean) and first.fingerprint == again.fingerprint
        assert tiny_lm("gpt2").statistics("mlp_hidden", TEXTS).fingerprint != first.fingerprint

    def test_mean_ablation_puts_the_mean(self):
        found = self.lm.statistics("mlp_hidden", TEXTS)
        with impair(self.lm, Impairment("mean"), statistics=found), observe(self.lm.sites, "mlp_hidden") as seen:
            logits(self.lm.model)
        for layer, x in enumerate(seen):
            torch.testing.assert_close(x, found.mean[layer].expand_as(x))

    def test_resample_puts_a_reference_activation_whole(self):
        found = self.lm.statistics("mlp_hidden", TEXTS)
        with impair(self.lm, Impairment("resample"), statistics=found), observe(self.lm.sites, "mlp_hidden") as seen:
            logits(self.lm.model)
        matches = (seen[0].reshape(-1, 1, 24) == found.donors[0]).all(-1).any(-1)
        assert matches.all()

    def test_strength_in_standard_deviations(self):
        found = self.lm.statistics("mlp_hidden", TEXTS)
        rows = Rows(prompt_keys=["a", "b"])
        spread = found.site_std[1].item()
        with impair(self.lm, Impairment("noise", 0.5, unit="sd"), [(1, 2)], rows=rows, statistics=found):
            in_units = logits(self.lm.model)
        with impair(self.lm, Impairment("noise", 0.5 * spread), [(1, 2)], rows=rows):
            torch.testing.assert_close(in_units, logits(self.lm.model))

    def test_a_bare_model_is_told_what_is_missing(self):
        with pytest.raises(ShapleyError, match="statistics"), impair(self.lm.model, Impairment("mean")):
            pass


def test_clusters_of_another_site_are_refused():
    model = tiny_model("gpt2")
    with pytest.raises(ShapleyError, match="footprint"), impair(model, Impairment(site="mlp_out"), Cluster(((0, 1),))):
        pass


def test_a_boolean_mask_is_a_cluster():
    model = tiny_model("gpt2")
    mask = np.zeros((3, 24), dtype=bool)
    mask[1, 5] = True
    with impair(model, Impairment(), mask):
        one = logits(model)
    with impair(model, Impairment(), [(1, 5)]):
        assert torch.equal(one, logits(model))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_a_batch_under_impairments_of_their_own(kind):
    lm = tiny_lm("gpt2")
    ids = torch.tensor([[5, 9, 21, 33, 8, 40], [11, 7, 30, 12, 44, 9], [5, 9, 21, 33, 8, 41], [6, 9, 21, 30, 8, 4]])
    untouched = logits(lm.model, ids)
    one, cluster = Impairment(kind, scope="token"), [(0, 3), (1, 5), (2, 0)]
    other = Impairment("scale", 0.5, site="mlp_out")
    with (
        impair(lm, one, cluster, rows=Rows(prompt_keys=["x", "y"], strength=[0.5, 1.0], only=[3, 1])),
        impair(lm, other, rows=Rows(only=[1])),
    ):
        together = logits(lm.model, ids)
    for row in (0, 2):
        assert torch.equal(together[row], untouched[row])
    with impair(lm, one.at(0.5), cluster, rows=Rows(prompt_keys=["x"])):
        torch.testing.assert_close(together[3], logits(lm.model, ids[3:])[0], atol=2e-5, rtol=1e-5)
    with impair(lm, one, cluster, rows=Rows(prompt_keys=["y"])), impair(lm, other):
        torch.testing.assert_close(together[1], logits(lm.model, ids[1:2])[0], atol=2e-5, rtol=1e-5)
