"""Scoring rows: a row is one prompt under one coalition, strength and noise draw; rows of all kinds share batches.

Rows are sorted by length into batches whose size follows from a memory budget. When memory runs out all the same, the
batch is halved and the work goes on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from shapley.errors import ShapleyError
from shapley.hf.hooks import Rows, impair, only_answer_logits
from shapley.hf.load import LanguageModel
from shapley.hf.replay import record_entries, start_at
from shapley.hf.statistics import pad_right
from shapley.impairment import Impairment
from shapley.prompts import Prompt
from shapley.types import BoolArray, Float32Array, FloatArray, Gates, IntArray
from shapley.values import row_values

_CPU_TOKENS = 512  # matrix products gain little from more, and rows of larger batches are padded more
_GPU_ROWS = 4096
_CPU_REPLAYED_TOKENS = 1024  # fewer, so that a batch spans fewer layers
_GPU_REPLAYED_TOKENS = 16_384
_NEIGHBOURS = 4  # rows of like length whose candidates share batches


@dataclass(frozen=True)
class EncodedPrompt:
    """Token ids of prompt and answer together; the answer starts at ``start``."""

    ids: tuple[int, ...]
    start: int


def encode(lm: LanguageModel, prompt: Prompt) -> EncodedPrompt:
    """Tokenise a prompt with its answer.

    Where joining them changes the prompt's last token, the answer is taken to start at the first token that differs.

    Raises:
        ShapleyError: an answer that adds no token, or a prompt that has none.
    """
    alone = lm.tokenizer(prompt.prompt)["input_ids"]
    ids = lm.tokenizer(prompt.prompt + prompt.answer)["input_ids"]
    # Some tokenizers close every text with an end token.
    if len(alone) > 1 and alone[-1] == lm.tokenizer.eos_token_id == ids[-1]:
        alone, ids = alone[:-1], ids[:-1]
    start = next((i for i, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), min(len(alone), len(ids)))
    name = prompt.id or f"{prompt.prompt[:40]!r}"
    if start == len(ids):
        raise ShapleyError(f"prompt {name}: the answer {prompt.answer!r} tokenises to nothing; give it letters")
    if start == 0:
        raise ShapleyError(f"prompt {name}: no token before the answer {prompt.answer!r}; give it a longer prompt")
    limit = lm.most_tokens
    if limit and len(ids) > limit:
        raise ShapleyError(f"prompt {name} has {len(ids)} tokens, the model takes {limit}; shorten it")
    return EncodedPrompt(tuple(ids), start)


@dataclass(frozen=True)
class RowPlan:
    """Which rows to score.

    Attributes:
        prompts: ``[rows]``, index of each row's prompt.
        coalitions: ``[rows]``, index of each row's coalition, or ``None`` when nothing is impaired by coalition.
        draws: ``[rows]``, number of each row's noise draw.
        strength: ``[rows]``, or ``None`` for the impairment's own.
    """

    prompts: IntArray
    coalitions: IntArray | None = None
    draws: IntArray | None = None
    strength: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def part(self, rows: slice) -> RowPlan:
        """Some of the rows."""
        fields = (self.prompts, self.coalitions, self.draws, self.strength)
        return RowPlan(*(None if field is None else field[rows] for field in fields))  # type: ignore[arg-type]


class RowScorer:
    """Runs rows of (prompt, coalition, strength, draw) through an impaired model.

    Args:
        lm: the model.
        prompts: what rows refer to.
        impairment: what happens to impaired neurons.
        layers: the layers whose neurons are players; the others stay whole.
        memory: bytes for activations; by default a quarter of what is free (at most 2 GiB on a CPU).

    Attributes:
        forward_rows: rows run so far; a gradient row counts 3, its backward counted as two.
        memory: bytes for activations; batches follow from it.
    """

    def __init__(
        self,
        lm: LanguageModel,
        prompts: Sequence[Prompt],
        impairment: Impairment,
        *,
        layers: Sequence[int] | None = None,
        memory: int | None = None,
    ) -> None:
        if not prompts:
            raise ShapleyError("no prompts to score")
        if impairment.scope == "batch" and impairment.kind in ("negative-noise", "shift"):
            raise ShapleyError(
                "scope 'batch' depends on which rows share a batch, so scores would too: choose 'prompt' or 'token'"
            )
        self.lm = lm
        self.prompts = tuple(prompts)
        self.impairment = impairment
        self.layers = tuple(range(lm.sites.n_layers) if layers is None else layers)
        self.width = lm.sites.width(impairment.site)
        self.forward_rows = 0
        self._encoded = [encode(lm, prompt) for prompt in prompts]
        self._lengths = np.array([len(prompt.ids) for prompt in self._encoded])
        self._statistics = lm.statistics(impairment.site) if impairment.needs_statistics else None
        self.memory = memory or min(map(default_memory, {weight.device for weight in lm.model.parameters()}))

    def values(
        self,
        names: Sequence[str],
        plan: RowPlan,
        *,
        coalitions: BoolArray | None = None,
        cluster: Any = None,
        dtype: torch.dtype = torch.float32,
    ) -> FloatArray:
        """Values of rows.

        Args:
            names: which values.
            plan: the rows.
            coalitions: ``[n_coalitions, len(layers) * width]``, true where a player is intact.
            cluster: what is impaired, when it is not by coalition.
            dtype: to compute in.

        Returns:
            ``[len(names), rows]`` float64.
        """
        out = np.empty((len(names), len(plan)))

        def run(chosen: IntArray) -> None:
            with torch.no_grad():
                rows = self._rows(plan, chosen, coalitions, None)
                out[:, chosen] = self._forward(names, plan.prompts[chosen], rows, cluster, dtype).cpu().numpy()

        self._in_batches(plan.prompts, run, backward=False)
        self.forward_rows += len(plan)
        return out

    def gradients(
        self, name: str, plan: RowPlan, coalitions: Gates, *, dtype: torch.dtype = torch.float32
    ) -> tuple[FloatArray, Float32Array]:
        """Values and mask gradients of rows: the derivative of each row's value with respect to every player's place
        in its coalition (``coalitions`` as for ``values``, or gates from 0 to 1 in float32).

        Returns:
            values ``[rows]`` float64 and gradients ``[rows, len(layers) * width]`` float32.
        """
        values = np.empty(len(plan))
        gradients = np.empty((len(plan), len(self.layers) * self.width), dtype=np.float32)

        def run(chosen: IntArray) -> None:
            leaves: list[Tensor] = []
            rows = self._rows(plan, chosen, coalitions, leaves)
            with torch.enable_grad():
                value = self._forward([name], plan.prompts[chosen], rows, None, dtype)[0]
                by_layer = torch.autograd.grad(value.sum(), leaves)
            values[chosen] = value.detach().cpu().numpy()
            for i, part in enumerate(by_layer):  # layer by layer: together they are as large as the result
                gradients[chosen, i * self.width : (i + 1) * self.width] = part.cpu().numpy()

        self._in_batches(plan.prompts, run, backward=True)
        self.forward_rows += 3 * len(plan)
        return values, gradients

    def marginals(
        self,
        name: str,
        plan: RowPlan,
        coalitions: BoolArray,
        players: IntArray,
        *,
        dtype: torch.dtype = torch.float32,
    ) -> FloatArray:
        """Marginal contributions: the value of each row with the player intact minus that with it impaired, the other
        players as in the row's coalition.

        A row is run whole once, and then once for each player, its own place in the coalition turned, from that
        player's layer on (``shapley.hf.replay``). Players of like layers share batches. Each run counts as a forward
        row, whatever part of the model it went through.

        Returns:
            ``[rows, len(players)]`` float64.
        """
        out = np.empty((len(plan), len(players)))
        if not len(players) or not len(plan):
            return out
        layer_of = np.asarray(self.layers)[players // self.width]

        def run(chosen: IntArray) -> None:
            out[chosen] = self._turn(name, plan, chosen, coalitions, players, layer_of, dtype)

        order = np.argsort(self._lengths[plan.prompts], kind="stable")
        n_layers = len(np.unique(layer_of))
        for start in range(0, len(order), fits := self._prefixes(n_layers, plan)):
            _halving(order[start : start + fits], run)
        self.forward_rows += len(plan) * (1 + len(players))
        return out

    def _turn(
        self,
        name: str,
        plan: RowPlan,
        rows: IntArray,
        coalitions: BoolArray,
        players: IntArray,
        layer_of: IntArray,
        dtype: torch.dtype,
    ) -> FloatArray:
        """``[len(rows), len(players)]`` marginals of rows whose prefixes fit into memory together."""
        assert plan.coalitions is not None
        lengths = self._lengths[plan.prompts[rows]]
        with torch.no_grad(), record_entries(self.lm.sites, frozenset(layer_of.tolist())) as entries:
            settings = self._rows(plan, rows, coalitions, None)
            base = self._forward([name], plan.prompts[rows], settings, None, dtype)[0].cpu().double().numpy()
        turned = np.empty((len(rows), len(players)))

        def run(pairs: IntArray) -> None:
            row, player = np.divmod(pairs, len(players))
            start = int(layer_of[player].min())
            index = torch.from_numpy(row).to(self.lm.device)
            with torch.no_grad(), start_at(self.lm.sites, start, entries, index, int(lengths[row].max())):
                settings = self._rows(plan, rows[row], coalitions, None, turned=players[player], start=start)
                values = self._forward([name], plan.prompts[rows[row]], settings, None, dtype)[0]
            turned[row, player] = values.cpu().double().numpy()

        for batch in self._batches_by_layer(lengths, layer_of):
            _halving(batch, run)
        intact = coalitions[plan.coalitions[rows][:, None], players[None, :]]
        return np.where(intact, base[:, None] - turned, turned - base[:, None])

    def _batches_by_layer(self, lengths: IntArray, layer_of: IntArray) -> Iterator[IntArray]:
        """Pairs (row, player), numbered row by row, in batches of like layers and like lengths: rows are sorted by
        length; a few neighbours share a batch, so that it spans few layers."""
        n_players = len(layer_of)
        by_layer = np.argsort(layer_of, kind="stable")
        for first in range(0, len(lengths), _NEIGHBOURS):
            rows = np.arange(first, min(first + _NEIGHBOURS, len(lengths)))
            pairs = (rows[None, :] * n_players + by_layer[:, None]).reshape(-1)
            longest = int(lengths[rows].max())
            fits = self.memory // self._row_bytes(longest, backward=False)
            most = max(1, min(self._replayed_tokens // longest, fits))
            yield from (pairs[start : start + most] for start in range(0, len(pairs), most))

    def _prefixes(self, n_layers: int, plan: RowPlan) -> int:
        """How many rows' hidden states fit into half of the memory."""
        longest = int(self._lengths[plan.prompts].max())
        return int(max(1, self.memory // 2 // (4 * n_layers * longest * self.lm.sites.d_model)))

    def _rows(
        self,
        plan: RowPlan,
        chosen: IntArray,
        coalitions: Gates | None,
        leaves: list[Tensor] | None,
        *,
        turned: IntArray | None = None,
        start: int = 0,
    ) -> Rows:
        """The hook settings of a batch.

        Args:
            plan, chosen, coalitions: the rows.
            leaves: gates that want a gradient are added to it.
            turned: ``[len(chosen)]``, a player of each row whose place in the coalition is turned.
            start: the first layer that runs.
        """
        intact: list[Tensor | None] | None = None
        if coalitions is not None:
            assert plan.coalitions is not None
            mask = coalitions[plan.coalitions[chosen]]
            if turned is not None:
                own = np.arange(len(chosen)), turned
                mask[own] = np.logical_not(mask[own])
            intact = [None] * self.lm.sites.n_layers
            parts = torch.from_numpy(mask).to(self.lm.device).split(self.width, dim=1)
            for layer, gate in zip(self.layers, parts, strict=True):
                if leaves is not None:
                    gate = gate.float().requires_grad_(True)
                    leaves.append(gate)
                intact[layer] = gate if layer >= start else None
        return Rows(
            prompt_keys=[self.prompts[i].key for i in plan.prompts[chosen]],
            draws=None if plan.draws is None else plan.draws[chosen].tolist(),
            strength=None if plan.strength is None else plan.strength[chosen].tolist(),
            intact=intact,
        )

    def _forward(
        self,
        names: Sequence[str],
        prompts: IntArray,
        rows: Rows,
        cluster: Any,
        dtype: torch.dtype,
    ) -> Tensor:
        """``[len(names), rows]`` float32."""
        device = self.lm.device
        encoded = [self._encoded[i] for i in prompts]
        ids, valid = pad_right((e.ids for e in encoded), self.lm.pad_id)
        answers, present = pad_right((e.ids[e.start :] for e in encoded), 0)
        # The token before each answer token predicts it; padded places point at a real position and are not counted.
        positions = torch.tensor([e.start - 1 for e in encoded])[:, None] + torch.arange(answers.shape[1])
        positions = positions.clamp(max=ids.shape[1] - 1).to(device)
        ids, valid, answers, present = (x.to(device) for x in (ids, valid, answers, present))
        own = next(self.lm.model.parameters()).dtype
        with (
            torch.autocast(device.type, dtype=dtype, enabled=dtype != own and dtype != torch.float32),
            impair(self.lm, self.impairment, cluster, rows=rows, statistics=self._statistics),
            only_answer_logits(self.lm.model, positions),
        ):
            logits = self.lm.model(input_ids=ids, attention_mask=valid.long(), use_cache=False).logits
        return row_values(names, logits, answers, present)

    def _in_batches(self, prompts: IntArray, run: Callable[[IntArray], None], *, backward: bool) -> None:
        order = np.argsort(self._lengths[prompts], kind="stable")
        for batch in self._split(order, prompts, backward):
            _halving(batch, run)

    def _split(self, order: IntArray, prompts: IntArray, backward: bool) -> Iterator[IntArray]:
        """Consecutive runs of the sorted rows, each within its limits at its last row, which is its longest."""
        lengths = self._lengths[prompts[order]].tolist()
        start = 0
        for stop in range(1, len(order) + 1):
            if stop == len(order) or stop + 1 - start > self._most_rows(lengths[stop], backward):
                yield order[start:stop]
                start = stop

    def _most_rows(self, longest: int, backward: bool) -> int:
        """Of a batch."""
        most = _CPU_TOKENS // longest if self.lm.device.type == "cpu" else _GPU_ROWS
        return min(most, self.memory // self._row_bytes(longest, backward))

    @property
    def _replayed_tokens(self) -> int:
        return _CPU_REPLAYED_TOKENS if self.lm.device.type == "cpu" else _GPU_REPLAYED_TOKENS

    def _row_bytes(self, length: int, backward: bool) -> int:
        """Bytes of activations of one row: a block's working set, kept for every block when a backward follows."""
        sites = self.lm.sites
        heads = getattr(self.lm.model.config, "num_attention_heads", 16)
        block = 4 * length * (6 * sites.d_mlp + 16 * sites.d_model + 2 * heads * length)
        logits = 4 * 4 * self.lm.model.get_output_embeddings().weight.shape[0]
        gates = 8 * len(self.layers) * self.width
        return block * (sites.n_layers if backward else 2) + logits + gates


def _halving(rows: IntArray, run: Callable[[IntArray], None]) -> None:
    try:
        run(rows)
        return
    except RuntimeError as error:
        # torch raises a subclass on GPUs, a plain RuntimeError from its CPU allocator.
        out_of_memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not out_of_memory or len(rows) == 1:
            raise
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = len(rows) // 2
    _halving(rows[:middle], run)
    _halving(rows[middle:], run)


def default_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(pages // 4, 2 << 30)
