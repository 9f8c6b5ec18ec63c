"""A neuron cluster's footprint on the residual stream, for impairments at ``mlp_in`` or ``mlp_out``.

There the columns are residual dimensions, not neurons. In each layer that the cluster touches, its footprint is the same
fraction of the dimensions as the cluster is of the neurons (at least one): at ``mlp_out`` those of whose squared write
weights the cluster holds the largest share, at ``mlp_in`` likewise with the weights that read them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from shapley.clusters import Cluster
from shapley.errors import ShapleyError
from shapley.hf.hooks import cluster_mask
from shapley.hf.load import LanguageModel
from shapley.hf.sites import ModelSites, read_weights
from shapley.hf.written import written
from shapley.types import Site


def footprint(lm: LanguageModel, cluster: Cluster, site: Site) -> Cluster:
    """The cluster in the columns of ``site``; itself if it is there already.

    Raises:
        ShapleyError: a cluster of residual dimensions, which has no footprint elsewhere, or one outside the model.
    """
    if cluster.site == site:
        return cluster
    if cluster.site != "mlp_hidden":
        raise ShapleyError(
            f"the cluster holds dimensions of {cluster.site}: it can be impaired there only, not at {site}"
        )
    cluster_mask(lm.sites, cluster.site, cluster)  # refuses neurons that the model does not have
    by_layer: dict[int, list[int]] = {}
    for layer, neuron in cluster.neurons:
        by_layer.setdefault(layer, []).append(neuron)
    columns: list[tuple[int, int]] = []
    for layer, neurons in sorted(by_layer.items()):
        weights = _squared_weights(lm.sites, layer, site)  # [d_mlp, d_model]
        share = weights[neurons].sum(dim=0) / weights.sum(dim=0).clamp(min=1e-30)
        size = max(1, round(len(neurons) / lm.sites.d_mlp * lm.sites.d_model))
        columns += [(layer, int(column)) for column in share.topk(size).indices]
    return replace(cluster, neurons=tuple(columns), site=site, rule={**cluster.rule, "footprint": site})


def _squared_weights(sites: ModelSites, layer: int, site: Site) -> Tensor:
    if site == "mlp_out":
        return written(sites, layer).float().square()
    with torch.no_grad():
        # Gate and up-projection, stacked side by side in one matrix or in two, each read once a neuron.
        read = read_weights(sites.blocks[layer])
        return torch.stack([part for weight in read for part in weight.T.float().square().split(sites.d_mlp)]).sum(
            dim=0
        )
