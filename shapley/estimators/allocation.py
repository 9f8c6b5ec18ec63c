"""Who gets exact differences next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from shapley.types import FloatArray, IntArray


@dataclass(frozen=True)
class Standing:
    """What is known of every player, ``[n]`` each: its score, the score's variance, the mean square of its bias (0 once
    it is refined) and the units it was refined in."""

    score: FloatArray
    variance: FloatArray
    bias: FloatArray
    units: IntArray


def choose_players(standing: Standing, top_k: int, places: int) -> IntArray:
    """``places`` distinct players: half by the chance that they are on the wrong side of the top k, half by how much
    mean square error a round of exact differences would take away."""
    n = len(standing.score)
    places = min(places, n)
    wrong = chance_of_wrong_side(standing, top_k)
    first = np.argsort(-wrong, kind="stable")[: (places + 1) // 2]
    gain = error_reduction(standing)
    gain[first] = -np.inf
    second = np.argsort(-gain, kind="stable")[: places - len(first)]
    return np.concatenate([first, second])


def chance_of_wrong_side(standing: Standing, top_k: int) -> FloatArray:
    """Normal chance that a player's true score lies beyond the boundary, midway between the k-th and the next score."""
    if top_k >= len(standing.score):
        return np.zeros(len(standing.score))
    kth, following = -np.partition(-standing.score, (top_k - 1, top_k))[top_k - 1 : top_k + 1]
    error = np.sqrt(standing.variance + standing.bias)
    distance = np.abs(standing.score - (kth + following) / 2)
    return np.asarray(ndtr(-np.divide(distance, error, out=np.full_like(error, np.inf), where=error > 0)))


def error_reduction(standing: Standing) -> FloatArray:
    """Mean square error that goes: the bias of a screened player; a refined one's variance falls by 1/(t + 1)."""
    return np.where(standing.units > 0, standing.variance / (standing.units + 1.0), standing.bias)
