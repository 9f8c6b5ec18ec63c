"""How few players hold what there is to hold, from two estimates of their scores with draws of their own.

Players are ranked by one estimate and summed over the other, then the other way round, and the two are averaged. A player whose
score is all noise then adds nothing on average; ranked and summed by the same estimate it would look like a large one. The two
share their prompts, and what a score's error owes to those, and the bias of gradients where no player got exact differences.

The best players hold more together than all do, as scores behind them are negative. So shares are of the most that any number
of the best hold, and not of the sum, which is what is left when gains and losses have cancelled.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from shapley.types import FloatArray

_POINTS = 60  # of a stored curve
_LEAST_AGREEMENT = 0.1  # a correlation; below it the order of players is noise


def concentration(one: FloatArray, other: FloatArray) -> dict[str, Any]:
    """Of two estimates ``[players]``; ``half`` and ``gini`` are ``None`` where the two hardly agree, or nothing is held.

    ``n_players`` of all layers
    ``total``     what all scores sum to, nats
    ``peak``      the most that any number of the best hold, nats
    ``half``      the least number of players, best first, that hold half of the peak
    ``gini``      of absolute scores
    ``agreement`` correlation of the two estimates: where it is low, players are ranked poorly and little looks concentrated
    ``players``   numbers of players, evenly spaced by their logarithms, and ``share``, of the peak that so many hold
    """
    held = np.mean([_held(ranks, summed) for ranks, summed in ((one, other), (other, one))], axis=0)
    agreement = _correlation(one, other)
    ginis = [gini(one, other), gini(other, one)]
    told = agreement is not None and agreement >= _LEAST_AGREEMENT and held.max() > 0 and np.isfinite(ginis).all()
    share = held / held.max() if held.max() > 0 else np.zeros(len(one))
    players = np.unique(np.geomspace(1, len(one), _POINTS).round().astype(int))
    return {
        "n_players": len(one),
        "total": round(float((one.sum() + other.sum()) / 2), 4),
        "peak": round(float(held.max()), 4),
        "half": half(share) if told else None,
        "gini": round(float(np.mean(ginis)), 4) if told else None,
        "agreement": agreement,
        "players": players.tolist(),
        "share": np.round(share[players - 1], 4).tolist(),
    }


def half(share: FloatArray) -> int:
    """The first number of players whose share is a half."""
    return int((share >= 0.5).argmax()) + 1


def gini(ranks: FloatArray, summed: FloatArray) -> float:
    """1 - 2 x the area under the Lorenz curve, of players by ``|ranks|``, smallest first, that hold ``summed`` with the sign of
    ``ranks``. With ``ranks`` for ``summed``, the Gini coefficient of the absolute scores. NaN where all together hold
    nothing."""
    order = np.argsort(np.abs(ranks), kind="stable")
    held = np.cumsum((np.sign(ranks) * summed)[order])
    if held[-1] <= 0:
        return float("nan")
    lorenz = np.concatenate([[0.0], held / held[-1]])
    return float(1 - (lorenz[1:] + lorenz[:-1]).sum() / len(ranks))


def _correlation(one: FloatArray, other: FloatArray) -> float | None:
    """``None`` where all of an estimate's scores are the same."""
    return round(float(np.corrcoef(one, other)[0, 1]), 4) if one.std() and other.std() else None


def _held(ranks: FloatArray, summed: FloatArray) -> FloatArray:
    """``[players]``: what so many of the best hold."""
    return np.asarray(np.cumsum(summed[np.argsort(-ranks, kind="stable")]))
