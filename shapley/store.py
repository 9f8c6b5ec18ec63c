"""Score files: HDF5 in the layout of docs/formats.md (``shapley.hdf5``), and the checkpoints of estimates."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from shapley.errors import ShapleyError, unknown_name
from shapley.files import atomic_path, digest
from shapley.hdf5 import DIGEST, VERSION, create_hdf5, open_hdf5, read_array, read_attrs, read_texts, seal
from shapley.types import BoolArray, Float32Array, FloatArray, IntArray

FORMAT = "neuron-shapley"
_ARRAYS = ("score", "stderr", "count", "truncated", "replicates")
_OPTIONAL = ("exact", "group")


@dataclass(frozen=True)
class TopicScores:
    """Scores of one topic.

    Attributes:
        score, stderr: ``[n_layers, width]`` float64, NaN where not estimated.
        count: ``[n_layers, width]`` int64, independent samples behind the score.
        truncated: ``[n_layers, width]`` int64, marginals left out by truncation.
        replicates: ``[R, n_layers, width]`` float32, means of disjoint groups of samples.
        attrs: what docs/formats.md lists.
        exact: ``[n_layers, width]`` bool, which scores come from exact differences, where only some do.
        group: ``[n_layers, width]`` int64, the group whose scores a neuron holds, -1 for none; where players are groups.
        group_names: of the groups.
    """

    score: FloatArray
    stderr: FloatArray
    count: IntArray
    truncated: IntArray
    replicates: Float32Array
    attrs: dict[str, Any]
    exact: BoolArray | None = None
    group: IntArray | None = None
    group_names: tuple[str, ...] = ()


class ScoreFile:
    """A score file, open for reading queries; every call opens the file anew, so nothing is held.

    Raises:
        ShapleyError: no such file, not HDF5, cut short or damaged, or not a score file of this version. What is read
            later raises it too where that part is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with open_hdf5(self.path, FORMAT, "score file") as file:
            self.model = read_attrs(file["model"])
            read_attrs(file["topics"])  # the digest of the group is of its topics' names
            self.topics: list[str] = list(file["topics"])

    def __getitem__(self, topic: str) -> TopicScores:
        with open_hdf5(self.path, FORMAT, "score file") as file:
            group = self._group(file, topic)
            names = (*_ARRAYS, *(name for name in _OPTIONAL if name in group))
            arrays = {name: read_array(group, name) for name in names}
            return TopicScores(**arrays, attrs=read_attrs(group), group_names=_group_names(group))

    def array(self, topic: str, name: str) -> Any:
        """One array of a topic, without reading the others."""
        with open_hdf5(self.path, FORMAT, "score file") as file:
            return read_array(self._group(file, topic), name)

    def attrs(self, topic: str) -> dict[str, Any]:
        """A topic's attributes."""
        with open_hdf5(self.path, FORMAT, "score file") as file:
            return read_attrs(self._group(file, topic))

    def groups(self, topic: str) -> tuple[IntArray, tuple[str, ...]] | None:
        """A topic's groups, ``[n_layers, width]`` (-1: none) and names; ``None`` where its players are neurons."""
        with open_hdf5(self.path, FORMAT, "score file") as file:
            group = self._group(file, topic)
            read_attrs(group)  # its digest tells a file without groups from one that lost them
            return (read_array(group, "group"), _group_names(group)) if "group" in group else None

    def check_model(self, model: Mapping[str, Any]) -> None:
        """Raises ShapleyError when the scores belong to another model."""
        if self.model["fingerprint"] != model["fingerprint"]:
            raise ShapleyError(
                f"{self.path} belongs to another model: it holds scores of {self.model['name']} "
                f"(fingerprint {self.model['fingerprint']}), not of {model['name']} ({model['fingerprint']}): give the model, "
                "and the basis, that they are of"
            )

    def _group(self, file: h5py.File, topic: str) -> h5py.Group:
        if topic not in self.topics:
            raise unknown_name(f"topic in {self.path}", topic, self.topics)
        return file["topics"][topic]


def write_scores(path: Path, model: Mapping[str, Any], topics: Mapping[str, TopicScores], *, keep: bool) -> None:
    """Write topics to a score file, beside those already in it (``keep``) or in place of the whole file.

    The file is built beside its place and renamed into it, so a crash leaves the old one as it was.
    """
    with create_hdf5(path) as file:
        if keep and path.exists():
            _copy(path, file)
        file.attrs.update(format=FORMAT, version=VERSION)
        file.require_group("model").attrs.update(model)
        parent = file.require_group("topics")
        for topic, scores in topics.items():
            if topic in parent:
                del parent[topic]
            group = parent.create_group(topic)
            for name in (*_ARRAYS, *_OPTIONAL):
                if getattr(scores, name) is not None:
                    group.create_dataset(name, data=getattr(scores, name))
            if scores.group_names:  # not an attribute, which HDF5 limits to 64 KiB
                group.create_dataset("group_names", data=list(scores.group_names))
            group.attrs.update(scores.attrs)
            _seal_topic(group)
        seal(file["model"], parent, file)


def _copy(path: Path, file: h5py.File) -> None:
    """Copy all that a score file holds; topics come with their digests, so one that is damaged stays known as such."""
    with open_hdf5(path, FORMAT, "score file") as old:
        for name in ("model", "topics"):  # these get new digests, which would hide damage
            read_attrs(old[name])
        for name in old:
            old.copy(name, file)
        if DIGEST not in old.attrs:
            for group in file["topics"].values():
                _seal_topic(group)


def _seal_topic(group: h5py.Group) -> None:
    names = (*_ARRAYS, *_OPTIONAL, "group_names")
    seal(*(group[name] for name in names if name in group), group)


def players_of(group: IntArray) -> IntArray:
    """``[G]``: flat index of the first neuron of each group, in the groups' order: where to read a group's scores."""
    names, first = np.unique(group, return_index=True)
    return first[names >= 0]


def write_checkpoint(path: Path, settings: str, state: Mapping[str, np.ndarray]) -> None:
    """Save an estimator's state with the settings it belongs to.

    Raises:
        ShapleyError: as ``atomic_path``.
    """
    arrays = {name: np.asarray(value) for name, value in state.items()}
    # One array, so that an archive which lost the digest has lost the settings too and is not taken for an old one.
    arrays["settings"] = np.array([settings, _state_digest(settings, arrays)])
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def read_checkpoint(path: Path, remedy: str = ": start again with --overwrite") -> tuple[str, dict[str, np.ndarray]]:
    """The settings and the state of a checkpoint; ``remedy`` ends the line that says that it cannot be read.

    Raises:
        ShapleyError: it cannot be read, or is damaged.
    """
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not one, or cut short")
        with np.load(path, allow_pickle=False) as arrays:
            state = {name: arrays[name] for name in arrays.files}
        settings, *stored = np.atleast_1d(state.pop("settings")).tolist()
        if stored and stored != [_state_digest(settings, state)]:  # one made before there were digests has none
            raise ValueError("it is damaged, its checksum differs")
        return settings, state
    except Exception as error:  # damaged archives raise all sorts
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ShapleyError(f"cannot read checkpoint {path} ({reason}){remedy}") from error


def _state_digest(settings: str, state: Mapping[str, np.ndarray]) -> str:
    parts = (part for name in sorted(state) for part in (name.encode(), state[name]))
    return digest(settings.encode(), *parts)


def _group_names(group: h5py.Group) -> tuple[str, ...]:
    return tuple(read_texts(group, "group_names")) if "group_names" in group else ()
