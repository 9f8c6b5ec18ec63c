"""Processes that end before their time: by kill -9, which nobody can answer, or by a signal that asks."""

from __future__ import annotations

import signal

from tests.faults.play import Disturbance, Play

_LATEST_WRITE = 12  # fsyncs, of a merge; three a write


class KillWorker(Disturbance):
    """One worker a link, at a random moment."""

    name = "kill -9 of a worker"

    def work(self, play: Play) -> None:
        workers = play.workers()
        play.sleep(play.pace.work)
        play.hits += play.choose(workers).kill()
        play.ended(*workers, killed_by=(signal.SIGKILL,))


class KillAll(Disturbance):
    """All workers at the same moment: a power cut. At most six times, or nothing would ever be done."""

    name = "kill -9 of all workers"

    def work(self, play: Play) -> None:
        workers = play.workers()
        if play.links <= 6:
            play.sleep(play.pace.work)
            play.hits += sum([worker.kill() for worker in workers])
        play.ended(*workers, killed_by=(signal.SIGKILL,))


class KillSaving(Disturbance):
    """A worker dies between two steps of a write: before the file has its name, or just after."""

    name = "kill -9 of a worker in a write"

    def work(self, play: Play) -> None:
        shard = int(play.rng.integers(play.shards))
        others = [play.worker(i) for i in range(play.shards) if i != shard]
        victim = play.worker(shard, dies_at=int(play.rng.integers(1, 3 * 8)))
        play.ended(victim, *others, killed_by=(signal.SIGKILL,))
        play.hits += victim.code == -signal.SIGKILL


class KillMerge(Disturbance):
    """The merge at a random moment; then it is started again, as the next link would."""

    name = "kill -9 of the merge"

    def merge(self, play: Play) -> None:
        for _ in range(2):
            merge = play.merge()
            play.sleep(play.pace.merge)
            play.hits += merge.kill()
        play.ended(play.merge())


class KillMergeWriting(Disturbance):
    """The merge between two steps of its writes."""

    name = "kill -9 of the merge in a write"

    def merge(self, play: Play) -> None:
        for _ in range(2):
            merge = play.merge(dies_at=int(play.rng.integers(1, _LATEST_WRITE + 1)))
            play.ended(merge, killed_by=(signal.SIGKILL,))
            play.hits += merge.code == -signal.SIGKILL
        play.ended(play.merge())


class KillPrepare(Disturbance):
    """Preparing, at random moments and in its writes."""

    name = "kill -9 of prepare"

    def prepare(self, play: Play) -> None:
        for dies_at in (0, 0, *map(int, play.rng.integers(1, 19, size=3))):
            prepare = play.prepare(dies_at=dies_at)
            if not dies_at:
                play.sleep(play.pace.prepare)
                prepare.kill()
            play.ended(prepare, killed_by=(signal.SIGKILL,))
            play.hits += prepare.code == -signal.SIGKILL
        play.ended(play.prepare())


class Asked(Disturbance):
    """Signals that ask workers to end, at random moments; each saves all that it has, and is started again."""

    signals: tuple[signal.Signals, ...] = ()
    patience: float | None = None  # seconds to KILL, at most

    def work(self, play: Play) -> None:
        workers = play.workers()
        play.sleep(play.pace.work)
        asked = workers if play.rng.random() < 0.3 else [play.choose(workers)]
        for worker in asked:
            for number in self.signals:
                worker.send(number)
        if self.patience is not None:
            play.sleep(self.patience)
            for worker in asked:
                worker.kill()
        # Before a worker takes the signals for itself they end it, as they would any program.
        play.ended(*workers, killed_by=(*self.signals, signal.SIGKILL) if self.patience else self.signals)
        stopped = [worker for worker in asked if worker.code or ": stopped" in worker.said]
        play.hits += len(stopped)
        if self.patience is None:
            unsaved = play.unsaved()
            assert len(unsaved) <= len(stopped), f"{len(stopped)} gave up more than the item at work: {unsaved}"


class Terminate(Asked):
    name = "SIGTERM"
    signals = (signal.SIGTERM,)


class Notice(Asked):
    name = "SIGUSR2 (time limit)"
    signals = (signal.SIGUSR2,)


class Preempt(Asked):
    """As a preemption may: both signals at once, and KILL before the worker has done with them."""

    name = "SIGUSR2, SIGTERM, SIGKILL"
    signals = (signal.SIGUSR2, signal.SIGTERM)
    patience = 0.03
