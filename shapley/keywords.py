"""Keywords of a topic: the words it uses more than the other topics do.

Log-odds ratio with an informative Dirichlet prior (Monroe, Colaresi and Quinn 2008, "Fightin' Words", eqs. 15, 20, 22):
the prior is the corpus's own word distribution, so that rare words need strong evidence.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log, sqrt

PRIOR_WORDS = 1000.0
LEAST_Z = 1.96
LEAST_LETTERS = 3
WORD = re.compile(r"[A-Za-z]+")

# Function words can differ between topics (he, she, its) but are nobody's topic.
FUNCTION_WORDS = frozenset(
    "a about above after again against all along already also although always am among an and another any are around as "
    "at away back be became because become been before began being below between both but by came can come could did do "
    "does done down during each early either else end ends even ever every few first five for former four from full gave "
    "get give given go goes got had has have having he her here hers herself him himself his how however i if in into is "
    "it its itself just kept known last late later least less let like long made make makes many may me might more most "
    "much must my myself near nearly never new next no nor not now of off often old on once one only onto or other others "
    "our ours out over own part put rather said same second seen set several she should since six small so some soon "
    "still such take taken than that the their theirs them themselves then there these they third this those though three "
    "through throughout thus to together too took toward towards two under until up upon us use used using very was way "
    "we well went were what when where whether which while who whole whom whose why will with within without would year "
    "years yet you your yours yourself".split()
)


@dataclass(frozen=True)
class Keyword:
    """A word with its topic's evidence: z is the log-odds ratio over its standard error."""

    word: str
    z: float
    documents: int


def topic_keywords(
    documents: Mapping[str, Sequence[str]], topic: str, *, most: int = 60, least_documents: int = 4
) -> list[Keyword]:
    """The keywords of ``topic`` against all other topics of ``documents``, strongest first.

    A keyword is a lower-case word of the language, in at least ``least_documents`` of the topic's documents, with z of at
    least 1.96: no function word, and no name (seen with a capital more than a fifth of the time).
    """
    inside = _word_counts(documents[topic])
    outside: Counter[str] = Counter()
    for other, texts in documents.items():
        if other != topic:
            outside += _word_counts(texts)
    n_inside, n_outside = inside.total(), outside.total()
    document_counts = Counter(word for text in documents[topic] for word in set(_lower_words(text)))
    lower_counts = Counter(word for text in documents[topic] for word in _lower_words(text))
    found = []
    for word, count in inside.items():
        if len(word) < LEAST_LETTERS or word in FUNCTION_WORDS or document_counts[word] < least_documents:
            continue
        if lower_counts[word] < 0.8 * count:
            continue
        prior = PRIOR_WORDS * (count + outside[word]) / (n_inside + n_outside)
        ours, theirs = count + prior, outside[word] + prior
        odds = log(ours / (n_inside + PRIOR_WORDS - ours)) - log(theirs / (n_outside + PRIOR_WORDS - theirs))
        z = odds / sqrt(1 / ours + 1 / theirs)
        if z >= LEAST_Z:
            found.append(Keyword(word, z, document_counts[word]))
    return sorted(found, key=lambda keyword: (-keyword.z, keyword.word))[:most]


def _word_counts(texts: Sequence[str]) -> Counter[str]:
    return Counter(word.lower() for text in texts for word in WORD.findall(text))


def _lower_words(text: str) -> list[str]:
    return [word for word in WORD.findall(text) if word.islower()]
