"""One disturbed run: its processes, in the order in which a cluster starts them."""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from shapley.jobs.folder import RunFolder, TopicFolder, create
from tests.faults.instruments import Instruments, items_computed
from tests.faults.processes import Mode, Process, start
from tests.faults.reference import TOPICS, Case, wrong_bits

MOST_LINKS = 100  # a run that needs more gets nowhere


@dataclass
class Pace:
    """Seconds that steps take when nothing disturbs them: where random moments are drawn from."""

    prepare: float = 0.08
    work: float = 0.3
    merge: float = 0.07

    def slower(self, seconds: float) -> Pace:
        """With ``seconds`` to start a process."""
        return Pace(self.prepare + seconds, self.work + seconds, self.merge + seconds)


@dataclass
class Play:
    """Attributes:
    folder: for this run alone: ``run``, and logs of its processes beside it.
    hits: how often something was really disturbed.
    goes_on: whether workers go on from round to round by themselves.
    """

    folder: Path
    case: Case
    rng: np.random.Generator
    mode: Mode = "fork"
    shards: int = 3
    place: Path | None = None  # of the run, if not in ``folder``
    hits: int = 0
    links: int = 0
    goes_on: bool = False
    pace: Pace = field(default_factory=Pace)
    instruments: ClassVar[type[Instruments]] = Instruments
    _numbers: Any = field(default_factory=count, repr=False)
    _children: list[Process] = field(default_factory=list, repr=False)

    @cached_property
    def run(self) -> RunFolder:
        self.folder.mkdir(parents=True, exist_ok=True)
        place = self.place or self.folder / "run"
        return create(place, TOPICS, self.case.plan, self.case.record(), self.shards, ["shapley"])

    @property
    def items(self) -> Path:
        return self.folder / "items"

    @property
    def finished(self) -> bool:
        return self.run.scores.exists()

    def start(self, *words: str, dies_at: int = 0, prefix: Sequence[str] = ()) -> Process:
        """A process; its log is in ``folder``."""
        run = self.run
        log = self.folder / f"{next(self._numbers):04d}-{words[0]}.log"
        child = start(
            words,
            log,
            mode="exec" if prefix else self.mode,
            code=run.code,
            instruments=self.instruments(self.items, dies_at, goes_on=self.goes_on),
            prefix=prefix,
        )
        self._children.append(child)
        return child

    def worker(self, shard: int, of: int | None = None, **how: Any) -> Process:
        words = ("work", str(self.run.path), "--shard", str(shard), "--of", str(of or self.shards))
        return self.start(*words, **how)

    def workers(self, of: int | None = None) -> list[Process]:
        """One for every shard."""
        return [self.worker(shard, of) for shard in range(of or self.shards)]

    def prepare(self, **how: Any) -> Process:
        return self.start("prepare", str(self.run.path), **how)

    def merge(self, **how: Any) -> Process:
        return self.start("merge", str(self.run.path), **how)

    def ended(self, *processes: Process, killed_by: Sequence[signal.Signals] = (), allowed: Sequence[int] = ()) -> None:
        """Wait for processes that are to end well, by one of these signals, or with one of these codes."""
        for process in processes:
            code = process.wait()
            assert code in (0, *allowed) or -code in killed_by, f"{process.words} ended with {code}: {process.said}"
            assert "Traceback" not in process.said, process.said

    def refused(self, process: Process, *names: str) -> None:
        """Wait for a process that is to end with exit code 2 and one line that says all of ``names``."""
        code, lines = process.wait(), process.said.splitlines()
        assert code == 2, f"{process.words} ended with {code}, expected a refusal: {process.said}"
        errors = [line for line in lines if line.startswith("shapley: ")]
        assert len(errors) == 1 and lines[-1] == errors[0], f"expected one line, got: {process.said}"
        assert all(name in errors[0] for name in names), f"expected {names} in {errors[0]!r}"

    def sleep(self, seconds: float) -> None:
        """A random part of ``seconds``."""
        time.sleep(float(self.rng.uniform(0, seconds)))

    def choose(self, things: Sequence[Any]) -> Any:
        return things[int(self.rng.integers(len(things)))]

    def topic(self) -> TopicFolder:
        chosen: TopicFolder = self.choose(self.run.topics)
        return chosen

    def segments(self) -> list[Path]:
        """Of rounds that were not merged yet."""
        found: list[Path] = []
        for topic in self.run.topics:
            if not topic.scores.exists() and (rounds := topic.rounds()):
                found += sorted((topic.path / f"round-{rounds[-1]:04d}").glob("*.segment"))
        return found

    def unsaved(self) -> list[str]:
        """Items of present rounds that were computed and are in no segment."""
        found = []
        for topic in self.run.topics:
            number = topic.rounds()[-1]
            shelf = topic.shelf(number)
            shelf.scan()
            start = f"{topic.path.name}/{shelf.folder.name}/"
            saved = {f"{start}{unit}/{part}" for unit, part in shelf.places}
            found += [item for item in items_computed(self.items) if item.startswith(start) and item not in saved]
        return found

    def again(self) -> tuple[int, int]:
        """How many items were computed again, and how many there are."""
        found = items_computed(self.items)
        return sum(found.values()) - len(found), len(found)

    def clear(self, keep: bool = False) -> None:
        """End what still runs, and remove the folder unless it is to be looked at."""
        for child in self._children:
            if child.lives:
                child.kill()
        if not keep:
            shutil.rmtree(self.folder, ignore_errors=True)


class Disturbance:
    """Does what is done with a run, step by step; those that disturb override a step. This one does not."""

    name = "none"
    cases: tuple[str, ...] = ("two-stage", "rounds", "gradient", "permutation")

    def unavailable(self) -> str:
        """Why this machine cannot do it, or nothing."""
        return ""

    def begin(self, play: Play) -> None:
        """Before the run's folder is made."""

    def prepare(self, play: Play) -> None:
        play.ended(play.prepare())

    def work(self, play: Play) -> None:
        play.ended(*play.workers())

    def merge(self, play: Play) -> None:
        play.ended(play.merge())

    def late(self, play: Play) -> None:
        """When the result is there."""

    def end(self, play: Play) -> None:
        """At last, also after a failure."""


def drive(play: Play, disturbance: Disturbance) -> dict[str, int]:
    """From the first step to the result; returns how many of its bits are wrong, by topic and name."""
    disturbance.begin(play)
    try:
        disturbance.prepare(play)
        while not play.finished:
            play.links += 1
            assert play.links <= MOST_LINKS, "it gets nowhere"
            disturbance.work(play)
            disturbance.merge(play)
        disturbance.late(play)
        return wrong_bits(play.run.scores, play.case)
    finally:
        disturbance.end(play)
