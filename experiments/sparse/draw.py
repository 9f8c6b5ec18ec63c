"""The experiment's figures and the table of its README, from the stored files.

python -m experiments.sparse.draw --model smollm2 --size cpu
"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.lab import models
from experiments.lab.commands import draw_command
from experiments.lab.figures import save
from experiments.sparse.page import PLACE_NAMES, arms_table
from experiments.sparse.summary import Results
from shapley.plots import COLOURS


def draw(results: Results, source: Path, figures: Path, name: str) -> None:
    """Both figures, into a folder."""
    save(curves_figure(results), figures / f"{name}-curves.png", source)
    save(usage_figure(results), figures / f"{name}-usage.png", source)


def tables(results: Results) -> str:
    """The table, and what it was made with."""
    head = results.head
    made = (
        f"`{head['command']}`: {len(results.records)} records, {results.seconds} s of training on {head['hardware']}, "
        f"{head['time']}."
    )
    return "\n\n".join([made, arms_table(results).markdown()])


def curves_figure(results: Results) -> Figure:
    """Held-out loss against training tokens, with the winners of inference; a panel for each place. Where those are more than
    in training, a cross is the loss with as many."""
    figure = Figure(figsize=(4.2 * len(results.places) + 0.4, 3.3), layout="constrained")
    panels = figure.subplots(1, len(results.places), squeeze=False)[0]
    for axes, place in zip(panels, results.places, strict=True):
        for arm, colour in zip(results.arms, cycle(COLOURS), strict=False):
            tokens, losses = results.curve(place, arm)
            label = arm
            if results.raises_k(arm):
                label = f"{arm}, {results.factor(arm):g}k winners (x: k)"
                axes.plot(tokens[-1], results.cost(place, arm).estimate, "x", color=colour, markersize=6)
            axes.plot(tokens, losses.mean(axis=0), "o-", color=colour, markersize=3, label=label)
            axes.fill_between(tokens, losses.min(axis=0), losses.max(axis=0), color=colour, alpha=0.2, linewidth=0)
        axes.axhline(0, color="#444444", linestyle=":", linewidth=1)
        axes.set_title(PLACE_NAMES[place], fontsize=10)
        axes.set_xlabel("tokens trained on")
    panels[0].set_ylabel("held-out loss above the original's (nats a token)")
    panels[-1].legend(frameon=False, fontsize=8)
    return figure


def usage_figure(results: Results) -> Figure:
    """Duty cycles, units in order; a panel for each place."""
    figure = Figure(figsize=(4.2 * len(results.places) + 0.4, 3.1), layout="constrained")
    panels = figure.subplots(1, len(results.places), sharey=True, squeeze=False)[0]
    for axes, place in zip(panels, results.places, strict=True):
        for arm, colour in zip(results.arms, cycle(COLOURS), strict=False):
            shares = results.mean(place, arm, "shares")
            axes.plot(np.linspace(0, 1, len(shares)), shares, color=colour, label=arm)
        axes.axhline(results.head["config"]["layer"]["density"], color="#444444", linestyle=":", linewidth=1)
        axes.set_yscale("symlog", linthresh=1e-3)
        axes.set_ylim(0, 1)
        axes.set_title(PLACE_NAMES[place], fontsize=10)
        axes.set_xlabel("units, from rarely to often active")
    panels[0].set_ylabel("share of tokens at which active")
    panels[-1].legend(frameon=False, fontsize=8)
    return figure


main = draw_command(__file__, __doc__, Results.read, draw, tables, names=(*models.MODELS, "gpt2-xl"))

if __name__ == "__main__":
    main()
