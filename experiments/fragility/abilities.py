"""What each ability is measured on: items that are written or made here, and those that prompts of topics become.

Copying and arithmetic are made, each item by its own key; grammar is written out. An item is an answer that a good model
gives, or a choice between a good continuation and a bad one of the same prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

from shapley.keyed import keyed_rng
from shapley.prompts import Prompt

LENGTHS = (3, 4, 5, 6)  # of the lists that are copied
_SHOTS = 4
_SEED = 0
_NUMBERS = "zero one two three four five six seven eight nine".split()
_WORDS = (
    "apple river stone house garden window paper horse music table winter bread mountain doctor yellow summer island "
    "letter market silver bridge orange kitchen forest teacher pencil castle butter village engine flower desert ocean "
    "mirror coffee church rabbit dinner tiger dragon"
).split()


class Continuation(Prompt):
    """One of two: both see the same noise, which so cancels from their difference."""

    @property
    def key(self) -> str:
        return self.prompt


@dataclass(frozen=True)
class Item:
    """An answer; in grammar, also the bad continuation that it should be likelier than."""

    good: Prompt
    bad: Prompt | None = None

    @property
    def ability(self) -> str:
        return self.good.topic


def of_prompts(prompts: Iterable[Prompt]) -> list[Item]:
    return [Item(prompt) for prompt in prompts]


def copying(n: int) -> list[Item]:
    """Lists of common words, once whole and once but for the last word: "apple river stone . apple river" -> " stone"."""
    items = []
    for i, length in zip(range(n), itertools.cycle(LENGTHS), strict=False):
        words = [str(word) for word in keyed_rng(_SEED, "copying", i).choice(_WORDS, length, replace=False)]
        prompt = f"{' '.join(words)} . {' '.join(words[:-1])}"
        items.append(Item(Prompt("copying", prompt, f" {words[-1]}", id=f"copying-{i}")))
    return items


def arithmetic(n: int) -> list[Item]:
    """One-digit sums after four solved ones, in digits and in words by turns; all differ (there are 72). No solved sum comes to
    the answer, so that it cannot be copied."""
    sums = [(a, b) for a in range(1, 9) for b in range(1, 10 - a)]
    orders = [keyed_rng(_SEED, "arithmetic", style).permutation(len(sums)) for style in ("digits", "words")]
    items = []
    for i, (turn, in_words) in zip(range(n), itertools.product(range(len(sums)), (False, True)), strict=False):
        a, b = sums[orders[in_words][turn]]
        others = [other for other in sums if sum(other) != a + b]
        shots = [others[j] for j in keyed_rng(_SEED, "shots", i).choice(len(others), _SHOTS, replace=False)]
        solved = "".join(f"{''.join(_sum(*shot, in_words=in_words))}\n" for shot in shots)
        question, answer = _sum(a, b, in_words=in_words)
        items.append(Item(Prompt("arithmetic", solved + question, answer, id=f"arithmetic-{i}")))
    return items


def _sum(a: int, b: int, *, in_words: bool) -> tuple[str, str]:
    """Question and answer. Digits go without spaces: tokenizers that split digits would count the space as half the answer."""
    if in_words:
        return f"{_NUMBERS[a]} plus {_NUMBERS[b]} equals", f" {_NUMBERS[a + b]}"
    return f"{a}+{b}=", f"{a + b}"


def grammar() -> list[Item]:
    """Minimal pairs, of every phenomenon in turn, so that the first few hold all of them."""
    columns = [
        [
            (f"{phenomenon}-{i}", *(part.strip() for part in line.split("|")))
            for i, line in enumerate(lines.strip().splitlines())
        ]
        for phenomenon, lines in _PAIRS.items()
    ]
    in_turn = [pair for row in itertools.zip_longest(*columns) for pair in row if pair]
    return [
        Item(*(Continuation("grammar", prompt, f" {word}", id=name) for word in (good, bad)))
        for name, prompt, good, bad in in_turn
    ]


_PAIRS = {
    "agreement": """
        The keys to the cabinet | are | is
        The key to the cabinets | is | are
        The label on the bottles | is | are
        The labels on the bottle | are | is
        The author of the books | has | have
        The authors of the book | have | has
        The pictures on the wall | were | was
        The picture of the mountains | was | were
        The teacher who taught the students | was | were
        The students who met the teacher | were | was
        The road through the hills | is | are
        The dogs near the house | are | is
    """,
    "reflexive": """
        The girl hurt | herself | himself
        The boy taught | himself | herself
        The king admired | himself | herself
        The queen looked at | herself | himself
        My uncle blamed | himself | herself
        My grandmother introduced | herself | himself
        The men behind my sister blamed | themselves | herself
        The women near the king admired | themselves | himself
        The boys dressed | themselves | himself
        The actress praised | herself | themselves
        The waiter cut | himself | themselves
        The children enjoyed | themselves | itself
    """,
    "noun number": """
        She picked up these | books | book
        She picked up this | book | books
        He never liked those | houses | house
        We talked about that | song | songs
        They sold all of these | cars | car
        I would like another | apple | apples
        There were many | problems | problem
        He answered each | question | questions
        She has several | friends | friend
        We saw every | film | films
        I met both | brothers | brother
        He bought a | chair | chairs
    """,
    "irregular past": """
        Yesterday she | wrote | written
        The letter was | written | wrote
        Last week he | broke | broken
        The window was | broken | broke
        Yesterday they | ate | eaten
        The cake was | eaten | ate
        Last night we | saw | seen
        She has | gone | went
        Last year he | went | gone
        They have | begun | began
        The song was | sung | sang
        Yesterday the bird | flew | flown
    """,
    "polarity": """
        She has not met | anyone | someone
        I am sure that she knows | something | anything
        Nobody said | anything | something
        They want to go | somewhere | anywhere
        He never goes | anywhere | somewhere
        She bought | some | any
        There is hardly | any | some
        The students have not finished | yet | already
        I doubt that he will | ever | always
        Few people have | ever | never
        We did not see | any | some
        He does not work here | anymore | already
    """,
}
