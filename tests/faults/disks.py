"""Disks that are full."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np

from tests.faults.play import Disturbance, Play
from tests.faults.processes import Process


class FullDisk(Disturbance):
    """The run on a small file system that is filled before a step, but for a random rest, and made free after it."""

    name = "disk full"
    options = "size=12m"

    def unavailable(self) -> str:
        if os.getuid() != 0:
            return "only root can mount a tmpfs"
        return "" if shutil.which("mount") else "there is no mount"

    def begin(self, play: Play) -> None:
        disk = play.folder / "disk"
        disk.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", self.options, "tmpfs", disk], check=True)
        play.place = disk / "run"

    def end(self, play: Play) -> None:
        subprocess.run(["umount", "-l", play.folder / "disk"], check=True)

    def prepare(self, play: Play) -> None:
        play.run.check_code()  # the folder is there
        self._starve(play, lambda: [play.prepare()])
        play.ended(play.prepare())

    def work(self, play: Play) -> None:
        if play.links <= 8:
            self._starve(play, play.workers)
        play.ended(*play.workers())

    def merge(self, play: Play) -> None:
        self._starve(play, lambda: [play.merge()])
        play.ended(play.merge())

    def _starve(self, play: Play, step: Callable[[], list[Process]]) -> None:
        filler = play.folder / "disk" / "filler"
        self.fill(filler, play.rng)
        for process in step():
            if process.wait():
                play.refused(process, "the disk is full")
                play.hits += 1
            else:
                play.ended(process)
        shutil.rmtree(filler)

    def fill(self, filler: Path, rng: np.random.Generator) -> None:
        """All but up to 60 KB."""
        filler.mkdir()
        with (filler / "file").open("wb", buffering=0) as file:
            with suppress(OSError):
                while file.write(bytes(1 << 16)):
                    pass
            file.truncate(max(0, (filler / "file").stat().st_size - int(rng.integers(60_000))))


class NoInodes(FullDisk):
    """A disk that has room, but not for one more file."""

    name = "disk without inodes"
    options = "size=12m,nr_inodes=600"

    def fill(self, filler: Path, rng: np.random.Generator) -> None:
        filler.mkdir()
        made = [filler / str(i) for i in range(1000)]
        with suppress(OSError):
            for path in made:
                path.touch()
        for path in made[: int(rng.integers(4))]:
            path.unlink(missing_ok=True)
