"""Marginal contributions of chosen players in any game."""

from __future__ import annotations

import numpy as np

from shapley.estimators.base import Game, chunk_size
from shapley.types import BoolArray, FloatArray, IntArray


def marginals(game: Game, coalitions: BoolArray, players: IntArray, prompts: IntArray, draws: IntArray) -> FloatArray:
    """``[C, m]``: the value with the player intact minus that with it impaired, all others as in the coalition, on the
    coalition's own prompt ``[C]`` and draw ``[C]``. A game that has a shorter way has a method of this name."""
    if hasattr(game, "marginals"):
        found: FloatArray = game.marginals(coalitions, players, prompts=prompts, draws=draws)
        return found
    base = game.values(coalitions, prompts=prompts, draws=draws)
    turned = np.empty((len(coalitions), len(players)))
    flat = turned.reshape(-1)
    for start in range(0, len(flat), chunk_size(game)):
        pairs = np.arange(start, min(start + chunk_size(game), len(flat)))
        row, player = np.divmod(pairs, len(players))
        masks = coalitions[row]
        masks[np.arange(len(pairs)), players[player]] ^= True
        flat[pairs] = game.values(masks, prompts=prompts[row], draws=draws[row])
    return np.where(coalitions[:, players], base[:, None] - turned, turned - base[:, None])
