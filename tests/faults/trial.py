"""A numbered trial: which disturbance, of what, when, and what came of it. Its number and the seed decide everything but
what the machine's own timing adds."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from shapley.errors import ShapleyError
from tests.faults.play import Disturbance, Pace, Play, drive
from tests.faults.processes import Mode
from tests.faults.reference import CASES

SLOW_START = 0.6  # seconds that ``exec`` takes to import


@dataclass(frozen=True)
class Outcome:
    """Attributes:
    hits: how often something was really disturbed.
    wrong: bits that differ from the undisturbed scores, by topic and name.
    again, items: computed again, and all.
    error: why the run did not come to its end.
    """

    name: str
    case: str
    mode: Mode
    seconds: float
    hits: int = 0
    wrong: dict[str, int] = field(default_factory=dict)
    again: int = 0
    items: int = 0
    links: int = 0
    error: str = ""

    @property
    def good(self) -> bool:
        return not (self.wrong or self.error)


def trial(
    disturbance: Disturbance, rng: np.random.Generator, folder: Path, *, mode: Mode = "fork", case: str | None = None
) -> Outcome:
    """Run one, and compare. The folder is removed if all was well."""
    case = case or str(rng.choice(disturbance.cases))
    pace = Pace() if mode == "fork" else Pace().slower(SLOW_START)
    shutil.rmtree(folder, ignore_errors=True)  # of one that failed, kept to be looked at
    shards, goes_on = int(rng.integers(2, 5)), bool(rng.random() < 0.5)
    play = Play(folder, CASES[case], rng, mode, shards, goes_on=goes_on, pace=pace)
    start, error, wrong = time.monotonic(), "", dict[str, int]()
    try:
        wrong = drive(play, disturbance)
    except (AssertionError, ShapleyError) as failure:
        error = str(failure) or "an assertion without words"
    again, items = play.again()
    seconds = time.monotonic() - start
    outcome = Outcome(disturbance.name, case, mode, seconds, play.hits, wrong, again, items, play.links, error)
    play.clear(keep=not outcome.good)
    return outcome
