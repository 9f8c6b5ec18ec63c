"""A part of the experiments' one-page report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Picture:
    """A figure's file, and what a reader sees in it."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Table:
    """Rows of texts below a head."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str


@dataclass(frozen=True)
class Section:
    """One experiment, for a reader: every number in it is made from stored results.

    Attributes:
        question: that it asks, a sentence.
        answers, caveats: paragraphs.
        command: that makes the results again.
    """

    title: str
    question: str
    answers: tuple[str, ...]
    pictures: tuple[Picture, ...]
    tables: tuple[Table, ...]
    caveats: tuple[str, ...]
    command: str
