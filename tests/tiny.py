"""Tiny random models of every supported family, and a tokenizer that needs no download."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from shapley.hf.load import LanguageModel
from shapley.hf.sites import find_sites
from shapley.prompts import Prompt
from shapley.sparse.insert import Place, insert
from shapley.sparse.layer import LayerSpec, SparseLayer

FAMILIES = (
    "gpt2 gpt_neo gpt_neox gptj llama mistral qwen2 qwen3 gemma gemma2 gemma3_text opt phi phi3 falcon bloom stablelm olmo2"
).split()
VOCABULARY = 60
_SIZES: dict[str, Any] = dict(
    hidden_size=16, n_embd=16, num_hidden_layers=3, n_layer=3, num_layers=3, intermediate_size=24, n_inner=24,
    ffn_dim=24, ffn_hidden_size=24, num_attention_heads=2, n_head=2, num_heads=2, num_key_value_heads=2, vocab_size=VOCABULARY,
    word_embed_proj_dim=16, attention_types=[[["global", "local", "global"], 1]], pad_token_id=0, bos_token_id=1,
    eos_token_id=2, rotary_dim=4, max_position_embeddings=64, n_positions=64, sliding_window=32,
)  # fmt: skip
_HEAD_DIM = {"gemma2", "gemma3_text", "qwen3", "mistral", "llama"}


@cache
def tiny_model(family: str, n_layers: int = 3, d_mlp: int = 24) -> torch.nn.Module:
    """A random model with weights large enough that every neuron matters."""
    sizes = _SIZES | dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers"), n_layers)
    sizes |= dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"), d_mlp)
    sizes["attention_types"] = [[["global"] * n_layers, 1]]
    if family in _HEAD_DIM:
        sizes["head_dim"] = 8
    known = AutoConfig.for_model(family).to_dict()
    known |= {"head_dim": None}  # not in every config's dictionary that takes it
    config = AutoConfig.for_model(family, **{name: value for name, value in sizes.items() if name in known})
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.25)
            elif "norm" not in name and "ln" not in name:
                weight.normal_(0, 0.1)
    return model


WORDS = (
    "the a player coach team singer album song company bank store won sang sold in of for his her last first season "
    "with and to played made large small new old city club race guitar market goal painter factory is was"
).split()


@cache
def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; unknown words are token 3."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {word: i + 4 for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def tiny_lm(family: str = "gpt2", **sizes: int) -> LanguageModel:
    return LanguageModel(tiny_model(family, **sizes), word_tokenizer(), f"tiny-{family}", "local")


def with_units(lm: LanguageModel, place: Place, **spec: Any) -> LanguageModel:
    """A copy of the model with a random sparse layer in it, whose 40 units are its players."""
    model = copy.deepcopy(lm.model)
    layer = SparseLayer(LayerSpec(16, 40, density=0.2, inference_factor=1.5, **spec), gain=3.0)
    torch.nn.init.normal_(layer.down.weight, generator=torch.Generator().manual_seed(1))
    insert(model, find_sites(model), layer, place, lm.name)
    return LanguageModel(model, lm.tokenizer, f"{lm.name}@sparse:{place}", "local")


PROMPTS = [Prompt("x", "the player won the", " race"), Prompt("x", "the band sold a", " song")]
IDS = torch.tensor([[5, 9, 21, 33, 8, 40], [11, 7, 30, 12, 44, 9]])


def logits(model: torch.nn.Module) -> torch.Tensor:
    """``[2, 6, vocabulary]`` of two texts."""
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS, use_cache=False).logits
    return found
