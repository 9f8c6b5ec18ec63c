"""Sequences that go through the model together, each under its own impairment: prefill, then a token a step from a KV cache.

Rows are padded on the left, so that the new tokens of all are in one column. Sequences come and go between steps: new ones go
through the model in chunks of columns, between which the running ones get their tokens; then their caches are joined to the
running ones. The rows of those that ended are taken out. No cache is shared by prompts: one that was filled under another
impairment would leak it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from shapley.clusters import Cluster
from shapley.hf.hooks import Rows, impair
from shapley.hf.load import LanguageModel
from shapley.server.policy import Layer
from shapley.server.sequence import Running, Scored

Clusters = Mapping[tuple[str, str], Cluster]  # by name and site
_SCORED_ELEMENTS = 1 << 26  # logits that are held at once when a prompt is scored: 256 MiB in float32
_CHUNK = 1024  # tokens of prompts that go through the model at a time: what running sequences wait for
_LEAST_COLUMNS = 32


@dataclass
class _Entering:
    """Prompts on their way through the model, ``at`` so many columns: ``[rows, columns]`` tokens, and which are none."""

    rows: Sequence[Running]
    ids: Tensor
    valid: Tensor
    positions: Tensor
    cache: Any
    at: int = 0


class Batch:
    """Running sequences and their cache.

    Args:
        lm: the model.
        clusters: that impairments name, in the columns of each site.
    """

    def __init__(self, lm: LanguageModel, clusters: Clusters) -> None:
        self.lm = lm
        self.clusters = clusters
        self.rows: list[Running] = []
        self._cache: Any = None
        self._entering: _Entering | None = None
        self._valid = torch.zeros(0, 0, dtype=torch.bool, device=lm.device)
        self._vocabulary = lm.model.get_output_embeddings().weight.shape[0]
        accepted = inspect.signature(lm.model.forward).parameters
        self._positions_given = "position_ids" in accepted
        self._head_can_be_short = "logits_to_keep" in accepted

    @property
    def entering(self) -> Sequence[Running]:
        """Those whose prompts are on their way through the model."""
        return self._entering.rows if self._entering else ()

    def enter(self, rows: Sequence[Running]) -> None:
        """Begin with the prompts of new sequences; nothing else may be entering."""
        longest = max(len(row.ids) for row in rows)
        ids = torch.tensor([[self.lm.pad_id] * (longest - len(row.ids)) + list(row.ids) for row in rows])
        valid = torch.tensor([[False] * (longest - len(row.ids)) + [True] * len(row.ids) for row in rows])
        ids, valid = ids.to(self.lm.device), valid.to(self.lm.device)
        positions = (valid.long().cumsum(dim=1) - 1).clamp(min=0)
        self._entering = _Entering(rows, ids, valid, positions, DynamicCache())

    def advance(self) -> None:
        """A chunk of what is entering. Prompts are scored if that is wanted; with the last chunk each sequence gets its first
        new token, and those that have not ended join the batch."""
        new = self._entering
        assert new is not None
        end = min(new.at + _columns(len(new.rows)), new.ids.shape[1])
        scoring = any(row.score_prompt for row in new.rows)
        chunk = slice(new.at, end)
        logits = self._forward(
            new.rows, new.ids[:, chunk], new.valid[:, :end], new.positions[:, chunk], new.cache, short=not scoring
        )
        for row, own in zip(new.rows, logits, strict=True):
            if row.score_prompt:
                self._score(row, own, new.at - (new.ids.shape[1] - len(row.ids)))
        new.at = end
        if end == new.ids.shape[1]:
            self._entering = None
            self._join(new, logits[:, -1])

    def leave(self) -> None:
        """Give up what is entering."""
        self._entering = None

    def _join(self, new: _Entering, logits: Tensor) -> None:
        asking = [row.max_new > 0 and row.reason is None for row in new.rows]
        self._choose([row for row, asks in zip(new.rows, asking, strict=True) if asks], logits[asking])
        for row in new.rows:
            if row.max_new == 0 and row.reason is None:
                row.end("length")
        going = [i for i, row in enumerate(new.rows) if row.reason is None]
        if not going:
            return
        cache, valid = _select(new.cache, new.valid, going)
        if self.rows:
            cache, valid = _joined(self._cache, self._valid, cache, valid)
        self._cache, self._valid = cache, valid
        self.rows += [new.rows[i] for i in going]

    def step(self) -> None:
        """A token for every sequence; those that end leave."""
        tokens = torch.tensor([[row.new[-1].token] for row in self.rows], device=self.lm.device)
        self._valid = torch.cat([self._valid, torch.ones_like(self._valid[:, :1])], dim=1)
        positions = self._valid.sum(dim=1, keepdim=True) - 1
        logits = self._forward(self.rows, tokens, self._valid, positions, self._cache, short=True)[:, -1]
        self._choose(self.rows, logits)
        self.drop_ended()

    def drop_ended(self) -> None:
        """Take out the rows of sequences that ended; what is entering goes where all of it has."""
        if all(row.reason is not None for row in self.entering):
            self._entering = None
        going = [i for i, row in enumerate(self.rows) if row.reason is None]
        if len(going) == len(self.rows):
            return
        self.rows = [self.rows[i] for i in going]
        if going:
            self._cache, self._valid = _select(self._cache, self._valid, going)
        else:
            self._cache = None

    def prefill_fits(self, rows: Sequence[Running], memory: int) -> bool:
        """Whether the activations of a chunk of these fit into so many bytes and, where prompts are scored, its logits."""
        sites, longest = self.lm.sites, max(len(row.ids) for row in rows)
        columns = min(longest, _columns(len(rows)))
        heads = getattr(self.lm.model.config, "num_attention_heads", 16)
        activations = 4 * columns * (6 * sites.d_mlp + 16 * sites.d_model + 2 * heads * longest)
        scored = columns * self._vocabulary if any(row.score_prompt for row in rows) else 0
        return len(rows) * activations <= memory and len(rows) * scored <= _SCORED_ELEMENTS

    def cache_fits(self, rows: Sequence[Running], memory: int) -> bool:
        """Whether the cache fits into so many bytes once these have joined and all are as long as they may become."""
        every = [*self.rows, *rows]
        longest = max(len(row.ids) + row.max_new for row in every)
        return len(every) * longest * self._token_bytes() <= memory

    def _token_bytes(self) -> int:
        """Of keys and values."""
        config = self.lm.model.config.get_text_config()
        heads = config.num_attention_heads
        shared = getattr(config, "num_key_value_heads", None) or heads
        size = getattr(config, "head_dim", None) or self.lm.sites.d_model // heads
        return int(2 * config.num_hidden_layers * shared * size * next(self.lm.model.parameters()).element_size())

    def _forward(
        self, rows: Sequence[Running], ids: Tensor, valid: Tensor, positions: Tensor, cache: Any, *, short: bool
    ) -> Tensor:
        """Logits ``[rows, tokens, vocabulary]``; ``short``: of the last token only, where the model can."""
        options: dict[str, Any] = {"position_ids": positions} if self._positions_given else {}
        if short and self._head_can_be_short:
            options["logits_to_keep"] = 1
        with torch.inference_mode(), self._impaired(rows):
            logits: Tensor = self.lm.model(
                input_ids=ids, attention_mask=valid.long(), past_key_values=cache, use_cache=True, **options
            ).logits
        return logits

    @contextmanager
    def _impaired(self, rows: Sequence[Running]) -> Iterator[None]:
        """Every row under its own stack. What is asked for is set up before all floors, so that floors act last."""
        depth = max((len(row.stack) for row in rows), default=0)
        with ExitStack() as contexts:
            for from_last in range(depth, 0, -1):
                groups: dict[Any, list[int]] = {}
                for i, row in enumerate(rows):
                    if len(row.stack) >= from_last:
                        layer = row.stack[-from_last]
                        key = (layer.asked.kind, layer.asked.site, layer.asked.cluster, layer.seed)
                        groups.setdefault(key, []).append(i)
                for members in groups.values():
                    layers = [rows[i].stack[-from_last] for i in members]
                    contexts.enter_context(self._group(layers, members))
            yield

    def _group(self, layers: Sequence[Layer], members: list[int]) -> Any:
        """Rows under one impairment, each at its strength."""
        asked = layers[0].asked
        cluster = None if asked.cluster is None else self.clusters[asked.cluster, asked.site]
        # The key is the same for every prompt: noise is of the secret, the organisation and the position.
        settings = Rows(
            prompt_keys=[""] * len(members), strength=[layer.asked.strength for layer in layers], only=members
        )
        return impair(self.lm, asked.impairment(layers[0].seed), cluster, rows=settings)

    def _choose(self, rows: Sequence[Running], logits: Tensor) -> None:
        """Each row's next token from ``[rows, vocabulary]`` logits."""
        if not rows:
            return
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        for row, own in zip(rows, logprobs, strict=True):
            [scored] = _scored([row.sampler(own)], own[None], row.n_top)
            row.accept(scored)

    def _score(self, row: Running, logits: Tensor, start: int) -> None:
        """More of a prompt's scores, from ``[columns, vocabulary]`` logits at ``start`` and on; before 0 is padding."""
        logits, start = logits[max(0, -start) :], max(0, start)
        if not len(logits):
            return
        if not row.prompt_scores:
            row.prompt_scores = [Scored(row.ids[0], None)]
        following = row.ids[start + 1 : start + 1 + len(logits)]
        row.prompt_scores += _scored(following, torch.log_softmax(logits[: len(following)].float(), dim=-1), row.n_top)


def _columns(n_rows: int) -> int:
    """Of a chunk."""
    return max(_LEAST_COLUMNS, _CHUNK // n_rows)


def _scored(tokens: Sequence[int], logprobs: Tensor, n_top: int | None) -> list[Scored]:
    """Of tokens, each with its ``[tokens, vocabulary]`` log-probabilities."""
    if n_top is None or not tokens:
        return [Scored(token, None) for token in tokens]
    own = logprobs.gather(1, torch.tensor(tokens, device=logprobs.device)[:, None])[:, 0].tolist()
    values, likeliest = logprobs.topk(n_top) if n_top else (logprobs[:, :0], logprobs[:, :0].long())
    tops = [tuple(zip(*pair, strict=True)) for pair in zip(likeliest.tolist(), values.tolist(), strict=True)]
    return [Scored(token, value, top) for token, value, top in zip(tokens, own, tops, strict=True)]


def _select(cache: Any, valid: Tensor, rows: list[int]) -> tuple[Any, Tensor]:
    """Some of the rows, and none of the columns that are padding in all of them."""
    index = torch.tensor(rows, device=valid.device)
    valid = valid[index]
    start = int(valid.any(dim=0).int().argmax())
    for layer in cache.layers:
        layer.keys, layer.values = (x[index.to(x.device), :, start:].contiguous() for x in (layer.keys, layer.values))
    return cache, valid[:, start:]


def _joined(cache: Any, valid: Tensor, new: Any, new_valid: Tensor) -> tuple[Any, Tensor]:
    """Two sets of rows as one, the shorter one's columns filled up on the left."""
    width = max(valid.shape[1], new_valid.shape[1])
    for layer, other in zip(cache.layers, new.layers, strict=True):
        layer.keys, layer.values = (
            torch.cat([_widened(a, width), _widened(b, width)])
            for a, b in ((layer.keys, other.keys), (layer.values, other.values))
        )
    pads = (torch.nn.functional.pad(x, (width - x.shape[1], 0)) for x in (valid, new_valid))
    return cache, torch.cat(list(pads))


def _widened(states: Tensor, width: int) -> Tensor:
    """``[rows, heads, tokens, size]`` with zeros before its tokens."""
    return torch.nn.functional.pad(states, (0, 0, width - states.shape[2], 0))
