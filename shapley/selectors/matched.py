"""Random clusters like a given one, in layers and in how active their neurons are: the null that claims are held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from shapley.clusters import Cluster, Ranking
from shapley.errors import ShapleyError
from shapley.keyed import keyed_rng
from shapley.selectors.base import Evidence
from shapley.types import FloatArray

if TYPE_CHECKING:
    from shapley.hf.load import LanguageModel

NEAREST = 20


@dataclass(frozen=True)
class Random:
    """Neurons in a random order, another one for each topic.

    Args:
        like: a cluster file; only neurons like those of that cluster are ranked then (``matched_random``), as many as it has.
    """

    like: str | None = None
    name: ClassVar[str] = "random"
    source: ClassVar[str] = "the control"
    reads: ClassVar[str] = "scores or model"
    compares: ClassVar[bool] = False

    def rank(self, evidence: Evidence, topic: str, others: Sequence[str]) -> Ranking:
        if self.like is not None:
            return self._matched(evidence, self.like)
        score = keyed_rng(evidence.seed, "random selector", topic).random(evidence.shape(self.name))
        return Ranking(score, np.full_like(score, np.nan))

    def _matched(self, evidence: Evidence, path: str) -> Ranking:
        lm, cluster = evidence.model(f"{self.name} like a cluster"), Cluster.load(path)
        cluster.check_model({"name": lm.name, "fingerprint": lm.fingerprint}, path)
        if cluster.site != "mlp_hidden":
            raise ShapleyError(
                f"{path} holds columns of {cluster.site}: random neurons are drawn like those of mlp_hidden"
            )
        drawn = matched_random(cluster, activation_norm(lm), evidence.seed, draw=1).neurons
        score = np.full((lm.sites.n_layers, lm.sites.d_mlp), np.nan)
        for place, (layer, column) in enumerate(drawn):
            score[layer, column] = len(drawn) - place
        return Ranking(score, np.full_like(score, np.nan))


def activation_norm(lm: LanguageModel) -> FloatArray:
    """``[n_layers, d_mlp]``, the root mean square of every neuron's activation on the reference text."""
    statistics = lm.statistics("mlp_hidden")
    norm: FloatArray = (statistics.mean.double().square() + statistics.std.double().square()).sqrt().cpu().numpy()
    return norm


def matched_random(cluster: Cluster, norm: FloatArray, seed: int, draw: int) -> Cluster:
    """A random cluster with as many neurons in each layer, none of them in ``cluster``, each drawn from the ``NEAREST`` free
    ones of the layer that are nearest in norm to a neuron of ``cluster``, largest norm first.

    Args:
        cluster: what to match.
        norm: ``[n_layers, d_mlp]``, as ``activation_norm`` gives it.
        seed, draw: key of the choice.

    Raises:
        ShapleyError: a layer of which more than half is in ``cluster``.
    """
    neurons: list[tuple[int, int]] = []
    for layer in sorted({layer for layer, _ in cluster.neurons}):
        own = np.array([column for where, column in cluster.neurons if where == layer])
        free = np.setdiff1d(np.arange(norm.shape[1]), own)
        if len(own) > len(free):
            raise ShapleyError(
                f"the cluster holds {len(own)} of {norm.shape[1]} neurons of layer {layer}: too few are left to draw from"
            )
        rng = keyed_rng(seed, "matched cluster", draw, layer)
        for column in own[np.argsort(-norm[layer, own], kind="stable")]:
            distance = np.abs(norm[layer, free] - norm[layer, column])
            near = np.argsort(distance, kind="stable")[:NEAREST]
            chosen = int(near[rng.integers(len(near))])
            neurons.append((layer, int(free[chosen])))
            free = np.delete(free, chosen)
    return Cluster(tuple(neurons), cluster.site, cluster.model, {"rule": "matched random", "seed": seed, "draw": draw})
