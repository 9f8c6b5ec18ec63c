"""From what was measured to what falls first; from a stored file only.

Retention is the share of the untouched model's performance above the floor that is left, of means over an ability's items. The
floor is the performance with every neuron at zero; of grammar, a choice, it is indifference. ID50 is the least strength at
which retention is down to a half. A zeroed model is surer of wrong answers than a guess is: ID50 is also given above guessing.
Intervals (95%) are of a bootstrap over items; the same items are drawn for all kinds, so that their orders can be compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.stats import binomtest, kendalltau

from experiments.fragility.choose import GRAMMAR
from experiments.fragility.run import FLOOR, UNTOUCHED
from experiments.lab.results import Stored
from experiments.lab.texts import PLAIN
from shapley.shape import (
    Dose,
    Interval,
    bootstrap,
    impairment_dose,
    monotone_fit,
    percentiles,
    resampled_means,
    retention,
)
from shapley.types import FloatArray

LEVEL = 0.5
INDIFFERENT = {"performance": 0.0, "accuracy": 0.5}  # what is left of a choice when nothing is left
EXPLAINED = 0.95  # hypothesis A: of plain text's loss, by an increasing curve of strength
_BOOTSTRAPS = 1000


@dataclass(frozen=True)
class Fall:
    """How an ability falls under a kind of impairment.

    Attributes:
        strengths, retention, low, high: ``[strengths]``, zero first; the band is 95%, strength by strength.
        half: ID50; an end at the largest strength says "or more".
        censored: retention never came down to a half.
        drawn: ``[resamples]``, ID50 of each; NaN where the untouched model is not above the floor.
        claimed: whether the untouched model can do it, beyond guessing.
    """

    ability: str
    strengths: FloatArray
    retention: FloatArray
    low: FloatArray
    high: FloatArray
    half: Interval
    censored: bool
    drawn: FloatArray
    claimed: bool


@dataclass(frozen=True)
class Results(Stored):
    """A stored file of the experiment."""

    @property
    def kinds(self) -> list[str]:
        return list(self.head["config"]["strengths"])

    @property
    def abilities(self) -> list[str]:
        return list(self.head["abilities"])

    @cached_property
    def falls(self) -> dict[str, list[Fall]]:
        """By kind: of the abilities that are above their floor, in the order in which they fall."""
        above = [ability for ability in self.abilities if self.above(ability)]
        found = {kind: [self._fall(kind, ability) for ability in above] for kind in self.kinds}
        return {kind: sorted(own, key=lambda fall: (fall.half.estimate, fall.censored)) for kind, own in found.items()}

    def values(self, kind: str, ability: str, what: str = "performance") -> FloatArray:
        """``[1 + strengths + 1, items]``: untouched, by increasing strength, and at the floor."""
        own = np.array(self.head["watched"]) == ability
        found = [record[what] for name in (UNTOUCHED, kind, FLOOR) for record in self.records if record["kind"] == name]
        values = np.array(found)[:, own]
        if ability == GRAMMAR:
            values[-1] = INDIFFERENT[what]
        return values

    def strengths(self, kind: str) -> FloatArray:
        return np.array([0.0, *self.head["config"]["strengths"][kind]])

    def above(self, ability: str, what: str = "performance") -> bool:
        """Whether the untouched model is above the floor: only then can a share of it be left."""
        curve = self.values(self.kinds[0], ability, what).mean(axis=1)
        return bool(curve[0] > curve[-1])

    def claimed(self, ability: str) -> bool:
        """Whether the untouched model's accuracy on all candidates is above guessing: the lower end of its 95% interval
        (Wilson) is. Of plain text, log-probability says enough."""
        facts = self.head["abilities"][ability]
        if facts["chance"] is None:
            return True
        interval = binomtest(facts["right"], facts["candidates"]).proportion_ci(method="wilson")
        return bool(interval.low > facts["chance"])

    def _fall(self, kind: str, ability: str) -> Fall:
        values, strengths = self.values(kind, ability), self.strengths(kind)
        mean = values.mean(axis=1)
        kept = retention(mean[:-1], mean[-1])
        dose = impairment_dose(strengths, kept, LEVEL)
        means = resampled_means(values, _BOOTSTRAPS, self.head["seed"], ability)
        defined = means[:, 0] > means[:, -1]
        shares = retention(means[defined, :-1], means[defined, -1:], axis=1)
        drawn = np.full(len(means), np.nan)
        drawn[defined] = [impairment_dose(strengths, share, LEVEL).value for share in shares]
        low, high = np.quantile(shares, [0.025, 0.975], axis=0)
        half = percentiles(dose.value, drawn)
        return Fall(ability, strengths, kept, low, high, half, dose.censored, drawn, self.claimed(ability))

    def half_of_accuracy(self, kind: str, ability: str) -> Dose | None:
        """ID50 of accuracy in place of performance; None where the untouched model's is not above the floor's."""
        if not self.above(ability, "accuracy"):
            return None
        mean = self.values(kind, ability, "accuracy").mean(axis=1)
        return impairment_dose(self.strengths(kind), retention(mean[:-1], mean[-1]), LEVEL)

    def half_above_guessing(self, kind: str, ability: str) -> Dose | None:
        """ID50 where the floor is uniform guessing among all tokens; None where the untouched model is not above that."""
        guessing = 0.0 if ability == GRAMMAR else -float(np.log(self.head["vocabulary"]))
        mean = self.values(kind, ability).mean(axis=1)[:-1]
        return impairment_dose(self.strengths(kind), retention(mean, guessing), LEVEL) if mean[0] > guessing else None

    def first(self, kind: str) -> dict[str, float]:
        """Of each claimed ability, the share of resamples in which no other one falls sooner."""
        own = [fall for fall in self.falls[kind] if fall.claimed]
        drawn = np.array([fall.drawn for fall in own])
        shares = (drawn == np.nanmin(drawn, axis=0)).mean(axis=1)
        return {fall.ability: float(share) for fall, share in zip(own, shares, strict=True)}

    def agreement(self, one: str, other: str) -> Interval:
        """Kendall's tau between two kinds' ID50 of the claimed abilities; NaN with fewer than two."""
        a, b = ({fall.ability: fall for fall in self.falls[kind] if fall.claimed} for kind in (one, other))
        estimate = kendalltau([a[name].half.estimate for name in a], [b[name].half.estimate for name in a]).statistic
        drawn = (np.array([found[name].drawn for name in a]).T for found in (a, b))
        taus = [kendalltau(x, y).statistic for x, y in zip(*drawn, strict=True)]
        return percentiles(float(estimate), np.array(taus))

    def floors_agree(self, kind: str) -> float:
        """Kendall's tau between the claimed abilities' ID50 above the zeroed model and above guessing."""
        own = [fall for fall in self.falls[kind] if fall.claimed]
        doses = [(fall.half.estimate, self.half_above_guessing(kind, fall.ability)) for fall in own]
        pairs = [(zeroed, guessed.value) for zeroed, guessed in doses if guessed]
        return float(kendalltau(*np.array(pairs).T).statistic)

    def explained(self, kind: str) -> Interval:
        """How much of plain text's loss an increasing curve of strength explains (R²)."""
        strengths, values = self.strengths(kind), self.values(kind, PLAIN)[:-1]
        return bootstrap(lambda mean: monotone_fit(strengths, mean)[1], values, _BOOTSTRAPS, self.head["seed"])
