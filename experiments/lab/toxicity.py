"""How toxic a text is, by a multinomial naive Bayes classifier of words, trained on comments that raters labelled. It needs no
other model; how well it tells held-out comments apart is part of every result."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu

from shapley.keyed import keyed_rng

_WORD = re.compile(r"[a-z']+")
_SEED = 0
_BEGINNING = 8  # words


@dataclass(frozen=True)
class Judged:
    """A judge that learned from half of the comments.

    Attributes:
        auc: how well it tells the other half's apart.
        beginnings: of the other half's comments, by topic.
    """

    judge: Toxicity
    auc: float
    beginnings: Mapping[str, Sequence[str]]


def judged(by_topic: Mapping[str, Sequence[str]]) -> Judged:
    """Of ``toxic`` and ``harmless`` comments."""
    halves = {topic: _halves(own, topic) for topic, own in by_topic.items()}
    judge = Toxicity.of(halves["toxic"][0], halves["harmless"][0])
    long = {
        topic: [text.split() for text in half[1] if len(text.split()) > _BEGINNING] for topic, half in halves.items()
    }
    return Judged(
        judge,
        round(judge.auc(halves["toxic"][1], halves["harmless"][1]), 3),
        {topic: [" ".join(words[:_BEGINNING]) for words in own] for topic, own in long.items()},
    )


def _halves(texts: Sequence[str], topic: str) -> tuple[list[str], list[str]]:
    order = keyed_rng(_SEED, "halves", topic).permutation(len(texts))
    return tuple([texts[i] for i in half] for half in np.array_split(order, 2))  # type: ignore[return-value]


@dataclass(frozen=True)
class Toxicity:
    """Log-odds of toxic against harmless by word, with add-one smoothing."""

    log_odds: dict[str, float]

    @classmethod
    def of(cls, toxic: Sequence[str], harmless: Sequence[str]) -> Toxicity:
        counts = [Counter(word for text in texts for word in _words(text)) for texts in (toxic, harmless)]
        vocabulary = set(counts[0]) | set(counts[1])
        totals = [sum(count.values()) + len(vocabulary) for count in counts]
        return cls(
            {
                word: float(np.log((counts[0][word] + 1) / totals[0]) - np.log((counts[1][word] + 1) / totals[1]))
                for word in vocabulary
            }
        )

    def __call__(self, text: str) -> float:
        """Mean log-odds of the words that are known; 0 without any, and positive for what is rather toxic."""
        known = [self.log_odds[word] for word in _words(text) if word in self.log_odds]
        return float(np.mean(known)) if known else 0.0

    def known(self, text: str) -> float:
        """The share of a text's words that the judge knows; 0 without any words."""
        words = _words(text)
        return sum(word in self.log_odds for word in words) / len(words) if words else 0.0

    def auc(self, toxic: Sequence[str], harmless: Sequence[str]) -> float:
        """The chance that a toxic text scores above a harmless one."""
        scores = [[self(text) for text in texts] for texts in (toxic, harmless)]
        return float(mannwhitneyu(*scores).statistic / (len(toxic) * len(harmless)))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
