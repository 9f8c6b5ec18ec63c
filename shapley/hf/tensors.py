"""Safetensors files that are whole or absent, and that others may read as they may read any other file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from shapley.files import atomic_path


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically.

    Raises:
        ShapleyError: as ``atomic_path``.
    """
    with atomic_path(path) as temporary:
        save_file(dict(tensors), temporary, None if metadata is None else dict(metadata))
        open_up(temporary)


def open_up(*paths: Path) -> None:
    """Give files the permissions that this process gives new ones; safetensors makes them their owner's alone."""
    mask = os.umask(0o077)
    os.umask(mask)
    for path in paths:
        path.chmod(0o666 & ~mask)
