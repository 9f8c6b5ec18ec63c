"""How far off the screen is, measured on players drawn at random."""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from shapley.types import FloatArray

CONFIDENCE = 0.95
_WANTED = 29  # the largest of 29 bounds nine tenths of all players with confidence .95: .9^29 < .05


@dataclass(frozen=True)
class Audit:
    """What an audit of ``players`` players found. NaN before one.

    Attributes:
        players: how many were audited.
        rms: root mean square of the screen's bias over all players, estimated (noise of the audit taken off).
        bound: the largest bias seen, two standard errors added. Of all players, at least the fraction ``covers`` has a
            smaller one, with confidence 0.95 (the distribution-free bound of order statistics, Wilks 1941).
        share: mean squared bias over mean square of the unit gradients, noise taken off each player's square but no square
            below zero: rather too large, as to refine one player too many costs less than to trust a screen that is off.
        noise: mean variance of a unit's exact difference minus gradient, over mean square of the unit gradients.
        bound_ratio: as ``bound``, each player's bias taken over the root mean square of its unit gradients.
    """

    players: int
    rms: float
    bound: float
    share: float
    noise: float
    bound_ratio: float

    @classmethod
    def unknown(cls) -> Audit:
        return cls(0, np.nan, np.nan, np.nan, np.nan, np.inf)

    @classmethod
    def measure(cls, bias: FloatArray, variance: FloatArray, scale: FloatArray) -> Audit:
        """From the audited players' estimated biases, these estimates' variances, and mean square unit gradients."""
        if not len(bias):
            return cls.unknown()
        square = max(0.0, float((bias**2 - variance).mean()))
        worst = np.abs(bias) + 2 * np.sqrt(variance)
        ratio = np.divide(worst, np.sqrt(scale), out=np.zeros_like(worst), where=scale > 0)
        total = float(scale.mean())
        return cls(
            len(bias),
            float(np.sqrt(square)),
            float(worst.max()),
            float(np.maximum(bias**2 - variance, 0).mean()) / total if total > 0 else 0.0,
            float(variance.mean()) / total if total > 0 else 0.0,
            float(ratio.max()),
        )

    @property
    def covers(self) -> float:
        """The fraction of players that the bound holds for, with confidence 0.95."""
        return float((1 - CONFIDENCE) ** (1 / self.players)) if self.players else 0.0

    def record(self) -> dict[str, Any]:
        """For the score file."""
        if not self.players:
            return {"players": 0}
        return {
            "players": self.players,
            "bias_rms": self.rms,
            "bias_bound": self.bound,
            "bound_covers": self.covers,
            "confidence": CONFIDENCE,
        }

    def array(self) -> np.ndarray:
        return np.array(astuple(self), dtype=float)

    @classmethod
    def from_array(cls, values: np.ndarray) -> Audit:
        players, *rest = map(float, values)
        return cls(int(players), *rest)


def audit_size(n_players: int, affordable: float) -> int:
    """How many players to audit, where so many can be paid for."""
    return int(max(0, min(_WANTED, n_players, affordable)))
