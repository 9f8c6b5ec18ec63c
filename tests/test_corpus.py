"""The embedded passages and comments: how many, how clean, and how many prompts they give."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest

from shapley.builder import build_prompts
from shapley.corpus import COMMENTS, PASSAGES, read_embedded, reference_texts

FILES = {PASSAGES: ("athlete", "artist", "company"), COMMENTS: ("harmless", "rude")}


@cache
def by_topic(file):
    found = {}
    for topic, text in read_embedded(file):
        found.setdefault(topic, []).append(text)
    return found


def everything():
    return [text for file in FILES for texts in by_topic(file).values() for text in texts]


def repeated(items):
    return [item for item, count in Counter(items).items() if count > 1]


@pytest.mark.parametrize(("file", "least"), [(PASSAGES, 150), (COMMENTS, 100)])
def test_there_are_enough_of_every_topic(file, least):
    counts = {topic: len(texts) for topic, texts in by_topic(file).items()}
    assert set(counts) == set(FILES[file])
    assert min(counts.values()) >= least


def test_no_text_is_there_twice():
    assert repeated(everything()) == []


def test_no_two_texts_start_with_the_same_four_words():
    assert repeated(" ".join(text.lower().split()[:4]) for text in everything()) == []


def test_texts_are_ascii_on_one_line():
    assert [text for text in everything() if not text.isascii() or text != " ".join(text.split())] == []


@pytest.mark.parametrize(("file", "least"), [(PASSAGES, 100), (COMMENTS, 40)])
def test_every_topic_gives_enough_prompts_on_each_side(file, least):
    documents = by_topic(file)
    for side in build_prompts(documents, list(documents), lambda text: len(text.split())):
        counts = Counter(prompt.topic for prompt in side)
        assert min(counts[topic] for topic in FILES[file]) >= least
        assert repeated((prompt.prompt, prompt.answer) for prompt in side) == []


def test_reference_texts_take_the_topics_in_turn():
    topics = [texts for file in FILES for texts in by_topic(file).values()]
    texts = reference_texts()
    assert len(texts) == 96
    assert list(texts) == [topics[i % 5][i // 5] for i in range(96)]
