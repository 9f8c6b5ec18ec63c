"""Who gets exact differences next: those for whom a forward row takes away more of the expected loss than it would as a
part of one more gradient for all.

The loss has two halves of equal weight: the mean square error of all scores, and that of the scores near the boundary of
the top k, each player weighted by the chance that it is on the wrong side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from shapley.types import FloatArray, IntArray


@dataclass(frozen=True)
class Standing:
    """What is known of every player, ``[n]`` each.

    Attributes:
        score: the estimate.
        variance: of the score.
        bias: mean square of the score's bias; 0 once the player is refined.
        units: in which it was refined; 0 for a screened player.
        after_round: what the variance of a screened player would be after a first round of exact differences.
        screened: units of the screen so far, a number.
    """

    score: FloatArray
    variance: FloatArray
    bias: FloatArray
    units: IntArray
    after_round: FloatArray
    screened: int


def choose_players(
    standing: Standing, top_k: int, most: int, *, round_units: int, difference_rows: int, gradient_rows: int
) -> IntArray:
    """At most ``most`` players, best first; none where one more gradient for all is worth more.

    Args:
        standing: of the players.
        top_k: how many are to be separated.
        most: players, that the budget allows.
        round_units: units of a round.
        difference_rows, gradient_rows: what a unit costs for one player's differences, and for the gradients of all.
    """
    weight = loss_weights(standing, top_k)
    refined = standing.units > 0
    gain = weight * round_gain(standing, round_units) / (round_units * difference_rows)
    # One more unit takes 1 / (M + 1) off the variance of every mean of M.
    screening = float((weight * standing.variance)[~refined].sum()) / (standing.screened + 1) / gradient_rows
    best = np.argsort(-gain, kind="stable")[:most]
    return best[gain[best] > screening]


def loss_weights(standing: Standing, top_k: int) -> FloatArray:
    """``[n]`` weight of each player's squared error in the loss."""
    error = standing.variance + standing.bias
    wrong = chance_of_wrong_side(standing, top_k)
    halves = [(np.ones_like(error), float(error.sum())), (wrong, float((wrong * error).sum()))]
    return np.sum([share / total for share, total in halves if total > 0] or [np.zeros_like(error)], axis=0)


def chance_of_wrong_side(standing: Standing, top_k: int) -> FloatArray:
    """Normal chance that a player's true score lies beyond the boundary, midway between the k-th and the next score."""
    if top_k >= len(standing.score):
        return np.zeros(len(standing.score))
    kth, following = -np.partition(-standing.score, (top_k - 1, top_k))[top_k - 1 : top_k + 1]
    error = np.sqrt(standing.variance + standing.bias)
    distance = np.abs(standing.score - (kth + following) / 2)
    return np.asarray(ndtr(-np.divide(distance, error, out=np.full_like(error, np.inf), where=error > 0)))


def round_gain(standing: Standing, round_units: int) -> FloatArray:
    """``[n]`` squared error that a round of exact differences takes away.

    A screened player's error E gives way to p / r after r rounds; r is taken where the gain of each of them, (E - p / r) / r,
    is largest: at 2 p / E, or at one round where that is enough.
    """
    again = standing.variance * round_units / (standing.units + round_units)
    error, after = standing.variance + standing.bias, standing.after_round
    several = np.divide(error**2, 4 * after, out=np.zeros_like(error), where=after > 0)
    return np.where(standing.units > 0, again, np.where(2 * after > error, several, error - after))
