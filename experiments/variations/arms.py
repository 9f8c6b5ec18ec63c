"""What is varied: how neurons are chosen, and how they are taken out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from experiments.lab.scores import SEMIVALUE
from experiments.lab.texts import PLAIN, Texts
from shapley.errors import ShapleyError
from shapley.prompts import TopicPrompts
from shapley.types import Kind, Site

HALF = 16  # passages of plain text that are watched at most; the others are selected on


@dataclass(frozen=True)
class Arm:
    """One way to impair a topic; the defaults are the reference's.

    Attributes:
        selector: that ranks the neurons.
        plain: whether plain text is among what the guard holds a topic against.
        semivalue: of the scores: how coalitions are weighted by their size.
        kind: what is put in place of a neuron's activation.
        site: ``mlp_hidden``; before and after, the cluster's footprint in residual dimensions.
        above: impair a neuron only at tokens where its activation, in size, is above this quantile of what it is in the other
            topics' texts; ``None``: everywhere.
    """

    selector: str = "guarded"
    plain: bool = False
    semivalue: str = SEMIVALUE
    kind: Kind = "zero"
    site: Site = "mlp_hidden"
    above: float | None = None


def arms_of(config: Mapping[str, Any]) -> dict[str, Arm]:
    return {name: Arm(**changed) for name, changed in config["arms"].items()}


def selection(prompts: Texts, config: Mapping[str, Any]) -> dict[str, TopicPrompts]:
    """The prompts that neurons are selected on; of plain text, passages that are not watched.

    Raises:
        ShapleyError: no passage is left to select on.
    """
    passages = prompts.plain.prompts[HALF:]
    if not passages or config["plain"] > HALF:
        raise ShapleyError(f"at most {HALF} passages of plain text can be watched: the others are selected on")
    return {
        **{topic: prompts.selection[topic] for topic in config["topics"]},
        PLAIN: replace(prompts.plain, prompts=passages),
    }
