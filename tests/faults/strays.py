"""Files of the wrong time and files that do not belong where they are."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np

from shapley.jobs.segments import Item, Sample, write_segment
from tests.faults.play import Disturbance, Play


class Clocks(Disturbance):
    """Files from the past and the future, and workers whose clock is wrong: nothing compares times."""

    name = "clocks set back and forth"

    def work(self, play: Play) -> None:
        self._shift(play)
        workers = play.workers()
        if shutil.which("faketime") and play.links == 1:
            days = float(play.rng.uniform(-3000, 3000))
            workers[0].kill()
            workers[0] = play.worker(0, prefix=("faketime", "-f", f"{days:+.3f}d"))
        play.sleep(play.pace.work)
        self._shift(play)
        play.ended(*workers)

    def merge(self, play: Play) -> None:
        self._shift(play)
        play.ended(play.merge())

    def _shift(self, play: Play) -> None:
        for path in play.run.path.rglob("*"):
            if "code" in path.parts[len(play.run.path.parts) :]:
                continue
            when = time.time() + float(play.rng.uniform(-1e8, 1e8))
            try:
                os.utime(path, (when, when))
            except FileNotFoundError:  # a temporary file has got its name
                continue
            play.hits += 1


class LeftOvers(Disturbance):
    """What crashes and people leave behind: temporaries, empty and broken segments, folders of a segment's name."""

    name = "leftovers"

    def work(self, play: Play) -> None:
        for topic in play.run.topics:
            if topic.scores.exists():
                continue
            number = topic.rounds()[-1]
            folder = topic.path / f"round-{number:04d}"
            (folder / f"empty-{play.links}.segment").touch()
            (folder / f"noise-{play.links}.segment").write_bytes(play.rng.bytes(int(play.rng.integers(1, 3000))))
            (folder / f"folder-{play.links}.segment").mkdir()
            (folder / f".00000-abc.segment.{os.uname().nodename}.999999.00ff.partial").write_bytes(play.rng.bytes(500))
            (topic.path / f".state-{number + 1:04d}.npz.x.1.00ff.partial").write_bytes(b"PK")
            (topic.path / "round-zzzz.npz").touch()
            (play.run.workers / f"junk-{play.links}.json").write_bytes(play.rng.bytes(40))
            (play.run.workers / f"half-{play.links}.json").write_text('{"shard": 0, "of": 3, "name"')
            play.hits += 8
        play.ended(*play.workers())


class Foreign(Disturbance):
    """A segment of a run with other settings: all refuse it by name, and go on when it is taken away."""

    name = "segment of another run"

    def work(self, play: Play) -> None:
        if play.links <= 3:
            topic = next(topic for topic in play.run.topics if not topic.scores.exists())
            present = topic.round(topic.rounds()[-1])
            items = present.items(topic.estimator(topic.game()))
            path = topic.shelf(present.number).folder / f"00000-foreign{play.links}.segment"
            sample = Sample((np.zeros(4),), 1, 0.0)
            write_segment(path, "0" * 64, {Item(*item): sample for item in items})
            for process in (play.merge(), play.worker(0), play.worker(-1)):
                play.refused(process, str(path))
                play.hits += 1
            path.unlink()
        play.ended(*play.workers())


class Misplaced(Disturbance):
    """A segment of the same run, but of the other topic: its samples are others, though items have the same numbers."""

    name = "segment of another topic"

    def work(self, play: Play) -> None:
        workers = play.workers()
        play.sleep(play.pace.work)
        moved = self._move(play) if play.links <= 3 else None
        for worker in workers:
            if moved and worker.wait():
                play.refused(worker, str(moved))
            play.ended(worker, allowed=(2,) if moved else ())
        if moved:
            merge = play.merge()
            if merge.wait():
                play.refused(merge, str(moved))
                moved.unlink()

    def _move(self, play: Play) -> Path | None:
        rounds = {topic.path: f"round-{topic.rounds()[-1]:04d}" for topic in play.run.topics}
        segments = play.segments()
        if not segments or len(set(rounds.values())) > 1:
            return None
        path = play.choose(segments)
        (other,) = (topic for topic in rounds if topic != path.parent.parent)
        moved = other / path.parent.name / f"00000-000000000000-{play.links:05d}.segment"  # read before the others
        partial = moved.with_suffix(".partial")
        shutil.copy(path, partial)
        partial.rename(moved)
        play.hits += 1
        return moved
