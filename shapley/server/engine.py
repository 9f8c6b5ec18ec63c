"""The thread that runs the model: sequences join its batch when there is room and leave it when they end."""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shapley.hf.load import LanguageModel
from shapley.hf.scoring import default_memory
from shapley.server.batch import Batch, Clusters
from shapley.server.sequence import Running

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Load:
    """How many sequences run, and how many wait for a place."""

    running: int
    waiting: int


class Engine:
    """Runs sequences; ``submit`` may be called from any thread.

    Args:
        lm, clusters: as for ``Batch``.
        max_rows: in a batch.
        memory: bytes for the activations of a prefill, and as many for the cache of what runs.
        failed: called with the error when the model raises; the sequences of that pass end with reason ``error``.

    Between steps of the running sequences a chunk of new prompts goes through the model: a long one does not hold up others.
    """

    def __init__(
        self,
        lm: LanguageModel,
        clusters: Clusters,
        *,
        max_rows: int = 64,
        memory: int | None = None,
        failed: Callable[[BaseException], None] = lambda error: None,
    ) -> None:
        self.max_rows = max_rows
        self._memory = memory or default_memory(lm.device)
        self._failed = failed
        self._batch = Batch(lm, clusters)
        self._queue: queue.SimpleQueue[Running | None] = queue.SimpleQueue()
        self._waiting: deque[Running] = deque()
        self._alone: deque[Running] = deque()  # whose prompts failed in a batch, and are tried once more
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def load(self) -> Load:
        return Load(len(self._batch.rows) + len(self._batch.entering), len(self._waiting) + self._queue.qsize())

    def start(self) -> None:
        self._thread.start()

    def submit(self, rows: Sequence[Running]) -> None:
        """Run sequences; each tells of its end through ``emit``."""
        for row in rows:
            self._queue.put(row)

    def close(self) -> None:
        """Stop after the step that runs; sequences that have not ended are cancelled."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._take(wait=not self._every())
            if self._closing:
                break
            self._drop_cancelled()
            if not self._batch.entering and (chosen := self._next()):
                self._batch.enter(chosen)
            if self._batch.entering:
                self._advance()
            if self._batch.rows:
                self._pass(self._batch.step, list(self._batch.rows))
        for row in self._every():
            if row.reason is None:
                row.end("cancelled")

    def _every(self) -> list[Running]:
        return [*self._batch.rows, *self._batch.entering, *self._alone, *self._waiting]

    def _advance(self) -> None:
        rows = self._batch.entering
        if self._pass(self._batch.advance, rows if len(rows) == 1 else []):
            return
        self._batch.leave()
        for row in rows:  # one of them may be at fault, and the others should not suffer: they go on one by one
            if row.new and row.reason is None:
                row.end("error")
            elif row.reason is None:
                row.prompt_scores = []
                self._alone.append(row)

    def _take(self, wait: bool) -> None:
        """What was submitted, waiting for it if there is nothing else to do."""
        while True:
            try:
                row = self._queue.get(block=wait)
            except queue.Empty:
                return
            if row is None:
                self._closing = True
                return
            self._waiting.append(row)
            wait = False

    def _drop_cancelled(self) -> None:
        for row in self._every():
            if row.cancelled.is_set() and row.reason is None:
                row.end("cancelled")
        self._alone = deque(row for row in self._alone if row.reason is None)
        self._waiting = deque(row for row in self._waiting if row.reason is None)
        self._batch.drop_ended()

    def _next(self) -> list[Running]:
        """Those that have waited longest, as many as fit: into the batch, and into memory, their prefill and their cache at its
        longest. One that is alone is always taken."""
        if self._alone:
            return [self._alone.popleft()]
        room = self.max_rows - len(self._batch.rows)
        chosen: list[Running] = []
        while self._waiting and len(chosen) < room:
            candidate = [*chosen, self._waiting[0]]
            fits = self._batch.prefill_fits(candidate, self._memory) and self._batch.cache_fits(candidate, self._memory)
            if not fits and (chosen or self._batch.rows):
                break
            chosen.append(self._waiting.popleft())
        return chosen

    def _pass(self, work: Callable[[], None], rows: Sequence[Running]) -> bool:
        """Whether a pass through the model went well; if not, these sequences end, and the service goes on."""
        try:
            work()
            return True
        except Exception as error:
            log.exception("a pass through the model failed")
            self._failed(error)
            for row in rows:
                if row.reason is None:
                    row.end("error")
            self._batch.drop_ended()
            return False
