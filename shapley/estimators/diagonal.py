"""The diagonal: mask gradients with all players at one gate q, averaged over the semivalue's law of q.

This is the Aumann-Shapley value, integrated gradients from all players impaired to all intact (Aumann and Shapley 1974;
Sundararajan, Taly and Yan 2017, eq. 1). It replaces random coalitions by their mean, so it needs few rows and has next to
no noise; for the same reason it is off wherever the model bends between the mean and the coalitions, and more rows do not
help. ``two-stage`` starts from it.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from shapley.estimators.base import DifferentiableGame
from shapley.estimators.coalitions import ROWS_PER_UNIT
from shapley.estimators.semivalue import Semivalue
from shapley.keyed import keyed_rng
from shapley.types import Float32Array, FloatArray, IntArray

_NODES = 4  # midpoints of quarters of the law of q; on trained models 8 or 16 are hardly better


@dataclass(frozen=True)
class Diagonal:
    """Which gradient rows the diagonal takes: ``gates`` and ``prompts``, ``[rows]`` each."""

    gates: FloatArray
    prompts: IntArray

    @classmethod
    def plan(cls, semivalue: Semivalue, n_prompts: int, most: int, seed: int, key: str) -> Diagonal:
        """Every prompt at every node, or ``most`` rows with prompts and nodes in turn; none where there is no row for each
        node."""
        nodes = np.unique(semivalue.intact_fraction((np.arange(_NODES) + 0.5) / _NODES))
        turn, place = np.divmod(np.arange(min(most, len(nodes) * n_prompts)), n_prompts)
        if len(turn) < len(nodes):
            return cls(np.empty(0), np.empty(0, dtype=np.int64))
        prompts = keyed_rng(seed, key, "diagonal").permutation(n_prompts)
        return cls(nodes[(place + turn) % len(nodes)], prompts[place])

    def __len__(self) -> int:
        return len(self.gates)

    @property
    def parts(self) -> int:
        """In how many parts the rows can be computed apart."""
        return -(-len(self) // ROWS_PER_UNIT)

    def part(self, game: DifferentiableGame, index: int) -> FloatArray:
        """``[n_players]`` sum of a part's gradients."""
        rows = np.arange(index * ROWS_PER_UNIT, min((index + 1) * ROWS_PER_UNIT, len(self)))
        gates = np.repeat(self.gates[rows, None].astype(np.float32), game.n_players, axis=1)
        _, gradients = game.gradients(gates, prompts=self.prompts[rows], draws=rows)
        return gradients.sum(axis=0, dtype=np.float64)

    def scores(self, parts: Iterable[FloatArray]) -> Float32Array:
        """``[n_players]`` mean gradient, from all parts in order."""
        total: FloatArray = functools.reduce(np.add, parts)
        return (total / len(self)).astype(np.float32)
