"""What an estimator is, and what it needs of a game.

An estimator works in units. Unit ``u`` draws from a generator keyed by (seed, purpose, u), adds what it saw to the
running moments, and leaves nothing else behind: so a run can stop and go on from its state with the same numbers, and
coalitions do not depend on the topic, which makes contrasts between topics sharp. Nor does a unit's sample depend on
which process computes it: copies of an estimator can compute units apart, if the samples are added in order
(``shapley.workers``).
"""

from __future__ import annotations

import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np

from shapley.estimators.moments import Moments
from shapley.estimators.semivalue import Semivalue
from shapley.types import BoolArray, Float32Array, FloatArray, Gates, IntArray

CHUNK_ROWS = 1024
EMPTY_DRAWS = 8  # noise draws that v(0) is averaged over, where it depends on them


class Game(Protocol):
    """Coalitions ``[C, n_players]`` (true where intact) to values ``[C]``.

    ``values`` averages over ``n_prompts`` prompts, or takes one for each coalition; ``draws`` numbers the noise draw.
    ``value_range`` bounds the values, for bounds that need it.
    """

    n_players: int
    n_prompts: int
    stochastic: bool
    value_range: tuple[float, float]

    @property
    def forward_rows(self) -> int: ...

    def values(
        self, coalitions: BoolArray, *, prompts: IntArray | None = None, draws: IntArray | None = None
    ) -> FloatArray: ...


class DifferentiableGame(Game, Protocol):
    """A game with derivatives ``[C, n_players]`` with respect to each player's presence, at coalitions or at gates in
    between (float32, from 0 to 1)."""

    def gradients(
        self, coalitions: Gates, *, prompts: IntArray | None = None, draws: IntArray | None = None
    ) -> tuple[FloatArray, Float32Array]: ...


@dataclass(frozen=True)
class Estimate:
    """The scores of one game's players.

    Attributes:
        score: ``[n]`` estimated semivalues, NaN where not estimated.
        stderr: ``[n]`` standard errors, NaN where one sample or none was seen.
        count: ``[n]`` independent samples behind each score (``count - 1`` degrees of freedom).
        truncated: ``[n]`` marginals that truncation left out.
        replicates: ``[R, n]`` float32 means of R disjoint groups of samples, for the standard error of contrasts and
            for split halves; NaN where a group is empty.
        value_full, value_empty: v(N) and v(0).
        forward_rows: rows run through the model, a backward counted as two.
        details: what else the estimator wants recorded.
        exact: ``[n]``, which scores come from exact differences; ``None`` where all or none do.
    """

    score: FloatArray
    stderr: FloatArray
    count: IntArray
    truncated: IntArray
    replicates: Float32Array
    value_full: float
    value_empty: float
    forward_rows: int
    details: dict[str, Any] = field(default_factory=dict)
    exact: BoolArray | None = None

    @property
    def efficiency_gap(self) -> float:
        """v(N) - v(0) minus the sum of the scores: zero for exact Shapley values."""
        return self.value_full - self.value_empty - float(np.nansum(self.score))


class Estimator(ABC):
    """Base of the estimators: steps until ``finished``, and can be saved and loaded between steps.

    Args:
        game: what is played.
        semivalue: what is estimated.
        seed: of all draws.
        key: the game's name, for draws that must differ between games.
        samples: how many to take, at most; rounded up to whole units.
    """

    name: ClassVar[str]
    options: ClassVar[frozenset[str]] = frozenset()  # those of ``Plan`` that only some estimators have
    apart: ClassVar[bool] = True  # whether there is more than one unit at a time that copies could compute

    def __init__(
        self,
        game: Game,
        *,
        semivalue: Semivalue,
        seed: int,
        key: str,
        samples: int,
    ) -> None:
        self.game = game
        self.semivalue = semivalue
        self.seed = seed
        self.key = key
        self.samples_per_unit, self.rows_per_unit = self.unit_cost(game)
        self.n_units = max(1, -(-samples // self.samples_per_unit))
        self.unit = 0
        self.moments = self._new_moments()
        self.value_full, self.value_empty = np.nan, np.nan
        self._earlier_rows = 0

    @classmethod
    @abstractmethod
    def unit_cost(cls, game: Game) -> tuple[int, int]:
        """How many of what ``--samples`` counts are in a unit, and its forward rows, at most."""

    @abstractmethod
    def advance(self) -> Any:
        """Do a part of the current unit's evaluations, seconds of work at most where the game allows it.

        Returns:
            the unit's sample when it is complete, else ``None``.
        """

    def parts(self) -> int:
        """In how many parts the current unit's sample can be computed, each apart from the others."""
        return 1

    def part(self, index: int) -> tuple[np.ndarray, ...]:
        """Part ``index`` of the current unit's sample, as arrays; the same whoever computes it."""
        sample = None
        while sample is None:
            sample = self.advance()
        return sample if isinstance(sample, tuple) else (sample,)

    def join(self, parts: Sequence[tuple[np.ndarray, ...]]) -> Any:
        """The current unit's sample from its parts, all of them and in order."""
        return parts[0] if len(parts[0]) > 1 else parts[0][0]

    @abstractmethod
    def add(self, sample: Any) -> None:
        """Take the current unit's sample into the moments. Fast, and never interrupted."""

    @property
    def finished(self) -> bool:
        return self.unit >= self.n_units

    @property
    def planned_rows(self) -> int:
        """Forward rows of the whole run, at most."""
        return ends_rows(self.game) + self.n_units * self.rows_per_unit

    def step(self) -> None:
        """Do the next part of the work (and, before the first, the two ends of the game)."""
        self.begin()
        sample = self.advance()
        if sample is not None:
            self.take(sample)

    def begin(self) -> None:
        """Evaluate the two ends of the game, once."""
        if np.isnan(self.value_full):
            self.take_ends(self.ends())

    def take_ends(self, ends: tuple[float, float], rows: int = 0) -> None:
        """Set v(N) and v(0), which cost ``rows`` forward rows elsewhere."""
        self.value_full, self.value_empty = ends
        self._earlier_rows += rows

    @property
    def needs_ends(self) -> bool:
        """Whether samples depend on v(N) and v(0)."""
        return False

    def take(self, sample: Any, rows: int = 0) -> None:
        """Add the current unit's sample, which cost ``rows`` forward rows elsewhere, and go to the next unit."""
        with without_interrupts():
            self.add(sample)
            self.unit += 1
            self._earlier_rows += rows

    @property
    def midway(self) -> bool:
        """Whether a part of the current unit is done."""
        return False

    def units_ahead(self) -> int:
        """How many units, the current one first, would have the samples they have now whatever ``add`` makes of those
        before them."""
        return self.n_units - self.unit if self.apart else 1

    def shared(self) -> dict[str, np.ndarray]:
        """What ``advance`` needs of the samples before, for the next ``units_ahead`` units."""
        return {}

    def adopt(self, unit: int, ends: tuple[float, float], shared: dict[str, np.ndarray]) -> None:
        """Make this copy ready to ``advance`` through another estimator's ``unit`` (never to ``add``): v(N) and v(0),
        and what the other's ``shared`` returned."""
        self.unit = unit
        self.value_full, self.value_empty = ends

    def run(self) -> Estimate:
        """Run all that is left."""
        while not self.finished:
            self.step()
        return self.estimate()

    def estimate(self) -> Estimate:
        """The scores so far."""
        moments = self.moments
        return Estimate(
            moments.score(),
            moments.stderr(),
            moments.count.copy(),
            moments.truncated.copy(),
            moments.replicates(),
            float(self.value_full),
            float(self.value_empty),
            self.forward_rows,
            {"samples": self.unit * self.samples_per_unit, "units": self.unit, **self.details()},
        )

    def details(self) -> dict[str, Any]:
        return {}

    @property
    def forward_rows(self) -> int:
        """Rows this estimate has cost, in this process and before it."""
        return self._earlier_rows + self.game.forward_rows

    def state(self) -> dict[str, np.ndarray]:
        """Everything needed to go on, as arrays."""
        scalars = {
            "unit": np.array(self.unit),
            "forward_rows": np.array(self.forward_rows),
            "ends": np.array([self.value_full, self.value_empty]),
        }
        return scalars | self.moments.state()

    def load(self, state: dict[str, np.ndarray]) -> None:
        """Go on from ``state``."""
        self.unit = int(state["unit"])
        self._earlier_rows = int(state["forward_rows"]) - self.game.forward_rows
        self.value_full, self.value_empty = map(float, state["ends"])
        self.moments.load(state)

    def _new_moments(self) -> Moments:
        return Moments(self.game.n_players)

    def ends(self) -> tuple[float, float]:
        """v(N), and v(0) averaged over a few draws where it depends on them."""
        n = self.game.n_players
        draws = np.arange(EMPTY_DRAWS if self.game.stochastic else 1)
        ends = np.vstack([np.ones((1, n), dtype=bool), np.zeros((len(draws), n), dtype=bool)])
        values = self.game.values(ends, draws=np.concatenate([[0], draws]))
        return float(values[0]), float(values[1:].mean())


def chunk_size(game: Game) -> int:
    """How many coalitions to evaluate at a time: enough to fill batches, few enough to stop and save between them."""
    return max(1, CHUNK_ROWS // game.n_prompts)


def ends_rows(game: Game) -> int:
    """Forward rows of v(N) and v(0)."""
    return (1 + (EMPTY_DRAWS if game.stochastic else 1)) * game.n_prompts


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Hold Ctrl-C back for a moment, so that moments are never half updated."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
