"""Tasks: items that are asked, and scores in [0, 1] of what comes back. More is more of the capability that is feared.

A JSON-lines task has one item a line: ``{"id": "a1", "prompt": "…", "target": "…"}``, or ``"messages"`` (a chat) for
``"prompt"``. Scorers:

=============  ===================================================================================================
``exact``      1 if the reply, with white space around it removed, is the target
``includes``   1 if the target occurs in the reply; upper and lower case are the same
``regex``      1 if the target, a regular expression, matches somewhere in the reply
``choice``     1 if of ``"choices"`` the target has the largest log-probability after the prompt. Nothing is put
               between prompt and choice, so choices begin with their space, and long ones are not favoured or
               normalised for (the ``acc`` of lm-evaluation-harness). For prompts only: chats cannot be scored so
=============  ===================================================================================================

With a list as the target one that fits is enough.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shapley.assess.client import Client, Messages
from shapley.assess.levels import Applied, Level
from shapley.errors import ShapleyError, unknown_name


@dataclass(frozen=True)
class Answer:
    """An item's score, the reply it is of, and the impairment that it was given under."""

    item: str
    score: float
    reply: str
    applied: Applied


class Task(Protocol):
    """What a ladder needs of a task: what is asked and how it is scored, for the record, with a hash of the items."""

    name: str
    scorer: str
    sha256: str

    @property
    def ids(self) -> Sequence[str]:
        """Of the items."""

    def ask(self, client: Client, level: Level, ids: Sequence[str]) -> Iterator[Answer]:
        """Answers of these items, as they come.

        Raises:
            ShapleyError: an item cannot be asked or scored.
        """


def _exact(reply: str, target: str) -> bool:
    return reply.strip() == target.strip()


def _includes(reply: str, target: str) -> bool:
    return target.casefold() in reply.casefold()


def _regex(reply: str, target: str) -> bool:
    return re.search(target, reply) is not None


_OF_TEXT: dict[str, Callable[[str, str], bool]] = {"exact": _exact, "includes": _includes, "regex": _regex}
SCORERS = (*_OF_TEXT, "choice")


@dataclass(frozen=True)
class Item:
    """``choices`` for the scorer ``choice``; a ``question`` is a prompt or a chat."""

    id: str
    question: str | Messages
    targets: tuple[str, ...]
    choices: tuple[str, ...] = ()


class JsonlTask:
    """A file of items, and a scorer.

    Args:
        max_tokens: of a reply; not used by ``choice``.

    Raises:
        ShapleyError: a file that cannot be read, a line that is no item (it is named), or an unknown scorer.
    """

    def __init__(self, path: Path, scorer: str, max_tokens: int = 256) -> None:
        if scorer not in SCORERS:
            raise unknown_name("scorer", scorer, SCORERS)
        try:
            content = path.read_bytes()
            lines = content.decode("utf-8").split("\n")
        except (OSError, UnicodeDecodeError):
            raise ShapleyError(f"cannot read the task {path}: expected a file of JSON lines") from None
        self.name, self.scorer, self.max_tokens = path.name, scorer, max_tokens
        self.sha256 = hashlib.sha256(content).hexdigest()
        self._items = _read_items(path, lines, scorer)
        self.ids = tuple(self._items)

    def ask(self, client: Client, level: Level, ids: Sequence[str]) -> Iterator[Answer]:
        """All of them at once, one thread each."""
        with ThreadPoolExecutor(len(ids)) as pool:
            asked = [pool.submit(self._answer, client, level, self._items[item]) for item in ids]
            for done in as_completed(asked):
                yield done.result()

    def _answer(self, client: Client, level: Level, item: Item) -> Answer:
        if item.choices and isinstance(item.question, str):
            found = client.loglikelihoods(item.question, item.choices, level)
            best = item.choices[max(range(len(item.choices)), key=found.logprobs.__getitem__)]
            return Answer(item.id, float(best in item.targets), best, found.applied)
        reply = client.generate(item.question, level, self.max_tokens)
        score = any(_OF_TEXT[self.scorer](reply.text, target) for target in item.targets)
        return Answer(item.id, float(score), reply.text, reply.applied)


def _read_items(path: Path, lines: Sequence[str], scorer: str) -> dict[str, Item]:
    items: dict[str, Item] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            item = _item(json.loads(line), scorer)
        except (ValueError, RecursionError) as error:
            raise ShapleyError(f"{path}, line {number}: {error}") from None
        if item.id in items:
            raise ShapleyError(f"{path}, line {number}: the id {item.id!r} is there twice")
        items[item.id] = item
    if not items:
        raise ShapleyError(f"{path} has no items")
    return items


def _item(entry: Any, scorer: str) -> Item:
    """Raises ValueError, with what is wrong."""
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), str | int):
        raise ValueError('expected {"id": …, "prompt" or "messages": …, "target": …}')
    name, question = str(entry["id"]), _question(entry)
    targets = _strings("target", entry.get("target"))
    if scorer != "choice":
        for pattern in targets if scorer == "regex" else ():
            _check_regex(pattern)
        return Item(name, question, targets)
    if not isinstance(question, str):
        raise ValueError("the scorer 'choice' is for prompts, not for messages")
    choices = _strings("choices", entry.get("choices"))
    if len(choices) < 2 or not set(targets) <= set(choices):
        raise ValueError("the scorer 'choice' needs two choices or more, with the target among them")
    return Item(name, question, targets, choices)


def _question(entry: dict[str, Any]) -> str | Messages:
    prompt, messages = entry.get("prompt"), entry.get("messages")
    if isinstance(prompt, str) and prompt and messages is None:
        return _whole(prompt)
    if prompt is None and isinstance(messages, list) and messages and all(map(_is_message, messages)):
        return messages
    raise ValueError('expected a "prompt" (text) or "messages" ([{"role": …, "content": …}, …]), one of them')


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(key), str) and _whole(message[key]) == message[key] for key in ("role", "content")
    )


def _strings(what: str, value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(text, str) and text for text in values):
        raise ValueError(f'"{what}": expected text, or a list of texts, none empty')
    return tuple(map(_whole, values))


def _whole(text: str) -> str:
    """Raises ValueError for a text with half of a character, which cannot be sent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text has half of a character (a lone surrogate)") from None
    return text


def _check_regex(pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
