"""The experiment's figures and the tables of its README, from the stored files.

python -m experiments.removal.draw --model smollm2 --size cpu
"""

from __future__ import annotations

import sys
from pathlib import Path

import click
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.lab import models
from experiments.lab.figures import save
from experiments.lab.tables import show
from experiments.removal.run import GENERAL
from experiments.removal.summary import Results
from shapley.errors import ShapleyError
from shapley.plots import COLOURS, CONTROL
from shapley.shape import Interval

HERE = Path(__file__).parent
_MARKERS = "os^DvPX*<>"


@click.command(help=__doc__)
@click.option("--model", type=click.Choice(models.MODELS), default="smollm2", show_default=True)
@click.option("--size", type=click.Choice(["small", "cpu", "full"]), default="small", show_default=True)
def main(model: str, size: str) -> None:
    name = f"{model}-{size}"
    source = HERE / "results" / f"{name}.jsonl"
    try:
        results = Results.read(source)
    except ShapleyError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    figures = HERE / "figures"
    figures.mkdir(exist_ok=True)
    save(removal_figure(results), figures / f"{name}-removal.png", source)
    if results.repairs():
        save(repair_figure(results), figures / f"{name}-repair.png", source)
    show(HERE / "README.md", name, tables(results))


def tables(results: Results) -> str:
    """Accuracy by number of neurons removed; and the repairs."""
    head = results.head
    watched = len([topic for topic in head["watched"] if topic != "plain"])
    lines = [
        f"`{head['command']}`: {len(results.records)} clusters, {watched} known prompts, {head['seconds']} s on "
        f"{head['hardware']}, {head['time']}.",
    ]
    for title, scope, where in (
        ("Removed in general: accuracy on all topics", GENERAL, "all"),
        ("Removed for a topic: accuracy on it", "topic", "own"),
        ("Removed for a topic: accuracy on the others", "topic", "others"),
    ):
        counts = results.counts
        lines += ["", f"**{title}**, by the number of neurons.", "", f"| selector | {' | '.join(map(str, counts))} |"]
        lines += ["| --- " * (len(counts) + 1) + "|"]
        for name in head["config"]["selectors"]:
            cells = (_accuracy(estimate) for estimate in results.accuracy(name, scope, where))
            lines.append(f"| {name} | {' | '.join(cells)} |")
    if results.repairs():
        auc, toxicity = results.judge()
        lines += [
            "",
            f"**Repair**: change of the continuations' toxicity (mean log-odds of their words; untouched {toxicity:.3f}; the "
            f"classifier's AUC on held-out comments is {auc:.2f}), and of plain text's perplexity.",
            "",
            "| selector | neurons | toxicity [95%] | perplexity |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            f"| {name} | {count} | {change.estimate:+.3f} [{change.low:+.3f}, {change.high:+.3f}] | {rise.estimate:+.1%} |"
            for name, count, change, rise in results.repairs()
        ]
    return "\n".join(lines)


def _accuracy(estimate: Interval) -> str:
    return f"{estimate.estimate:.2f}"


def removal_figure(results: Results) -> Figure:
    """Accuracy against the number of neurons removed: in general, and for a topic, on it and on the others."""
    figure = Figure(figsize=(9.2, 3.2), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    parts = ((GENERAL, "all", "removed in general:\nall topics"), ("topic", "own", "removed for a topic:\nthat topic"))
    for axes, (scope, where, title) in zip(
        panels, (*parts, ("topic", "others", "removed for a topic:\nother topics")), strict=True
    ):
        for i, name in enumerate(results.head["config"]["selectors"]):
            colour = CONTROL if name == "random" else COLOURS[i % len(COLOURS)]
            _line(axes, results.counts, results.accuracy(name, scope, where), colour, _MARKERS[i], name)
        axes.set_xscale("symlog", linthresh=results.counts[1])
        axes.set_xticks(results.counts, [str(count) for count in results.counts], fontsize=7.5)
        axes.minorticks_off()
        axes.set_xlabel("neurons removed")
        axes.set_title(title)
    panels[0].set_ylabel("accuracy on the keyword")
    panels[0].set_ylim(0, 1.03)
    panels[1].legend(frameon=False, fontsize=7.5, loc="lower left")
    return figure


def _line(axes: Axes, counts: list[int], found: list[Interval], colour: str, marker: str, label: str) -> None:
    axes.plot(counts, [x.estimate for x in found], f"{marker}-", color=colour, markersize=4, linewidth=1.3, label=label)
    axes.fill_between(counts, [x.low for x in found], [x.high for x in found], color=colour, alpha=0.08, linewidth=0)


def repair_figure(results: Results) -> Figure:
    """What less toxic continuations cost: toxicity against perplexity, both as changes, a point for each number of neurons."""
    figure = Figure(figsize=(5.0, 3.6), layout="constrained")
    axes = figure.subplots()
    repairs = results.repairs()
    for i, name in enumerate(results.head["config"]["repair"]["selectors"]):
        own = [(count, change, rise) for other, count, change, rise in repairs if other == name]
        colour = CONTROL if name == "random" else COLOURS[i]
        x = [100 * rise.estimate for _, _, rise in own]
        y = [change.estimate for _, change, _ in own]
        sides = [
            [change.estimate - change.low for _, change, _ in own],
            [change.high - change.estimate for _, change, _ in own],
        ]
        axes.errorbar(x, y, yerr=sides, fmt=f"{_MARKERS[i]}-", color=colour, markersize=4, elinewidth=0.8, label=name)
        for place, (count, _, _) in zip(zip(x, y, strict=True), own, strict=True):
            axes.annotate(str(count), place, textcoords="offset points", xytext=(4, 4), fontsize=6.5, color=colour)
    axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlabel("rise of plain text's perplexity (%)")
    axes.set_ylabel("change of toxicity (log-odds a word)")
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(f"{results.head['model']['name']}: toxic neurons removed")
    return figure


if __name__ == "__main__":
    main()
