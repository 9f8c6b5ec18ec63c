"""Whom one can look at: neurons (or what plays in their place) and directions of the residual stream.

A player is a layer and a column. What is shown of it needs its activation and the direction that it writes along; that is
all that differs between the kinds.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from shapley.errors import ShapleyError
from shapley.hf.hooks import attach
from shapley.hf.load import LanguageModel
from shapley.hf.sites import write_weights
from shapley.keyed import keyed_rng
from shapley.sparse.insert import has_units
from shapley.types import Site

Player = tuple[int, int]  # layer, column
_LARGE = 1e3  # so that the eps of a norm does not count beside a direction


class Players(ABC):
    """All players of one kind in a model."""

    lm: LanguageModel

    @property
    @abstractmethod
    def noun(self) -> str:
        """Of one of them."""

    @property
    @abstractmethod
    def site(self) -> str:
        """Where they are."""

    @property
    @abstractmethod
    def layers(self) -> range:
        """That have some."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Players a layer."""

    @abstractmethod
    def watch(self, layer: int, keep: Callable[[Tensor], None]) -> RemovableHandle:
        """Have ``keep`` called with a layer's activation ``[rows, tokens, width]`` (some families flatten the first two)."""

    @abstractmethod
    def written(self, layer: int) -> Tensor:
        """``[width, d_model]``: what each adds to the residual stream by one unit of its activation; of a direction, itself."""

    def company(self) -> Players:
        """Whom their nearest are sought among."""
        return self

    def check(self, players: Sequence[Player]) -> None:
        """Raises ShapleyError for a player that is not there."""
        for layer, column in players:
            if layer not in self.layers or not 0 <= column < self.width:
                first, last = self.layers[0], self.layers[-1]
                where = f"layer {first}" if first == last else f"layers {first} to {last}"
                raise ShapleyError(
                    f"player {layer}:{column} is not in {self.lm.name}, whose {self.noun}s are 0 to {self.width - 1} of {where}"
                )

    def sample(self, n: int) -> list[Player]:
        """So many of them, or all, drawn at random, in order; the same for the same numbers of layers and columns."""
        every = len(self.layers) * self.width
        drawn = sorted(keyed_rng(0, "players").permutation(every)[:n])
        return [(self.layers[int(place) // self.width], int(place) % self.width) for place in drawn]

    def directions(self, players: Sequence[Player]) -> Tensor:
        """``[players, d_model]``, in float32 on the CPU: what each adds to the residual stream."""
        written = {layer: self.written(layer) for layer in {layer for layer, _ in players}}
        return torch.stack([written[layer][column].float().cpu() for layer, column in players])


@dataclass(frozen=True)
class Neurons(Players):
    """Columns of ``mlp_hidden``: neurons, directions of a rotated basis of it, or units of a sparse layer."""

    lm: LanguageModel

    @property
    def noun(self) -> str:
        return "unit" if has_units(self.lm.model) else "neuron"

    @property
    def site(self) -> str:
        return "mlp_hidden"

    @property
    def layers(self) -> range:
        return range(self.lm.sites.n_layers)

    @property
    def width(self) -> int:
        return self.lm.sites.d_mlp

    def watch(self, layer: int, keep: Callable[[Tensor], None]) -> RemovableHandle:
        return _watch(self.lm, layer, "mlp_hidden", keep)

    def written(self, layer: int) -> Tensor:
        with torch.no_grad():
            return _after_mlp(self.lm, layer, write_weights(self.lm.sites.blocks[layer]))


@dataclass(frozen=True)
class Directions(Players):
    """Columns of ``mlp_in`` or ``mlp_out``: directions of the residual stream, as an MLP reads or writes it. They write
    themselves, in every layer alike, so the nearest to one are the neurons that write along it."""

    lm: LanguageModel
    of: Site

    @property
    def noun(self) -> str:
        return "direction"

    @property
    def site(self) -> str:
        return self.of

    @property
    def layers(self) -> range:
        return range(self.lm.sites.n_layers)

    @property
    def width(self) -> int:
        return self.lm.sites.d_model

    def watch(self, layer: int, keep: Callable[[Tensor], None]) -> RemovableHandle:
        return _watch(self.lm, layer, self.of, keep)

    def written(self, layer: int) -> Tensor:
        return torch.eye(self.width)

    def company(self) -> Players:
        return Neurons(self.lm)


def through_norm(norm: nn.Module, written: Tensor) -> Tensor:
    """Directions ``[n, d_model]`` as a norm's weights scale (and centre) them. What it divides by is left out: that is the size
    of the whole stream, which differs from token to token."""
    wide = written.float() * _LARGE
    own = next(norm.parameters(), wide).dtype  # in a basis of the residual stream a norm has no weights
    through: Tensor = norm(wide.to(own)) - norm(torch.zeros_like(wide).to(own))
    return through.float() * written.float().square().mean(dim=1, keepdim=True).sqrt()


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


def _watch(lm: LanguageModel, layer: int, site: Site, keep: Callable[[Tensor], None]) -> RemovableHandle:
    def kept(x: Tensor) -> Tensor:
        keep(x)
        return x

    return attach(lm.sites.blocks[layer], site, kept)


def _after_mlp(lm: LanguageModel, layer: int, written: Tensor) -> Tensor:
    """Through the norm after the MLP, in the families that have one."""
    return through_norm(lm.sites.blocks[layer].exit, written) if lm.sites.undoes_gain else written
