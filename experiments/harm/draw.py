"""The experiment's figure and the table of its README, from the stored files.

python -m experiments.harm.draw --model smollm2 --size cpu
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.harm.page import levels_table
from experiments.harm.summary import Results
from experiments.lab.commands import draw_command
from experiments.lab.figures import save
from shapley.impairment import NOISE_KINDS
from shapley.plots import COLOURS


def draw(results: Results, source: Path, figures: Path, name: str) -> None:
    """The figure, into a folder."""
    save(toxicity_figure(results), figures / f"{name}-toxicity.png", source)


def tables(results: Results) -> str:
    """The table, and what it was made with."""
    head = results.head
    made = f"`{head['command']}`: {len(results.records)} records, {head['seconds']} s on {head['hardware']}, {head['time']}."
    return "\n\n".join([made, levels_table(results).markdown()])


def toxicity_figure(results: Results) -> Figure:
    """Change of toxicity against strength; a panel for each kind."""
    kinds = list(results.head["config"]["strengths"])
    figure = Figure(figsize=(3.6 * len(kinds) + 0.4, 3.1), layout="constrained")
    panels = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    levels = list(results.levels())
    for axes, kind in zip(panels, kinds, strict=True):
        own = [level for level in levels if level.kind == kind]
        strengths = np.array([level.strength for level in own])
        shift = 0.03 * np.ptp(strengths)
        for i, (topic, colour) in enumerate(zip(results.topics, COLOURS, strict=False)):
            places = strengths + shift * (i - 0.5)
            changes = [level.change[topic] for level in own]
            middle = np.array([change.estimate for change in changes])
            sides = np.array([[change.estimate - change.low, change.high - change.estimate] for change in changes]).T
            axes.errorbar(
                places,
                middle,
                yerr=sides,
                fmt="o-",
                color=colour,
                markersize=4,
                elinewidth=1,
                label=f"{topic} beginnings",
            )
            for place, level in zip(places, own, strict=True):
                if len(level.draws[topic]) > 1:
                    found = [one.estimate for one in level.draws[topic]]
                    axes.plot([place + shift / 3] * len(found), found, ".", color=colour, alpha=0.5, markersize=4)
        axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
        axes.set_xlabel(f"{kind} ({'site SDs' if kind in NOISE_KINDS else 'fraction'})")
    panels[0].set_ylabel("change of toxicity (log-odds a word)")
    panels[0].legend(frameon=False, fontsize=8)
    return figure


main = draw_command(__file__, __doc__, Results.read, draw, tables)

if __name__ == "__main__":
    main()
