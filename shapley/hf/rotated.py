"""A down-projection whose players are directions: its input is turned into another basis first."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


class Rotated(nn.Module):
    """``down(x)`` as ``inner(x R)``, with the rotation undone in the weights of ``inner``.

    With ``R`` orthogonal and ``W'`` = ``R^T W``, ``(x R) W' = x W``: the function is preserved, and the activation that enters
    ``inner`` is ``x`` in the coordinates of the basis, whose vectors are the columns of ``R``.

    Args:
        down: the down-projection, ``nn.Linear`` or ``Conv1D``; it stays as it is.
        vectors: ``[d_mlp, d_mlp]``.
    """

    def __init__(self, down: nn.Module, vectors: Tensor) -> None:
        super().__init__()
        self.inner = copy.deepcopy(down)
        weight = self.inner.get_parameter("weight")
        wide = vectors.to(weight.device, torch.float64)
        turned = weight.double() @ wide if isinstance(down, nn.Linear) else wide.T @ weight.double()
        self.inner.weight = nn.Parameter(turned.to(weight.dtype), requires_grad=False)
        # A parameter and no buffer, so that the model's fingerprint knows the basis.
        self.vectors = nn.Parameter(vectors.to(weight), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x @ self.vectors)
        return out
