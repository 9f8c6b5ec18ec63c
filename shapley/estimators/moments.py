"""Running means and variances of every player's samples, in O(players) memory.

Mean and sum of squared deviations are updated as in Chan, Golub and LeVeque (1983), eq. 1.5. Beside them, 16 replicate
sums: samples are dealt to 16 groups in turn, and the spread of any function of the group means (a contrast of topics,
say) gives that function's standard error.
"""

from __future__ import annotations

import numpy as np

from shapley.types import BoolArray, Float32Array, FloatArray, IntArray

N_REPLICATES = 16


class Moments:
    """Moments of ``n`` players.

    Args:
        n_players: how many.
        uneven: whether players can have different numbers of samples (truncation, elimination); it costs 64 bytes a
            player more.
    """

    def __init__(self, n_players: int, *, uneven: bool = False) -> None:
        self.count: IntArray = np.zeros(n_players, dtype=np.int64)
        self.mean: FloatArray = np.zeros(n_players)
        self.m2: FloatArray = np.zeros(n_players)
        self.truncated: IntArray = np.zeros(n_players, dtype=np.int64)
        self.replicate_sum = np.zeros((N_REPLICATES, n_players), dtype=np.float32)
        self.replicate_count = np.zeros((N_REPLICATES, n_players if uneven else 1), dtype=np.int32)

    def add(self, sample: FloatArray, replicate: int, seen: BoolArray | None = None) -> None:
        """Add one sample of every player, or of those ``seen``."""
        group = replicate % N_REPLICATES
        if seen is None:
            self.count += 1
            self.replicate_count[group] += 1
            self.replicate_sum[group] += sample.astype(np.float32)
            delta = sample - self.mean
            even = self.replicate_count.shape[1] == 1  # then one number serves, and no array has to be turned to floats
            self.mean += delta / (self.count[0] if even else self.count)
            rest = sample - self.mean
            rest *= delta
            self.m2 += rest
            return
        sample = sample[seen]
        self.count[seen] += 1
        self.replicate_count[group, seen] += 1
        self.replicate_sum[group, seen] += sample.astype(np.float32)
        delta = sample - self.mean[seen]
        self.mean[seen] += delta / self.count[seen]
        self.m2[seen] += delta * (sample - self.mean[seen])

    def score(self) -> FloatArray:
        """Means, NaN without a sample."""
        return np.where(self.count > 0, self.mean, np.nan)

    def variance(self) -> FloatArray:
        """Sample variances, NaN with fewer than two samples."""
        return np.where(self.count > 1, self.m2 / np.maximum(self.count - 1, 1), np.nan)

    def stderr(self) -> FloatArray:
        """Standard errors of the means, NaN with fewer than two samples."""
        return np.sqrt(self.variance() / np.maximum(self.count, 1))

    def replicates(self) -> Float32Array:
        """``[16, n]`` group means."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.divide(self.replicate_sum, self.replicate_count, dtype=np.float32)

    def state(self) -> dict[str, np.ndarray]:
        return dict(vars(self))

    def load(self, state: dict[str, np.ndarray]) -> None:
        for name in vars(self):
            setattr(self, name, np.array(state[name]))


class Welford:
    """Means and variances only, in float32: 8 bytes a player."""

    def __init__(self, n_players: int) -> None:
        self.count = 0
        self.mean: Float32Array = np.zeros(n_players, dtype=np.float32)
        self.m2: Float32Array = np.zeros(n_players, dtype=np.float32)

    def add(self, sample: FloatArray | Float32Array) -> None:
        self.count += 1
        own = sample.astype(np.float32, copy=False)
        delta = own - self.mean
        self.mean += delta / np.float32(self.count)
        rest = own - self.mean
        rest *= delta
        self.m2 += rest

    def variance(self) -> FloatArray:
        """Sample variances, zero before the second sample."""
        variance = self.m2.astype(np.float64)
        variance /= max(self.count - 1, 1)
        return variance

    def state(self, prefix: str) -> dict[str, np.ndarray]:
        return {f"{prefix}_{name}": np.asarray(value) for name, value in vars(self).items()}

    def load(self, state: dict[str, np.ndarray], prefix: str) -> None:
        self.count = int(state[f"{prefix}_count"])
        self.mean, self.m2 = (np.array(state[f"{prefix}_{name}"]) for name in ("mean", "m2"))
