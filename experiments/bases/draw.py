"""The experiment's figures and the tables of its README, from the stored files.

python -m experiments.bases.draw --model smollm2 --size cpu
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.bases.page import concentration_table, matched_table, specificity_table
from experiments.bases.run import DRAWN, OF_STREAM
from experiments.bases.summary import Results
from experiments.lab.commands import draw_command
from experiments.lab.figures import save
from shapley.plots import COLOURS, CONTROL
from shapley.shape import Interval


def draw(results: Results, source: Path, figures: Path, name: str) -> None:
    """All figures, into a folder."""
    save(concentration_figure(results), figures / f"{name}-concentration.png", source)
    save(selectivity_figure(results), figures / f"{name}-selectivity.png", source)


def tables(results: Results) -> str:
    """All tables, and what they were made with."""
    head = results.head
    made = f"`{head['command']}`: {len(results.records)} records, {head['seconds']} s on {head['hardware']}, {head['time']}."
    return "\n\n".join(
        [made, *(table(results).markdown() for table in (concentration_table, specificity_table, matched_table))]
    )


def concentration_figure(results: Results) -> Figure:
    """What the best players hold, of the most that any number of them do, against their share of all players, by basis."""
    figure = Figure(figsize=(5.2, 3.6), layout="constrained")
    axes = figure.subplots()
    for basis in results.bases:
        players, share = results.curve(basis)
        line = "--" if basis in OF_STREAM else "-"
        axes.plot(100 * players, 100 * share, line, color=_colour(results, basis), label=basis)
    axes.axhline(50, color="#bbbbbb", linestyle=":", linewidth=1)
    axes.axhline(100, color="#bbbbbb", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel("best players (% of all)")
    axes.set_ylabel("share of what the best hold (%)")
    axes.legend(frameon=False, fontsize=8)
    figure.suptitle(f"{results.head['model']['name']}: mean over {len(results.topics)} topics", fontsize=10)
    return figure


def selectivity_figure(results: Results) -> Figure:
    """By size of the clusters, what each basis's take from their topic and from the others, and the difference."""
    figure = Figure(figsize=(2.9 * len(results.fractions) + 1, 3.2), layout="constrained")
    panels = figure.subplots(1, len(results.fractions), squeeze=False)[0]
    for axes, fraction in zip(panels, results.fractions, strict=True):
        effects = [results.specific(basis, fraction).effect for basis in results.bases]
        for shift, (what, colour, marker, label) in enumerate(
            (
                ("target", COLOURS[0], "o", "the cluster's topic"),
                ("others", COLOURS[1], "s", "other topics"),
                ("selectivity", "black", "D", "selectivity"),
            )
        ):
            found: list[Interval] = [getattr(effect, what) for effect in effects]
            places = np.arange(len(found)) + 0.2 * (shift - 1)
            sides = [[x.estimate - x.low for x in found], [x.high - x.estimate for x in found]]
            means = [x.estimate for x in found]
            axes.errorbar(places, means, yerr=sides, fmt=marker, color=colour, markersize=4, elinewidth=1, label=label)
        axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
        axes.set_xticks(range(len(effects)), results.bases, rotation=30, ha="right", fontsize=8)
        axes.set_title(f"{100 * fraction:g}% of the players", fontsize=10)
    panels[0].set_ylabel("drop of log-probability (nats)")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(f"{results.head['model']['name']}: clusters by the guarded contrast, zeroed", fontsize=10)
    return figure


def _colour(results: Results, basis: str) -> str:
    return CONTROL if basis in DRAWN else COLOURS[results.bases.index(basis)]


main = draw_command(__file__, __doc__, Results.read, draw, tables)

if __name__ == "__main__":
    main()
