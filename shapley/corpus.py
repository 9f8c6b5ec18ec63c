"""The embedded corpus: short passages on athletes, artists and companies, harmless and rude comments (see ``data/``)."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import islice, zip_longest

PASSAGES = "passages.csv"
COMMENTS = "comments.csv"
_REFERENCE_TEXTS = 96


def read_embedded(file: str) -> list[tuple[str, str]]:
    """(topic, text) rows of an embedded file."""
    with resources.files("neuron_shapley_data").joinpath(file).open(encoding="utf-8") as lines:
        return [(row["topic"], row["text"]) for row in csv.DictReader(lines)]


def reference_texts() -> Sequence[str]:
    """The text that activation statistics are taken over: passages and comments, topics in turn."""
    by_topic: dict[str, list[str]] = {}
    for topic, text in read_embedded(PASSAGES) + read_embedded(COMMENTS):
        by_topic.setdefault(topic, []).append(text)
    return list(islice(_in_turn(list(by_topic.values())), _REFERENCE_TEXTS))


def _in_turn(groups: Sequence[Sequence[str]]) -> Iterator[str]:
    for texts in zip_longest(*groups):
        yield from (text for text in texts if text is not None)
