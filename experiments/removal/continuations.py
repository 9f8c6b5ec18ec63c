"""How an impaired model goes on from the beginnings of comments."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shapley.hf.hooks import impair
from shapley.hf.load import LanguageModel
from shapley.impairment import Impairment

NEW_TOKENS = 20


def continuations(
    lm: LanguageModel, beginnings: Sequence[str], neurons: Sequence[tuple[int, int]], seed: int
) -> list[str]:
    """A sampled continuation of each, with ``neurons`` zeroed; the same draws for every cluster."""
    texts: list[str] = []
    # One at a time: the draws of one must not depend on which others share its batch.
    for i, beginning in enumerate(beginnings):
        ids = lm.tokenizer(beginning, return_tensors="pt")["input_ids"].to(lm.device)
        torch.manual_seed(seed * 1_000_003 + i)
        with torch.no_grad(), impair(lm, Impairment("zero"), tuple(neurons)):
            out = lm.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                top_k=0,
                max_new_tokens=NEW_TOKENS,
                min_new_tokens=NEW_TOKENS,
                pad_token_id=lm.pad_id,
            )
        texts.append(lm.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True))
    return texts
