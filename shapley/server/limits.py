"""Requests and tokens a minute, by key: token buckets that hold a minute's worth."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from shapley.server.keys import Key


@dataclass
class _Bucket:
    level: float
    at: float


class Limits:
    """What keys have left.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], _Bucket] = {}
        self._lock = threading.Lock()

    def take(self, key: Key, tokens: int) -> float:
        """Take a request of so many tokens (prompt, and the most that may be generated).

        Returns:
            0, or the seconds to wait where there is not enough; nothing is taken then. Infinite where a minute's worth is not.
        """
        wanted = {
            "requests": (1.0, key.policy.requests_per_minute),
            "tokens": (float(tokens), key.policy.tokens_per_minute),
        }
        with self._lock:
            now = self._clock()
            waits = []
            for what, (amount, per_minute) in wanted.items():
                bucket = self._buckets.setdefault((key.id, what), _Bucket(per_minute, now))
                bucket.level = min(per_minute, bucket.level + (now - bucket.at) * per_minute / 60)
                bucket.at = now
                missing = amount - bucket.level
                waits.append(float("inf") if amount > per_minute else max(0.0, missing * 60 / per_minute))
            if max(waits) > 0:
                return max(waits)
            for what, (amount, _) in wanted.items():
                self._buckets[key.id, what].level -= amount
            return 0.0

    def give_back(self, key: Key, tokens: int) -> None:
        """Tokens that were taken and not used."""
        with self._lock:
            bucket = self._buckets.get((key.id, "tokens"))
            if bucket is not None:
                bucket.level = min(key.policy.tokens_per_minute, bucket.level + tokens)
