"""Units of a sparse layer as players: the same machinery as for neurons, against plain weight edits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from shapley.cli.main import cli
from shapley.cli.submit import _from_anywhere
from shapley.errors import ShapleyError
from shapley.game import NeuronGame
from shapley.hf.invariants import check_model
from shapley.hf.load import describe, load_model
from shapley.hf.sites import write_weights
from shapley.prompts import Prompt, TopicPrompts
from shapley.sparse.insert import PLACES, inserted
from shapley.sparse.kept import save_layer
from shapley.sparse.layer import LayerSpec, SparseLayer
from shapley.store import ScoreFile
from tests.tiny import FAMILIES, tiny_lm, with_units, word_tokenizer

PROMPTS = TopicPrompts(
    "sport",
    (
        Prompt("sport", "the player won the", " race"),
        Prompt("sport", "the coach of the old city club", " played"),
        Prompt("sport", "a goal", " sold"),
    ),
)
IDS = torch.tensor([[5, 9, 14, 20, 7, 8], [6, 11, 30, 4, 0, 0]])
MASK = (IDS != 0).long()


def logits(lm):
    with torch.no_grad():
        return lm.model(input_ids=IDS, attention_mask=MASK, use_cache=False).logits


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", FAMILIES)
def test_units_are_players_in_every_family(family, place):
    plain = tiny_lm(family)
    lm = with_units(plain, place)
    assert (lm.sites.n_layers, lm.sites.d_mlp, plain.sites.n_layers) == (1, 40, 3)
    with inserted(plain, lm.model.sparse_layer, place):
        assert torch.equal(logits(lm), logits(plain))
    assert not [result.name for result in check_model(lm) if not result.holds]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("family", FAMILIES)
def test_marginals_run_the_last_block_only(family, place):
    lm = with_units(tiny_lm(family), place)
    game, runs = NeuronGame(lm, PROMPTS), [0, 0]
    coalitions = np.random.default_rng(0).random((2, 40)) < 0.7
    players = np.array([3, 17, 39])
    expected = np.empty((2, 3))
    for j, player in enumerate(players):
        inside, outside = coalitions.copy(), coalitions.copy()
        inside[:, player], outside[:, player] = True, False
        expected[:, j] = game.values(inside) - game.values(outside)
    first, last = lm.sites.below[0], lm.sites.blocks[0].block
    for i, block in enumerate((first, last)):
        within = next(
            module for name, module in block.named_modules() if name.endswith(("o_proj", "c_proj", "out_proj", "dense"))
        )
        within.register_forward_hook(lambda *args, i=i: runs.__setitem__(i, runs[i] + 1))
    np.testing.assert_allclose(game.marginals(coalitions, players), expected, atol=2e-5)
    assert 0 < runs[0] < runs[1]


@pytest.mark.parametrize(("family", "place"), [("llama", "replace"), ("gemma3_text", "replace"), ("opt", "add")])
def test_marginals_are_those_of_plain_weight_edits(family, place):
    lm = with_units(tiny_lm(family), place)
    game = NeuronGame(lm, PROMPTS)
    found = game.marginals(np.ones((1, 40), dtype=bool), np.arange(40))[0]
    whole = game.values(np.ones((1, 40), dtype=bool))[0]
    weights = write_weights(lm.sites.blocks[0])
    by_hand = []
    for unit in range(40):
        kept = weights[unit].clone()
        weights[unit] = 0
        by_hand.append(whole - game.values(np.ones((1, 40), dtype=bool))[0])
        weights[unit] = kept
    np.testing.assert_allclose(found, by_hand, atol=1e-5)
    assert (np.abs(found) > 1e-6).sum() > 10


def test_what_follows_the_mlp_is_known():
    assert tiny_lm("gemma3_text").sites.undoes_gain and not tiny_lm("llama").sites.undoes_gain
    for family, place, wanted in [
        ("llama", "replace", False),
        ("gemma3_text", "replace", True),
        ("gemma3_text", "add", False),
        ("bloom", "replace", False),
    ]:
        assert with_units(tiny_lm(family), place).sites.undoes_gain == wanted


def test_the_fingerprint_is_of_the_layer_too():
    plain = tiny_lm("llama")
    found = {with_units(plain, place, boost=boost).fingerprint for place in PLACES for boost in (0.0, 2.0)}
    assert len(found | {plain.fingerprint}) == 5


# From files, through the commands


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model in a folder, and a layer that was trained in it, or so it says."""
    folder = tmp_path_factory.mktemp("units")
    lm = tiny_lm("llama")
    lm.model.save_pretrained(folder / "model")
    word_tokenizer().save_pretrained(folder / "model")
    layer = SparseLayer(LayerSpec(16, 40, density=0.2), gain=3.0)
    torch.nn.init.normal_(layer.down.weight, generator=torch.Generator().manual_seed(1))
    base = describe(load_model(str(folder / "model"), device="cpu"))
    save_layer(folder / "layer.safetensors", layer, "replace", base)
    save_layer(folder / "other.safetensors", layer, "replace", base | {"fingerprint": "0", "name": "another"})
    lines = [{"topic": "sport", "prompt": own.prompt, "answer": own.answer} for own in PROMPTS.prompts]
    lines += [own | {"topic": "music"} for own in lines[:2]]
    (folder / "p.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_estimate_cluster_sweep_and_look(folder, monkeypatch):
    monkeypatch.chdir(folder)
    own = ["--model", "model@sparse:layer.safetensors"]

    def run(*arguments):
        result = CliRunner().invoke(cli, [*arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    run("estimate", *own, "--prompts", "p.jsonl", "--out", "s.h5", "--estimator", "permutation", "--samples", "4")
    scores = ScoreFile("s.h5")
    assert scores["sport"].score.shape == (1, 40) and scores.model["d_mlp"] == 40
    run("cluster", "s.h5", "--topic", "sport", "--top-k", "5", "--out", "c.json")
    run(
        "sweep",
        *own,
        "--prompts",
        "p.jsonl",
        "--cluster",
        "c.json",
        "--impairment",
        "scale",
        "--strength",
        "0,1",
        "--out",
        "w.h5",
    )
    found = json.loads(run("neurons", "s.h5", *own, "--topic", "sport", "--top-k", "3", "--json"))
    assert found["noun"] == "unit" and found["players"][0]["scores"]["sport"][0] > 0
    assert "0:7" in run("neurons", *own, "--players", "0:7", "--json").replace('"layer": 0, "neuron": 7', "0:7")
    result = CliRunner().invoke(cli, ["neurons", "s.h5", "--model", "model", "--topic", "sport", "--json"])
    assert "belongs to another model" in str(result.exception)
    assert "sparse_layer.down" in run("check", own[1])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model@sparse:other.safetensors", "trained in another"),
        ("model@sparse:absent.safetensors", "cannot read the sparse layer absent.safetensors"),
        ("model@sparse:layer", "cannot read the sparse layer layer"),
        ("model@sparse:", "cannot read the sparse layer"),
        ("model@sparse:model/model.safetensors", "holds no sparse layer"),
        ("model@sparse:layer.safetensors@pca", "leave the basis pca away"),
    ],
)
def test_mistakes_are_told_in_a_line(folder, monkeypatch, name, said):
    monkeypatch.chdir(folder)
    with pytest.raises(ShapleyError, match=said) as caught:
        load_model(name, device="cpu")
    assert "\n" not in str(caught.value)


def test_jobs_find_the_layer_from_anywhere(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert _from_anywhere("model@sparse:layer.safetensors") == f"{folder}/model@sparse:{folder}/layer.safetensors"


def test_it_is_no_basis_and_is_not_exported(folder, monkeypatch):
    monkeypatch.chdir(folder)
    arguments = ["neurons", "--model", "model", "--basis", "sparse:layer.safetensors", "--sample", "2", "--json"]
    assert "write --model model@sparse:layer" in str(CliRunner().invoke(cli, arguments).exception)
    result = CliRunner().invoke(cli, ["export", "model@sparse:layer.safetensors", "--strength", "0.5", "--out", "e"])
    assert "export the model without" in str(result.exception) and not Path("e").exists()
