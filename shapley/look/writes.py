"""What players write into the residual stream: the tokens it makes likelier, and who writes alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from shapley.hf.load import LanguageModel
from shapley.hf.written import through_norm
from shapley.look.players import Player, Players

_NOTHING = 1e-30
_FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm")


def token_effects(lm: LanguageModel, written: Tensor) -> Tensor | None:
    """``[players, vocabulary]``: the direct effect on logits of directions ``[players, d_model]``, through the final norm and
    the unembedding (nostalgebraist's logit lens), in standard deviations over the vocabulary, 0 of one that writes nothing;
    ``None`` in a family where a norm was not found."""
    norm = _final_norm(lm)
    unembedding = lm.model.get_output_embeddings()
    if norm is None or unembedding is None or unembedding.weight.shape[1] != written.shape[1]:
        return None
    with torch.no_grad():
        through = through_norm(norm, written.to(unembedding.weight.device))
        effects = (through @ unembedding.weight.float().T).cpu()
    return (effects - effects.mean(dim=1, keepdim=True)) / effects.std(dim=1, keepdim=True).clamp(min=_NOTHING)


def nearest(every: Players, players: Sequence[Player], written: Tensor, k: int) -> list[list[tuple[Player, float]]]:
    """For each player the ``k`` others (``Players.company``) whose writing has the largest absolute cosine with its own, and
    the cosine."""
    own = torch.nn.functional.normalize(written, dim=1)
    among = every.company()
    width = among.width
    cosines = torch.cat(
        [
            own @ torch.nn.functional.normalize(among.written(layer).float().cpu(), dim=1).T
            for layer in range(among.n_layers)
        ],
        dim=1,
    )
    if among is every:
        for i, (layer, column) in enumerate(players):
            cosines[i, layer * width + column] = 0.0
    places = cosines.abs().topk(min(k, cosines.shape[1] - 1), dim=1).indices
    return [
        [((int(place) // width, int(place) % width), float(row[place])) for place in own_places]
        for row, own_places in zip(cosines, places, strict=True)
    ]


def _final_norm(lm: LanguageModel) -> nn.Module | None:
    """The norm between the last block and the unembedding."""
    parent, _, _ = lm.sites.blocks_path.rpartition(".")
    siblings = dict(lm.model.get_submodule(parent).named_children())
    return next((siblings[name] for name in _FINAL_NORMS if name in siblings), None)
