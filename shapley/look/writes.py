"""What players write into the residual stream: the tokens it makes likelier, and who writes alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shapley.hf.load import LanguageModel
from shapley.hf.sites import write_weights
from shapley.look.seen import Player

_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
_LARGE = 1e3  # so that the eps of a norm does not count beside a direction


def directions(lm: LanguageModel, players: Sequence[Player]) -> Tensor:
    """``[players, d_model]``: what each adds to the residual stream by one unit of its activation."""
    with torch.no_grad():
        rows = [_out(lm, layer, write_weights(lm.sites.blocks[layer])[column][None]) for layer, column in players]
        return torch.cat([row.float().cpu() for row in rows])


def token_effects(lm: LanguageModel, written: Tensor) -> Tensor | None:
    """``[players, vocabulary]``: the direct effect on logits, through the final norm and the unembedding (nostalgebraist's
    logit lens), in standard deviations over the vocabulary; ``None`` in a family where a norm was not found."""
    norm = _final_norm(lm)
    unembedding = lm.model.get_output_embeddings()
    if norm is None or unembedding is None or unembedding.weight.shape[1] != written.shape[1]:
        return None
    with torch.no_grad():
        through = _through(norm, written.to(unembedding.weight.device))
        effects = (through @ unembedding.weight.float().T).cpu()
    return (effects - effects.mean(dim=1, keepdim=True)) / effects.std(dim=1, keepdim=True)


def nearest(lm: LanguageModel, players: Sequence[Player], written: Tensor, k: int) -> list[list[tuple[Player, float]]]:
    """For each player the ``k`` others whose writing has the largest absolute cosine with its own, and the cosine."""
    own = torch.nn.functional.normalize(written, dim=1)
    width = lm.sites.d_mlp
    cosines = torch.empty(len(players), lm.sites.n_layers * width)
    with torch.no_grad():
        for layer, block in enumerate(lm.sites.blocks):
            every = torch.nn.functional.normalize(_out(lm, layer, write_weights(block)).float().cpu(), dim=1)
            cosines[:, layer * width : (layer + 1) * width] = own @ every.T
    for i, (layer, column) in enumerate(players):
        cosines[i, layer * width + column] = 0.0
    places = cosines.abs().topk(min(k, cosines.shape[1] - 1), dim=1).indices
    return [
        [((int(place) // width, int(place) % width), float(row[place])) for place in own_places]
        for row, own_places in zip(cosines, places, strict=True)
    ]


def _out(lm: LanguageModel, layer: int, written: Tensor) -> Tensor:
    """Through the norm after the MLP, in the families that have one."""
    return _through(lm.sites.blocks[layer].exit, written) if lm.sites.undoes_gain else written


def _through(norm: nn.Module, written: Tensor) -> Tensor:
    """Directions ``[n, d_model]`` as a norm's weights scale (and centre) them. What it divides by is left out: that is the size
    of the whole stream, which differs from token to token."""
    wide = written.float() * _LARGE
    own = next(norm.parameters(), wide).dtype  # in a basis of the residual stream a norm has no weights
    through: Tensor = norm(wide.to(own)) - norm(torch.zeros_like(wide).to(own))
    return through.float() * written.float().square().mean(dim=1, keepdim=True).sqrt()


def _final_norm(lm: LanguageModel) -> nn.Module | None:
    """The norm between the last block and the unembedding."""
    parent, _, _ = lm.sites.blocks_path.rpartition(".")
    siblings = dict(lm.model.get_submodule(parent).named_children())
    return next((siblings[name] for name in _FINAL_NORMS if name in siblings), None)
