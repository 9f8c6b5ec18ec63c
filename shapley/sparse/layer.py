"""A sparse MLP layer: in -> units -> few winners -> out.

Sizes are compared in parameters that are not held at zero: fixed sparse weights leave room for more units than a dense layer of
as many parameters has (``units_for``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, relu, rms_norm

from shapley.errors import ShapleyError, unknown_name
from shapley.keyed import keyed_rng
from shapley.sparse.winners import Rule, Winners


@dataclass(frozen=True)
class LayerSpec:
    """What a layer is, apart from what it learned.

    Attributes:
        width: of the residual stream, which it reads and writes.
        units: of the hidden activation.
        rule: who wins (``shapley.sparse.winners``).
        activation: of the units; GELU's may be negative, and are boosted by a sum.
        density: winners over units, in training.
        boost: strength; 0 for none.
        inference_factor: of the winners, in evaluation mode.
        weight_density: share of a unit's input weights that are not fixed at zero.
        period: tokens over which duty cycles are averaged.
        seed: of the initial weights, and of which are fixed at zero.

    Raises:
        ShapleyError: a value that makes no layer.
    """

    width: int
    units: int
    rule: Rule = "top-k"
    activation: Literal["relu", "gelu"] = "relu"
    density: float = 0.05
    boost: float = 0.0
    inference_factor: float = 1.0
    weight_density: float = 1.0
    period: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise unknown_name("rule of winners", self.rule, get_args(Rule))
        if self.activation not in ("relu", "gelu"):
            raise unknown_name("activation", self.activation, ("relu", "gelu"))
        for name in ("density", "weight_density"):
            if not 0 < getattr(self, name) <= 1:
                raise ShapleyError(f"{name} of a sparse layer is {getattr(self, name):g}: give one above 0, at most 1")
        if self.units < 1 or self.period < 1:
            raise ShapleyError(f"a sparse layer has {self.units} units and a period of {self.period}: give at least 1")
        if self.boost < 0 or self.inference_factor < 1:
            raise ShapleyError(
                f"boost is {self.boost:g} and inference_factor {self.inference_factor:g}: give at least 0 and 1"
            )

    @property
    def k(self) -> int:
        """Winners at a token in training, at least one; all units of a dense layer."""
        return self.units if self.rule == "dense" else max(1, round(self.density * self.units))

    @property
    def fan_in(self) -> int:
        """Input weights of a unit that are not fixed at zero."""
        return _fan_in(self.width, self.weight_density)


def units_for(parameters: int, width: int, weight_density: float) -> int:
    """How many units a layer has room for: each has its input weights that are not fixed at zero, a bias, and ``width`` output
    weights; the output has ``width`` biases.

    Raises:
        ShapleyError: for not even one.
    """
    units = (parameters - width) // (_fan_in(width, weight_density) + 1 + width)
    if units < 1:
        raise ShapleyError(f"{parameters} parameters are too few for a unit between {width} inputs and outputs")
    return units


def _fan_in(width: int, weight_density: float) -> int:
    return max(1, round(weight_density * width))


class FixedSparseLinear(nn.Module):
    """A linear map of which every unit keeps ``fan_in`` inputs, drawn once; the other weights are zero, and stay so.

    They are masked in the forward pass, which keeps their gradient at zero too: no optimiser brings them back.
    """

    kept: Tensor

    def __init__(self, spec: LayerSpec) -> None:
        super().__init__()
        rng = keyed_rng(spec.seed, "sparse layer")
        kept = rng.random((spec.units, spec.width)).argsort(axis=1) < spec.fan_in
        weight = np.where(kept, rng.normal(0, spec.fan_in**-0.5, kept.shape), 0)
        self.weight = nn.Parameter(torch.from_numpy(weight).float())
        self.bias = nn.Parameter(torch.zeros(spec.units))
        self.register_buffer("kept", torch.from_numpy(kept))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., width]`` to ``[..., units]``."""
        return linear(x, self.weight * self.kept, self.bias)


class SparseLayer(nn.Module):
    """Reads a vector of the residual stream at every token, and returns what is to be added to it.

    The input is divided by its root mean square, and the output, over the square root of the number of winners, multiplied by
    ``gain``: so weights are of like sizes, and one rate of learning fits, whatever the model and the density. The output begins
    at zero. All of it is in float32, whatever the model's precision: in half of it values tie.

    The input of ``down`` is the units' activation, as in the model's own MLPs.

    Args:
        spec: what it is.
        gain: the size of what it writes, such as the root mean square of what the model's own MLP does.
    """

    gain: Tensor

    def __init__(self, spec: LayerSpec, gain: float = 1.0) -> None:
        super().__init__()
        self.spec = spec
        self.up = FixedSparseLinear(spec)
        self.winners = Winners(
            spec.units,
            spec.rule,
            spec.k,
            boost=spec.boost,
            signed=spec.activation == "gelu",
            inference_factor=spec.inference_factor,
            period=spec.period,
        )
        self.down = nn.Linear(spec.units, spec.width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)
        self.register_buffer("gain", torch.tensor(float(gain)))

    def forward(self, x: Tensor, real: Tensor | None = None) -> Tensor:
        """``[..., width]``, in the dtype of ``x``.

        Args:
            x: ``[..., width]``.
            real: ``[...]`` bool, which tokens are no padding; all by default.
        """
        with torch.autocast(x.device.type, enabled=False):
            normed = rms_norm(x.float(), (self.spec.width,), eps=1e-6)
            values = relu(self.up(normed)) if self.spec.activation == "relu" else gelu(self.up(normed))
            out: Tensor = self.down(self.winners(values, real)) * self._scale
        return out.to(x.dtype)

    def written(self) -> Tensor:
        """``[units, width]``: what each unit adds by one unit of its activation."""
        return self.down.weight.T * self._scale

    @property
    def _scale(self) -> Tensor:
        return self.gain * self.spec.k**-0.5

    @property
    def parameter_count(self) -> int:
        """Of parameters that are not held at zero."""
        return int(self.up.kept.sum()) + self.up.bias.numel() + self.down.weight.numel() + self.down.bias.numel()
