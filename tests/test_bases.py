"""Directions as players: the function is preserved, and every operation is what linear algebra says it is."""

from __future__ import annotations

import copy
import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from shapley.cli.check import check
from shapley.cli.main import cli
from shapley.cli.submit import _from_anywhere
from shapley.clusters import Cluster
from shapley.errors import ShapleyError
from shapley.estimators.registry import Plan
from shapley.hf import noise
from shapley.hf.bases import basis_of, haar, principal, rotate, save_vectors, split_name
from shapley.hf.hooks import Rows, attach, impair, observe
from shapley.hf.load import LanguageModel, load_model
from shapley.hf.scoring import RowPlan, RowScorer
from shapley.hf.sites import find_sites, write_weights
from shapley.impairment import Impairment
from shapley.prompts import TopicPrompts, read_prompts
from shapley.records import read_sweep
from shapley.runs import estimate
from shapley.store import ScoreFile
from tests.tiny import FAMILIES, PROMPTS, logits, tiny_lm, tiny_model

pytestmark = pytest.mark.usefixtures("own_cache")


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
    assert (logits(model) - before).abs().max() < 1e-13 * before.abs().max()
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


def test_a_permutation_has_the_exact_scores_of_its_neurons(tmp_path):
    lm = tiny_lm("llama", n_layers=2, d_mlp=4)
    order = [torch.randperm(4, generator=torch.Generator().manual_seed(layer)) for layer in range(2)]
    permuted = turned(lm, torch.stack([torch.eye(4)[:, own] for own in order]))
    scores = [
        estimate(model, {"x": TopicPrompts("x", tuple(PROMPTS))}, tmp_path / f"{i}.h5", plan=Plan("exact"))["x"].score
        for i, model in enumerate((lm, permuted))
    ]
    wanted = np.stack([own[places] for own, places in zip(scores[0], order, strict=True)])
    np.testing.assert_allclose(scores[1], wanted, atol=1e-6)
    assert np.abs(wanted).min() > 1e-5


@pytest.mark.parametrize(("basis", "site"), [("random:1", "mlp_hidden"), ("residual:random:1", "mlp_out")])
def test_bases_go_through_the_commands(folder, monkeypatch, basis, site):
    monkeypatch.chdir(folder)
    lines = [
        {"topic": topic, "prompt": own.prompt, "answer": own.answer} for own in PROMPTS for topic in ("sport", "music")
    ]
    Path("p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = ["--model", "model", "--basis", basis]

    def done(*arguments):
        result = CliRunner().invoke(cli, [*arguments])
        assert result.exit_code == 0, result.output
        return result.output

    estimated = f"--prompts p.jsonl --site {site} --estimator permutation --samples 3 --out s.h5".split()
    done("estimate", *own, *estimated)
    assert ScoreFile("s.h5").model["name"] == f"model@{basis}" and ScoreFile("s.h5").attrs("sport")["site"] == site
    done("cluster", "s.h5", "--topic", "sport", "--top-k", "5", "--out", "c.json")
    sweep = f"sweep --prompts p.jsonl --cluster c.json --impairment scale --strength 0,1 --site {site}".split()
    done(*sweep, *own, "--out", "w.h5")
    found = read_sweep(Path("w.h5"))
    impairment = Impairment("scale", 1.0, site=site)
    scorer = RowScorer(load_model(f"model@{basis}"), read_prompts("p.jsonl")["sport"].prompts, impairment)
    [wanted] = scorer.values(["logprob"], RowPlan(np.arange(2)), cluster=Cluster.load("c.json"))
    np.testing.assert_allclose(
        found.metric("sport", found.clusters[0])[1, 0], wanted, atol=0.05
    )  # in bfloat16 where it is fast
    for other in ("random:2", "identity", "residual:random:2"):
        refused = CliRunner().invoke(cli, [*sweep, "--model", "model", "--basis", other, "--out", "x.h5"])
        assert "belongs to another model" in str(refused.exception)


@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_a_direction_is_ablated_scaled_and_noised_as_a_direction(family):
    lm = tiny_lm(family)
    vectors, _ = basis_of("random", lm.sites)
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
    outs = []
    for how in (nullcontext(), impair(basis, Impairment("noise", 0.5, seed=1), [(layer, j)])):
        with how, observe(basis.sites, "mlp_out") as layers:
            logits(basis.model)
        outs.append(layers[layer].view(-1, 16))
    change = outs[1] - outs[0]
    along = torch.nn.functional.normalize(direction @ write_weights(lm.sites.blocks[layer]), dim=0)
    assert change.norm(dim=1).min() > 1e-3
    torch.testing.assert_close(change, (change @ along)[:, None] * along, atol=1e-5, rtol=1e-4)


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
        for number in range(60):
            with impair(model, impairment, rows=Rows(prompt_keys=["a", "b"], draws=[number, number])):
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
    assert split_name("m@residual:random:2") == ("m", "residual:random:2") and split_name("m@residual:x")[1] is None
    assert split_name("dir@x/y.safetensors") == ("dir", "x/y.safetensors") and split_name("@pca") == ("@pca", None)


def run(*arguments):
    done = CliRunner().invoke(check, [str(argument) for argument in arguments])
    return f"{done.exception}" if isinstance(done.exception, ShapleyError) else done.output


def test_models_are_loaded_in_a_basis(folder):
    plain = load_model(str(folder / "model"))
    save_vectors(basis_of("random:4", plain.sites)[0], folder / "basis.safetensors")
    names = ["identity", "random", "random:4", "pca", str(folder / "basis.safetensors")]
    found = {name: load_model(f"{folder / 'model'}@{name}") for name in names}
    for lm in found.values():
        torch.testing.assert_close(logits(lm.model), logits(plain.model), atol=1e-4, rtol=1e-4)
    prints = [lm.fingerprint for lm in (plain, *found.values())]
    assert len(set(prints)) == 5 and prints[3] == prints[5]  # the file holds random:4
    assert "invariants do not hold" not in run(f"{folder / 'model'}@pca")
    half = load_model(f"{folder / 'model'}@random:4", dtype="bfloat16")
    assert half.fingerprint == prints[3]


@pytest.mark.parametrize(("kind", "width"), [("", 24), ("residual:", 16)])
def test_a_file_in_bfloat16_preserves_the_function_as_one_in_float32(folder, kind, width):
    plain = load_model(str(folder / "model"))
    vectors = basis_of(f"{kind}random:4", plain.sites)[0]
    rounded = vectors.bfloat16()
    gram = rounded.double().mT @ rounded.double()
    assert 1e-3 < torch.linalg.matrix_norm(gram - torch.eye(width), 2).max() < 1e-2
    save_vectors(rounded, folder / "basis.safetensors")
    found = load_model(f"{folder / 'model'}@{kind}{folder / 'basis.safetensors'}")
    exact = load_model(f"{folder / 'model'}@{kind}random:4")
    assert found.fingerprint == exact.fingerprint
    errors = [(logits(lm.model) - logits(plain.model)).abs().max() for lm in (found, exact)]
    assert errors[0] < 3 * errors[1] + 1e-6


@pytest.mark.parametrize(("kind", "width"), [("", 24), ("residual:", 16)])
def test_two_orders_of_the_same_directions_are_two_bases(folder, kind, width):
    found = set()
    for i in range(3):
        order = torch.randperm(width, generator=torch.Generator().manual_seed(i))
        vectors = torch.eye(width)[:, order]
        save_vectors(vectors if kind else vectors.expand(3, width, width), folder / f"{i}.safetensors")
        found.add(load_model(f"{folder / 'model'}@{kind}{folder / f'{i}.safetensors'}").fingerprint)
    assert len(found) == 3


def test_a_file_is_read_whatever_it_is_called(monkeypatch, folder):
    monkeypatch.chdir(folder)
    save_vectors(torch.eye(24).expand(3, 24, 24), Path("random.safetensors"))
    assert load_model("model@random.safetensors").fingerprint == load_model("model@identity").fingerprint
    with pytest.raises(ShapleyError, match="no basis in pca"):  # which its activations make, and no file of this name
        basis_of("pca", load_model("model").sites)


def test_principal_axes_are_computed_once(monkeypatch, folder):
    first = load_model(f"{folder / 'model'}@pca")
    monkeypatch.setattr("shapley.hf.load.principal", None)  # not called again
    assert load_model(f"{folder / 'model'}@pca").fingerprint == first.fingerprint


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (None, "b.safetensors (no such file): expected a safetensors file with 'vectors'"),
        (torch.eye(24).expand(2, 24, 24), r"has the shape [2, 24, 24], the model needs [3, 24, 24]"),
        (
            torch.eye(24).expand(3, 24, 24) * torch.tensor([1.0, 1.1, 1.0])[:, None, None],
            "is not orthogonal: in layer 1",
        ),
        (torch.full((3, 24, 24), torch.nan), "holds numbers that are not finite: make the file anew"),
        (torch.eye(24).expand(3, 24, 24) + 1e-3, "is not orthogonal: in layer 0"),  # by little in each entry
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
    assert _from_anywhere("smollm2@residual:b.safetensors") == f"smollm2@residual:{folder / 'b.safetensors'}"
    assert _from_anywhere("smollm2@pca") == "smollm2@pca" and _from_anywhere("model") == str(folder / "model")
