"""k-winners: of the units of a layer, few are active at a token; those that rarely are get help.

After Ahmad and Scheinkman 2019, "How can we be so dense? The benefits of using highly sparse representations" (section 3), and
nupic.torch's ``KWinners``:

1. boost         b = exp(s (a - d)) v      s the strength, a the target density, d the unit's duty cycle, v its value
2. choose        the k units of the largest b at a token
3. pass on       v (and not b) of the winners, 0 of the others
4. duty cycle    d <- (1 - w) d + w (share of the tokens at which the unit was active)

For transformers, unlike there:

- ``[batch, token, units]``, or any other leading shape. Padding neither wins nor counts.
- w = min(1, n / min(period, tokens seen)) for a batch of n tokens. There it is n / min(period, seen), which for n > period
  gives the old duty cycle a negative weight, and a duty cycle below zero.
- A factor makes a negative value smaller the more it is boosted. So values that may be negative (GELU) are boosted by a sum,
  b = v + s (a - d) r, with r the root mean square of the token's own values: no unit of lower duty cycle falls behind one of
  equal value, whatever the sign, and no token depends on another.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Rule = Literal["dense", "top-k", "batch-top-k"]


def top_k(values: Tensor, k: int) -> Tensor:
    """The ``k`` largest at every token.

    Args:
        values: ``[..., units]``.

    Returns:
        ``[..., units]`` bool; exactly ``k`` in a row, ties broken by ``torch.topk``.
    """
    chosen = values.topk(k, dim=-1).indices
    return torch.zeros_like(values, dtype=torch.bool).scatter_(-1, chosen, True)


def batch_top_k(values: Tensor, k: int, real: Tensor) -> Tensor:
    """The ``k`` times as many largest as there are real tokens, of all tokens together (Bussmann, Leask and Nanda 2024,
    "BatchTopK sparse autoencoders"): a token may have more winners than another.

    Args:
        values: ``[..., units]``.
        real: ``[...]`` bool, which tokens are no padding.

    Returns:
        ``[..., units]`` bool, none at padding.
    """
    candidates = values.masked_fill(~real[..., None], -torch.inf).flatten()
    return top_k(candidates, k * int(real.sum())).view_as(values)


def multiplied(values: Tensor, duty: Tensor, target: float, strength: float) -> Tensor:
    """exp(strength (target - duty)) values: for values that are not negative.

    Args:
        values: ``[..., units]``.
        duty: ``[units]``.
    """
    return values * (strength * (target - duty)).exp()


def shifted(values: Tensor, duty: Tensor, target: float, strength: float) -> Tensor:
    """values + strength (target - duty) x the root mean square of the token's values: for values of any sign.

    Args:
        values: ``[..., units]``.
        duty: ``[units]``.
    """
    return values + strength * (target - duty) * values.square().mean(dim=-1, keepdim=True).sqrt()


class Winners(nn.Module):
    """Passes on the winners' values, and keeps the duty cycles.

    In training mode k units win, and duty cycles move. In evaluation mode ``inference_factor`` x k win (1.5 in the paper), by
    the duty cycles as they are; batch top-k then lets pass what reaches a threshold, the moving average of the least winner's
    value, so that no token depends on another.

    Args:
        units: of the layer.
        rule: who wins; with ``dense`` all do.
        k: winners at a token.
        boost: strength; 0 for none.
        signed: whether values may be negative; they are then boosted by a sum.
        inference_factor: of k, in evaluation mode.
        period: tokens over which duty cycles are averaged.

    Attributes:
        duty_cycle: ``[units]``, in [0, 1]: at what share of the tokens the unit was active (won, and was not zero).
        seen: tokens in training mode so far.
        threshold: of batch top-k, on boosted values.
    """

    duty_cycle: Tensor
    seen: Tensor
    threshold: Tensor

    def __init__(
        self, units: int, rule: Rule, k: int, *, boost: float, signed: bool, inference_factor: float, period: int
    ) -> None:
        super().__init__()
        self.units, self.rule, self.k = units, rule, k
        self.boost, self.signed, self.inference_factor, self.period = boost, signed, inference_factor, period
        self.register_buffer("duty_cycle", torch.zeros(units))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, values: Tensor, real: Tensor | None = None) -> Tensor:
        """``[..., units]``: the winners' values, unboosted.

        Args:
            values: ``[..., units]``.
            real: ``[...]`` bool, which tokens are no padding; all by default.
        """
        if real is None:
            real = torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device)
        with torch.no_grad():  # the choice has no gradient; the values that are passed on have
            boosted = self._boosted(values)
            wins = self._choose(boosted, real) & real[..., None]
        out = torch.where(wins, values, 0)
        if self.training and real.any():
            self._learn(out.detach(), boosted, real)
        return out

    def _boosted(self, values: Tensor) -> Tensor:
        if not self.boost:
            return values
        raised = shifted if self.signed else multiplied
        return raised(values, self.duty_cycle, self.k / self.units, self.boost)

    def _choose(self, boosted: Tensor, real: Tensor) -> Tensor:
        if self.rule == "dense":
            return torch.ones_like(boosted, dtype=torch.bool)
        if self.rule == "batch-top-k":
            return batch_top_k(boosted, self.k, real) if self.training else boosted >= self.threshold
        k = self.k if self.training else min(self.units, round(self.k * self.inference_factor))
        return top_k(boosted, k)

    @torch.no_grad()
    def _learn(self, out: Tensor, boosted: Tensor, real: Tensor) -> None:
        """Move the duty cycles, and the threshold of batch top-k."""
        active = out[real] != 0  # [real tokens, units]
        n = len(active)
        self.seen += n
        weight = min(1.0, n / min(self.period, int(self.seen)))
        self.duty_cycle.lerp_(active.float().mean(dim=0), weight)
        if self.rule == "batch-top-k" and active.any():
            self.threshold.lerp_(boosted[real][active].min(), weight)
