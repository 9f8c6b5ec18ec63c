"""Small GPT-2 models that the benchmark trains itself, on a table of facts.

    <place> <relation> <name> is <answer>

The answer is a function of relation and name, drawn at random: 8 relations by 192 names, 48 possible answers. Places
are filler. A lookup table has to be held in the MLP neurons, so they matter, and differently by relation; a relation is a
topic. Weights are cached, and the same on every machine only up to rounding: results name the model's fingerprint.
"""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from shapley.game import NeuronGame
from shapley.hf.load import LanguageModel
from shapley.prompts import Prompt, TopicPrompts

N_LAYERS, WIDTH = 4, 64
N_RELATIONS, N_NAMES, N_ANSWERS, N_PLACES = 8, 192, 48, 16
N_PROMPTS = 8
SIZES = (256, 1024, 4096)
_BATCH, _MOST_STEPS, _GOOD = 512, 3000, 0.05  # stop when a batch's mean loss is this low


def cache_folder() -> Path:
    """``$BENCHMARK_CACHE``, or ``.venv/cache/benchmarks`` of the repository."""
    default = Path(__file__).resolve().parents[3] / ".venv" / "cache" / "benchmarks"
    folder = Path(os.environ.get("BENCHMARK_CACHE", default))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def trained_game(n_neurons: int, seed: int = 0, topic: int = 0, n_prompts: int = N_PROMPTS) -> NeuronGame:
    """The game of one relation: mean log-probability of the answers to 8 prompts, all MLP neurons playing.

    Attributes beside those of ``NeuronGame``: ``name``, which says what the reference is cached under.
    """
    game = NeuronGame(trained_model(n_neurons, seed), topic_prompts(seed, topic, n_prompts), dtype="float32")
    game.name = f"trained-{n_neurons}"  # type: ignore[attr-defined]
    return game


@cache
def trained_model(n_neurons: int, seed: int = 0) -> LanguageModel:
    """From the cache, else trained (half a minute to two on one core)."""
    path = cache_folder() / f"facts-{n_neurons}-{seed}.safetensors"
    model = _new_model(n_neurons, seed)
    if path.exists():
        model.load_state_dict(load_file(path), strict=False)  # the tied output weight is stored once
    else:
        record = _train(model, seed)
        weights = {name: weight.clone() for name, weight in model.state_dict().items() if name != "lm_head.weight"}
        save_file(weights, path)
        path.with_suffix(".json").write_text(json.dumps(record) + "\n")
    return LanguageModel(model.eval(), word_tokenizer(), f"facts-{n_neurons}", f"seed-{seed}")


def topic_prompts(seed: int, topic: int, n_prompts: int = N_PROMPTS) -> TopicPrompts:
    rng = np.random.default_rng([seed, topic, 1])
    table = facts(seed)
    names = rng.choice(N_NAMES, n_prompts, replace=False)
    prompts = [
        Prompt(f"relation{topic}", _sentence(topic, name, int(rng.integers(N_PLACES))), f" answer{table[topic, name]}")
        for name in names.tolist()
    ]
    return TopicPrompts(f"relation{topic}", tuple(prompts))


def facts(seed: int) -> np.ndarray:
    """``[relations, names]`` answers."""
    return np.random.default_rng([seed, 0]).integers(N_ANSWERS, size=(N_RELATIONS, N_NAMES))


@cache
def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word."""
    words = "<pad> </s> <unk> is".split()
    for kind, count in (("relation", N_RELATIONS), ("name", N_NAMES), ("answer", N_ANSWERS), ("place", N_PLACES)):
        words += [f"{kind}{i}" for i in range(count)]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")


def _sentence(relation: int, name: int, place: int) -> str:
    return f"place{place} relation{relation} name{name} is"


def _new_model(n_neurons: int, seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(word_tokenizer()), n_positions=8, n_embd=WIDTH, n_layer=N_LAYERS, n_head=4,
            n_inner=n_neurons // N_LAYERS, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=1, eos_token_id=1,
            pad_token_id=0, attn_implementation="eager",
        )
    )  # fmt: skip


def _train(model: GPT2LMHeadModel, seed: int) -> dict[str, float]:
    """A fresh random place for every fact in every batch, so that nothing but relation and name can be used."""
    tokenizer, table = word_tokenizer(), facts(seed)
    pairs = [(relation, name) for relation in range(N_RELATIONS) for name in range(N_NAMES)]
    ids = torch.tensor([tokenizer(_sentence(r, n, 0) + f" answer{table[r, n]}")["input_ids"] for r, n in pairs])
    first_place = tokenizer.convert_tokens_to_ids("place0")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, step / 100, 50 / (step + 1) ** 0.5 * 0.4)
    )
    model.train()
    step, loss = 0, torch.tensor(0.0)
    for step in range(1, _MOST_STEPS + 1):
        batch = ids[torch.randperm(len(ids), generator=generator)[:_BATCH]].clone()
        batch[:, 0] = first_place + torch.randint(N_PLACES, (len(batch),), generator=generator)
        logits = model(input_ids=batch[:, :-1]).logits[:, -1]
        loss = torch.nn.functional.cross_entropy(logits, batch[:, -1])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(
                f"training {sum(p.numel() for p in model.parameters()):,} weights, step {step}: {loss:.3f}", flush=True
            )
        if loss < _GOOD:
            break
    return {"steps": step, "loss": float(loss)}
