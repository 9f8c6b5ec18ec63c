"""Everything that happens in an assessment, a JSON line each, on the disk before the next: what a killed run goes on from.

======== ==================================================================================================
event    says
======== ==================================================================================================
start    the plan; the first line
rung     ``rung``, and the impairment ``applied`` there
item     ``rung``, ``item``, ``score``, ``reply``
end      ``rung``, ``why`` the ladder ended there without items: ``forbidden`` (403), or ``floor`` (the same
         impairment as at a heavier rung is applied); ``message``
======== ==================================================================================================

Every line has its time, ``at``. No key is ever in it; replies are, so the file is its owner's to read only.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from shapley.assess.levels import Applied, read_applied
from shapley.assess.plan import Plan
from shapley.errors import ShapleyError
from shapley.files import write_error

FORMAT = "neuron-shapley-assess-1"


@dataclass
class RungRecord:
    """Of one level: what was applied (``None``: not known yet), scores by item, and why the ladder ended here without items."""

    applied: Applied | None = None
    scores: dict[str, float] = field(default_factory=dict)
    ended: tuple[str, str] | None = None


@dataclass
class Records:
    """What a journal says: ``started`` and ``last`` are times."""

    plan: Plan
    rungs: list[RungRecord]
    started: str
    last: str

    def scores(self, rung: int) -> list[float]:
        """In the plan's order, up to the first item without one: a batch that was cut short may lack some amid others."""
        scores = self.rungs[rung].scores
        return [scores[item] for item in itertools.takewhile(scores.__contains__, self.plan.items)]

    def add(self, entry: dict[str, Any]) -> None:
        """Raises KeyError, TypeError, ValueError, IndexError or ShapleyError for what is no event of a journal."""
        rung = self.rungs[entry["rung"]]
        if entry["event"] == "item":
            rung.scores[str(entry["item"])] = float(entry["score"])
        elif entry["event"] == "rung":
            rung.applied = read_applied(entry["applied"])
        elif entry["event"] == "end":
            rung.ended = (str(entry["why"]), str(entry["message"]))
        else:
            raise ValueError(entry["event"])
        self.last = str(entry["at"])


def read_journal(path: Path) -> Records:
    """What is stored. A last line without its end was being written when the run was killed, and does not count.

    Raises:
        ShapleyError: no such file, or not a journal.
    """
    return _parse(path, _whole_lines(path))


def _whole_lines(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ShapleyError(f"cannot read {path}: {error.strerror or error}") from None
    return content[: content.rfind(b"\n") + 1]


def _parse(path: Path, content: bytes) -> Records:
    try:
        first, *rest = [json.loads(line) for line in content.splitlines()]
        if first["format"] != FORMAT:
            raise ValueError(first["format"])
        plan = Plan.of(first["plan"])
        records = Records(plan, [RungRecord() for _ in plan.levels], str(first["at"]), str(first["at"]))
        for entry in rest:
            records.add(entry)
    except (ValueError, KeyError, TypeError, IndexError):
        raise ShapleyError(f"{path} is not a journal of 'shapley assess', or is damaged") from None
    return records


def sha256(path: Path) -> str:
    """As ``sha256sum`` gives it."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Journal:
    """A journal that is written; ``records`` is what it says so far."""

    def __init__(self, path: Path, records: Records) -> None:
        self.path, self.records = path, records

    def add(self, event: str, rung: int, **rest: Any) -> None:
        """Write an event, and wait until the disk has it.

        Raises:
            ShapleyError: the disk is full, or the file cannot be written.
        """
        entry = {"event": event, "rung": rung, "at": _now(), **rest}
        _append(self.path, entry)
        self.records.add(entry)


@contextmanager
def open_journal(path: Path, plan: Plan, *, resume: bool) -> Iterator[Journal]:
    """Begin a journal, or go on with one of the same plan; nobody else may at the same time.

    Raises:
        ShapleyError: there is one already and ``resume`` was not said, or it is of another plan, or another run writes it.
    """
    lock = FileLock(f"{path}.lock", timeout=0)
    try:
        with lock:
            begun = path.exists() and bool(_whole_lines(path))  # not where a run was killed before its first line
            if begun and not resume:
                raise ShapleyError(f"{path} exists: pass --resume to go on with it, or another --out")
            if begun:
                yield Journal(path, _go_on(path, plan))
            else:
                yield Journal(path, _begin(path, plan))
    except Timeout:
        raise ShapleyError(f"another run is writing {path}") from None


def _begin(path: Path, plan: Plan) -> Records:
    try:
        path.touch(mode=0o600)
        os.truncate(path, 0)
    except OSError as error:
        raise write_error(path, error) from error
    _append(path, {"event": "start", "format": FORMAT, "at": _now(), "plan": plan.record()})
    return read_journal(path)


def _go_on(path: Path, plan: Plan) -> Records:
    records = read_journal(path)
    stored, wanted = records.plan.record(), plan.record()
    other = [name for name in wanted if stored[name] != wanted[name]]
    if other:
        names = ", ".join(other)
        raise ShapleyError(
            f"{path} is of another run, with another {names}: resume with the same, or give another --out"
        )
    os.truncate(path, len(_whole_lines(path)))
    return records


def _append(path: Path, entry: dict[str, Any]) -> None:
    try:
        with path.open("ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, error) from error


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
