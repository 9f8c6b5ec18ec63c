"""How far off the screen is, measured on players drawn at random.

Two samples. Players drawn from all alike bound the bias of most players, whatever its law. But a model hangs on a few neurons,
and these are where gradients fail: of 46,080 such a sample meets none. So others are drawn in proportion to their mean
square gradient; their mean ratio of squared bias to mean square gradient estimates the ratio of the sums over all players
(Hansen and Hurwitz 1943).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from shapley.types import BoolArray, FloatArray, IntArray

CONFIDENCE = 0.95
_BY_SIZE = 24
_WANTED = 29  # the largest of 29 bounds nine tenths of all players with confidence .95: .9^29 < .05


@dataclass(frozen=True)
class Audit:
    """What an audit of ``players`` players found. NaN before one.

    Attributes:
        players: how many were audited.
        rms: root mean square of the screen's bias over all players, estimated (noise of the audit taken off).
        bound: the largest bias seen, two standard errors added. Of all players, at least the fraction ``covers`` has a
            smaller one, with confidence 0.95 (the distribution-free bound of order statistics, Wilks 1941).
        share: squared bias over mean square of the unit gradients, as the sample by size has it; noise taken off each player's
            square but no square below zero: rather too large, as to refine one player too many costs less than to trust a
            screen that is off.
        noise: variance of a unit's exact difference minus gradient over mean square of the unit gradients, likewise.
        bound_ratio: the largest bias of all audited players, two standard errors added, over the root mean square of the
            player's unit gradients.
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
    def measure(cls, bias: FloatArray, variance: FloatArray, scale: FloatArray, alike: BoolArray) -> Audit:
        """From the audited players' estimated biases, these estimates' variances, their mean square unit gradients, and
        whether they were drawn from all alike rather than by size; all ``[m]``."""
        if not alike.any():
            return cls.unknown()
        square = max(0.0, float((bias**2 - variance)[alike].mean()))
        worst = np.abs(bias) + 2 * np.sqrt(variance)
        by_size = ~alike if not alike.all() else alike
        seen = scale > 0

        def ratio(squares: FloatArray, chosen: BoolArray) -> FloatArray:
            return np.divide(squares, scale, out=np.zeros_like(scale), where=seen)[chosen]

        return cls(
            int(alike.sum()),
            float(np.sqrt(square)),
            float(worst[alike].max()),
            float(ratio(np.maximum(bias**2 - variance, 0), by_size).mean()),
            float(ratio(variance, by_size).mean()),
            float(np.sqrt(ratio(worst**2, alike | by_size).max())),
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


def audit_sizes(n_players: int, affordable: float) -> tuple[int, int]:
    """How many players to audit, drawn from all alike and by size, where so many can be paid for."""
    both = int(max(0, min(_WANTED + _BY_SIZE, n_players, affordable)))
    alike = min(_WANTED, -(-both * _WANTED // (_WANTED + _BY_SIZE)))
    return alike, both - alike


def drawn_by_size(size: FloatArray, n: int, without: IntArray, rng: np.random.Generator) -> IntArray:
    """``n`` players, or fewer, drawn one after another with chances in proportion to ``size`` (Efraimidis and Spirakis 2006:
    the smallest of exponential waiting times), none of ``without``."""
    waiting = rng.standard_exponential(len(size))
    waiting = np.divide(waiting, size, out=np.full(len(size), np.inf), where=size > 0)
    waiting[without] = np.inf
    first = np.argsort(waiting, kind="stable")[:n]
    return first[np.isfinite(waiting[first])]
