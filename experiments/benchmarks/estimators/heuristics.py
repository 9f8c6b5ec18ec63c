"""Scores that do not aim at the Shapley value, or at a single point of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from problem import CannotRunError

from shapley.hf.sites import write_weights
from shapley.types import FloatArray


def attribution_patching(game: Any, variant: str, budget: int, seed: int) -> FloatArray:
    """The derivative with respect to each player's presence, at the whole model (Nanda 2023): 3 rows a prompt."""
    everyone = np.ones((1, game.n_players), dtype=bool)
    return game.gradients(everyone)[1][0].astype(np.float64)


def activation_size(game: Any, variant: str, budget: int, seed: int) -> FloatArray:
    """Mean over prompts and tokens of |activation|, times the norm of what the neuron writes: one row a prompt."""
    if not hasattr(game, "lm"):
        raise CannotRunError("no activations: not a model")
    blocks = game.lm.sites.blocks
    writes = [write_weights(block) for block in blocks]
    seen: list[torch.Tensor] = [torch.zeros(game.lm.sites.d_mlp) for _ in blocks]

    def keep(layer: int) -> Any:
        def hook(module: Any, arguments: tuple[torch.Tensor, ...]) -> None:
            seen[layer] += arguments[0].abs().mean(dim=(0, 1))

        return hook

    projections = [block.mlp.c_proj for block in game.lm.model.transformer.h]
    handles = [module.register_forward_pre_hook(keep(layer)) for layer, module in enumerate(projections)]
    try:
        game.values(np.ones((1, game.n_players), dtype=bool))
    finally:
        for handle in handles:
            handle.remove()
    return torch.cat([size * write.norm(dim=1) for size, write in zip(seen, writes, strict=True)]).double().numpy()


def random_scores(game: Any, variant: str, budget: int, seed: int) -> FloatArray:
    return np.random.default_rng([seed, 5]).random(game.n_players)
