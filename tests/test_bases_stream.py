"""Directions of the residual stream as players."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from shapley.clusters import Cluster
from shapley.errors import ShapleyError
from shapley.footprint import footprint
from shapley.hf.bases import haar, save_vectors
from shapley.hf.hooks import attach, impair
from shapley.hf.load import LanguageModel, load_model
from shapley.hf.residual import turn_stream
from shapley.hf.scoring import RowPlan, RowScorer
from shapley.hf.sites import find_sites
from shapley.impairment import Impairment
from tests.test_bases import run
from tests.tiny import FAMILIES, PROMPTS, logits, tiny_lm, tiny_model

pytestmark = pytest.mark.usefixtures("own_cache")


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


@pytest.mark.parametrize("family", FAMILIES)
def test_the_function_is_preserved_in_a_basis_of_the_stream(family):
    model = widened(family)
    before = logits(model)
    sites = find_sites(model)
    vectors = torch.linalg.qr(haar(16, 3, "stream").double())[0]
    turn_stream(model, sites, lambda: vectors)
    assert (logits(model) - before).abs().max() < 1e-13 * before.abs().max()
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
