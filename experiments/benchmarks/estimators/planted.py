"""Games with a planted exact Shapley value, for any number of players.

    v(g) = sum_i w_i s_i(g_i) + sum_G h_G(sum_{i in G} c_i g_i) + sum_pairs p_ab s_a(g_a) s_b(g_b) + (a.g)(b.g) + ...(d.g)

1. Own weights, heavy-tailed, behind a curved gate: s_i(0) = 0 and s_i(1) = 1, so the weight is the Shapley value whatever the
   curve, but the derivatives at 0 and 1 are not the difference.
2. Disjoint groups behind a saturating, convex or threshold curve. Small groups have unequal members, and their Shapley values
   are enumerated; members of large groups are equal, and each gets (h(m) - h(0)) / m.
3. Pairs, behind the same gates: each member gets half, again whatever the curves. Along the diagonal the two gates open at
   different times, so path gradients (the Aumann-Shapley value) are biased too, as they are in a model.
4. Products of two and of three dense directions. In these every player's marginal depends on everybody, as behind the softmax
   of a model; they make the noise. A monomial's members share it equally, and the sums over monomials have closed forms.

By additivity the Shapley value is the sum (Shapley 1953). The gates make the smooth extension not multilinear, so gradients at
coalitions are biased, as in a model. Products of two alone would not do for noise: their marginals are linear in the coalition,
so one antithetic pair would be exact.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from shapley.types import BoolArray, Float32Array, FloatArray, Gates, IntArray

GROUP_SIZES = (4, 8, 16, 32)
MOST_UNEQUAL = 8  # members of a group that is enumerated
SHAPES = ("saturating", "convex", "threshold")
N_DIRECTIONS = 3
DRIFT = 0.3
PAIR = 1.5
# Standard deviation of a player's marginal over random coalitions, in spreads of the scores; trained models have 1 to 2.
NOISE = 2.0
_ROWS = 64  # at a time: 25 MB of float64 for 50,000 players


class Planted:
    """Interface of ``NeuronGame``, with ``truth``, ``[n]``, beside it."""

    n_prompts = 1
    stochastic = False
    differentiable = True

    def __init__(self, n_players: int, seed: int, noise: float = NOISE) -> None:
        self.n_players = n_players
        self.forward_rows = 0
        self.name = f"planted-{n_players}"
        rng = np.random.default_rng([seed, n_players])
        # All components have a spread of about one before they are weighed; positive on the whole, so that v(N) > v(0).
        self._own = 0.6 * rng.standard_t(3, n_players) / np.sqrt(3) + 0.15
        self._slope_at_0, self._slope_at_1 = _gate_slopes(rng, n_players)
        self._plant_groups(rng)
        self._plant_pairs(rng)
        self._plant_directions(rng, noise)
        self.truth = self._own + self._group_share() + self._pair_share() + self._direction_share()
        scale = 10 / np.abs(self.truth).sum()  # about ten nats to share
        for part in ("_own", "_amplitude", "_pair_weight", "_two_weight", "_three_weight", "truth"):
            setattr(self, part, getattr(self, part) * scale)
        self._columns[:, 0] = self._own
        self.value_range = self._assumed_range(rng)

    def values(
        self, coalitions: BoolArray, *, prompts: IntArray | None = None, draws: IntArray | None = None
    ) -> FloatArray:
        """``[C, n]`` -> ``[C]``."""
        self.forward_rows += len(coalitions)
        parts = [self._values(coalitions[start : start + _ROWS]) for start in range(0, len(coalitions), _ROWS)]
        return np.concatenate(parts) if parts else np.empty(0)

    def gradients(
        self, coalitions: Gates, *, prompts: IntArray | None = None, draws: IntArray | None = None
    ) -> tuple[FloatArray, Float32Array]:
        """``[C, n]`` -> ``[C]`` values and ``[C, n]`` derivatives of the smooth extension."""
        self.forward_rows += 3 * len(coalitions)
        values = np.empty(len(coalitions))
        gradients = np.empty(coalitions.shape, dtype=np.float32)
        for start in range(0, len(coalitions), _ROWS):
            rows = slice(start, start + _ROWS)
            gates = coalitions[rows].astype(np.float64)
            values[rows], gradients[rows] = self.soft_values(torch.from_numpy(gates))[:, 0], self._gradients(gates)
        return values, gradients

    def marginals(
        self,
        coalitions: BoolArray,
        players: IntArray,
        *,
        prompts: IntArray | None = None,
        draws: IntArray | None = None,
    ) -> FloatArray:
        """``[C, n]`` and ``[m]`` -> ``[C, m]``: each player's presence minus its absence. A row for every one of them, and
        one for the coalition itself, as in ``RowScorer.marginals``."""
        out = np.empty((len(coalitions), len(players)))
        for row, coalition in enumerate(coalitions):
            base = float(self._values(coalition[None])[0])
            for start in range(0, len(players), _ROWS):
                some = players[start : start + _ROWS]
                turned = np.repeat(coalition[None], len(some), axis=0)
                turned[np.arange(len(some)), some] ^= True
                out[row, start : start + len(some)] = np.where(coalition[some], 1, -1) * (base - self._values(turned))
        self.forward_rows += len(coalitions) * (1 + len(players))
        return out

    def soft_values(self, gates: torch.Tensor) -> torch.Tensor:
        """The smooth extension: gates ``[C, n]`` between 0 and 1 -> ``[C, 1]``, in torch; counts no rows."""
        g = gates.double()
        start, end = torch.from_numpy(self._slope_at_0), torch.from_numpy(self._slope_at_1)
        curved = _cubic(g, start, end)
        value = curved @ torch.from_numpy(self._own)
        linear = g @ torch.from_numpy(self._columns)
        middle = 1 + 2 * N_DIRECTIONS
        two = linear[:, 1:middle].reshape(-1, 2, N_DIRECTIONS).prod(dim=1)
        three = linear[:, middle:].reshape(-1, 3, N_DIRECTIONS).prod(dim=1)
        value = value + two @ torch.from_numpy(self._two_weight) + three @ torch.from_numpy(self._three_weight)
        for groups, members in self._members.items():
            x = (g[:, torch.from_numpy(members)] * torch.from_numpy(self._part[groups])).sum(dim=2)
            curves = torch.stack([1 - torch.exp(-3 * x), x**3, torch.sigmoid(10 * (x - 0.6))])
            shape = torch.nn.functional.one_hot(torch.from_numpy(self._shape[slice(*groups)]), len(SHAPES)).T.double()
            value = value + (curves * shape[:, None]).sum(dim=0) @ torch.from_numpy(self._amplitude[slice(*groups)])
        first, second = (torch.from_numpy(players) for players in self._pairs)
        return (value + (curved[:, first] * curved[:, second]) @ torch.from_numpy(self._pair_weight))[:, None]

    def _values(self, coalitions: BoolArray) -> FloatArray:
        mask = coalitions.astype(np.float64)
        linear = mask @ self._columns  # own weights and all directions in one product
        value = linear[:, 0]
        two, three = self._projections(linear)
        value += (two[:, 0] * two[:, 1]) @ self._two_weight + three.prod(axis=1) @ self._three_weight
        for groups in self._members:
            value += self._curves(groups, self._inside(groups, mask)).sum(axis=1)
        value += (coalitions[:, self._pairs[0]] & coalitions[:, self._pairs[1]]) @ self._pair_weight
        return value

    def _gradients(self, gates: FloatArray) -> FloatArray:
        two, three = self._projections(gates @ self._columns)
        curved = _cubic(gates, self._slope_at_0, self._slope_at_1)
        slope = _cubic_slope(gates, self._slope_at_0, self._slope_at_1)
        gradient = self._own * slope
        gradient += (two[:, ::-1] * self._two_weight).reshape(len(gates), -1) @ self._two.reshape(-1, self.n_players)
        others = np.stack([three[:, 1] * three[:, 2], three[:, 0] * three[:, 2], three[:, 0] * three[:, 1]], axis=1)
        gradient += (others * self._three_weight).reshape(len(gates), -1) @ self._three.reshape(-1, self.n_players)
        for groups, members in self._members.items():
            gradient[:, members] += self._slopes(groups, self._inside(groups, gates))[:, :, None] * self._part[groups]
        first, second = self._pairs  # disjoint, so plain indexing adds up
        gradient[:, first] += slope[:, first] * curved[:, second] * self._pair_weight
        gradient[:, second] += slope[:, second] * curved[:, first] * self._pair_weight
        return gradient

    # Groups: ``_members`` holds, by slice of the groups, their members [groups, size]; ``_part`` the c_i,
    # [groups, size], that sum to one; ``_amplitude`` and ``_shape`` are [groups].

    def _plant_groups(self, rng: np.random.Generator) -> None:
        """Half of the players in groups."""
        free = rng.permutation(self.n_players)[: self.n_players // 2]
        self._members: dict[tuple[int, int], IntArray] = {}
        self._part: dict[tuple[int, int], FloatArray] = {}
        n_groups, taken = 0, 0
        for i, size in enumerate(GROUP_SIZES):
            left = len(free) - taken
            groups = left // (len(GROUP_SIZES) - i) // size
            members = free[taken : taken + groups * size].reshape(groups, size)
            part = rng.lognormal(0, 0.8 if size <= MOST_UNEQUAL else 0, members.shape)
            self._members[n_groups, n_groups + groups] = members
            self._part[n_groups, n_groups + groups] = part / part.sum(axis=1, keepdims=True)
            n_groups, taken = n_groups + groups, taken + groups * size
        sizes = np.concatenate([np.full(len(members), members.shape[1]) for members in self._members.values()])
        self._shape = rng.integers(len(SHAPES), size=n_groups)
        self._amplitude = sizes * rng.exponential(0.6, n_groups) * np.where(rng.random(n_groups) < 0.8, 1, -1)

    def _inside(self, groups: tuple[int, int], mask: FloatArray) -> FloatArray:
        """``[C, groups]``: the part of each group that is in the coalition."""
        return np.einsum("cgm,gm->cg", mask[:, self._members[groups]], self._part[groups])

    def _curves(self, groups: tuple[int, int], x: FloatArray) -> FloatArray:
        """h ``[C, groups]`` of the part that is inside."""
        shape = self._shape[slice(*groups)]
        curves = np.stack([1 - np.exp(-3 * x), x**3, 1 / (1 + np.exp(-10 * (x - 0.6)))])
        return np.take_along_axis(curves, shape[None, None, :], axis=0)[0] * self._amplitude[slice(*groups)]

    def _slopes(self, groups: tuple[int, int], x: FloatArray) -> FloatArray:
        """dh/dx ``[C, groups]``."""
        step = 1 / (1 + np.exp(-10 * (x - 0.6)))
        slopes = np.stack([3 * np.exp(-3 * x), 3 * x**2, 10 * step * (1 - step)])
        shape = self._shape[slice(*groups)]
        return np.take_along_axis(slopes, shape[None, None, :], axis=0)[0] * self._amplitude[slice(*groups)]

    def _group_share(self) -> FloatArray:
        share = np.zeros(self.n_players)
        for groups, members in self._members.items():
            size, n_groups = members.shape[1], len(members)
            if size > MOST_UNEQUAL:
                ends = self._curves(groups, np.array([[1.0] * n_groups, [0.0] * n_groups]))
                share[members] = ((ends[0] - ends[1]) / size)[:, None]
                continue
            subsets = (np.arange(1 << size)[:, None] >> np.arange(size) & 1).astype(bool)
            values = self._curves(groups, subsets @ self._part[groups].T)  # [2^size, groups]
            for place in range(size):
                without = np.flatnonzero(~subsets[:, place])
                weight = np.array([1 / (size * math.comb(size - 1, int(s))) for s in subsets[without].sum(axis=1)])
                share[members[:, place]] = weight @ (values[without | 1 << place] - values[without])
        return share

    def _plant_pairs(self, rng: np.random.Generator) -> None:
        """Four tenths of the players in disjoint pairs."""
        self._pairs = rng.permutation(self.n_players)[: self.n_players // 5 * 2].reshape(2, -1)
        self._pair_weight = PAIR * rng.normal(0.5, 1.0, self._pairs.shape[1])

    def _pair_share(self) -> FloatArray:
        share = np.zeros(self.n_players)
        share[self._pairs] = self._pair_weight / 2
        return share

    # Directions: ``_two`` is [2, R, n], ``_three`` is [3, R, n].

    def _plant_directions(self, rng: np.random.Generator, noise: float) -> None:
        n = self.n_players
        loading = rng.lognormal(0, 0.8, n)  # whoever matters to one direction matters to others
        directions = rng.normal(size=(5, N_DIRECTIONS, n)) * loading
        # A direction's sum over all players is a little of what random subsets differ by: some signal, most of it noise.
        directions += DRIFT * np.sqrt(np.mean(loading**2) / n) - directions.mean(axis=2, keepdims=True)
        self._two, self._three = directions[:2], directions[2:]
        self._columns = np.concatenate([self._own[None], self._two.reshape(-1, n), self._three.reshape(-1, n)]).T.copy()
        self._two_weight, self._three_weight = np.ones(N_DIRECTIONS), np.ones(N_DIRECTIONS)
        # Scale both kinds so that, over coalitions, a player's marginal has this standard deviation for each.
        spread = np.std(self._own + self._group_share() + self._pair_share())
        masks = rng.random((32, n)) < rng.random((32, 1))
        two, three = self._projections(masks.astype(np.float64) @ self._columns)
        slope_of_two = np.sqrt(np.mean(two.var(axis=0)) * 2 * N_DIRECTIONS * np.mean(self._two**2))
        products = np.stack([three[:, 1] * three[:, 2], three[:, 0] * three[:, 2], three[:, 0] * three[:, 1]])
        slope_of_three = np.sqrt(np.mean(products.var(axis=1)) * 3 * N_DIRECTIONS * np.mean(self._three**2))
        self._two_weight *= noise * spread / np.sqrt(2) / slope_of_two
        self._three_weight *= noise * spread / np.sqrt(2) / slope_of_three

    def _projections(self, linear: FloatArray) -> tuple[FloatArray, FloatArray]:
        """``[C, 2, R]`` and ``[C, 3, R]``."""
        middle = 1 + 2 * N_DIRECTIONS
        return linear[:, 1:middle].reshape(-1, 2, N_DIRECTIONS), linear[:, middle:].reshape(-1, 3, N_DIRECTIONS)

    def _direction_share(self) -> FloatArray:
        """Of (a.g)(b.g): (a_i B + b_i A) / 2, with A = sum a. Of (a.g)(b.g)(d.g): every triple of places that names the
        player, over the number of different players in it."""
        a, b = self._two
        total_a, total_b = a.sum(axis=1, keepdims=True), b.sum(axis=1, keepdims=True)
        share = self._two_weight @ (a * total_b + b * total_a) / 2
        a, b, d = self._three
        share += self._three_weight @ (a * b * d + _shared(a, b, d) + _shared(b, d, a) + _shared(d, a, b))
        return share

    def _assumed_range(self, rng: np.random.Generator) -> tuple[float, float]:
        """Twice what random coalitions span: an assumption, as a model's [-30, 0] is."""
        masks = rng.random((64, self.n_players)) < np.linspace(0, 1, 64)[:, None]
        masks[0], masks[-1] = False, True
        values = self._values(masks)
        return float(values.min() - np.ptp(values) / 2), float(values.max() + np.ptp(values) / 2)


def _shared(x: FloatArray, y: FloatArray, z: FloatArray) -> FloatArray:
    """Triples with the player at x's place and not at both others: ``[R, n]``. Halves where two players share it, thirds
    where three do; the triples with the player at x and y are counted here, those at x and z from the next rotation."""
    y_other, z_other = y.sum(axis=1, keepdims=True) - y, z.sum(axis=1, keepdims=True) - z
    both = (y * z).sum(axis=1, keepdims=True) - y * z
    return x * y * z_other / 2 + x * (both / 2 + (y_other * z_other - both) / 3)


def _cubic(g: Any, start: Any, end: Any) -> Any:
    """Hermite's cubic from (0, 0) to (1, 1) with these slopes, of numpy or torch."""
    return start * (g**3 - 2 * g**2 + g) + (3 * g**2 - 2 * g**3) + end * (g**3 - g**2)


def _cubic_slope(g: Any, start: Any, end: Any) -> Any:
    return start * (3 * g**2 - 4 * g + 1) + 6 * (g - g**2) + end * (3 * g**2 - 2 * g)


def _gate_slopes(rng: np.random.Generator, n_players: int) -> tuple[FloatArray, FloatArray]:
    """s'(0) and s'(1), each ``[n]``; s is the cubic with these slopes from (0, 0) to (1, 1)."""
    both = np.tanh(rng.normal(0, 0.35, n_players))  # steep or flat at both ends: the mean of the two is off
    apart = np.tanh(rng.normal(0, 1.5, n_players))  # steep at one end, flat at the other: averages out over complements
    return 1 + both + apart, 1 + both - apart
