"""Keyword prompts of a topic, and their file: JSON lines, one object a line.

    {"topic": "athlete", "prompt": "He spent his career with the same football", "answer": " club"}

Optional fields: ``id``, ``source``, ``known`` (the unimpaired model answers it right), ``logprob`` (its baseline).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shapley.errors import ShapleyError, unknown_name
from shapley.files import write_text


@dataclass(frozen=True)
class Prompt:
    """A text, and the keyword that should follow it (with its leading space)."""

    topic: str
    prompt: str
    answer: str
    id: str = ""
    source: str = ""
    known: bool | None = None
    logprob: float | None = None

    @property
    def key(self) -> str:
        """What noise is keyed by: the same text and answer see the same noise in every file."""
        return f"{self.prompt}\x1f{self.answer}"


@dataclass(frozen=True)
class TopicPrompts:
    """The prompts of one topic, in file order."""

    topic: str
    prompts: tuple[Prompt, ...]

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def sha256(self) -> str:
        """Hash of prompts and answers, in order."""
        return hashlib.sha256("\x1e".join(prompt.key for prompt in self.prompts).encode()).hexdigest()

    def known_only(self) -> TopicPrompts:
        """Only the prompts marked as known."""
        return TopicPrompts(self.topic, tuple(prompt for prompt in self.prompts if prompt.known))

    def first(self, n: int) -> TopicPrompts:
        """The first ``n`` prompts (all, if there are fewer)."""
        return TopicPrompts(self.topic, self.prompts[:n])


def read_prompts(path: str | Path, topics: Sequence[str] = ()) -> dict[str, TopicPrompts]:
    """Read a prompts file, by topic in order of first appearance; only ``topics`` if any are named.

    Raises:
        ShapleyError: no such file, no prompts in it, a bad line (with its number), or a topic that is not there.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")  # JSON may hold other characters that end lines
    except FileNotFoundError:
        raise ShapleyError(f"no prompts file at {path}: make one with 'shapley prompts build'") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ShapleyError(f"cannot read prompts file {path}: {error}") from error
    found: dict[str, list[Prompt]] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompt = _parse(line, f"{path}, line {number}")
            found.setdefault(prompt.topic, []).append(prompt)
    if not found:
        raise ShapleyError(f"{path} holds no prompts: expected one JSON object a line")
    for topic in topics:
        if topic not in found:
            raise unknown_name(f"topic in {path}", topic, found)
    return {topic: TopicPrompts(topic, tuple(found[topic])) for topic in topics or found}


def write_prompts(path: str | Path, prompts: Iterable[Prompt]) -> None:
    """Write a prompts file atomically, leaving out fields that are not set."""
    lines = (
        json.dumps(
            {name: value for name, value in asdict(prompt).items() if value not in ("", None)}, ensure_ascii=False
        )
        for prompt in prompts
    )
    write_text(Path(path), "".join(f"{line}\n" for line in lines))


def held_out_path(path: Path) -> Path:
    """Where the held-out prompts of a prompts file go."""
    return path.with_name(f"{path.stem}.held-out{path.suffix}")


def _parse(line: str, where: str) -> Prompt:
    try:
        record: Any = json.loads(line)
    except json.JSONDecodeError as error:
        raise ShapleyError(f"{where}: not JSON ({error.msg} at column {error.colno})") from None
    except (ValueError, RecursionError) as error:
        raise ShapleyError(f"{where}: not JSON that can be read ({error})") from None
    if not isinstance(record, Mapping):
        raise ShapleyError(f"{where}: expected an object, found {type(record).__name__}")
    for name in ("topic", "prompt", "answer"):
        if not isinstance(record.get(name), str) or not record[name].strip():
            raise ShapleyError(f"{where}: field {name!r} is missing, blank or not a text")
    if "/" in record["topic"] or record["topic"] in (".", ".."):
        raise ShapleyError(
            f"{where}: topic {record['topic']!r} cannot name a group of a score file: leave out the slash"
        )
    known, logprob = record.get("known"), record.get("logprob")
    if not isinstance(known, bool | None):
        raise ShapleyError(f"{where}: field 'known' is {known!r}, expected true or false")
    if isinstance(logprob, bool) or not isinstance(logprob, float | int | None) or not -1e9 < (logprob or 0) < 1e9:
        raise ShapleyError(f"{where}: field 'logprob' is {str(logprob)[:40]!r}, expected a number")
    return Prompt(
        record["topic"],
        record["prompt"],
        record["answer"],
        id=str(record.get("id") or ""),
        source=str(record.get("source") or ""),
        known=known,
        logprob=None if logprob is None else float(logprob),
    )
