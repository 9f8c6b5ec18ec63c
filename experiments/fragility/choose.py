"""Which items count: those that the untouched model gets right enough. An answer that it does not expect cannot fall."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.fragility.abilities import Item, arithmetic, copying, grammar, of_prompts
from experiments.fragility.measure import performances
from experiments.lab.texts import LEAST_LOGPROB, PLAIN, Texts
from shapley.errors import ShapleyError
from shapley.hf.load import LanguageModel
from shapley.impairment import Impairment
from shapley.types import FloatArray

GRAMMAR = "grammar"
_CANDIDATES = 72  # of copying and of arithmetic
_CHANCE = {GRAMMAR: 1 / 2, "copying": 1 / 3}  # either continuation; any word of the shortest list


def choose(lm: LanguageModel, prompts: Texts, config: Mapping[str, Any]) -> tuple[list[Item], dict[str, Any]]:
    """The items of all abilities, and by ability what the untouched model makes of its candidates.

    Right enough is an answer of a chance of one in a hundred (a token), and a pair whose good continuation is the likelier.

    Raises:
        ShapleyError: an ability none of whose candidates the model gets right enough.
    """
    items, facts = [], {}
    for ability, (own, (performance, right)) in _candidates(lm, prompts, config["topics"]).items():
        enough = performance > 0 if own[0].bad else performance >= LEAST_LOGPROB
        if not enough.any():
            raise ShapleyError(f"{lm.name} gets no item of {ability!r} right enough: leave it out")
        items += [own[i] for i in np.flatnonzero(enough)[: config["prompts"]]]
        facts[ability] = {
            "candidates": len(own),
            "enough": int(enough.sum()),
            "right": int(right.sum()),
            "chance": chance(own),
        }
    return items, facts


def _candidates(lm: LanguageModel, prompts: Texts, topics: Sequence[str]) -> dict[str, tuple[list[Item], FloatArray]]:
    """By ability, its items and ``[2, items]`` of the untouched model; that of texts was found when they were built."""
    texts = {topic: of_prompts(prompts.other_keywords[topic].prompts) for topic in topics}
    texts[PLAIN] = of_prompts(prompts.plain.prompts)
    found = {
        name: (own, np.array([[item.good.logprob, item.good.known] for item in own], dtype=float).T)
        for name, own in texts.items()
    }
    for name, own in (
        ("copying", copying(_CANDIDATES)),
        ("arithmetic", arithmetic(_CANDIDATES)),
        (GRAMMAR, grammar()),
    ):
        [values] = performances(lm, own, Impairment("scale"), [0.0])
        found[name] = own, values
    return found


def chance(items: Sequence[Item]) -> float | None:
    """The accuracy of guessing: always the most frequent answer, if nothing better. None for plain text, which is never
    right as a whole."""
    ability = items[0].ability
    if ability == PLAIN:
        return None
    most = Counter(item.good.answer for item in items).most_common(1)[0][1]
    return _CHANCE.get(ability, most / len(items))
