"""Checks that hooks do on a given model what they promise (docs/design.md), on a few short texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from shapley.corpus import reference_texts
from shapley.hf.hooks import Rows, impair, only_answer_logits
from shapley.hf.load import LanguageModel
from shapley.hf.sites import write_weights
from shapley.hf.statistics import pad_right
from shapley.impairment import Impairment
from shapley.types import Site

_TOKENS = 12
_RELATIVE = 1e-4  # of the logits' spread; float32 rounding through a deep model stays well below


@dataclass(frozen=True)
class Check:
    """One invariant: what was found, and whether it holds."""

    name: str
    deviation: float
    allowed: float

    @property
    def holds(self) -> bool:
        return self.deviation <= self.allowed


def check_model(lm: LanguageModel) -> Iterator[Check]:
    """Run the invariants, one after another."""
    texts = reference_texts()
    ids = [lm.tokenizer(text)["input_ids"][: _TOKENS - 4 * i] for i, text in enumerate(texts[:2])]
    padded, valid = (x.to(lm.device) for x in pad_right(ids, lm.pad_id))

    def logits(rows: slice = slice(None)) -> Tensor:
        with torch.no_grad():
            mask = valid[rows].long()
            return lm.model(input_ids=padded[rows], attention_mask=mask, use_cache=False).logits.float()

    untouched = logits()
    spread = float(untouched.std())
    for nothing in (Impairment(kind, 0.0, site) for site in get_args(Site) for kind in ("noise", "scale")):
        with impair(lm, nothing, rows=Rows(strength=[0.0])):
            gap = _gap(logits(), untouched)
        yield Check(f"{nothing.kind} of strength zero at {nothing.site} is bit-equal", gap, 0.0)
    yield Check("masks per row equal weight edits", _mask_against_edit(lm, logits), _RELATIVE * spread)
    yield Check("padded equals single", _padded_against_single(lm, ids, logits), _RELATIVE * spread)
    last = valid.sum(1, keepdim=True) - 1
    with only_answer_logits(lm.model, last):
        chosen = logits()
    whole = untouched.gather(1, last[..., None].expand(-1, -1, untouched.shape[-1]))
    yield Check("answer logits equal the whole model's", _gap(chosen, whole), _RELATIVE * spread)
    yield Check("hooks are gone afterwards", _gap(logits(), untouched), 0.0)


def _mask_against_edit(lm: LanguageModel, logits: Callable[..., Tensor]) -> float:
    """Half of all neurons out, another half in each row, against the rows of the down-projections set to zero."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, lm.sites.d_mlp)
    intact = [(torch.rand(shape, generator=generator) < 0.5).float().to(lm.device) for _ in lm.sites.blocks]
    with impair(lm, Impairment("zero"), rows=Rows(intact=intact)):
        masked = logits()
    worst = 0.0
    for row in range(2):
        saved = [write_weights(block).clone() for block in lm.sites.blocks]
        try:
            for block, mask in zip(lm.sites.blocks, intact, strict=True):
                write_weights(block).mul_(mask[row][:, None].to(saved[0].dtype))
            worst = max(worst, _gap(masked[row], logits()[row]))
        finally:
            for block, weight in zip(lm.sites.blocks, saved, strict=True):
                write_weights(block).copy_(weight)
    return worst


def _padded_against_single(lm: LanguageModel, ids: list[list[int]], logits: Callable[..., Tensor]) -> float:
    """The shorter row of the padded batch against the same text alone, under noise."""
    impairment = Impairment("noise", 0.1)
    short = ids[1]
    with impair(lm, impairment, rows=Rows(prompt_keys=["one", "two"])):
        together = logits()[1, : len(short)]
    with torch.no_grad(), impair(lm, impairment, rows=Rows(prompt_keys=["two"])):
        alone = lm.model(input_ids=torch.tensor([short], device=lm.device), use_cache=False).logits[0].float()
    return _gap(together, alone)


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())
