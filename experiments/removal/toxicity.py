"""How toxic a text is, by a multinomial naive Bayes classifier of words, trained on comments that raters labelled. It needs no
other model; how well it tells held-out comments apart is part of every result."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import mannwhitneyu

_WORD = re.compile(r"[a-z']+")


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

    def auc(self, toxic: Sequence[str], harmless: Sequence[str]) -> float:
        """The chance that a toxic text scores above a harmless one."""
        scores = [[self(text) for text in texts] for texts in (toxic, harmless)]
        return float(mannwhitneyu(*scores).statistic / (len(toxic) * len(harmless)))


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())
