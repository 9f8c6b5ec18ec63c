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
    return _mix_in_place(x.clone())


def _mix_in_place(x: Tensor) -> Tensor:
    shifted = torch.empty_like(x)  # one buffer for all steps: fresh pages would cost more than the arithmetic

    def fold(bits: int) -> None:
        torch.bitwise_right_shift(x, bits, out=shifted)
        x.bitwise_xor_(shifted.bitwise_and_((1 << (32 - bits)) - 1))

    fold(16)
    x.mul_(_LOWBIAS_1)
    fold(15)
    x.mul_(_LOWBIAS_2)
    fold(16)
    return x


def token_keys(row_keys: Tensor, positions: Tensor) -> Tensor:
    """A key for every token: ``[rows]`` int32 row keys and ``[rows, tokens]`` positions -> ``[rows, tokens]`` int32."""
    return _mix(_mix(row_keys.to(torch.int32))[:, None] ^ _mix(positions.to(torch.int32) + 1))


def centred(keys: Tensor, layer: int, neurons: Tensor) -> Tensor:
    """Uniform draws in (-1, 1): ``[rows, tokens]`` token keys, ``[n]`` neuron indices -> ``[rows, tokens, n]`` float32.

    The value is an odd multiple of 2^-24, so the arithmetic is exact and the draws are symmetric about zero.
    """
    columns = _mix(_mix(neurons.to(torch.int32)) ^ key_of("layer", layer))
    bits = _mix_in_place(keys[..., None] ^ columns)
    return bits.bitwise_right_shift_(8).to(torch.float32).mul_(2.0**-23).add_(2.0**-24)


def draw(distribution: Distribution, keys: Tensor, layer: int, neurons: Tensor) -> Tensor:
    """Noise of unit strength, ``[rows, tokens, n]`` float32.

    ``gaussian`` has mean 0 and variance 1; ``uniform`` lies in [-1, 1]; ``clipped_gaussian`` is the gaussian clipped
    to [-1, 1].
    """
    uniform = centred(keys, layer, neurons)
    if distribution == "uniform":
        return uniform
    gaussian = uniform.erfinv_().mul_(math.sqrt(2.0))
    return gaussian if distribution == "gaussian" else gaussian.clamp_(-1.0, 1.0)


def choose(keys: Tensor, layer_key: int, n_choices: int) -> Tensor:
    """One of ``n_choices`` for every token: ``[rows, tokens]`` int64."""
    bits = _mix(_mix(keys) ^ layer_key)
    return ((bits >> 8) & 0xFFFFFF).to(torch.int64) * n_choices >> 24
