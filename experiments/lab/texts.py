"""The experiments' prompts, built once a model from DBpedia passages and social-media comments, and kept in the cache.

Three sets of keyword prompts, each of which holds what the untouched model gives at least one chance in a hundred (a
keyword it does not expect at all cannot fall): `selection`, to choose neurons on; `other_keywords`, of other documents and
other keywords; `same_keywords`, of other documents and the selection's keywords. And `plain`, passages of topics that are
not tested, whose every token is the answer: plain text.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shapley.builder import build_prompts, read_corpus
from shapley.errors import ShapleyError
from shapley.files import cache_directory, digest
from shapley.hf.baseline import score_baseline
from shapley.hf.load import LanguageModel
from shapley.keyed import keyed_rng
from shapley.progress import say
from shapley.prompts import Prompt, TopicPrompts, read_prompts, write_prompts

DBPEDIA_TOPICS = ("Athlete", "Artist", "Company", "Film", "Plant", "OfficeHolder")
COMMENT_TOPICS = ("toxic", "harmless")
TOPICS = (*DBPEDIA_TOPICS, *COMMENT_TOPICS)
SETS = ("selection", "other_keywords", "same_keywords", "plain")
LEAST_LOGPROB = math.log(0.01)
_LABELS = {"Toxic": "toxic", "Not Toxic": "harmless"}
PLAIN = "plain"  # as a topic
PER_TOPIC = 48  # prompts in a set, at most, where a configuration does not say otherwise
_PLAIN_TOKENS = 40
_SEED = 0
_DATA = "--data names the folder that holds dbpedia14/ and toxicity/"


@dataclass(frozen=True)
class Texts:
    """By topic: prompts to select on, and held out; and plain text. ``made_of``: hashes of the files they were made of."""

    selection: Mapping[str, TopicPrompts]
    other_keywords: Mapping[str, TopicPrompts]
    same_keywords: Mapping[str, TopicPrompts]
    plain: TopicPrompts
    made_of: Mapping[str, str] = field(default_factory=dict)

    def watched(self, config: Mapping[str, Any]) -> list[Prompt]:
        """Some held-out prompts of each topic, of other documents and other keywords than selected on, and plain text."""
        own = [p for topic in config["topics"] for p in self.other_keywords[topic].first(config["watched"]).prompts]
        return [*own, *self.plain.first(config["plain"]).prompts]


def corpora(data: Path) -> dict[str, Path]:
    """The files that the prompts are made of, by what they are."""
    return {"passages": data / "dbpedia14" / "passages.csv", "comments": data / "toxicity" / "comments.csv"}


def texts(lm: LanguageModel, data: Path, per_topic: int = PER_TOPIC, n_plain: int = 32) -> Texts:
    """The prompts of a model and of a text, from the cache, or built into it.

    Args:
        lm: whose tokens are counted, and whose untouched log-probabilities decide which prompts are kept.
        data: holds ``dbpedia14/passages.csv`` (topic,text) and ``toxicity/comments.csv`` (text,is_toxic).
        per_topic: at most so many of a topic in a set.
        n_plain: passages of plain text.

    Raises:
        ShapleyError: no text in ``data``, or a topic without prompts.
    """
    made_of = {what: hash_of(path) for what, path in corpora(data).items() if path.exists()}
    key = digest(str((lm.fingerprint, made_of, per_topic, n_plain)).encode())[:12]
    folder = cache_directory("experiments", "texts", f"{lm.name}-{key}")
    if not all(_file(folder, name).exists() for name in SETS):
        for name, prompts in _build(lm, data, per_topic, n_plain).items():
            write_prompts(_file(folder, name), prompts)
    selection, other, same, plain = (read_prompts(_file(folder, name)) for name in SETS)
    return Texts(selection, other, same, plain[PLAIN], made_of)


def hash_of(path: Path) -> str:
    """Of a file, for the record."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _file(folder: Path, name: str) -> Path:
    return folder / f"{name}.jsonl"


def _build(lm: LanguageModel, data: Path, per_topic: int, n_plain: int) -> dict[str, list[Prompt]]:
    dbpedia = passages(data)
    talk = comments(data)
    built: dict[str, list[Prompt]] = {name: [] for name in SETS}
    for documents, topics in ((dbpedia, DBPEDIA_TOPICS), (talk, COMMENT_TOPICS)):
        for held_out, same_keywords in (("other_keywords", False), ("same_keywords", True)):
            sides = build_prompts(
                documents,
                topics,
                lambda text: len(lm.tokenizer(text)["input_ids"]),
                seed=_SEED,
                max_tokens=64,
                same_keywords=same_keywords,
            )
            built[held_out] += sides[1]
        built["selection"] += sides[0]
    say(f"{lm.name}: scoring prompts on the untouched model, {sum(map(len, built.values()))} at most, once")
    kept = {name: _likely(lm, prompts, per_topic) for name, prompts in built.items() if prompts}
    kept[PLAIN] = score_baseline(lm, _plain(lm, dbpedia, n_plain))
    return kept


def _likely(lm: LanguageModel, prompts: list[Prompt], per_topic: int) -> list[Prompt]:
    """Of every topic the first that the untouched model expects; only as many are scored as are needed."""
    kept: list[Prompt] = []
    for topic in dict.fromkeys(prompt.topic for prompt in prompts):
        own = [prompt for prompt in prompts if prompt.topic == topic]
        found: list[Prompt] = []
        for start in range(0, len(own), 2 * per_topic):
            scored = score_baseline(lm, own[start : start + 2 * per_topic])
            found += [prompt for prompt in scored if (prompt.logprob or 0.0) >= LEAST_LOGPROB]
            if len(found) >= per_topic:
                break
        if not found:
            raise ShapleyError(f"topic {topic!r} has no keyword that {lm.name} expects: give it more text")
        kept += found[:per_topic]
    return kept


def _plain(lm: LanguageModel, passages: Mapping[str, Iterable[str]], n: int) -> list[Prompt]:
    """Passages of the other topics, cut to some forty tokens; the first words are the prompt, the rest the answer."""
    pool = [(topic, text) for topic, found in passages.items() if topic not in DBPEDIA_TOPICS for text in found]
    prompts: list[Prompt] = []
    for i in keyed_rng(_SEED, "plain").permutation(len(pool)):
        topic, text = pool[int(i)]
        words = text.split()
        while words and len(lm.tokenizer(" ".join(words))["input_ids"]) > _PLAIN_TOKENS:
            words.pop()
        if len(words) >= 16:
            prompts.append(Prompt(PLAIN, " ".join(words[:2]), f" {' '.join(words[2:])}", id=f"plain-{topic}-{i}"))
        if len(prompts) == n:
            break
    return prompts


def passages(data: Path) -> Mapping[str, Sequence[str]]:
    """DBpedia's passages by topic.

    Raises:
        ShapleyError: no such file below ``data``, or with other columns.
    """
    path = corpora(data)["passages"]
    if not path.exists():
        raise ShapleyError(f"no corpus at {path}: {_DATA}")
    return read_corpus(str(path))


def comments(data: Path) -> dict[str, list[str]]:
    """Toxic and harmless comments.

    Raises:
        ShapleyError: no such file below ``data``, or with other columns or labels.
    """
    path = corpora(data)["comments"]
    try:
        with path.open(encoding="utf-8", newline="") as lines:
            rows = [(_LABELS[row["is_toxic"]], " ".join(row["text"].split())) for row in csv.DictReader(lines)]
    except FileNotFoundError:
        raise ShapleyError(f"no comments at {path}: {_DATA}") from None
    except KeyError as error:
        raise ShapleyError(
            f"{path}: expected the columns text and is_toxic (Toxic, Not Toxic); {error} is wrong"
        ) from None
    return {topic: [text for label, text in rows if label == topic] for topic in COMMENT_TOPICS}
