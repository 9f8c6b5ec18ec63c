"""``estimate``: score topics, one after another, into a score file, with checkpoints.

All topics see the same coalitions (they are keyed by seed and unit, not by topic), so that contrasts between topics are
sharp. A topic that is done is in the score file; the one at work is in ``OUT.checkpoint``, at most a minute old.
"""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shapley.errors import ShapleyError
from shapley.estimators.base import Estimate, Estimator
from shapley.estimators.registry import Plan, build
from shapley.files import check_output, checkpoint_of
from shapley.game import NeuronGame
from shapley.groups import GroupGame, Partitioner
from shapley.hf.load import LanguageModel, describe
from shapley.impairment import Impairment
from shapley.outcome import attrs_of, scores_of, settings_of
from shapley.progress import Progress, say
from shapley.prompts import TopicPrompts
from shapley.store import ScoreFile, read_checkpoint, write_checkpoint, write_scores
from shapley.types import ValueName
from shapley.workers import LostWorker, Recipe, check_apart, worker_devices, worker_pool

CHECKPOINT_SECONDS = 30.0


def estimate(
    lm: LanguageModel,
    topics: Mapping[str, TopicPrompts],
    out: str | Path,
    *,
    plan: Plan | None = None,
    impairment: Impairment | None = None,
    value: ValueName = "logprob",
    layers: Sequence[int] | None = None,
    groups: Partitioner | None = None,
    dtype: str = "auto",
    memory: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    workers: int = 1,
    devices: Sequence[str] = (),
    argv: Sequence[str] = (),
    show: bool = True,
) -> ScoreFile:
    """Estimate every player's semivalue for every topic and write them to ``out``.

    Args:
        lm: from ``load_model``.
        topics: prompts by topic.
        plan: estimator, samples or budget, seed and so on.
        impairment: how players are taken out; zero ablation of MLP neurons by default.
        value, layers, dtype, memory: as for ``NeuronGame``.
        groups: from a game to the partition of its neurons that plays it, as ``shapley.groups.layers``.
        resume: go on where an interrupted run with the same settings stopped.
        overwrite: replace ``out``.
        workers: processes that share the work, each with a copy of the model loaded anew by its name; 1 does it here.
        devices: of the workers; by default as the model's, the first GPUs where that is one.
        argv: the command line, for the record.
        show: progress on standard error.

    Raises:
        ShapleyError: ``out`` exists and neither ``resume`` nor ``overwrite`` is set, it was made with other settings or
            another model, the estimator cannot share its work among ``workers``, or the work was interrupted.
    """
    plan, impairment, out = plan or Plan(), impairment or Impairment(), Path(out)
    model = describe(lm)
    checkpoint = checkpoint_of(out)
    places = worker_devices(devices, lm.device, workers)
    check_output(out, resume=resume, overwrite=overwrite)
    keep = resume and out.exists()
    done: list[str] = []
    if keep:
        existing = ScoreFile(out)
        existing.check_model(model)
        done = existing.topics
    # Every game and estimator is built before any is played, so that what is wrong with the last topic costs nothing.
    games: dict[str, NeuronGame | GroupGame] = {}
    for topic, prompts in topics.items():
        neurons = NeuronGame(lm, prompts, impairment, value=value, layers=layers, dtype=dtype, memory=memory)
        games[topic] = neurons if groups is None else GroupGame(neurons, groups(neurons))
    most_units = 1
    for game in games.values():
        estimator, _ = build(plan, game)
        check_apart(estimator, workers)
        most_units = max(most_units, estimator.n_units)
    if overwrite:
        out.unlink(missing_ok=True)
        checkpoint.unlink(missing_ok=True)
    with worker_pool(places[:most_units]) as pool:
        for topic, game in games.items():
            settings = settings_of(game, plan, model)
            if topic in done:
                check_same(settings, json.loads(ScoreFile(out).attrs(topic)["settings"]), f"topic {topic!r} in {out}")
                say(f"{topic}: already in {out}", show=show)
                continue
            estimator, reason = build(plan, game, key=topic)
            seconds = 0.0
            if resume and checkpoint.exists():
                saved, state = read_checkpoint(checkpoint, f": delete it to start {topic!r} again, and pass --resume")
                record = json.loads(saved)
                if record["topic"] not in topics:
                    raise ShapleyError(
                        f"cannot resume: {checkpoint} holds the work on topic {record['topic']!r}, which would be lost; "
                        f"ask for it too, or delete the checkpoint"
                    )
                if record["topic"] == topic:
                    check_same(settings, record["settings"], str(checkpoint))
                    seconds = record["seconds"]
                    estimator.load(state)
            say(
                f"{topic}: estimator {estimator.name} ({reason}), {game.n_players} players, {game.n_prompts} prompts",
                show=show,
            )
            recipe = Recipe.of(game, replace(plan, estimator=estimator.name), topic, dtype=dtype, memory=memory)
            steps = _steps(estimator) if pool is None else pool.steps(estimator, recipe)
            result, seconds = _run(estimator, steps, topic, settings, checkpoint, seconds, show)
            attrs = attrs_of(game, estimator, result, settings, seconds, argv)
            write_scores(out, model, {topic: scores_of(game, result, attrs)}, keep=keep)
            checkpoint.unlink(missing_ok=True)
            keep = True
    return ScoreFile(out)


def _run(
    estimator: Estimator,
    steps: Generator[None, None, None],
    topic: str,
    settings: dict[str, Any],
    checkpoint: Path,
    before: float,
    show: bool,
) -> tuple[Estimate, float]:
    """Run an estimator to its end, with checkpoints; returns its estimate and the seconds it took, earlier runs counted."""
    start = saved = time.monotonic()

    def save() -> None:
        record = {"topic": topic, "settings": settings, "seconds": before + time.monotonic() - start}
        write_checkpoint(checkpoint, json.dumps(record), estimator.state())

    progress = Progress(estimator.planned_rows, topic, "forward rows", initial=estimator.forward_rows, show=show)
    try:
        for _ in steps:
            progress.reach(estimator.forward_rows)
            if time.monotonic() - saved > CHECKPOINT_SECONDS:
                save()
                saved = time.monotonic()
    except (KeyboardInterrupt, LostWorker) as stop:
        steps.close()
        save()
        what = "interrupted" if isinstance(stop, KeyboardInterrupt) else "a worker process was killed (out of memory?)"
        raise ShapleyError(f"{what} after {progress.done} forward rows of {topic!r}; go on with --resume") from None
    finally:
        steps.close()
        progress.close()
    return estimator.estimate(), before + time.monotonic() - start


def _steps(estimator: Estimator) -> Generator[None, None, None]:
    """Run an estimator in this process."""
    while not estimator.finished:
        estimator.step()
        yield


def check_same(now: Mapping[str, Any], before: Mapping[str, Any], where: str) -> None:
    """Raises ShapleyError when the settings of the work to go on with are others than before."""
    for name, value in now.items():
        if before.get(name) != value:
            raise ShapleyError(
                f"cannot resume: {where} was made with {name} = {before.get(name)!r}, now it is {value!r}; "
                "use the same settings, or --overwrite"
            )
