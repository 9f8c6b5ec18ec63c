"""Run a model from block k on, with the hidden states that enter it given.

Coalitions that differ at layer k and above share everything below it. The blocks below keep their place in the model's
own loop and return the given states instead of computing; so masks, positions and everything else that the model
prepares are its own, and the result is exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from shapley.hf.sites import ModelSites


@dataclass
class Entries:
    """What entered the blocks in a forward pass.

    Attributes:
        hidden: by layer, ``[rows, tokens, d_model]``.
        extras: by block, those without players first, how many values it returns beside its hidden state; ``None`` where it
            returns a bare tensor (it depends on the family and on the transformers version).
    """

    hidden: dict[int, Tensor] = field(default_factory=dict)
    extras: dict[int, int | None] = field(default_factory=dict)


@contextmanager
def record_entries(sites: ModelSites, layers: frozenset[int]) -> Iterator[Entries]:
    """Keep the hidden states that enter the blocks of ``layers`` during one forward pass."""
    entries = Entries()

    def keep_entry(layer: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            entries.hidden[layer] = (args[0] if args else kwargs["hidden_states"]).detach()

        return hook

    def keep_form(index: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            entries.extras[index] = len(output) - 1 if isinstance(output, tuple) else None

        return hook

    with ExitStack() as stack:
        for index, module in enumerate(_all_blocks(sites)):
            stack.callback(module.register_forward_hook(keep_form(index)).remove)
        for layer, block in enumerate(sites.blocks):
            if layer in layers:
                handle = block.block.register_forward_pre_hook(keep_entry(layer), with_kwargs=True)
                stack.callback(handle.remove)
        yield entries


@contextmanager
def start_at(sites: ModelSites, layer: int, entries: Entries, rows: Tensor, length: int) -> Iterator[None]:
    """Run from block ``layer`` on, row ``r`` of the batch from the recorded row ``rows[r]``. The batch is ``length``
    tokens long, padded on the right; what was recorded beyond them was padding, which no token attends to."""
    below = _all_blocks(sites)[: len(sites.below) + layer]
    hidden = entries.hidden[layer][:, :length]
    hidden = hidden.index_select(0, rows.to(hidden.device))
    before = [block.__dict__.get("forward") for block in below]  # accelerate's, where a model is spread over devices
    try:
        for index, block in enumerate(below):
            extras = entries.extras[index]
            output = hidden if extras is None else (hidden, *[None] * extras)
            block.forward = lambda *args, _output=output, **kwargs: _output
        yield
    finally:
        for block, forward in zip(below, before, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.forward = forward


def _all_blocks(sites: ModelSites) -> list[nn.Module]:
    return [*sites.below, *(block.block for block in sites.blocks)]
