"""Files that are cut short or have a byte flipped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.faults.play import Disturbance, Play


def cut(path: Path, rng: np.random.Generator) -> None:
    """Shorten a file to a random length; in place, as a file system may that lost its end."""
    with path.open("r+b") as file:
        file.truncate(int(rng.integers(path.stat().st_size)))


def flip(path: Path, rng: np.random.Generator) -> None:
    """Change a random byte of a file."""
    place, change = int(rng.integers(path.stat().st_size)), int(rng.integers(1, 256))
    with path.open("r+b") as file:
        file.seek(place)
        old = file.read(1)[0]
        file.seek(place)
        file.write(bytes([old ^ change]))


class DamagedSegments(Disturbance):
    """Between the workers' end and the merge, and while workers read what is there."""

    def __init__(self, name: str, damage: Callable[[Path, np.random.Generator], None]) -> None:
        self.name, self._damage = name, damage

    def work(self, play: Play) -> None:
        workers = play.workers()
        early = play.rng.random() < 0.5
        if early:
            play.sleep(play.pace.work)
            self._spoil(play)
        play.ended(*workers)
        if not early:
            self._spoil(play)

    def _spoil(self, play: Play) -> None:
        segments = play.segments()
        if segments and play.links <= 4:  # each may cost a link
            self._damage(play.choose(segments), play.rng)
            play.hits += 1


class DamagedStates(Disturbance):
    """States and rounds after the first, between links. Workers may refuse what the merge makes anew."""

    cases = ("two-stage", "rounds")

    def __init__(self, name: str, damage: Callable[[Path, np.random.Generator], None]) -> None:
        self.name, self._damage = name, damage

    def work(self, play: Play) -> None:
        topic = play.topic()
        later = [path for path in topic.path.glob("*-????.npz") if "-0000" not in path.name]
        spoilt = play.choose(sorted(later)) if later and play.links < 12 else None
        if spoilt:
            self._damage(spoilt, play.rng)
            play.hits += 1
        for worker in play.workers():
            if worker.wait() == 0:
                play.ended(worker)
            else:
                assert spoilt is not None
                play.refused(worker, str(spoilt))


class DamagedBeginning(Disturbance):
    """What preparing made, and nothing else can make again: one line says so, and preparing makes it again."""

    name = "first state or round damaged"

    def prepare(self, play: Play) -> None:
        play.ended(play.prepare())
        for damage in (cut, flip):
            path = play.topic().path / play.choose(["state-0000.npz", "round-0000.npz"])
            damage(path, play.rng)
            merge = play.merge()
            if merge.wait():  # a byte may mean nothing, as in the archive's dates
                play.refused(merge, str(path.parent), "shapley prepare")
                play.hits += 1
                play.ended(play.prepare())


class DamagedRecords(Disturbance):
    """JSON and prompts that say what the run is: whatever does not change the scores may pass; else it is named."""

    def __init__(self, file: str) -> None:
        self.name, self._file = f"{file} damaged", file

    def work(self, play: Play) -> None:
        play.ended(*play.workers())
        if play.links > 3:
            return
        path = play.run.path / self._file if self._file != "facts.json" else play.topic().path / self._file
        whole = path.read_bytes()
        (cut if play.rng.random() < 0.3 else flip)(path, play.rng)
        play.hits += 1
        for process in (play.merge(), play.worker(0)):
            if process.wait():
                play.refused(process, path.name if path.name in process.said else str(play.run.path))
        path.write_bytes(whole)


_NONSENSE = ({"of": 0}, {"of": "3"}, {"shard": None}, {"shard": 7}, {"state": "wor"}, {"rows": "x"}, {"beat": None})


class DamagedReports(Disturbance):
    """What workers say of themselves, which others only look at: nobody stumbles over it."""

    name = "reports of workers damaged"

    def work(self, play: Play) -> None:
        workers = play.workers()
        play.sleep(play.pace.work)
        reports = sorted(play.run.workers.glob("0*.json"))
        for path in reports[:1]:
            report = json.loads(path.read_text()) | {"state": "working"}
            for i, change in enumerate(_NONSENSE):
                (play.run.workers / f"nonsense-{i}.json").write_text(json.dumps(report | change))
                play.hits += 1
        for path in reports[1:]:
            flip(path, play.rng)
            play.hits += 1
        play.ended(*workers, play.worker(-1, 1), play.start("status", str(play.run.path)))
