"""From points to tables, ratios and figures."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")
import matplotlib.pyplot as plt

MEASURES = ("recall", "rmse", "rank")


@dataclass
class Curve:
    """Medians over seeds of one peer in one game, by budget, of the better variant at each."""

    peer: str
    kind: str
    fixed: bool
    at: dict[int, dict[str, float]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def rows_for(self, measure: str, target: float) -> float | None:
        """Rows at which the curve first is as good as ``target``; between points on a log scale, ``None`` where never."""
        sign = -1 if measure == "rmse" else 1
        before: tuple[float, float] | None = None
        for point in sorted(self.at.values(), key=lambda point: point["rows"]):
            value = point[measure]
            if np.isnan(value):
                continue
            if sign * value >= sign * target:
                if before is None or before[1] == value:
                    return point["rows"]
                share = (target - before[1]) / (value - before[1])
                return float(np.exp(np.log(before[0]) + share * (np.log(point["rows"]) - np.log(before[0]))))
            before = (point["rows"], value)
        return None


def write_all(path: Path, out: Path) -> None:
    """``results.md`` and ``<game>.png`` in ``out`` from the points at ``path``."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    keys = ("name", "peer", "variant", "budget", "seed")
    points = list({tuple(point[key] for key in keys): point for point in lines}.values())  # the last of each counts
    parts = []
    for name in dict.fromkeys(point["name"] for point in points):
        curves = curves_of([point for point in points if point["name"] == name])
        parts += [f"## {name}\n", table(curves), fixed_table(curves), *ratios(curves), "", *notes(curves), ""]
        figure(name, curves, out / f"{name}.png")
    text = "\n".join(parts)
    (out / "results.md").write_text(text)
    print(text)


def curves_of(points: list[dict[str, Any]]) -> list[Curve]:
    groups: dict[tuple[str, int, str], list[dict[str, Any]]] = defaultdict(list)
    curves: dict[str, Curve] = {}
    for point in points:
        curve = curves.setdefault(point["peer"], Curve(point["peer"], point["kind"], point["fixed"]))
        if "note" in point:
            curve.notes.setdefault(point["note"], f"{point['variant']}, {point['budget']:,} rows")
        else:
            groups[point["peer"], point["budget"], point["variant"]].append(point)
    for (peer, budget, variant), group in groups.items():
        median = {
            measure: float(np.median([np.nan if p[measure] is None else p[measure] for p in group]))
            for measure in (*MEASURES, "rows", "seconds")
        }
        best = curves[peer].at.get(budget)
        if best is None or (median["recall"], -median["rmse"]) > (best["recall"], -best["rmse"]):
            curves[peer].at[budget] = median | {"variant": variant}  # type: ignore[operator]
    return list(curves.values())


def table(curves: list[Curve]) -> str:
    """Recall / error over spread / rank correlation at each budget, and seconds at the last."""
    budgets = sorted({budget for curve in curves if not curve.fixed for budget in curve.at})
    lines = [
        "Recall@k / RMSE over spread / rank correlation, medians over seeds; `1`: one prompt an evaluation was better.\n",
        "| estimator | " + " | ".join(f"{budget:,} rows" for budget in budgets) + " | s |",
        "| --- |" + " --- |" * (len(budgets) + 1),
    ]
    for curve in curves:
        if curve.fixed:
            continue
        cells = [_cell(curve.at.get(budget)) for budget in budgets]
        last = curve.at[max(curve.at)]["seconds"] if curve.at else np.nan
        lines.append(f"| {curve.peer} | " + " | ".join(cells) + f" | {'-' if np.isnan(last) else f'{last:.1f}'} |")
    return "\n".join(lines) + "\n"


def fixed_table(curves: list[Curve]) -> str:
    lines = ["| of one cost | rows | recall / RMSE / rank | s |", "| --- | --- | --- | --- |"]
    for curve in curves:
        for point in curve.at.values() if curve.fixed else ():
            lines.append(f"| {curve.peer} | {point['rows']:,.0f} | {_cell(point)} | {point['seconds']:.1f} |")
    return "\n".join(lines) + "\n"


def ratios(curves: list[Curve]) -> list[str]:
    """Rows that the best sampling peer (and, in brackets, path gradients) needs for what ours reaches at R rows."""
    lines = []
    peers = [curve for curve in curves if curve.kind == "sampling"]
    for ours in (curve for curve in curves if curve.kind == "ours"):
        for point in ours.at.values():
            for measure, title in (("recall", "recall"), ("rmse", "RMSE/spread")):
                needed = {peer.peer: peer.rows_for(measure, point[measure]) for peer in peers}
                reached = {peer: rows for peer, rows in needed.items() if rows is not None}
                what = f"- {ours.peer}, {title} {point[measure]:.2f} at {point['rows']:,.0f} rows: "
                if reached:
                    best = min(reached, key=lambda peer: reached[peer])
                    what += f"{best} needs {reached[best]:,.0f}; ratio {reached[best] / point['rows']:.2g}"
                else:  # how far they went
                    most = max((p["rows"] for peer in peers for p in peer.at.values()), default=np.nan)
                    what += f"no sampling peer gets there in {most:,.0f}; ratio > {most / point['rows']:.2g}"
                for curve in curves:
                    if curve.kind == "gradient" and not curve.fixed:
                        rows = curve.rows_for(measure, point[measure])
                        what += f" ({curve.peer}: {'never' if rows is None else f'{rows:,.0f}'})"
                lines.append(what)
    return lines


def notes(curves: list[Curve]) -> list[str]:
    return [f"- {curve.peer} ({where}): {note}" for curve in curves for note, where in curve.notes.items()]


def figure(name: str, curves: list[Curve], path: Path) -> None:
    """Recall and error against rows."""
    plot, axes = plt.subplots(1, 2, figsize=(13, 5), layout="constrained")
    colours = mpl.colormaps["tab20"]
    for i, curve in enumerate(curves):
        if not curve.at:
            continue
        points = sorted(curve.at.values(), key=lambda point: point["rows"])
        rows = [max(point["rows"], 1) for point in points]
        style: dict[str, Any] = {"color": colours(i % 20), "label": curve.peer, "marker": "*" if curve.fixed else "o"}
        style |= {"linewidth": 2.5 if curve.kind == "ours" else 1, "markersize": 9 if curve.fixed else 4}
        for axis, measure in zip(axes, ("recall", "rmse"), strict=True):
            axis.plot(rows, [point[measure] for point in points], **style)
    for axis, title in zip(axes, ("recall of the true top k", "RMSE over spread of the scores"), strict=True):
        axis.set(xscale="log", xlabel="forward rows (a gradient row counts 3)", title=f"{name}: {title}")
        axis.grid(alpha=0.3)
    axes[1].set(yscale="log", ylim=(0.01, 10))
    plot.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    plot.savefig(path, dpi=110)
    plt.close(plot)


def _cell(point: dict[str, Any] | None) -> str:
    if point is None:
        return "-"
    error = "-" if np.isnan(point["rmse"]) else f"{point['rmse']:.2f}" if point["rmse"] < 100 else ">100"
    return f"{point['recall']:.2f} / {error} / {point['rank']:.2f}" + (" `1`" if point["variant"] == "one" else "")
