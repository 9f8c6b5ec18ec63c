"""Runs that estimate: a stream for each topic, whose rounds are units of its estimator."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from shapley.errors import ShapleyError
from shapley.estimators.registry import ESTIMATORS, build
from shapley.facts import GameFacts
from shapley.jobs.folder import ENDS, RunFolder, TopicFolder
from shapley.jobs.games import GameMaker, open_games
from shapley.jobs.sealed import write_sealed
from shapley.jobs.segments import Item, Sample
from shapley.jobs.stream import Compute, Figures, Present, Stream
from shapley.outcome import attrs_of, scores_of, settings_of
from shapley.progress import say
from shapley.store import ScoreFile, write_scores


class EstimateJob:
    """See ``shapley.jobs.stream.Job``."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self.streams: Sequence[Stream] = [TopicStream(topic, run.record["argv"]) for topic in run.topics]
        self.hint = f"shapley top {run.scores} --topic {run.topics[0].name}"

    def open(self, device: str) -> tuple[Mapping[str, Any], GameMaker]:
        record = self._run.record["game"]
        return open_games({**record, "memory": self._run.memory or record["memory"]}, device)

    def prepare(self, device: str, show: bool) -> None:
        model, make = self.open(device)
        # Everything is built before anything is played, so that what is wrong with the last topic costs nothing.
        topics = self._run.topics
        built = [(topic, *build(self._run.plan, make(topic.topic), key=topic.name)) for topic in topics]
        for _, estimator, _ in built:
            check_apart(estimator.name)
        for number, (topic, estimator, reason) in enumerate(built):
            if topic.sound():
                continue
            start = time.monotonic()
            # The first, to see whether the model runs; the others' are left to the workers.
            if number == 0 or estimator.needs_ends:
                estimator.begin()
            record = {
                "game": GameFacts.record_of(estimator.game),
                "model": model,
                "estimator": estimator.name,
                "reason": reason,
            }
            write_sealed(topic.path / "facts.json", record)
            topic.save(estimator, 0, time.monotonic() - start)
            say(f"{topic.name}: estimator {estimator.name} ({reason}), {estimator.game.n_players} players", show=show)
        self._run.freeze_memory(built[0][1].game.memory)  # type: ignore[attr-defined]

    def collect(self, show: bool) -> None:
        if self._run.scores.exists():
            return
        topics = {}
        for topic in self._run.topics:
            with _with_remedy(topic):
                file = ScoreFile(topic.scores)
                topics[topic.name] = file[topic.name]
        write_scores(self._run.scores, file.model, topics, keep=False)
        say(f"scores of {len(topics)} topics in {self._run.scores}", show=show)


@contextmanager
def _with_remedy(topic: TopicFolder) -> Iterator[None]:
    """Say how a topic's damaged scores are made again."""
    try:
        yield
    except ShapleyError as error:
        run = topic.path.parent.parent
        raise ShapleyError(f"{error}: remove it, and 'shapley merge {run}' does") from error


def check_apart(name: str) -> None:
    """Raises ShapleyError when an estimator's work cannot be shared; one that is still to be chosen passes."""
    if name in ESTIMATORS and not ESTIMATORS[name].apart:
        raise ShapleyError(
            f"estimator {name!r} does one unit after another and cannot be shared among shards: "
            "choose two-stage, permutation or gradient"
        )


class TopicStream:
    """See ``shapley.jobs.stream.Stream``. An item is a part of a unit."""

    def __init__(self, topic: TopicFolder, argv: Sequence[str]) -> None:
        self._topic, self._argv = topic, argv
        self.name, self.path = topic.name, topic.path

    @property
    def prepared(self) -> bool:
        return bool(self._topic.rounds())

    @property
    def sound(self) -> bool:
        return self.finished or self._topic.sound()

    @property
    def finished(self) -> bool:
        return self._topic.scores.exists()

    @property
    def model(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._topic.facts["model"]
        return found

    @property
    def round(self) -> int:
        return self._topic.rounds()[-1]

    def present(self) -> Present:
        return _present(self._topic, self.round)

    def compute(self, number: int, opened: GameMaker) -> Compute:
        game = opened(self._topic.topic)
        estimator, at_work = self._topic.estimator(game), self._topic.round(number)

        def compute(item: Item) -> tuple[tuple[np.ndarray, ...], int]:
            before = game.forward_rows
            if item == ENDS:
                arrays: tuple[np.ndarray, ...] = (np.array(estimator.ends()),)
            else:
                at_work.adopt(estimator, item.unit)
                arrays = estimator.part(item.part)
            return arrays, game.forward_rows - before

        return compute

    def ledger(self) -> TopicLedger:
        return TopicLedger(self._topic, self._argv)

    def figures(self) -> Figures:
        with _with_remedy(self._topic):
            file = ScoreFile(self._topic.scores)
            attrs = file.attrs(self.name)
            score, stderr, count = (file.array(self.name, name) for name in ("score", "stderr", "count"))
        rows = int(attrs["forward_rows"])
        return Figures(self._topic.rounds()[-1], rows, attrs["wall_seconds"], rows, (score, stderr, count))

    def title(self, item: Item) -> str:
        if item == ENDS:
            return "v(N) and v(0)"
        return f"unit {item.unit} part {item.part}" if item.unit >= 0 else f"part {item.part} before unit 0"


class TopicLedger:
    """See ``shapley.jobs.stream.Ledger``."""

    def __init__(self, topic: TopicFolder, argv: Sequence[str]) -> None:
        self._topic, self._argv = topic, argv
        self._estimator = topic.estimator(topic.game())
        self.damaged: list[str] = []
        self.present, self._seconds = self._latest()

    def _latest(self) -> tuple[Present, float]:
        """Load the last state that can be read; an earlier round is merged again where the last one is damaged."""
        for number in reversed(self._topic.rounds()):
            try:
                return _present(self._topic, number), self._topic.load(self._estimator, number)
            except ShapleyError as error:
                self.damaged.append(str(error))
        raise ShapleyError(
            f"no state of topic {self._topic.name!r} in {self._topic.path} can be read: 'shapley prepare' on the run "
            "makes the first again, and what workers computed still counts"
        )

    def take(self, samples: Iterator[tuple[Item, Sample]]) -> None:
        """Unit by unit, one unit's sample in memory at a time."""
        parts: list[Sample] = []
        unit = self._estimator.unit
        for item, sample in samples:
            if item == ENDS:
                full, empty = map(float, sample.arrays[0])
                self._estimator.take_ends((full, empty), sample.rows)
                self._seconds += sample.seconds
                continue
            if item.unit != unit:
                self._add(parts)
                unit, parts = item.unit, []
            parts.append(sample)
        self._add(parts)

    def _add(self, parts: list[Sample]) -> None:
        if parts:
            whole = self._estimator.join([part.arrays for part in parts])
            self._estimator.take(whole, sum(part.rows for part in parts))
            self._seconds += sum(part.seconds for part in parts)

    def close(self) -> str:
        estimator, number = self._estimator, self.present.number
        if estimator.finished:
            self._write()
            return f"finished after round {number}, {estimator.forward_rows} forward rows"
        self._topic.save(estimator, number + 1, self._seconds)
        return f"round {number + 1} begins, {estimator.forward_rows} forward rows so far"

    def _write(self) -> None:
        result, model = self._estimator.estimate(), self._topic.facts["model"]
        game: Any = self._estimator.game
        settings = settings_of(game, self._topic.plan, model)
        attrs = attrs_of(game, self._estimator, result, settings, self._seconds, self._argv)
        write_scores(self._topic.scores, model, {self._topic.name: scores_of(game, result, attrs)}, keep=False)

    def figures(self) -> Figures:
        estimator, scores = self._estimator, None
        if estimator.unit > 1:  # of one unit there is no spread
            result, game = estimator.estimate(), self._topic.game()
            scores = (
                game.to_grid(result.score),
                game.to_grid(result.stderr),
                game.to_grid(result.count, missing=0),
            )
        return Figures(self.present.number, estimator.forward_rows, self._seconds, estimator.planned_rows, scores)


def _present(topic: TopicFolder, number: int) -> Present:
    at_work = topic.round(number)
    return Present(number, at_work.items(topic.estimator(topic.game())), topic.shelf(number))
