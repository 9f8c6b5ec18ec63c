"""Score files: HDF5 in the layout of docs/formats.md, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import h5py
import numpy as np

from shapley.errors import ShapleyError, unknown_name
from shapley.files import atomic_path, disk_is_full, write_error
from shapley.types import BoolArray, Float32Array, FloatArray, IntArray

FORMAT = "neuron-shapley"
VERSION = 1
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
        ShapleyError: no such file, not HDF5 or cut short, or not a score file of this version.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with open_hdf5(self.path, FORMAT, "score file") as file:
            self.model: dict[str, Any] = {name: _plain(value) for name, value in file["model"].attrs.items()}
            self.topics: list[str] = list(file["topics"])

    def __getitem__(self, topic: str) -> TopicScores:
        with open_hdf5(self.path, FORMAT, "score file") as file:
            group = self._group(file, topic)
            names = (*_ARRAYS, *(name for name in _OPTIONAL if name in group))
            arrays = {name: group[name][()] for name in names}
            return TopicScores(**arrays, attrs=_attrs(group), group_names=_group_names(group))

    def array(self, topic: str, name: str) -> Any:
        """One array of a topic, without reading the others."""
        with open_hdf5(self.path, FORMAT, "score file") as file:
            return self._group(file, topic)[name][()]

    def attrs(self, topic: str) -> dict[str, Any]:
        """A topic's attributes."""
        with open_hdf5(self.path, FORMAT, "score file") as file:
            return _attrs(self._group(file, topic))

    def groups(self, topic: str) -> tuple[IntArray, tuple[str, ...]] | None:
        """A topic's groups, ``[n_layers, width]`` (-1: none) and names; ``None`` where its players are neurons."""
        with open_hdf5(self.path, FORMAT, "score file") as file:
            group = self._group(file, topic)
            return (group["group"][()], _group_names(group)) if "group" in group else None

    def check_model(self, model: Mapping[str, Any]) -> None:
        """Raises ShapleyError when the scores belong to another model."""
        if self.model["fingerprint"] != model["fingerprint"]:
            raise ShapleyError(
                f"{self.path} belongs to another model: it holds scores of {self.model['name']} "
                f"(fingerprint {self.model['fingerprint']}), not of {model['name']} ({model['fingerprint']})"
            )

    def _group(self, file: h5py.File, topic: str) -> h5py.Group:
        if topic not in self.topics:
            raise unknown_name(f"topic in {self.path}", topic, self.topics)
        return file["topics"][topic]


def write_scores(path: Path, model: Mapping[str, Any], topics: Mapping[str, TopicScores], *, keep: bool) -> None:
    """Write topics to a score file, beside those already in it (``keep``) or in place of the whole file.

    The file is built beside its place and renamed into it, so a crash leaves the old one as it was.
    """
    with atomic_path(path) as temporary, _disk_errors(path), h5py.File(temporary, "w") as file:
        if keep and path.exists():
            with open_hdf5(path, FORMAT, "score file") as old:
                for name in old:
                    old.copy(name, file)
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


def players_of(group: IntArray) -> IntArray:
    """``[G]``: flat index of the first neuron of each group, in the groups' order: where to read a group's scores."""
    names, first = np.unique(group, return_index=True)
    return first[names >= 0]


@contextmanager
def open_hdf5(path: Path, expected: str, what: str) -> Iterator[h5py.File]:
    """Open one of this package's HDF5 files for reading.

    Raises:
        ShapleyError: in one line, why it cannot be.
    """
    if not path.exists():
        raise ShapleyError(f"no {what} at {path}")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        reason = "it is cut short" if "truncated" in str(error) else "it is not an HDF5 file"
        raise ShapleyError(f"cannot read {what} {path}: {reason}; make it again") from error
    try:
        with file:
            found = file.attrs.get("format")
            if found != expected:
                raise ShapleyError(f"{path} is not a {what}: its format is {found!r}, expected {expected!r}")
            if file.attrs.get("version") != VERSION:
                version = file.attrs.get("version")
                raise ShapleyError(f"{path} has version {version}, this program reads version {VERSION}")
            yield file
    except (OSError, KeyError, RuntimeError) as error:
        if disk_is_full(error):  # of a file that is written from this one
            raise
        raise ShapleyError(f"cannot read {what} {path}: {error}; make it again") from error


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    """h5py raises a full disk as RuntimeError when it closes the file."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise write_error(path, error if isinstance(error, OSError) else OSError(str(error))) from error


def write_checkpoint(path: Path, settings: str, state: Mapping[str, np.ndarray]) -> None:
    """Save an estimator's state with the settings it belongs to."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, settings=np.array(settings), **state)  # type: ignore[arg-type]
        file.flush()
        os.fsync(file.fileno())


def read_checkpoint(path: Path) -> tuple[str, dict[str, np.ndarray]]:
    """The settings and the state of a checkpoint.

    Raises:
        ShapleyError: it cannot be read.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            state = {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        raise ShapleyError(f"cannot read checkpoint {path} ({error}): start again with --overwrite") from error
    return str(state.pop("settings")), state


def _group_names(group: h5py.Group) -> tuple[str, ...]:
    return tuple(group["group_names"].asstr()[()]) if "group_names" in group else ()


def _attrs(group: h5py.Group) -> dict[str, Any]:
    return {name: _plain(value) for name, value in group.attrs.items()}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
