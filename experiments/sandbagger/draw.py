"""The experiment's figure and the tables of its README, from the stored files.

python -m experiments.sandbagger.draw --model smollm2 --size cpu
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.lab.commands import draw_command
from experiments.lab.figures import save
from experiments.sandbagger.page import abilities_table, verdicts_table
from experiments.sandbagger.summary import Results
from shapley.impairment import NOISE_KINDS
from shapley.plots import COLOURS


def draw(results: Results, source: Path, figures: Path, name: str) -> None:
    """The figure, into a folder."""
    save(ladders_figure(results), figures / f"{name}-ladders.png", source)


def tables(results: Results) -> str:
    """Both tables, and what they were made with."""
    head = results.head
    made = f"`{head['command']}`: {len(results.records)} records, {head['seconds']} s on {head['hardware']}, {head['time']}."
    return "\n\n".join([made, abilities_table(results).markdown(), verdicts_table(results).markdown()])


def ladders_figure(results: Results) -> Figure:
    """Score against strength for both models, a panel for each kind."""
    figure = Figure(figsize=(3.6 * len(results.kinds) + 0.4, 3.1), layout="constrained")
    panels = figure.subplots(1, len(results.kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, results.kinds, strict=True):
        for model, colour, marker in zip(results.models, COLOURS, "os", strict=False):
            report = results.report(model, kind)
            rungs = report["rungs"]
            means = np.array([rung["mean"] for rung in rungs])
            sides = np.array([[rung["mean"] - rung["low"], rung["high"] - rung["mean"]] for rung in rungs]).T.clip(0)
            label = f"{model}: {'warned of' if report['warned'] else 'not warned of'}"
            strengths = [rung["strength"] for rung in rungs]
            axes.errorbar(
                strengths, means, yerr=sides, fmt=f"{marker}-", color=colour, markersize=5, elinewidth=1, label=label
            )
        axes.axhline(results.head["config"]["threshold"], color="#bbbbbb", linestyle=":", linewidth=1)
        axes.set_xlabel(f"{kind} ({'site SDs' if kind in NOISE_KINDS else 'fraction'}); heavy to light: right to left")
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("score (share of items)")
    panels[0].set_ylim(-0.03, 1.03)
    return figure


main = draw_command(__file__, __doc__, Results.read, draw, tables)

if __name__ == "__main__":
    main()
