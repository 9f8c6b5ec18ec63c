"""Directions as players: the function is preserved, and every operation is what linear algebra says it is."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from shapley.cli.check import check
from shapley.cli.submit import _from_anywhere
from shapley.errors import ShapleyError
from shapley.hf import noise
from shapley.hf.bases import haar, principal, rotate, save_vectors, split_name, vectors_of
from shapley.hf.hooks import Rows, attach, impair
from shapley.hf.load import LanguageModel, load_model
from shapley.hf.scoring import RowPlan, RowScorer
from shapley.hf.sites import find_sites
from shapley.impairment import Impairment
from shapley.prompts import Prompt
from tests.tiny import FAMILIES, tiny_lm, tiny_model

IDS = torch.tensor([[5, 9, 21, 33, 8, 40], [11, 7, 30, 12, 44, 9]])
PROMPTS = [Prompt("x", "the player won the", " race"), Prompt("x", "the band sold a", " song")]


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path / "cache"))


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def turned(lm, vectors):
    model = copy.deepcopy(lm.model)
    rotate(find_sites(model), vectors)
    return LanguageModel(model, lm.tokenizer, f"{lm.name}@basis", lm.revision)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_is_preserved(family):
    model = copy.deepcopy(tiny_model(family)).double()
    before = logits(model)
    sites = find_sites(model)
    wide = torch.stack([torch.linalg.qr(haar(sites.d_mlp, 3, layer).double())[0] for layer in range(sites.n_layers)])
    rotate(sites, wide)
    assert (logits(model) - before).abs().max() < 1e-12
    assert find_sites(model).blocks[1].down is model.get_submodule(f"{sites.family.blocks}.1.{sites.family.down}.inner")


def test_a_permutation_is_the_neurons_in_another_order():
    lm = tiny_lm("llama")
    order = [torch.randperm(24, generator=torch.Generator().manual_seed(layer)) for layer in range(3)]
    permuted = turned(lm, torch.stack([torch.eye(24)[:, own] for own in order]))
    where = np.concatenate([24 * layer + own.numpy() for layer, own in enumerate(order)])
    rng = np.random.default_rng(0)
    coalitions = rng.random((4, 72)) < 0.7
    plan = RowPlan(np.tile([0, 1], 4), np.repeat(np.arange(4), 2))
    one, other = (RowScorer(model, PROMPTS, Impairment("zero")) for model in (lm, permuted))
    values, gradients = one.gradients("logprob", plan, coalitions)
    found_values, found_gradients = other.gradients("logprob", plan, coalitions[:, where])
    np.testing.assert_allclose(found_values, values, atol=1e-5)
    np.testing.assert_allclose(found_gradients, gradients[:, where], atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_a_direction_is_ablated_scaled_and_noised_as_a_direction(family):
    lm = tiny_lm(family)
    vectors = vectors_of("random", lm.sites)
    basis = turned(lm, vectors)
    layer, j = 1, 5
    direction = vectors[layer][:, j]
    for impairment, edit in (
        (Impairment("zero"), lambda x: x - (x @ direction)[..., None] * direction),
        (Impairment("scale", 0.3), lambda x: x - 0.3 * (x @ direction)[..., None] * direction),
    ):
        handle = attach(lm.sites.blocks[layer], "mlp_hidden", edit)
        wanted = logits(lm.model)
        handle.remove()
        with impair(basis, impairment, [(layer, j)]):
            torch.testing.assert_close(logits(basis.model), wanted, atol=2e-5, rtol=1e-4)


def test_isotropic_noise_does_not_know_the_basis():
    """Turned back into neurons, noise on all directions has the covariance of noise on all neurons: the identity."""
    vectors = haar(24, 0, 0)
    keys = noise.token_keys(torch.arange(400, dtype=torch.int32), torch.arange(50).expand(400, 50))
    drawn = noise.draw("gaussian", keys, 0, torch.arange(24)).view(-1, 24)
    neurons = drawn @ vectors.T
    covariance = (neurons.T @ neurons) / len(neurons)
    assert (covariance - torch.eye(24)).abs().max() < 0.05
    lm = tiny_lm("llama")
    basis = turned(lm, torch.stack([vectors] * 3))
    impairment = Impairment("noise", 0.3, seed=1)
    spread = []
    for model in (lm, basis):
        before = logits(model.model)
        draws = []
        for draw in range(60):
            with impair(model, impairment, rows=Rows(prompt_keys=["a", "b"], draws=[draw, draw])):
                draws.append(logits(model.model) - before)
        spread.append(torch.stack(draws).square().mean())
    assert float(spread[1] / spread[0]) == pytest.approx(1, abs=0.15)


def test_bases():
    q = haar(30, 7, 2)
    assert (q.T @ q - torch.eye(30)).abs().max() < 1e-5
    assert torch.equal(q, haar(30, 7, 2)) and not torch.equal(q, haar(30, 8, 2)) and not torch.equal(q, haar(30, 7, 1))
    traces = torch.tensor([float(haar(30, seed, 0).trace()) for seed in range(300)])
    assert abs(traces.mean()) < 0.25 and traces.var() == pytest.approx(
        1, abs=0.3
    )  # of Haar matrices: mean 0, variance 1
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5, 2, 0.1, 3, 4]) + 7
    vectors = principal(x)
    assert vectors.abs().argmax(dim=0).tolist() == [1, 5, 4, 2, 0, 3] and (vectors.diagonal().abs() <= 1).all()
    covariance = torch.cov((x @ vectors).T)
    assert (covariance - covariance.diagonal().diag()).abs().max() < 1e-3


def test_names():
    assert split_name("smollm2@pca") == ("smollm2", "pca") and split_name("a@b/model") == ("a@b/model", None)
    assert split_name("org/model@random:12") == ("org/model", "random:12") and split_name("smollm2@other") == (
        "smollm2@other",
        None,
    )
    assert split_name("dir@x/y.safetensors") == ("dir", "x/y.safetensors") and split_name("@pca") == ("@pca", None)


@pytest.fixture
def folder(tmp_path):
    lm = tiny_lm("llama")
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path


def run(*arguments):
    done = CliRunner().invoke(check, [str(argument) for argument in arguments])
    return f"{done.exception}" if isinstance(done.exception, ShapleyError) else done.output


def test_models_are_loaded_in_a_basis(folder):
    plain = load_model(str(folder / "model"))
    save_vectors(vectors_of("random:4", plain.sites), folder / "basis.safetensors")
    names = ["identity", "random", "random:4", "pca", str(folder / "basis.safetensors")]
    found = {name: load_model(f"{folder / 'model'}@{name}") for name in names}
    for lm in found.values():
        torch.testing.assert_close(logits(lm.model), logits(plain.model), atol=1e-4, rtol=1e-4)
    prints = [lm.fingerprint for lm in (plain, *found.values())]
    assert len(set(prints)) == 5 and prints[3] == prints[5]  # the file holds random:4
    assert "invariants do not hold" not in run(f"{folder / 'model'}@pca")


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (None, "no basis in"),
        (torch.eye(24).expand(2, 24, 24), r"has the shape [2, 24, 24], the model needs [3, 24, 24]"),
        (
            torch.eye(24).expand(3, 24, 24) * torch.tensor([1.0, 1.1, 1.0])[:, None, None],
            "is not orthogonal: in layer 1",
        ),
        (torch.full((3, 24, 24), torch.nan), "is not orthogonal: in layer 0"),
    ],
)
def test_what_is_no_basis(folder, vectors, said):
    if vectors is not None:
        save_vectors(vectors, folder / "b.safetensors")
    assert said in run(f"{folder / 'model'}@{folder / 'b.safetensors'}")


def test_the_option_goes_into_the_models_name(monkeypatch, folder):
    import shapley.cli.estimate as module

    seen = []
    monkeypatch.setattr("shapley.hf.load.load_model", lambda name, **options: seen.append(name) or 1 / 0)
    prompts = folder / "p.jsonl"
    prompts.write_text('{"topic": "t", "prompt": "the player", "answer": " won"}\n')
    wanted = ["--model", "smollm2", "--basis", "random:3", "--prompts", str(prompts), "--out", str(folder / "s.h5")]
    assert isinstance(CliRunner().invoke(module.estimate, wanted).exception, ZeroDivisionError) and seen == [
        "smollm2@random:3"
    ]
    wanted[3] = "fourier"
    assert "expected identity, random[:SEED], pca" in str(CliRunner().invoke(module.estimate, wanted).exception)
    monkeypatch.chdir(folder)
    (folder / "b.safetensors").touch()
    assert _from_anywhere("model@b.safetensors") == f"{folder / 'model'}@{folder / 'b.safetensors'}"
    assert _from_anywhere("smollm2@pca") == "smollm2@pca" and _from_anywhere("model") == str(folder / "model")
