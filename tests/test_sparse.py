"""Sparse layers: winners against plain loops, what transformers need, insertion in every family, training that resumes."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from shapley.errors import ShapleyError
from shapley.hf.hooks import observe
from shapley.hf.load import LanguageModel
from shapley.sparse import train as train_module
from shapley.sparse.frozen import FrozenText
from shapley.sparse.insert import inserted, original_parameters
from shapley.sparse.kept import load_layer, save_layer
from shapley.sparse.layer import LayerSpec, SparseLayer, units_for
from shapley.sparse.text import split
from shapley.sparse.train import Training, train
from shapley.sparse.usage import dead, entropy, frequencies
from shapley.sparse.winners import Winners, batch_top_k, multiplied, shifted, top_k
from tests.tiny import FAMILIES, VOCABULARY, tiny_lm, tiny_model, word_tokenizer

DUTY = torch.tensor([0.0, 0.9, 0.2, 0.5])


def winners(units=4, rule="top-k", k=1, **changed):
    settings = {"boost": 0.0, "signed": False, "inference_factor": 1.0, "period": 1000} | changed
    return Winners(units, rule, k, **settings)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def perturbed(spec, gain=1.0):
    """A layer that writes something."""
    layer = SparseLayer(spec, gain)
    nn.init.normal_(layer.down.weight, std=0.3, generator=torch.Generator().manual_seed(1))
    return layer


# Winners


def test_top_k_against_a_loop():
    values = drawn(2, 5, 9)
    chosen = top_k(values, 3)
    for row, wins in zip(values.view(-1, 9), chosen.view(-1, 9), strict=True):
        assert sorted(wins.nonzero().flatten().tolist()) == sorted(sorted(range(9), key=lambda i: -row[i])[:3])


def test_batch_top_k_against_a_loop():
    values = drawn(2, 5, 9)
    real = torch.ones(2, 5, dtype=torch.bool)
    real[1, 3:] = False
    chosen = batch_top_k(values, 2, real)
    places = [(r, t, u) for r in range(2) for t in range(5) for u in range(9) if real[r, t]]
    expected = set(sorted(places, key=lambda place: -values[place])[: 2 * 8])
    assert {tuple(place) for place in chosen.nonzero().tolist()} == expected


@pytest.mark.parametrize("rule", ["top-k", "batch-top-k"])
def test_any_leading_shape(rule):
    values = drawn(2, 5, 9).relu()
    shaped, flat = winners(9, rule, 3, boost=2.0), winners(9, rule, 3, boost=2.0)
    for _ in range(2):
        out = shaped(values)
        assert out.shape == values.shape
        assert torch.equal(out.view(-1, 9), flat(values.view(-1, 9)))
    assert torch.equal(shaped.duty_cycle, flat.duty_cycle)


def test_the_rare_unit_wins_and_its_value_is_passed_on_unboosted():
    module = winners(boost=3.0)
    module.duty_cycle.copy_(DUTY)
    values = torch.tensor([[[1.0, 1.5, 0.1, 0.2]]], requires_grad=True)
    out = module(values)
    assert out.tolist() == [[[1.0, 0.0, 0.0, 0.0]]]  # 1.0 e^(3 x 0.25) > 1.5 e^(3 x (0.25 - 0.9))
    out.sum().backward()
    assert values.grad.tolist() == [[[1.0, 0.0, 0.0, 0.0]]]
    assert winners()(values.detach()).tolist() == [[[0.0, pytest.approx(1.5), 0.0, 0.0]]]


def test_the_boost_is_the_papers():
    values = drawn(3, 4).relu()
    expected = [
        [float(v) * math.exp(2.0 * (0.25 - float(d))) for v, d in zip(row, DUTY, strict=True)] for row in values
    ]
    np.testing.assert_allclose(multiplied(values, DUTY, 0.25, 2.0), expected, rtol=1e-6)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_additive_boost_never_inverts(sign):
    values = sign * drawn(50, 4).abs()
    boosted = shifted(values, DUTY, 0.25, 2.0)
    for i in range(4):
        for j in range(4):
            if DUTY[i] < DUTY[j]:  # what is not less, and rarer, stays not less
                ahead = values[:, i] >= values[:, j]
                assert (boosted[ahead, i] > boosted[ahead, j]).all()
    equal = shifted(sign * torch.ones(1, 4), DUTY, 0.25, 2.0)[0]
    assert equal.argsort().tolist() == DUTY.argsort(descending=True).tolist()
    inverted = multiplied(-torch.ones(1, 4), DUTY, 0.25, 2.0)[0]  # why the factor is not for negative values
    assert inverted.argsort().tolist() == DUTY.argsort().tolist()


def test_gelu_is_boosted_by_a_sum():
    assert SparseLayer(LayerSpec(4, 8, activation="gelu")).winners.signed
    module = winners(boost=1.0, signed=True)
    module.duty_cycle.copy_(DUTY)
    assert module(torch.full((1, 4), -0.1)).nonzero().tolist() == [[0, 0]]  # the rarest


def test_no_token_depends_on_another_in_evaluation():
    values = drawn(4, 6, 4)
    values[0] *= 1000
    assert torch.equal(shifted(values, DUTY, 0.25, 2.0)[1:2, 2:3], shifted(values[1:2, 2:3], DUTY, 0.25, 2.0))
    for settings in ({"rule": "top-k", "signed": True}, {"rule": "batch-top-k"}):
        module = winners(9, k=3, boost=2.0, **settings)
        module(drawn(4, 6, 9).relu())
        module.eval()
        values = drawn(4, 6, 9, seed=1).relu()
        assert torch.equal(module(values)[1:2, 2:3], module(values[1:2, 2:3]))


def test_padding_neither_wins_nor_counts():
    real = torch.tensor([[True, True, False], [True, False, False]])
    values = drawn(2, 3, 9).relu() + 0.1
    values[~real] = 100.0
    for rule in ("dense", "top-k", "batch-top-k"):
        padded, alone = winners(9, rule, 2, boost=1.0), winners(9, rule, 2, boost=1.0)
        for training in (True, False):
            out = padded.train(training)(values, real)
            assert not out[~real].any() and torch.equal(out[real], alone.train(training)(values[real]))
        assert torch.equal(padded.duty_cycle, alone.duty_cycle) and int(padded.seen) == 3
    module = winners(9)
    assert not module(values, torch.zeros_like(real)).any() and int(module.seen) == 0  # nothing but padding


def test_more_winners_at_inference():
    module = winners(20, k=4, inference_factor=1.5)
    values = drawn(2, 3, 20).abs() + 0.1
    assert set((module(values) != 0).sum(-1).flatten().tolist()) == {4}
    before = module.duty_cycle.clone()
    assert set((module.eval()(values) != 0).sum(-1).flatten().tolist()) == {6}
    assert torch.equal(module.duty_cycle, before) and int(module.seen) == 6


def test_batch_top_k_at_inference_keeps_about_k():
    module = winners(50, "batch-top-k", 5, period=100_000)
    for seed in range(20):
        module(drawn(8, 10, 50, seed=seed).relu())
    active = (module.eval()(drawn(8, 50, 50, seed=99).relu()) != 0).float().sum(-1)
    assert abs(float(active.mean()) - 5) < 1 and active.std() > 0.5


def test_duty_cycles_stay_shares_where_a_batch_exceeds_the_period():
    module = winners(9, k=3, period=10)
    for seed in range(4):
        out = module(drawn(8, 50, 9, seed=seed).relu())
        assert module.duty_cycle.min() >= 0 and module.duty_cycle.max() <= 1
        np.testing.assert_allclose(module.duty_cycle, (out != 0).float().mean(dim=(0, 1)), rtol=1e-5)


def test_duty_cycles_are_the_moving_average_of_nupic_where_that_is_one():
    module, period, seen = winners(9, k=3, period=60), 60, 0
    expected = torch.zeros(9)
    for seed in range(12):
        out = module(drawn(1, 10, 9, seed=seed).relu())
        seen += 10
        span = min(period, seen)
        expected = (expected * (span - 10) + (out != 0).sum(dim=(0, 1))) / span
        np.testing.assert_allclose(module.duty_cycle, expected, rtol=1e-5, atol=1e-7)


def test_boosting_spreads_the_work():
    shift = torch.linspace(0, 2, 20)  # some units are always larger than others

    def spread(boost):
        module = winners(20, k=2, boost=boost, period=500)
        for seed in range(60):
            module((drawn(4, 10, 20, seed=seed) + shift).relu())
        return entropy(module.duty_cycle), dead(module.duty_cycle)

    (plain, dead_plain), (boosted, dead_boosted) = spread(0.0), spread(10.0)
    assert boosted > plain + 0.1 and dead_boosted <= dead_plain


def test_entropy_and_dead_units():
    assert entropy(np.full(10, 0.2)) == pytest.approx(1)
    assert entropy([0.5, 0.0]) == pytest.approx(math.log(2) / 2 / (-(0.25 * math.log(0.25) + 0.75 * math.log(0.75))))
    assert dead([0.5, 0.0, 0.1, 0.0]) == 0.5
    assert math.isnan(entropy(np.zeros(4)))


# The layer


def test_fixed_weights_stay_zero_and_are_drawn_by_seed():
    layer = perturbed(LayerSpec(16, 40, weight_density=0.25))
    kept = layer.up.kept
    assert (kept.sum(dim=1) == 4).all()
    assert torch.equal(kept, SparseLayer(LayerSpec(16, 40, weight_density=0.25)).up.kept)
    assert not torch.equal(kept, SparseLayer(LayerSpec(16, 40, weight_density=0.25, seed=1)).up.kept)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1)
    before = layer.up.weight.detach().clone()
    for seed in range(3):
        optimiser.zero_grad()
        layer(drawn(2, 3, 16, seed=seed)).square().sum().backward()
        optimiser.step()
    assert not layer.up.weight[~kept].any() and not torch.equal(before, layer.up.weight)


def test_equal_parameters():
    dense = SparseLayer(LayerSpec(16, units_for(5000, 16, 1.0), rule="dense"))
    sparse = SparseLayer(LayerSpec(16, units_for(5000, 16, 0.25), weight_density=0.25))
    for layer in (dense, sparse):
        nonzero = sum(int(p.numel()) for p in layer.parameters()) - int((~layer.up.kept).sum())
        assert layer.parameter_count == nonzero and 4960 < nonzero <= 5000
    assert sparse.spec.units > dense.spec.units
    with pytest.raises(ShapleyError, match="too few"):
        units_for(30, 16, 1.0)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"rule": "topk"}, "did you mean"),
        ({"activation": "silu"}, "unknown activation"),
        ({"density": 0.0}, "density"),
        ({"weight_density": 1.5}, "weight_density"),
        ({"units": 0}, "at least 1"),
        ({"boost": -1.0}, "boost"),
        ({"inference_factor": 0.5}, "inference_factor"),
    ],
)
def test_what_makes_no_layer_is_refused_in_a_line(wrong, says):
    with pytest.raises(ShapleyError, match=says) as caught:
        LayerSpec(**({"width": 16, "units": 8} | wrong))
    assert "\n" not in str(caught.value)


def test_a_layer_comes_back_from_its_file(tmp_path):
    layer = perturbed(LayerSpec(16, 40, boost=2.0, weight_density=0.5, seed=3), gain=7.0)
    layer(drawn(2, 9, 16))
    save_layer(tmp_path / "layer.safetensors", layer, "add", {"name": "m", "fingerprint": "f"})
    kept = load_layer(tmp_path / "layer.safetensors")
    again = kept.layer
    assert kept.place == "add" and kept.model == {"name": "m", "fingerprint": "f"}
    x = drawn(2, 3, 16, seed=5)
    assert again.spec == layer.spec and torch.equal(again(x), layer.eval()(x))
    for wrong in (
        {"place": "beside"},
        {"spec": "{}"},
        {"spec": "{"},
        {"spec": '{"width": 16, "units": 8}'},
        {"model": "{"},
    ):
        with safe_open(tmp_path / "layer.safetensors", framework="pt") as file:
            save_file(layer.state_dict(), tmp_path / "wrong.safetensors", file.metadata() | wrong)
        with pytest.raises(ShapleyError, match=r"wrong.safetensors holds no sparse layer of this version$"):
            load_layer(tmp_path / "wrong.safetensors")
    (tmp_path / "other").write_text("nothing")
    for name in ("other", "absent"):
        with pytest.raises(ShapleyError, match="cannot read"):
            load_layer(tmp_path / name)


# In a model


def structure(model):
    """Every module, and how many hooks are on it."""
    return {
        name: (id(own), len(own._forward_hooks), len(own._forward_pre_hooks)) for name, own in model.named_modules()
    }


IDS = torch.tensor([[5, 9, 14, 20, 7, 8], [6, 11, 30, 4, 0, 0]])
REAL = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])


def logits(lm):
    with torch.no_grad():
        return lm.model(input_ids=IDS, attention_mask=REAL, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_insertion_in_every_family(family):
    lm = tiny_lm(family)
    before, original = logits(lm), structure(lm.model)
    last = lm.sites.blocks[-1]

    # Added: the identity at the start; then what is written into the residual stream.
    layer = SparseLayer(LayerSpec(16, 20)).eval()
    with inserted(lm, layer, "add"):
        assert torch.equal(logits(lm), before)
        nn.init.normal_(layer.down.weight)
        assert not torch.allclose(logits(lm), before)

    # In place: at the start, as if the down-projection gave nothing; it reads mlp_in; and knows what is padding.
    with observe(lm.sites, "mlp_in") as seen:
        logits(lm)
    handle = last.down.register_forward_hook(lambda module, args, out: torch.zeros_like(out))
    without = logits(lm)
    handle.remove()
    layer = SparseLayer(LayerSpec(16, 20)).eval()
    read = []
    layer.register_forward_pre_hook(lambda module, args: read.append(args))
    with inserted(lm, layer, "replace"):
        torch.testing.assert_close(logits(lm), without)
        nn.init.normal_(layer.down.weight)
        assert not torch.allclose(logits(lm), without)
    assert torch.equal(read[0][0], seen[-1]) and torch.equal(read[0][1].view(2, 6), REAL.bool())

    assert torch.equal(logits(lm), before) and structure(lm.model) == original


def test_in_place_of_the_mlp_it_can_be_the_mlp():
    """A dense ReLU layer of the model's own weights is the model's own MLP, where what enters has a root mean square of 1."""
    lm = tiny_lm("opt")
    last = lm.sites.blocks[-1]
    layer = SparseLayer(LayerSpec(16, 24, rule="dense"), gain=24**0.5).eval()
    with torch.no_grad():
        layer.up.weight.copy_(last.up[0].weight)
        layer.up.bias.copy_(last.up[0].bias)
        layer.down.weight.copy_(last.down.weight)
        layer.down.bias.copy_(last.down.bias)
    before = logits(lm)
    with inserted(lm, layer, "replace"):
        torch.testing.assert_close(logits(lm)[REAL.bool()], before[REAL.bool()], atol=2e-3, rtol=1e-3)


def test_a_cache_of_keys_and_left_padding():
    lm = tiny_lm("llama")
    layer = perturbed(LayerSpec(16, 20)).eval()
    ids = torch.tensor([[0, 0, 5, 9, 14], [5, 9, 14, 20, 7]])
    mask = (ids != 0).long()
    with inserted(lm, layer, "replace"), torch.no_grad():
        whole = lm.model(input_ids=ids, attention_mask=mask).logits[:, -1]
        first = lm.model(input_ids=ids[:, :4], attention_mask=mask[:, :4], use_cache=True)
        then = lm.model(input_ids=ids[:, 4:], attention_mask=mask, past_key_values=first.past_key_values)
    torch.testing.assert_close(then.logits[:, -1], whole, atol=1e-4, rtol=1e-4)


def test_bad_places_and_models_are_refused_in_a_line():
    lm = tiny_lm("llama")
    with pytest.raises(ShapleyError, match="unknown place"), inserted(lm, SparseLayer(LayerSpec(16, 8)), "instead"):
        pass
    with pytest.raises(ShapleyError, match="width 12 does not fit"), inserted(lm, SparseLayer(LayerSpec(12, 8)), "add"):
        pass
    model = copy.deepcopy(tiny_model("llama"))
    model.model.layers[-1].mlp = nn.Identity()
    with pytest.raises(ShapleyError) as caught:
        LanguageModel(model, word_tokenizer(), "headless", "local")
    assert str(caught.value) == (
        "model type 'llama': block 2 is not built as its family's MLPs are: the down-projection was expected at mlp.down_proj, "
        "and its mlp (Identity) has no attribute `down_proj` that is a module; take a model with an MLP in every block, or, "
        "where they are built otherwise, tell the package with shapley.register_family(model_type, shapley.Family(...))"
    )


# Training


def documents(n, seed=0, longest=12):
    rng = np.random.default_rng(seed)
    return [rng.integers(4, VOCABULARY, rng.integers(8, longest + 1)).tolist() for _ in range(n)]


def texts(lm, n=10):
    return FrozenText(lm, documents(n), show=False), FrozenText(lm, documents(5, seed=1), show=False)


PLAN = Training(steps=6, documents=3, rate=0.01, warm_up=2, evaluate_every=2, checkpoint_every=2)


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "bloom"])
def test_frozen_text_gives_the_whole_models_losses(family):
    lm = tiny_lm(family)
    text = FrozenText(lm, documents(4), show=False)
    layer = perturbed(LayerSpec(16, 20)).eval()
    for place in ("replace", "add"):
        with inserted(lm, layer, place):
            found = text.by_document()
            for ids, mean in zip(documents(4), found, strict=True):
                with torch.no_grad():
                    whole = lm.model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids]), use_cache=False).loss
                assert float(mean) == pytest.approx(float(whole), abs=1e-4)


def test_only_the_layer_learns_and_learns(tmp_path):
    lm = tiny_lm("gpt2")
    text, held_out = texts(lm)
    for place in ("replace", "add"):
        layer = SparseLayer(LayerSpec(16, 30, boost=2.0, density=0.2), gain=text.write)
        started = {name: weight.detach().clone() for name, weight in layer.named_parameters()}
        plan = Training(steps=40, documents=5, rate=0.02, warm_up=2, evaluate_every=20)
        before = lm.fingerprint, [weight.clone() for weight in lm.model.parameters()]
        done = train(layer, place, text, held_out, plan, tmp_path / place, show=False)
        assert all(torch.equal(*pair) for pair in zip(before[1], lm.model.parameters(), strict=True))
        assert not any(weight.requires_grad or weight.grad is not None for weight in lm.model.parameters())
        assert all(not torch.equal(started[name], weight) for name, weight in layer.named_parameters())
        assert [point.step for point in done.curve] == [0, 20, 40] and done.curve[-1].train < done.curve[1].train
        assert done.curve[-1].tokens == done.tokens > 40 * 5 * 7


@pytest.mark.parametrize("rule", ["top-k", "batch-top-k"])
@pytest.mark.parametrize("stop", [1, 3, 4])
def test_resumed_equals_uninterrupted(tmp_path, monkeypatch, rule, stop):
    lm = tiny_lm("llama")
    text, held_out = texts(lm)

    def new():
        return SparseLayer(LayerSpec(16, 30, rule=rule, boost=2.0, weight_density=0.5, period=50), gain=text.write)

    whole, parts = new(), new()
    expected = train(whole, "replace", text, held_out, PLAN, tmp_path / "whole", show=False)

    losses, steps = FrozenText.losses, []

    def stopping(self, rows, *, dtype=None):
        if self is text:
            steps.append(rows)
            if len(steps) > stop:
                raise KeyboardInterrupt
        return losses(self, rows, dtype=dtype)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FrozenText, "losses", stopping)
        train(parts, "replace", text, held_out, PLAN, tmp_path / "parts", show=False)
    parts = new()
    found = train(parts, "replace", text, held_out, PLAN, tmp_path / "parts", show=False)
    assert repr(found.curve) == repr(expected.curve)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name
    again = new()
    monkeypatch.setattr(train_module, "_keep", None)  # nothing is left to do
    assert train(again, "replace", text, held_out, PLAN, tmp_path / "parts", show=False).tokens == expected.tokens
    assert torch.equal(again.down.weight, whole.down.weight)


def test_a_gain_that_another_machine_measured_goes_on_with_the_checkpoints(tmp_path):
    text, held_out = texts(tiny_lm("llama"))
    one, other = (SparseLayer(LayerSpec(16, 20), gain=gain) for gain in (text.write, text.write * (1 + 1e-6)))
    assert other.gain != one.gain
    for layer in (one, other):
        train(layer, "replace", text, held_out, PLAN, tmp_path / "checkpoint", show=False)
    assert other.gain == one.gain and torch.equal(other.down.weight, one.down.weight)
    with pytest.raises(ShapleyError, match="another training"):
        twice = SparseLayer(LayerSpec(16, 20), gain=2 * text.write)
        train(twice, "replace", text, held_out, PLAN, tmp_path / "checkpoint", show=False)


def test_a_wrong_checkpoint_is_refused_in_a_line(tmp_path):
    lm = tiny_lm("gpt2")
    text, held_out = texts(lm)
    layer, path = SparseLayer(LayerSpec(16, 20)), tmp_path / "checkpoint"
    train(layer, "add", text, held_out, PLAN, path, show=False)
    with pytest.raises(ShapleyError, match="another training"):
        train(layer, "replace", text, held_out, PLAN, path, show=False)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ShapleyError, match="damaged"):
        train(layer, "add", text, held_out, PLAN, path, show=False)
    with pytest.raises(ShapleyError, match="steps of a training is 0"):
        Training(steps=0)


def test_the_order_of_documents_is_of_the_seed_and_the_step():
    assert PLAN.rows_at(3, 10).tolist() == PLAN.rows_at(3, 10).tolist()
    rows = torch.cat([PLAN.rows_at(step, 6) for step in range(4)]).tolist()  # two rounds of six documents
    assert sorted(rows[:6]) == sorted(rows[6:]) == list(range(6)) and rows[:6] != rows[6:]
    other = Training(steps=6, documents=3, seed=1)
    assert torch.cat([other.rows_at(step, 6) for step in range(4)]).tolist() != rows
    rates = [PLAN.rate_at(step) for step in range(6)]
    assert rates[:3] == pytest.approx([0.005, 0.01, 0.01]) and rates[2:] == sorted(rates[2:], reverse=True)


def test_frequencies_against_a_loop(tmp_path):
    lm = tiny_lm("gpt2")
    text, _ = texts(lm)
    layer = perturbed(LayerSpec(16, 20, density=0.2, inference_factor=1.5))
    for place in ("replace", "add"):
        counts, n = np.zeros(20), 0
        active = []
        handle = layer.winners.register_forward_hook(lambda module, args, out: active.append(out != 0))  # noqa: B023
        with inserted(lm, layer.eval(), place), torch.no_grad():
            for ids in documents(10):
                lm.model(input_ids=torch.tensor([ids]), use_cache=False)
                counts += active.pop().view(-1, 20).sum(0).numpy()
                n += len(ids)
        handle.remove()
        np.testing.assert_allclose(frequencies(layer, place, text), counts / n)


def test_documents_are_held_out():
    words = word_tokenizer().get_vocab()
    lines = [" ".join(list(words)[4 + i : 14 + i]) for i in range(20)]
    corpus = {"a": lines, "b": [*lines[:5], "the a"]}  # the same again, and one that is too short
    parts = split(corpus, word_tokenizer(), train=12, held_out=8, max_tokens=9)
    assert len(parts.train) == 12 and len(parts.held_out) == 8
    assert not {tuple(ids) for ids in parts.train} & {tuple(ids) for ids in parts.held_out}
    assert all(len(ids) == 9 for ids in parts.train)
    assert set(parts.topics) == {"a"} and len(parts.topics) == 12  # of a text in both, the first
    topics = split(
        corpus | {"c": ["the a"] * 3 + lines[::-1]}, word_tokenizer(), train=12, held_out=8, max_tokens=9
    ).topics
    assert topics == parts.topics
    assert split(corpus, word_tokenizer(), train=3, held_out=8, max_tokens=9).held_out == parts.held_out
    with pytest.raises(ShapleyError, match="20 different documents"):
        split(corpus, word_tokenizer(), train=13, held_out=8, max_tokens=9)


def test_the_parameters_of_the_models_own_mlp():
    assert original_parameters(tiny_lm("llama")) == 3 * 16 * 24
    assert original_parameters(tiny_lm("gpt2")) == 2 * 16 * 24 + 24 + 16
