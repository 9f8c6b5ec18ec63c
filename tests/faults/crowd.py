"""Too many workers, too few, doubled, asleep; two merges; readers."""

from __future__ import annotations

import signal

from tests.faults.damage import flip
from tests.faults.play import Disturbance, Play
from tests.faults.processes import Process


class Twins(Disturbance):
    """Two or three workers with the same shard at once."""

    name = "two workers with one shard"

    def work(self, play: Play) -> None:
        workers = play.workers()
        shard = int(play.rng.integers(play.shards))
        for _ in range(int(play.rng.integers(1, 3))):
            play.sleep(play.pace.work / 2)
            workers.append(play.worker(shard))
            play.hits += 1
        play.ended(*workers)


class Zombies(Disturbance):
    """A worker that is stopped at a random moment and goes on links later, when others have done its shard, or after the
    end."""

    name = "zombie worker (SIGSTOP, SIGCONT)"

    def begin(self, play: Play) -> None:
        self._asleep: list[Process] = []

    def work(self, play: Play) -> None:
        workers = play.workers()
        play.sleep(play.pace.work)
        victim = play.choose(workers)
        if len(self._asleep) < 3 and victim.send(signal.SIGSTOP):
            play.hits += 1
            workers.remove(victim)
            self._asleep.append(victim)
        if self._asleep and play.rng.random() < 0.3:
            self._wake(play)
        play.ended(*workers)

    def merge(self, play: Play) -> None:
        if self._asleep and play.rng.random() < 0.2:
            self._asleep[0].send(signal.SIGCONT)  # while the merge is at work
        play.ended(play.merge())

    def late(self, play: Play) -> None:
        while self._asleep:
            self._wake(play)

    def _wake(self, play: Play) -> None:
        woken = self._asleep.pop(0)
        woken.send(signal.SIGCONT)
        play.ended(woken)


class Changing(Disturbance):
    """Another number of shards in every link, none of them complete; helpers that come and are killed."""

    name = "workers added and removed"

    def work(self, play: Play) -> None:
        of = int(play.rng.integers(1, 6))
        workers = [play.worker(shard, of) for shard in range(of) if play.rng.random() < 0.7]
        workers.append(play.worker(-1, int(play.rng.integers(1, 6))))
        play.sleep(play.pace.work)
        play.hits += play.choose(workers).kill()
        other = int(play.rng.integers(1, 5))
        workers += [play.worker(int(play.rng.integers(-1, other)), other) for _ in range(2)]
        play.hits += 2
        play.ended(*workers, killed_by=(signal.SIGKILL,))


class Merges(Disturbance):
    """Merges at random moments while workers work, two at once, also over a damaged segment, and readers all the time."""

    name = "merges too early and two at once"

    def work(self, play: Play) -> None:
        workers = play.workers()
        others = []
        for _ in range(2):
            play.sleep(play.pace.work / 2)
            others += [play.merge(), play.start("status", str(play.run.path), "--json")]
            play.hits += 2
        play.ended(*workers, *others)

    def merge(self, play: Play) -> None:
        segments = play.segments()
        if segments and play.links <= 3:
            flip(play.choose(segments), play.rng)
        play.ended(play.merge(), play.merge(), play.start("status", str(play.run.path)))
        play.hits += 2


class Preparing(Disturbance):
    """Prepared twice at once, and again in the midst of it."""

    name = "prepare again and two at once"

    def prepare(self, play: Play) -> None:
        play.ended(play.prepare(), play.prepare())
        play.hits += 2

    def work(self, play: Play) -> None:
        play.ended(play.prepare(), *play.workers())
        play.hits += 1
