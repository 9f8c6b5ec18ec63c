"""Counts and times for Prometheus."""

from __future__ import annotations

from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from shapley.server.engine import Engine

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """Of one server.

    Args:
        engine: whose load is shown.
    """

    def __init__(self, engine: Engine) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "shapley_requests", "Requests by route and status.", ("route", "status"), registry=self._registry
        )
        self.tokens = Counter("shapley_tokens", "Tokens read and written.", ("kind",), registry=self._registry)
        self.seconds = Histogram(
            "shapley_request_seconds",
            "Time to the whole answer.",
            ("route",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.failures = Counter(
            "shapley_engine_failures", "Passes through the model that failed.", registry=self._registry
        )
        for what in ("running", "waiting"):
            gauge = Gauge(f"shapley_sequences_{what}", f"Sequences that are {what}.", registry=self._registry)
            gauge.set_function(partial(_load, engine, what))

    def text(self) -> bytes:
        return generate_latest(self._registry)


def _load(engine: Engine, what: str) -> float:
    return float(getattr(engine.load, what))
