"""The experiment's figure and the tables of its README, from the stored file.

python -m experiments.ceiling.draw --size cpu
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.ceiling.page import NAMES, models_table, pairs_table
from experiments.ceiling.summary import Results
from experiments.lab.commands import draw_command
from experiments.lab.figures import save
from shapley.impairment import NOISE_KINDS
from shapley.plots import COLOURS


def draw(results: Results, source: Path, figures: Path, name: str) -> None:
    """The figure, into a folder."""
    save(curves_figure(results), figures / f"{name}-curves.png", source)


def tables(results: Results) -> str:
    """Both tables, and what they were made with."""
    head = results.head
    made = f"`{head['command']}`: {head['seconds']} s on {head['hardware']}, {head['time']}."
    return "\n\n".join([made, models_table(results).markdown(), pairs_table(results).markdown()])


def curves_figure(results: Results) -> Figure:
    """Retention against strength for both models; a row for each kind, a column for each task."""
    n_rows, n_columns = len(results.kinds), len(results.tasks)
    figure = Figure(figsize=(3.6 * n_columns + 0.4, 2.8 * n_rows), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, sharey=True, squeeze=False)
    for row, kind in zip(panels, results.kinds, strict=True):
        found = results.comparison(kind)
        for axes, task in zip(row, results.tasks, strict=True):
            for (model, curve), colour, marker in zip(found["tasks"][task].items(), COLOURS, "os", strict=False):
                middle, low, high = (
                    np.array(curve[part], dtype=float) for part in ("retention", "retention_low", "retention_high")
                )
                label = results.name(kind, model)
                axes.plot(found["strengths"], middle, f"{marker}-", color=colour, markersize=4, label=label)
                axes.fill_between(found["strengths"], low, high, color=colour, alpha=0.2, linewidth=0)
            axes.axhline(0.5, color="#bbbbbb", linewidth=0.8, zorder=0)
            axes.set_title(f"{task}, {results.head['items'][task]} items")
            axes.set_xlabel(f"{kind} ({'site SDs' if kind in NOISE_KINDS else 'fraction'})")
        row[0].set_ylabel("share of accuracy left")
    panels[0, 0].legend(frameon=False, fontsize=8)
    return figure


main = draw_command(__file__, __doc__, Results.read, draw, tables, NAMES)

if __name__ == "__main__":
    main()
