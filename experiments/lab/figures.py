"""Figures that say which stored file they were drawn from."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from shapley.files import atomic_path, digest

_KEY = "Source"


def save(figure: Figure, path: Path, source: Path) -> None:
    """Write a PNG with the digest of the file that it was drawn from."""
    path.parent.mkdir(exist_ok=True)
    with atomic_path(path) as temporary:
        figure.savefig(
            temporary, format="png", dpi=150, bbox_inches="tight", metadata={_KEY: digest(source.read_bytes())}
        )


def drawn_from(path: Path, source: Path) -> bool:
    """Whether a figure was drawn from what ``source`` holds now."""
    with Image.open(path) as image:
        return image.info.get(_KEY) == digest(source.read_bytes())
