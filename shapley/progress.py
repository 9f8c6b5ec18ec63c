"""Progress of long work: a bar on a terminal, a log line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from tqdm import tqdm

_LOG_EVERY = 10.0


class Progress:
    """Counts units of work on standard error. ``total`` is known before it starts."""

    def __init__(self, total: int, label: str, unit: str, *, initial: int = 0, show: bool = True) -> None:
        self.label, self.unit, self.total, self.done, self.show = label, unit, total, initial, show
        self._start, self._initial, self._last = time.monotonic(), initial, time.monotonic()
        self._bar: Any = None
        if show and sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=initial, desc=label, unit=f" {unit}", leave=True)

    def reach(self, done: int) -> None:
        """Say how much is done by now."""
        step, self.done = done - self.done, done
        if self._bar is not None:
            self._bar.update(step)
        elif self.show and time.monotonic() - self._last > _LOG_EVERY:
            self._last = time.monotonic()
            elapsed = self._last - self._start
            left = elapsed / max(self.done - self._initial, 1) * (self.total - self.done)
            print(
                f"{self.label}: {self.done}/{self.total} {self.unit}, about {left:.0f} s left",
                file=sys.stderr,
                flush=True,
            )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def say(message: str, *, show: bool = True) -> None:
    """A line for the person who waits, on standard error so that outputs stay clean."""
    if show:
        print(message, file=sys.stderr, flush=True)
