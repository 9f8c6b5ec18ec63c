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
from transformers import AutoModelForCausalLM

from experiments.bases.concentration import concentration
from experiments.bases.draw import draw, tables
from experiments.bases.page import section
from experiments.bases.summary import Results
from experiments.lab.results import store
from shapley.cli.basis import learn
from shapley.cli.check import check
from shapley.cli.main import cli
from shapley.cli.submit import _from_anywhere
from shapley.clusters import Cluster
from shapley.errors import ShapleyError
from shapley.estimators.registry import Plan
from shapley.footprint import footprint
from shapley.hf import noise
from shapley.hf.bases import haar, load_vectors, principal, rotate, save_vectors, split_name, vectors_of
from shapley.hf.hooks import Rows, attach, impair, observe
from shapley.hf.learned import _learned, _onward, _seen
from shapley.hf.learned import learn as learn_basis
from shapley.hf.load import LanguageModel, load_model
from shapley.hf.residual import turn_stream
from shapley.hf.scoring import RowPlan, RowScorer
from shapley.hf.sites import find_sites, write_weights
from shapley.hf.stream import find_stream
from shapley.impairment import Impairment
from shapley.prompts import Prompt, TopicPrompts, read_prompts
from shapley.records import read_sweep
from shapley.runs import estimate
from shapley.store import ScoreFile
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


def test_bases_go_through_the_commands(folder, monkeypatch):
    monkeypatch.chdir(folder)
    lines = [
        {"topic": topic, "prompt": own.prompt, "answer": own.answer} for own in PROMPTS for topic in ("sport", "music")
    ]
    Path("p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    own = ["--model", "model", "--basis", "random:1"]

    def done(*arguments):
        result = CliRunner().invoke(cli, [*arguments])
        assert result.exit_code == 0, result.output
        return result.output

    done("estimate", *own, "--prompts", "p.jsonl", "--out", "s.h5", "--estimator", "permutation", "--samples", "3")
    assert ScoreFile("s.h5").model["name"] == "model@random:1"
    done("cluster", "s.h5", "--topic", "sport", "--top-k", "5", "--out", "c.json")
    sweep = ["sweep", "--prompts", "p.jsonl", "--cluster", "c.json", "--impairment", "scale", "--strength", "0,1"]
    done(*sweep, *own, "--out", "w.h5")
    found = read_sweep(Path("w.h5"))
    scorer = RowScorer(load_model("model@random:1"), read_prompts("p.jsonl")["sport"].prompts, Impairment("scale", 1.0))
    [wanted] = scorer.values(["logprob"], RowPlan(np.arange(2)), cluster=Cluster.load("c.json"))
    np.testing.assert_allclose(
        found.metric("sport", found.clusters[0])[1, 0], wanted, atol=0.05
    )  # in bfloat16 where it is fast
    for basis in ("random:2", "identity", "residual:random:1"):
        refused = CliRunner().invoke(cli, [*sweep, "--model", "model", "--basis", basis, "--out", "x.h5"])
        assert "belongs to another model" in str(refused.exception)


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
    half = load_model(f"{folder / 'model'}@random:4", dtype="bfloat16")
    assert half.fingerprint == prints[3]


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
        vectors_of("pca", load_model("model").sites)


def test_principal_axes_are_computed_once(monkeypatch, folder):
    first = load_model(f"{folder / 'model'}@pca")
    monkeypatch.setattr("shapley.hf.load.principal", None)  # not called again
    assert load_model(f"{folder / 'model'}@pca").fingerprint == first.fingerprint


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


def widened(family):
    """A tiny model in float64, its norms too, which transformers computes in float32; gains and biases are random."""
    model = copy.deepcopy(tiny_model(family)).double()
    generator = torch.Generator().manual_seed(1)
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.data += 0.3 * torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
    for module in model.modules():
        if "RMSNorm" in type(module).__name__:
            gain = module.weight + ("Gemma" in type(module).__name__)
            eps = module.eps if hasattr(module, "eps") else module.variance_epsilon
            module.forward = lambda x, g=gain, e=eps: g * x / (x.square().mean(-1, keepdim=True) + e).sqrt()
    return model


@pytest.mark.parametrize("family", [*FAMILIES, "gemma"])
def test_the_function_is_preserved_in_a_basis_of_the_stream(family):
    model = widened(family)
    before = logits(model)
    sites = find_sites(model)
    vectors = torch.linalg.qr(haar(16, 3, "stream").double())[0]
    turn_stream(model, sites, lambda: vectors)
    assert (logits(model) - before).abs().max() < 1e-12
    assert sum(p.abs().sum() for p in find_sites(model).blocks[1].up[0].parameters()) > 0


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("falcon", {"new_decoder_architecture": True}),
        ("falcon", {"parallel_attn": False}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("stablelm", {"use_parallel_residual": True}),
        ("llama", {"tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    ],
)
def test_variants_of_families_in_a_basis_of_the_stream(family, settings):
    config = copy.deepcopy(tiny_model(family).config)
    config.update(settings)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").double().eval()
    for weight in model.parameters():
        weight.data.normal_(0.1, 0.25)
    before = logits(model)
    turn_stream(model.requires_grad_(False), find_sites(model), lambda: haar(16, 3, "stream"))
    assert (logits(model) - before).abs().max() < 1e-5  # norms in float32


def test_streams_that_cannot_be_turned():
    for family, settings, said in (
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "bloom model cannot be turned: it has apply_"),
        ("opt", {"do_layer_norm_before": False}, "opt model cannot be turned: it has norms on the stream"),
        ("opt", {"word_embed_proj_dim": 8}, "opt model cannot be turned: it has embeddings of another width"),
        ("llama", {"model_type": "novel"}, "model type 'novel' is not known"),
    ):
        model = copy.deepcopy(tiny_model(family))
        sites = find_sites(model)
        for name, value in settings.items():
            setattr(model.config, name, value)
        with pytest.raises(ShapleyError, match=said):
            turn_stream(model, sites, lambda: torch.eye(16))


def in_stream(lm, vectors):
    model = copy.deepcopy(lm.model)
    turn_stream(model, find_sites(model), lambda: vectors)
    return LanguageModel(model, lm.tokenizer, f"{lm.name}@stream", lm.revision)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_direction_of_the_stream_is_ablated_scaled_and_noised_as_a_direction(family):
    lm = tiny_lm(family)
    vectors = haar(16, 0, "stream")
    basis = in_stream(lm, vectors)
    layer, j = 1, 5
    direction = vectors[:, j]
    for strength in (1.0, 0.3):
        edit = lambda x: x - strength * (x @ direction)[..., None] * direction  # noqa: B023, E731
        handle = attach(lm.sites.blocks[layer], "mlp_out", edit)
        wanted = logits(lm.model)
        handle.remove()
        with impair(basis, Impairment("scale", strength, "mlp_out"), [(layer, j)]):
            torch.testing.assert_close(logits(basis.model), wanted, atol=2e-5, rtol=1e-4)
    noised = impair(basis, Impairment("noise", 0.5, "mlp_in", seed=1), [(layer, j)])
    before, after = (entering(basis, layer, how) for how in (nullcontext(), noised))
    assert ((after - before).abs().amax(dim=(0, 1)) > 0).nonzero().flatten().tolist() == [j]


def entering(lm, layer, how):
    """What the MLP's first projection reads."""
    seen = []
    handle = lm.sites.blocks[layer].up[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with how:
        logits(lm.model)
    handle.remove()
    return seen[0]


def test_a_permutation_of_the_stream_has_the_scores_of_its_columns():
    lm = tiny_lm("llama")
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    permuted = in_stream(lm, torch.eye(16)[:, order])
    where = np.concatenate([16 * layer + order.numpy() for layer in range(3)])
    coalitions = np.random.default_rng(0).random((4, 48)) < 0.7
    plan = RowPlan(np.tile([0, 1], 4), np.repeat(np.arange(4), 2))
    one, other = (RowScorer(model, PROMPTS, Impairment("zero", site="mlp_out")) for model in (lm, permuted))
    values, gradients = one.gradients("logprob", plan, coalitions)
    found_values, found_gradients = other.gradients("logprob", plan, coalitions[:, where])
    np.testing.assert_allclose(found_values, values, atol=1e-5)
    np.testing.assert_allclose(found_gradients, gradients[:, where], atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "gemma2", "gemma3_text", "olmo2"])
@pytest.mark.parametrize("site", ["mlp_in", "mlp_out"])
def test_a_clusters_footprint_is_the_same_in_a_permuted_stream(family, site):
    lm = tiny_lm(family)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    permuted = in_stream(lm, torch.eye(16)[:, order])
    cluster = Cluster(tuple((layer, neuron) for layer in (0, 2) for neuron in (2, 5, 8, 11, 17)))
    found = {(layer, order[column]) for layer, column in footprint(permuted, cluster, site).neurons}
    assert found == set(footprint(lm, cluster, site).neurons) and len(found) < 32


def test_models_are_loaded_in_a_basis_of_the_stream(folder):
    plain = load_model(str(folder / "model"))
    save_vectors(haar(16, 4, "stream"), folder / "basis.safetensors")
    names = ["identity", "random", "random:4", "pca", str(folder / "basis.safetensors")]
    found = {name: load_model(f"{folder / 'model'}@residual:{name}") for name in names}
    for lm in found.values():
        torch.testing.assert_close(logits(lm.model), logits(plain.model), atol=1e-4, rtol=1e-4)
    prints = [lm.fingerprint for lm in (plain, *found.values())]
    assert len(set(prints)) == 5 and prints[3] == prints[5]  # the file holds random:4
    std = found["pca"].statistics("mlp_in").std.square().mean(dim=0)
    assert (std[1:] <= std[:-1] + 1e-4).all()  # variance over all layers, largest first
    assert "invariants do not hold" not in run(f"{folder / 'model'}@residual:pca")
    save_vectors(torch.eye(24), folder / "basis.safetensors")
    wanted = f"{folder / 'model'}@residual:{folder / 'basis.safetensors'}"
    assert "has the shape [24, 24], the model needs [16, 16]" in run(wanted)


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "phi3", "opt", "gptj", "olmo2", "bloom"])
def test_the_jacobian_that_is_made_sparse(family):
    """Against a small change of layer 0's hidden activation at a token: what it adds to the stream is added to what enters the
    norm before the next MLP, all else there held, and the next hidden activation is watched."""
    lm = tiny_lm(family)
    stream = find_stream(lm.model, lm.sites)
    ids, at, (first, second, _) = torch.tensor([[5, 9, 21, 33, 8]]), 3, lm.sites.blocks
    entered, left, hidden = [], [], []
    entry = second.entry if stream.before_mlp[1] is None else lm.model.get_submodule(stream.before_mlp[1])
    end = first.down if stream.behind_mlp[0] is None else lm.model.get_submodule(stream.behind_mlp[0])

    def logits_with(edits):
        handles = [module.register_forward_pre_hook(hook) for module, hook in edits]
        handles.append(end.register_forward_hook(lambda module, args, output: left.append(output.detach())))
        with torch.no_grad():
            lm.model(input_ids=ids, use_cache=False)
        for handle in handles:
            handle.remove()

    def at_token(x, change):
        moved = x.clone()
        moved.view(-1, x.shape[-1])[at] += change
        return moved

    direction = torch.randn(lm.sites.d_mlp, generator=torch.Generator().manual_seed(0))
    found = []
    for step in (5e-3, -5e-3):
        logits_with([(entry, lambda module, args: entered.append(args[0]))])
        logits_with([(first.down, lambda module, args: (at_token(args[0], step * direction),))])  # noqa: B023
        change = (left[-1] - left[-2]).view(-1, 16)[at]
        logits_with(
            [
                (entry, lambda module, args: (at_token(entered[-1], change), *args[1:])),  # noqa: B023
                (second.down, lambda module, args: hidden.append(args[0].view(-1, lm.sites.d_mlp)[at])),
            ]
        )
        found.append(hidden[-1])
    wanted = (found[0] - found[1]) / 1e-2
    down, onward = _onward(lm, stream, [_seen(lm, stream, ids[0].tolist(), at)], 0)
    assert wanted.abs().max() > 0.05
    torch.testing.assert_close(direction @ down @ onward[0], wanted, atol=5e-3 * float(wanted.abs().max()), rtol=0)


def test_a_learned_basis_is_sparser(folder):
    out = folder / "learned.safetensors"
    wanted = [folder / "model", "--out", out, "--steps", 40, "--device", "cpu"]
    done = CliRunner().invoke(learn, [str(part) for part in [*wanted, "--json"]])
    assert done.exit_code == 0, done.exception
    for own in json.loads(done.stdout)["sparsity"]:
        assert own["learned"] < 0.85 * min(own["identity"], own["random"])
    plain, lm = load_model(str(folder / "model")), load_model(f"{folder / 'model'}@{out}")
    torch.testing.assert_close(logits(lm.model), logits(plain.model), atol=1e-4, rtol=1e-4)
    vectors = load_vectors(out).double()
    assert (vectors.mT @ vectors - torch.eye(24)).abs().max() < 1e-5
    for arguments, said in (
        (wanted, "exists: pass --overwrite"),
        ([f"{folder / 'model'}@pca", *wanted[1:], "--overwrite"], "is in the basis pca already"),
        ([wanted[0], "--out", folder / "learned.pt"], "ends in .safetensors"),
    ):
        assert said in str(CliRunner().invoke(learn, [str(part) for part in arguments]).exception)


def test_learning_goes_on_where_it_was_stopped(monkeypatch, tmp_path):
    lm = tiny_lm("gpt2")
    layers = []

    def stopped(down, onward, steps, seed, layer):
        layers.append(layer)
        if len(layers) == 2:
            raise KeyboardInterrupt
        return _learned(down, onward, steps, seed, layer)

    monkeypatch.setattr("shapley.hf.learned._learned", stopped)
    with pytest.raises(KeyboardInterrupt):
        learn_basis(lm, tmp_path / "one.safetensors", 5, 0)
    learn_basis(lm, tmp_path / "one.safetensors", 5, 0)
    assert layers == [0, 1, 1, 2] and not list((tmp_path / "cache" / "learned").iterdir())
    learn_basis(lm, tmp_path / "two.safetensors", 5, 0)
    assert torch.equal(load_vectors(tmp_path / "one.safetensors"), load_vectors(tmp_path / "two.safetensors"))


def test_how_few_players_hold_the_value():
    scores = np.array([0.0, 3, 1, 0, -1, 5])
    found = concentration(scores, scores)
    assert (
        found["half"] == 1
        and found["total"] == 8
        and found["peak"] == 9
        and found["share"][:3] == [0.5556, 0.8889, 1.0]
    )
    one, equal = np.array([0.0, 0, 0, 4]), np.ones(4)
    assert concentration(one, one)["gini"] == 0.75 and concentration(equal, equal)["gini"] == 0
    absolute = np.abs(scores)
    pairs = np.abs(absolute[:, None] - absolute).sum()  # the Gini coefficient's definition
    assert found["gini"] == pytest.approx(pairs / (2 * len(scores) * absolute.sum()), abs=1e-4)
    # Of noise about equal scores nothing is concentrated, which one estimate alone would not show.
    rng = np.random.default_rng(0)
    noisy = [1 + 2 * rng.standard_normal(20_000) for _ in range(2)]
    assert concentration(*noisy)["half"] > 9500 and concentration(noisy[0], noisy[0])["half"] < 5000


def test_bases_are_compared(tmp_path):
    """Results in which directions hold more, and take more of their topic: of the figures and tables as well."""
    watched = [topic for topic in "xy" for _ in range(3)] + ["plain"] * 2
    records = []
    of = [("identity", 0, 1.0, 100), ("random", 0, 0.4, 400), ("random", 1, 0.6, 400), ("pca", 0, 2.0, 25)]
    for basis, seed, own, half in of:
        head = {"basis": basis, "seed": seed}
        records.append({**head, "what": "simple", "explained": [0.1, 0.2, own]})
        for i, topic in enumerate("xy"):
            curve = {
                "players": [1, 10, 100],
                "share": [0.1, 0.4, 0.9],
                "half": half,
                "gini": 0.5,
                "total": 3,
                "agreement": 0.7,
            }
            records.append({**head, "what": "concentration", "topic": topic, **curve})
            drop = np.repeat(np.roll([own, 0.1], i), 3).tolist() + [0.05] * 2
            records.append({**head, "what": "cluster", "topic": topic, "fraction": 0.01, "players": 5, "drop": drop})
    head = {
        "config": {"topics": ["x", "y"], "fractions": [0.01], "budget": 1, "seeds": 2, "passages": 9},
        "seed": 0, "watched": watched, "model": {"name": "m"}, "command": "c", "seconds": 1, "hardware": "h", "time": "t",
    }  # fmt: skip
    results = Results(head, records)
    assert results.bases == ["identity", "random", "pca"]
    assert results.concentrated("pca").fewer.estimate == pytest.approx(4)
    assert results.concentrated("random").fewer.high == pytest.approx(0.25)
    random = results.specific("random", 0.01)
    assert random.effect.target.estimate == pytest.approx(0.5) and random.seeds == pytest.approx((0.3, 0.5))
    assert results.specific("pca", 0.01).gain.low == pytest.approx(1.0) and random.gain.high < 0
    share = np.log1p(0.02) / 0.05  # along a straight line from no player on
    matched = results.matched("random", 0.02)
    assert (matched.target.estimate, matched.gain.low) == pytest.approx((0.5 * share, -0.5 * share))
    assert matched.below and np.isnan(results.matched("pca", 0.1).target.estimate)
    store(tmp_path / "m.jsonl", head, records)
    draw(results, tmp_path / "m.jsonl", tmp_path, "m")
    assert len(list(tmp_path.glob("*.png"))) == 2 and "| 5 | pca | 2.00 [2.00, 2.00] |" in tables(results)
    answers = section(results, "m").answers
    assert "fewer than neurons, beyond the interval over 2 topics: pca." in answers[0]
    assert "more selective than neurons' on the same prompts, beyond the interval: pca" in answers[1]
    assert "up by 5%, selectivity is" in answers[1] and "neurons': pca, below: random." in answers[1]
