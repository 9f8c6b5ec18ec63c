"""Merging score files: topics side by side, and independent seeds of one topic pooled into one estimate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from shapley.errors import ShapleyError
from shapley.store import ScoreFile, TopicScores, write_scores


def merge_scores(paths: Sequence[Path], out: Path) -> None:
    """Merge score files of one model into ``out``.

    A topic that several files hold is pooled: means weighted by counts, variances by Chan, Golub and LeVeque (1983).

    Raises:
        ShapleyError: files of different models; a topic scored with different settings, or twice with one seed.
    """
    files = [ScoreFile(path) for path in paths]
    for file in files[1:]:
        file.check_model(files[0].model)
    merged: dict[str, TopicScores] = {}
    seeds: dict[str, set[int]] = {}
    for file in files:
        for topic in file.topics:
            scores = file[topic]
            seed = int(scores.attrs["seed"])
            if topic not in merged:
                merged[topic], seeds[topic] = scores, {seed}
                continue
            if seed in seeds[topic]:
                raise ShapleyError(
                    f"{file.path} holds topic {topic!r} with seed {seed}, which another file holds too: "
                    "the same draws cannot be counted twice; leave one out"
                )
            _check_alike(merged[topic].attrs, scores.attrs, f"topic {topic!r} of {file.path}")
            merged[topic] = _pool(merged[topic], scores)
            seeds[topic].add(seed)
    write_scores(out, files[0].model, merged, keep=False)


def _check_alike(first: dict[str, Any], second: dict[str, Any], where: str) -> None:
    one, two = json.loads(first["settings"]), json.loads(second["settings"])
    for name in one.keys() | two.keys():
        if name not in ("seed", "samples", "budget") and one.get(name) != two.get(name):
            raise ShapleyError(
                f"{where} was scored with {name} = {two.get(name)!r}, the files before it with {one.get(name)!r}: "
                "only runs with the same settings can be pooled"
            )


def _pool(a: TopicScores, b: TopicScores) -> TopicScores:
    count = a.count + b.count
    share = b.count / np.maximum(count, 1)
    mean_a, mean_b = np.nan_to_num(a.score), np.nan_to_num(b.score)
    delta = mean_b - mean_a
    score = np.where(count > 0, mean_a + delta * share, np.nan)
    m2 = _m2(a) + _m2(b) + delta**2 * a.count * share
    stderr = np.where(count > 1, np.sqrt(m2 / np.maximum(count - 1, 1) / np.maximum(count, 1)), np.nan)
    weight = share.astype(np.float32)
    replicates = np.where(
        np.isnan(a.replicates), b.replicates, np.where(np.isnan(b.replicates), a.replicates,
                                                      (1 - weight) * a.replicates + weight * b.replicates)
    )  # fmt: skip
    attrs = a.attrs | {
        "forward_rows": a.attrs["forward_rows"] + b.attrs["forward_rows"],
        "wall_seconds": a.attrs["wall_seconds"] + b.attrs["wall_seconds"],
        "merged_seeds": json.dumps([*json.loads(a.attrs.get("merged_seeds", f"[{a.attrs['seed']}]")), b.attrs["seed"]]),
        "efficiency_gap": a.attrs["value_full"] - a.attrs["value_empty"] - float(np.nansum(score)),
    }
    return TopicScores(score, stderr, count, a.truncated + b.truncated, replicates, attrs)


def _m2(scores: TopicScores) -> np.ndarray:
    return np.nan_to_num(scores.stderr) ** 2 * scores.count * np.maximum(scores.count - 1, 0)
