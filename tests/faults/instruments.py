"""What a process under test does besides its work: a faster clock, a list of what it computed, death at a given write.

They change modules in memory; what is on the disk is what a user has.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Instruments:
    """Attributes:
    items: a file that gets a line for each item computed.
    dies_at: the process kills itself at its so-manieth fsync; 0 for never. A write has three: of the file's data twice
        before it gets its name, of the folder after.
    interval, beat: seconds between segments, at least, and between beats: so that a run of a second has as much going on
        as one of hours.
    share: of the time, for saving.
    goes_on: workers go on with the next round; if not, as where not all shards have a place at once, each round is a link.
    """

    items: Path
    dies_at: int = 0
    interval: float = 0.03
    beat: float = 0.1
    share: float = 0.3
    goes_on: bool = True

    def apply(self) -> None:
        """Change this process."""
        from shapley.jobs import attempt, signals, worker

        for module, name, value in (
            (attempt, "BEAT_SECONDS", self.beat),
            (attempt, "SILENT_SECONDS", 3 * self.beat),
            (worker, "SILENT_SECONDS", 3 * self.beat),
            (worker, "_SCAN_SECONDS", self.beat),
            (worker, "_SHORTEST", self.interval),
            (worker, "_SHARE", self.share),
            (worker, "_PATIENCE", 10 * self.beat),
            (worker, "_MERGE_PATIENCE", 50 * self.beat),
            (signals, "_SHORTEST", self.beat / 10),
            (signals, "_LONGEST", self.beat),
        ):
            assert hasattr(module, name), f"{module.__name__} has no {name} any more"
            setattr(module, name, value)
        if not self.goes_on:
            attempt.Attempt.started = lambda self: set()  # type: ignore[method-assign]
        self._list_items(worker.Worker)
        if self.dies_at:
            self._die()

    def _list_items(self, workers: Any) -> None:
        descriptor = os.open(self.items, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        do = workers._do

        def listed(worker: Any, benches: Any, task: Any, *more: Any) -> None:
            compute = benches[task.bench].compute

            def computed(item: Any) -> Any:
                found = compute(item)
                folder = benches[task.bench].shelf.folder
                os.write(descriptor, f"{folder.parent.name}/{folder.name}/{item.unit}/{item.part}\n".encode())
                return found

            benches[task.bench].compute = computed
            try:
                do(worker, benches, task, *more)
            finally:
                benches[task.bench].compute = compute

        workers._do = listed

    def _die(self) -> None:
        system: Any = os
        fsync, left = system.fsync, [self.dies_at]

        def counted(descriptor: Any) -> None:
            left[0] -= 1
            if not left[0]:
                os.kill(os.getpid(), signal.SIGKILL)
            fsync(descriptor)

        system.fsync = counted


def items_computed(path: Path) -> Counter[str]:
    """How often each item was computed."""
    return Counter(path.read_text().split()) if path.exists() else Counter()
