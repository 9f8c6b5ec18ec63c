"""The games of the benchmark by name, with the scores that estimates are held against.

planted-1000, planted-50000       exact Shapley values by construction (planted.py)
trained-256, -1024, -4096         models trained here (trained.py), long-run reference (reference.py)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from planted import Planted
from reference import reference
from trained import trained_game

from shapley.types import FloatArray

NAMES = ("planted-1000", "planted-50000", "trained-256", "trained-1024", "trained-4096")


def planted(n_players: int, seed: int = 0) -> Planted:
    """A game with exact ``truth``."""
    return Planted(n_players, seed)


def trained(n_neurons: int, seed: int = 0) -> Any:
    """A ``NeuronGame`` on a model trained here, 8 prompts of one topic."""
    return trained_game(n_neurons, seed)


@dataclass(frozen=True)
class Truth:
    """``score`` ``[n]``; ``stderr`` ``[n]``, zero where exact; ``forward_rows`` that it cost."""

    score: FloatArray
    stderr: FloatArray
    forward_rows: int


def make(name: str, seed: int = 0) -> Any:
    """A new game, its row counter at zero."""
    kind, size = name.split("-")
    return planted(int(size), seed) if kind == "planted" else trained(int(size), seed)


def truth(name: str, seed: int = 0, minutes: float = 15) -> Truth:
    """Exact, or the cached reference, computed for at most so many minutes where there is none."""
    game = make(name, seed)
    if isinstance(game, Planted):
        return Truth(game.truth, 0 * game.truth, 0)
    found = reference(game, minutes=minutes)
    return Truth(found.score, found.stderr, found.forward_rows)
