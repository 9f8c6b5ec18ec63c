"""Players as directions: orthogonal bases of ``mlp_hidden``, in which a direction is impaired as a neuron is in its own; and
of the residual stream (``shapley.hf.residual``).

The activation after the nonlinearity is only read by the down-projection, so a rotation can be put between them and undone in
the weights (``Rotated``). Estimators, clusters and sweeps then work on directions as they do on neurons: the site is the input
of the turned projection. It is written into a model's name, ``MODEL@BASIS``:

``identity``        the neurons, through all of the machinery
``random``          a Haar-random rotation a layer, ``random:SEED`` for another one
``pca``             the eigenvectors of the activations' covariance over the reference text, largest variance first
``FILE``            of a safetensors file: ``vectors``, ``[n_layers, d_mlp, d_mlp]``, vectors in columns, as ``shapley basis
                    learn`` writes (``shapley.hf.learned``)
``residual:NAME``   one of the residual stream for all layers, by any of these names; a file's ``vectors`` are
                    ``[d_model, d_model]``

``MODEL@sparse:FILE`` is no basis: a sparse layer that was trained in the model, its units for players (``shapley.sparse``).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from shapley.errors import ShapleyError
from shapley.hf.hooks import observe
from shapley.hf.rotated import Rotated
from shapley.hf.sites import ModelSites
from shapley.hf.tensors import save_tensors
from shapley.keyed import keyed_rng
from shapley.types import Site

RESIDUAL, SPARSE = "residual:", "sparse:"
_NAMED = re.compile(rf"(?:{RESIDUAL})?(?:identity|pca|random(?::\d{{1,9}})?)")
_DRAWN = re.compile(r"random(?::\d{1,9})?")
_OFF = 1e-2  # from orthogonality, in spectral norm: beyond what a file in bfloat16 explains
_ROUNDING = 1e-4  # of float32
_ROUNDS = 12  # of power iteration


def split_name(name: str) -> tuple[str, str | None]:
    """A model's name and its basis (or sparse layer), where it names one: a known basis, or a safetensors file, behind the last
    ``@``."""
    model, at, basis = name.rpartition("@")
    known = _NAMED.fullmatch(basis) or basis.endswith(".safetensors") or basis.startswith(SPARSE)
    return (model, basis) if at and model and known else (name, None)


def basis_of(basis: str, sites: ModelSites) -> tuple[Tensor, str]:
    """``[n_layers, d_mlp, d_mlp]`` float32, vectors in columns, of the residual stream ``[d_model, d_model]``; and what tells
    the basis from others.

    Args:
        basis: its name; of ``pca``, the file that holds it.

    Raises:
        ShapleyError: an unknown basis, or a file that holds none, or not of this size, or not orthogonal.
    """
    name, of_stream = basis.removeprefix(RESIDUAL), basis.startswith(RESIDUAL)
    n = sites.d_model if of_stream else sites.d_mlp
    shape = (n, n) if of_stream else (sites.n_layers, n, n)
    if name == "identity":
        vectors = torch.eye(n).expand(shape).contiguous()
    elif _DRAWN.fullmatch(name):
        seed = int(name.partition(":")[2] or 0)
        layers = range(sites.n_layers)
        vectors = haar(n, seed, "stream") if of_stream else torch.stack([haar(n, seed, layer) for layer in layers])
    else:
        found = load_vectors(Path(name))
        return _orthogonal(basis, found, shape), _key(found)
    return vectors, _key(vectors)


def _key(vectors: Tensor) -> str:
    """What tells a basis from others: its vectors, in order, rounded to bfloat16 as weights are for a model's fingerprint."""
    bits = vectors.to(torch.bfloat16).view(torch.int16).numpy().tobytes()
    return hashlib.sha256(f"{tuple(vectors.shape)}".encode() + bits).hexdigest()


def haar(n: int, seed: int, layer: int | str) -> Tensor:
    """``[n, n]``, uniform over rotations and reflections: the QR decomposition of a gaussian matrix, with the signs of R's
    diagonal (Mezzadri 2007)."""
    gaussian = keyed_rng(seed, "basis", layer).standard_normal((n, n))
    q, r = np.linalg.qr(gaussian)
    return torch.from_numpy((q * np.sign(np.diag(r))).astype(np.float32))


def principal(*activations: Tensor) -> Tensor:
    """``[n, n]``: the eigenvectors of the covariance of ``[tokens, n]`` activations, largest variance first; of several, each
    about a mean of its own. Each vector's largest entry is positive, so that the basis is one and not one of many. With fewer
    tokens than neurons the last vectors are some basis of what never varied."""
    centred = (x.double() - x.double().mean(dim=0) for x in activations)
    _, vectors = torch.linalg.eigh(torch.stack([x.T @ x for x in centred]).sum(dim=0))
    vectors = vectors.flip(1)
    largest = vectors.abs().argmax(dim=0)
    return (vectors * vectors.gather(0, largest[None]).sign()).float()


def rotate(sites: ModelSites, vectors: Tensor) -> None:
    """Turn every block's down-projection into the basis, in place; the model computes what it did, to rounding."""
    for block, own in zip(sites.blocks, vectors, strict=True):
        parent, _, name = sites.family.down.rpartition(".")
        setattr(block.block.get_submodule(parent), name, Rotated(block.down, own))


def save_vectors(vectors: Tensor, path: Path) -> None:
    """Write a file that ``MODEL@FILE`` reads."""
    save_tensors({"vectors": vectors.contiguous()}, path)


def load_vectors(path: Path) -> Tensor:
    """What ``save_vectors`` wrote.

    Raises:
        ShapleyError: no such file, or one without ``vectors``.
    """
    try:
        return load_file(path)["vectors"].float()
    except (OSError, SafetensorError, KeyError) as error:
        missing = "" if path.exists() else " (no such file)"
        raise ShapleyError(
            f"no basis in {path}{missing}: expected a safetensors file with 'vectors', [n_layers, d_mlp, d_mlp], "
            "or [d_model, d_model] of the residual stream"
        ) from error


def reference_activations(
    model: torch.nn.Module, sites: ModelSites, batches: Sequence[tuple[Tensor, Tensor]], site: Site = "mlp_hidden"
) -> list[Tensor]:
    """Of each layer ``[tokens, width]`` float32 over batches of ids and masks, the first position of each text left out."""
    seen: list[list[Tensor]] = [[] for _ in sites.blocks]
    device = next(model.parameters()).device
    for ids, valid in batches:
        with torch.no_grad(), observe(sites, site) as layers:
            model(input_ids=ids.to(device), attention_mask=valid.long().to(device), use_cache=False)
        keep = valid.clone()
        keep[:, 0] = False
        for own, x in zip(seen, layers, strict=True):
            own.append(x.view(*keep.shape, -1)[keep.to(x.device)].float().cpu())
    return [torch.cat(own) for own in seen]


def _orthogonal(basis: str, vectors: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The vectors; where they are off by more than float32 rounds, the orthogonal ones nearest to them, by the iteration of
    Newton and Schulz (Higham 1986), which squares what they are off by."""
    if tuple(vectors.shape) != shape:
        raise ShapleyError(f"the basis {basis} has the shape {list(vectors.shape)}, the model needs {list(shape)}")
    if not vectors.isfinite().all():
        raise ShapleyError(f"the basis {basis} holds numbers that are not finite: make the file anew")
    wide, identity = vectors.double(), torch.eye(shape[-1], dtype=torch.float64)
    off = _spectral_norm(wide.mT @ wide - identity).reshape(-1)
    worst = int(off.argmax())
    if not off[worst] <= _OFF:
        where = f"in layer {worst} " if len(shape) > 2 else ""
        raise ShapleyError(
            f"the basis {basis} is not orthogonal: {where}R^T R is off the identity by {off[worst]:.2g}; "
            "orthogonalise it, by a QR decomposition"
        )
    if off[worst] <= _ROUNDING:
        return vectors
    for _ in range(2):
        wide = wide @ (1.5 * identity - 0.5 * wide.mT @ wide)
    return wide.float()


def _spectral_norm(symmetric: Tensor) -> Tensor:
    """``[..., n, n]`` -> ``[...]``, by power iteration: from below, close enough to tell rounding from a basis that is none."""
    x = torch.from_numpy(keyed_rng(0, "power iteration").standard_normal((symmetric.shape[-1], 1)))
    for _ in range(_ROUNDS):
        x = torch.nn.functional.normalize(symmetric @ x, dim=-2)
    norm: Tensor = (symmetric @ x).square().sum(dim=(-2, -1)).sqrt()
    return norm
