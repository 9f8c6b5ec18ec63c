"""Folding an impairment into the weights: the model is impaired then without a hook, and served by any engine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from shapley.errors import ShapleyError
from shapley.hf.hooks import cluster_mask
from shapley.hf.load import LanguageModel
from shapley.hf.sites import BlockSites, read_weights, write_weights
from shapley.impairment import Impairment

FOLDABLE = ("scale", "zero")


def fold(lm: LanguageModel, impairment: Impairment, cluster: Any = None) -> None:
    """Scale weights, in place, so that the model computes what it would under ``impair(lm, impairment, cluster)``.

    A gain on an activation is a gain on the weights that read it (``mlp_hidden``: the down-projection's rows; ``mlp_in``: those
    of the projections into the MLP) or that write it (``mlp_out``: the down-projection's columns and its bias).

    Raises:
        ShapleyError: a kind that is no gain, as noise, which is drawn anew at every token; or ``mlp_out`` behind a norm.
    """
    if impairment.kind not in FOLDABLE:
        raise ShapleyError(
            f"{impairment.kind} is no gain and cannot be folded into weights: only {' and '.join(FOLDABLE)} can; "
            "serve the others with 'shapley serve'"
        )
    mask = cluster_mask(lm.sites, impairment.site, cluster).to(lm.device)
    with torch.no_grad():
        for block, columns in zip(lm.sites.blocks, mask, strict=True):
            gain = torch.where(columns, 1 - impairment.strength, 1.0)
            for weight in _weights(lm, block, impairment):
                weight.mul_(gain.to(weight)[:, None] if weight.dim() > 1 else gain.to(weight))


def _weights(lm: LanguageModel, block: BlockSites, impairment: Impairment) -> list[Tensor]:
    """Views whose first axis is the site's columns."""
    if impairment.site == "mlp_hidden":
        return [write_weights(block)]
    if impairment.site == "mlp_in":
        return read_weights(block)
    family = lm.sites.family
    if not f"{family.down}.".startswith(f"{family.exit}."):
        raise ShapleyError(
            f"{lm.name}: what the MLP adds back is the output of {family.exit}, a norm: fold at mlp_hidden instead"
        )
    bias = getattr(block.down, "bias", None)
    return [write_weights(block).T, *([] if bias is None else [bias])]
