"""Two stages: gradients for all players, exact differences where they matter.

1. *Diagonal.* A few gradients with all players at one gate (``diagonal``): hardly any noise, some bias. Screened scores are
   shrunk towards it, less and less as their own noise falls. It is unit -1: everything else is counted from the screen.
2. *Screen.* Units of 16 coalitions (``coalitions``), one gradient row each. A player's gradient is averaged half over
   coalitions that hold it and half over those that do not: the trapezoid rule for the integral of the derivative over
   its own gate, exact to second order, where a plain mean is exact to first. The rule's weights are noisy, so its
   correction is shrunk by what earlier units say it is worth.
3. *Audit.* Players drawn at random get exact differences at one unit's coalitions: how far off the screen is. Some are drawn
   from all alike, for a bound on the bias of most; some by the size of their gradients, as a few players may hold all bias.
4. *Rounds* of four more units. The gradients at their coalitions go on improving the screen. Players for whom a forward
   row is better spent on their own difference than on one more gradient for all (``allocation``), if there are any, get
   exact differences at all of the round's coalitions, the same for all of them, with the gradient there as control
   variate (``refinement``). Nobody leaves the coalitions: a player that is no longer refined is still put in and taken
   out of them like any other.
5. Stop when the top k is separated, or when the budget is spent.

Scores of refined players are unbiased (but for the choice of when to stop sampling them, as with any bandit); the
others' are the screen's, whose bias the audit bounds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from shapley.errors import ShapleyError
from shapley.estimators.allocation import Standing, choose_players
from shapley.estimators.audit import Audit, audit_sizes, drawn_by_size
from shapley.estimators.base import DifferentiableGame, Estimate, Estimator, Game, ends_rows
from shapley.estimators.bounds import BoundName, separated, spent_quantile
from shapley.estimators.coalitions import N_PAIRS, ROWS_PER_UNIT, antithetic_coalitions, pairs_of, prompts_of
from shapley.estimators.diagonal import Diagonal
from shapley.estimators.marginals import marginals
from shapley.estimators.moments import Welford
from shapley.estimators.refinement import RefinedScores, Refinement
from shapley.estimators.semivalue import Semivalue
from shapley.estimators.shrinkage import reliability
from shapley.keyed import keyed_rng
from shapley.types import Float32Array, FloatArray, IntArray

SCREEN_SHARE = 0.4  # of the budget, before the audit and with the diagonal; rounds can add to it
_DIAGONAL_SHARE = 0.4  # of the budget, at most
ROUND_UNITS = 4
_GRADIENT_ROWS = 3 * ROWS_PER_UNIT
_LEAST_FRACTION = 0.06  # of the trapezoid rule's weights, which are at most 1 / (2 * 0.06)
_LEFT_OVER = (
    0.25  # of a squared correction: where there is much curvature, half as much is expected beyond second order
)
_LARGEST_ROUND = 0.25  # of the second stage's rows, or so many rows, whichever is more: a look after each
_SMALL_ROUND = 1024
_MOST_AUDIT = 0.25  # of the second stage's rows
# Exact differences that are computed together: enough to fill batches, few enough to share a round among many.
# A part is one pair of coalitions; on a CPU all eight pairs at once would be a twentieth faster.
_PART_PLAYERS = 64

Sample = tuple[Float32Array, Float32Array, FloatArray, FloatArray]


class TwoStage(Estimator):
    """``samples`` counts the screen's coalitions; exact differences cost one and a half times as many rows again.

    Args:
        top_k: how many players to separate; a tenth of all, at most 100, by default.
        delta: failure probability of the claim that the top k is separated, over all players and looks.
        bound: ``asymptotic``, the only one it has.
        tolerance: top k players may be worse than others by so much, in units of the value.
    """

    name: ClassVar[str] = "two-stage"
    options: ClassVar[frozenset[str]] = frozenset({"top_k", "delta", "bound", "tolerance"})

    def __init__(
        self,
        game: DifferentiableGame,
        *,
        semivalue: Semivalue,
        seed: int = 0,
        key: str = "",
        samples: int = 512,
        top_k: int | None = None,
        delta: float = 0.05,
        bound: BoundName = "asymptotic",
        tolerance: float = 0.0,
    ) -> None:
        n = game.n_players
        if bound != "asymptotic":
            raise ShapleyError(f"estimator 'two-stage' has no {bound!r} bound, only 'asymptotic': tmab has others")
        self.top_k = max(1, min(100, n // 10)) if top_k is None else top_k
        if self.top_k > n:
            raise ShapleyError(f"--top-k {self.top_k} is more than the {n} players")
        self.delta, self.tolerance = delta, tolerance
        super().__init__(game, semivalue=semivalue, seed=seed, key=key, samples=samples)
        self._differentiable = game
        self._budget = self.n_units * self.rows_per_unit
        most = int(_DIAGONAL_SHARE * self._budget / 3)
        self._diagonal = Diagonal.plan(semivalue, game.n_prompts, most, seed, key)
        self.unit = -1 if len(self._diagonal) else 0
        self._spent = 3 * len(self._diagonal)  # rows, of the diagonal and of whole units
        self.n_screen = max(1, self.n_units - self._spent // _GRADIENT_ROWS)
        second = self._budget - self._spent - self.n_screen * _GRADIENT_ROWS
        alike, self._by_size = audit_sizes(n, (_MOST_AUDIT * second - _GRADIENT_ROWS) / ROWS_PER_UNIT - 1)
        self.audited = np.sort(keyed_rng(seed, key, "audit").permutation(n)[:alike])
        self._round_rows = max(int(_LARGEST_ROUND * second), _SMALL_ROUND)
        if not alike:  # too little for a second stage: all of it goes into the screen
            self.n_screen = (self._budget - self._spent) // _GRADIENT_ROWS
        self.prior: Float32Array = np.empty(0, dtype=np.float32)  # [n] of the diagonal, once it is there
        self.gradient = Welford(n)  # of units' plain mean gradients: the control variates' mean
        self.correction = Welford(n)  # of units' trapezoid corrections
        self.refinement = Refinement(n)
        self.active: IntArray = np.empty(0, dtype=np.int64)  # of the round at work, or the audit
        self._next_look = self.n_screen + 1  # units after which the round ends; the audit is a round of one
        self._audit = Audit.unknown()
        self._separated = False
        self._looks = 0

    @classmethod
    def unit_cost(cls, game: Game) -> tuple[int, int]:
        return ROWS_PER_UNIT, round(_GRADIENT_ROWS / SCREEN_SHARE)

    @property
    def planned_rows(self) -> int:
        return ends_rows(self.game) + self._budget

    @property
    def finished(self) -> bool:
        if self.unit < self.n_screen:
            return False
        next_rows = _unit_rows(len(self._at_work()))
        return self._separated or not len(self.audited) or self._spent + next_rows > self._budget

    def advance(self) -> Sample | Float32Array:
        """The unit's plain gradient ``[n]``, its trapezoid correction ``[n]``, and, for the players at work, marginals
        and gradients ``[8, m]``, pair by pair; before the first, the diagonal's scores ``[n]``."""
        if self.unit < 0:
            return self._diagonal.scores(self.part(index)[0] for index in range(self.parts()))
        return self.join([self.part(index) for index in range(self.parts())])

    def parts(self) -> int:
        """One of gradients, and eight, one a pair, of exact differences for every 64 players at work."""
        if self.unit < 0:
            return self._diagonal.parts
        return 1 + N_PAIRS * _n_exact_parts(len(self._at_work()))

    def part(self, index: int) -> tuple[np.ndarray, ...]:
        """The gradients: plain ``[n]``, correction ``[n]`` and those at work ``[8, m]``; or the exact differences of some
        players at one pair, ``[1, up to 64]``."""
        if self.unit < 0:
            return (self._diagonal.part(self._differentiable, index),)
        coalitions, fractions = antithetic_coalitions(self.game.n_players, self.semivalue, self.seed, self.unit)
        prompts = np.repeat(prompts_of(self.unit, self.game.n_prompts, self.seed, self.key), 2)
        draws = np.repeat(pairs_of(self.unit), 2)
        players = self._at_work()
        if index:
            block, pair = divmod(index - 1, N_PAIRS)
            some, rows = players[block * _PART_PLAYERS : (block + 1) * _PART_PLAYERS], slice(2 * pair, 2 * pair + 2)
            return (_by_pair(marginals(self.game, coalitions[rows], some, prompts[rows], draws[rows])),)
        _, gradients = self._differentiable.gradients(coalitions, prompts=prompts, draws=draws)
        plain = gradients.mean(axis=0, dtype=np.float64).astype(np.float32)
        correction = np.zeros(len(plain), dtype=np.float32)
        for inside, row, q in zip(coalitions, gradients, fractions, strict=True):
            weight_in, weight_out = (0.5 / max(chance, _LEAST_FRACTION) - 1 for chance in (q, 1 - q))
            weights = np.array([weight_out, weight_in], dtype=np.float32) / ROWS_PER_UNIT
            correction += weights[inside.view(np.uint8)] * row
        return plain, correction, _by_pair(gradients[:, players].astype(float))

    def join(self, parts: Sequence[tuple[np.ndarray, ...]]) -> Sample | Float32Array:
        if self.unit < 0:
            return self._diagonal.scores(part[0] for part in parts)
        (plain, correction, gradients), *exact = parts
        blocks = [[part[0] for part in exact[i : i + N_PAIRS]] for i in range(0, len(exact), N_PAIRS)]
        differences = [np.concatenate(block) for block in blocks] or [np.empty((N_PAIRS, 0))]
        return plain, correction, np.concatenate(differences, axis=1), gradients

    def units_ahead(self) -> int:
        """To the end of the screen, the diagonal with it, then the audit, then to the end of the round."""
        return (self.n_screen if self.unit < self.n_screen else self._next_look) - self.unit

    def shared(self) -> dict[str, np.ndarray]:
        return {"active": self.active}

    def adopt(self, unit: int, ends: tuple[float, float], shared: dict[str, np.ndarray]) -> None:
        super().adopt(unit, ends, shared)
        self.active = shared["active"]

    def add(self, sample: Sample | Float32Array) -> None:
        if isinstance(sample, np.ndarray):
            self.prior = sample
            return
        plain, correction, exact, gradients = sample
        players = self._at_work()
        corrected = plain + self._trust() * correction
        self.moments.add(corrected.astype(np.float64, copy=False), replicate=self.unit)
        self._spent += _unit_rows(len(players))
        self.gradient.add(plain)
        self.correction.add(correction)
        if len(players):
            self.refinement.add(players, exact, gradients)
        done = self.unit + 1
        if done == self.n_screen and len(self.audited):
            by_size = drawn_by_size(
                self._scale(), self._by_size, self.audited, keyed_rng(self.seed, self.key, "by size")
            )
            self.active = np.sort(np.concatenate([self.audited, by_size]))
        if done == self.n_screen + 1:
            self._audit = self._measure_bias()
        if done == self._next_look:
            self._look()

    def estimate(self) -> Estimate:
        estimate = super().estimate()
        refined = self._refined()
        count, groups = estimate.count, estimate.replicates  # copies of the moments, free to change
        score, variance = self._screened()
        stderr = np.sqrt(variance)
        groups -= estimate.score
        groups *= np.divide(stderr, estimate.stderr, out=np.ones_like(stderr), where=estimate.stderr > 0)
        groups += score
        screen, spread = score[refined.players], stderr[refined.players]
        score[refined.players] = refined.score
        stderr[refined.players] = np.sqrt(refined.variance)
        count[refined.players] = refined.units
        # Groups of a refined player keep the screen's pattern of noise, scaled to the player's own standard error.
        scale = np.divide(stderr[refined.players], spread, out=np.ones_like(spread), where=spread > 0)
        groups[:, refined.players] = refined.score + scale * (groups[:, refined.players] - screen)
        return replace(estimate, score=score, stderr=stderr, exact=self._exact(refined))

    def details(self) -> dict[str, Any]:
        return {
            "diagonal_rows": len(self._diagonal),
            "screened_coalitions": min(self.unit, self.n_screen) * ROWS_PER_UNIT,
            "rounds": max(0, self._looks - 1),
            "refined": len(self._refined().players),
            "top_k": self.top_k,
            "delta": self.delta,
            "bound": "asymptotic",
            "tolerance": self.tolerance,
            "separated": self._separated,
            "stopped": "the top k is separated" if self._separated else "the budget is spent",
            "audit": self._audit.record(),
        }

    def state(self) -> dict[str, np.ndarray]:
        scalars: dict[str, np.ndarray] = {
            "active": self.active,
            "prior": self.prior,
            "separated": np.array(self._separated),
            "spent": np.array(self._spent),
            "looks": np.array(self._looks),
            "next_look": np.array(self._next_look),
            "audit": self._audit.array(),
        }
        parts = self.gradient.state("gradient") | self.correction.state("correction") | self.refinement.state()
        return super().state() | scalars | parts

    def load(self, state: dict[str, np.ndarray]) -> None:
        super().load(state)
        self.active, self.prior = np.array(state["active"]), np.array(state["prior"])
        self._separated, self._looks = bool(state["separated"]), int(state["looks"])
        self._spent, self._next_look = int(state["spent"]), int(state["next_look"])
        self._audit = Audit.from_array(state["audit"])
        self.gradient.load(state, "gradient")
        self.correction.load(state, "correction")
        self.refinement.load(state)

    def _at_work(self) -> IntArray:
        """The players that get exact differences in this unit."""
        return self.active if self.unit >= self.n_screen else np.empty(0, dtype=np.int64)

    def _trust(self) -> FloatArray | float:
        """``[n]``, how much of the trapezoid correction to believe."""
        if self.unit < 2:
            return 0.0
        noise = self.correction.variance()
        noise /= self.unit
        return reliability(self.correction.mean.astype(float), noise, self._scale())

    def _screened(self) -> tuple[FloatArray, FloatArray]:
        """``[n]`` scores and their variances from gradients alone: the units' mean, shrunk towards the diagonal."""
        score, variance = self.moments.mean.copy(), self.moments.variance() / max(self.unit, 1)
        if not len(self.prior) or self.unit < 2:
            return score, variance
        deviation = score - self.prior
        believed = reliability(deviation, variance, self._scale())
        return self.prior + believed * deviation, believed * variance

    def _scale(self) -> FloatArray:
        """``[n]``: mean square of the unit gradients, which curvature goes with."""
        scale, square = self.gradient.variance(), self.gradient.mean.astype(float)
        square *= square
        scale += square
        return scale

    def _bias(self) -> FloatArray:
        """``[n]`` expected square of the screen's bias: typical players are as far off as the audited ones; the few with a
        large correction, by a part of it besides."""
        correction = self.correction.mean.astype(float) ** 2 - self.correction.variance() / max(self.unit, 1)
        return self._audit.share * self._scale() + _LEFT_OVER * np.maximum(correction, 0)

    def _sampled(self) -> RefinedScores:
        """Players that went through a whole round."""
        part = self.refinement.players
        mean, variance = self.gradient.mean[part].astype(float), self.gradient.variance()[part]
        return self.refinement.scores(mean, variance, max(self.unit, 1)).where(lambda those: those.units >= ROUND_UNITS)

    def _refined(self) -> RefinedScores:
        """Those whose exact differences are expected to be closer to the truth than the screen is."""
        sampled = self._sampled()
        screen = (self._screened()[1] + self._bias())[sampled.players]
        return sampled.where(lambda those: those.variance <= screen)

    def _exact(self, refined: RefinedScores) -> np.ndarray:
        exact = np.zeros(self.game.n_players, dtype=bool)
        exact[refined.players] = True
        return exact

    def _measure_bias(self) -> Audit:
        """Bias of the screen on the audited players: their mean exact difference minus gradient at the same coalitions,
        less the correction that the screen already makes."""
        mean, variance = self.refinement.residuals()
        players = self.refinement.players
        correction = self.moments.mean[players] - self.gradient.mean[players]
        return Audit.measure(mean - correction, variance, self._scale()[players], np.isin(players, self.audited))

    def _standing(self) -> Standing:
        sampled, refined = self._sampled(), self._refined()
        score, variance = self._screened()
        bias, units = self._bias(), np.zeros(len(score), dtype=np.int64)
        after_round = self._audit.noise * self._scale() / ROUND_UNITS
        after_round[sampled.players] = sampled.variance * sampled.units / (sampled.units + ROUND_UNITS)
        score[refined.players], variance[refined.players] = refined.score, refined.variance
        bias[refined.players], units[refined.players] = 0.0, refined.units
        return Standing(score, variance, bias, units, after_round, self.unit)

    def _look(self) -> None:
        """Between rounds: is the top k separated, and who is refined next?"""
        self._looks += 1
        standing = self._standing()
        if self._looks > 1:
            half = self._half_widths(standing)
            inside, outside = separated(standing.score, half, self.top_k, self.tolerance)
            self._separated = bool((inside | outside).all())
        round_rows = min(self._budget - self._spent, self._round_rows)
        unit_rows = round_rows // ROUND_UNITS
        most = (unit_rows - _GRADIENT_ROWS) // ROWS_PER_UNIT * _PART_PLAYERS // (_PART_PLAYERS + 1)
        costs = {"difference_rows": ROWS_PER_UNIT, "gradient_rows": _GRADIENT_ROWS, "round_units": ROUND_UNITS}
        self.active = np.sort(choose_players(standing, self.top_k, max(0, most), **costs))
        # Where gradients for all are worth more than anybody's differences, as many as a round holds.
        self._next_look += ROUND_UNITS if len(self.active) else max(1, round_rows // _GRADIENT_ROWS)

    def _half_widths(self, standing: Standing) -> FloatArray:
        """Half-widths that hold over all players and looks as far as the central limit theorem does. A screened player's
        interval is that of its units' mean, without the diagonal's help, widened by the audit's bound."""
        refined = standing.units > 0
        df = np.where(refined, standing.units, self.unit) - 1
        share = self.delta / (len(df) * self._looks * (self._looks + 1))
        mean = self.moments.mean
        variance = np.where(refined, standing.variance, self.moments.variance() / self.unit)
        shift = np.where(refined, 0.0, np.abs(standing.score - mean) + self._audit.bound_ratio * np.sqrt(self._scale()))
        return spent_quantile(share, df) * np.sqrt(variance) + shift


def _unit_rows(n_players: int) -> int:
    """What a unit costs in which so many players get exact differences: each part runs the unit's coalitions themselves."""
    return _GRADIENT_ROWS + ROWS_PER_UNIT * (n_players + _n_exact_parts(n_players))


def _n_exact_parts(n_players: int) -> int:
    return -(-n_players // _PART_PLAYERS)


def _by_pair(rows: FloatArray) -> FloatArray:
    """``[2 p, m]`` -> ``[p, m]`` means of antithetic pairs, in one order in memory: sums over it depend on that."""
    return np.ascontiguousarray(rows.reshape(len(rows) // 2, 2, -1).mean(axis=1))
