"""Merging score files: topics side by side, and independent seeds of one topic pooled into one estimate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shapley.errors import ShapleyError
from shapley.store import ScoreFile, TopicScores, players_of, write_scores
from shapley.types import Float32Array, IntArray


def merge_scores(paths: Sequence[Path], out: Path) -> None:
    """Merge score files of one model into ``out``.

    A topic that several files hold is pooled: means weighted by counts, variances by Chan, Golub and LeVeque (1983).

    Raises:
        ShapleyError: files of different models; a topic scored with different settings, or twice with one seed.
    """
    files = [ScoreFile(path) for path in paths]
    for file in files[1:]:
        file.check_model(files[0].model)
    parts: dict[str, list[TopicScores]] = {}
    for file in files:
        for topic in file.topics:
            scores = file[topic]
            before = parts.setdefault(topic, [])
            if before:
                _check_alike(before[0].attrs, scores.attrs, f"topic {topic!r} of {file.path}")
            twice = {seed for other in before for seed in _seeds(other)} & set(_seeds(scores))
            if twice:
                raise ShapleyError(
                    f"{file.path} holds topic {topic!r} with seed {min(twice)}, which another file holds too: "
                    "the same draws cannot be counted twice; leave one out"
                )
            before.append(scores)
    merged = {topic: scores[0] if len(scores) == 1 else _pool(scores) for topic, scores in parts.items()}
    write_scores(out, files[0].model, merged, keep=False)


def _seeds(scores: TopicScores) -> list[int]:
    """The seeds behind a topic's scores: one, or those that were merged."""
    return [int(seed) for seed in json.loads(scores.attrs.get("merged_seeds", f"[{scores.attrs['seed']}]"))]


def _check_alike(first: dict[str, Any], second: dict[str, Any], where: str) -> None:
    one, two = json.loads(first["settings"]), json.loads(second["settings"])
    for name in one.keys() | two.keys():
        if name not in ("seed", "samples", "budget") and one.get(name) != two.get(name):
            raise ShapleyError(
                f"{where} was scored with {name} = {two.get(name)!r}, the files before it with {one.get(name)!r}: "
                "only runs with the same settings can be pooled"
            )


def _pool(parts: Sequence[TopicScores]) -> TopicScores:
    exact = [part.exact if part.exact is not None else np.zeros(part.count.shape, dtype=bool) for part in parts]
    # Where one file has exact differences, the first-order scores of the others would only bring their bias in.
    left_out = [np.any(exact, axis=0) & ~own for own in exact]
    counts = np.stack([np.where(out, 0, part.count) for part, out in zip(parts, left_out, strict=True)])
    means = np.stack([np.nan_to_num(part.score) for part in parts])
    total = counts.sum(axis=0)
    mean = (counts * means).sum(axis=0) / np.maximum(total, 1)
    m2 = sum(np.where(out, 0, _m2(part)) for part, out in zip(parts, left_out, strict=True)) + (
        counts * (means - mean) ** 2
    ).sum(axis=0)
    score = np.where(total > 0, mean, np.nan)
    stderr = np.where(total > 1, np.sqrt(m2 / np.maximum(total - 1, 1) / np.maximum(total, 1)), np.nan)
    first, group = parts[0].attrs, parts[0].group
    per_player = score if group is None else score.flat[players_of(group)]
    attrs = first | {
        "forward_rows": sum(part.attrs["forward_rows"] for part in parts),
        "wall_seconds": sum(part.attrs["wall_seconds"] for part in parts),
        "merged_seeds": json.dumps([seed for part in parts for seed in _seeds(part)]),
        "efficiency_gap": first["value_full"] - first["value_empty"] - float(np.nansum(per_player)),
    }
    truncated = np.sum([part.truncated for part in parts], axis=0)
    return TopicScores(
        score,
        stderr,
        total,
        truncated,
        _pool_replicates(parts, counts),
        attrs,
        np.any(exact, axis=0) if any(map(np.any, exact)) else None,
        group,
        parts[0].group_names,
    )


def _pool_replicates(parts: Sequence[TopicScores], counts: IntArray) -> Float32Array:
    """Each group's mean over the files that have samples in it, weighted by their counts."""
    groups = np.stack([part.replicates for part in parts])  # [files, R, n_layers, width]
    weights = np.where(np.isfinite(groups), counts[:, None], 0)
    with np.errstate(invalid="ignore"):
        return ((np.nan_to_num(groups) * weights).sum(axis=0) / weights.sum(axis=0)).astype(np.float32)


def _m2(scores: TopicScores) -> np.ndarray:
    return np.nan_to_num(scores.stderr) ** 2 * scores.count * np.maximum(scores.count - 1, 0)
