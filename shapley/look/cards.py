"""All that is shown of a player, as one record for JSON and for the page."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from shapley.errors import ShapleyError
from shapley.hf.load import describe
from shapley.look.players import Player, Players
from shapley.look.rules import Rule, rules
from shapley.look.seen import Passages, Seen, observed
from shapley.look.writes import nearest, token_effects
from shapley.store import ScoreFile
from shapley.types import Float32Array, FloatArray

FORMAT = "neuron-shapley-neurons"
VERSION = 1
QUANTILES = (0.99, 0.9, 0.5)  # of which an example is shown each, beside the extremes
_HIGHEST, _LOWEST = 8, 3
_BINS = 24
_TOKENS = 10
_NEAREST = 6
_SEED = 0


def record(
    every: Players,
    players: Sequence[Player],
    passages: Passages,
    scores: ScoreFile | None = None,
    memory: int | None = None,
) -> dict[str, Any]:
    """Of players, in their order.

    Args:
        every: what they are players of.
        scores: to be shown beside.
        memory: bytes for activations.

    Returns:
        A record: docs/formats.md.

    Raises:
        ShapleyError: a player that the model does not have, or scores of another model.
    """
    lm = every.lm
    if scores is not None:
        scores.check_model(describe(lm))
        _check_site(scores, every)
    seen = observed(every, players, passages, memory)
    texts = _Texts(lm.tokenizer)
    written = every.directions(players)
    effects = token_effects(lm, written)
    close = nearest(every, players, written, _NEAREST)
    by_topic = _scores(scores, players)
    cards = [
        {
            "layer": layer,
            "neuron": column,
            "scores": by_topic[i],
            "interpretability": _rule(rule, texts),
            "histogram": _histogram(seen, i),
            "examples": list(_examples(seen, i, texts)),
            "promoted": [] if effects is None else _likeliest(effects[i], texts),
            "suppressed": [] if effects is None else _likeliest(-effects[i], texts, -1),
            "nearest": [[*other, round(cosine, 3)] for other, cosine in close[i]],
        }
        for i, ((layer, column), rule) in enumerate(zip(players, rules(seen, _SEED), strict=True))
    ]
    return {
        "format": FORMAT,
        "version": VERSION,
        "model": describe(lm),
        "site": every.site,
        "noun": every.noun,
        "nearest_noun": every.company().noun,
        "scores": None if scores is None else _head(scores),
        "text": {
            "passages": len(passages.ids),
            "tokens": len(seen.tokens),
            "topics": passages.names,
            "sha256": hashlib.sha256(repr((passages.ids, passages.topics)).encode()).hexdigest()[:16],
        },
        "seed": _SEED,
        "players": cards,
    }


def _head(scores: ScoreFile) -> dict[str, Any]:
    semivalues = {scores.attrs(topic)["semivalue"] for topic in scores.topics}
    return {"file": scores.path.name, "topics": scores.topics, "semivalue": ", ".join(sorted(semivalues))}


def _check_site(scores: ScoreFile, every: Players) -> None:
    other = next((topic for topic in scores.topics if scores.attrs(topic)["site"] != every.site), None)
    if other is not None:
        raise ShapleyError(
            f"{scores.path} holds scores of {scores.attrs(other)['site']} ({other}), not of the {every.noun}s of "
            f"{every.site} asked for: give scores of these, or none"
        )


class _Texts:
    """Tokens by themselves, as text."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}

    def __call__(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = str(self._tokenizer.decode([int(token)], clean_up_tokenization_spaces=False))
        return self._known[token]


def _scores(scores: ScoreFile | None, players: Sequence[Player]) -> list[dict[str, list[float | None]]]:
    """For each player, by topic: score and standard error; ``None`` where it was not estimated."""
    found: list[dict[str, list[float | None]]] = [{} for _ in players]
    for topic in scores.topics if scores else ():
        arrays = [scores.array(topic, name) for name in ("score", "stderr")]  # type: ignore[union-attr]
        for own, player in zip(found, players, strict=True):
            own[topic] = [float(f"{array[player]:.4g}") if np.isfinite(array[player]) else None for array in arrays]
    return found


def _rule(rule: Rule, texts: _Texts) -> dict[str, Any]:
    return {
        "explained": [_rounded(x) for x in (rule.explained.estimate, rule.explained.low, rule.explained.high)],
        "parts": {name: _rounded(value) for name, value in rule.parts.items()},
        "tokens": [[texts(token), round(value, 3)] for token, value in rule.tokens],
    }


def _rounded(value: float) -> float | None:
    return round(value, 3) if np.isfinite(value) else None


def _histogram(seen: Seen, i: int) -> dict[str, Any]:
    """Of each topic, the share of its tokens in each bin between the least and the largest activation."""
    values, topics = _known(seen, i)
    low, high = float(values.min()), float(values.max())
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    names = seen.passages.names
    shares = {}
    for number, name in enumerate(names):
        own, _ = np.histogram(values[topics == number], edges)
        shares[name] = [float(f"{share:.3g}") for share in own / max(1, own.sum())]
    return {"low": float(f"{edges[0]:.4g}"), "high": float(f"{edges[-1]:.4g}"), "shares": shares}


def _known(seen: Seen, i: int) -> tuple[Float32Array, FloatArray]:
    """Activations of player ``i`` where there are some, and the number of their passage's topic."""
    names = seen.passages.names
    topic = np.array([names.index(name) for name in seen.passages.topics])
    kept = np.isfinite(seen.activation[:, i])
    return seen.activation[kept, i], topic[seen.passage[kept]]


def _examples(seen: Seen, i: int, texts: _Texts) -> Iterator[dict[str, Any]]:
    """Passages by their highest activation, by their lowest, and those nearest to quantiles of all tokens."""
    activation = seen.activation[:, i]
    start = seen.start
    highest = np.fmax.reduceat(activation, start)
    lowest = np.fmin.reduceat(activation, start)
    chosen = [("highest", int(p)) for p in np.argsort(-highest, kind="stable")[:_HIGHEST]]
    chosen += [("lowest", int(p)) for p in np.argsort(lowest, kind="stable")[:_LOWEST]]
    for quantile in QUANTILES:
        level = np.nanquantile(activation, quantile)
        chosen.append((f"{quantile:.0%} quantile", int(seen.passage[np.nanargmin(np.abs(activation - level))])))
    for why, passage in chosen:
        own = slice(start[passage], start[passage] + len(seen.passages.ids[passage]))
        yield {
            "why": why,
            "topic": seen.passages.topics[passage],
            "tokens": [texts(token) for token in seen.tokens[own]],
            "activation": [None if np.isnan(x) else float(f"{x:.3g}") for x in activation[own]],
        }


def _likeliest(effects: torch.Tensor, texts: _Texts, sign: int = 1) -> list[list[Any]]:
    values, tokens = effects.topk(min(_TOKENS, len(effects)))
    return [[texts(int(token)), round(sign * float(value), 2)] for value, token in zip(values, tokens, strict=True)]
