"""Training of a sparse layer in a frozen model; one that was stopped goes on from its checkpoint as if it had not been.

A step: documents drawn by (seed, step); their next-token loss from the last block on; a gradient for the layer only; AdamW, its
rate warmed up and then lowered by a cosine. Layers of the same training seed see the same documents at the same steps.
"""

from __future__ import annotations

import math
import pickle
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from shapley.errors import ShapleyError
from shapley.files import atomic_path, digest
from shapley.hf.load import fast_dtype
from shapley.keyed import keyed_rng
from shapley.progress import Progress
from shapley.sparse.frozen import FrozenText
from shapley.sparse.insert import Place, inserted
from shapley.sparse.layer import SparseLayer

_MOST_NORM = 1.0
_WEIGHT_DECAY = 0.01
_SAME_GAIN = 1e-3


@dataclass(frozen=True)
class Training:
    """How a layer is trained.

    Attributes:
        steps: all of them.
        documents: in a step.
        rate: of learning, at its highest.
        warm_up: steps until then.
        evaluate_every: steps between points of the learning curve.
        checkpoint_every: steps.
        seed: of the order of the documents.

    Raises:
        ShapleyError: steps that are not positive, or no rate.
    """

    steps: int
    documents: int = 8
    rate: float = 1e-3
    warm_up: int = 10
    evaluate_every: int = 20
    checkpoint_every: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "documents", "evaluate_every", "checkpoint_every", "rate"):
            if getattr(self, name) <= 0:
                raise ShapleyError(f"{name} of a training is {getattr(self, name):g}: it must be above 0")

    def rate_at(self, step: int) -> float:
        """Of steps from 0 on: a line up to ``rate``, then half a cosine down to a tenth of it."""
        if step < self.warm_up:
            return self.rate * (step + 1) / self.warm_up
        way = (step - self.warm_up) / max(1, self.steps - self.warm_up)
        return self.rate * (0.1 + 0.45 * (1 + math.cos(math.pi * way)))

    def rows_at(self, step: int, n: int) -> Tensor:
        """``[documents]`` of ``n``, that a step is made of: all in turn, in another order in every round."""
        places = range(step * self.documents, (step + 1) * self.documents)
        rounds = {place // n for place in places}
        order = {of: keyed_rng(self.seed, "sparse round", of).permutation(n) for of in rounds}
        return torch.tensor([int(order[place // n][place % n]) for place in places])


@dataclass(frozen=True)
class Point:
    """Of a learning curve, in nats a token.

    Attributes:
        step: how many were made.
        tokens: that were predicted in them.
        train: mean loss since the point before; none at the start.
        held_out: mean loss over all held-out tokens, in evaluation mode.
    """

    step: int
    tokens: int
    train: float | None
    held_out: float


@dataclass
class Trained:
    """What a training came to.

    Attributes:
        curve: points, the first before the first step.
        seconds: that it took, over all its parts.
    """

    curve: list[Point] = field(default_factory=list)
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    recent: list[float] = field(default_factory=list)  # losses of the steps since the last point


def train(
    layer: SparseLayer,
    place: Place,
    text: FrozenText,
    held_out: FrozenText,
    plan: Training,
    checkpoint: Path,
    *,
    label: str = "training",
    show: bool = True,
) -> Trained:
    """Train the layer, which is changed in place and left in evaluation mode.

    Args:
        place: where in the model it is (``shapley.sparse.insert``).
        text, held_out: of the same model.
        checkpoint: a file; where it exists, training goes on from it, and where it is of the last step, nothing is left to do.

    Raises:
        ShapleyError: the checkpoint is damaged, or of another training; or the loss is not a number.
    """
    lm = text.lm
    precision = fast_dtype(lm.device)
    parameters = list(layer.parameters())
    with inserted(lm, layer, place):  # first, as it moves the layer to the model's device
        optimiser = torch.optim.AdamW(parameters, lr=plan.rate, weight_decay=_WEIGHT_DECAY)
        key = _key(layer, place, text, held_out, plan)
        state = _restore(checkpoint, key, layer, optimiser) if checkpoint.exists() else Trained()
        progress = Progress(plan.steps, label, "steps", initial=state.step, show=show)
        before = time.monotonic() - state.seconds
        if not state.curve:
            state.curve.append(Point(0, 0, None, _held_out_loss(layer, held_out)))
        for step in range(state.step, plan.steps):
            for group in optimiser.param_groups:
                group["lr"] = plan.rate_at(step)
            layer.train()
            losses = text.losses(plan.rows_at(step, len(text)), dtype=precision)
            loss = losses.mean()
            if not loss.isfinite():
                raise ShapleyError(f"{label}: the loss is {loss.item()} at step {step}: lower the rate of learning")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            clip_grad_norm_(parameters, _MOST_NORM)
            optimiser.step()
            state.step, state.tokens = step + 1, state.tokens + len(losses)
            state.recent.append(loss.item())
            last = state.step == plan.steps
            if last or state.step % plan.evaluate_every == 0:
                mean = sum(state.recent) / len(state.recent)
                state.curve.append(Point(state.step, state.tokens, mean, _held_out_loss(layer, held_out)))
                state.recent = []
            state.seconds = time.monotonic() - before
            if last or state.step % plan.checkpoint_every == 0:
                _keep(checkpoint, key, layer, optimiser, state)
            progress.reach(state.step)
        progress.close()
    layer.eval()
    return state


def _held_out_loss(layer: SparseLayer, text: FrozenText) -> float:
    layer.eval()
    targets = text.targets
    return float((text.by_document() * targets).sum() / targets.sum())


def _key(layer: SparseLayer, place: Place, text: FrozenText, held_out: FrozenText, plan: Training) -> str:
    """Of all that decides what a step does, but for the layer's gain: where that is measured on a text, its last digits are of
    the machine."""
    parts = (layer.spec, place, text.digest, held_out.digest, plan, text.lm.model.dtype)
    return digest(repr(parts).encode())


def _keep(path: Path, key: str, layer: SparseLayer, optimiser: torch.optim.Optimizer, state: Trained) -> None:
    content = {"key": key, "layer": layer.state_dict(), "optimiser": optimiser.state_dict(), "state": asdict(state)}
    with atomic_path(path) as temporary:
        torch.save(content, temporary)


def _restore(path: Path, key: str, layer: SparseLayer, optimiser: torch.optim.Optimizer) -> Trained:
    try:
        kept: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found, gain = kept["key"], float(kept["layer"]["gain"])
    except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
        raise ShapleyError(f"the checkpoint {path} is damaged: remove it to train anew") from error
    if found != key or not math.isclose(gain, layer.gain.item(), rel_tol=_SAME_GAIN):
        raise ShapleyError(f"the checkpoint {path} is of another training: name another file, or remove it")
    layer.load_state_dict(kept["layer"])
    optimiser.load_state_dict(kept["optimiser"])
    state = Trained(**kept["state"])
    state.curve = [Point(**point) for point in kept["state"]["curve"]]
    return state
