"""The activations of a few players over many passages."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shapley.errors import ShapleyError
from shapley.hf.load import fast_dtype
from shapley.hf.scoring import default_memory
from shapley.hf.statistics import pad_right
from shapley.keyed import keyed_rng
from shapley.look.players import Player, Players
from shapley.progress import Progress
from shapley.types import Float32Array, IntArray

_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Passages:
    """Texts as tokens, each with its topic."""

    ids: tuple[tuple[int, ...], ...]
    topics: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """Of the topics."""
        return sorted(set(self.topics))


@dataclass(frozen=True)
class Seen:
    """Token by token, passages one after another.

    Attributes:
        tokens, passage: ``[n]``: the token, and which passage it is of.
        activation: ``[n, players]``; NaN at each passage's first token, which carries massive activations whatever it is.
    """

    passages: Passages
    tokens: IntArray
    passage: IntArray
    activation: Float32Array

    @property
    def start(self) -> IntArray:
        """``[passages]``: where each begins."""
        return np.searchsorted(self.passage, np.arange(len(self.passages.ids)))


def cut(corpus: Mapping[str, Sequence[str]], tokenizer: Any, most_tokens: int, n: int | None = None) -> Passages:
    """Passages of two tokens or more, each cut to ``most_tokens``; ``n`` of them drawn, or all. Of those that are the same
    then, under whatever topics, the first is kept: a rule would be scored on what it was fitted to.

    Raises:
        ShapleyError: there is one at most, and rules could not be fitted to some and scored on others.
    """
    found = [(topic, text) for topic, texts in corpus.items() for text in texts]
    if n is not None and n < len(found):
        found = [found[i] for i in sorted(keyed_rng(0, "passages").choice(len(found), n, replace=False))]
    ids = [(topic, tuple(tokenizer(text)["input_ids"][:most_tokens])) for topic, text in found]
    kept: dict[tuple[int, ...], str] = {}
    for topic, own in ids:
        if len(own) > 1:
            kept.setdefault(own, topic)
    if len(kept) < 2:
        raise ShapleyError(
            f"two passages of two tokens or more are needed, copies left out, and of {len(found)} there are {len(kept)}: give "
            "more text"
        )
    return Passages(tuple(kept), tuple(kept.values()))


def observed(every: Players, players: Sequence[Player], passages: Passages, memory: int | None = None) -> Seen:
    """Run the model over the passages, in as many tokens at a time as fit into ``memory`` bytes.

    Raises:
        ShapleyError: a player that the model does not have.
    """
    every.check(players)
    lm = every.lm
    lengths = np.array([len(own) for own in passages.ids])
    start = np.concatenate([[0], np.cumsum(lengths)])
    activation = np.full((start[-1], len(players)), np.nan, dtype=np.float32)
    order = np.argsort(lengths, kind="stable")  # like lengths together
    a_token = 4 * (6 * lm.sites.d_mlp + 16 * lm.sites.d_model)
    size = max(1, min(_BATCH_TOKENS, (memory or default_memory(lm.device)) // a_token) // int(lengths.max()))
    progress = Progress(len(order), f"activations of {lm.name}", "passages")
    for first in range(0, len(order), size):
        batch = order[first : first + size]
        found = _activations(every, players, [passages.ids[i] for i in batch])
        for i, own in zip(batch, found, strict=True):
            activation[start[i] + 1 : start[i + 1]] = own[1 : lengths[i]]
        progress.reach(first + len(batch))
    progress.close()
    tokens = np.concatenate([np.array(own) for own in passages.ids])
    return Seen(passages, tokens, np.repeat(np.arange(len(lengths)), lengths), activation)


def _activations(every: Players, players: Sequence[Player], ids: Sequence[Sequence[int]]) -> Float32Array:
    """``[rows, tokens, players]`` of a batch."""
    lm = every.lm
    rows, valid = pad_right(ids, lm.pad_id)
    found = torch.zeros(*rows.shape, len(players))
    dtype = fast_dtype(lm.device)
    short = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(lm.model.forward).parameters else {}
    with ExitStack() as stack:
        for layer in {layer for layer, _ in players}:
            places = [i for i, (own, _) in enumerate(players) if own == layer]
            columns = torch.tensor([players[i][1] for i in places], device=lm.device)
            stack.callback(every.watch(layer, _keeper(found, places, columns)).remove)
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.autocast(lm.device.type, dtype=dtype, enabled=dtype != torch.float32))
        lm.model(input_ids=rows.to(lm.device), attention_mask=valid.long().to(lm.device), use_cache=False, **short)
    return np.asarray(found.numpy())


def _keeper(found: Tensor, places: list[int], columns: Tensor) -> Callable[[Tensor], None]:
    def keep(x: Tensor) -> None:
        chosen = x[..., columns.to(x.device)].float().cpu()
        found[..., places] = chosen.view(*found.shape[:2], -1)  # some families flatten rows and tokens

    return keep
