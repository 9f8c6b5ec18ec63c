"""A sweep with everything chosen: enough to put its blocks together in a process that has no model.

A block is all seeds and prompts of one arm (a cluster, or a random control) at one strength. At strength 0, level 0, nothing
is impaired: one block, with one seed, stands for all arms.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shapley import __version__
from shapley.clusters import Cluster
from shapley.impairment import Impairment
from shapley.prompts import TopicPrompts
from shapley.records import METRICS, Sweep
from shapley.types import FloatArray


@dataclass(frozen=True)
class SweepDesign:
    """What is measured.

    Attributes:
        model: what sweep files record of it.
        arms: by name, clusters at the impairment's site, each followed by its random controls; ``None`` for every column.
        sizes: columns of each arm.
        impairment: kind, site, unit and seed; its own strength means nothing here.
        strengths: ``[strengths]``, zero first.
        absolute: ``[strengths, n_layers]``, in activation units or fractions.
        n_seeds: noise draws.
        dtype: what is computed in, as torch writes it: ``torch.float32``.
    """

    model: dict[str, Any]
    arms: dict[str, Cluster | None]
    sizes: list[int]
    impairment: Impairment
    strengths: FloatArray
    absolute: FloatArray
    n_seeds: int
    dtype: str

    def blocks(self) -> list[tuple[int, int]]:
        """Arm and level of each block, the untouched model's first."""
        return [(0, 0), *((arm, level) for arm in range(len(self.arms)) for level in range(1, len(self.strengths)))]

    def rows(self, n_prompts: int) -> int:
        """Forward rows of all blocks."""
        return n_prompts * (1 + len(self.arms) * (len(self.strengths) - 1) * self.n_seeds)

    def empty(self, n_prompts: int) -> FloatArray:
        """``[metric, arm, strength, seed, prompt]``, where blocks are to go."""
        return np.full((len(METRICS), len(self.arms), len(self.strengths), self.n_seeds, n_prompts), np.nan)

    def put(self, values: FloatArray, arm: int, level: int, block: FloatArray) -> None:
        """Put a block, ``[metric, seed, prompt]``, in its place."""
        arms = slice(None) if level == 0 else slice(arm, arm + 1)
        values[:, arms, level] = block[:, None]

    def settings(self, topics: Mapping[str, TopicPrompts]) -> dict[str, Any]:
        """Everything that the numbers depend on."""
        return {
            "model": self.model["fingerprint"],
            "prompts": {topic: group.sha256 for topic, group in topics.items()},
            "clusters": {
                name: None if arm is None else [list(pair) for pair in arm.neurons] for name, arm in self.arms.items()
            },
            "impairment": json.loads(self.impairment.to_json()),
            "strengths": self.strengths.tolist(),
            "seeds": self.n_seeds,
            "dtype": self.dtype,
            "version": __version__,
        }

    def sweep(
        self, values: FloatArray, topics: Mapping[str, TopicPrompts], rows: int, seconds: float, argv: Sequence[str]
    ) -> Sweep:
        """The records, from all blocks, and the forward rows and seconds that they cost."""
        attrs = {
            "wall_seconds": seconds,
            "forward_rows": rows,
            "package_version": __version__,
            "argv": json.dumps(list(argv)),
            "settings": json.dumps(self.settings(topics)),
            "cluster_topics": json.dumps(self._cluster_topics()),
            **{f"model_{name}": value for name, value in self.model.items()},
        }
        ends = np.cumsum([len(topic) for topic in topics.values()])
        records = dict(zip(topics, np.split(values, ends[:-1], axis=-1), strict=True))
        return Sweep(records, list(self.arms), self.sizes, self.strengths, self.absolute, self.impairment, attrs)

    def _cluster_topics(self) -> dict[str, str]:
        """What the clusters say that they were chosen for; random controls, of nothing."""
        rules = {name: arm.rule for name, arm in self.arms.items() if arm is not None and "/random-" not in name}
        return {name: rule["topic"] for name, rule in rules.items() if isinstance(rule.get("topic"), str)}

    def record(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "arms": {name: None if arm is None else arm.record() for name, arm in self.arms.items()},
            "sizes": self.sizes,
            "impairment": json.loads(self.impairment.to_json()),
            "strengths": self.strengths.tolist(),
            "absolute": self.absolute.tolist(),
            "n_seeds": self.n_seeds,
            "dtype": self.dtype,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> SweepDesign:
        """From what ``record`` made."""
        return cls(
            record["model"],
            {name: None if arm is None else Cluster.from_record(arm) for name, arm in record["arms"].items()},
            record["sizes"],
            Impairment(**record["impairment"]),
            np.array(record["strengths"]),
            np.array(record["absolute"]),
            record["n_seeds"],
            record["dtype"],
        )
