"""The engine: marginals from layer k only, in batches of candidates; batches by tokens; overhead and memory at 307,200 players.

    python experiments/benchmarks/engine.py [--players 256] [--repeats 5] [--large]

Every ratio is against a peer timed in the same run, in turn with ours; medians. ``--large`` adds the overhead on a random
model of GPT-2 XL's size (6 GB in float32, some minutes).
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from shapley.builder import build_prompts, read_corpus
from shapley.estimators.semivalue import Semivalue
from shapley.estimators.two_stage import TwoStage
from shapley.game import NeuronGame
from shapley.hf import scoring
from shapley.hf.hooks import only_answer_logits
from shapley.hf.load import DEMO_MODEL, LanguageModel, load_model
from shapley.hf.scoring import RowPlan, RowScorer
from shapley.impairment import Impairment
from shapley.prompts import Prompt, TopicPrompts

N_COALITIONS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--players", type=int, default=256, help="candidates, drawn at random from all layers")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--large", action="store_true")
    options = parser.parse_args()
    lm = load_model(DEMO_MODEL)
    game = NeuronGame(lm, demo_prompts(lm))
    print(json.dumps(marginals(game, options.players, options.repeats)), flush=True)
    print(json.dumps(batches(lm, options.repeats)), flush=True)
    print(json.dumps(memory()), flush=True)
    if options.large:
        print(json.dumps(overhead(large_model(lm))), flush=True)


def demo_prompts(lm: LanguageModel) -> TopicPrompts:
    count = lambda text: len(lm.tokenizer(text)["input_ids"])  # noqa: E731
    side = build_prompts(read_corpus("embedded"), ["athlete"], count, max_sentences=1, max_tokens=32)[0]
    return TopicPrompts("athlete", tuple(side[:N_COALITIONS]))


def marginals(game: NeuronGame, n_players: int, repeats: int) -> dict[str, Any]:
    """Marginals a second: ours, ours without replay (whole rows in the same batches), and a plain hook loop that takes one
    coalition at a time; the plain loop gets a part of the work, as it is slow."""
    rng = np.random.default_rng(0)
    coalitions = rng.random((N_COALITIONS, game.n_players)) < 0.94
    players = rng.choice(game.n_players, n_players, replace=False)
    prompts = np.arange(N_COALITIONS)
    turned = np.repeat(coalitions, n_players, axis=0)
    turned[np.arange(len(turned)), np.tile(players, N_COALITIONS)] ^= True
    few = rng.choice(len(turned), 24, replace=False)
    ways: dict[str, tuple[int, Callable[[], Any]]] = {
        "from layer k": (len(turned), lambda: game.marginals(coalitions, players, prompts=prompts)),
        "whole rows": (len(turned), lambda: game.values(turned, prompts=np.repeat(prompts, n_players))),
        "hook loop": (len(few), lambda: [hook_loop(game, turned[i], int(i) // n_players) for i in few]),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, (n, work) in ways.items():
            start = time.perf_counter()
            work()
            rates[name].append(n / (time.perf_counter() - start))
    median = {name: float(np.median(values)) for name, values in rates.items()}
    return {
        "what": "marginals a second",
        "players": n_players,
        "layers": game.lm.sites.n_layers,
        **{name: round(rate, 1) for name, rate in median.items()},
        "over whole rows": round(median["from layer k"] / median["whole rows"], 2),
        "over hook loop": round(median["from layer k"] / median["hook loop"], 2),
    }


def batches(lm: LanguageModel, repeats: int) -> dict[str, Any]:
    """Rows a second of prompts of up to 64 tokens: in the batches of the engine on a CPU, and of 64 rows each."""
    count = lambda text: len(lm.tokenizer(text)["input_ids"])  # noqa: E731
    side = build_prompts(read_corpus("embedded"), ["athlete"], count, max_tokens=64)[0][:24]
    scorer = RowScorer(lm, side, Impairment("zero"))
    coalitions = np.random.default_rng(0).random((4, lm.sites.n_layers * lm.sites.d_mlp)) < 0.95
    rows = np.repeat(np.argsort([len(own.ids) for own in scorer._encoded]), len(coalitions))
    plans = [RowPlan(part, np.arange(len(part)) % len(coalitions)) for part in np.split(rows, [64])]
    tokens = scoring._CPU_TOKENS
    rates: dict[int, list[float]] = {tokens: [], 1 << 30: []}
    for _ in range(repeats):
        for most, found in rates.items():
            scoring._CPU_TOKENS = most
            start = time.perf_counter()
            for plan in plans:
                scorer.values(["logprob"], plan, coalitions=coalitions)
            found.append(len(rows) / (time.perf_counter() - start))
    scoring._CPU_TOKENS = tokens
    ours, theirs = (float(np.median(found)) for found in rates.values())
    return {
        "what": "rows a second, by batches",
        "tokens of a prompt": [int(x) for x in np.percentile(scorer._lengths, (0, 25, 50, 75, 100))],
        f"{tokens} tokens": round(ours, 1),
        "64 rows": round(theirs, 1),
        "over 64 rows": round(ours / theirs, 2),
    }


def hook_loop(game: NeuronGame, coalition: np.ndarray, prompt: int) -> float:
    """What one would write first: a mask in a pre-hook of every down-projection, one row, float32."""
    lm, encoded = game.lm, game._scorer._encoded[prompt]
    mask = torch.from_numpy(coalition).view(lm.sites.n_layers, -1).float()
    handles = [
        block.down.register_forward_pre_hook(lambda module, args, m=m: (args[0] * m,))
        for block, m in zip(lm.sites.blocks, mask, strict=True)
    ]
    ids = torch.tensor([encoded.ids])
    positions = torch.arange(encoded.start - 1, len(encoded.ids) - 1)[None]
    try:
        with torch.no_grad(), only_answer_logits(lm.model, positions):
            logits = lm.model(input_ids=ids, use_cache=False).logits[0]
    finally:
        for handle in handles:
            handle.remove()
    answers = torch.tensor(encoded.ids[encoded.start :])
    return float(logits.log_softmax(-1)[torch.arange(len(answers)), answers].mean())


class _Stub:
    """A game that costs nothing and keeps nothing: what is left is the estimator's own memory."""

    n_prompts, stochastic, value_range, forward_rows = 1, False, (0.0, 1.0), 0

    def __init__(self, n_players: int) -> None:
        self.n_players = n_players
        self._gradients = np.random.default_rng(0).normal(size=(16, n_players)).astype(np.float32)

    def values(self, coalitions: Any, **_: Any) -> np.ndarray:
        return np.zeros(len(coalitions))

    def gradients(self, coalitions: Any, **_: Any) -> tuple[np.ndarray, np.ndarray]:
        return np.zeros(len(coalitions)), self._gradients

    def marginals(self, coalitions: Any, players: Any, **_: Any) -> np.ndarray:
        return np.zeros((len(coalitions), len(players)))


def memory(n_players: int = 307_200) -> dict[str, Any]:
    """Peak bytes a player of a two-stage run, numpy's allocations, without the game's gradient rows."""
    game: Any = _Stub(n_players)
    tracemalloc.start()
    TwoStage(game, semivalue=Semivalue.parse("shapley"), samples=160).run()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"what": "peak bytes a player", "players": n_players, "bytes": round(peak / n_players, 1)}


def large_model(lm: LanguageModel) -> NeuronGame:
    """GPT-2 XL's shape (48 layers x 6,400 neurons, width 1,600) with random weights, and the demo's tokenizer."""
    config = AutoConfig.for_model("gpt2", n_layer=48, n_embd=1600, n_head=25, vocab_size=50_257)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    model = model.to_empty(device="cpu").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.02)
    model.tie_weights()
    prompts = tuple(Prompt("t", f"The {word} went to the market and bought a small", " house") for word in "abcdefgh")
    return NeuronGame(LanguageModel(model, lm.tokenizer, "gpt2-xl-shaped", "local"), TopicPrompts("t", prompts))


def overhead(game: NeuronGame) -> dict[str, Any]:
    """What the estimator adds to the time in the game, over a few units of both stages."""
    inside = 0.0

    def timed(name: str) -> None:
        method = getattr(game, name)

        def wrapper(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            start = time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                inside += time.perf_counter() - start

        setattr(game, name, wrapper)

    for name in ("values", "gradients", "marginals"):
        timed(name)
    estimator = TwoStage(game, semivalue=Semivalue.parse("beta(1,16)"), samples=48)
    start = time.perf_counter()
    while not estimator.finished and estimator.unit < 4:
        estimator.step()
    total = time.perf_counter() - start
    return {
        "what": "estimator over model time",
        "players": game.n_players,
        "units": estimator.unit,
        "seconds in the game": round(inside, 1),
        "overhead": round((total - inside) / inside, 4),
    }


if __name__ == "__main__":
    main()
