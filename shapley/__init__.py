"""Neuron Shapley for transformers.

Which MLP neurons of a language model carry a topic, and what the model can still do when they are impaired by degrees.
Names are loaded when they are first used, so that queries of stored files do not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    "load_model": "shapley.hf.load",
    "register_family": "shapley.hf.sites",
    "Family": "shapley.hf.sites",
    "Impairment": "shapley.impairment",
    "impair": "shapley.hf.hooks",
    "Rows": "shapley.hf.hooks",
    "Prompt": "shapley.prompts",
    "TopicPrompts": "shapley.prompts",
    "read_prompts": "shapley.prompts",
    "NeuronGame": "shapley.game",
    "GroupGame": "shapley.groups",
    "Partition": "shapley.groups",
    "Plan": "shapley.estimators.registry",
    "estimate": "shapley.runs",
    "ScoreFile": "shapley.store",
    "Cluster": "shapley.clusters",
    "rank": "shapley.clusters",
    "select": "shapley.clusters",
    "footprint": "shapley.footprint",
    "sweep": "shapley.sweeps",
    "ShapleyError": "shapley.errors",
}
__all__ = ["__version__", *_WHERE]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'shapley' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
