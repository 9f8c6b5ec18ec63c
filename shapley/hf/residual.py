"""Bases of the residual stream: one rotation of the whole stream, undone in all that reads it, so that the columns of the
sites ``mlp_in`` and ``mlp_out`` are directions of it. Written ``MODEL@residual:NAME``.

1. **Folding** (SliceGPT, Ashkboos et al. 2024, section 3.1). A norm's gain and bias go into the projections that read it. A
   layer norm is an RMS norm of a centred stream: all that writes the stream is centred. What is left, division by the root
   mean square, commutes with rotations.
2. **Turning**. All that writes the stream is multiplied by ``R`` (columns are the directions), all that reads it by ``R^T``.

A norm behind an MLP or attention (Gemma 2 and 3, OLMo 2) or behind the embeddings (Bloom) writes the stream itself, and has a
gain that does not commute: a linear map behind it is what is turned. Output embeddings that are tied are untied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from shapley.hf.sites import ModelSites, input_first
from shapley.hf.stream import Stream, find_stream


class UnitNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps)``, in float32 at least: an RMS norm without a gain."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return (wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)).to(x.dtype)


def turn_stream(model: Any, sites: ModelSites, vectors: Callable[[], Tensor]) -> None:
    """Turn the residual stream into a basis, in place; the model computes what it did, to rounding.

    Args:
        vectors: gives ``[d_model, d_model]``, directions in columns; called when the norms are folded in, so that it may look
            at the stream as it is then.

    Raises:
        ShapleyError: a model whose stream is not known (``find_stream``).
    """
    stream = find_stream(model, sites)
    with torch.no_grad():
        _untie(model)
        _fold(model, stream)
        _turn(model, stream, vectors().double())


def _untie(model: Any) -> None:
    """Give the output embedding weights of its own: the input embedding is turned, and this one is folded and turned."""
    head = model.get_output_embeddings()
    head.weight = nn.Parameter(head.weight.clone(), requires_grad=False)
    model.config.tie_word_embeddings = False


def _fold(model: nn.Module, stream: Stream) -> None:
    centred = isinstance(model.get_submodule(stream.final), nn.LayerNorm)
    for norm, readers in stream.reads:
        if norm is None:
            continue
        gain, bias, eps = _parts(model.get_submodule(norm))
        for reader in map(model.get_submodule, readers):
            _fold_into(reader, gain, bias)
        model.set_submodule(norm, UnitNorm(eps))
    for end in stream.ends:
        norm_module = model.get_submodule(end)
        width = norm_module.get_parameter("weight")
        behind = nn.Linear(len(width), len(width), bias=False, device=width.device, dtype=width.dtype)
        behind.weight = nn.Parameter(torch.eye(len(width)).to(width), requires_grad=False)
        model.set_submodule(end, nn.Sequential(norm_module, behind))
    if centred:
        for writer in _writers(model, stream):
            for written in _written(writer):
                wide = written.double()
                written.copy_(wide - wide.mean(dim=-1, keepdim=True))


def _turn(model: nn.Module, stream: Stream, vectors: Tensor) -> None:
    for writer in _writers(model, stream):
        for written in _written(writer):
            written.copy_(written.double() @ vectors.to(written.device))
    for _, readers in stream.reads:
        for reader in map(model.get_submodule, readers):
            read = input_first(reader)
            read.copy_(vectors.T.to(read.device) @ read.double())


def _writers(model: nn.Module, stream: Stream) -> Sequence[nn.Module]:
    """All that adds to the stream, the maps behind norms included."""
    return [*map(model.get_submodule, stream.writers), *(model.get_submodule(f"{end}.1") for end in stream.ends)]


def _parts(norm: nn.Module) -> tuple[Tensor | None, Tensor | None, float]:
    """Gain and bias, where it has them, and epsilon."""
    gain, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if gain is not None and "Gemma" in type(norm).__name__:  # whose weight is what the gain is above one
        gain = 1 + gain.double()
    eps: Any = norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps
    return gain, bias, float(eps)


def _fold_into(reader: nn.Module, gain: Tensor | None, bias: Tensor | None) -> None:
    """``(n gain + bias) W + b`` as ``n W' + b'``."""
    weight = input_first(reader)
    wide = weight.double()
    if bias is not None:
        own = getattr(reader, "bias", None)
        moved = bias.double() @ wide + (0 if own is None else own.double())
        reader.bias = nn.Parameter(moved.to(weight.dtype), requires_grad=False)
    if gain is not None:
        weight.copy_(gain.double()[:, None] * wide)


def _written(writer: nn.Module) -> list[Tensor]:
    """Views whose last axis is the stream: the weights of an embedding or a projection, and its bias."""
    weight = writer.get_parameter("weight")
    bias = getattr(writer, "bias", None)
    own = weight if isinstance(writer, nn.Embedding) else input_first(writer)
    return [own] if bias is None else [own, bias]
