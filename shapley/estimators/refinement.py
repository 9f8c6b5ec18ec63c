"""Exact differences of chosen players, with the gradient at the same coalition as control variate.

For a player and unit u, D_u is its mean marginal and g_u its mean mask gradient at the unit's 16 coalitions. With the
gradient's mean over all units G known well,

    phi = mean(D_u) - beta (mean(g_u) - G)                         (control variate: Goldwasser and Hooker 2023, eq. 6)

is unbiased for every beta that does not depend on these units; beta is the regression of D on g over the pairs of the
*other half* of the player's units, and 1 where there are none. Where the first order is good, beta is near 1 and nearly
all variance goes; for the few players where it is not, beta goes to 0 and the gradient does no harm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from shapley.types import BoolArray, FloatArray, IntArray

_UNIT = ("n", "d", "g", "dd", "gg", "dg")  # sums over units, and, the same, over pairs


@dataclass(frozen=True)
class RefinedScores:
    """``score``, ``variance`` (of the score) and ``units`` behind it, ``[L]`` each, of ``players`` ``[L]``."""

    players: IntArray
    score: FloatArray
    variance: FloatArray
    units: IntArray

    def where(self, chosen: Callable[[RefinedScores], BoolArray]) -> RefinedScores:
        """Those players only."""
        kept = chosen(self)
        return RefinedScores(self.players[kept], self.score[kept], self.variance[kept], self.units[kept])


class Refinement:
    """Running sums of the players that have exact differences; memory grows with these players only.

    Args:
        n_players: of the game.
    """

    def __init__(self, n_players: int) -> None:
        self._place = np.full(n_players, -1, dtype=np.int32)
        self.players: IntArray = np.empty(0, dtype=np.int64)
        self._units: FloatArray = np.empty((2, len(_UNIT), 0))  # [half, sum, player]
        self._pairs: FloatArray = np.empty((2, len(_UNIT), 0))

    def add(self, players: IntArray, marginals: FloatArray, gradients: FloatArray) -> None:
        """A unit of distinct players ``[m]``: their ``[pairs, m]`` marginals and gradients."""
        self._enrol(players)
        place = self._place[players]
        half = self.units()[place] % 2
        d, g = marginals.mean(axis=0), gradients.mean(axis=0)
        self._units[half, :, place] += np.stack([np.ones_like(d), d, g, d * d, g * g, d * g], axis=1)
        pairs = [np.full_like(d, len(marginals)), marginals.sum(axis=0), gradients.sum(axis=0)]
        pairs += [(a * b).sum(axis=0) for a, b in ((marginals, marginals), (gradients, gradients))]
        pairs.append((marginals * gradients).sum(axis=0))
        self._pairs[half, :, place] += np.stack(pairs, axis=1)

    def units(self) -> IntArray:
        """``[L]`` units that each player was refined in."""
        return self._units[:, 0].sum(axis=0).astype(np.int64)

    def scores(self, gradient: FloatArray, gradient_variance: FloatArray, n_units: int) -> RefinedScores:
        """What is known of the players.

        Args:
            gradient, gradient_variance: ``[L]`` mean and variance over all units of these players' unit gradients.
            n_units: how many units these are; the refined ones are among them.
        """
        t, d, g, dd, gg, dg = self._units.transpose(1, 0, 2)  # [half, L] each
        beta = self._betas()[::-1]
        # The other half's gradients helped to choose beta: they are left out of the mean that it multiplies.
        reference = (n_units * gradient - g[::-1]) / np.maximum(n_units - t[::-1], 1)
        total = t.sum(axis=0)
        score = (d - beta * (g - t * reference)).sum(axis=0) / total
        # y_u = D_u - beta (g_u - reference); its sum of squares about the score, from the sums
        shifted_gg = gg - 2 * reference * g + t * reference**2
        shifted_dg = dg - reference * d
        squares = (dd - 2 * beta * shifted_dg + beta**2 * shifted_gg).sum(axis=0) - total * score**2
        spread = np.maximum(squares, 0) / np.maximum(total - 1, 1)
        mean_beta = (t * beta).sum(axis=0) / total
        variance = spread / total + mean_beta**2 * gradient_variance / n_units
        return RefinedScores(self.players, score, np.where(total > 1, variance, np.nan), total.astype(np.int64))

    def residuals(self) -> tuple[FloatArray, FloatArray]:
        """``[L]`` mean of D - g over pairs, and its variance with pairs taken as independent (a little too large, as they
        are stratified)."""
        n, d, g, dd, gg, dg = self._pairs.sum(axis=0)
        mean = (d - g) / n
        spread = (dd - 2 * dg + gg - n * mean**2) / np.maximum(n - 1, 1)
        return mean, np.maximum(spread, 0) / n

    def state(self) -> dict[str, np.ndarray]:
        return {"refined_players": self.players, "refined_units": self._units, "refined_pairs": self._pairs}

    def load(self, state: dict[str, np.ndarray]) -> None:
        self.players = np.array(state["refined_players"])
        self._units, self._pairs = np.array(state["refined_units"]), np.array(state["refined_pairs"])
        self._place[:] = -1
        self._place[self.players] = np.arange(len(self.players))

    def _betas(self) -> FloatArray:
        """``[2, L]`` regression of D on g over each half's pairs; 1 without any."""
        n, d, g, _, gg, dg = self._pairs.transpose(1, 0, 2)
        count = np.maximum(n, 1)
        covariance, variance = dg - d * g / count, gg - g * g / count
        usable = (n > 2) & (variance > 1e-12 * gg)
        return np.where(usable, covariance / np.where(usable, variance, 1), 1.0)

    def _enrol(self, players: IntArray) -> None:
        new = players[self._place[players] < 0]
        self._place[new] = len(self.players) + np.arange(len(new))
        self.players = np.concatenate([self.players, new])
        grow = ((0, 0), (0, 0), (0, len(new)))
        self._units, self._pairs = np.pad(self._units, grow), np.pad(self._pairs, grow)
