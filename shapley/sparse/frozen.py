"""A text through the frozen part of a model, once: what enters the last block is kept, and only what follows is run again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shapley.files import digest
from shapley.hf.hooks import observe
from shapley.hf.load import LanguageModel
from shapley.hf.replay import Entries, record_entries, start_at
from shapley.hf.statistics import pad_right
from shapley.progress import Progress

_ROWS = 16


class FrozenText:
    """Documents, and the hidden states that enter the last block at them.

    Args:
        lm: without a sparse layer.
        documents: token ids, each at least two.
        label: of the progress.

    Attributes:
        ids, real: ``[documents, tokens]``, padded on the right.
        hidden: ``[documents, tokens, width]``, in memory: 4 bytes a number in float32.
        write: size of what the last block's MLP adds to the residual stream: the median over tokens of the root mean square
            over columns. The first tokens of texts are far larger than the others, hence no mean.
        digest: of the model and the documents.
    """

    def __init__(
        self, lm: LanguageModel, documents: Sequence[Sequence[int]], label: str = "", show: bool = True
    ) -> None:
        self.lm = lm
        self.ids, self.real = pad_right(documents, lm.pad_id)
        self.digest = digest(lm.fingerprint.encode(), self.ids.numpy(), self.real.numpy())
        self._last = lm.sites.n_layers - 1
        self._extras: dict[int, int | None] = {}
        self.hidden = torch.zeros(*self.ids.shape, lm.sites.d_model, dtype=lm.model.dtype)
        sizes = []
        progress = Progress(len(self), f"{label or 'text'} of {lm.name}", "documents", show=show)
        by_length = self.real.sum(dim=1).argsort()
        for done, rows in enumerate(by_length.split(_ROWS), start=1):
            length = int(self.real[rows].sum(dim=1).max())
            real = self.real[rows, :length]
            with (
                torch.no_grad(),
                record_entries(lm.sites, frozenset({self._last})) as entries,
                observe(lm.sites, "mlp_out") as seen,
                _logits_at(lm, torch.zeros_like(real)),
            ):
                self._run(rows, length)
            self.hidden[rows, :length] = entries.hidden[self._last].cpu()
            self._extras = entries.extras
            sizes.append(_sizes(seen[-1].view(*real.shape, -1)[real.to(seen[-1].device)]))
            progress.reach(min(done * _ROWS, len(self)))
        progress.close()
        self.write = float(torch.cat(sizes).median())

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> Tensor:
        """``[documents]``, tokens that are predicted: all but the first."""
        return self.real[:, 1:].sum(dim=1)

    def losses(self, rows: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """The loss at every predicted token of these documents, one document after another, from the last block on.

        Args:
            rows: ``[rows]`` documents.
            dtype: to compute in; the model's own by default.

        Returns:
            ``[predicted tokens]`` float32, nats; with a gradient where one is recorded.
        """
        length = int(self.real[rows].sum(dim=1).max())
        following = self.real[rows, 1:length]
        asked = torch.cat([following, torch.zeros(len(rows), 1, dtype=torch.bool)], dim=1)
        device = self.lm.device
        own = self.lm.model.dtype
        with (
            torch.autocast(device.type, dtype=dtype, enabled=dtype not in (None, own, torch.float32)),
            _logits_at(self.lm, asked),
            self._entered(rows, length),
        ):
            logits = self._run(rows, length)
        targets = self.ids[rows, 1:length][following].to(logits.device)
        return cross_entropy(logits.float(), targets, reduction="none")

    def by_document(self) -> Tensor:
        """``[documents]``, the mean loss of each, without a gradient."""
        means = []
        with torch.no_grad():
            for rows in torch.arange(len(self)).split(_ROWS):
                losses = self.losses(rows).cpu()
                means += [own.mean() for own in losses.split(self.targets[rows].tolist())]
        return torch.stack(means)

    def pass_through(self) -> Iterator[Tensor]:
        """Run the last block at all documents, without logits; yields after each batch which of its tokens are real,
        ``[rows, tokens]``."""
        for rows in torch.arange(len(self)).split(_ROWS):
            length = int(self.real[rows].sum(dim=1).max())
            real = self.real[rows, :length]
            with torch.no_grad(), _logits_at(self.lm, torch.zeros_like(real)), self._entered(rows, length):
                self._run(rows, length)
            yield real

    def _run(self, rows: Tensor, length: int) -> Tensor:
        ids, real = (x[rows, :length].to(self.lm.device) for x in (self.ids, self.real))
        logits: Tensor = self.lm.model(input_ids=ids, attention_mask=real.long(), use_cache=False).logits
        return logits

    @contextmanager
    def _entered(self, rows: Tensor, length: int) -> Iterator[None]:
        device = next(self.lm.sites.blocks[-1].block.parameters(), self.hidden).device
        entries = Entries({self._last: self.hidden[rows, :length].to(device)}, self._extras)
        with start_at(self.lm.sites, self._last, entries, torch.arange(len(rows)), length):
            yield


def _sizes(written: Tensor) -> Tensor:
    """``[tokens]``, of what an MLP adds to the residual stream, ``[tokens, width]``: the root mean square over columns."""
    return written.float().square().mean(dim=-1).sqrt().cpu()


@contextmanager
def _logits_at(lm: LanguageModel, asked: Tensor) -> Iterator[None]:
    """Compute the logits at ``asked`` ``[rows, tokens]`` only; they come out as ``[asked, vocabulary]``."""

    def choose(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        (hidden,) = args
        return (hidden[asked.to(hidden.device)],)

    handle = lm.model.get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield
    finally:
        handle.remove()
