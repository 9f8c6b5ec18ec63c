"""Impairment sweeps: how every topic fares as a cluster is impaired by degrees.

For the cluster and for random clusters with as many neurons in each layer, at every strength and noise seed, each prompt's
log-probability, loss and accuracy. Noise is common: one seed adds the same noise whatever the strength and the cluster.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from shapley import __version__
from shapley.clusters import Cluster, random_like
from shapley.errors import ShapleyError
from shapley.files import check_output
from shapley.footprint import footprint
from shapley.game import game_dtypes
from shapley.hf.load import LanguageModel, describe
from shapley.hf.scoring import RowPlan, RowScorer
from shapley.impairment import Impairment
from shapley.progress import Progress, say
from shapley.prompts import TopicPrompts
from shapley.records import METRICS, Sweep, read_sweep, write_sweep
from shapley.runs import CHECKPOINT_SECONDS, check_same
from shapley.store import read_checkpoint, write_checkpoint
from shapley.types import FloatArray


def sweep(
    lm: LanguageModel,
    topics: Mapping[str, TopicPrompts],
    clusters: Mapping[str, Cluster | None],
    impairment: Impairment,
    strengths: Sequence[float] | FloatArray,
    out: str | Path,
    *,
    n_seeds: int = 5,
    n_random: int = 3,
    dtype: str = "auto",
    memory: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    argv: Sequence[str] = (),
    show: bool = True,
) -> Sweep:
    """Sweep an impairment over clusters and write the records to ``out``.

    Args:
        lm: the model.
        topics: prompts by topic, best held out from those the clusters were chosen on.
        clusters: by name; ``None`` for every column of the site. A neuron cluster swept at ``mlp_in`` or ``mlp_out`` is
            impaired in its footprint there.
        impairment: kind, site, unit and seed.
        strengths: zero is added if it is missing.
        n_seeds: noise draws (1 is enough where nothing is drawn, and is used there).
        n_random: random controls of each cluster.
        dtype: ``auto`` takes bfloat16 where the hardware has it.
        resume, overwrite: as for ``estimate``.

    Raises:
        ShapleyError: ``out`` exists, a cluster is not of this model, or the work was interrupted.
    """
    out = Path(out)
    check_output(out, resume=resume, overwrite=overwrite)
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    levels = np.array(sorted({0.0, *map(float, strengths)}))
    if not np.isfinite(levels).all() or levels[0] < 0:
        raise ShapleyError(f"strengths {levels.tolist()} must be finite and at least 0")
    arms = _arms(lm, clusters, impairment, n_random, show)
    prompts = [prompt for topic in topics.values() for prompt in topic.prompts]
    scorer = RowScorer(lm, prompts, impairment, memory=memory)
    _, compute = game_dtypes(dtype, lm.device)
    n_seeds = n_seeds if impairment.is_random else 1
    settings = {
        "model": lm.fingerprint,
        "prompts": {topic: group.sha256 for topic, group in topics.items()},
        "clusters": {name: None if arm is None else [list(pair) for pair in arm.neurons] for name, arm in arms.items()},
        "impairment": json.loads(impairment.to_json()),
        "strengths": levels.tolist(),
        "seeds": n_seeds,
        "dtype": str(compute),
        "version": __version__,
    }
    if resume and out.exists():
        done = read_sweep(out)
        check_same(settings, json.loads(done.attrs["settings"]), str(out))
        return done
    if overwrite:
        out.unlink(missing_ok=True)
        checkpoint.unlink(missing_ok=True)
    values, rows, seconds = _measure(
        scorer, list(arms.values()), levels, n_seeds, compute, checkpoint, settings, resume, show
    )
    attrs = {
        "wall_seconds": seconds,
        "forward_rows": rows,
        "package_version": __version__,
        "argv": json.dumps(list(argv)),
        "settings": json.dumps(settings),
        **{f"model_{name}": value for name, value in describe(lm).items()},
    }
    result = Sweep(
        _by_topic(values, topics),
        list(arms),
        [lm.sites.n_layers * scorer.width if arm is None else len(arm) for arm in arms.values()],
        levels,
        _absolute(lm, impairment, levels),
        impairment,
        attrs,
    )
    write_sweep(out, result)
    checkpoint.unlink(missing_ok=True)
    return result


def _measure(
    scorer: RowScorer,
    arms: Sequence[Cluster | None],
    levels: FloatArray,
    n_seeds: int,
    dtype: torch.dtype,
    checkpoint: Path,
    settings: dict[str, Any],
    resume: bool,
    show: bool,
) -> tuple[FloatArray, int, float]:
    """``[metric, arm, strength, seed, prompt]``, the forward rows and the seconds it took; what a checkpoint holds is not
    run again."""
    n_prompts = len(scorer.prompts)
    values = np.full((len(METRICS), len(arms), len(levels), n_seeds, n_prompts), np.nan)
    n_levels = len(levels) - 1
    finished, rows_before, seconds_before = 0, 0, 0.0
    if resume and checkpoint.exists():
        saved, state = read_checkpoint(checkpoint)
        check_same(settings, json.loads(saved), str(checkpoint))
        values, finished = state["values"], int(state["finished"])
        rows_before, seconds_before = int(state["rows"]), float(state["seconds"])
    start = saved_at = time.monotonic()

    def spent() -> tuple[int, float]:
        return rows_before + scorer.forward_rows, seconds_before + time.monotonic() - start

    def save() -> None:
        rows, seconds = map(np.array, spent())
        state = {"values": values, "finished": np.array(finished), "rows": rows, "seconds": seconds}
        write_checkpoint(checkpoint, json.dumps(settings), state)

    per_level = n_seeds * n_prompts
    label = f"{scorer.impairment.kind} at {scorer.impairment.site}"
    total = len(arms) * n_levels
    progress = Progress(total * per_level, label, "rows", initial=finished * per_level, show=show)
    try:
        # At strength zero nothing is impaired: one pass, without hooks, for all clusters and seeds.
        if np.isnan(values[:, :, 0]).any():
            untouched = scorer.values(METRICS, RowPlan(np.arange(n_prompts)), cluster=(), dtype=dtype)
            values[:, :, 0] = untouched[:, None, None]
        for unit in range(finished, total):
            arm, level = unit // n_levels, 1 + unit % n_levels
            plan = _plan(levels[level], n_seeds, n_prompts)
            block = scorer.values(METRICS, plan, cluster=arms[arm], dtype=dtype)
            values[:, arm, level] = block.reshape(len(METRICS), n_seeds, n_prompts)
            finished = unit + 1
            progress.reach(finished * per_level)
            if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
                save()
                saved_at = time.monotonic()
    except KeyboardInterrupt:
        save()
        raise ShapleyError(f"interrupted after {progress.done} of {progress.total} rows; go on with --resume") from None
    finally:
        progress.close()
    return values, *spent()


def _arms(
    lm: LanguageModel, clusters: Mapping[str, Cluster | None], impairment: Impairment, n_random: int, show: bool
) -> dict[str, Cluster | None]:
    """The clusters at the impairment's site, each followed by its random controls."""
    arms: dict[str, Cluster | None] = {}
    shape = (lm.sites.n_layers, lm.sites.width(impairment.site))
    for name, cluster in clusters.items():
        if cluster is None:
            arms[name] = None
            continue
        cluster.check_model(describe(lm), f"cluster {name!r}")
        placed = footprint(lm, cluster, impairment.site)
        if placed is not cluster:
            say(
                f"{name}: {len(cluster)} neurons act at {impairment.site} by {len(placed)} dimensions, their footprint",
                show=show,
            )
        arms[name] = placed
        for draw in range(1, n_random + 1):
            arms[f"{name}/random-{draw}"] = random_like(placed, shape, impairment.seed, draw)
    return arms


def _plan(strength: float, n_seeds: int, n_prompts: int) -> RowPlan:
    rows = n_seeds * n_prompts
    return RowPlan(
        np.tile(np.arange(n_prompts), n_seeds),
        draws=np.repeat(np.arange(n_seeds), n_prompts),
        strength=np.full(rows, strength),
    )


def _absolute(lm: LanguageModel, impairment: Impairment, levels: FloatArray) -> FloatArray:
    if impairment.unit == "absolute":
        return np.tile(levels[:, None], (1, lm.sites.n_layers))
    return levels[:, None] * lm.statistics(impairment.site).site_std.double().cpu().numpy()[None]


def _by_topic(values: FloatArray, topics: Mapping[str, TopicPrompts]) -> dict[str, FloatArray]:
    ends = np.cumsum([len(topic) for topic in topics.values()])
    return dict(zip(topics, np.split(values, ends[:-1], axis=-1), strict=True))
