"""How well simple rules predict a unit's activation: an interpretability score that needs no other model.

The rule for a unit is additive in what a reader of a passage would look at first: the token, the one before it, and the
passage's topic,

    a(t) ~ mean + u[token_t] + v[token_{t-1}] + w[topic],

each part a mean of what the others leave, shrunk to zero by ``_SHRINK`` observations (James and Stein; an effect that was seen
twice is believed a third). It is fitted to half of the passages and scored by the variance that it explains in the other
half. A unit that is a detector of words or of a topic scores near 1; one that depends on what only a whole sentence tells
scores near 0, and so does noise: the score tells simple from not simple, not meaningful from meaningless.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from shapley.keyed import keyed_rng
from shapley.look.seen import Seen
from shapley.shape import Interval, percentiles, resampled_means
from shapley.types import BoolArray, FloatArray, IntArray

PARTS = ("token", "previous", "topic")
_SHRINK = 4.0
_ROUNDS = 3
_BOOTSTRAPS = 1000
_LEAST = 3  # sights of a token before it is named


@dataclass(frozen=True)
class Rule:
    """Of one unit.

    Attributes:
        explained: share of the held-out variance, with its 95% interval over passages; below 0 where the rule misleads.
        parts: the same of each part by itself.
        tokens: the tokens that raise the unit most, and by how much.
    """

    explained: Interval
    parts: dict[str, float]
    tokens: tuple[tuple[int, float], ...]


def rules(seen: Seen, seed: int = 0, n_tokens: int = 6) -> list[Rule]:
    """One for each unit of ``seen``."""
    labels = _labels(seen)
    kept = np.isfinite(seen.activation).all(axis=1)
    halves = keyed_rng(seed, "halves").permutation(len(seen.passages.ids)) % 2
    fitted, held_out = (kept & (halves[seen.passage] == half) for half in (0, 1))
    activation = seen.activation.astype(np.float64)
    mean = activation[fitted].mean(axis=0)
    effects = _fit(activation[fitted] - mean, [label[fitted] for label in labels], [_size(label) for label in labels])
    residual = activation[held_out] - mean
    alone = [_fit(activation[fitted] - mean, [label[fitted]], [_size(label)])[0][label[held_out]] for label in labels]
    together = sum(effect[label[held_out]] for effect, label in zip(effects, labels, strict=True))
    total = _by_passage(residual**2, seen.passage[held_out], len(halves))
    left = _by_passage((residual - together) ** 2, seen.passage[held_out], len(halves))
    explained = _shares(total, left, seed)
    counts = np.bincount(labels[0][fitted], minlength=_size(labels[0]))
    return [
        Rule(
            explained[i],
            {name: _explained(residual[:, i], part[:, i]) for name, part in zip(PARTS, alone, strict=True)},
            _strongest(effects[0][:, i], counts, n_tokens),
        )
        for i in range(activation.shape[1])
    ]


def _labels(seen: Seen) -> list[IntArray]:
    """``[n]`` of each part, whole numbers."""
    names = seen.passages.names
    topic = np.array([names.index(name) for name in seen.passages.topics])
    previous = np.concatenate(
        [[0], seen.tokens[:-1]]
    )  # of a passage's first token it is another's, but that is left out
    return [seen.tokens, previous, topic[seen.passage]]


def _size(label: IntArray) -> int:
    return int(label.max()) + 1


def _fit(residual: FloatArray, labels: list[IntArray], sizes: list[int]) -> list[FloatArray]:
    """``[size, units]`` effects of each label, in turn (backfitting: Hastie and Tibshirani 1990), of ``[n, units]``."""
    effects = [np.zeros((size, residual.shape[1])) for size in sizes]
    counts = [np.bincount(label, minlength=size)[:, None] for label, size in zip(labels, sizes, strict=True)]
    for _ in range(_ROUNDS if len(labels) > 1 else 1):
        for effect, label, count in zip(effects, labels, counts, strict=True):
            residual = residual + effect[label]
            effect[:] = _sums(residual, label, len(effect)) / (count + _SHRINK)
            residual = residual - effect[label]
    return effects


def _sums(values: FloatArray, label: IntArray, size: int) -> FloatArray:
    """``[size, units]``."""
    return np.stack([np.bincount(label, weights=column, minlength=size) for column in values.T], axis=1)


def _by_passage(values: FloatArray, passage: IntArray, n: int) -> FloatArray:
    """``[held-out passages, units]``."""
    sums = _sums(values, passage, n)
    present: BoolArray = np.bincount(passage, minlength=n) > 0
    return sums[present]


def _explained(residual: FloatArray, predicted: FloatArray) -> float:
    total = float((residual**2).sum())
    return 1 - float(((residual - predicted) ** 2).sum()) / total if total > 0 else float("nan")


def _shares(total: FloatArray, left: FloatArray, seed: int) -> list[Interval]:
    """1 - left / total of each unit, from sums ``[passages, units]``, resampling passages; NaN of a unit that never moves."""
    units = total.shape[1]
    means = resampled_means(np.concatenate([total, left], axis=1).T, _BOOTSTRAPS, seed)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = 1 - means[:, units:] / means[:, :units]
        estimates = 1 - left.sum(axis=0) / total.sum(axis=0)
    return [percentiles(float(estimate), own) for estimate, own in zip(estimates, drawn.T, strict=True)]


def _strongest(effect: FloatArray, counts: IntArray, n: int) -> tuple[tuple[int, float], ...]:
    known = np.where(counts >= _LEAST, effect, -np.inf)
    best = np.argsort(-known, kind="stable")[:n]
    return tuple((int(token), float(known[token])) for token in best if known[token] > 0)
