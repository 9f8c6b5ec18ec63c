"""Prompts from passages: the text up to a topic's keyword is the prompt, the keyword the answer.

1. Find the topic's keywords (``keywords.py``).
2. In every passage, the text up to a keyword's first lower-case appearance is a candidate: the sentence it stands in and
   up to two before it, at least eight tokens, the keyword (or a form of it) not already in it.
3. Split by document and by keyword: half of each go to selection, half to the held-out set, and a candidate whose
   document and keyword fall on different sides is dropped. So neither a text nor an answer is on both sides: a word that
   is a keyword of several topics is left to the one where its evidence is strongest. With ``same_keywords`` the held-out
   prompts are of other documents and of the selection's own keywords: what a cluster does to the words it was chosen on.
4. Deal out the keywords in turn, so that no frequent one crowds out the others.
"""

from __future__ import annotations

import csv
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from shapley.corpus import COMMENTS, PASSAGES, read_embedded
from shapley.errors import ShapleyError, unknown_name
from shapley.keyed import keyed_rng
from shapley.keywords import WORD, topic_keywords
from shapley.prompts import Prompt

LEAST_TOKENS = 8
EMBEDDED = {"embedded": PASSAGES, "embedded-comments": COMMENTS}
HUB = {  # name -> (data set, split, text column, label column)
    "fancyzhx/dbpedia_14": ("fancyzhx/dbpedia_14", "test", "content", "label"),
    "toxic-comments": ("google/civil_comments", "test", "text", "toxicity"),
}
_TOXIC = 0.5  # of the raters, as the data set's authors draw the line
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"']?\s+(?=[\"'(]?[A-Z0-9])")
_ABBREVIATION = re.compile(r"\b(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|No|vs|Inc|Co|Corp|Ltd|Bros|Gen|Col|Capt)\.$")
_ENDINGS = re.compile(r"(?:ings?|ied|ies|ed|ers?|es|s|y)$")


@dataclass(frozen=True)
class Candidate:
    """A prompt that a passage offers."""

    document: str
    keyword: str
    prompt: str


def read_corpus(name: str, text_column: str = "text", topic_column: str = "topic") -> dict[str, list[str]]:
    """Texts by topic, from a CSV file with a header, an embedded corpus, or a hub data set by name.

    Raises:
        ShapleyError: no such file or column, nothing in it, or a hub data set without the ``datasets`` package.
    """
    if name in EMBEDDED:
        rows: Iterable[tuple[str, str]] = read_embedded(EMBEDDED[name])
    elif name in HUB:
        rows = _read_hub(name)
    else:
        rows = _read_csv(Path(name), text_column, topic_column)
    by_topic: dict[str, list[str]] = {}
    for topic, text in rows:
        if topic and text and text.strip():
            by_topic.setdefault(topic, []).append(" ".join(text.split()))
    if not by_topic:
        raise ShapleyError(f"corpus {name} holds no texts")
    return by_topic


def _read_csv(path: Path, text_column: str, topic_column: str) -> list[tuple[str, str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            missing = {text_column, topic_column} - set(reader.fieldnames or ())
            if missing:
                raise ShapleyError(
                    f"{path} has no column {' or '.join(sorted(missing))}: its header is {reader.fieldnames}; "
                    "name its columns with --text-column and --topic-column"
                )
            return [(row[topic_column], row[text_column]) for row in reader]
    except FileNotFoundError:
        names = ", ".join([*EMBEDDED, *HUB])
        raise ShapleyError(f"no corpus at {path}: give a CSV file of topic,text, or one of {names}") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ShapleyError(f"cannot read corpus {path}: {error}") from error


def _read_hub(name: str) -> list[tuple[str, str]]:
    data_set, split, text_column, label_column = HUB[name]
    try:
        from datasets import load_dataset
    except ImportError:
        raise ShapleyError(
            f"corpus {name} needs the datasets package: pip install 'neuron-shapley[hub-data]'"
        ) from None
    try:
        rows = load_dataset(data_set, split=split)
    except Exception as error:  # whatever the hub client raises without a network
        raise ShapleyError(f"cannot fetch {data_set}: {type(error).__name__}: {error}") from error
    names = getattr(rows.features[label_column], "names", None)
    topics = [names[label] if names else ("toxic" if label >= _TOXIC else "harmless") for label in rows[label_column]]
    return list(zip(topics, rows[text_column], strict=True))


def build_prompts(
    documents: Mapping[str, Sequence[str]],
    topics: Sequence[str],
    count_tokens: Callable[[str], int],
    *,
    seed: int = 0,
    per_topic: int | None = None,
    max_sentences: int = 3,
    max_tokens: int = 96,
    same_keywords: bool = False,
) -> tuple[list[Prompt], list[Prompt]]:
    """Prompts to select on and prompts held out, topic by topic.

    Args:
        documents: texts by topic; a topic's keywords are found against all the others.
        topics: which topics to make prompts for.
        count_tokens: length of a prompt in the model's tokens.
        per_topic: at most this many a topic on each side.
        max_sentences: of a prompt, 1 to 3.
        max_tokens: longer prompts are left out.
        same_keywords: hold out the selection's keywords in other documents, in place of other keywords. The selection
            is the same.

    Raises:
        ShapleyError: an unknown topic, fewer than two topics to tell apart, or a topic that yields no prompts.
    """
    for topic in topics:
        if topic not in documents:
            raise unknown_name("topic", topic, documents)
    if len(documents) < 2:
        raise ShapleyError("a topic's keywords are found against other topics: the corpus holds only one")
    selection: list[Prompt] = []
    held_out: list[Prompt] = []
    by_topic = _keywords(documents)
    for topic in topics:
        keywords = by_topic[topic]
        found: list[Candidate] = []
        for text in documents[topic]:
            for keyword in keywords:
                prompt = _prompt_before(text, keyword, max_sentences)
                if prompt and LEAST_TOKENS <= count_tokens(prompt) <= max_tokens:
                    found.append(Candidate(text, keyword, prompt))
        sides = _split(found, seed, same_keywords)
        if not all(sides):
            raise ShapleyError(
                f"topic {topic!r} yields no prompts on one side of the split: {len(documents[topic])} texts with "
                f"{len(keywords)} keywords; give it more texts"
            )
        for side, prompts in zip(sides, (selection, held_out), strict=True):
            prompts.extend(_as_prompt(topic, candidate) for candidate in _in_turn(side, topic, seed)[:per_topic])
    return selection, held_out


def _keywords(documents: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Every topic's keywords, each word with one topic only."""
    found = {topic: topic_keywords(documents, topic) for topic in documents}
    strongest: dict[str, tuple[float, str]] = {}
    for topic, keywords in found.items():
        for keyword in keywords:
            strongest[keyword.word] = max(strongest.get(keyword.word, (0.0, "")), (keyword.z, topic))
    return {
        topic: [keyword.word for keyword in keywords if strongest[keyword.word][1] == topic]
        for topic, keywords in found.items()
    }


def match_on_loss(prompts: Sequence[Prompt], n_bins: int = 8) -> list[Prompt]:
    """Keep the same number of prompts of every topic in each of ``n_bins`` bands of baseline log-probability, so that
    topics are equally hard for the unimpaired model."""
    if not prompts:
        return []
    values = np.array([prompt.logprob if prompt.logprob is not None else np.nan for prompt in prompts])
    if np.isnan(values).any():
        raise ShapleyError("topics can be matched on loss only after the model has scored the prompts")
    bands = np.digitize(values, np.quantile(values, np.linspace(0, 1, n_bins + 1)[1:-1]))
    topics = list(dict.fromkeys(prompt.topic for prompt in prompts))
    kept: set[int] = set()
    for band in range(n_bins):
        members = {t: [i for i, p in enumerate(prompts) if bands[i] == band and p.topic == t] for t in topics}
        size = min(map(len, members.values()))
        for indices in members.values():
            kept.update(indices[:size])
    return [prompt for i, prompt in enumerate(prompts) if i in kept]


def _prompt_before(text: str, keyword: str, max_sentences: int) -> str | None:
    """The text before the keyword's first lower-case appearance, from a sentence's start; ``None`` if there is none."""
    match = re.search(rf"(?<= ){keyword}\b", text)
    if match is None:
        return None
    before = text[: match.start()]
    ends = (end for end in _SENTENCE_END.finditer(before) if not _ABBREVIATION.search(before[: end.start()]))
    starts = [0, *(end.end() for end in ends)]
    prompt = before[starts[max(0, len(starts) - max_sentences)] :].rstrip()
    stem = _stem(keyword)
    return None if any(word.lower().startswith(stem) for word in WORD.findall(prompt)) else prompt


def _stem(word: str) -> str:
    """What the forms of a word have in common, roughly: company, companies; win, winning."""
    stem = _ENDINGS.sub("", word)
    if len(stem) > 3 and stem[-1] == stem[-2] and stem != word:
        stem = stem[:-1]
    return stem if len(stem) >= 3 else word


def _split(found: Sequence[Candidate], seed: int, same_keywords: bool) -> tuple[list[Candidate], list[Candidate]]:
    """Candidates to select on and held out: documents by a keyed draw, keywords by size to the lighter side; with
    ``same_keywords`` the selection's keywords on both."""
    counts: dict[str, int] = {}
    for candidate in found:
        counts[candidate.keyword] = counts.get(candidate.keyword, 0) + 1
    weight = [0, 0]
    side_of: dict[str, int] = {}
    for keyword in sorted(counts, key=lambda word: (-counts[word], word)):
        side_of[keyword] = int(weight[1] < weight[0])
        weight[side_of[keyword]] += counts[keyword]
    sides: tuple[list[Candidate], list[Candidate]] = ([], [])
    for candidate in found:
        side = int(keyed_rng(seed, "document", candidate.document).integers(2))
        if side_of[candidate.keyword] == (0 if same_keywords else side):
            sides[side].append(candidate)
    return sides


def _in_turn(candidates: Sequence[Candidate], topic: str, seed: int) -> list[Candidate]:
    """One of each keyword, then a second of each, and so on; documents in a keyed order."""
    order = keyed_rng(seed, topic, "order").permutation(len(candidates))
    by_keyword: dict[str, list[Candidate]] = {}
    for i in order:
        by_keyword.setdefault(candidates[i].keyword, []).append(candidates[i])
    return [candidate for turn in zip_longest(*by_keyword.values()) for candidate in turn if candidate is not None]


def _as_prompt(topic: str, candidate: Candidate) -> Prompt:
    source = hashlib.sha256(candidate.document.encode()).hexdigest()[:12]
    return Prompt(
        topic, candidate.prompt, f" {candidate.keyword}", id=f"{topic}-{source}-{candidate.keyword}", source=source
    )
