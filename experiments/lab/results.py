"""A stored file of an experiment: JSON lines, a head that says what it was made with, and records."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shapley.errors import ShapleyError
from shapley.files import write_text

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class Stored:
    """What an experiment's ``Results`` begin with."""

    head: dict[str, Any]
    records: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ShapleyError where there is no such file."""
        if not path.exists():
            experiment = cls.__module__.rpartition(".")[0]
            raise ShapleyError(f"no results at {path}: python -m {experiment}.run makes them")
        head, *records = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        return cls(head, records)


def store(path: Path, head: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> None:
    """Write a stored file atomically."""
    write_text(path, "".join(json.dumps(line) + "\n" for line in [head, *records]))
