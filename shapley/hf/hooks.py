"""Impairment of a running model, by hooks at its sites.

``impair`` is the one entry: it registers a pre-hook on the model, which learns the rows, positions and padding of each
forward pass (a decode step of ``generate`` too), and a hook at the site of every layer that has something to impair.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shapley.errors import ShapleyError
from shapley.hf import noise
from shapley.hf.sites import BlockSites, ModelSites, find_sites
from shapley.hf.spec import SiteStatistics
from shapley.impairment import Impairment, impaired
from shapley.types import Site


@dataclass(frozen=True)
class Rows:
    """What differs between the rows of a batch. Rows multiplied by ``generate`` (beams, samples) keep their settings.

    Attributes:
        prompt_keys: name of each row's prompt, the key of its noise. Without it the noise is keyed by token and
            position, which is as independent of batching, but the same where two prompts have the same words.
        draws: number of each row's noise draw; 0 by default.
        strength: each row's strength, in place of the impairment's.
        intact: for each layer, ``[rows, width]``, bool or float in [0, 1], 1 where a neuron is in the row's coalition;
            ``None`` for a layer that stays whole. A float tensor may require a gradient.
        only: the rows that are impaired, whose settings the others are, in this order; ``None`` for all. The rest of the batch
            stays bit-equal to the untouched model: so rows of different impairments share a batch, each under its own.
    """

    prompt_keys: Sequence[str] | None = None
    draws: Sequence[int] | None = None
    strength: Sequence[float] | None = None
    intact: Sequence[Tensor | None] | None = None
    only: Sequence[int] | None = None


@contextmanager
def impair(
    model: Any,
    impairment: Impairment,
    cluster: Any = None,
    *,
    rows: Rows | None = None,
    statistics: SiteStatistics | None = None,
) -> Iterator[None]:
    """Impair a causal language model inside a ``with`` block.

    Args:
        model: a Hugging Face causal language model, or what ``shapley.load_model`` returns.
        impairment: what is done, and at which site.
        cluster: what it is done to: (layer, column) pairs, an object with such pairs as ``neurons``, a boolean
            ``[n_layers, width]`` array, or ``None`` for everything.
        rows: settings that differ from row to row.
        statistics: of the site, for ``mean``, ``resample`` and the unit ``sd``; computed over the embedded corpus
            when ``model`` comes from ``shapley.load_model``.

    Nesting works, the inner impairment seeing what the outer one left. The hooks go when the block ends, however it
    ends. Strength zero is bit-equal to the untouched model.

    Raises:
        ShapleyError: a cluster outside the model, or statistics that are needed and missing.
    """
    module: nn.Module = getattr(model, "model", model) if not isinstance(model, nn.Module) else model
    sites: ModelSites = model.sites if not isinstance(model, nn.Module) else find_sites(module)
    if impairment.needs_statistics and statistics is None:
        if isinstance(model, nn.Module):
            raise ShapleyError(
                f"{impairment.kind!r} in unit {impairment.unit!r} needs activation statistics: pass statistics=, "
                "or a model from shapley.load_model"
            )
        statistics = model.statistics(impairment.site)
    selected = cluster_mask(sites, impairment.site, cluster)
    forward = _Forward(impairment, rows or Rows(), statistics)
    with ExitStack() as stack:
        handle = module.register_forward_pre_hook(forward.begin, with_kwargs=True)
        stack.callback(handle.remove)
        for layer, block in enumerate(sites.blocks):
            columns = selected[layer].nonzero().squeeze(1)
            gated = forward.rows.intact is None or forward.rows.intact[layer] is not None
            if len(columns) and gated:
                edit = _LayerEdit(forward, layer, columns, whole=len(columns) == selected.shape[1])
                stack.callback(attach(block, impairment.site, edit).remove)
        yield


def cluster_mask(sites: ModelSites, site: Site, cluster: Any = None) -> Tensor:
    """The boolean ``[n_layers, width]`` mask of a cluster (everything for ``None``).

    Raises:
        ShapleyError: a column that the site does not have.
    """
    shape = (sites.n_layers, sites.width(site))
    if cluster is None:
        return torch.ones(shape, dtype=torch.bool)
    cluster_site = getattr(cluster, "site", site)
    if cluster_site != site:
        raise ShapleyError(
            f"the cluster holds columns of {cluster_site}, the impairment acts at {site}: "
            "project the cluster with shapley.footprint first"
        )
    pairs = torch.as_tensor(getattr(cluster, "neurons", cluster))
    if pairs.dtype == torch.bool:
        if tuple(pairs.shape) != shape:
            raise ShapleyError(f"the cluster mask has shape {tuple(pairs.shape)}, the model's {site} has {shape}")
        return pairs
    pairs = pairs.reshape(-1, 2).long()
    inside = (pairs >= 0).all(dim=1) & (pairs < torch.tensor(shape)).all(dim=1)
    if not bool(inside.all()):
        outside = tuple(pairs[~inside][0].tolist())
        raise ShapleyError(f"the cluster has (layer, neuron) {outside}; the model's {site} has {shape[0]} x {shape[1]}")
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[pairs[:, 0], pairs[:, 1]] = True
    return mask


def attach(block: BlockSites, site: Site, edit: Callable[[Tensor], Tensor]) -> RemovableHandle:
    """Put ``edit`` on the activation of a site of one block."""
    if site == "mlp_out":
        return block.exit.register_forward_hook(lambda module, args, output: _edit_first(output, edit))
    module = block.down if site == "mlp_hidden" else block.entry
    return module.register_forward_pre_hook(lambda module, args: _edit_first(args, edit))


def _edit_first(value: Any, edit: Callable[[Tensor], Tensor]) -> Any:
    """Blocks return a tensor or a tuple, depending on family and transformers version."""
    return (edit(value[0]), *value[1:]) if isinstance(value, tuple) else edit(value)


@contextmanager
def observe(sites: ModelSites, site: Site) -> Iterator[list[Tensor]]:
    """Collect the activations of a site, one tensor a layer in order, from one forward pass."""
    seen: list[Tensor] = []

    def keep(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return x

    with ExitStack() as stack:
        for block in sites.blocks:
            stack.callback(attach(block, site, keep).remove)
        yield seen


@contextmanager
def only_answer_logits(model: Any, positions: Tensor) -> Iterator[None]:
    """Compute the logits of ``positions`` ``[rows, answers]`` only, each row having its own.

    The hidden states are gathered before the output embedding, so logits come out as ``[rows, answers, vocabulary]``
    in every family, and nothing is spent on the vocabulary at other tokens.
    """

    def gather(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        (hidden,) = args
        places = positions.to(hidden.device)  # where the last block is
        return (hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1])),)

    handle = model.get_output_embeddings().register_forward_pre_hook(gather)
    try:
        yield
    finally:
        handle.remove()


class _Forward:
    """What one forward pass is made of: its rows, their keys, positions and padding; shared by the layers' edits."""

    def __init__(self, impairment: Impairment, rows: Rows, statistics: SiteStatistics | None) -> None:
        self.impairment = impairment
        self.rows = rows
        self.statistics = statistics
        self.shape = (0, 0)
        self.only: Tensor | None = None
        self.valid: Tensor | None = None
        self.keys: Tensor | None = None  # one row for each distinct (prompt, draw)
        self.inverse: Tensor | None = None  # [rows] -> row of keys; None where every row has its own, in order
        self.strength: Tensor | float = impairment.strength

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The model's pre-hook."""
        tokens = args[0] if args else kwargs.get("input_ids")
        if tokens is None:
            tokens = kwargs["inputs_embeds"][..., 0]
        n_rows, n_tokens = self.shape = (tokens.shape[0], tokens.shape[1])
        device = tokens.device
        mask = kwargs.get("attention_mask")
        mask = mask.bool() if isinstance(mask, Tensor) and mask.dim() == 2 else None
        positions = _positions(kwargs, mask, n_rows, n_tokens, device) if self.impairment.is_random else None
        if self.rows.only is not None:
            self.only = torch.tensor(self.rows.only, device=device)
            n_rows = len(self.only)
            tokens = tokens[self.only]
            mask, positions = (x if x is None else x[self.only] for x in (mask, positions))
        strength = self._per_row(self.rows.strength, n_rows, torch.float32, device)
        self.strength = self.impairment.strength if strength is None else strength[:, None, None]
        if positions is None:
            return
        self.valid = None if mask is None else mask[:, -n_tokens:]
        draws = self.rows.draws or [0]
        names: Sequence[object] = self.rows.prompt_keys or [""] * len(draws)
        if len(draws) == 1:
            draws = list(draws) * len(names)
        row_keys = [noise.key_of(self.impairment.seed, name, d) for name, d in zip(names, draws, strict=True)]
        if len(row_keys) == 1:
            row_keys *= n_rows
        keys = noise.token_keys(self._per_row(row_keys, n_rows, torch.int32, device), positions)
        if self.rows.prompt_keys is None and not tokens.is_floating_point():
            keys = noise.token_keys(keys.reshape(-1), tokens.reshape(-1, 1)).reshape(keys.shape)
        distinct, inverse = torch.unique(keys, dim=0, return_inverse=True)
        self.keys, self.inverse = (keys, None) if len(distinct) == n_rows else (distinct, inverse)

    @staticmethod
    def _per_row(values: Sequence[Any] | None, n_rows: int, dtype: torch.dtype, device: torch.device) -> Any:
        if values is None:
            return None
        tensor = torch.as_tensor(values, dtype=dtype, device=device)
        if n_rows % len(tensor):
            raise ShapleyError(f"settings for {len(tensor)} rows were given to impair, the batch has {n_rows}")
        return tensor.repeat_interleave(n_rows // len(tensor))


def _positions(kwargs: dict[str, Any], mask: Tensor | None, n_rows: int, n_tokens: int, device: torch.device) -> Tensor:
    """``[rows, tokens]``: the place of every token in its own text, whatever the padding and the cache."""
    given = kwargs.get("position_ids")
    if given is not None:
        return given.expand(n_rows, n_tokens)
    if mask is not None:
        return (mask.long().cumsum(1) - 1).clamp(min=0)[:, -n_tokens:]
    cache = kwargs.get("past_key_values")
    past = cache.get_seq_length() if cache is not None else 0
    return torch.arange(past, past + n_tokens, device=device).expand(n_rows, n_tokens)


class _LayerEdit:
    """The edit of one layer's activation: ``[rows, tokens, width]``, or flattened over rows and tokens (old OPT).

    Where a model is spread over devices, what the rows share is on the first one, and goes to the layer's when it is needed.
    """

    def __init__(self, forward: _Forward, layer: int, columns: Tensor, whole: bool) -> None:
        self.forward = forward
        self.layer = layer
        self.columns = columns
        self.whole = whole

    def __call__(self, x: Tensor) -> Tensor:
        forward = self.forward
        if forward.rows.strength is None and forward.impairment.strength == 0:
            return x
        shaped = x.view(*forward.shape, -1)
        if forward.only is None:
            return self._edited(shaped).view(x.shape)
        only = forward.only.to(x.device)
        return shaped.index_copy(0, only, self._edited(shaped[only])).view(x.shape)

    def _edited(self, x: Tensor) -> Tensor:
        """``[rows, tokens, width]`` as it is impaired; the rows are those that are."""
        forward = self.forward
        intact = None if forward.rows.intact is None else forward.rows.intact[self.layer]
        self.columns = self.columns.to(x.device)
        if intact is not None:
            return self._gate(x, intact.to(x.device))
        if self.whole:
            return self._impaired(x)
        return x.index_copy(2, self.columns, self._impaired(x[..., self.columns]))

    def _gate(self, x: Tensor, intact: Tensor) -> Tensor:
        """Coalitions: intact columns keep their activation, the cluster's others are impaired; exact at 0 and 1, and
        differentiable between."""
        rows = x.shape[0]
        intact = intact.float() if intact.dtype == torch.bool else intact
        intact = intact.repeat_interleave(rows // len(intact), dim=0) if len(intact) != rows else intact
        if not self.whole:
            kept = torch.ones_like(intact).index_copy(1, self.columns, intact[:, self.columns])
            intact = kept
        if self.forward.impairment.kind in ("zero", "scale"):
            strength = self._strength(x)
            if isinstance(strength, Tensor):
                strength = strength[:, 0]  # [rows, 1]
            elif strength == 1.0:
                return _RowGate.apply(x, intact)
            return _RowGate.apply(x, 1 - strength * (1 - intact))
        gate = intact[:, None].to(x.dtype)
        return gate * x + (1 - gate) * self._impaired(x, every_column=True)

    def _impaired(self, x: Tensor, every_column: bool = False) -> Tensor:
        impairment, statistics = self.forward.impairment, self.forward.statistics
        columns = torch.arange(x.shape[-1], device=x.device) if every_column else self.columns
        strength = self._strength(x)
        if isinstance(strength, Tensor) and not impairment.is_noise:
            strength = strength.to(x.dtype)
        if impairment.unit == "sd":
            assert statistics is not None
            strength = strength * statistics.site_std[self.layer].item()
        draw = maximum = target = None
        if impairment.is_noise:
            draw, maximum = (None if part is None else part.to(x.device) for part in self._noise(columns))
            strength = strength if isinstance(strength, Tensor) else torch.tensor(strength, device=x.device)
            x_wide = x.float()
            return impaired(impairment.kind, x_wide, strength, draw, maximum).to(x.dtype)
        if impairment.kind == "mean":
            assert statistics is not None
            target = statistics.mean.to(x.device)[self.layer, columns].to(x.dtype)
        if impairment.kind == "resample":
            target = self._donors(columns).to(x.device, x.dtype)
        return impaired(impairment.kind, x, strength, target=target)

    def _strength(self, x: Tensor) -> Tensor | float:
        strength = self.forward.strength
        return strength.to(x.device) if isinstance(strength, Tensor) else strength

    def _noise(self, columns: Tensor) -> tuple[Tensor, Tensor | None]:
        """The layer's draw and its maximum over the impairment's scope, both once for each distinct row, then spread."""
        forward, impairment = self.forward, self.forward.impairment
        assert forward.keys is not None
        draw = noise.draw(impairment.distribution, forward.keys, self.layer, columns.to(forward.keys.device))
        if impairment.kind == "noise":
            return self._spread(draw), None
        maximum = self._spread(draw.amax(dim=2, keepdim=True))  # [rows, tokens, 1]
        if impairment.scope != "token":
            if forward.valid is not None:
                maximum = maximum.masked_fill(~forward.valid[..., None], -torch.inf)
            maximum = maximum.amax(dim=1, keepdim=True)
        if impairment.scope == "batch":
            maximum = maximum.amax(dim=0, keepdim=True)
        return self._spread(draw), maximum

    def _donors(self, columns: Tensor) -> Tensor:
        """A reference activation for every token; one position for the whole layer, so that what went together stays."""
        forward, statistics = self.forward, self.forward.statistics
        assert forward.keys is not None and statistics is not None
        bank = statistics.donors[self.layer]
        chosen = noise.choose(forward.keys, noise.key_of("donor", self.layer), len(bank))
        return self._spread(bank[chosen][..., columns.to(bank.device)])

    def _spread(self, distinct: Tensor) -> Tensor:
        inverse = self.forward.inverse
        return distinct if inverse is None else distinct.index_select(0, inverse)


class _RowGate(torch.autograd.Function):
    """``x * gate`` with a gate per row: ``[rows, tokens, width]`` times ``[rows, width]``.

    The gate's gradient is summed over tokens in float32 without forming the product at every token.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gate: Tensor) -> Tensor:
        ctx.save_for_backward(x, gate)
        return x * gate.to(x.dtype)[:, None]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, gate = ctx.saved_tensors
        grad_x = grad * gate.to(grad.dtype)[:, None] if ctx.needs_input_grad[0] else None
        grad_gate = None
        if ctx.needs_input_grad[1]:
            grad_gate = torch.einsum("rtw,rtw->rw", grad, x).to(gate.dtype)
        return grad_x, grad_gate
