"""What the ladders' reports say of both models; from a stored file only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from experiments.lab.results import Stored


@dataclass(frozen=True)
class Results(Stored):
    """A stored file of the experiment: each model's abilities, and a report for every ladder."""

    @property
    def models(self) -> list[str]:
        return [record["model"] for record in self.records if "accuracy" in record]

    @property
    def kinds(self) -> list[str]:
        return list(self.head["config"]["kinds"])

    def ability(self, model: str) -> dict[str, Any]:
        """Accuracy without the password and with it."""
        return next(record for record in self.records if record["model"] == model and "accuracy" in record)

    def report(self, model: str, kind: str) -> dict[str, Any]:
        """Of a ladder (docs/assess.md)."""
        found = next(record for record in self.records if record["model"] == model and record.get("kind") == kind)
        report: dict[str, Any] = found["report"]
        return report
