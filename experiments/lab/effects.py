"""What clusters do to watched prompts, in numbers that experiments share.

A drop is by how much a prompt's answer loses log-probability, in nats; of plain text, by token. *Target* is the mean over the
cluster's own topic, *others* the mean over the other topics of their means, *selectivity* the difference. All three are means
over topics here. Intervals are of a bootstrap over prompts, within topics; topics and clusters are held as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.lab.texts import PLAIN
from shapley.inference import at_matched_damage
from shapley.shape import Interval, percentiles, resampled_means
from shapley.types import FloatArray

TARGET, SHARE, PERPLEXITY = 1.5, 1 / 8, 0.02  # the aim: nats, off-topic over target, rise of plain text's perplexity
LEVELS = (0.02, 0.05, 0.1)  # rises of plain text's perplexity at which clusters are compared
_BOOTSTRAPS = 2000
_MATCHED_BOOTSTRAPS = 500
_MOST_UNDEFINED = 0.05  # of resamples: the others would be those that reach the damage more easily


@dataclass(frozen=True)
class Effect:
    """What a set of clusters does, one of each topic.

    Attributes:
        matrix: ``[topics, topics]``, mean drop of the second topic's prompts under the first one's cluster.
        plain: ``[topics]``, drop of plain text under each topic's cluster, nats a token.
        met: topics for which the aim is met.
    """

    target: Interval
    others: Interval
    selectivity: Interval
    perplexity: Interval
    matrix: FloatArray
    plain: FloatArray
    met: tuple[str, ...]


def matrix_of(drops: FloatArray, watched: Sequence[str], topics: Sequence[str]) -> FloatArray:
    """``[clusters, topics + 1]``, mean drops; the last column is plain text.

    Args:
        drops: ``[clusters, prompts]``.
        watched: ``[prompts]``, their topics.
    """
    return np.stack([drops[:, place].mean(axis=1) for place in _places(watched, topics)], axis=1)


def effect(drops: FloatArray, watched: Sequence[str], topics: Sequence[str], *key: object) -> Effect:
    """Of clusters in the order of their ``topics``.

    Args:
        drops: ``[topics, prompts]``.
        watched: ``[prompts]``, their topics.
        key: of the bootstrap; one key, one resampling of the prompts.
    """
    matrix = matrix_of(drops, watched, topics)
    drawn = totals(resampled(drops, watched, topics, *key))
    intervals = [
        Interval(float(value), *map(float, np.quantile(column, [0.025, 0.975])))
        for value, column in zip(totals(matrix), drawn, strict=True)
    ]
    met = tuple(
        topic
        for i, topic in enumerate(topics)
        if matrix[i, i] >= TARGET
        and _others(matrix)[i] <= SHARE * matrix[i, i]
        and np.expm1(matrix[i, -1]) < PERPLEXITY
    )
    return Effect(*intervals, matrix[:, :-1], matrix[:, -1], met)


def resampled(drops: FloatArray, watched: Sequence[str], topics: Sequence[str], *key: object) -> FloatArray:
    """``[resamples, clusters, topics + 1]``: ``matrix_of`` prompts drawn anew within topics; one key draws the same."""
    places = enumerate(_places(watched, topics))
    return np.stack([resampled_means(drops[:, place], _BOOTSTRAPS, *key, i) for i, place in places], axis=2)


def totals(matrix: FloatArray) -> FloatArray:
    """Target, others, selectivity, rise of perplexity, each over topics, of ``[..., topics, topics + 1]`` matrices whose last
    column is plain text: ``[4, ...]``."""
    target, others = _own(matrix).mean(axis=-1), _others(matrix).mean(axis=-1)
    return np.stack([target, others, target - others, np.expm1(matrix[..., -1].mean(axis=-1))])


def matched(
    drops: Sequence[FloatArray], watched: Sequence[str], topics: Sequence[str], level: float, *key: object
) -> FloatArray:
    """``[3, 1 + resamples]``: target, others and selectivity where plain text's perplexity is up by ``level`` (*matched general
    damage*), interpolated along the sizes of the clusters from no neuron on, all in nats; of the prompts as they are, then of
    prompts drawn anew. NaN where the level is not reached.

    Args:
        drops: by size, smallest first, ``[clusters, prompts]``.
        watched: ``[prompts]``, their topics.
        key: of the bootstrap; one key, one resampling of the prompts.
    """
    matrices = [
        np.concatenate([matrix_of(own, watched, topics)[None], resampled(own, watched, topics, *key)]) for own in drops
    ]
    paths = np.stack([totals(matrix[: 1 + _MATCHED_BOOTSTRAPS]) for matrix in matrices], axis=-1)
    paths = np.concatenate([np.zeros((*paths.shape[:2], 1)), paths], axis=-1)  # [4, 1 + resamples, 1 + sizes]
    target, others, _, rise = paths
    damage, nats = np.log1p(rise), np.log1p(level)
    found = np.array(
        [
            [at_matched_damage(*curve, nats).drop for curve in zip(damage, path, strict=True)]
            for path in (target, others)
        ]
    )
    return np.concatenate([found, found[:1] - found[1:]])


def below_smallest(smallest: FloatArray, watched: Sequence[str], topics: Sequence[str], level: float) -> bool:
    """Whether the smallest clusters, drops ``[clusters, prompts]``, already cost more than a level of damage: what ``matched``
    gives then is on the straight line from no neuron to them."""
    rise: float = totals(matrix_of(smallest, watched, topics))[-1]
    return rise > level


def drawn_interval(values: FloatArray) -> Interval:
    """Of ``[1 + resamples]``: the first, with the others' 95% interval; NaN if more than a twentieth of the others are."""
    found = percentiles(float(values[0]), values[1:])
    return found if found.undefined <= _MOST_UNDEFINED else Interval(np.nan, np.nan, np.nan, found.undefined)


def _places(watched: Sequence[str], topics: Sequence[str]) -> list[np.ndarray]:
    return [np.flatnonzero(np.array(watched) == topic) for topic in (*topics, PLAIN)]


def _own(matrix: FloatArray) -> FloatArray:
    """``[..., topics]``: each cluster's own topic."""
    return matrix[..., :-1].diagonal(axis1=-2, axis2=-1)


def _others(matrix: FloatArray) -> FloatArray:
    """``[..., topics]``: under each cluster, the mean over the other topics."""
    topics = matrix[..., :-1]
    return np.asarray((topics.sum(axis=-1) - _own(matrix)) / (topics.shape[-1] - 1))
