"""What the operator sets."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from shapley.server.policy import Policy


@dataclass(frozen=True)
class Settings:
    """Of a server.

    Attributes:
        name: that clients know the model by.
        folder: of keys, secret and audit log.
        open_policy: of requests without a key; ``None``: a key is needed.
        max_body: bytes of a request.
        max_prompt, max_new: tokens.
        max_rows: sequences in a batch.
        max_waiting: sequences that wait for a place, beyond which requests are turned away.
        timeout: seconds that a request may take.
        log_prompts: whether the audit log holds the prompts.
    """

    name: str
    folder: Path
    open_policy: Policy | None = None
    max_body: int = 1 << 20
    max_prompt: int = 2048
    max_new: int = 1024
    max_rows: int = 64
    max_waiting: int = 4096
    timeout: float = 120.0
    log_prompts: bool = False
    clusters: dict[str, Path] = field(default_factory=dict)
