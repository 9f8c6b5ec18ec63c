"""Models spread over devices. There is one here: fake tensors say where they are and refuse to meet, and compute nothing."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from shapley.errors import ShapleyError
from shapley.game import NeuronGame
from shapley.hf.hooks import Rows, impair, only_answer_logits
from shapley.hf.load import load_model, weights_dtype
from shapley.hf.replay import record_entries, start_at
from shapley.hf.sites import find_sites
from shapley.impairment import Impairment
from shapley.jobs.games import game_record, open_games
from shapley.prompts import Prompt, TopicPrompts
from shapley.workers import worker_devices
from tests.test_workers import save_model
from tests.tiny import tiny_lm

pytest.importorskip("accelerate")
from accelerate import dispatch_model
from accelerate.hooks import AlignDevicesHook, add_hook_to_module


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.ModuleDict({"up_proj": nn.Linear(8, 12), "down_proj": nn.Linear(12, 8)})

    def forward(self, hidden_states):
        return hidden_states + self.mlp["down_proj"](self.mlp["up_proj"](hidden_states).relu())


class Model(nn.Module):
    """Three blocks, on two devices that are not there; moved between them as ``device_map`` does it."""

    config = SimpleNamespace(model_type="three-blocks")

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(32, 8), nn.Linear(8, 32)
        self.blocks = nn.ModuleList([Block(), Block(), Block()])
        for module, place in (
            (self.embed, 0),
            (self.blocks[0], 0),
            (self.blocks[1], 1),
            (self.blocks[2], 1),
            (self.head, 1),
        ):
            move(module, place)
        add_hook_to_module(self, hook(0, same=True))

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)

    def get_output_embeddings(self):
        return self.head


def hook(place, same=False):
    return AlignDevicesHook(torch.device("cpu", place), io_same_device=same, place_submodules=False)


def move(module, place):
    for part in module.modules():
        for name, weight in part._parameters.items():
            moved = weight.detach().to(torch.device("cpu", place))
            part._parameters[name] = nn.Parameter(moved, requires_grad=False)
    add_hook_to_module(module, hook(place))


@pytest.fixture
def fake():
    return FakeTensorMode(allow_non_fake_inputs=True)


@pytest.mark.parametrize("kind", ["zero", "scale"])
def test_gates_go_to_each_layers_device(fake, kind):
    with fake, torch.no_grad():
        model = Model()
        ids = torch.zeros(3, 5, dtype=torch.int64, device="cpu:0")
        gates = [torch.ones(3, 12, device="cpu:0") for _ in range(3)]
        last = torch.full((3, 1), 4, device="cpu:0")
    assert {str(weight.device) for weight in model.parameters()} == {"cpu:0", "cpu:1"}
    for settings in (Rows(intact=gates), Rows(intact=gates, strength=[0.5, 1.0, 0.2]), Rows(strength=[0.5, 1.0, 0.2])):
        with impair(model, Impairment(kind), rows=settings), only_answer_logits(model, last), fake, torch.no_grad():
            logits = model(ids)
        assert logits.shape == (3, 1, 32) and str(logits.device) == "cpu:0"


def test_gradients_come_back_to_where_the_gates_are(fake):
    with fake:
        model = Model()
        ids = torch.zeros(3, 5, dtype=torch.int64, device="cpu:0")
        gates = [torch.ones(3, 12, device="cpu:0", requires_grad=True) for _ in range(3)]
    with impair(model, Impairment("zero"), rows=Rows(intact=gates)), fake:
        gradients = torch.autograd.grad(model(ids).sum(), gates)
    assert [(tuple(part.shape), str(part.device)) for part in gradients] == [((3, 12), "cpu:0")] * 3


def test_replay_crosses_devices_and_leaves_the_hooks_that_were_there(fake):
    with fake, torch.no_grad():
        model = Model()
        sites = find_sites(model)
        ids = torch.zeros(3, 5, dtype=torch.int64, device="cpu:0")
        before = [block.block.forward for block in sites.blocks]
        with record_entries(sites, frozenset({1, 2})) as entries:
            model(ids)
        rows = torch.tensor([0, 2], device="cpu:0")
        for layer in 1, 2:
            with start_at(sites, layer, entries, rows, 4):
                assert model(ids[:2, :4]).shape == (2, 4, 32)
            assert [block.block.forward for block in sites.blocks] == before


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_dispatched_model_gives_the_same_numbers(family):
    """On one device, but with all hooks of a device map."""
    plain = tiny_lm(family)
    spread = copy.deepcopy(plain)
    blocks = spread.sites.blocks_path
    names = list(spread.model.state_dict())
    depth = blocks.count(".") + 2
    tops = (".".join(name.split(".")[:depth]) if name.startswith(blocks) else name.rpartition(".")[0] for name in names)
    layout = dict.fromkeys(tops, "cpu")
    dispatch_model(spread.model, layout, main_device="cpu", force_hooks=True)
    topic = TopicPrompts("t", (Prompt("t", "the cat", " sat"), Prompt("t", "a dog sat on", " the")))
    found = []
    for lm in plain, spread:
        game = NeuronGame(lm, topic)
        coalitions = np.random.default_rng(0).random((4, game.n_players)) < 0.7
        prompts, players = np.array([0, 1, 0, 1]), np.array([0, 30, 70])
        for _ in range(2):  # what the first leaves behind would show in the second
            found.append([game.values(coalitions), game.gradients(coalitions, prompts=prompts)[1]])
            found[-1].append(game.marginals(coalitions, players, prompts=prompts))
    for other in found[1:]:
        assert all((a == b).all() for a, b in zip(found[0], other, strict=True))


def test_loaded_by_name(tmp_path):
    """Where there is no GPU, everything lands on the CPU, by the same way."""
    save_model(tmp_path)
    plain, spread = load_model(str(tmp_path)), load_model(str(tmp_path), device="spread")
    assert spread.fingerprint == plain.fingerprint and str(spread.device) == "cpu"
    record = game_record(
        str(tmp_path),
        trust_remote_code=False,
        impairment={},
        value="logprob",
        layers=None,
        dtype="bfloat16",
        memory=None,
    )
    model, make = open_games(record, "spread")
    assert model["fingerprint"] == plain.fingerprint
    game = make(TopicPrompts("t", (Prompt("t", "the cat", " sat"),)))
    assert {weight.dtype for weight in game.lm.model.parameters()} == {torch.bfloat16}
    assert np.isfinite(game.values(np.ones((1, game.n_players), dtype=bool))).all()


def test_weights_are_narrow_only_where_memory_counts():
    assert weights_dtype("spread", "bfloat16") == "bfloat16"
    assert weights_dtype("spread", "auto") == weights_dtype("cuda", "bfloat16") == "float32"


def test_one_copy_has_all_gpus():
    with pytest.raises(ShapleyError, match="no room for 2 workers"):
        worker_devices(["spread"], torch.device("cpu"), 2)
    assert worker_devices(["spread"], torch.device("cpu"), 1) == ("spread",)
