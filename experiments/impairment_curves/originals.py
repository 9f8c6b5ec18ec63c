"""The three original tests, and what each impairs and watches here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from experiments.lab.texts import PLAIN, Texts
from shapley.clusters import Cluster, rank, select
from shapley.hf.load import LanguageModel, describe
from shapley.prompts import TopicPrompts
from shapley.store import ScoreFile
from shapley.types import Kind


@dataclass(frozen=True)
class Original:
    """A test as it was proposed.

    Attributes:
        topics: whose prompts are watched.
        target: of them, the one whose cluster is impaired.
        per_layer: whether the cluster is a fraction of each layer, or of all neurons.
        kinds: of impairment; ``shift``, which was not proposed, is the control of ``negative-noise``.
        where: its site, in words.
    """

    topics: tuple[str, ...]
    target: str
    per_layer: bool
    kinds: tuple[Kind, ...]
    where: str


_TALK = ("harmless", "toxic", "Athlete")
ORIGINALS = {
    1: Original(_TALK, "toxic", True, ("noise", "scale"), "after the MLP"),
    2: Original(
        ("Athlete", "Artist", "Company"),
        "Athlete",
        False,
        ("noise", "negative-noise", "shift", "scale"),
        "at the neurons",
    ),
    3: Original(_TALK, "toxic", True, ("noise", "scale"), "before the MLP"),
}


def clusters_of(
    lm: LanguageModel, scores: ScoreFile, original: Original, config: Mapping[str, Any]
) -> dict[str, Cluster]:
    """The target's neurons, by each of the configuration's rules."""
    others = [topic for topic in config["topics"] if topic != original.target]
    versus = {"shapley": (), "guarded": others}
    return {
        name: Cluster(
            select(
                rank(scores, original.target, versus[name]),
                fraction=config["fraction"],
                per_layer=original.per_layer,
            ),
            model=describe(lm),
        )
        for name in config["clusters"]
    }


def watched(prompts: Texts, original: Original, config: Mapping[str, Any]) -> dict[str, TopicPrompts]:
    """By topic, held-out prompts of other keywords than selected on and, if there are not enough, of the same; plain text."""
    held_out = {
        topic: TopicPrompts(topic, prompts.other_keywords[topic].prompts + prompts.same_keywords[topic].prompts)
        for topic in original.topics
    }
    found = {topic: own.first(config["prompts"]) for topic, own in held_out.items()}
    return {**found, PLAIN: prompts.plain.first(config["plain"])}
