"""Learning a basis: the Jacobian is what it is said to be, and gets sparser."""

from __future__ import annotations

import json

import pytest
import torch
from click.testing import CliRunner

from shapley.cli.basis import learn
from shapley.hf.bases import load_vectors, save_vectors
from shapley.hf.learned import _HELD_OUT, _learned, _onward, _seen, collect
from shapley.hf.learned import learn as learn_basis
from shapley.hf.load import load_model
from shapley.hf.stream import find_stream
from tests.tiny import logits, tiny_lm

pytestmark = pytest.mark.usefixtures("own_cache")


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


@pytest.mark.real_model
def test_directions_are_orthogonal_where_float32_would_not_do():
    """Layer 3 of the demo model, nearly unmoved after three steps: its decomposition in float32 was off by 1.6."""
    lm = load_model("smollm2")
    stream = find_stream(lm.model, lm.sites)
    down, onward = _onward(lm, stream, collect(lm, stream, 0), 3)
    vectors = _learned(down, onward[:-_HELD_OUT], 3, 0, 3).double()
    assert (vectors.T @ vectors - torch.eye(len(vectors))).abs().max() < 1e-5


def test_others_may_read_a_basis_as_they_may_other_files(tmp_path):
    save_vectors(torch.eye(3), tmp_path / "basis.safetensors")
    (tmp_path / "plain").touch()
    assert (tmp_path / "basis.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode
