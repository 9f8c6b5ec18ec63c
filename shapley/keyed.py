"""Random generators that depend on a key alone: never on what was drawn before, by whom, or in what order."""

from __future__ import annotations

import hashlib

import numpy as np


def keyed_rng(*key: object) -> np.random.Generator:
    """A generator for (seed, purpose, unit, …)."""
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=16).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest, "little")))
