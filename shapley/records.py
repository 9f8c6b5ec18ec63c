"""Sweep files: what impairment sweeps measured, in HDF5 (docs/formats.md). No torch: reports and plots read them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from shapley.errors import ShapleyError
from shapley.hdf5 import VERSION, create_hdf5, open_hdf5, read_array, read_attrs, read_texts, seal
from shapley.impairment import Impairment
from shapley.types import FloatArray, ValueName

FORMAT = "neuron-shapley-sweep"
METRICS: tuple[ValueName, ...] = ("logprob", "loss", "accuracy")
EVERYTHING = "everything"
_MOST_STRENGTHS = 1000


@dataclass(frozen=True)
class Sweep:
    """The records of a sweep.

    Attributes:
        records: by topic, ``[metric, cluster, strength, seed, prompt]``; metrics as in ``METRICS``.
        clusters: names along the cluster axis; random controls are ``<name>/random-1`` and so on.
        sizes: number of columns of each cluster.
        strengths: ``[strengths]``, as asked for.
        absolute: ``[strengths, n_layers]``, in activation units (noise kinds) or fractions.
        impairment: kind, site and unit; its own strength means nothing here.
        attrs: model, versions, time, forward rows.
    """

    records: dict[str, FloatArray]
    clusters: list[str]
    sizes: list[int]
    strengths: FloatArray
    absolute: FloatArray
    impairment: Impairment
    attrs: dict[str, Any]

    def metric(self, topic: str, cluster: str, name: ValueName = "logprob") -> FloatArray:
        """``[strength, seed, prompt]`` of one topic and cluster. Loss is the cross-entropy, lower is better."""
        values = self.records[topic][METRICS.index(name), self.clusters.index(cluster)]
        return -values if name == "loss" else values

    @property
    def of_topics(self) -> dict[str, str]:
        """By cluster, the topic that it was chosen for, of the topics measured; where a file says none, of its name."""
        chosen_for = json.loads(self.attrs.get("cluster_topics", "{}"))
        found = {cluster: chosen_for.get(cluster, cluster.removeprefix("cluster-")) for cluster in self.clusters}
        return {cluster: topic for cluster, topic in found.items() if topic in self.records}

    def controls(self, cluster: str) -> list[str]:
        """The random clusters that go with one."""
        return [name for name in self.clusters if name.startswith(f"{cluster}/random-")]


def parse_strengths(text: str) -> FloatArray:
    """``0:2:0.25`` (both ends included) or ``0,0.5,1``; zero is added in front if it is missing.

    Raises:
        ShapleyError: not numbers, negative, or a step that leads nowhere.
    """
    if ":" in text and "," in text:
        raise ShapleyError(f"--strength {text!r}: expected START:STOP:STEP or A,B,C, not both at once")
    try:
        numbers = [float(part) for part in text.replace(":", ",").split(",")]
    except ValueError:
        raise ShapleyError(f"--strength {text!r}: expected numbers, as START:STOP:STEP or A,B,C") from None
    if ":" in text:
        if len(numbers) != 3 or not numbers[2] > 0 or not numbers[1] >= numbers[0] or not np.isfinite(numbers).all():
            raise ShapleyError(f"--strength {text!r}: expected START:STOP:STEP with STOP >= START and STEP > 0")
        start, stop, step = numbers
        if (stop - start) / step > _MOST_STRENGTHS:
            raise ShapleyError(f"--strength {text!r} makes more than {_MOST_STRENGTHS} strengths: take a larger step")
        numbers = [start + i * step for i in range(int((stop - start) / step + 1e-9) + 1)]
    if not np.isfinite(numbers).all() or min(numbers) < 0:
        raise ShapleyError(f"--strength {text!r}: strengths must be finite and at least 0")
    return np.array(sorted({0.0, *numbers}))


def write_sweep(path: Path, sweep: Sweep) -> None:
    """Write a sweep file atomically (docs/formats.md).

    Raises:
        ShapleyError: as ``create_hdf5``.
    """
    with create_hdf5(path) as file:
        file.attrs.update(format=FORMAT, version=VERSION, impairment=sweep.impairment.to_json(), **sweep.attrs)
        file["strength"] = sweep.strengths
        file["strength_absolute"] = sweep.absolute
        file["cluster"] = np.array(sweep.clusters, dtype=h5py.string_dtype())
        file["cluster_size"] = np.array(sweep.sizes)
        topics = file.create_group("topics")
        seal(*(file[name] for name in ("strength", "strength_absolute", "cluster", "cluster_size")))
        for topic, records in sweep.records.items():
            group = topics.create_group(topic)
            for name, values in zip(METRICS, records, strict=True):
                data = group.create_dataset(name, data=-values if name == "loss" else values)
                data.attrs["axes"] = ["cluster", "strength", "seed", "prompt"]
            seal(*group.values(), group)
        seal(topics, file)


def read_sweep(path: str | Path) -> Sweep:
    """Read a sweep file.

    Raises:
        ShapleyError: as ``open_hdf5``, or it is damaged.
    """
    with open_hdf5(Path(path), FORMAT, "sweep file") as file:
        records = {}
        read_attrs(file["topics"])  # the digest of the group is of its topics' names
        for topic, group in file["topics"].items():
            parts = [read_array(group, name) for name in METRICS]
            records[topic] = np.stack(
                [-part if name == "loss" else part for name, part in zip(METRICS, parts, strict=True)]
            )
        attrs = read_attrs(file)
        return Sweep(
            records,
            read_texts(file, "cluster"),
            read_array(file, "cluster_size").tolist(),
            read_array(file, "strength"),
            read_array(file, "strength_absolute"),
            Impairment.from_json(str(attrs["impairment"])),
            {name: value for name, value in attrs.items() if name not in ("format", "version", "impairment")},
        )
