"""How far simple rules predict the units of a layer (``shapley.look.rules``): of some of them, drawn from those that are ever
active, over the text that was trained on. All arms are asked in the same way, and so are the model's own neurons."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from shapley.keyed import keyed_rng
from shapley.look.rules import rules
from shapley.look.seen import Passages, Seen
from shapley.sparse.frozen import FrozenText
from shapley.sparse.insert import Place, inserted
from shapley.sparse.layer import SparseLayer
from shapley.types import Float32Array

UNITS = 64
_SEED = 0


def of_layer(layer: SparseLayer, place: Place, text: FrozenText, topics: Sequence[str]) -> list[float]:
    """``[units]`` shares of held-out variance, of the winners' values; ``topics`` of the text's documents."""
    layer.eval()
    with inserted(text.lm, layer, place), _kept(layer.winners.register_forward_hook, 1) as seen:
        return _explained(text, topics, seen)


def of_neurons(text: FrozenText, topics: Sequence[str]) -> list[float]:
    """The same of the last block's own neurons."""
    with _kept(text.lm.sites.blocks[-1].down.register_forward_pre_hook, 0) as seen:
        return _explained(text, topics, seen)


@contextmanager
def _kept(register: Callable[..., torch.utils.hooks.RemovableHandle], of: int) -> Iterator[list[Tensor]]:
    """What a hook sees: of a pre-hook the input, of a forward hook the output."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, *seen_by_hook: object) -> None:
        value = seen_by_hook[of]
        tensor = value[0] if isinstance(value, tuple) else value
        assert isinstance(tensor, Tensor)
        seen.append(tensor.detach())

    handle = register(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _explained(text: FrozenText, topics: Sequence[str], seen: list[Tensor]) -> list[float]:
    active = sum((seen.pop().view(*real.shape, -1)[real] != 0).sum(dim=0).cpu() for real in text.pass_through())
    assert isinstance(active, Tensor)
    alive = active.nonzero()[:, 0].numpy()
    chosen = np.sort(keyed_rng(_SEED, "simplicity").permutation(alive)[:UNITS])
    # Once more, as all units at all tokens of a large text would be gigabytes.
    rows = (seen.pop().view(*real.shape, -1)[real][:, chosen].float().cpu() for real in text.pass_through())
    activation: Float32Array = torch.cat(list(rows)).numpy()
    lengths = text.real.sum(dim=1).numpy()
    activation[np.concatenate([[0], np.cumsum(lengths)[:-1]])] = np.nan  # as everywhere: the first token is left out
    ids = tuple(tuple(own[:n].tolist()) for own, n in zip(text.ids, lengths, strict=True))
    passages = Passages(ids, tuple(topics))
    tokens = text.ids[text.real].numpy()
    found = rules(Seen(passages, tokens, np.repeat(np.arange(len(ids)), lengths), activation), _SEED)
    return [round(rule.explained.estimate, 4) for rule in found if np.isfinite(rule.explained.estimate)]
