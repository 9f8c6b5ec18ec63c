"""How often each unit of a layer is active."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import entr

from shapley.sparse.frozen import FrozenText
from shapley.sparse.insert import Place, inserted
from shapley.sparse.layer import SparseLayer
from shapley.types import FloatArray


def frequencies(layer: SparseLayer, place: Place, text: FrozenText) -> FloatArray:
    """``[units]``, at what share of the text's tokens each is active, in evaluation mode."""
    layer.eval()
    counts = torch.zeros(layer.spec.units, dtype=torch.int64)
    seen: list[torch.Tensor] = []
    handle = layer.winners.register_forward_hook(lambda module, args, out: seen.append(out.detach() != 0))
    try:
        with inserted(text.lm, layer, place):
            for real in text.pass_through():
                active = seen.pop().cpu().view(*real.shape, -1)  # padding never wins
                counts += active.sum(dim=(0, 1))
    finally:
        handle.remove()
    shares: FloatArray = counts.double().numpy() / int(text.real.sum())
    return shares


def entropy(shares: ArrayLike) -> float:
    """The mean binary entropy of the units' duty cycles, over that of units which all are active as often: 1 where use is even,
    near 0 where a few units do all the work. The entropy of Ahmad and Scheinkman 2019, over the most that it can be at this
    density. NaN where no unit is ever active, or all always are.

    Args:
        shares: ``[units]`` in [0, 1].
    """
    shares = np.asarray(shares, dtype=np.float64)
    most = float(_binary(shares.mean()))
    return float(_binary(shares).mean()) / most if most > 0 else float("nan")


def dead(shares: ArrayLike) -> float:
    """The share of units that are never active.

    Args:
        shares: ``[units]``.
    """
    return float((np.asarray(shares) == 0).mean())


def _binary(p: ArrayLike) -> FloatArray:
    p = np.asarray(p, dtype=np.float64)
    bits: FloatArray = entr(p) + entr(1 - p)
    return bits
