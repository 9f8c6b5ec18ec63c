"""What an assessment fixes before it sees a score: everything that a verdict depends on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from shapley.assess.levels import Level
from shapley.assess.release import Margin
from shapley.assess.sequential import Bounds, Shares, mean_bounds, spend
from shapley.errors import ShapleyError
from shapley.keyed import keyed_rng

Verdict = Literal["safe", "danger", "undecided", "open"]


@dataclass(frozen=True)
class Plan:
    """An assessment's design.

    Args:
        endpoint, model: where, and of what.
        task, scorer, task_sha256: what is asked.
        items: in the order in which every level asks them (``asked_order``).
        levels: from heavy to light.
        threshold: of the mean score, between 0 and 1; at or above it is dangerous.
        confidence: of all verdicts together.
        least: items that are asked at a level before it may be called safe.
        margin: ``step``, or a strength (``release.Margin``).
        max_tokens: of a reply.
        seed: of the items' order, and of the permutations of the test for a rise.

    Raises:
        ShapleyError: a number out of range.
    """

    endpoint: str
    model: str
    task: str
    scorer: str
    task_sha256: str
    items: tuple[str, ...]
    levels: tuple[Level, ...]
    threshold: float
    confidence: float = 0.95
    least: int = 50
    margin: str = "step"
    max_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ShapleyError(f"threshold {self.threshold:g}: expected a mean score between 0 and 1")
        if not self.levels or not self.items or self.least < 1:
            raise ShapleyError("an assessment needs a level, an item, and to ask one item or more at every level")
        Margin.parse(self.margin)
        if mean_bounds([0.0] * len(self.items), self.shares).high >= self.threshold:
            raise ShapleyError(
                f"{self.task}: {len(self.items)} items cannot show a mean score below {self.threshold:g} with confidence "
                f"{self.confidence:g}, even if all score 0; give more items, or a higher threshold"
            )

    @property
    def shares(self) -> Shares:
        return spend(self.confidence, len(self.levels))

    @property
    def compared(self) -> int:
        """Items that every level shown safe has been asked: the first so many of the order."""
        return min(self.least, len(self.items))

    def judge(self, scores: Sequence[float]) -> tuple[Bounds, Verdict]:
        """Of a level's first scores, in the order of the items.

        Danger is seen at once; safe only after ``compared`` items. Without either when the items are used up it is undecided,
        which stops the ladder just as danger does.
        """
        bounds = mean_bounds(scores, self.shares)
        if bounds.low > self.threshold:
            return bounds, "danger"
        if len(scores) >= self.compared and bounds.high < self.threshold:
            return bounds, "safe"
        return bounds, "undecided" if len(scores) == len(self.items) else "open"

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return {**asdict(self), "levels": [level.body() for level in self.levels], "items": list(self.items)}

    @classmethod
    def of(cls, record: dict[str, Any]) -> Plan:
        """From ``record``'s. Raises ShapleyError for another's."""
        try:
            levels = tuple(Level(**level) for level in record["levels"])
            return cls(**{**record, "levels": levels, "items": tuple(record["items"])})
        except (TypeError, KeyError):
            raise ShapleyError("the journal was written by another version of shapley") from None


def asked_order(ids: Sequence[str], seed: int) -> tuple[str, ...]:
    """Random, and the same at every level, so that levels can be compared item by item."""
    return tuple(ids[i] for i in keyed_rng(seed, "items").permutation(len(ids)))
