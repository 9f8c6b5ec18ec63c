"""Virtual time: threads of which one runs at a time, and none ever really waits."""

from __future__ import annotations

import heapq
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field


class Killed(BaseException):
    """The process is no more; nothing after it runs."""


@dataclass
class Process:
    """Something that runs in virtual time.

    Attributes:
        death: when it is killed; infinite if never.
        dying: called at that time, in the process; raises.
    """

    death: float = math.inf
    dying: Callable[[], None] | None = None
    turn: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


class Clock:
    """The loop. ``monotonic`` and ``sleep`` stand in for those of ``time``."""

    def __init__(self) -> None:
        self.now = 0.0
        self._queue: list[tuple[float, int, Process]] = []
        self._count = 0
        self._back = threading.Semaphore(0)
        self._own = threading.local()
        self._failed: BaseException | None = None

    def monotonic(self) -> float:
        return self.now

    def start(self, process: Process, work: Callable[[], None], at: float) -> None:
        """Let a process begin at a time."""

        def body() -> None:
            process.turn.acquire()
            self._own.process = process
            try:
                work()
            except Killed:
                pass
            except BaseException as error:
                self._failed = error
            finally:
                self._back.release()

        threading.Thread(target=body, daemon=True).start()
        self._push(at, process)

    def sleep(self, seconds: float) -> None:
        """Let virtual time pass, in a process; its death may come in between."""
        process: Process = self._own.process
        end = self.now + seconds
        self._push(min(end, max(process.death, self.now)), process)
        self._back.release()
        process.turn.acquire()
        if self.now >= process.death:
            process.death = math.inf
            assert process.dying
            process.dying()
            if end > self.now:  # it was only asked to end, and is in the middle of what must be finished
                self.sleep(end - self.now)

    def run(self) -> float:
        """Until all processes are over; returns the time.

        Raises:
            BaseException: what a process failed with.
        """
        while self._queue:
            self.now, _, process = heapq.heappop(self._queue)
            process.turn.release()
            self._back.acquire()
            if self._failed:
                raise self._failed
        return self.now

    def _push(self, at: float, process: Process) -> None:
        self._count += 1
        heapq.heappush(self._queue, (at, self._count, process))
