"""The next token, from logits: greedy, or drawn at a temperature from the smallest set of tokens with probability top_p."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass
class Sampler:
    """Of one sequence: its draws depend on its seed and on nothing else in the batch.

    Args:
        temperature: 0 is greedy.
        top_p: in (0, 1].
        seed: of the draws; by default the system's randomness.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: tuple[int, ...] | None = None
    _rng: np.random.Generator = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def __call__(self, logprobs: Tensor) -> int:
        """A token of ``[vocabulary]`` log-probabilities."""
        if self.temperature == 0:
            return int(logprobs.argmax())
        scaled = torch.log_softmax(logprobs.double() / self.temperature, dim=0)
        probability, token = scaled.exp().cpu().sort(descending=True, stable=True)
        cumulative = probability.cumsum(0).numpy()
        kept = int(np.searchsorted(cumulative, self.top_p, side="left")) + 1  # the first token that reaches it is in
        kept = min(kept, len(cumulative))
        place = int(np.searchsorted(cumulative[:kept], self._rng.random() * cumulative[kept - 1], side="right"))
        return int(token[min(place, kept - 1)])
