"""From the logits of the answer's tokens to the value of a row: how well the model predicts the keyword.

All four grow with how well the model does, so a helpful neuron has a positive score under each.

========== ===========================================================================
logprob    mean over the answer's tokens of their log-probability (the default)
loss       minus the cross-entropy of the whole answer: the sum of its log-probabilities
accuracy   1 if greedy decoding gives every token of the answer, else 0
margin     mean over tokens of the answer's logit minus the best other logit
========== ===========================================================================

Accuracy has no gradient; ``soft_accuracy`` stands in for it where one is needed: the logistic function of the smallest
margin among the answer's tokens, above 1/2 just where accuracy is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

import torch
from torch import Tensor

from shapley.types import ValueName

VALUES: tuple[str, ...] = get_args(ValueName)
DIFFERENTIABLE = frozenset({"logprob", "loss", "margin"})
SURROGATES = {"accuracy": "soft_accuracy"}  # what gradients are taken of, where the value has none


def row_values(names: Sequence[str], logits: Tensor, answers: Tensor, present: Tensor) -> Tensor:
    """Values of a batch.

    Args:
        names: which values, or surrogates of values.
        logits: ``[rows, answer tokens, vocabulary]``, at the positions that predict the answer.
        answers: ``[rows, answer tokens]`` int64.
        present: ``[rows, answer tokens]`` bool, which of them are real.

    Returns:
        ``[len(names), rows]`` float32.
    """
    logits = logits.float()
    target = logits.gather(2, answers[..., None]).squeeze(2)
    n_tokens = present.sum(1)

    def summed(per_token: Tensor) -> Tensor:
        return torch.where(present, per_token, 0.0).sum(1)

    def value(name: str) -> Tensor:
        if name in ("logprob", "loss"):
            total = summed(target - logits.logsumexp(2))
            return total if name == "loss" else total / n_tokens
        if name == "accuracy":
            return ((logits.argmax(2) == answers) | ~present).all(1).float()
        others = logits.scatter(2, answers[..., None], -torch.inf).amax(2)
        margin = target - others
        if name == "soft_accuracy":
            return margin.masked_fill(~present, torch.inf).amin(1).sigmoid()
        return summed(margin) / n_tokens

    return torch.stack([value(name) for name in names])
