"""Players that are groups of neurons: whole layers, blocks of a layer, any partition from a file; and single neurons of
chosen groups, with all others intact.

A group is in a coalition, or out of it, with all of its neurons. The game is that of the neurons on fewer coalitions, so
that every estimator plays it as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

import numpy as np
import numpy.typing as npt

from shapley.errors import ShapleyError
from shapley.store import ScoreFile, players_of
from shapley.types import BoolArray, Float32Array, FloatArray, Gates, IntArray

if TYPE_CHECKING:  # the command line reads partitions before it waits for torch
    from shapley.game import NeuronGame

Number = TypeVar("Number", bound=np.number)
Neurons: TypeAlias = Mapping[str, list[tuple[int, int]]]  # (layer, neuron) pairs by the group's name
FORMAT = "neuron-shapley-partition"
VERSION = 1
_NAMES_SHOWN = 8


@dataclass(frozen=True)
class Partition:
    """Which neurons of a game play together.

    Attributes:
        group_of: ``[n_neurons of the game]`` int64, 0 to G - 1; -1 for a neuron in no group, which stays intact.
        names: of the G groups; none where every player is one neuron and goes by its layer and number.
        description: in words, for the record.

    Raises:
        ShapleyError: there is no group.
    """

    group_of: IntArray
    names: tuple[str, ...]
    description: str

    def __post_init__(self) -> None:
        if not (self.group_of >= 0).any():
            raise ShapleyError("a partition needs a group at least")

    def __len__(self) -> int:
        return int(self.group_of.max()) + 1

    def record(self) -> dict[str, str]:
        """What tells it from others, for a run's settings."""
        content = self.group_of.astype("<i8").tobytes() + json.dumps(self.names).encode()
        return {"description": self.description, "sha256": hashlib.sha256(content).hexdigest()}


Partitioner: TypeAlias = "Callable[[NeuronGame], Partition]"


def layers(game: NeuronGame) -> Partition:
    """Each playing layer is a group."""
    width = game.shape[1]
    names = tuple(f"layer {layer}" for layer in game.layers)
    return Partition(np.repeat(np.arange(len(names)), width), names, "layers")


def blocks(game: NeuronGame, size: int) -> Partition:
    """``size`` consecutive neurons of one layer are a group; the last of a layer may be smaller.

    Raises:
        ShapleyError: ``size`` is less than 1.
    """
    if size < 1:
        raise ShapleyError(f"blocks of {size} neurons: give at least 1")
    width = game.shape[1]
    starts = range(0, width, size)
    names = tuple(
        f"layer {layer}, {start} to {min(start + size, width) - 1}" for layer in game.layers for start in starts
    )
    of_layer = np.arange(width) // size
    group_of = np.concatenate([of_layer + i * len(starts) for i in range(len(game.layers))])
    return Partition(group_of, names, f"blocks:{size}")


def from_file(path: str | Path, game: NeuronGame) -> Partition:
    """The partition of a file (docs/formats.md).

    Raises:
        ShapleyError: as for ``read_groups``; neurons that do not play, or that are in two groups.
    """
    return from_neurons(read_groups(path), game, path)


def read_groups(path: str | Path) -> Neurons:
    """The groups of a partition file, not yet held against a model.

    Raises:
        ShapleyError: no such file, not a partition file, no groups, or one that is empty or not a list of pairs.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except FileNotFoundError:
        raise ShapleyError(f"no partition file at {path}") from None
    except (OSError, ValueError) as error:  # not JSON and not UTF-8 are both ValueErrors
        raise ShapleyError(f"cannot read partition file {path}: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT or record.get("version") != VERSION:
        raise ShapleyError(f"{path} is not a partition file of version {VERSION}")
    groups = record.get("groups")
    if not isinstance(groups, dict) or not groups:
        raise ShapleyError(f"{path}: 'groups' must hold lists of [layer, neuron] pairs by name")
    return {name: _pairs(members, f"{path}: group {name!r}") for name, members in groups.items()}


def from_neurons(groups: Neurons, game: NeuronGame, where: str | Path = "partition") -> Partition:
    """The partition of a game's neurons into ``groups``.

    Args:
        groups: (layer, neuron) pairs by name.
        game: whose neurons.
        where: what messages call the groups' source.

    Raises:
        ShapleyError: neurons that do not play, or that are in two groups.
    """
    group_of = np.full(len(game.layers) * game.shape[1], -1, dtype=np.int64)
    names = tuple(groups)
    for g, (name, pairs) in enumerate(groups.items()):
        for layer, neuron in pairs:
            i = _player(game, layer, neuron, f"{where}: group {name!r}")
            if group_of[i] >= 0:
                raise ShapleyError(
                    f"{where}: neuron [{layer}, {neuron}] is in group {names[group_of[i]]!r} and again in {name!r}: "
                    "groups must not overlap"
                )
            group_of[i] = g
    return Partition(group_of, names, f"{len(names)} groups of a file")


def within(path: str | Path, top_groups: int, game: NeuronGame) -> Partition:
    """The single neurons of the ``top_groups`` groups that matter most to the game's topic (largest absolute score) in a
    score file of groups. All other neurons stay intact: another game than that of all neurons.

    Raises:
        ShapleyError: the file has no scores of groups for this topic, model and site, or not so many; a group's layer does
            not play.
    """
    file, topic = ScoreFile(path), game.topic.topic
    file.check_model({"name": game.lm.name, "fingerprint": game.lm.fingerprint})
    site = file.attrs(topic)["site"]
    if site != game.impairment.site:
        raise ShapleyError(f"{path} holds scores at {site}, this run is at {game.impairment.site}: use one --site")
    found = file.groups(topic)
    if found is None:
        raise ShapleyError(f"{path} holds scores of neurons for {topic!r}, not of groups: make it with --groups")
    group, names = found
    score = np.abs(file.array(topic, "score").flat[players_of(group)])
    scored = int(np.isfinite(score).sum())
    if not 0 < top_groups <= scored:
        raise ShapleyError(f"--top-groups {top_groups} of {scored} scored groups: choose between 1 and {scored}")
    best = np.argsort(-score, kind="stable")[:top_groups]
    members = np.flatnonzero(np.isin(group, best))
    width = group.shape[1]
    at = [_player(game, int(i) // width, int(i) % width, str(path)) for i in members]
    group_of = np.full(len(game.layers) * game.shape[1], -1, dtype=np.int64)
    group_of[at] = np.arange(len(at))
    return Partition(group_of, (), f"neurons of {_in_words([names[g] for g in best])}")


def parse_groups(text: str) -> Partitioner:
    """What ``--groups`` asks for: ``layers``, ``blocks:SIZE`` or a partition file, which is read at once.

    Raises:
        ShapleyError: none of them, or a broken file.
    """
    if text == "layers":
        return layers
    if text.startswith("blocks:"):
        size = text.removeprefix("blocks:")
        if not size.isdecimal() or int(size) < 1:
            raise ShapleyError(f"--groups {text!r}: expected a number of neurons, as blocks:64")
        return partial(blocks, size=int(size))
    if not text.endswith(".json") and not Path(text).is_file():
        raise ShapleyError(f"--groups {text!r}: expected layers, blocks:SIZE or a partition file")
    return partial(from_neurons, read_groups(text), where=text)


class GroupGame:
    """A game of neurons, played by groups of them.

    It has no ``marginals``: a group's neurons may lie in several layers, so that there is no shorter way than values.

    Args:
        game: the neurons' game.
        partition: of its neurons.

    Attributes:
        n_players: the number of groups; the rest is the neurons' game's.
    """

    def __init__(self, game: NeuronGame, partition: Partition) -> None:
        self.game, self.partition = game, partition
        self.n_players = len(partition)
        self.lm, self.topic, self.impairment = game.lm, game.topic, game.impairment
        self.value, self.layers = game.value, game.layers
        self.value_dtype, self.gradient_dtype = game.value_dtype, game.gradient_dtype
        self.n_prompts, self.stochastic, self.value_range = game.n_prompts, game.stochastic, game.value_range
        self._members = np.flatnonzero(partition.group_of >= 0)
        self._group = partition.group_of[self._members]
        # Neurons group by group, and where each group starts: what sums over groups need.
        self._sorted = self._members[np.argsort(self._group, kind="stable")]
        self._starts = np.searchsorted(np.sort(self._group), np.arange(self.n_players))

    @property
    def forward_rows(self) -> int:
        return self.game.forward_rows

    @property
    def differentiable(self) -> bool:
        return self.game.differentiable

    @property
    def shape(self) -> tuple[int, int]:
        """``[n_layers, width]`` that scores are stored in."""
        return self.game.shape

    def to_grid(self, per_player: npt.NDArray[Number], missing: float = np.nan) -> npt.NDArray[Number]:
        """``[n_players]`` -> ``[n_layers, width]``: each neuron holds what its group has, ``missing`` where it has none."""
        per_neuron = np.full(len(self.partition.group_of), missing, dtype=per_player.dtype)
        per_neuron[self._members] = per_player[self._group]
        return self.game.to_grid(per_neuron, missing)

    @overload
    def neurons(self, coalitions: BoolArray) -> BoolArray: ...
    @overload
    def neurons(self, coalitions: Gates) -> Gates: ...
    def neurons(self, coalitions: Gates) -> Gates:
        """``[C, n_players]`` -> ``[C, n_neurons]``: coalitions of neurons, or gates; those in no group are intact."""
        inside: Any = np.ones((len(coalitions), len(self.partition.group_of)), dtype=coalitions.dtype)
        inside[:, self._members] = coalitions[:, self._group]
        return inside

    def values(
        self, coalitions: BoolArray, *, prompts: IntArray | None = None, draws: IntArray | None = None
    ) -> FloatArray:
        """``[C, n_players]`` -> ``[C]`` values; arguments as for the neurons' game."""
        return self.game.values(self.neurons(coalitions), prompts=prompts, draws=draws)

    def gradients(
        self, coalitions: Gates, *, prompts: IntArray | None = None, draws: IntArray | None = None
    ) -> tuple[FloatArray, Float32Array]:
        """``[C, n_players]`` -> ``[C]`` values and ``[C, n_players]`` derivatives with respect to a gate that all neurons
        of a group share: the sum of theirs."""
        values, gradients = self.game.gradients(self.neurons(coalitions), prompts=prompts, draws=draws)
        summed = np.add.reduceat(gradients[:, self._sorted], self._starts, axis=1, dtype=np.float64)
        return values, summed.astype(np.float32)


def _player(game: NeuronGame, layer: int, neuron: int, where: str) -> int:
    """A neuron's number among the game's players."""
    n_layers, width = game.shape
    if not (0 <= layer < n_layers and 0 <= neuron < width):
        raise ShapleyError(
            f"{where}: neuron [{layer}, {neuron}] is not in the model, which has {n_layers} layers of {width} columns"
        )
    if layer not in game.layers:
        raise ShapleyError(f"{where}: neuron [{layer}, {neuron}] is in a layer that does not play: see --layers")
    return game.layers.index(layer) * width + neuron


def _pairs(members: Any, where: str) -> list[tuple[int, int]]:
    if not isinstance(members, list) or not members:
        raise ShapleyError(f"{where} is empty or not a list: it must hold [layer, neuron] pairs")
    for pair in members:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(number) is int for number in pair)):
            raise ShapleyError(f"{where}: {json.dumps(pair)} is not a [layer, neuron] pair of whole numbers")
    return [(layer, neuron) for layer, neuron in members]


def _without_repeats(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """An object of a JSON file; one group under a name that another has would be lost without a word."""
    found: dict[str, Any] = {}
    for name, value in items:
        if name in found:
            raise ValueError(f"{name!r} is there twice")
        found[name] = value
    return found


def _in_words(names: list[str]) -> str:
    more = len(names) - _NAMES_SHOWN
    return "; ".join(names[:_NAMES_SHOWN]) + (f"; and {more} more" if more > 0 else "")
