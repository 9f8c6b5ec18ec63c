"""The experiment's figures and the tables of its README, from the stored files.

python -m experiments.removal.draw --model smollm2 --size cpu
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.lab.commands import draw_command
from experiments.lab.figures import save
from experiments.removal import page
from experiments.removal.run import GENERAL
from experiments.removal.summary import Results
from shapley.plots import COLOURS, CONTROL
from shapley.shape import Interval

_MARKERS = "os^DvPX*<>"


def draw(results: Results, source: Path, figures: Path, name: str) -> None:
    """All figures, into a folder."""
    save(removal_figure(results), figures / f"{name}-removal.png", source)
    if results.repairs():
        save(repair_figure(results), figures / f"{name}-repair.png", source)


def tables(results: Results) -> str:
    """Those of the page, and what they were made with."""
    head = results.head
    watched = len([topic for topic in head["watched"] if topic != "plain"])
    made = (
        f"`{head['command']}`: {len(results.records)} clusters, {watched} known prompts, {head['seconds']} s on "
        f"{head['hardware']}, {head['time']}."
    )
    return "\n\n".join([made, *(table.markdown() for table in page.tables(results))])


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
    axes.set_xscale("symlog", linthresh=10, linscale=2)
    rises = [100 * rise.estimate for *_, rise in repairs]
    axes.set_xlim(min(rises) - 2, 2 * max(rises) + 10)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("rise of plain text's perplexity (%)")
    axes.set_ylabel("change of toxicity (log-odds a word)")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    axes.set_title(f"{results.head['model']['name']}: toxic neurons removed")
    return figure


main = draw_command(__file__, __doc__, Results.read, draw, tables)

if __name__ == "__main__":
    main()
