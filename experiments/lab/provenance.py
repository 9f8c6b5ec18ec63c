"""What a result was made with: command, versions, hashes, hardware."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from experiments.lab.texts import SETS, Texts, hash_of
from shapley.hf.load import LanguageModel, describe

_PACKAGES = ("neuron-shapley", "torch", "transformers", "numpy", "scipy")


def provenance(lm: LanguageModel, texts: Texts | None, command: str, files: dict[str, Path]) -> dict[str, Any]:
    """For the head of a result file.

    Args:
        texts: that were used, if they were.
        command: that makes the result again.
        files: by what they are; their hashes are kept.
    """
    prompts = {name: getattr(texts, name) for name in SETS} if texts else {}
    by_set = {name: [own] if name == "plain" else list(own.values()) for name, own in prompts.items()}
    return {
        "command": command,
        "model": describe(lm),
        "prompts": {
            name: hashlib.sha256("".join(topic.sha256 for topic in topics).encode()).hexdigest()[:16]
            for name, topics in by_set.items()
        },
        "files": {**(texts.made_of if texts else {}), **{what: hash_of(path) for what, path in files.items()}},
        "versions": {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()},
        "commit": _commit(),
        "hardware": hardware(lm.device),
        "time": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def hardware(device: torch.device) -> str:
    """The processor, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        if info.exists()
        else []
    )
    return f"{names[0] if names else platform.processor() or sys.platform}, {torch.get_num_threads()} of {os.cpu_count()} cores"


def _commit() -> str:
    """The commit, with a ``+`` where code or configurations were not as in it."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    changed = subprocess.run(
        ["git", "diff", "--quiet", "HEAD", "--", "*.py", "*.yaml"], capture_output=True, check=False
    )
    return done.stdout.strip() + ("+" if changed.returncode else "") if done.stdout else "unknown"
