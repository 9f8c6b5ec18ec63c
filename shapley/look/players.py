"""Whom one can look at: neurons (or what plays in their place) and directions of the residual stream.

A player is a layer and a column. What is shown of it needs its activation and the direction that it writes along.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from shapley.errors import ShapleyError
from shapley.hf.hooks import attach
from shapley.hf.load import LanguageModel
from shapley.hf.written import written
from shapley.keyed import keyed_rng
from shapley.sparse.insert import has_units
from shapley.types import Site

Player = tuple[int, int]  # layer, column


@dataclass(frozen=True)
class Players:
    """The columns of a site: of ``mlp_hidden`` neurons, directions of a rotated basis of it, or units of a sparse layer; of
    ``mlp_in`` and ``mlp_out`` directions of the residual stream, as an MLP reads or writes it."""

    lm: LanguageModel
    site: Site = "mlp_hidden"

    @property
    def noun(self) -> str:
        """Of one of them."""
        if self.site != "mlp_hidden" or self.lm.sites.rotated:
            return "direction"
        return "unit" if has_units(self.lm.model) else "neuron"

    @property
    def n_layers(self) -> int:
        return self.lm.sites.n_layers

    @property
    def width(self) -> int:
        """Players a layer."""
        return self.lm.sites.width(self.site)

    def watch(self, layer: int, keep: Callable[[Tensor], None]) -> RemovableHandle:
        """Have ``keep`` called with a layer's activation ``[rows, tokens, width]`` (some families flatten the first two)."""

        def kept(x: Tensor) -> Tensor:
            keep(x)
            return x

        return attach(self.lm.sites.blocks[layer], self.site, kept)

    def written(self, layer: int) -> Tensor:
        """``[width, d_model]``: what each adds to the residual stream by one unit of its activation; of a direction, itself."""
        return written(self.lm.sites, layer) if self.site == "mlp_hidden" else torch.eye(self.width)

    def company(self) -> Players:
        """Whom their nearest are sought among. Directions of the residual stream are the same in every layer, so of them it is
        the neurons (or what plays in their place) that write along them."""
        return self if self.site == "mlp_hidden" else Players(self.lm)

    def check(self, players: Sequence[Player]) -> None:
        """Raises ShapleyError for a player that is not there."""
        for layer, column in players:
            if not (0 <= layer < self.n_layers and 0 <= column < self.width):
                raise ShapleyError(
                    f"player {layer}:{column} is not in {self.lm.name}, whose {self.noun}s are 0 to {self.width - 1} of "
                    f"layers 0 to {self.n_layers - 1}"
                )

    def sample(self, n: int) -> list[Player]:
        """So many of them, or all, drawn at random, in order; the same for the same numbers of layers and columns."""
        drawn = sorted(keyed_rng(0, "players").permutation(self.n_layers * self.width)[:n])
        return [(int(place) // self.width, int(place) % self.width) for place in drawn]

    def directions(self, players: Sequence[Player]) -> Tensor:
        """``[players, d_model]``, in float32 on the CPU: what each adds to the residual stream."""
        rows = {layer: self.written(layer) for layer in {layer for layer, _ in players}}
        return torch.stack([rows[layer][column].float().cpu() for layer, column in players])


def parse_players(text: str) -> list[Player]:
    """Read ``LAYER:COLUMN,LAYER:COLUMN,…``.

    Raises:
        ShapleyError: not in this notation, or a player twice.
    """
    players = []
    for part in text.split(","):
        layer, _, column = part.strip().partition(":")
        if not (layer.isdecimal() and column.isdecimal()):
            raise ShapleyError(f"players {text!r}: expected LAYER:NEURON, several with commas, as 3:120,17:4")
        players.append((int(layer), int(column)))
    if len(set(players)) < len(players):
        raise ShapleyError(f"players {text!r}: one is named twice")
    return players
