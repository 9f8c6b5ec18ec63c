"""On a tiny random model of every family: masks per row equal weight edits, strength zero is bit-equal, padding and
batching change nothing, and the sites are where they should be."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from shapley.errors import ShapleyError
from shapley.hf.hooks import Rows, impair, observe, only_answer_logits
from shapley.hf.sites import Family, find_sites, register_family, write_weights
from shapley.hf.statistics import pad_right
from shapley.impairment import SITES, Impairment
from tests.tiny import FAMILIES, tiny_lm, tiny_model

IDS = torch.tensor([[5, 9, 21, 33, 8, 40, 17, 6], [11, 7, 30, 12, 44, 9, 5, 20]])


def logits(model, ids=IDS, **options):
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False, **options).logits


@pytest.fixture(params=FAMILIES)
def model(request):
    return tiny_model(request.param)


def test_masks_per_row_equal_weight_edits(model):
    sites = find_sites(model)
    torch.manual_seed(1)
    intact = [(torch.rand(2, sites.d_mlp) < 0.6).float() for _ in range(sites.n_layers)]
    with impair(model, Impairment("zero"), rows=Rows(intact=intact)):
        masked = logits(model)
    for row in range(2):
        edited = copy.deepcopy(model)
        for block, mask in zip(find_sites(edited).blocks, intact, strict=True):
            with torch.no_grad():
                write_weights(block).mul_(mask[row][:, None])  # a view of the weight: an edit in place
        torch.testing.assert_close(masked[row], logits(edited)[row], atol=2e-5, rtol=1e-5)
    assert (masked - logits(model)).abs().max() > 1e-2


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("kind", ["noise", "negative-noise", "shift", "scale", "zero"])
def test_strength_zero_is_bit_equal(model, site, kind):
    untouched = logits(model)
    with impair(model, Impairment(kind, strength=0.0, site=site)):
        assert torch.equal(logits(model), untouched)
    rows = Rows(strength=[0.0, 0.5])
    with impair(model, Impairment(kind, site=site), rows=rows):
        mixed = logits(model)
    assert torch.equal(mixed[0], untouched[0])
    assert not torch.allclose(mixed[1], untouched[1])
    assert torch.equal(logits(model), untouched)


@pytest.mark.parametrize("kind", ["zero", "noise", "negative-noise"])
def test_padded_equals_single(model, kind):
    short = IDS[1, :5].tolist()
    ids, valid = pad_right([IDS[0].tolist(), short], pad_id=0)
    impairment = Impairment(kind, strength=0.5, scope="prompt")
    rows = Rows(prompt_keys=["one", "two"], draws=[3, 4])
    with impair(model, impairment, rows=rows):
        together = logits(model, ids, attention_mask=valid.long())
    for row, (key, draw, tokens) in enumerate([("one", 3, IDS[0].tolist()), ("two", 4, short)]):
        with impair(model, impairment, rows=Rows(prompt_keys=[key], draws=[draw])):
            alone = logits(model, torch.tensor([tokens]), attention_mask=torch.ones(1, len(tokens)).long())
        torch.testing.assert_close(together[row, : len(tokens)], alone[0], atol=2e-5, rtol=1e-5)


def test_sites_are_what_they_say(model):
    """Zeroing mlp_out of every layer equals zeroing every neuron and bias of the MLP; mlp_in reaches the output only
    through the neurons."""
    sites = find_sites(model)
    with observe(sites, "mlp_hidden") as hidden, observe(sites, "mlp_out") as out:
        logits(model)
    assert [tuple(x.reshape(*IDS.shape, -1).shape) for x in hidden] == [(*IDS.shape, sites.d_mlp)] * sites.n_layers
    assert [tuple(x.reshape(*IDS.shape, -1).shape) for x in out] == [(*IDS.shape, sites.d_model)] * sites.n_layers
    silent = copy.deepcopy(model)
    for block in find_sites(silent).blocks:
        nn.init.zeros_(block.down.weight)
        if getattr(block.down, "bias", None) is not None:
            nn.init.zeros_(block.down.bias)
        if block.exit is not block.down and getattr(block.exit, "bias", None) is not None:
            nn.init.zeros_(block.exit.bias)
    with impair(model, Impairment("zero", site="mlp_out")):
        torch.testing.assert_close(logits(model), logits(silent), atol=1e-5, rtol=1e-5)
    with impair(model, Impairment("zero")), impair(model, Impairment("noise", 3.0, site="mlp_in")):
        noisy = logits(model)
    with impair(model, Impairment("zero")):
        torch.testing.assert_close(noisy, logits(model))


def test_answer_logits_are_the_logits_at_their_positions(model):
    positions = torch.tensor([[2, 3], [5, 6]])
    with only_answer_logits(model, positions):
        some = logits(model)
    everything = logits(model)
    assert some.shape == (2, 2, everything.shape[-1])
    expected = torch.stack([everything[row, positions[row]] for row in range(2)])
    torch.testing.assert_close(some, expected, atol=1e-5, rtol=1e-5)


def test_write_weights_are_what_a_neuron_adds(model):
    sites = find_sites(model)
    block = sites.blocks[1]
    x = torch.zeros(1, 1, sites.d_mlp)
    nothing = block.down(x)
    x[0, 0, 7] = 1.0
    torch.testing.assert_close((block.down(x) - nothing)[0, 0], write_weights(block)[7])


def test_mixture_of_experts_is_refused_by_name():
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vocab_size=50,
        num_local_experts=2,
    )
    with pytest.raises(ShapleyError, match=r"mixtral.*mixture of experts"):
        find_sites(MixtralForCausalLM(config))


class Block(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        self.mlp = nn.Module()
        for name in names:
            setattr(self.mlp, name, nn.Linear(8, 8))


class Unknown(nn.Module):
    def __init__(self, *names: str) -> None:
        super().__init__()
        self.config = type("Config", (), {"model_type": "brandnew"})()
        self.layers = nn.ModuleList(Block(*names) for _ in range(2))


def test_an_unknown_family_is_found_by_structure_or_refused_with_advice():
    assert find_sites(Unknown("w1", "w2", "w3")).family == Family(
        "layers", "mlp.w2", "mlp", "mlp", ("mlp.w1", "mlp.w3")
    )
    with pytest.raises(ShapleyError, match=r"brandnew.*register_family"):
        find_sites(Unknown("squeeze", "stretch"))


def test_a_family_can_be_registered(monkeypatch):
    monkeypatch.setattr("shapley.hf.sites.FAMILIES", {})
    register_family("brandnew", Family("layers", "mlp.stretch", "mlp", "mlp", ("mlp.squeeze",)))
    assert find_sites(Unknown("squeeze", "stretch")).n_layers == 2
    register_family("brandnew", Family("layers", "mlp.gone", "mlp", "mlp", ()))
    with pytest.raises(ShapleyError, match="register_family"):
        find_sites(Unknown("squeeze", "stretch"))


def test_a_block_without_an_mlp_is_named():
    model = copy.deepcopy(tiny_model("llama"))
    del model.model.layers[2].mlp
    with pytest.raises(
        ShapleyError, match=r"'llama': block 2 is not built as its family's MLPs are: .* no attribute `mlp`"
    ):
        find_sites(model)


@pytest.mark.parametrize("packed", [None, torch.nn.Parameter(torch.zeros(8))])
def test_a_projection_that_keeps_no_matrix_is_named(packed):
    """As quantised ones do."""
    model = copy.deepcopy(tiny_model("llama"))
    model.model.layers[1].mlp.down_proj.weight = packed
    with pytest.raises(ShapleyError, match=r"'llama': block 1: the down-projection \(Linear\) has no matrix `weight`"):
        find_sites(model)


def test_structure_agrees_with_the_table(monkeypatch):
    """The rule for unknown families finds the same down-projection as the table, in every family."""
    expected = {family: find_sites(tiny_model(family)).family.down for family in FAMILIES}
    monkeypatch.setattr("shapley.hf.sites.FAMILIES", {})
    assert {family: find_sites(tiny_model(family)).family.down for family in FAMILIES} == expected


def test_tiny_models_have_a_tokenizer():
    lm = tiny_lm("llama")
    assert lm.tokenizer("the player won")["input_ids"] == [4, 6, 15]
