"""What a run is made of, whatever it computes: *streams* of rounds of items.

Workers compute a round's items in any order; when they are complete, the merge takes them into the stream's *ledger* in their
own order, and then the next round begins or the result is written. Workers need a model, ledgers do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from shapley.jobs.segments import Item, Sample, Shelf

# From an item to its arrays, and the forward rows that they cost.
Compute: TypeAlias = Callable[[Item], tuple[tuple[np.ndarray, ...], int]]


@dataclass(frozen=True)
class Present:
    """The round at work: its number, its items in order, and where their samples go."""

    number: int
    items: list[Item]
    shelf: Shelf


@dataclass(frozen=True)
class Figures:
    """How far a stream is.

    Attributes:
        round: at work, or the last.
        rows, seconds: forward rows and seconds of work in all rounds before.
        planned: forward rows of the whole stream, at most.
        scores: ``[n_layers, width]`` scores, standard errors and counts; nothing as long as there are none.
    """

    round: int
    rows: int
    seconds: float
    planned: int
    scores: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None


class Ledger(Protocol):
    """A stream's sums before its present round.

    Attributes:
        present: the round.
        damaged: a line for each later state that could not be read, so that its round has to be merged again.
    """

    present: Present
    damaged: list[str]

    def take(self, samples: Iterator[tuple[Item, Sample]]) -> None:
        """Take in all of the round's samples, in the order of its items."""

    def close(self) -> str:
        """After ``take``: begin the next round, or write the result; returns what to say of it."""

    def figures(self) -> Figures:
        """Before ``take``."""


class Stream(Protocol):
    """A part of a run that goes on from round to round by itself.

    Attributes:
        name: for people.
        path: of its folder.
    """

    name: str
    path: Path

    @property
    def prepared(self) -> bool:
        """Whether its first round has begun."""

    @property
    def sound(self) -> bool:
        """Whether it is prepared, and can be gone on with: slower to say, as files are read."""

    @property
    def finished(self) -> bool:
        """Whether its result is written."""

    @property
    def model(self) -> Mapping[str, Any]:
        """What was recorded of the model when it was prepared."""

    @property
    def round(self) -> int:
        """Number of the last round that has begun; fast, as many ask often."""

    def present(self) -> Present:
        """The last round that has begun. Raises ShapleyError when its file is damaged."""

    def compute(self, number: int, opened: Any) -> Compute:
        """How to compute items of a round, with what ``Job.open`` returned."""

    def ledger(self) -> Ledger:
        """The last that can be read. Raises ShapleyError when there is none."""

    def figures(self) -> Figures:
        """When it is finished."""

    def title(self, item: Item) -> str:
        """An item in words."""


class Job(Protocol):
    """What the run of a kind does.

    Attributes:
        streams: in the order of the result.
        hint: where the result is, or what to do with it.
    """

    streams: Sequence[Stream]
    hint: str

    def prepare(self, device: str, show: bool) -> None:
        """Load the model and begin the first round of every stream that has none.

        Raises:
            ShapleyError: what is wrong with the model, the prompts or the settings.
        """

    def open(self, device: str) -> tuple[Mapping[str, Any], Any]:
        """Load the model: what is recorded of it, and what ``Stream.compute`` needs.

        Raises:
            ShapleyError: it cannot be loaded.
        """

    def collect(self, show: bool) -> None:
        """Make the run's result of those of its streams, all finished, unless it is there."""
