"""Semivalues: averages of a player's marginal contributions over coalitions, weighted by the coalition's size.

A semivalue is fixed by the law of q, the chance of every other player to be in the coalition (Dubey, Neyman and Weber
1981): uniform for the Shapley value, 1/2 for the Banzhaf value, Beta(b, a) for Beta(a, b)-Shapley (Kwon and Zou 2022,
eq. 5; Beta(1, 1) is Shapley, and Beta(1, b) with b large favours large coalitions, in which the model still works).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from scipy import stats

from shapley.errors import ShapleyError
from shapley.types import FloatArray

_BETA = re.compile(r"beta\(\s*([0-9.]+)\s*,\s*([0-9.]+)\s*\)")


@dataclass(frozen=True)
class Semivalue:
    """``banzhaf``, or Beta(a, b) with Shapley as Beta(1, 1)."""

    name: str
    a: float = 1.0
    b: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Semivalue:
        """From ``shapley``, ``banzhaf`` or ``beta(a,b)``.

        Raises:
            ShapleyError: anything else.
        """
        if text in ("shapley", "banzhaf"):
            return cls(text)
        match = _BETA.fullmatch(text.strip())
        try:
            a, b = map(float, match.groups()) if match else (0.0, 0.0)
        except ValueError:
            a = b = 0.0
        if a <= 0 or b <= 0:
            raise ShapleyError(f"unknown semivalue {text!r}: expected shapley, banzhaf, or beta(a,b) with a, b > 0")
        return cls(f"beta({a:g},{b:g})", a, b)

    def intact_fraction(self, p: FloatArray) -> FloatArray:
        """The ``p``-quantiles of q, the chance of a player to be intact."""
        if self.name == "banzhaf":
            return np.full_like(p, 0.5)
        if self.a == self.b == 1:
            return p
        return np.asarray(stats.beta.ppf(p, self.b, self.a))

    def size_law(self, n_players: int) -> FloatArray:
        """``[n]``: the chance that the coalition without the player has 0 … n-1 members."""
        sizes = np.arange(n_players)
        if self.name == "banzhaf":
            return np.asarray(stats.binom.pmf(sizes, n_players - 1, 0.5))
        return np.asarray(stats.betabinom.pmf(sizes, n_players - 1, self.b, self.a))
