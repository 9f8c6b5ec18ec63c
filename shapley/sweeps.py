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

from shapley.clusters import Cluster, random_like
from shapley.errors import ShapleyError
from shapley.files import check_output, checkpoint_of
from shapley.footprint import footprint
from shapley.game import game_dtypes
from shapley.hf.hooks import cluster_mask
from shapley.hf.load import LanguageModel, describe
from shapley.hf.scoring import RowPlan, RowScorer
from shapley.impairment import Impairment
from shapley.progress import Progress, say
from shapley.prompts import TopicPrompts
from shapley.records import METRICS, Sweep, read_sweep, write_sweep
from shapley.runs import CHECKPOINT_SECONDS, check_same
from shapley.store import read_checkpoint, write_checkpoint
from shapley.sweep_design import SweepDesign
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
    checkpoint = checkpoint_of(out)
    design = design_of(lm, clusters, impairment, strengths, n_seeds=n_seeds, n_random=n_random, dtype=dtype, show=show)
    scorer = SweepScorer(lm, design, topics, memory)
    settings = design.settings(topics)
    if resume and out.exists():
        done = read_sweep(out)
        check_same(settings, json.loads(done.attrs["settings"]), str(out))
        return done
    if overwrite:
        out.unlink(missing_ok=True)
        checkpoint.unlink(missing_ok=True)
    values, rows, seconds = _measure(scorer, design, checkpoint, settings, resume, show)
    result = design.sweep(values, topics, rows, seconds, argv)
    write_sweep(out, result)
    checkpoint.unlink(missing_ok=True)
    return result


def design_of(
    lm: LanguageModel,
    clusters: Mapping[str, Cluster | None],
    impairment: Impairment,
    strengths: Sequence[float] | FloatArray,
    *,
    n_seeds: int,
    n_random: int,
    dtype: str,
    show: bool = True,
) -> SweepDesign:
    """Choose everything that is left open: footprints, random controls, absolute strengths, the dtype. Arguments as for
    ``sweep``.

    Raises:
        ShapleyError: a cluster is not of this model, or a strength is negative or not finite.
    """
    levels = np.array(sorted({0.0, *map(float, strengths)}))
    if not np.isfinite(levels).all() or levels[0] < 0:
        raise ShapleyError(f"strengths {levels.tolist()} must be finite and at least 0")
    arms = _arms(lm, clusters, impairment, n_random, show)
    columns = lm.sites.n_layers * lm.sites.width(impairment.site)
    return SweepDesign(
        describe(lm),
        arms,
        [columns if arm is None else len(arm) for arm in arms.values()],
        impairment,
        levels,
        _absolute(lm, impairment, levels),
        n_seeds if impairment.is_random else 1,
        str(game_dtypes(dtype, lm.device)[1]),
    )


class SweepScorer:
    """Computes the blocks of a sweep; the same numbers in any order and in any process.

    Raises:
        ShapleyError: as ``RowScorer``.
    """

    def __init__(
        self, lm: LanguageModel, design: SweepDesign, topics: Mapping[str, TopicPrompts], memory: int | None
    ) -> None:
        prompts = [prompt for topic in topics.values() for prompt in topic.prompts]
        self._rows = RowScorer(lm, prompts, design.impairment, memory=memory)
        self._design, self._arms = design, list(design.arms.values())
        self._dtype: torch.dtype = getattr(torch, design.dtype.removeprefix("torch."))
        self.n_prompts = len(prompts)

    @property
    def forward_rows(self) -> int:
        return self._rows.forward_rows

    @property
    def memory(self) -> int:
        """Bytes for activations; batches follow from it."""
        return self._rows.memory

    def block(self, arm: int, level: int) -> FloatArray:
        """``[metric, seed, prompt]``."""
        if level == 0:  # nothing is impaired: one pass, without hooks
            untouched = RowPlan(np.arange(self.n_prompts))
            return self._rows.values(METRICS, untouched, cluster=(), dtype=self._dtype)[:, None]
        plan = _plan(self._design.strengths[level], self._design.n_seeds, self.n_prompts)
        rows = self._rows.values(METRICS, plan, cluster=self._arms[arm], dtype=self._dtype)
        return rows.reshape(len(METRICS), self._design.n_seeds, self.n_prompts)


def _measure(
    scorer: SweepScorer,
    design: SweepDesign,
    checkpoint: Path,
    settings: dict[str, Any],
    resume: bool,
    show: bool,
) -> tuple[FloatArray, int, float]:
    """``[metric, arm, strength, seed, prompt]``, the forward rows and the seconds it took; what a checkpoint holds is not
    run again."""
    values = design.empty(scorer.n_prompts)
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

    untouched, *blocks = design.blocks()
    per_block = design.n_seeds * scorer.n_prompts
    label = f"{design.impairment.kind} at {design.impairment.site}"
    progress = Progress(len(blocks) * per_block, label, "rows", initial=finished * per_block, show=show)
    try:
        if np.isnan(values[:, :, 0]).any():
            design.put(values, *untouched, scorer.block(*untouched))
        for block in blocks[finished:]:
            design.put(values, *block, scorer.block(*block))
            finished += 1
            progress.reach(finished * per_block)
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
        cluster_mask(lm.sites, impairment.site, placed)  # refuses columns that the model does not have
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
