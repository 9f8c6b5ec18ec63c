"""Which level to release at: one that was shown safe, with a margin to the least that was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shapley.errors import ShapleyError

STEP = "step"


@dataclass(frozen=True)
class Margin:
    """``strength`` more than the least level shown safe, or (``None``) one rung more."""

    strength: float | None

    @classmethod
    def parse(cls, text: str) -> Margin:
        """Raises ShapleyError for what is neither ``step`` nor a number of at least 0."""
        if text == STEP:
            return cls(None)
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise ShapleyError(f"margin {text!r}: expected '{STEP}' (one rung) or a strength of at least 0")
        return cls(value)


def release_rung(strengths: Sequence[float], margin: Margin) -> int | None:
    """The lightest rung that keeps the margin, of those shown safe; none does where too few were.

    Always a rung that was itself tested: a level in between would rest on the score being monotone.

    Args:
        strengths: of the rungs shown safe, from heavy to light; none may be.
    """
    if margin.strength is None:
        return len(strengths) - 2 if len(strengths) > 1 else None
    if not strengths:
        return None
    least = strengths[-1] + margin.strength
    kept = [rung for rung, strength in enumerate(strengths) if strength >= least or math.isclose(strength, least)]
    return kept[-1] if kept else None
