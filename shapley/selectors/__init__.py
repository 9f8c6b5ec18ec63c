"""Ways to choose a topic's neurons, by name."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from shapley.errors import unknown_name

_WHERE = {
    "shapley": "scores:Shapley",
    "contrast": "scores:Contrast",
    "guarded": "scores:Guarded",
    "interval": "scores:Interval",
    "attribution": "attribution:Attribution",
    "guarded-attribution": "attribution:GuardedAttribution",
    "knowledge-neurons": "attribution:KnowledgeNeurons",
    "frequency": "activations:FrequencyDifference",
    "expert-units": "activations:ExpertUnits",
    "entropy": "activations:Entropy",
    "norm": "activations:Norm",
    "causal-tracing": "tracing:CausalTracing",
    "edit-vector": "edit:EditVector",
    "random": "matched:Random",
}
NAMES = tuple(_WHERE)


def selector(name: str) -> Any:
    """A selector with its published settings.

    Raises:
        ShapleyError: an unknown name.
    """
    if name not in _WHERE:
        raise unknown_name("selector", name, NAMES)
    module, _, cls = _WHERE[name].partition(":")
    return getattr(import_module(f"shapley.selectors.{module}"), cls)()
