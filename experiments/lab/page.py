"""A part of the experiments' one-page report."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from experiments.lab import models
from experiments.lab.effects import LEVELS
from shapley.shape import Interval
from shapley.types import FloatArray

SIZE = "cpu"


def stored(file: str, names: Sequence[str] = models.MODELS) -> Iterator[Path]:
    """The results that the report shows of the experiment whose module ``file`` is: of each model that was measured."""
    for model in names:
        path = Path(file).parent / "results" / f"{model}-{SIZE}.jsonl"
        if path.exists():
            yield path


def interval(found: Interval, digits: int = 2) -> str:
    """An estimate with its 95% interval."""
    return f"{found.estimate:.{digits}f} [{found.low:.{digits}f}, {found.high:.{digits}f}]"


def quartiles(values: FloatArray) -> str:
    """The median, and the quartiles around it."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


BELOW = "†: less than the smallest clusters cost, on the straight line from none to them"
NOT_REACHED = "Not reached: by the clusters, or in more than a twentieth of the resamples"


def damage_table(
    what: str, columns: tuple[str, str], rows: Mapping[str, Sequence[tuple[Interval, Interval, bool]]], of: str = ""
) -> Table:
    """What clusters do where they cost plain text as much.

    Args:
        what: the rows are, as a head.
        columns: at each of ``LEVELS``: what is given with its interval, and what without.
        rows: by name, at each level both, and whether it is below the smallest clusters.
        of: whose drops they are, for the caption.
    """
    cells = (
        (name, *(cell for one, other, below in found for cell in (at_damage(one, below), _estimate(other))))
        for name, found in rows.items()
    )
    return Table(
        (what, *(head for level in LEVELS for head in (f"{columns[0]} at {level:+.0%}", columns[1]))),
        tuple(cells),
        f"At matched general damage: nats [95%]{of}, where plain text's perplexity is up by as much, interpolated along the "
        f"sizes from no neuron on. {BELOW}. {NOT_REACHED}.",
    )


def _estimate(found: Interval) -> str:
    return "" if math.isnan(found.estimate) else f"{found.estimate:.2f}"


def at_damage(found: Interval, below: bool) -> str:
    """What was found at a level of damage, in a table: marked (``BELOW``) below the smallest clusters that were measured."""
    return "not reached" if math.isnan(found.estimate) else interval(found) + (" †" if below else "")


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

    def markdown(self) -> str:
        """For a README, under its caption."""
        lines = [self.head, ("---",) * len(self.head), *self.rows]
        return "\n".join([self.caption, "", *(f"| {' | '.join(cells)} |" for cells in lines)])


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
