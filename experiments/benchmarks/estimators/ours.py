"""The package's own estimators, by name through its registry; whatever is registered is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from measures import top_k
from problem import CannotRunError

from shapley.errors import ShapleyError
from shapley.estimators.registry import Plan, build
from shapley.types import FloatArray


def plans(names: Iterable[str]) -> list[tuple[str, Callable[[Any, str, int, int], FloatArray]]]:
    """Names and runs; TMAB (Ghorbani and Zou 2020) with its published bound and with the valid one."""
    found = [(name, _run(name)) for name in names]
    return [*found, ("tmab published", _run("tmab", bound="published")), ("tmab valid", _run("tmab"))]


def _run(name: str, **options: Any) -> Callable[[Any, str, int, int], FloatArray]:
    def run(game: Any, variant: str, budget: int, seed: int) -> FloatArray:
        special = {"top_k": top_k(game.n_players)} if name in ("tmab", "two-stage") else {}
        try:
            estimator, _ = build(
                Plan(estimator=name, budget=budget, seed=seed, **special, **options), game, key=game.name
            )
        except ShapleyError as error:
            raise CannotRunError(str(error)) from error
        return estimator.run().score

    return run
