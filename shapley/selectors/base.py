"""One interface for all that chooses a topic's neurons.

A selector ranks the neurons for a topic, given ``Evidence``: a score file, or a model with prompts of several topics. What
is measured on the model is measured once a topic and kept, so that selectors share it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from shapley.clusters import Ranking
from shapley.errors import ShapleyError, unknown_name
from shapley.prompts import TopicPrompts
from shapley.store import ScoreFile
from shapley.types import FloatArray

if TYPE_CHECKING:
    from shapley.hf.load import LanguageModel

T = TypeVar("T")


@dataclass(frozen=True)
class Measure:
    """What a method gives every neuron for one topic.

    Attributes:
        value: ``[n_layers, d_mlp]``, the higher the more the neuron belongs to the topic.
        stderr: ``[n_layers, d_mlp]``, over prompts, NaN where the method has none.
    """

    value: FloatArray
    stderr: FloatArray

    @classmethod
    def over_prompts(cls, values: Sequence[FloatArray]) -> Measure:
        """The mean of ``[n_layers, d_mlp]`` values, one a prompt, with its standard error."""
        n = len(values)
        mean = np.mean(values, axis=0)
        if n < 2:
            return cls(mean, np.full_like(mean, np.nan))
        return cls(mean, np.std(values, axis=0, ddof=1) / np.sqrt(n))


@dataclass
class Evidence:
    """What neurons are chosen from: scores, or a model with its prompts, or both.

    Raises:
        ShapleyError: scores of another model.

    Args:
        scores: a score file.
        lm, prompts: a model, and by topic the prompts to select on.
        memory: bytes for activations.
        seed: of what is drawn.
    """

    scores: ScoreFile | None = None
    lm: LanguageModel | None = None
    prompts: Mapping[str, TopicPrompts] = field(default_factory=dict)
    memory: int | None = None
    seed: int = 0
    _kept: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.scores is not None and self.lm is not None:
            self.scores.check_model({"name": self.lm.name, "fingerprint": self.lm.fingerprint})

    @property
    def topics(self) -> tuple[str, ...]:
        return tuple(self.prompts or (self.scores.topics if self.scores else ()))

    def score_file(self, who: str) -> ScoreFile:
        """Raises ShapleyError without one."""
        if self.scores is None:
            raise ShapleyError(f"selector {who!r} reads scores: name a score file (shapley estimate makes one)")
        return self.scores

    def model(self, who: str) -> LanguageModel:
        """Raises ShapleyError without one."""
        if self.lm is None or not self.prompts:
            raise ShapleyError(f"selector {who!r} looks into the model: give --model and --prompts")
        return self.lm

    def shape(self, who: str) -> tuple[int, int]:
        """``(n_layers, d_mlp)``. Raises ShapleyError with neither scores nor a model."""
        if self.scores is not None:
            return int(self.scores.model["n_layers"]), int(self.scores.model["d_mlp"])
        sites = self.model(who).sites
        return sites.n_layers, sites.d_mlp

    def prompts_of(self, topic: str) -> TopicPrompts:
        """Raises ShapleyError for a topic without prompts."""
        if topic not in self.prompts:
            raise unknown_name("topic", topic, self.prompts)
        return self.prompts[topic]

    def once_for_all(self, name: str, topic: str, measure: Callable[[], Mapping[str, Measure]]) -> Measure:
        """As ``once``, of what is measured for all topics together."""
        if (name, topic) not in self._kept:
            self._kept |= {(name, other): found for other, found in measure().items()}
        return self.once(name, topic, lambda: measure()[topic])

    def once(self, name: str, topic: str, measure: Callable[[], T]) -> T:
        """What ``measure`` returns, called the first time that ``name`` asks for ``topic``."""
        if (name, topic) not in self._kept:
            self._kept[name, topic] = measure()
        kept: T = self._kept[name, topic]
        return kept


class Selector(Protocol):
    """A way to rank neurons for a topic.

    Attributes:
        name: on the command line.
        source: the paper it is from, and where it departs from it.
        reads: ``scores`` or ``model`` (or either), what it needs of the evidence.
        compares: whether it holds the topic against others.
    """

    name: str
    source: str
    reads: str
    compares: bool

    def rank(self, evidence: Evidence, topic: str, others: Sequence[str]) -> Ranking:
        """The neurons' ranking for ``topic``; selectors that compare topics hold it against ``others``.

        Raises:
            ShapleyError: the evidence lacks what the selector needs.
        """


def guarded(own: Measure, others: Sequence[Measure], guard: float) -> Ranking:
    """A measure's guarded contrast, as ``shapley.clusters.rank`` takes it of scores: minus ``guard`` times the largest
    absolute value that the neuron has for any other topic; with ``guard`` 0, minus the mean of the others'.

    The standard error takes topics as independent, since they have prompts of their own.
    """
    values = np.stack([other.value for other in others])
    errors = np.stack([other.stderr for other in others])
    if guard == 0:
        return Ranking(
            own.value - values.mean(axis=0), np.sqrt(own.stderr**2 + (errors**2).sum(axis=0) / len(others) ** 2)
        )
    largest = np.abs(values).argmax(axis=0)[None]
    strongest, error = (np.take_along_axis(x, largest, axis=0)[0] for x in (values, errors))
    return Ranking(own.value - guard * np.abs(strongest), np.hypot(own.stderr, guard * error))


def needed(name: str, others: Sequence[str]) -> Sequence[str]:
    """The topics that a selector compares with. Raises ShapleyError where there are none."""
    if not others:
        raise ShapleyError(
            f"selector {name!r} holds a topic against others: give more topics, or name them with --versus"
        )
    return others
