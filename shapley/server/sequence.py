"""A sequence: one prompt under one impairment, what is wanted of it, and what came of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from shapley.server.policy import Stack
from shapley.server.sampling import Sampler
from shapley.server.stream import TextStream

Reason = Literal["stop", "length", "cancelled", "error"]


@dataclass(frozen=True)
class Scored:
    """A token, its log-probability given those before it, and the likeliest tokens in its place, the likeliest first."""

    token: int
    logprob: float | None  # None for the first: nothing is before it
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Running:
    """A sequence in the engine.

    Attributes:
        ids: of the prompt; at least one.
        stack: impairments, in the order in which they act.
        max_new: tokens to generate at most.
        n_top: of how many of the likeliest tokens log-probabilities are wanted; ``None``: no log-probabilities.
        score_prompt: whether the prompt's are wanted too.
        ends: tokens that end it.
        emit: called in the engine's thread with the new text, whenever there is some, and at the end.
        prompt_scores, new: what came of it.
        reason: of the end; ``None`` while it runs.
    """

    ids: Sequence[int]
    stack: Stack
    max_new: int
    sampler: Sampler
    stream: TextStream
    n_top: int | None = None
    score_prompt: bool = False
    ends: frozenset[int] = frozenset()
    emit: Callable[[str], None] = lambda text: None
    prompt_scores: list[Scored] = field(default_factory=list)
    new: list[Scored] = field(default_factory=list)
    reason: Reason | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def length(self) -> int:
        """Tokens of prompt and answer."""
        return len(self.ids) + len(self.new)

    def accept(self, scored: Scored) -> None:
        """A new token: what it adds to the text, and whether it is the last one. An end token adds none, and is counted: who
        asks for one token, and for its log-probability, gets it."""
        self.new.append(scored)
        if scored.token in self.ends:
            return self.end("stop")
        text = self.stream.add(scored.token)
        if self.stream.stopped:
            return self.end("stop", text)
        if len(self.new) >= self.max_new:
            return self.end("length", text)
        if text:
            self.emit(text)
        return None

    def end(self, reason: Reason, text: str = "") -> None:
        """No token comes any more."""
        self.reason = reason
        self.emit(text + self.stream.finish())
