"""Causal tracing at the level of neurons: what brings the answer back when it is restored in a corrupted run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from shapley.clusters import Ranking
from shapley.hf.hooks import attach, observe, only_answer_logits
from shapley.hf.load import LanguageModel
from shapley.hf.scoring import EncodedPrompt, encode
from shapley.keyed import keyed_rng
from shapley.prompts import Prompt
from shapley.selectors.base import Evidence, Measure
from shapley.types import FloatArray
from shapley.values import row_values

_ROWS = 64
Edit = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class CausalTracing:
    """Restoration of neurons in a corrupted run (Meng et al. 2022, section 2).

    The embeddings of the prompt's tokens but the last get Gaussian noise (our prompts mark no subject); then a neuron's clean
    activation, at all tokens, is put back. Its indirect effect is by how much the answer's log-probability rises.

    - For all neurons linearised: the gradient in the corrupted run times what is put back.
    - Exactly for every window of layers together: the best window is where the ranking begins, as the paper finds single
      layers to do little.
    - Exactly for the ``shortlist`` of neurons of that window whose linearised effects are largest: they come first.

    Args:
        noise: standard deviations of the embeddings.
        samples: of noise, the same for all neurons.
        window: layers restored together.
        prompts, exact_prompts: the first so many of a topic are used for the linearised and window effects, for exact ones.
    """

    noise: float = 3.0
    samples: int = 10
    window: int = 10
    shortlist: int = 200
    prompts: int = 16
    exact_prompts: int = 4
    name: ClassVar[str] = "causal-tracing"
    source: ClassVar[str] = "ROME: Meng et al. 2022, section 2; linearised as in Nanda 2023"
    reads: ClassVar[str] = "model"
    compares: ClassVar[bool] = False

    def rank(self, evidence: Evidence, topic: str, others: Sequence[str]) -> Ranking:
        own = evidence.once(self.name, topic, lambda: self._measure(evidence, topic))
        return Ranking(own.value, own.stderr)

    def _measure(self, evidence: Evidence, topic: str) -> Measure:
        lm = evidence.model(self.name)
        prompts = evidence.prompts_of(topic).first(self.prompts).prompts
        runs = [_Corrupted(lm, prompt, self.noise, self.samples, evidence.seed) for prompt in prompts]
        linear = np.mean([run.linearised() for run in runs], axis=0)
        first = self._best_window(lm, runs)
        layers = np.arange(first, min(first + self.window, lm.sites.n_layers))
        within = linear[layers].ravel()
        best = np.argsort(-within, kind="stable")[: self.shortlist]
        chosen = np.stack([layers[best // linear.shape[1]], best % linear.shape[1]], axis=1)
        exact = np.mean([run.restored(chosen) for run in runs[: self.exact_prompts]], axis=0)
        # Three classes that never mix: all values lie within (-step, step).
        step = 1 + max(float(np.abs(linear).max()), float(np.abs(exact).max(initial=0)))
        value = linear - 4 * step
        value[layers] += 2 * step
        value[chosen[:, 0], chosen[:, 1]] = exact
        return Measure(value, np.full_like(value, np.nan))

    def _best_window(self, lm: LanguageModel, runs: Sequence[_Corrupted]) -> int:
        starts = range(max(1, lm.sites.n_layers - self.window + 1))
        effects = [np.mean([run.restored_layers(start, start + self.window) for run in runs]) for start in starts]
        return int(np.argmax(effects))


class _Corrupted:
    """One prompt, run clean once and then corrupted by the same samples of noise."""

    def __init__(self, lm: LanguageModel, prompt: Prompt, noise: float, samples: int, seed: int) -> None:
        self.lm, self.samples = lm, samples
        self.encoded: EncodedPrompt = encode(lm, prompt)
        self.ids = torch.tensor([self.encoded.ids], device=lm.device)
        embed = lm.model.get_input_embeddings()
        with torch.no_grad(), observe(lm.sites, "mlp_hidden") as seen:
            lm.model(input_ids=self.ids, use_cache=False)
            scale = noise * float(embed(self.ids).std())
        self.clean = [x.view(len(self.encoded.ids), -1) for x in seen]  # by layer [tokens, d_mlp]
        shape = (samples, len(self.encoded.ids), lm.sites.d_model)
        draws = torch.from_numpy(keyed_rng(seed, "causal tracing", prompt.key).standard_normal(shape)).float()
        draws[:, self.encoded.start - 1 :] = 0  # the last token of the prompt, and the answer
        self.noise = (scale * draws).to(lm.device)
        self.corrupted = float(self._values(lambda layer, x: x, 1).mean())

    def linearised(self) -> FloatArray:
        """``[n_layers, d_mlp]``, mean over samples."""
        leaves: list[Tensor] = []
        seen: list[Tensor] = []

        def keep(layer: int, x: Tensor) -> Tensor:
            leaves.append(torch.zeros_like(x, requires_grad=True))
            seen.append(x.detach())
            return x + leaves[-1]

        with torch.enable_grad():
            value = self._values(keep, 1)
            gradients = torch.autograd.grad(value.sum(), leaves)
        effects = []
        for gradient, x, clean in zip(gradients, seen, self.clean, strict=True):
            by_sample = (self.samples, *clean.shape)
            effects.append((gradient.view(by_sample) * (clean - x.view(by_sample))).sum(dim=(0, 1)) / self.samples)
        return torch.stack(effects).double().cpu().numpy()

    def restored_layers(self, first: int, last: int) -> float:
        """The rise when all neurons of layers ``first`` to ``last`` (not included) are restored."""

        def restore(layer: int, x: Tensor) -> Tensor:
            if not first <= layer < last:
                return x
            return self.clean[layer].repeat(self.samples, 1, 1).view(x.shape).to(x.dtype)

        with torch.no_grad():
            return float(self._values(restore, 1).mean()) - self.corrupted

    def restored(self, neurons: np.ndarray) -> FloatArray:
        """``[neurons]``, the rise when each (layer, column) is restored alone."""
        rises: list[FloatArray] = []
        together = max(1, _ROWS // self.samples)
        for start in range(0, len(neurons), together):
            part = torch.from_numpy(neurons[start : start + together]).to(self.lm.device)

            def restore(layer: int, x: Tensor, part: Tensor = part) -> Tensor:
                own = (part[:, 0] == layer).nonzero().squeeze(1)
                if not len(own):
                    return x
                columns = part[own, 1]
                shaped = x.view(len(part), self.samples, len(self.encoded.ids), -1).clone()
                shaped[own, :, :, columns] = self.clean[layer][:, columns].T[:, None].to(x.dtype)
                return shaped.view(x.shape)

            with torch.no_grad():
                values = self._values(restore, len(part))
            rises.append(values.view(len(part), self.samples).mean(dim=1).double().cpu().numpy() - self.corrupted)
        return np.concatenate(rises) if rises else np.zeros(0)

    def _values(self, edit: Edit, repeats: int) -> Tensor:
        """``[repeats * samples]``, the answer's log-probability with ``edit`` on every layer's activation."""
        ids, start = self.encoded.ids, self.encoded.start
        rows = repeats * self.samples
        positions = torch.arange(start - 1, len(ids) - 1, device=self.lm.device).expand(rows, -1)
        answers = self.ids[:, start:].expand(rows, -1)
        with self._corrupt(repeats), _edited(self.lm, edit), only_answer_logits(self.lm.model, positions):
            logits = self.lm.model(input_ids=self.ids.expand(rows, -1), use_cache=False).logits
        return row_values(["logprob"], logits, answers, torch.ones_like(answers, dtype=torch.bool))[0]

    @contextmanager
    def _corrupt(self, repeats: int) -> Iterator[None]:
        noise = self.noise.repeat(repeats, 1, 1)
        handle = self.lm.model.get_input_embeddings().register_forward_hook(
            lambda module, args, output: output + noise.to(output.dtype)
        )
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def _edited(lm: LanguageModel, edit: Edit) -> Iterator[None]:
    with ExitStack() as stack:
        for layer, block in enumerate(lm.sites.blocks):
            stack.callback(attach(block, "mlp_hidden", partial(edit, layer)).remove)
        yield
