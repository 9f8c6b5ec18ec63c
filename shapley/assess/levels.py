"""Impairments as an API names them: kind, strength, site and cluster."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from shapley.errors import ShapleyError, unknown_name
from shapley.impairment import KINDS, NOISE_KINDS, SITES

_ROUNDING = 1e-9  # relative: strengths went through JSON, or through a model's name with ``g``


@dataclass(frozen=True)
class Level:
    """One impairment; more strength is heavier, for every kind.

    Args:
        kind: one of ``shapley.impairment.KINDS``.
        strength: in standard deviations of the site for the noise kinds, a fraction from 0 to 1 for the others.
        site: ``mlp_in``, ``mlp_hidden`` or ``mlp_out``.
        cluster: the operator's name of a cluster; without one, everything at the site is impaired.

    Raises:
        ShapleyError: an unknown kind or site, or a strength out of range.
    """

    kind: str
    strength: float
    site: str = "mlp_hidden"
    cluster: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("impairment", self.kind, KINDS)
        if self.site not in SITES:
            raise unknown_name("site", self.site, SITES)
        most = math.inf if self.kind in NOISE_KINDS else 1.0
        if not (math.isfinite(self.strength) and 0 <= self.strength <= most):
            raise ShapleyError(f"strength {self.strength!r} of {self.kind}: expected a number from 0 to {most:g}")

    def body(self) -> dict[str, Any]:
        """As the field ``impairment`` of a request."""
        return asdict(self)

    def text(self) -> str:
        """``noise:0.5,cluster=toxic,site=mlp_out``: the notation that fits behind ``MODEL@``."""
        parts = [f"{self.kind}:{self.strength:g}"]
        if self.cluster is not None:
            parts.append(f"cluster={self.cluster}")
        if self.site != "mlp_hidden":
            parts.append(f"site={self.site}")
        return ",".join(parts)

    def covers(self, other: Level) -> bool:
        """Whether this does the same thing to the same columns at least as strongly."""
        same = (self.kind, self.site, self.cluster) == (other.kind, other.site, other.cluster)
        return same and self.strength >= other.strength * (1 - _ROUNDING)


Applied = tuple[Level, ...]  # what an endpoint says it did, in the order in which it acted


def parse_levels(text: str, site: str = "mlp_hidden", cluster: str | None = None) -> tuple[Level, ...]:
    """Read ``KIND:STRENGTH,STRENGTH,…``, from heavy to light.

    Raises:
        ShapleyError: not in this notation, a level that cannot be, or strengths that do not fall.
    """
    kind, colon, strengths = text.partition(":")
    try:
        values = [float(strength) for strength in strengths.split(",")]
    except ValueError:
        values = []
    if not colon or not values:
        raise ShapleyError(
            f"levels {text!r}: expected KIND:STRENGTH,STRENGTH,… from heavy to light, as noise:2,1,0.5,0"
        )
    if any(after >= before for before, after in itertools.pairwise(values)):
        raise ShapleyError(
            f"levels {text!r}: strengths must fall, so that no lighter level is tried before a heavier one"
        )
    return tuple(Level(kind.strip(), value, site, cluster) for value in values)


def read_applied(entries: Any) -> Applied:
    """From the field ``impairment`` of a reply or a journal; what has strength zero does nothing, and is left out.

    Raises:
        ShapleyError: not a list of impairments.
    """
    try:
        levels = [
            Level(str(entry["kind"]), float(entry["strength"]), entry.get("site", "mlp_hidden"), entry.get("cluster"))
            for entry in entries
        ]
    except (TypeError, KeyError, ValueError, AttributeError):
        raise ShapleyError("the endpoint's field 'impairment' is not a list of kinds and strengths") from None
    return tuple(level for level in levels if level.strength > 0)


def falls_short(asked: Level, applied: Applied) -> bool:
    """Whether what was asked for is not in what was applied: then the model was tested at a lighter level than meant."""
    return asked.strength > 0 and not any(level.covers(asked) for level in applied)


def in_words(applied: Sequence[Level]) -> str:
    """``noise:0.5 + scale:0.3``."""
    return " + ".join(level.text() for level in applied) or "unimpaired"
