"""The work between rounds: prepare a run, merge its rounds, write the scores. One process at a time, and without a model
but for preparing.

A round is merged when all of its samples are there, in the order of their units; so the numbers are those of one process
that does everything, however the work was cut, lost and done again. What is written can be computed again from what was
there: a merge that is killed is started anew.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

from shapley.errors import ShapleyError
from shapley.estimators.base import Estimator
from shapley.estimators.registry import build
from shapley.facts import GameFacts
from shapley.files import write_text
from shapley.jobs.folder import RunFolder, TopicFolder
from shapley.jobs.games import open_games
from shapley.jobs.segments import DamagedError, Item, Sample, Shelf, read_sample
from shapley.jobs.submit import end_chain
from shapley.outcome import attrs_of, scores_of, settings_of
from shapley.progress import say
from shapley.store import ScoreFile, write_scores


@dataclass(frozen=True)
class Standing:
    """What a merge found.

    Attributes:
        finished: whether all topics have their scores.
        missing: by topic, the items that no segment holds.
        damaged: a line for each segment that is not what was written.
    """

    finished: bool
    missing: dict[str, list[Item]]
    damaged: list[str]


def prepare(run: RunFolder, device: str = "auto", show: bool = True) -> None:
    """Load the model once, before any array starts; choose the estimators, evaluate the ends of each game, begin round 0.

    Raises:
        ShapleyError: what is wrong with the model, the prompts or the plan; or other code than was submitted.
    """
    run.check_code()
    if all(topic.rounds() for topic in run.topics):
        return
    model, make = open_games(run.record["game"], device)
    # Everything is built before anything is played, so that what is wrong with the last topic costs nothing.
    built = [(topic, *build(run.plan, make(topic.topic), key=topic.name)) for topic in run.topics]
    for _, estimator, _ in built:
        check_rounds(estimator)
    for topic, estimator, reason in built:
        if topic.rounds():
            continue
        start = time.monotonic()
        estimator.begin()
        record = {
            "game": GameFacts.record_of(estimator.game),
            "model": model,
            "estimator": estimator.name,
            "reason": reason,
        }
        write_text(topic.path / "facts.json", json.dumps(record))
        topic.save(estimator, 0, time.monotonic() - start)
        say(f"{topic.name}: estimator {estimator.name} ({reason}), {estimator.game.n_players} players", show=show)


def check_rounds(estimator: Estimator) -> None:
    """Raises ShapleyError when an estimator's work cannot be shared."""
    if not estimator.apart:
        raise ShapleyError(
            f"estimator {estimator.name!r} does one unit after another and cannot be shared among shards: "
            "choose two-stage, permutation or gradient"
        )


def merge(run: RunFolder, show: bool = True) -> Standing:
    """Merge every round that is complete, and write the scores of topics that are finished.

    Raises:
        ShapleyError: segments of other settings, or other code than was submitted.
    """
    run.check_code()
    missing: dict[str, list[Item]] = {}
    damaged: list[str] = []
    for topic in run.topics:
        if not topic.scores.exists():
            if not topic.rounds():
                raise ShapleyError(f"{run.path} was not prepared: run 'shapley prepare {run.path}' first")
            left, broken = _merge_topic(run, topic, show)
            damaged += broken
            if left:
                missing[topic.name] = left
    finished = all(topic.scores.exists() for topic in run.topics)
    if finished and not run.scores.exists():
        _collect(run)
        say(f"scores of {len(run.topics)} topics in {run.scores}", show=show)
        end_chain(run)
    return Standing(finished, missing, damaged)


def _merge_topic(run: RunFolder, topic: TopicFolder, show: bool) -> tuple[list[Item], list[str]]:
    """Merge a topic's rounds as far as they are complete; returns what is missing, and what is damaged."""
    estimator = topic.estimator(topic.game())
    number, seconds, damaged = _latest(topic, estimator)
    while True:
        present = topic.round(number)
        shelf = topic.shelf(number)
        shelf.scan()
        items = present.items(topic.estimator(topic.game()))
        if not shelf.missing(items):
            try:
                seconds += _add(estimator, shelf, items)
            except DamagedError as error:
                damaged.append(str(error))
                estimator = topic.estimator(topic.game())
                number, seconds, _ = _latest(topic, estimator)
                continue
        left = shelf.missing(items)
        damaged += shelf.damaged.values()
        if left:
            return left, damaged
        if estimator.finished:
            _write(run, topic, estimator, seconds)
            say(f"{topic.name}: finished after round {number}, {estimator.forward_rows} forward rows", show=show)
            return [], damaged
        number += 1
        topic.save(estimator, number, seconds)
        say(f"{topic.name}: round {number} begins, {estimator.forward_rows} forward rows so far", show=show)
        return [], damaged


def _latest(topic: TopicFolder, estimator: Estimator) -> tuple[int, float, list[str]]:
    """Load the last state that can be read; an earlier round is merged again where the last one is damaged."""
    damaged: list[str] = []
    for number in reversed(topic.rounds()):
        try:
            topic.round(number)
            return number, topic.load(estimator, number), damaged
        except ShapleyError as error:
            damaged.append(str(error))
    raise ShapleyError(f"no state of topic {topic.name!r} can be read: {damaged[0]}")


def _add(estimator: Estimator, shelf: Shelf, items: list[Item]) -> float:
    """Take in a complete round, unit by unit, one unit's sample in memory at a time; returns the seconds of work in it."""
    seconds = 0.0
    parts: list[Sample] = []
    for item, following in zip(items, [*items[1:], None], strict=True):
        place = shelf.places[item]
        try:
            parts.append(read_sample(place))
            seconds += parts[-1].seconds
        except DamagedError as error:
            place.path.rename(place.path.with_suffix(".damaged"))
            raise error
        if following is None or following.unit != item.unit:
            estimator.take(estimator.join([part.arrays for part in parts]), sum(part.rows for part in parts))
            parts = []
    return seconds


def _write(run: RunFolder, topic: TopicFolder, estimator: Estimator, seconds: float) -> None:
    result = estimator.estimate()
    game: Any = estimator.game
    settings = settings_of(game, topic.plan, topic.facts["model"])
    attrs = attrs_of(game, estimator, result, settings, seconds, run.record["argv"])
    write_scores(topic.scores, topic.facts["model"], {topic.name: scores_of(game, result, attrs)}, keep=False)


def _collect(run: RunFolder) -> None:
    """All topics in one file."""
    parts = [(topic, ScoreFile(topic.scores)) for topic in run.topics]
    write_scores(run.scores, parts[0][1].model, {topic.name: file[topic.name] for topic, file in parts}, keep=False)
