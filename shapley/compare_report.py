"""A comparison of models for its readers: a table, what to bear in mind, a figure, and a record for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import cycle, product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from shapley.compare import Comparison, Pair, TaskCurve, other_tokens
from shapley.impairment import NOISE_KINDS
from shapley.plots import COLOURS
from shapley.shape import Interval
from shapley.types import FloatArray

FORMAT = "neuron-shapley-compare"
VERSION = 1
_MARKS = ("o", "s", "^", "D", "v")  # five marks and seven colours: no two of thirty-five models look alike
_LEAST_DRAWN = -0.2  # far below the floor a curve has nothing more to tell
_NAMES = {"accuracy": "accuracy", "logprob": "log-probability"}


def record(comparison: Comparison) -> dict[str, Any]:
    """For JSON; what was not measured is null."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "value": comparison.value,
        "impairment": json.loads(comparison.impairment.to_json()),
        "strengths": comparison.strengths.tolist(),
        "damages": comparison.damages.tolist(),
        "damage": {model: rise.tolist() for model, rise in comparison.damage.items()},
        "tasks": {
            task: {model: _curve_record(curve) for model, curve in curves.items()}
            for task, curves in comparison.curves.items()
        },
        "pairs": [_pair_record(pair) for pair in comparison.pairs],
        "caveats": list(caveats(comparison)),
    }


def table(comparison: Comparison) -> str:
    """Two tables, of models and of pairs, as plain text."""
    at = [f"lost at {level:g}" for level in comparison.damages]
    models = [
        [
            task,
            model,
            f"{curve.performance[0]:.3f}",
            f"{curve.floor:.3f}",
            _shown(curve.id50, at_least=curve.censored),
            _shown(curve.area),
            *map(_shown, curve.lost),
        ]
        for task, curves in comparison.curves.items()
        for model, curve in curves.items()
    ]
    pairs = [
        [
            pair.task,
            f"{pair.first} - {pair.second}",
            _shown(pair.log_id50),
            _shown(pair.area),
            *map(_shown, pair.lost),
            _number(pair.p),
            _number(pair.p_holm),
            pair.verdict,
        ]
        for pair in comparison.pairs
    ]
    return "\n".join(
        (
            f"{_strength_label(comparison)}; {_NAMES[comparison.value]}; 95% intervals over prompts; lost: share of the "
            "performance, where the loss on plain text is up by so many nats a byte",
            "",
            *_aligned(["task", "model", "untouched", "floor", "ID50", "area", *at], models),
            "",
            *_aligned(["task", "difference", "log ID50", "area", *at, "p", "p (Holm)", "verdict"], pairs),
        )
    )


def caveats(comparison: Comparison) -> Iterator[str]:
    """What keeps numbers of this comparison from being what they seem."""
    largest = f"{comparison.strengths[-1]:g}"
    for task, curves in comparison.curves.items():
        for model, curve in curves.items():
            if not curve.above_floor:
                yield (
                    f"{task}: {model} is not above its floor ({curve.performance[0]:.3g}, floor {curve.floor:.3g}): "
                    "it has nothing to lose"
                )
            if curve.censored:
                yield f"{task}: {model} keeps more than half up to strength {largest}: its ID50 is at least that"
    for pair in comparison.pairs:
        first, second = (comparison.curves[pair.task][model] for model in (pair.first, pair.second))
        cut = other_tokens(first, second)
        if cut.any():
            yield (
                f"{pair.task}: {pair.first} and {pair.second} cut {cut.sum()} of {len(cut)} answers into different numbers "
                "of tokens: a log-probability is a mean over tokens, accuracy asks for all of them"
            )


def figure(comparison: Comparison) -> Figure:
    """A column a task: what each model retains against strength, above, and against the damage to plain text, below."""
    n = len(comparison.curves)
    drawn = Figure(figsize=(3.4 * n + 0.4, 6.0), layout="constrained")
    panels = drawn.subplots(2, n, sharey=True, squeeze=False)
    for (by_strength, by_damage), (task, curves) in zip(panels.T, comparison.curves.items(), strict=True):
        by_strength.set_title(task.replace("$", r"\$"))
        by_strength.set_xlabel(_strength_label(comparison), fontsize=8)
        by_damage.set_xlabel("rise of the loss on plain text (nats a byte)", fontsize=8)
        if comparison.impairment.kind in NOISE_KINDS:
            _log_axis(by_strength, "log")
        _log_axis(by_damage, "symlog", linthresh=comparison.damages[0])
        for (model, curve), look in zip(curves.items(), _looks(), strict=False):
            _line(by_strength, comparison.strengths[1:], curve, 1, label=model, **look)
            _line(by_damage, comparison.damage[model], curve, 0, label=model, **look)
        for axes in (by_strength, by_damage):
            axes.axhline(0.5, color="#bbbbbb", linewidth=0.8, zorder=0)
    panels[0, 0].set_ylim(bottom=max(_LEAST_DRAWN, panels[0, 0].get_ylim()[0]))
    for axes in panels[:, 0]:
        axes.set_ylabel(f"share of {_NAMES[comparison.value]} left")
    panels[0, 0].legend(frameon=False, fontsize=8)
    return drawn


def _line(axes: Axes, places: FloatArray, curve: TaskCurve, start: int, **look: Any) -> None:
    """A curve from its ``start``-th strength on, with its interval."""
    axes.plot(places, curve.retention[start:], linewidth=1.4, markersize=3.5, **look)
    errors = np.abs(np.array([curve.low, curve.high]) - curve.retention)[:, start:]
    axes.errorbar(places, curve.retention[start:], yerr=errors, fmt="none", color=look["color"], alpha=0.4, linewidth=1)


def _log_axis(axes: Axes, scale: str, **options: float) -> None:
    """Plain numbers at 1, 2 and 5 of every power of ten."""
    axes.set_xscale(scale, **options)
    if scale == "log":
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _looks() -> Iterator[dict[str, str]]:
    """Colours and marks, all pairs of them in turn."""
    return ({"color": colour, "marker": mark} for mark, colour in cycle(product(_MARKS, COLOURS)))


def _strength_label(comparison: Comparison) -> str:
    impairment = comparison.impairment
    unit = "site SDs" if impairment.unit == "sd" else "fraction"
    return f"{impairment.kind} strength at {impairment.site} ({unit})"


def _curve_record(curve: TaskCurve) -> dict[str, Any]:
    return {
        "performance": curve.performance.tolist(),
        "floor": curve.floor,
        "retention": _known(curve.retention),
        "retention_low": _known(curve.low),
        "retention_high": _known(curve.high),
        "id50": {**_interval_record(curve.id50), "censored": curve.censored},
        "area": _interval_record(curve.area),
        "lost": list(map(_interval_record, curve.lost)),
        "answer_tokens": None if np.isnan(curve.tokens).all() else float(np.nanmean(curve.tokens)),
    }


def _pair_record(pair: Pair) -> dict[str, Any]:
    p, p_holm = _known([pair.p, pair.p_holm])
    return {
        "task": pair.task,
        "first": pair.first,
        "second": pair.second,
        "log_id50": _interval_record(pair.log_id50),
        "area": _interval_record(pair.area),
        "lost": list(map(_interval_record, pair.lost)),
        "p": p,
        "p_holm": p_holm,
        "falls_first": pair.falls_first,
        "verdict": pair.verdict,
    }


def _interval_record(interval: Interval) -> dict[str, float | None]:
    estimate, low, high = _known([interval.estimate, interval.low, interval.high])
    return {"estimate": estimate, "low": low, "high": high, "undefined": interval.undefined}


def _known(values: Sequence[float] | FloatArray) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]


def _shown(interval: Interval, *, at_least: bool = False) -> str:
    if np.isnan(interval.estimate):
        return "-"
    if np.isnan(interval.low):
        return f"{interval.estimate:.3g}"
    return f"{'>=' if at_least else ''}{interval.estimate:.3g} [{interval.low:.3g}, {interval.high:.3g}]"


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.2g}"


def _aligned(head: list[str], rows: list[list[str]]) -> Iterator[str]:
    """Lines with columns two spaces apart."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    for cells in (head, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
