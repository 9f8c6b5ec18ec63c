"""The neuron game: coalitions of intact neurons in, values and gradients out.

This is the one seam between torch and the estimators. ``v(S)`` is the mean over a topic's prompts of the value of the
model's answer when the players outside ``S`` are impaired (Ghorbani and Zou 2020, section 3, with an impairment in
place of their removal).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from shapley.errors import ShapleyError, unknown_name
from shapley.facts import to_grid
from shapley.hf.load import LanguageModel, fast_dtype
from shapley.hf.scoring import RowPlan, RowScorer
from shapley.impairment import Impairment
from shapley.prompts import TopicPrompts
from shapley.types import BoolArray, Float32Array, FloatArray, Gates, IntArray, ValueName
from shapley.values import DIFFERENTIABLE, SURROGATES, VALUES

Number = TypeVar("Number", bound=np.number)
_RANGES: dict[str, tuple[float, float]] = {
    "logprob": (-30.0, 0.0),
    "loss": (-120.0, 0.0),
    "accuracy": (0.0, 1.0),
    "margin": (-100.0, 100.0),
}


class NeuronGame:
    """One topic's game on one model.

    Players are the columns of the impairment's site in ``layers``, layer by layer: player ``i`` is column
    ``i % width`` of layer ``layers[i // width]``.

    Args:
        lm: the model.
        prompts: the topic's prompts.
        impairment: how a player is taken out.
        value: ``logprob``, ``loss``, ``accuracy`` or ``margin``.
        layers: whose neurons play; all by default.
        dtype: ``auto`` computes values in float32 (differences of neurons cancel) and gradients in bfloat16 where the
            hardware has it (they do not); or ``float32``, ``bfloat16``, ``float16`` for both.
        memory: bytes for activations.

    Attributes:
        n_players, n_prompts: their numbers.
        value_range: what values are taken to lie in. For log-probabilities, losses and margins it is an assumption
            (no worse than -30 nats, 100 logits), which estimators check on what they see.
        stochastic: whether values depend on a noise draw.
        forward_rows: rows run so far, a backward counted as two.
    """

    def __init__(
        self,
        lm: LanguageModel,
        prompts: TopicPrompts,
        impairment: Impairment | None = None,
        *,
        value: ValueName = "logprob",
        layers: Sequence[int] | None = None,
        dtype: str = "auto",
        memory: int | None = None,
    ) -> None:
        if value not in VALUES:
            raise unknown_name("value", value, VALUES)
        self.lm = lm
        self.topic = prompts
        self.impairment = impairment or Impairment()
        self.value: ValueName = value
        self.layers = _check_layers(layers, lm.sites.n_layers)
        self.value_dtype, self.gradient_dtype = game_dtypes(dtype, lm.device)
        self._scorer = RowScorer(lm, prompts.prompts, self.impairment, layers=self.layers, memory=memory)
        self.n_prompts = len(prompts)
        self.n_players = len(self.layers) * self._scorer.width
        self.stochastic = self.impairment.is_random
        self.value_range = _RANGES[value]

    @property
    def forward_rows(self) -> int:
        return self._scorer.forward_rows

    @property
    def memory(self) -> int:
        """Bytes for activations; batches follow from it."""
        return self._scorer.memory

    @property
    def differentiable(self) -> bool:
        """Whether ``gradients`` are of the value itself."""
        return self.value in DIFFERENTIABLE

    @property
    def shape(self) -> tuple[int, int]:
        """``[n_layers, width]`` of the whole model's site, the shape scores are stored in."""
        return self.lm.sites.n_layers, self._scorer.width

    def to_grid(self, per_player: npt.NDArray[Number], missing: float = np.nan) -> npt.NDArray[Number]:
        """``[n_players]`` -> ``[n_layers, width]``, ``missing`` in layers that do not play."""
        return to_grid(per_player, self.shape, self.layers, missing)

    def values(
        self, coalitions: BoolArray, *, prompts: IntArray | None = None, draws: IntArray | None = None
    ) -> FloatArray:
        """``[C, n_players]`` -> ``[C]`` values.

        Args:
            coalitions: true where a player is intact.
            prompts: ``[C]``, one prompt for each coalition; by default each value is the mean over all prompts.
            draws: ``[C]``, the noise draw of each coalition; 0 by default.
        """
        plan = self._plan(len(coalitions), prompts, draws)
        values = self._scorer.values([self.value], plan, coalitions=coalitions, dtype=self.value_dtype)[0]
        return values if prompts is not None else values.reshape(len(coalitions), -1).mean(axis=1)

    def marginals(
        self,
        coalitions: BoolArray,
        players: IntArray,
        *,
        prompts: IntArray | None = None,
        draws: IntArray | None = None,
    ) -> FloatArray:
        """``[C, n_players]`` and ``[m]`` players -> ``[C, m]`` marginal contributions: the value with the player intact
        minus that with it impaired, all others as in the coalition. Other arguments as ``values``."""
        plan = self._plan(len(coalitions), prompts, draws)
        rows = self._scorer.marginals(self.value, plan, coalitions, players, dtype=self.value_dtype)
        return rows if prompts is not None else rows.reshape(len(coalitions), -1, len(players)).mean(axis=1)

    def gradients(
        self, coalitions: Gates, *, prompts: IntArray | None = None, draws: IntArray | None = None
    ) -> tuple[FloatArray, Float32Array]:
        """``[C, n_players]`` -> ``[C]`` values and ``[C, n_players]`` derivatives of the value with respect to the
        gate between each player's impaired (0) and intact (1) activation, at the coalition, or at gates in between
        (float32). Arguments as ``values``.
        Where the value has no gradient (accuracy), both are of its smooth surrogate (``shapley.values``).
        """
        name = SURROGATES.get(self.value, self.value)
        plan = self._plan(len(coalitions), prompts, draws)
        if prompts is not None:
            return self._scorer.gradients(name, plan, coalitions, dtype=self.gradient_dtype)
        values = np.empty(len(coalitions))
        gradients = np.empty((len(coalitions), self.n_players), dtype=np.float32)
        for c in range(len(coalitions)):  # one coalition at a time: the rows' gradients are as large as the players
            own = plan.part(slice(c * self.n_prompts, (c + 1) * self.n_prompts))
            value, gradient = self._scorer.gradients(name, own, coalitions, dtype=self.gradient_dtype)
            values[c], gradients[c] = value.mean(), gradient.mean(axis=0)
        return values, gradients

    def _plan(self, n_coalitions: int, prompts: IntArray | None, draws: IntArray | None) -> RowPlan:
        coalitions = np.arange(n_coalitions)
        if prompts is None:
            coalitions = np.repeat(coalitions, self.n_prompts)
            prompts = np.tile(np.arange(self.n_prompts), n_coalitions)
        return RowPlan(prompts, coalitions, None if draws is None else draws[coalitions])


def game_dtypes(name: str, device: torch.device) -> tuple[torch.dtype, torch.dtype]:
    """The precision of values and of gradients for a ``dtype`` option."""
    if name == "auto":
        return torch.float32, fast_dtype(device)
    if name not in ("float32", "bfloat16", "float16"):
        raise unknown_name("dtype", name, ("auto", "float32", "bfloat16", "float16"))
    dtype: torch.dtype = getattr(torch, name)
    return dtype, dtype


def _check_layers(layers: Sequence[int] | None, n_layers: int) -> tuple[int, ...]:
    chosen = tuple(range(n_layers)) if layers is None else tuple(sorted(set(layers)))
    if not chosen or chosen[0] < 0 or chosen[-1] >= n_layers:
        raise ShapleyError(f"layers {list(chosen)} are not all in the model, which has layers 0 to {n_layers - 1}")
    return chosen
