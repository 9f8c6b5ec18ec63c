"""A rotation of each layer's neurons that makes what they do to the next MLP sparse.

At a token the hidden activation of layer l acts on the next MLP's, along the direct path, by the Jacobian

    J = D P N E        [d_mlp, d_mlp]

D the down-projection, P the Jacobian of a norm behind it (where there is one), N that of the norm before the next MLP, and E
what the next MLP's projections and nonlinearity make of it at this token. Behind the last layer E is of the output embedding,
to the logits of the token's likeliest words. In a basis R it is R^T J, with the same Frobenius norm, so that the smaller the
sum of its absolute entries, the sparser it is:

    sparsity(R) = mean over tokens of  mean |R^T J| / rms(J)        .798 for gaussian entries, less for sparse ones

1. What J is made of is collected at reference tokens, a token a text. It is reported on other texts than it is learned on.
2. D = Q L (QR) has at most d_model columns, so only Z = R^T Q matters: ``[d_mlp, d_model]`` with orthonormal columns, and the
   gradient of the sum of absolute values is sign(Z B) B^T, B random columns of L P N E.
3. Z descends from the identity's, Q, on the Stiefel manifold: a step along the tangent part of the gradient, then back by a QR
   decomposition (Absil, Mahony, Sepulchre 2008, examples 3.6.2 and 4.1.3).
4. The directions that D does not read, orthogonal to Q, become those orthogonal to Z, moved least (Procrustes).

Sparse Jacobians between layers as an aim: Farnik, Lawson, Houghton, Aitchison 2025, there by sparse autoencoders.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from shapley.corpus import reference_texts
from shapley.files import cache_directory, digest
from shapley.hf.bases import save_vectors
from shapley.hf.load import LanguageModel
from shapley.hf.sites import read_weights, write_weights
from shapley.hf.statistics import MAX_TOKENS
from shapley.hf.stream import Stream, find_stream
from shapley.hf.tensors import save_tensors
from shapley.keyed import keyed_rng
from shapley.progress import Progress

_TOKENS, _HELD_OUT = 32, 8  # texts, with a token of each
_LOGITS = 256  # of the likeliest words, behind the last layer
_COLUMNS = 768  # of all tokens' Jacobians, a step
_RATE = 0.2  # the first step's length, of Z's; the last ones' is zero


@dataclass(frozen=True)
class Sparsity:
    """What a layer reaches on held-out tokens, by basis."""

    identity: float
    random: float
    learned: float


@dataclass(frozen=True)
class _Seen:
    """What a model computes at one token of a text, by layer.

    Attributes:
        before: ``[d_model]``, what enters the norm before the MLP.
        behind: ``[d_model]``, what enters the norm behind it; empty without one.
        slopes: of each of the projections that read ``mlp_in``, ``[width]``: what the hidden activation gains by it.
        final: ``[d_model]``, what enters the last norm.
        likeliest: ``[words]``, ids.
    """

    before: list[Tensor]
    behind: list[Tensor]
    slopes: list[list[Tensor]]
    final: Tensor
    likeliest: Tensor


def learn(lm: LanguageModel, out: Path, steps: int, seed: int) -> list[Sparsity]:
    """Write a basis that ``MODEL@OUT`` reads; what each layer reaches.

    A layer that is done is kept in the cache until ``out`` is written, so that what was stopped goes on.

    Raises:
        ShapleyError: a model whose stream is not known (``find_stream``).
    """
    stream = find_stream(lm.model, lm.sites)
    folder = cache_directory("learned", digest(lm.fingerprint.encode(), f"{steps} {seed}".encode()))
    progress = Progress(lm.sites.n_layers, f"learning a basis of {lm.name}", "layers")
    tokens: list[_Seen] = []
    learned, reached = [], []
    for layer in range(lm.sites.n_layers):
        path = folder / f"{layer}.safetensors"
        if not path.exists():
            tokens = tokens or collect(lm, stream, seed)
            down, onward = _onward(lm, stream, tokens, layer)
            vectors = _learned(down, onward[:-_HELD_OUT], steps, seed, layer)
            found = _reached(down, onward[-_HELD_OUT:], vectors, seed, layer)
            save_tensors({"vectors": vectors.contiguous(), "reached": torch.tensor(astuple(found))}, path)
        done = load_file(path)
        learned.append(done["vectors"])
        reached.append(Sparsity(*done["reached"].tolist()))
        progress.reach(layer + 1)
    progress.close()
    save_vectors(torch.stack(learned), out)
    shutil.rmtree(folder)
    return reached


def collect(lm: LanguageModel, stream: Stream, seed: int) -> list[_Seen]:
    """At one token of each of some texts of the embedded corpus, the first position left out."""
    rng = keyed_rng(seed, "learned", "tokens")
    ids = [lm.tokenizer(text)["input_ids"][:MAX_TOKENS] for text in reference_texts()]
    ids = [own for own in ids if len(own) > 1]
    return [
        _seen(lm, stream, ids[i], int(rng.integers(1, len(ids[i]))))
        for i in rng.permutation(len(ids))[: _TOKENS + _HELD_OUT]
    ]


def _seen(lm: LanguageModel, stream: Stream, ids: Sequence[int], at: int) -> _Seen:
    """Of the token ``ids[at]``, from one forward pass in which each MLP's projections begin a graph of their own."""
    before: list[Tensor] = []
    behind: list[Tensor] = []
    slopes: list[list[Tensor]] = []
    entering: list[Tensor] = []  # into what reads the stream last
    ups: list[Tensor] = []

    def token(x: Tensor) -> Tensor:
        return x.detach().view(-1, x.shape[-1])[at].float()

    def leaf(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        ups.append(output.detach().requires_grad_())
        return ups[-1]

    def hidden(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        slopes.append([token(slope) for slope in torch.autograd.grad(args[0].sum(), ups)])
        ups.clear()
        return (args[0].detach(), *args[1:])

    with ExitStack() as stack:
        for block, norm, end in zip(lm.sites.blocks, stream.before_mlp, stream.behind_mlp, strict=True):
            entry = block.entry if norm is None else lm.model.get_submodule(norm)
            hooks = [entry.register_forward_pre_hook(lambda module, args: before.append(token(args[0])))]
            hooks += [up.register_forward_hook(leaf) for up in block.up]
            hooks += [block.down.register_forward_pre_hook(hidden)]
            if end is not None:
                own = lm.model.get_submodule(end)
                hooks += [own.register_forward_pre_hook(lambda module, args: behind.append(token(args[0])))]
            for hook in hooks:
                stack.callback(hook.remove)
        last = lm.model.get_submodule(stream.final)
        stack.callback(last.register_forward_pre_hook(lambda module, args: entering.append(token(args[0]))).remove)
        stack.enter_context(torch.enable_grad())
        logits = lm.model(input_ids=torch.tensor([ids], device=lm.device), use_cache=False).logits[0, at]
    likeliest = logits.topk(min(_LOGITS, len(logits))).indices
    return _Seen(before, behind, slopes, entering[0], likeliest)


def _onward(lm: LanguageModel, stream: Stream, tokens: Sequence[_Seen], layer: int) -> tuple[Tensor, Tensor]:
    """D, ``[d_mlp, d_model]``, and of each token P N E, ``[tokens, d_model, outputs]``."""
    before, behind = (
        None if path is None else lm.model.get_submodule(path)
        for path in ((*stream.before_mlp, stream.final)[layer + 1], stream.behind_mlp[layer])
    )
    onward = []
    for seen in tokens:
        if layer + 1 < lm.sites.n_layers:
            x, read = seen.before[layer + 1], _gained(lm, layer + 1, seen.slopes[layer + 1])
        else:
            x, read = seen.final, lm.model.get_output_embeddings().weight[seen.likeliest].T.float()
        if before is not None:
            read = _linearised(before, x) @ read
        if behind is not None:
            read = _linearised(behind, seen.behind[layer]) @ read
        onward.append(read)
    return write_weights(lm.sites.blocks[layer]).float(), torch.stack(onward)


def _gained(lm: LanguageModel, layer: int, slopes: Sequence[Tensor]) -> Tensor:
    """E of an MLP: ``[d_model, d_mlp]``; of a projection that is two in one, both halves."""
    parts = [weight.float() * slope for weight, slope in zip(read_weights(lm.sites.blocks[layer]), slopes, strict=True)]
    return torch.stack([half for part in parts for half in part.split(lm.sites.d_mlp, dim=1)]).sum(dim=0)


def _linearised(norm: nn.Module, x: Tensor) -> Tensor:
    """``[d, d]``: the Jacobian of a norm at ``x`` ``[d]``, inputs first: a small change ``v`` of ``x`` becomes ``v @ J``."""
    return torch.func.jacrev(lambda one: norm(one[None])[0])(x).T


def _learned(down: Tensor, onward: Tensor, steps: int, seed: int, layer: int) -> Tensor:
    """``[d_mlp, d_mlp]``, directions in columns."""
    q, length = torch.linalg.qr(down)
    rows = _scaled(length @ onward, len(down)).transpose(1, 2).flatten(0, 1)  # [tokens * outputs, d_model]
    rng = keyed_rng(seed, "learned", layer)
    z = q
    for step in range(steps):
        some = rows[torch.from_numpy(rng.integers(len(rows), size=_COLUMNS)).to(rows.device)]
        gradient = _tangent(z, torch.sign(z @ some.T) @ some)
        rate = _RATE * (1 + math.cos(math.pi * step / steps)) / 2
        z = _orthonormal(z - rate * gradient * (z.norm() / gradient.norm()))
    return _completed(q.cpu(), z.cpu())


def _scaled(jacobians: Tensor, d_mlp: int) -> Tensor:
    """``[tokens, any, outputs]`` to a root mean square of one, each as ``[d_mlp, outputs]``."""
    size = math.sqrt(d_mlp * jacobians.shape[2])
    return jacobians * (size / torch.linalg.matrix_norm(jacobians, keepdim=True))


def _tangent(z: Tensor, x: Tensor) -> Tensor:
    """The part of ``x`` along which columns stay orthonormal, to first order."""
    inner = z.T @ x
    return x - z @ (inner + inner.T) / 2


def _orthonormal(y: Tensor) -> Tensor:
    """The Q of a QR decomposition, by Cholesky's of ``y^T y``, which is near the identity."""
    lower = torch.linalg.cholesky(y.T @ y)
    return torch.linalg.solve_triangular(lower, y.T, upper=False).T


def _completed(q: Tensor, z: Tensor) -> Tensor:
    """R with R^T Q = Z that takes the directions orthogonal to Q to those orthogonal to Z, moved least.

    In float64: in float32 the decomposition of a matrix near the identity, whose singular values differ by less than it rounds,
    was seen to return singular vectors that are not orthogonal.
    """
    k = q.shape[1]
    q, z = q.double(), z.double()
    unread, turned = (torch.linalg.qr(x, mode="complete")[0][:, k:] for x in (q, z))
    u, _, v = torch.linalg.svd(turned.T @ unread)
    return (q @ z.T + unread @ (turned @ u @ v).T).float()


def _reached(down: Tensor, onward: Tensor, vectors: Tensor, seed: int, layer: int) -> Sparsity:
    q, length = torch.linalg.qr(down)
    onward = _scaled(length @ onward, len(down))
    # R^T Q of a uniform rotation R is uniform over orthonormal columns.
    gaussian = keyed_rng(seed, "learned", "random", layer).standard_normal(q.shape)
    random = torch.linalg.qr(torch.from_numpy(gaussian).to(q))[0]

    def sparsity(z: Tensor) -> float:
        return float(torch.stack([(z @ own).abs().mean() for own in onward]).mean())

    return Sparsity(sparsity(q), sparsity(random), sparsity(vectors.to(q).T @ q))
