"""What neurons write into the residual stream, a norm behind the MLP included."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shapley.hf.sites import ModelSites, write_weights

_LARGE = 1e3  # so that the eps of a norm does not count beside a direction


def written(sites: ModelSites, layer: int) -> Tensor:
    """``[d_mlp, d_model]``: what each neuron adds to the stream by one unit of its activation; behind a norm, and in a sparse
    layer, but for a factor that they share."""
    block = sites.blocks[layer]
    with torch.no_grad():
        rows = write_weights(block)
        return through_norm(block.exit, rows) if sites.undoes_gain else rows


def through_norm(norm: nn.Module, rows: Tensor) -> Tensor:
    """Directions ``[n, d_model]`` as a norm's weights scale (and centre) them. What it divides by is left out: that is the size
    of the whole stream, which differs from token to token."""
    wide = rows.float() * _LARGE
    own = next(norm.parameters(), wide).dtype  # in a basis of the residual stream a norm has no weights
    through: Tensor = norm(wide.to(own)) - norm(torch.zeros_like(wide).to(own))
    return through.float() * rows.float().square().mean(dim=1, keepdim=True).sqrt()
