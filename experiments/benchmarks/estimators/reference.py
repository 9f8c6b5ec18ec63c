"""Long-run Shapley values of a trained game, from antithetic permutations, with their standard errors.

The same walks as the package's ``Permutation`` (its seed and units; ``check`` compares the two), through a forward pass of its
own that does only what differs between coalitions: nothing before the first layer's gates, only the last token in the last
layer, all coalitions of a chunk in one batch. A row still counts as a row.

Checkpointed in the cache every half minute; a second call goes on where the first stopped.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from trained import cache_folder

from shapley.files import atomic_path
from shapley.keyed import keyed_rng
from shapley.types import BoolArray, FloatArray

SEED = 1_000_003  # of no estimator under test
TARGET = 0.02  # standard error (root mean square over players), in spreads of the scores
_CHUNK = 64  # coalitions a batch: stays in the cache
_SAVE_EVERY = 30.0


@dataclass(frozen=True)
class Reference:
    """``score`` and ``stderr`` ``[n]`` of ``pairs`` antithetic pairs; ``forward_rows`` they cost."""

    score: FloatArray
    stderr: FloatArray
    pairs: int
    forward_rows: int
    seconds: float

    @property
    def relative_error(self) -> float:
        """Standard error over the spread of the scores, the error's own part taken out of the spread."""
        error = float(np.mean(self.stderr**2))
        return float(np.sqrt(error / max(self.score.var() - error, 1e-30)))


def reference(game: Any, *, minutes: float = 15, target: float = TARGET, quiet: bool = False) -> Reference:
    """The reference of a ``NeuronGame`` from ``trained_game``, to the target error or so many more minutes of work."""
    path = cache_folder() / f"reference-{game.name}-{game.lm.fingerprint}-{game.topic.sha256[:12]}.npz"
    total, squares, pairs, seconds = _load(path, game.n_players)
    player = FastValues(game)
    started = saved = time.perf_counter()
    while True:
        found = _summary(total, squares, pairs, seconds + time.perf_counter() - started, game)
        done = pairs >= 16 and (found.relative_error <= target or time.perf_counter() - started > 60 * minutes)
        if done or time.perf_counter() - saved > _SAVE_EVERY:
            if found.seconds > seconds + 1:  # something was done
                _save(path, total, squares, pairs, found.seconds)
            saved = time.perf_counter()
            if not quiet:
                print(f"{game.name}: {pairs} pairs, error {found.relative_error:.1%} of the spread", flush=True)
        if done:
            return found
        sample = pair_sample(player, game.n_players, pairs)
        total += sample
        squares += sample**2
        pairs += 1


def pair_sample(player: FastValues, n: int, unit: int) -> FloatArray:
    """``[n]``: a player's mean marginal over a permutation and its reverse."""
    order = keyed_rng(SEED, "permutation", unit).permutation(n)
    sample = np.zeros(n)
    for walk in (order, order[::-1]):
        rank = np.argsort(walk)
        out = np.arange(1, n + 1)
        values = np.concatenate([[player.full], player.values_of_walk(rank, out)])
        sample[walk] += (values[:-1] - values[1:]) / 2
    return sample


class FastValues:
    """v(S) of the benchmark's GPT-2 models: the answers' mean log-probability, MLP neurons outside S at zero."""

    def __init__(self, game: Any) -> None:
        self.lm, self.n = game.lm, game.n_players
        prompts = game.topic.prompts
        ids = torch.tensor([self.lm.tokenizer(p.prompt + p.answer)["input_ids"] for p in prompts])
        self.ids, self.answers = ids[:, :-1], ids[:, -1]
        with torch.no_grad():
            first = self.lm.model.transformer
            hidden = first.wte(self.ids) + first.wpe(torch.arange(self.ids.shape[1]))
            self._entry = self._attend(first.h[0], hidden)
            self._neurons = self._activations(first.h[0], self._entry)
        self.full = float(self.values(np.ones((1, self.n), dtype=bool))[0])

    def values_of_walk(self, rank: np.ndarray, counts: np.ndarray) -> FloatArray:
        """Values after so many players are out, in order of ``rank``."""
        parts = [
            self.values(rank[None, :] >= counts[start : start + _CHUNK, None])
            for start in range(0, len(counts), _CHUNK)
        ]
        return np.concatenate(parts)

    @torch.no_grad()
    def values(self, coalitions: BoolArray) -> FloatArray:
        """``[C, n]`` -> ``[C]``."""
        return self.soft_values(torch.from_numpy(coalitions).float()).mean(dim=1).numpy()

    def soft_values(self, everyone: torch.Tensor) -> torch.Tensor:
        """Gates ``[C, n]`` -> ``[C, prompts]``. Hidden states are ``[C, prompts, tokens, width]``."""
        model = self.lm.model
        blocks = model.transformer.h
        gates = [gate[:, None, None, :] for gate in everyone.chunk(len(blocks), dim=1)]
        hidden = self._entry + self._project(blocks[0], self._neurons * gates[0])
        for block, gate in zip(blocks[1:], gates[1:], strict=True):
            hidden = self._attend(block, hidden, only_last=block is blocks[-1])
            hidden = hidden + self._project(block, self._activations(block, hidden) * gate)
        logits = model.lm_head(model.transformer.ln_f(hidden[..., -1, :]))
        logprobs = logits.log_softmax(-1)[:, torch.arange(len(self.answers)), self.answers]
        return logprobs.double()

    def _attend(self, block: Any, hidden: torch.Tensor, only_last: bool = False) -> torch.Tensor:
        """Hidden states after the block's attention; of the last token only, where nothing else is read later."""
        heads = self.lm.model.config.n_head
        normed = block.ln_1(hidden)
        *shape, tokens, width = normed.shape
        weight, bias = block.attn.c_attn.weight, block.attn.c_attn.bias
        q, k, v = (normed @ weight + bias).view(-1, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        if only_last:
            mixed = functional.scaled_dot_product_attention(q[:, :, -1:], k, v)
            hidden = hidden[..., -1:, :]
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(*shape, -1, width)
        return hidden + mixed @ block.attn.c_proj.weight + block.attn.c_proj.bias

    def _activations(self, block: Any, hidden: torch.Tensor) -> torch.Tensor:
        return block.mlp.act(block.ln_2(hidden) @ block.mlp.c_fc.weight + block.mlp.c_fc.bias)

    def _project(self, block: Any, neurons: torch.Tensor) -> torch.Tensor:
        return neurons @ block.mlp.c_proj.weight + block.mlp.c_proj.bias


def _summary(total: FloatArray, squares: FloatArray, pairs: int, seconds: float, game: Any) -> Reference:
    mean = total / max(pairs, 1)
    variance = np.maximum(squares / max(pairs, 1) - mean**2, 0) * pairs / max(pairs - 1, 1)
    rows = 2 * pairs * game.n_players * game.n_prompts
    return Reference(mean, np.sqrt(variance / max(pairs, 1)), pairs, rows, seconds)


def _load(path: Path, n: int) -> tuple[FloatArray, FloatArray, int, float]:
    if not path.exists():
        return np.zeros(n), np.zeros(n), 0, 0.0
    with np.load(path) as found:
        return found["total"], found["squares"], int(found["pairs"]), float(found["seconds"])


def _save(path: Path, total: FloatArray, squares: FloatArray, pairs: int, seconds: float) -> None:
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, total=total, squares=squares, pairs=pairs, seconds=seconds)
