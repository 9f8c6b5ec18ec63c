"""Signals that ask a worker to end, and waiting that they can interrupt."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_SHORTEST, _LONGEST = 0.1, 10.0  # seconds between looks


class Stopped(BaseException):
    """A signal asked the worker to end; not an error."""


class Signals:
    """SIGTERM, SIGUSR2 and Ctrl-C raise ``Stopped``: at once within ``at_once``, else at the next ``check``."""

    def __init__(self) -> None:
        self.asked_for: int | None = None
        self._now = False

    def ring(self, number: int, frame: Any) -> None:
        self.asked_for = number
        if self._now:
            self._now = False
            raise Stopped

    def check(self) -> None:
        if self.asked_for is not None:
            raise Stopped

    @contextmanager
    def at_once(self) -> Iterator[None]:
        self.check()
        self._now = True
        try:
            yield
        finally:
            self._now = False


@contextmanager
def signals() -> Iterator[Signals]:
    """Handle them within the block; in the main thread, as Python has it."""
    found = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    before = {number: signal.signal(number, found.ring) for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Pause:
    """Waits, longer and longer.

    Args:
        signals: what can end it.
        shortest: seconds, where many wait.

    Attributes:
        seconds: since it was made.
    """

    def __init__(self, signals: Signals, shortest: float = 0.0) -> None:
        self._signals, self._shortest, self._start = signals, max(shortest, _SHORTEST), time.monotonic()
        self.seconds = 0.0

    def wait(self) -> None:
        with self._signals.at_once():
            time.sleep(min(max(self.seconds / 4, self._shortest), _LONGEST))
        self.seconds = time.monotonic() - self._start
