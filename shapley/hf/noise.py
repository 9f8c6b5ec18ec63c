"""Noise that is a function of its key, not of when or where it is drawn.

The value added to neuron ``i`` of layer ``l`` at a token is a hash of (seed, prompt, draw, position, l, i). So two
coalitions of one draw see the same noise (common random numbers), and it does not matter how rows are batched, on
which side they are padded, whether a KV cache is used, or which subset of neurons is asked for. The integers are the
same on every device; the floating-point maps after them agree to a few units in the last place.

Hash: the 32-bit finalizer ``lowbias32`` of Wellons (2018), "Prospecting for hash functions".
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from shapley.types import Distribution

_LOWBIAS_1 = 0x7FEB352D
_LOWBIAS_2 = 0x846CA68B - (1 << 32)


def key_of(*parts: object) -> int:
    """A signed 32-bit key for any sequence of printable parts."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)


def _mix(x: Tensor) -> Tensor:
    """``lowbias32``, elementwise on int32 (multiplication wraps; the masks make the shifts logical)."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * _LOWBIAS_1
    x = x ^ ((x >> 15) & 0x1FFFF)
    x = x * _LOWBIAS_2
    return x ^ ((x >> 16) & 0xFFFF)


def token_keys(row_keys: Tensor, positions: Tensor) -> Tensor:
    """A key for every token: ``[rows]`` int32 row keys and ``[rows, tokens]`` positions -> ``[rows, tokens]`` int32."""
    return _mix(_mix(row_keys.to(torch.int32))[:, None] ^ _mix(positions.to(torch.int32) + 1))


def uniform(keys: Tensor, layer: int, neurons: Tensor) -> Tensor:
    """Uniform draws in (0, 1): ``[rows, tokens]`` token keys, ``[n]`` neuron indices -> ``[rows, tokens, n]`` float32."""
    columns = _mix(_mix(neurons.to(torch.int32)) ^ key_of("layer", layer))
    bits = _mix(keys[..., None] ^ columns)
    return ((bits >> 8) & 0xFFFFFF).to(torch.float32) * 2.0**-24 + 2.0**-25


def draw(distribution: Distribution, keys: Tensor, layer: int, neurons: Tensor) -> Tensor:
    """Noise of unit strength, ``[rows, tokens, n]`` float32.

    ``gaussian`` has mean 0 and variance 1; ``uniform`` lies in [-1, 1]; ``clipped_gaussian`` is the gaussian clipped
    to [-1, 1].
    """
    centred = 2.0 * uniform(keys, layer, neurons) - 1.0
    if distribution == "uniform":
        return centred
    gaussian = math.sqrt(2.0) * torch.erfinv(centred)
    return gaussian if distribution == "gaussian" else gaussian.clamp(-1.0, 1.0)


def choose(keys: Tensor, layer_key: int, n_choices: int) -> Tensor:
    """One of ``n_choices`` for every token: ``[rows, tokens]`` int64."""
    bits = _mix(_mix(keys) ^ layer_key)
    return ((bits >> 8) & 0xFFFFFF).to(torch.int64) * n_choices >> 24
