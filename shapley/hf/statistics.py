"""Activations over a reference text: means and standard deviations for ablations and strengths, donors for resampling.

The first position of every sequence is left out: it carries massive activations in a few neurons, and a mean that
includes it is a bad baseline (docs/design.md).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from shapley.files import cache_directory
from shapley.hf.hooks import observe
from shapley.hf.spec import SiteStatistics
from shapley.hf.tensors import save_tensors
from shapley.types import Site

if TYPE_CHECKING:
    from shapley.hf.load import LanguageModel

MAX_TOKENS = 64
N_DONORS = 128
BATCH = 8


def reference_statistics(lm: LanguageModel, texts: Sequence[str], site: Site) -> SiteStatistics:
    """Statistics of a site over ``texts`` (each cut to 64 tokens), from the cache where they are there."""
    digest = hashlib.sha256("\x1e".join((lm.fingerprint, site, *texts)).encode()).hexdigest()[:24]
    path = cache_directory("statistics") / f"{digest}.safetensors"
    if path.exists():
        return SiteStatistics(**_to(lm, load_file(path)), fingerprint=digest)
    tensors = _collect(lm, texts, site)
    save_tensors(tensors, path)
    return SiteStatistics(**_to(lm, tensors), fingerprint=digest)


def _to(lm: LanguageModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to(lm.device) for name, tensor in tensors.items()}


def _collect(lm: LanguageModel, texts: Sequence[str], site: Site) -> dict[str, Tensor]:
    batches = reference_batches(lm.tokenizer, texts, lm.pad_id)
    stride = max(1, sum(int(valid.sum()) - len(valid) for _, valid in batches) // N_DONORS)
    n_layers, width = lm.sites.n_layers, lm.sites.width(site)
    count = 0
    mean = torch.zeros(n_layers, width, dtype=torch.float64)
    square = torch.zeros_like(mean)
    donors: list[Tensor] = []
    for tokens, valid in batches:
        with torch.no_grad(), observe(lm.sites, site) as seen:
            lm.model(input_ids=tokens.to(lm.device), attention_mask=valid.long().to(lm.device))
        keep = valid.clone()
        keep[:, 0] = False
        rows = torch.stack(
            [x.view(*keep.shape, -1)[keep.to(x.device)].cpu() for x in seen]
        )  # [n_layers, kept tokens, width]
        wide = rows.double()
        mean += wide.sum(dim=1)
        square += wide.square().sum(dim=1)
        first = -count % stride
        donors.append(rows[:, first::stride].float())
        count += rows.shape[1]
    mean /= count
    std = (square / count - mean.square()).clamp(min=0).sqrt()
    bank = torch.cat(donors, dim=1)[:, :N_DONORS].contiguous()
    return {"mean": mean.float(), "std": std.float(), "donors": bank}


def reference_batches(tokenizer: Any, texts: Sequence[str], pad_id: int) -> list[tuple[Tensor, Tensor]]:
    """Texts, each cut to 64 tokens, as batches of ids and masks of like lengths; those of one token are left out."""
    ids = [tokenizer(text)["input_ids"][:MAX_TOKENS] for text in texts]
    ordered = sorted((tokens for tokens in ids if len(tokens) > 1), key=len)
    return [pad_right(ordered[start : start + BATCH], pad_id) for start in range(0, len(ordered), BATCH)]


def pad_right(ids: Iterable[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token lists -> ids ``[rows, tokens]`` int64 and which of them are real, bool. Right padding is safe in every
    family; left padding without position ids is not."""
    rows = [torch.tensor(tokens, dtype=torch.int64) for tokens in ids]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad_id)
    lengths = torch.tensor([len(row) for row in rows])
    return padded, torch.arange(padded.shape[1])[None] < lengths[:, None]
