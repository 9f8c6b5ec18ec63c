"""The folder of a run: what was asked for, frozen; the rounds of each topic; and what came of them.

    RUN/run.json                        kind, settings, code and versions; never changed
    RUN/prompts.jsonl, RUN/code/        copies, so that what runs is what was submitted
    RUN/spare/                          run.json and prompts.jsonl once more: nothing else could make them again
    RUN/topics/00-athlete/facts.json    the game without its model
                          state-0003.npz    the estimator before round 3
                          round-0003.npz    what workers need to know of round 3; written last
                          round-0003/*.segment  samples
                          scores.h5         at the end
    RUN/workers/                        one small file an attempt: is it alive, what went wrong
    RUN/scores.h5                       all topics, when all are done

A sweep has no topics; what it has instead is told in ``shapley.jobs.sweep``.

Only the merge writes states and rounds; a worker writes files of its own name. So nothing is ever locked.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

import shapley
from shapley.errors import ShapleyError
from shapley.estimators.base import Estimator
from shapley.estimators.registry import Plan, build
from shapley.facts import GameFacts
from shapley.files import write_error
from shapley.jobs.sealed import read_sealed, write_sealed
from shapley.jobs.segments import SUFFIX, Item, Shelf
from shapley.prompts import TopicPrompts, read_prompts, write_prompts
from shapley.store import read_checkpoint, write_checkpoint

FORMAT = "neuron-shapley-run"
VERSION = 1
_RECORD, _PROMPTS, _SPARE = "run.json", "prompts.jsonl", "spare"
_RESULTS = {"estimate": "scores.h5", "sweep": "sweep.h5"}  # of each kind of run


ENDS = Item(-2, 0)  # v(N) and v(0)


@dataclass(frozen=True)
class Round:
    """A round of one topic: units ``first`` to ``first + n_units - 1`` can be computed apart.

    Attributes:
        number: from 0.
        ends: v(N) and v(0); NaN where they are still to be computed.
        shared: what the estimator's ``advance`` needs of the samples before.
    """

    number: int
    first: int
    n_units: int
    ends: tuple[float, float]
    shared: dict[str, np.ndarray]

    def adopt(self, estimator: Estimator, unit: int) -> None:
        """Make an estimator ready to compute a unit of this round."""
        estimator.adopt(unit, self.ends, self.shared)

    def items(self, estimator: Estimator) -> list[Item]:
        """All of the round's work, in order."""
        found = [ENDS] if np.isnan(self.ends[0]) else []
        for unit in range(self.first, self.first + self.n_units):
            self.adopt(estimator, unit)
            found += [Item(unit, part) for part in range(estimator.parts())]
        return found


class TopicFolder:
    """One topic of a run."""

    def __init__(self, path: Path, topic: TopicPrompts, plan: Plan, settings: str) -> None:
        self.path, self.topic, self.plan, self._settings = path, topic, plan, settings

    @property
    def name(self) -> str:
        return self.topic.topic

    @property
    def scores(self) -> Path:
        return self.path / "scores.h5"

    @cached_property
    def facts(self) -> dict[str, Any]:
        """``game`` (of ``GameFacts``), ``model``, ``estimator``, ``reason``.

        Raises:
            ShapleyError: the run was not prepared.
        """
        return read_sealed(
            self.path / "facts.json", f"topic {self.name!r} was not prepared yet", remake(self.path.parent.parent)
        )

    def game(self) -> GameFacts:
        return GameFacts.from_record(self.facts["game"], self.topic)

    def estimator(self, game: Any) -> Estimator:
        """The estimator that was chosen when the run was prepared, on ``game``."""
        plan = Plan(**{**vars(self.plan), "estimator": self.facts["estimator"]})
        return build(plan, game, key=self.name)[0]

    def rounds(self) -> list[int]:
        """Numbers of the rounds that have begun."""
        found = (re.fullmatch(r"round-(\d+)\.npz", path.name) for path in self.path.glob("round-*.npz"))
        return sorted(int(match[1]) for match in found if match)

    def round(self, number: int) -> Round:
        """Raises ShapleyError when it is not there or damaged."""
        _, state = read_checkpoint(self.path / f"round-{number:04d}.npz", remedy="")
        first, n_units = map(int, state.pop("units"))
        full, empty = map(float, state.pop("ends"))
        return Round(number, first, n_units, (full, empty), state)

    def shelf(self, number: int) -> Shelf:
        return Shelf(self.path / f"round-{number:04d}", f"{self._settings} {self.name} {number}")

    def save(self, estimator: Estimator, number: int, seconds: float) -> None:
        """Begin round ``number`` from the estimator's present state."""
        segments = self.path / f"round-{number:04d}"
        try:
            segments.mkdir(exist_ok=True)
        except OSError as error:
            raise write_error(segments, error) from error
        record = json.dumps({"settings": self._settings, "seconds": seconds})
        write_checkpoint(self.path / f"state-{number:04d}.npz", record, estimator.state())
        units = np.array([estimator.unit, 0 if estimator.finished else estimator.units_ahead()])
        ends = np.array([estimator.value_full, estimator.value_empty])
        write_checkpoint(
            self.path / f"round-{number:04d}.npz", record, {"units": units, "ends": ends, **estimator.shared()}
        )

    def sound(self) -> bool:
        """Whether the state before some round can be read."""
        for number in self.rounds():
            try:
                self.load(self.estimator(self.game()), number)
                self.round(number)
                return True
            except ShapleyError:
                continue
        return False

    def load(self, estimator: Estimator, number: int) -> float:
        """Put an estimator into the state before round ``number``; returns the seconds of work before it.

        Raises:
            ShapleyError: the state is damaged, or of other settings.
        """
        path = self.path / f"state-{number:04d}.npz"
        saved, state = read_checkpoint(path, remedy="")
        record = json.loads(saved)
        if record["settings"] != self._settings:
            raise ShapleyError(f"{path} belongs to a run with other settings: it was put here by hand")
        estimator.load(state)
        return float(record["seconds"])


class RunFolder:
    """A run that exists.

    Args:
        path: of the folder.

    Attributes:
        record: run.json.
        kind: ``estimate`` or ``sweep``.
        shards: in how many the work of a round is cut.

    Raises:
        ShapleyError: it is no run folder, or of another version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_dir():
            raise ShapleyError(f"no run folder at {path}: make one with 'shapley submit'")
        self.record = read_sealed(
            self.path / _RECORD, f"{path} is not a run folder: it has no {_RECORD}", self._spare(_RECORD)
        )
        if self.record.get("format") != FORMAT or self.record.get("version") != VERSION:
            raise ShapleyError(f"{path} is not a run folder of version {VERSION}")
        self.kind: str = self.record.get("kind", "")
        if self.kind not in _RESULTS:
            raise ShapleyError(f"{path} is a run of kind {self.kind!r}, which this version does not know")

    @property
    def workers(self) -> Path:
        return self.path / "workers"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def code(self) -> Path:
        return self.path / "code"

    @property
    def result(self) -> Path:
        return self.path / _RESULTS[self.kind]

    @property
    def scores(self) -> Path:
        """The result of an estimate."""
        return self.path / _RESULTS["estimate"]

    @property
    def plan(self) -> Plan:
        """Of an estimate."""
        return Plan(**self.record["plan"])

    @cached_property
    def prompts(self) -> dict[str, TopicPrompts]:
        """By topic.

        Raises:
            ShapleyError: they are not those that were submitted.
        """
        path = self.path / _PROMPTS
        try:
            found = read_prompts(path)
        except ShapleyError:
            found = {}
        if {topic: prompts.sha256 for topic, prompts in found.items()} != self.record["prompts"]:
            raise ShapleyError(f"{path} is damaged, or was changed: {self._spare(_PROMPTS)}")
        return found

    @cached_property
    def topics(self) -> list[TopicFolder]:
        """Of an estimate, in the order of the prompts file."""
        settings = self.record["settings_digest"]
        return [
            TopicFolder(self.path / "topics" / folder_name(i, topic), prompts, self.plan, settings)
            for i, (topic, prompts) in enumerate(self.prompts.items())
        ]

    @property
    def memory(self) -> int | None:
        """Bytes for activations, once prepared: the same for all workers, as batches and so the last bits follow from it."""
        path = self.path / "memory.json"
        return int(read_sealed(path, "", f"remove it; {remake(self.path)}")["bytes"]) or None if path.exists() else None

    def _spare(self, name: str) -> str:
        """What to do about a damaged file that there is a copy of."""
        return f"copy {self.path / _SPARE / name} over it"

    @property
    def frozen(self) -> bool:
        """Whether preparing came so far."""
        return (self.path / "memory.json").exists()

    def freeze_memory(self, memory: int) -> None:
        """Let all workers have so many bytes for activations."""
        write_sealed(self.path / "memory.json", {"bytes": memory})

    def check_code(self) -> None:
        """Raises ShapleyError when the code at work is not the code that was submitted."""
        if code_digest() == self.record["code"]:
            return
        if _package().parent.resolve() == self.code.resolve():
            raise ShapleyError(
                f"{self.code} is damaged, or was changed: copy version {self.record['package_version']} over it"
            )
        raise ShapleyError(
            f"{self.path} was submitted with other code than this (version {self.record['package_version']}, digest "
            f"{self.record['code'][:12]}): run it with PYTHONPATH={self.code}"
        )


def create(
    path: Path,
    topics: Mapping[str, TopicPrompts],
    plan: Plan,
    game: Mapping[str, Any],
    shards: int,
    argv: Sequence[str],
) -> RunFolder:
    """Make the folder of a new run; the same call again finds it as it is.

    Args:
        path: of the folder; its parent exists.
        topics: prompts by topic.
        plan: what to estimate.
        game: how ``shapley.jobs.games`` makes the games.
        shards: in how many the work of a round is cut.
        argv: the command line, for the record.

    Raises:
        ShapleyError: the folder belongs to another run, is a file, or cannot be written.
    """

    def fill(folder: Path) -> None:
        for i, topic in enumerate(topics):
            (folder / "topics" / folder_name(i, topic)).mkdir(parents=True)

    return make_folder(path, "estimate", {"plan": vars(plan), "game": dict(game)}, topics, shards, argv, fill)


def make_folder(
    path: Path,
    kind: str,
    wanted: Mapping[str, Any],
    topics: Mapping[str, TopicPrompts],
    shards: int,
    argv: Sequence[str],
    fill: Callable[[Path], None],
) -> RunFolder:
    """Make the folder of a new run, or find it as it is.

    Args:
        kind: of the run.
        wanted: what the numbers depend on beside prompts and code; for JSON.
        path, topics, shards, argv: as for ``create``.
        fill: makes what this kind of run has in its folder.

    Raises:
        ShapleyError: as ``create``.
    """
    if shards < 1:
        raise ShapleyError(f"--shards {shards} must be at least 1")
    settings = {
        "kind": kind,
        **wanted,
        "prompts": {topic: prompts.sha256 for topic, prompts in topics.items()},
        "code": code_digest(),
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    if path.exists():
        run = _existing(path, digest, settings)
        if run is not None:
            return run
    if not path.parent.is_dir():
        raise ShapleyError(f"cannot make {path}: the folder {path.parent} does not exist; make it first")
    building = path.with_name(f".{path.name}.building")
    shutil.rmtree(building, ignore_errors=True)
    try:
        for name in ("workers", "logs"):
            (building / name).mkdir(parents=True)
        fill(building)
        shutil.copytree(_package(), building / "code" / "shapley", ignore=shutil.ignore_patterns("__pycache__"))
        record = {"format": FORMAT, "version": VERSION, "settings_digest": digest, "shards": shards, "argv": list(argv)}
        for place in (building / _SPARE, building):
            place.mkdir(exist_ok=True)
            write_prompts(place / _PROMPTS, [prompt for group in topics.values() for prompt in group.prompts])
            write_sealed(place / _RECORD, {**record, **settings, "package_version": shapley.__version__}, indent=1)
        building.rename(path)
    except OSError as error:
        raise ShapleyError(f"cannot make {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return RunFolder(path)


def _existing(path: Path, digest: str, settings: Mapping[str, Any]) -> RunFolder | None:
    """The run that is there; nothing, and no folder, where it was of other settings and nothing was ever done for it."""
    run = RunFolder(path)
    if run.record["settings_digest"] == digest:
        return run
    if not ((path / "jobs.json").exists() or run.frozen or any(path.rglob(f"*{SUFFIX}"))):
        shutil.rmtree(path)
        return None
    for name, value in settings.items():
        before = json.loads(json.dumps(run.record.get(name)))
        now = json.loads(json.dumps(value))
        if now == before:
            continue
        if isinstance(now, dict) and isinstance(before, dict):
            inner = next(key for key in {**now, **before} if now.get(key) != before.get(key))
            name, before, now = f"{name}: {inner}", before.get(inner), now.get(inner)
        if name == "code":
            raise ShapleyError(
                f"{path} was submitted with other code than this: go on with that by PYTHONPATH={path / 'code'}, or choose "
                "another --run folder"
            )
        raise ShapleyError(
            f"{path} belongs to another run, with {name} = {before!r} where this has {now!r}: choose another --run folder"
        )
    raise ShapleyError(f"{path} belongs to another run: choose another --run folder")


def code_digest() -> str:
    """Of every source file of the package at work."""
    digest = hashlib.sha256()
    for path in sorted(_package().rglob("*.py")):
        digest.update(f"{path.relative_to(_package())}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _package() -> Path:
    return Path(shapley.__file__).parent


def folder_name(index: int, name: str) -> str:
    """Of the ``index``-th topic or cluster: a name that every file system takes."""
    return f"{index:02d}-{re.sub(r'[^A-Za-z0-9]+', '-', name)[:40]}"


def remake(run: Path) -> str:
    """What to do about a damaged file that preparing makes."""
    return f"'shapley prepare {run}' makes it again, or the same 'shapley submit'"
