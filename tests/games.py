"""Games whose Shapley values are known in closed form, and enumeration by code that shares nothing with the package."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np


class ToyGame:
    """A game from a set function, with the interface that estimators expect."""

    n_prompts = 1
    stochastic = False
    value_range = (0.0, 1.0)
    differentiable = False

    def __init__(self, n_players: int) -> None:
        self.n_players = n_players
        self.forward_rows = 0

    def value(self, members: np.ndarray) -> float:
        raise NotImplementedError

    def values(self, coalitions, *, prompts=None, draws=None):
        self.forward_rows += len(coalitions)
        return np.array([self.value(row) for row in coalitions], dtype=float)


class Additive(ToyGame):
    """v(S) = sum of weights: every player's value is its weight."""

    differentiable = True

    def __init__(self, weights) -> None:
        super().__init__(len(weights))
        self.truth = np.asarray(weights, dtype=float)
        self.value_range = (float(self.truth.clip(max=0).sum()), float(self.truth.clip(min=0).sum()))

    def value(self, members):
        return float(self.truth[members].sum())

    def gradients(self, coalitions, *, prompts=None, draws=None):
        self.forward_rows += 3 * len(coalitions)
        return coalitions @ self.truth, np.tile(self.truth.astype(np.float32), (len(coalitions), 1))


class SumOfUnanimity(ToyGame):
    """v(S) = sum over carriers T of w_T [T within S]: each member of T gets w_T / |T|. Multilinear, so mask gradients at
    coalitions are exact marginals and the gradient estimator is unbiased."""

    differentiable = True

    def __init__(self, n_players: int, carriers: list[tuple[tuple[int, ...], float]]) -> None:
        super().__init__(n_players)
        self.carriers = carriers
        self.truth = np.zeros(n_players)
        for carrier, weight in carriers:
            self.truth[list(carrier)] += weight / len(carrier)
        total = sum(abs(weight) for _, weight in carriers)
        self.value_range = (-total, total)

    def value(self, members):
        return sum(weight for carrier, weight in self.carriers if members[list(carrier)].all())

    def values(self, coalitions, *, prompts=None, draws=None):
        self.forward_rows += len(coalitions)
        return sum(weight * coalitions[:, list(carrier)].prod(axis=1) for carrier, weight in self.carriers)

    def gradients(self, coalitions, *, prompts=None, draws=None):
        gradients = np.zeros(coalitions.shape, dtype=np.float32)
        for carrier, weight in self.carriers:
            for player in carrier:
                others = [other for other in carrier if other != player]
                gradients[:, player] += weight * coalitions[:, others].prod(axis=1)
        self.forward_rows += 2 * len(coalitions)
        return self.values(coalitions), gradients


class Unanimity(SumOfUnanimity):
    """v(S) = 1 if the carrier is within S."""

    def __init__(self, n_players: int, carrier: tuple[int, ...]) -> None:
        super().__init__(n_players, [(carrier, 1.0)])
        self.value_range = (0.0, 1.0)


class Airport(ToyGame):
    """v(S) = the longest runway that S needs (Littlechild and Owen 1973)."""

    def __init__(self, costs) -> None:
        super().__init__(len(costs))
        self.costs = np.asarray(costs, dtype=float)
        self.value_range = (0.0, float(self.costs.max()))
        order = np.argsort(self.costs)
        increments = np.diff(self.costs[order], prepend=0.0)
        shares = increments / np.arange(len(costs), 0, -1)
        self.truth = np.empty(len(costs))
        self.truth[order] = np.cumsum(shares)

    def value(self, members):
        return float(self.costs[members].max(initial=0.0))


class SecurityCouncil(ToyGame):
    """Five permanent members with a veto and ten others, four of whom must agree: 421/2145 and 4/2145 each."""

    def __init__(self) -> None:
        super().__init__(15)
        self.truth = np.array([421 / 2145] * 5 + [4 / 2145] * 10)

    def value(self, members):
        return float(members[:5].all() and members[5:].sum() >= 4)


def closed_form_games() -> dict[str, ToyGame]:
    return {
        "additive": Additive([0.3, -0.1, 0.05, 0.2, 0.0, 0.15, 0.1, -0.05]),
        "unanimity": Unanimity(8, (1, 4, 6)),
        "sum of unanimity": random_multilinear(9, seed=3),
        "airport": Airport([1, 1, 2, 3, 3, 5, 8, 9]),
        "voting": SecurityCouncil(),
    }


def random_multilinear(n_players: int, seed: int) -> SumOfUnanimity:
    rng = np.random.default_rng(seed)
    carriers = []
    for _ in range(2 * n_players):
        size = int(rng.integers(1, 4))
        carriers.append((tuple(rng.choice(n_players, size, replace=False).tolist()), float(rng.normal())))
    return SumOfUnanimity(n_players, carriers)


def semivalue_by_definition(
    n_players: int, value: Callable[[frozenset[int]], float], size_weight: Callable[[int], float]
) -> np.ndarray:
    """sum over S without i of size_weight(|S|) (v(S + i) - v(S)), by sets and itertools; ``size_weight`` is the weight of
    one coalition of that size."""
    scores = np.zeros(n_players)
    for player in range(n_players):
        others = [other for other in range(n_players) if other != player]
        for size in range(n_players):
            for members in itertools.combinations(others, size):
                coalition = frozenset(members)
                scores[player] += size_weight(size) * (value(coalition | {player}) - value(coalition))
    return scores


def shapley_weight(n_players: int) -> Callable[[int], float]:
    """|S|! (n - |S| - 1)! / n!  (Shapley 1953)."""
    return lambda size: math.factorial(size) * math.factorial(n_players - size - 1) / math.factorial(n_players)


def banzhaf_weight(n_players: int) -> Callable[[int], float]:
    return lambda size: 0.5 ** (n_players - 1)


def beta_weight(n_players: int, a: float, b: float) -> Callable[[int], float]:
    """Kwon and Zou 2022, eq. 5: the integral of q^(|S| + b - 1) (1 - q)^(n - |S| + a - 2) over B(a, b)."""

    def beta(x: float, y: float) -> float:
        return math.exp(math.lgamma(x) + math.lgamma(y) - math.lgamma(x + y))

    return lambda size: beta(size + b, n_players - 1 - size + a) / beta(b, a)


class Saturating(ToyGame):
    """v(S) = sum over groups G of a_G h_G(|S in G| / |G|), h smooth: each member gets a_G (h(1) - h(0)) / |G| by
    symmetry. The gradients are those of h, which is curved between coalitions: so they are biased, as a model's are."""

    differentiable = True

    def __init__(self, sizes, weights, steepness) -> None:
        super().__init__(sum(sizes))
        self.member = np.repeat(np.eye(len(sizes)), sizes, axis=0)  # [n, groups]
        self.sizes, self.weights = np.asarray(sizes, dtype=float), np.asarray(weights, dtype=float)
        self.steepness = np.asarray(steepness, dtype=float)
        self.truth = np.repeat(self.weights * np.tanh(self.steepness) / self.sizes, sizes)
        self.value_range = (float(self.weights.clip(max=0).sum()), float(self.weights.clip(min=0).sum()))

    def _level(self, coalitions):
        return coalitions.astype(float) @ self.member / self.sizes * self.steepness

    def values(self, coalitions, *, prompts=None, draws=None):
        self.forward_rows += len(coalitions)
        return np.tanh(self._level(coalitions)) @ self.weights

    def value(self, members):
        return float(np.tanh(self._level(members[None])) @ self.weights)

    def gradients(self, coalitions, *, prompts=None, draws=None):
        self.forward_rows += 3 * len(coalitions)
        level = self._level(coalitions)
        slope = self.weights * self.steepness / self.sizes / np.cosh(level) ** 2
        return np.tanh(level) @ self.weights, (slope @ self.member.T).astype(np.float32)
