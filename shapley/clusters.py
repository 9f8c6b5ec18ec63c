"""Clusters: the neurons that scores select, and random ones like them to compare with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from shapley.errors import ShapleyError
from shapley.files import write_text
from shapley.keyed import keyed_rng
from shapley.store import ScoreFile, players_of
from shapley.types import FloatArray, IntArray, Site

FORMAT = "neuron-shapley-cluster"
VERSION = 1
DEFAULT_GUARD = 4.0


@dataclass(frozen=True)
class Cluster:
    """Neurons of one model, best first.

    Attributes:
        neurons: (layer, column) pairs.
        site: whose columns they are.
        model: name and fingerprint of the model.
        rule: how they were chosen.
    """

    neurons: tuple[tuple[int, int], ...]
    site: Site = "mlp_hidden"
    model: Mapping[str, Any] = field(default_factory=dict)
    rule: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.neurons)

    def per_layer(self, n_layers: int) -> IntArray:
        """``[n_layers]``: how many of its neurons are in each layer."""
        return np.bincount([layer for layer, _ in self.neurons], minlength=n_layers)

    def save(self, path: str | Path) -> None:
        """Write the cluster file (docs/formats.md)."""
        write_text(Path(path), json.dumps(self.record(), indent=1) + "\n")

    def record(self) -> dict[str, Any]:
        """What a cluster file holds."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "model": dict(self.model),
            "site": self.site,
            "neurons": [list(pair) for pair in self.neurons],
            "rule": dict(self.rule),
        }

    @classmethod
    def load(cls, path: str | Path) -> Cluster:
        """Read a cluster file.

        Raises:
            ShapleyError: no such file, or not a cluster file.
        """
        try:
            record = json.loads(Path(path).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ShapleyError(f"no cluster file at {path}: make one with 'shapley cluster'") from None
        except ValueError:  # no UTF-8, or no JSON
            raise ShapleyError(f"{path} is no cluster file, which is JSON: make one with 'shapley cluster'") from None
        except OSError as error:
            raise ShapleyError(f"cannot read cluster file {path}: {error.strerror or error}") from error
        if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != VERSION:
            raise ShapleyError(f"{path} is not a cluster file of version {VERSION}")
        try:
            found = cls.from_record(record)
        except (KeyError, TypeError, ValueError) as error:
            raise ShapleyError(f"{path}: 'neurons' must be a list of [layer, neuron] pairs") from error
        if not found.neurons or len(set(found.neurons)) < len(found.neurons):
            what = "one is there twice" if found.neurons else "there are none"
            raise ShapleyError(f"{path}: 'neurons' must be a list of [layer, neuron] pairs, each once, but {what}")
        return found

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Cluster:
        """From what a cluster file holds. Raises KeyError, TypeError or ValueError where 'neurons' are no pairs."""
        neurons = tuple((int(layer), int(column)) for layer, column in record["neurons"])
        model = record.get("model")
        model = model if isinstance(model, dict) else {"name": model}
        return cls(neurons, record.get("site", "mlp_hidden"), model, record.get("rule") or {})

    def check_model(self, model: Mapping[str, Any], path: str | Path) -> None:
        """Raises ShapleyError when the cluster was chosen on another model."""
        ours = self.model.get("fingerprint")
        if ours is not None and ours != model["fingerprint"]:
            raise ShapleyError(
                f"{path} belongs to another model: {self.model.get('name')} (fingerprint {ours}), "
                f"not {model['name']} ({model['fingerprint']}): give the model, and the basis, that it is of"
            )


@dataclass(frozen=True)
class Ranking:
    """What neurons, or groups of them, are ranked by.

    Attributes:
        score, stderr: ``[n_layers, width]``, NaN where not estimated; all neurons of a group hold the group's.
        group: ``[n_layers, width]``, each neuron's group, -1 for none; where players are groups.
        names: of the groups.
    """

    score: FloatArray
    stderr: FloatArray
    group: IntArray | None = None
    names: tuple[str, ...] = ()

    def order(self) -> IntArray:
        """Flat indices of the estimated neurons, highest score first; of each group, only its first neuron."""
        flat = self.score.ravel()
        players = np.arange(len(flat)) if self.group is None else np.sort(players_of(self.group))
        order = players[np.argsort(-flat[players], kind="stable")]
        return order[: int(np.isfinite(flat[players]).sum())]

    def best(self, k: int) -> IntArray:
        """The first ``k`` of ``order``.

        Raises:
            ShapleyError: there are not so many.
        """
        order = self.order()
        if not 0 < k <= len(order):
            what = "neurons" if self.group is None else "groups"
            raise ShapleyError(
                f"asked for the top {k} of {len(order)} scored {what}: choose between 1 and {len(order)}"
            )
        return order[:k]

    def members(self, i: int) -> IntArray:
        """Flat indices of the neurons that are ranked together with neuron ``i``: its group's, or itself."""
        return np.array([i]) if self.group is None else np.flatnonzero(self.group == self.group.flat[i])

    def top(self, k: int) -> list[dict[str, Any]]:
        """The ``k`` highest, as records: ``rank``, ``layer`` and ``neuron`` (of groups: ``group``, its name, and
        ``neurons``, how many), ``score``, ``stderr``.

        Raises:
            ShapleyError: there are not so many.
        """
        return [
            {
                "rank": rank,
                **self._player(int(i)),
                "score": float(self.score.flat[i]),
                "stderr": float(self.stderr.flat[i]),
            }
            for rank, i in enumerate(self.best(k), start=1)
        ]

    def _player(self, i: int) -> dict[str, str | int]:
        if self.group is None:
            return {"layer": i // self.score.shape[1], "neuron": i % self.score.shape[1]}
        return {"group": self.names[self.group.flat[i]], "neurons": len(self.members(i))}


def rank(scores: ScoreFile, topic: str, versus: Sequence[str] = (), guard: float = DEFAULT_GUARD) -> Ranking:
    """What to rank a topic's neurons by.

    Without ``versus``, the topic's score. With it, the guarded contrast: the topic's score minus ``guard`` times the
    largest absolute score that the neuron has for any other topic; so neurons that matter to every topic, on which the
    whole model hangs, fall behind. ``guard=0`` is the plain contrast: the topic's score minus the mean of the others'.

    The contrast's standard error is the spread of its replicates, the other topic held as it is (delta method).
    """
    group, names = scores.groups(topic) or (None, ())
    if not versus:
        return Ranking(scores.array(topic, "score"), scores.array(topic, "stderr"), group, names)
    if topic in versus:
        raise ShapleyError(f"topic {topic!r} is ranked against itself: leave it out of --versus")
    if not 0 <= guard < np.inf:
        raise ShapleyError(f"--guard {guard} must be a number of at least 0")
    for other in versus:
        if _partition(scores, other) != _partition(scores, topic):
            raise ShapleyError(f"topics {topic!r} and {other!r} were scored with other players: there is no contrast")
    own, own_replicates = scores.array(topic, "score"), scores.array(topic, "replicates")
    others = np.stack([scores.array(other, "score") for other in versus])
    replicates = np.stack([scores.array(other, "replicates") for other in versus])
    if guard == 0:
        contrast, spread = own - others.mean(axis=0), own_replicates - replicates.mean(axis=0)
    else:
        largest = np.abs(others).argmax(axis=0)[None]
        strongest = np.take_along_axis(others, largest, axis=0)[0]
        strongest_replicates = np.take_along_axis(replicates, largest[:, None], axis=0)[0]
        contrast = own - guard * np.abs(strongest)
        spread = own_replicates - guard * np.sign(strongest) * strongest_replicates
    n = np.isfinite(spread).sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        centre = np.nansum(spread, axis=0) / n
        variance = np.nansum((spread - centre) ** 2, axis=0) / (n - 1)
        stderr = np.where(n > 1, np.sqrt(variance / n), np.nan)
    return Ranking(contrast, stderr, group, names)


def _partition(scores: ScoreFile, topic: str) -> Any:
    """The partition that a topic was scored with; ``None`` where all neurons were players."""
    return json.loads(scores.attrs(topic).get("settings", "{}")).get("partition")


def select(
    ranking: Ranking,
    *,
    top_k: int | None = None,
    fraction: float | None = None,
    per_layer: bool = False,
) -> tuple[tuple[int, int], ...]:
    """The neurons that a rule takes: the ``top_k``, or a ``fraction`` of all, or of each layer. Where groups are ranked, it
    counts groups, and takes all of their neurons.

    Raises:
        ShapleyError: not exactly one rule, or more neurons than there are.
    """
    if (top_k is None) == (fraction is None):
        raise ShapleyError("choose neurons by --top-k or by --fraction, one of the two")
    if fraction is not None and not 0 < fraction <= 1:
        raise ShapleyError(f"--fraction {fraction} must lie between 0 and 1")
    if per_layer:
        if fraction is None:
            raise ShapleyError("--per-layer goes with --fraction")
        if ranking.group is not None:
            raise ShapleyError("--per-layer is for scores of neurons; these are of groups")
        scored = np.flatnonzero(np.isfinite(ranking.score).any(axis=1))
        rows = (
            (layer, Ranking(ranking.score[layer : layer + 1], ranking.stderr[layer : layer + 1])) for layer in scored
        )
        k = max(1, round(fraction * ranking.score.shape[1]))
        return tuple((int(layer), int(row["neuron"])) for layer, part in rows for row in part.top(k))
    k = top_k if top_k is not None else max(1, round((fraction or 0) * len(ranking.order())))
    members = np.concatenate([ranking.members(i) for i in ranking.best(k)])
    return tuple((int(i) // ranking.score.shape[1], int(i) % ranking.score.shape[1]) for i in members)


def random_like(cluster: Cluster, shape: tuple[int, int], seed: int, draw: int) -> Cluster:
    """A random cluster of the same site with as many neurons in each layer, none of them in ``cluster``.

    Args:
        cluster: what to match.
        shape: ``(n_layers, width)`` of the site.
        seed, draw: key of the choice.

    Raises:
        ShapleyError: a cluster that holds more than half of a layer.
    """
    taken: dict[int, set[int]] = {}
    for layer, column in cluster.neurons:
        taken.setdefault(layer, set()).add(column)
    neurons: list[tuple[int, int]] = []
    for layer in sorted(taken):
        free = np.setdiff1d(np.arange(shape[1]), list(taken[layer]))
        size = len(taken[layer])
        if size > len(free):
            raise ShapleyError(
                f"the cluster holds {size} of {shape[1]} columns of layer {layer}, which leaves too few for a random cluster "
                "beside it: sweep without random clusters (--random 0)"
            )
        chosen = keyed_rng(seed, "random cluster", draw, layer).choice(free, size, replace=False)
        neurons.extend((layer, int(column)) for column in np.sort(chosen))
    return Cluster(tuple(neurons), cluster.site, cluster.model, {"rule": "random", "seed": seed, "draw": draw})
