"""Figures, from stored files only."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shapley.clusters import Ranking
from shapley.curves import Curve, curve, mean_of_curves
from shapley.files import atomic_path
from shapley.records import EVERYTHING, Sweep
from shapley.types import BoolArray, FloatArray, ValueName

# Okabe and Ito's palette: told apart by readers who do not see red and green apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
CONTROL = "#8a8a8a"
LABELS: dict[str, str] = {
    "logprob": "log-probability of the keyword (nats)",
    "loss": "loss on the keyword (nats)",
    "accuracy": "accuracy on the keyword",
}
mpl.rcParams.update(
    {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "axes.titlesize": 10, "svg.fonttype": "none"}
)


def save(figure: Figure, path: Path) -> None:
    """Write a figure atomically, in the format its name ends in."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix.lstrip(".").lower(), dpi=150, bbox_inches="tight")


def sweep_figure(sweep: Sweep, name: ValueName = "logprob") -> Figure:
    """A panel for each cluster: every topic under that cluster's impairment, with 95% bands over prompts, and dashed the
    mean over its random controls."""
    clusters = [cluster for cluster in sweep.clusters if "/random-" not in cluster]
    figure = Figure(figsize=(3.4 * len(clusters) + 0.4, 3.1), layout="constrained")
    panels = figure.subplots(1, len(clusters), sharey=True, squeeze=False)[0]
    for axes, cluster in zip(panels, clusters, strict=True):
        _cluster_panel(axes, sweep, cluster, name)
    panels[0].set_ylabel(LABELS[name])
    panels[0].legend(frameon=False, fontsize=8)
    return figure


def _cluster_panel(axes: Axes, sweep: Sweep, cluster: str, name: ValueName) -> None:
    for topic, colour in zip(sweep.records, cycle(COLOURS), strict=False):
        own = sweep.of_topics.get(cluster) == topic
        _band(axes, curve(sweep, topic, cluster, name), colour, topic, width=2.4 if own else 1.4)
        controls = sweep.controls(cluster)
        if controls:
            control = mean_of_curves([curve(sweep, topic, other, name) for other in controls])
            axes.plot(control.strengths, control.mean, "--", color=colour, linewidth=1, alpha=0.8)
    size = sweep.sizes[sweep.clusters.index(cluster)]
    what = "everything" if cluster == EVERYTHING else f"{cluster} ({size} of {sweep.impairment.site})"
    axes.set_title(_plain(what))
    axes.set_xlabel(strength_label(sweep))


def cluster_name(cluster: str) -> str:
    """What a cluster is called where all are clusters."""
    return cluster.removeprefix("cluster-")


def strength_label(sweep: Sweep) -> str:
    """The axis label of a sweep's strengths."""
    unit = {"sd": " (site standard deviations)", "absolute": ""}[sweep.impairment.unit]
    return f"{sweep.impairment.kind} strength{unit}"


def _plain(text: str) -> str:
    """Text that matplotlib takes as it is: a pair of dollar signs would be read as a formula."""
    return text.replace("$", r"\$")


def _band(axes: Axes, line: Curve, colour: str, label: str, *, width: float) -> None:
    axes.plot(line.strengths, line.mean, color=colour, linewidth=width, label=_plain(label))
    axes.fill_between(line.strengths, line.low, line.high, color=colour, alpha=0.15, linewidth=0)


def specificity_figure(sweep: Sweep, name: ValueName = "logprob") -> Figure:
    """The point of it all: with each topic's cluster impaired, the change of that topic, of the others, and of the same
    topic under random clusters of as many neurons."""
    chosen = sweep.of_topics
    colours = dict(zip(sweep.records, cycle(COLOURS), strict=False))
    figure = Figure(figsize=(3.3 * len(chosen) + 0.4, 3.2), layout="constrained")
    panels = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
    for axes, (cluster, topic) in zip(panels, chosen.items(), strict=True):
        colour = colours[topic]
        _band(axes, curve(sweep, topic, cluster, name, change=True), colour, f"{topic} prompts", width=2.4)
        others = [curve(sweep, other, cluster, name, change=True) for other in sweep.records if other != topic]
        for i, (line, other) in enumerate(zip(others, [t for t in sweep.records if t != topic], strict=True)):
            style = ("-", ":")[i % 2]
            axes.plot(
                line.strengths, line.mean, style, color="#444444", linewidth=1.3, label=_plain(f"{other} prompts")
            )
            axes.fill_between(line.strengths, line.low, line.high, color="#444444", alpha=0.1, linewidth=0)
        controls = sweep.controls(cluster)
        if controls:
            control = mean_of_curves([curve(sweep, topic, c, name, change=True) for c in controls])
            axes.plot(
                control.strengths,
                control.mean,
                "--",
                color=colour,
                linewidth=1.2,
                label=_plain(f"{topic}, random neurons"),
            )
        axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
        size = sweep.sizes[sweep.clusters.index(cluster)]
        axes.set_title(_plain(f"{cluster_name(cluster)} cluster impaired ({size} neurons)"))
        axes.set_xlabel(strength_label(sweep))
        axes.legend(frameon=False, fontsize=7.5)
    panels[0].set_ylabel(f"change of {LABELS[name]}")
    return figure


def top_figure(
    rankings: Mapping[str, Ranking], k: int, halves: Mapping[str, FloatArray], exact: Mapping[str, BoolArray]
) -> Figure:
    """The top ``k`` neurons of each topic with their 95% intervals.

    Args:
        rankings: by topic.
        halves: by topic, ``[n_layers, width]`` half-widths of the intervals.
        exact: by topic, ``[n_layers, width]``, scores from exact differences: full marks, the others are open.
    """
    figure = Figure(figsize=(3.2 * len(rankings) + 0.4, 0.17 * k + 1.0), layout="constrained")
    panels = figure.subplots(1, len(rankings), squeeze=False)[0]
    for axes, (topic, ranking), colour in zip(panels, rankings.items(), cycle(COLOURS), strict=False):
        rows = ranking.top(min(k, int(np.isfinite(ranking.score).sum())))
        places = np.arange(len(rows))
        scores = np.array([row["score"] for row in rows])
        at = tuple(np.array([[row["layer"], row["neuron"]] for row in rows], dtype=int).T)
        full = exact[topic][at]
        for chosen, face in ((full, colour), (~full, "white")):
            axes.errorbar(
                scores[chosen],
                places[chosen],
                xerr=halves[topic][at][chosen],
                fmt="o",
                color=colour,
                markerfacecolor=face,
                markersize=3.5,
                elinewidth=1,
            )
        axes.set_yticks(places, [f"{row['layer']}.{row['neuron']}" for row in rows], fontsize=7)
        axes.invert_yaxis()
        axes.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
        axes.set_title(_plain(topic))
        axes.set_xlabel("score")
    panels[0].set_ylabel("layer.neuron")
    return figure


def layers_figure(scores: Mapping[str, FloatArray]) -> Figure:
    """For each topic, what the positive and the negative scores of each layer sum to."""
    figure = Figure(figsize=(3.2 * len(scores) + 0.4, 2.6), layout="constrained")
    panels = figure.subplots(1, len(scores), sharey=True, squeeze=False)[0]
    for axes, (topic, grid), colour in zip(panels, scores.items(), cycle(COLOURS), strict=False):
        layers = np.arange(len(grid))
        axes.bar(layers, np.nansum(np.maximum(grid, 0), axis=1), color=colour, width=0.8)
        axes.bar(layers, np.nansum(np.minimum(grid, 0), axis=1), color=colour, alpha=0.45, width=0.8)
        axes.axhline(0, color="#444444", linewidth=0.8)
        axes.set_title(_plain(topic))
        axes.set_xlabel("layer")
    panels[0].set_ylabel("sum of positive, of negative scores")
    return figure
