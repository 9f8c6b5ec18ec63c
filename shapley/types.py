"""The names that options take, and the array aliases used in signatures."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Kind = Literal["zero", "mean", "noise", "negative-noise", "shift", "scale", "resample"]
Site = Literal["mlp_in", "mlp_hidden", "mlp_out"]
Unit = Literal["absolute", "sd"]
Distribution = Literal["gaussian", "uniform", "clipped_gaussian"]
Scope = Literal["token", "prompt", "batch"]
ValueName = Literal["logprob", "accuracy", "loss", "margin"]

BoolArray: TypeAlias = npt.NDArray[np.bool_]
IntArray: TypeAlias = npt.NDArray[np.int64]
FloatArray: TypeAlias = npt.NDArray[np.float64]
Float32Array: TypeAlias = npt.NDArray[np.float32]
Gates: TypeAlias = "BoolArray | Float32Array"  # of players: intact at 1, impaired at 0
