"""Documents as tokens: some to train on, others held out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shapley.errors import ShapleyError
from shapley.keyed import keyed_rng

_LEAST_TOKENS = 8
_SEED = 0


@dataclass(frozen=True)
class Split:
    """Token ids by document; no document is in both. ``topics`` are those of the documents in ``train``."""

    train: list[list[int]]
    held_out: list[list[int]]
    topics: list[str]


def split(corpus: Mapping[str, Sequence[str]], tokenizer: Any, *, train: int, held_out: int, max_tokens: int) -> Split:
    """Different documents of all topics, in an order that only they decide; the held-out ones do not depend on ``train``.

    Args:
        corpus: texts by topic (``shapley.builder.read_corpus``).
        train, held_out: how many documents.
        max_tokens: to which each is cut; those of fewer than eight are left out.

    Raises:
        ShapleyError: fewer documents than that.
    """
    topic_of: dict[str, str] = {}  # of a text that is in several, the first
    for topic, own in corpus.items():
        for text in own:
            topic_of.setdefault(text, topic)
    texts = list(topic_of)
    wanted = train + held_out
    documents: list[list[int]] = []
    topics: list[str] = []
    for i in keyed_rng(_SEED, "sparse documents").permutation(len(texts)):
        ids = tokenizer(texts[int(i)])["input_ids"][:max_tokens]
        if len(ids) >= _LEAST_TOKENS:
            documents.append(ids)
            topics.append(topic_of[texts[int(i)]])
        if len(documents) == wanted:
            break
    if len(documents) < wanted:
        raise ShapleyError(
            f"the corpus has {len(documents)} different documents of at least {_LEAST_TOKENS} tokens, and {wanted} are wanted: "
            "give it more text, or ask for fewer documents"
        )
    return Split(documents[held_out:], documents[:held_out], topics[held_out:])
