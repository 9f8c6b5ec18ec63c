"""Estimators by name, and the choice among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shapley.errors import ShapleyError, unknown_name
from shapley.estimators.base import Estimator, Game, ends_rows
from shapley.estimators.bounds import BoundName
from shapley.estimators.exact import Exact
from shapley.estimators.gradient import Gradient
from shapley.estimators.permutation import Permutation
from shapley.estimators.semivalue import Semivalue
from shapley.estimators.tmab import Tmab
from shapley.estimators.two_stage import TwoStage

ESTIMATORS: dict[str, type[Estimator]] = {
    estimator.name: estimator for estimator in (Exact, Permutation, Tmab, Gradient, TwoStage)
}
_SPECIAL = ("top_k", "delta", "bound", "truncation", "tolerance")
DEFAULT_BUDGET = 6144  # forward rows a topic: three minutes for 135M parameters on two cores


_ENOUGH_PAIRS = 4


@dataclass(frozen=True)
class Plan:
    """What an estimate was asked to do.

    Attributes:
        estimator: a name in ``ESTIMATORS``, or ``auto``.
        samples: how many permutations, coalitions or draws; what the budget allows if not given.
        budget: upper bound on forward rows of one topic.
        top_k, delta, bound: for ``tmab`` and ``two-stage``: how many players to separate, with what probability of
            failure.
        tolerance: for ``two-stage``: by how much a player of the top k may be worse than another.
        truncation: for ``permutation`` and ``tmab``: a fraction of v(N) - v(0).

    What is ``None`` is left to the estimator.
    """

    estimator: str = "auto"
    semivalue: str = "shapley"
    samples: int | None = None
    budget: int | None = None
    top_k: int | None = None
    delta: float | None = None
    bound: BoundName | None = None
    truncation: float | None = None
    tolerance: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.estimator != "auto" and self.estimator not in ESTIMATORS:
            raise unknown_name("estimator", self.estimator, ["auto", *ESTIMATORS])
        Semivalue.parse(self.semivalue)
        for name, number in (("samples", self.samples), ("budget", self.budget), ("top-k", self.top_k)):
            if number is not None and number < 1:
                raise ShapleyError(f"--{name} {number} must be at least 1")
        if self.delta is not None and not 0 < self.delta < 1:
            raise ShapleyError(f"--delta {self.delta} must lie between 0 and 1")
        if self.tolerance is not None and not 0 <= self.tolerance < float("inf"):
            raise ShapleyError(f"--tolerance {self.tolerance} must be a number of at least 0")
        if self.truncation is not None and not 0 <= self.truncation < 1:
            raise ShapleyError(f"--truncation {self.truncation} must be at least 0 and less than 1")


def choose(plan: Plan, game: Game) -> tuple[str, str]:
    """The estimator to use and the reason, in a sentence."""
    if plan.estimator != "auto":
        return plan.estimator, "as asked"
    n, budget = game.n_players, _budget(plan)
    enumeration = (1 << n) * game.n_prompts if n <= 20 else None
    if enumeration is not None and enumeration <= budget:
        return "exact", f"all {1 << n} coalitions of {n} players fit into {budget} forward rows"
    pairs = 2 * n * game.n_prompts
    if _ENOUGH_PAIRS * pairs <= budget:
        return "permutation", f"{budget} forward rows hold {budget // pairs} pairs of permutations of {n} players"
    if hasattr(game, "gradients"):
        return "two-stage", f"{n} players: gradients for all, exact differences where they matter"
    return "tmab", f"the game has no gradient, and {budget} forward rows are too few to score all {n} players alike"


def build(plan: Plan, game: Game, key: str = "") -> tuple[Estimator, str]:
    """The estimator of a plan, and why it is this one.

    Raises:
        ShapleyError: the estimator cannot play this game or has no such option, or the budget does not hold one unit of
            its work.
    """
    name, reason = choose(plan, game)
    kind = ESTIMATORS[name]
    if name == "gradient" and not getattr(game, "differentiable", True):
        raise ShapleyError(
            "estimator 'gradient' needs a value with a gradient: use --value logprob, loss or margin, or two-stage"
        )
    special = {option: getattr(plan, option) for option in _SPECIAL if getattr(plan, option) is not None}
    for option in special.keys() - kind.options:
        raise ShapleyError(f"estimator {name!r} ({reason}) has no --{option.replace('_', '-')}: leave it out")
    options: dict[str, Any] = {"semivalue": Semivalue.parse(plan.semivalue), "seed": plan.seed, "key": key, **special}
    samples = plan.samples
    if plan.budget is not None or (samples is None and name != "exact"):  # whoever names 'exact' wants all coalitions
        affordable = _affordable(name, plan, game)
        samples = affordable if samples is None else min(samples, affordable)
    if samples is not None:
        options["samples"] = samples
    return kind(game, **options), reason


def _affordable(name: str, plan: Plan, game: Game) -> int:
    """How many samples the budget holds."""
    ends = ends_rows(game)
    unit_samples, unit_rows = ESTIMATORS[name].unit_cost(game)
    units = (_budget(plan) - ends) // unit_rows
    if units < 1:
        raise ShapleyError(
            f"{_budget(plan)} forward rows are too few: the two ends and one unit of {name!r} cost {ends + unit_rows} for "
            f"{game.n_players} players and {game.n_prompts} prompts; give a larger --budget or --samples"
        )
    return int(units * unit_samples)


def _budget(plan: Plan) -> int:
    return plan.budget or DEFAULT_BUDGET
