"""The games with gates between 0 and 1, differentiable in torch, for path methods; rows are added to the game's count."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from planted import Planted
from reference import FastValues
from torch import Tensor


def soft_game(game: Any, variant: str = "all") -> Callable[[Tensor], Tensor]:
    """Gates ``[C, n]`` -> values ``[C]``, the mean over prompts; or, in variant ``one``, each row of the next prompt in turn
    (all are computed here, one is counted). A row with its backward counts three."""
    play = game.soft_values if isinstance(game, Planted) else FastValues(game).soft_values
    turn = 0

    def forward(gates: Tensor) -> Tensor:
        nonlocal turn
        rows = len(gates) * (game.n_prompts if variant == "all" else 1) * (3 if gates.requires_grad else 1)
        if isinstance(game, Planted):
            game.forward_rows += rows
        else:
            game._scorer.forward_rows += rows  # a forward pass of the benchmark's own, on the same account
        values = play(gates)
        if variant == "all":
            return values.mean(dim=1)
        prompts = (turn + torch.arange(len(gates))) % game.n_prompts
        turn += len(gates)
        return values[torch.arange(len(gates)), prompts]

    return forward
