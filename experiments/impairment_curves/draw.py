"""The experiment's figures and the tables of its README, from the stored files.

python -m experiments.impairment_curves.draw --model smollm2 --size cpu
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from experiments.impairment_curves.originals import ORIGINALS
from experiments.impairment_curves.page import own_places, smooth_table, tables_of
from experiments.impairment_curves.shapes import RANDOM
from experiments.impairment_curves.summary import Place, Results, fitted
from experiments.lab.commands import draw_command
from experiments.lab.figures import save
from experiments.lab.texts import PLAIN
from shapley.curves import Curve
from shapley.impairment import NOISE_KINDS
from shapley.plots import COLOURS, CONTROL
from shapley.records import EVERYTHING

LOSS = "loss (nats a token)"
_MARKERS = "os^D"
CurveOf = Callable[[Place, str, str], Curve]  # of a place, a cluster and a topic


def draw(results: Results, source: Path, figures: Path, name: str) -> None:
    """All figures, into a folder."""
    save(smooth_figure(results), figures / f"{name}-smooth.png", source)
    for test in results.tests:
        for cluster in results.clusters:
            save(curves_figure(results, test, cluster), figures / f"{name}-test-{test}-{cluster}.png", source)
        save(accuracy_figure(results, test), figures / f"{name}-test-{test}-accuracy.png", source)


def tables(results: Results) -> str:
    """Hypothesis A for each kind and site; and the doses of each test."""
    head = results.head
    made = f"`{head['command']}`: {len(results.records)} records, {head['seconds']} s on {head['hardware']}, {head['time']}."
    found = (smooth_table(results), *(table for test in results.tests for table in tables_of(results, test)))
    return "\n\n".join([made, *(table.markdown() for table in found)])


def curves_figure(results: Results, test: int, cluster: str) -> Figure:
    """Each topic's loss as a cluster is impaired by degrees, kinds by sites; dashed, with random clusters in its place."""
    kinds, sites = results.kinds(test), results.sites(test)
    figure = Figure(figsize=(1.9 * len(sites) + 1.6, 1.7 * len(kinds) + 1.2), layout="constrained")
    panels = figure.subplots(len(kinds), len(sites), sharey="row", squeeze=False)
    for row, kind in zip(panels, kinds, strict=True):
        for axes, site in zip(row, sites, strict=True):
            _topics_panel(axes, results, results.loss, Place(test, kind, site), cluster, results.topics(test))
        row[0].set_ylabel(LOSS)
    for axes, site in zip(panels[0], sites, strict=True):
        axes.set_title(site)
    _explain(figure, results, panels[0, 0], f"test {test}:\n{ORIGINALS[test].target} cluster ({cluster}) impaired")
    return figure


def accuracy_figure(results: Results, test: int) -> Figure:
    """Each topic's accuracy as clusters are impaired at the test's own site, kinds by clusters. Plain text has none: all of a
    passage is its answer."""
    places, clusters = own_places(results, test), results.clusters
    figure = Figure(figsize=(2.4 * len(clusters) + 1.2, 1.7 * len(places) + 1.2), layout="constrained")
    panels = figure.subplots(len(places), len(clusters), sharey=True, squeeze=False)
    for row, place in zip(panels, places, strict=True):
        for axes, cluster in zip(row, clusters, strict=True):
            _topics_panel(axes, results, results.accuracy, place, cluster, ORIGINALS[test].topics)
        row[0].set_ylabel("accuracy")
    for axes, cluster in zip(panels[0], clusters, strict=True):
        axes.set_title(cluster)
    _explain(
        figure, results, panels[0, 0], f"test {test}:\n{ORIGINALS[test].target} clusters impaired {places[0].site}"
    )
    return figure


def _explain(figure: Figure, results: Results, panel: Axes, title: str) -> None:
    """What a panel's lines are, and what the figure is of."""
    handles, labels = panel.get_legend_handles_labels()
    if results.head["config"]["random"]:
        handles.append(Line2D([], [], color=CONTROL, linestyle="--", linewidth=1))
        labels.append("the same topic, random columns")
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8.5)
    figure.suptitle(f"{results.head['model']['name']}, {title}", fontsize=10)


def _topics_panel(
    axes: Axes, results: Results, curve_of: CurveOf, place: Place, cluster: str, topics: Sequence[str]
) -> None:
    target = ORIGINALS[place.test].target
    for topic, colour, marker in zip(topics, COLOURS, _MARKERS, strict=False):
        width = 2.2 if topic == target else 1.2
        _band(axes, curve_of(place, cluster, topic), f"{marker}-", colour, topic, width)
        if results.head["config"]["random"]:
            control = curve_of(place, cluster + RANDOM, topic)
            axes.plot(control.strengths, control.mean, "--", color=colour, linewidth=1)
    _strength_axis(axes, results, place.kind)


def smooth_figure(results: Results) -> Figure:
    """Hypothesis A: plain text's loss as everything is impaired, by kind and site, with its monotone fit."""
    kinds = list(dict.fromkeys(place.kind for place in results.general()))
    columns = min(2, len(kinds))
    rows = -(-len(kinds) // columns)
    figure = Figure(figsize=(2.7 * columns + 0.4, 2.3 * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    sites = list(dict.fromkeys(place.site for place in results.general()))
    for axes, kind in zip(panels.flat, kinds, strict=False):
        for place in (place for place in results.general() if place.kind == kind):
            i = sites.index(place.site)
            loss, r2 = results.loss(place, EVERYTHING, PLAIN), results.fit(place, EVERYTHING, PLAIN)["r2"]
            label = place.site if r2 is None else f"{place.site}, R² {r2:.3f}"
            _band(axes, loss, _MARKERS[i], COLOURS[i], label)
            axes.plot(loss.strengths, fitted(loss), "-", color=COLOURS[i], linewidth=1.4)
        _strength_axis(axes, results, kind)
        axes.legend(frameon=False, fontsize=7.5, loc="upper left")
        axes.set_ylabel(LOSS)
    for axes in panels.flat[len(kinds) :]:
        axes.set_axis_off()
    figure.suptitle(
        f"{results.head['model']['name']}: plain text, everything impaired; lines: monotone fits", fontsize=9
    )
    return figure


def _band(axes: Axes, loss: Curve, style: str, colour: str, label: str, width: float = 1.2) -> None:
    axes.plot(loss.strengths, loss.mean, style, color=colour, linewidth=width, markersize=3.5, label=label)
    axes.fill_between(loss.strengths, loss.low, loss.high, color=colour, alpha=0.12, linewidth=0)


def _strength_axis(axes: Axes, results: Results, kind: str) -> None:
    """Of noise logarithmic, with a place for zero."""
    if kind in NOISE_KINDS:
        axes.set_xscale("symlog", linthresh=results.head["config"]["strengths"]["noise"][0])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel(f"{kind} (site SDs)", fontsize=8.5)
    else:
        axes.set_xlabel(f"{kind} (fraction)", fontsize=8.5)


main = draw_command(__file__, __doc__, Results.read, draw, tables)

if __name__ == "__main__":
    main()
