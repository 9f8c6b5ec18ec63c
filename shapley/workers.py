"""Worker processes for ``estimate``: one copy of the model each, whole units of an estimator's work at a time.

A unit's sample does not depend on who computes it, and the samples are added in the order of their units; so the numbers
do not depend on how many workers there are (as far as floating point goes: docs/design.md). What the workers need to know
is in a *recipe*, a file in a folder that lives as long as the pool. A worker takes its place among the devices by locking
a file in that folder, and the operating system gives the place back if the worker dies.
"""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from joblib import Parallel, delayed
from joblib.externals.loky import get_reusable_executor

from shapley.errors import ShapleyError
from shapley.estimators.base import Estimator, without_interrupts
from shapley.estimators.registry import ESTIMATORS, Plan, build
from shapley.game import NeuronGame
from shapley.groups import GroupGame, Partition
from shapley.hf.load import LanguageModel, load_model
from shapley.hf.scoring import default_memory
from shapley.hf.sites import Family, register_family
from shapley.impairment import Impairment
from shapley.prompts import TopicPrompts
from shapley.types import ValueName

UNITS_AHEAD = 8  # of a worker: what bounds the samples that wait to be added, each a few numbers a player
_WATCH_SECONDS = 1.0


class LostWorker(Exception):
    """A worker process was killed; its units are lost, what was added is not."""


@dataclass(frozen=True)
class ModelRecipe:
    """How to load the model that another process has."""

    name: str
    fingerprint: str
    dtype: str
    trust_remote_code: bool
    model_type: str
    family: Family

    @classmethod
    def of(cls, lm: LanguageModel) -> ModelRecipe:
        dtype = str(next(lm.model.parameters()).dtype).removeprefix("torch.")
        model_type = lm.model.config.model_type
        return cls(lm.name, lm.fingerprint, dtype, lm.trust_remote_code, model_type, lm.sites.family)

    def load(self, device: str) -> LanguageModel:
        """Raises ShapleyError when there is no such model, or another one by its name."""
        register_family(self.model_type, self.family)
        lm = load_model(self.name, device=device, dtype=self.dtype, trust_remote_code=self.trust_remote_code)
        if lm.fingerprint != self.fingerprint:
            raise ShapleyError(
                f"workers load model {self.name!r} anew, and found another one there (fingerprint {lm.fingerprint}, not "
                f"{self.fingerprint}): save the model to a folder and load it from there"
            )
        return lm


@dataclass(frozen=True)
class Recipe:
    """Everything that a worker needs to compute units of one topic.

    Attributes:
        topic, impairment, value, layers, dtype, memory: as for ``NeuronGame``; ``memory`` is each worker's.
        partition: of the players into groups, or ``None``.
        plan: with the estimator by its name.
        key: of the estimator's draws.
    """

    model: ModelRecipe
    topic: TopicPrompts
    impairment: Impairment
    value: ValueName
    layers: tuple[int, ...]
    dtype: str
    memory: int | None
    partition: Partition | None
    plan: Plan
    key: str

    @classmethod
    def of(cls, game: NeuronGame | GroupGame, plan: Plan, key: str, *, dtype: str, memory: int | None) -> Recipe:
        """Of the game that ``plan`` plays, whose estimator goes by name there."""
        partition = game.partition if isinstance(game, GroupGame) else None
        model = ModelRecipe.of(game.lm)
        return cls(model, game.topic, game.impairment, game.value, game.layers, dtype, memory, partition, plan, key)

    def build(self, lm: LanguageModel, memory: int) -> Estimator:
        """The estimator, with ``memory`` bytes for activations where the recipe does not say."""
        game = NeuronGame(
            lm,
            self.topic,
            self.impairment,
            value=self.value,
            layers=self.layers,
            dtype=self.dtype,
            memory=self.memory or memory,
        )
        players = game if self.partition is None else GroupGame(game, self.partition)
        return build(self.plan, players, key=self.key)[0]


@dataclass(frozen=True)
class Bench:
    """Where workers work.

    Attributes:
        folder: of recipes and of the locks of places.
        devices: of the places, one each.
        threads: of torch on the CPU, for each worker.
        parent: the process that gives out the work.
    """

    folder: Path
    devices: tuple[str, ...]
    threads: int
    parent: int


class WorkerPool:
    """``len(devices)`` worker processes, started with the first unit of work.

    Args:
        devices: of the workers, from ``worker_devices``.
        folder: that outlives the pool.
    """

    def __init__(self, devices: Sequence[str], folder: Path) -> None:
        # The parent's own threads, and not the cores: whoever set OMP_NUM_THREADS meant it.
        threads = max(1, torch.get_num_threads() // len(devices))
        self._bench = Bench(folder, tuple(devices), threads, os.getpid())
        self._recipes = 0
        self._parallel = Parallel(
            n_jobs=len(devices), backend="loky", return_as="generator", batch_size=1, max_nbytes=None
        )

    def steps(self, estimator: Estimator, recipe: Recipe) -> Generator[None, None, None]:
        """Run an estimator to its end; yields between its steps, where it can be saved.

        Raises:
            LostWorker: a worker was killed.
            ShapleyError: from a worker.
        """
        estimator.begin()
        while estimator.midway:  # as an interrupted run without workers left it
            estimator.step()
            yield
        path = self._write(recipe)
        while not estimator.finished:
            n_units = min(estimator.units_ahead(), UNITS_AHEAD * len(self._bench.devices))
            yield from self._units(estimator, path, n_units)

    def _units(self, estimator: Estimator, recipe: Path, n_units: int) -> Generator[None, None, None]:
        ends, shared = (estimator.value_full, estimator.value_empty), estimator.shared()
        units = range(estimator.unit, estimator.unit + n_units)
        with _deaf_children():
            results = self._parallel(delayed(compute)(self._bench, recipe, unit, ends, shared) for unit in units)
        try:
            for sample, rows in results:
                estimator.take(sample, rows)
                yield
        except BrokenProcessPool as error:
            raise LostWorker from error
        finally:
            with warnings.catch_warnings():  # that units are thrown away: they are meant to be
                warnings.simplefilter("ignore")
                results.close()

    def _write(self, recipe: Recipe) -> Path:
        path = self._bench.folder / f"recipe-{self._recipes}.pickle"
        path.write_bytes(pickle.dumps(recipe))
        self._recipes += 1
        return path


@contextmanager
def worker_pool(devices: Sequence[str]) -> Iterator[WorkerPool | None]:
    """A pool that is gone with all its processes at the end; none for fewer than two devices."""
    if len(devices) < 2:
        yield None
        return
    with tempfile.TemporaryDirectory(prefix="shapley-workers-") as folder:
        try:
            yield WorkerPool(devices, Path(folder))
        finally:
            with without_interrupts():
                get_reusable_executor(reuse=True, kill_workers=True).shutdown(wait=True, kill_workers=True)


def worker_devices(devices: Sequence[str], own: torch.device, workers: int) -> tuple[str, ...]:
    """The device of each worker.

    Args:
        devices: as asked for; one without a number is for all workers, and ``cuda`` means the first GPUs, one a worker.
            None: as ``own``.
        own: this process's device.
        workers: how many.

    Raises:
        ShapleyError: fewer than one worker, or not as many devices as workers.
    """
    if workers < 1:
        raise ShapleyError(f"--workers {workers} must be at least 1")
    named = [own.type if name == "auto" else name for name in devices] or [own.type]
    if workers == 1 and len(named) == 1:
        return (named[0],)
    if "spread" in named:
        raise ShapleyError(f"--device spread puts one model on all GPUs, which leaves no room for {workers} workers")
    if named == ["cuda"]:
        if workers > torch.cuda.device_count():
            raise ShapleyError(
                f"{workers} workers, and {torch.cuda.device_count()} GPUs: name a device for each worker, as in --device "
                "cuda:0,cuda:0, or start fewer"
            )
        return tuple(f"cuda:{index}" for index in range(workers))
    if len(named) == 1 and ":" not in named[0]:
        return tuple(named * workers)
    if len(named) != workers:
        raise ShapleyError(f"--device names {len(named)} devices for {workers} workers: name one for each")
    return tuple(named)


def check_apart(estimator: Estimator, workers: int) -> None:
    """Raises ShapleyError when there is nothing in an estimator for several workers."""
    if workers > 1 and not estimator.apart:
        able = ", ".join(name for name, kind in ESTIMATORS.items() if kind.apart)
        raise ShapleyError(
            f"estimator {estimator.name!r} does one unit after another, and has no use for {workers} workers: "
            f"leave --workers out, or choose one of {able}"
        )


def compute(
    bench: Bench, recipe: Path, unit: int, ends: tuple[float, float], shared: dict[str, np.ndarray]
) -> tuple[Any, int]:
    """In a worker: a unit's sample, and the forward rows that it cost."""
    estimator = _estimator(bench, recipe)
    before = estimator.game.forward_rows
    estimator.adopt(unit, ends, shared)
    sample = None
    while sample is None:
        sample = estimator.advance()
    return sample, estimator.game.forward_rows - before


@lru_cache(maxsize=1)
def _estimator(bench: Bench, path: Path) -> Estimator:
    """This worker's copy of the estimator of a recipe."""
    recipe: Recipe = pickle.loads(path.read_bytes())
    device = _settle(bench)
    lm = _model(recipe.model, device)
    return recipe.build(lm, default_memory(lm.device) // bench.devices.count(device))


@lru_cache(maxsize=1)
def _model(recipe: ModelRecipe, device: str) -> LanguageModel:
    return recipe.load(device)


@lru_cache(maxsize=1)
def _settle(bench: Bench) -> str:
    """Make this process a worker of the bench; returns its device."""
    if os.getpid() != bench.parent:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        follow(bench.parent, bench.folder)
        torch.set_num_threads(bench.threads)
    return bench.devices[_place(bench).place]


@dataclass(frozen=True)
class _Held:
    """A place, and the lock that holds it for as long as this process lives."""

    place: int
    lock: FileLock


@lru_cache(maxsize=1)
def _place(bench: Bench) -> _Held:
    """The first free place."""
    for place in range(len(bench.devices)):
        lock = FileLock(bench.folder / f"place-{place}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        return _Held(place, lock)
    raise ShapleyError(f"more than {len(bench.devices)} workers at work in {bench.folder}")  # joblib would be broken


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Processes that are started meanwhile never hear Ctrl-C, which a terminal sends to all: it is the parent's to handle.

    They inherit that SIGINT is ignored. Blocking it would not do: joblib unblocks it when it starts a process.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before or signal.SIG_DFL)


@cache
def follow(parent: int, folder: Path | None = None) -> None:
    """From now on, end this process when its parent is gone, however it went.

    Args:
        parent: its number; this process itself follows nobody.
        folder: to be left behind by nobody.
    """
    if os.getpid() != parent:
        threading.Thread(target=_die_with, args=(parent, folder), daemon=True).start()


def _die_with(parent: int, folder: Path | None) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)
