"""Runs that sweep: one stream with one round, whose items are blocks, an arm at a level each.

RUN/clusters/00-NAME.json       copies of the cluster files
RUN/sweep/design.json           arms, strengths and all else that was chosen when the model was there
          round-0000/*.segment  samples
RUN/sweep.h5                    at the end
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from shapley.clusters import Cluster
from shapley.errors import ShapleyError
from shapley.impairment import Impairment
from shapley.jobs.folder import RunFolder, folder_name, make_folder, remake
from shapley.jobs.sealed import read_sealed, write_sealed
from shapley.jobs.segments import Item, Sample, Shelf
from shapley.jobs.stream import Compute, Figures, Present, Stream
from shapley.progress import say
from shapley.prompts import TopicPrompts
from shapley.records import read_sweep, write_sweep
from shapley.sweep_design import SweepDesign

if TYPE_CHECKING:  # the merge has no torch
    from shapley.hf.load import LanguageModel

_EVERYTHING = "every column"  # in place of a cluster's digest


def sweep_record(
    model: str,
    *,
    trust_remote_code: bool,
    impairment: Mapping[str, Any],
    strengths: Sequence[float],
    seeds: int,
    random: int,
    dtype: str,
    memory: int | None,
) -> dict[str, Any]:
    """What a sweep is to measure, for JSON. Arguments as for ``load_model`` and ``shapley.sweep``."""
    return {
        "model": model,
        "trust_remote_code": trust_remote_code,
        "impairment": dict(impairment),
        "strengths": list(strengths),
        "seeds": seeds,
        "random": random,
        "dtype": dtype,
        "memory": memory,
    }


def create_sweep(
    path: Path,
    topics: Mapping[str, TopicPrompts],
    clusters: Mapping[str, Cluster | None],
    record: Mapping[str, Any],
    shards: int,
    argv: Sequence[str],
) -> RunFolder:
    """Make the folder of a new sweep; the same call again finds it as it is.

    Args:
        path: of the folder; its parent exists.
        topics: prompts by topic.
        clusters: by name; ``None`` for every column of the site.
        record: of ``sweep_record``.
        shards: in how many the work is cut.
        argv: the command line, for the record.

    Raises:
        ShapleyError: the folder belongs to another run, is a file, or cannot be written.
    """
    digests = {name: _digest(cluster) for name, cluster in clusters.items()}

    def fill(folder: Path) -> None:
        (folder / "sweep" / "round-0000").mkdir(parents=True)
        (folder / "clusters").mkdir()
        for i, (name, cluster) in enumerate(clusters.items()):
            if cluster is not None:
                cluster.save(folder / "clusters" / f"{folder_name(i, name)}.json")

    return make_folder(path, "sweep", {"sweep": dict(record), "clusters": digests}, topics, shards, argv, fill)


def _digest(cluster: Cluster | None) -> str:
    return (
        _EVERYTHING
        if cluster is None
        else hashlib.sha256(json.dumps(cluster.record(), sort_keys=True).encode()).hexdigest()
    )


class SweepJob:
    """See ``shapley.jobs.stream.Job``."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        self._stream = SweepStream(run)
        self.streams: Sequence[Stream] = [self._stream]
        self.hint = f"records in {run.result}"

    def open(self, device: str) -> tuple[Mapping[str, Any], LanguageModel]:
        from shapley.hf.load import describe, load_model, weights_dtype

        record = self._run.record["sweep"]
        lm = load_model(
            record["model"],
            device=device,
            dtype=weights_dtype(device, record["dtype"]),
            trust_remote_code=record["trust_remote_code"],
        )
        return describe(lm), lm

    def prepare(self, device: str, show: bool) -> None:
        from shapley.sweeps import SweepScorer, design_of

        record = self._run.record["sweep"]
        _, lm = self.open(device)
        design = design_of(
            lm,
            self._clusters(),
            Impairment(**record["impairment"]),
            record["strengths"],
            n_seeds=record["seeds"],
            n_random=record["random"],
            dtype=record["dtype"],
            show=show,
        )
        topics = self._stream.topics
        scorer = SweepScorer(lm, design, topics, record["memory"])  # refuses prompts that the model does not take
        self._run.freeze_memory(scorer.memory)
        write_sealed(self._stream.path / "design.json", design.record())
        say(f"sweep: {len(design.blocks())} blocks, {design.rows(scorer.n_prompts)} forward rows", show=show)

    def _clusters(self) -> dict[str, Cluster | None]:
        folder = self._run.path / "clusters"
        found: dict[str, Cluster | None] = {}
        for i, (name, digest) in enumerate(self._run.record["clusters"].items()):
            path = folder / f"{folder_name(i, name)}.json"
            found[name] = None if digest == _EVERYTHING else Cluster.load(path)
            if _digest(found[name]) != digest:
                raise ShapleyError(
                    f"{path} is damaged, or was changed: copy the cluster file that was submitted over it"
                )
        return found

    def collect(self, show: bool) -> None:
        """The one stream writes the run's result itself."""


class SweepStream:
    """See ``shapley.jobs.stream.Stream``. An item's unit is its arm, its part the level."""

    name = "sweep"
    round = 0

    def __init__(self, run: RunFolder) -> None:
        self.run, self.path = run, run.path / "sweep"

    @property
    def prepared(self) -> bool:
        return (self.path / "design.json").exists()

    @property
    def sound(self) -> bool:
        try:
            return bool(self.design.arms)
        except ShapleyError:
            return False

    @property
    def finished(self) -> bool:
        return self.run.result.exists()

    @property
    def model(self) -> Mapping[str, Any]:
        return self.design.model

    @cached_property
    def design(self) -> SweepDesign:
        """Raises ShapleyError when the run was not prepared."""
        return SweepDesign.from_record(
            read_sealed(self.path / "design.json", "the sweep was not prepared yet", remake(self.run.path))
        )

    @property
    def topics(self) -> dict[str, TopicPrompts]:
        return self.run.prompts

    @property
    def n_prompts(self) -> int:
        return sum(map(len, self.topics.values()))

    def present(self) -> Present:
        shelf = Shelf(self.path / "round-0000", self.run.record["settings_digest"])
        return Present(0, [Item(*block) for block in self.design.blocks()], shelf)

    def compute(self, number: int, opened: LanguageModel) -> Compute:
        from shapley.sweeps import SweepScorer

        scorer = SweepScorer(opened, self.design, self.topics, self.run.memory)

        def compute(item: Item) -> tuple[tuple[np.ndarray, ...], int]:
            before = scorer.forward_rows
            return (scorer.block(*item),), scorer.forward_rows - before

        return compute

    def ledger(self) -> SweepLedger:
        return SweepLedger(self)

    def figures(self) -> Figures:
        attrs = read_sweep(self.run.result).attrs
        rows = int(attrs["forward_rows"])
        return Figures(0, rows, attrs["wall_seconds"], rows)

    def title(self, item: Item) -> str:
        arm, level = item
        if level == 0:
            return "the untouched model"
        return f"{list(self.design.arms)[arm]} at strength {self.design.strengths[level]:g}"


class SweepLedger:
    """See ``shapley.jobs.stream.Ledger``."""

    def __init__(self, stream: SweepStream) -> None:
        self._stream = stream
        self._values = stream.design.empty(stream.n_prompts)
        self._rows, self._seconds = 0, 0.0
        self.present = stream.present()
        self.damaged: list[str] = []

    def take(self, samples: Iterator[tuple[Item, Sample]]) -> None:
        for item, sample in samples:
            self._stream.design.put(self._values, *item, sample.arrays[0])
            self._rows += sample.rows
            self._seconds += sample.seconds

    def close(self) -> str:
        stream, run = self._stream, self._stream.run
        records = stream.design.sweep(self._values, stream.topics, self._rows, self._seconds, run.record["argv"])
        write_sweep(run.result, records)
        return f"finished, {self._rows} forward rows, records in {run.result}"

    def figures(self) -> Figures:
        return Figures(0, 0, 0.0, self._stream.design.rows(self._stream.n_prompts))
