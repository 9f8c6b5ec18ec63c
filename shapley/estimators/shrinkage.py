"""Empirical Bayes: how much of a noisy measurement to believe."""

from __future__ import annotations

import numpy as np

from shapley.types import FloatArray


def reliability(deviation: FloatArray, noise: FloatArray, scale: FloatArray) -> FloatArray:
    """``[n]`` in [0, 1]: the variance of what is measured over that plus the variance of measurement.

    True deviations are taken to have mean zero and variances in proportion to ``scale``; the proportion is estimated by
    moments (Efron and Morris 1973, with unequal variances). It is the mean over players of their own proportions: sums over
    players would be the affair of the few neurons with the wildest gradients.

    Args:
        deviation: ``[n]`` measured distances from what they are shrunk to.
        noise: ``[n]`` variances of the measurement.
        scale: ``[n]`` what true squared deviations are in proportion to.
    """
    seen = scale > 0
    if not seen.any():
        return np.zeros_like(deviation)
    ratio = deviation**2
    ratio -= noise
    if seen.all():  # as nearly always: a copy less of both
        ratio /= scale
    else:
        ratio = ratio[seen] / scale[seen]
    signal = max(0.0, float(ratio.mean())) * scale
    total = signal + noise
    seen = np.greater(signal, 0, out=seen)
    if seen.all():
        return np.divide(signal, total, out=total)
    return np.divide(signal, total, out=np.zeros_like(signal), where=seen)
