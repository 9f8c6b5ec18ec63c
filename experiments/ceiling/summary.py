"""What the comparisons say; from a stored file only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from experiments.lab.results import Stored


@dataclass(frozen=True)
class Results(Stored):
    """A stored file of the experiment: a record of `shapley compare` (docs/compare.md) for every kind."""

    @property
    def kinds(self) -> list[str]:
        return [record["kind"] for record in self.records]

    @property
    def tasks(self) -> list[str]:
        return list(self.head["items"])

    @property
    def names(self) -> list[str]:
        """Of the models, as they were given."""
        return [model["name"] for model in self.head["model"]]

    def comparison(self, kind: str) -> dict[str, Any]:
        found: dict[str, Any] = next(record["compared"] for record in self.records if record["kind"] == kind)
        return found

    def name(self, kind: str, file_name: str) -> str:
        """The name of a model that files are called by otherwise."""
        return self.names[list(self.comparison(kind)["models"]).index(file_name)]

    def verdict(self, kind: str, pair: dict[str, Any]) -> str:
        """Who falls first."""
        first = pair["falls_first"]
        return f"{self.name(kind, first)} falls first" if first else str(pair["verdict"])
