"""How good scores are: recall of the true top k, error over the spread, rank correlation."""

from __future__ import annotations

import numpy as np
from scipy.stats import spearmanr

from shapley.types import FloatArray


def top_k(n_players: int) -> int:
    """20, or 100 in games of more than 4,096 players."""
    return 20 if n_players <= 4096 else 100


def measure(score: FloatArray, truth: FloatArray, scaled: bool) -> dict[str, float | None]:
    """``score`` and ``truth`` ``[n]``; a score that is missing counts as zero."""
    score = np.nan_to_num(score)
    k = top_k(len(truth))
    # Ties (mostly players not yet seen, at zero) are broken at random, not in the order of players.
    order = np.lexsort((np.random.default_rng(0).random(len(score)), -score))
    rank = spearmanr(score, truth).statistic if np.ptp(score) > 0 else 0.0
    error = float(np.sqrt(np.mean((score - truth) ** 2)) / truth.std()) if scaled else None
    return {
        "recall": len(np.intersect1d(order[:k], np.argsort(-truth)[:k])) / k,
        "rmse": error,
        "rank": float(rank),
    }
