"""The experiment's figures and the tables of its README, from the stored files.

python -m experiments.fragility.draw --model smollm2 --size cpu
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from experiments.fragility.page import order_table, unit, untouched_table, verdicts
from experiments.fragility.summary import LEVEL, Fall, Results
from experiments.lab.commands import draw_command
from experiments.lab.figures import save
from shapley.impairment import NOISE_KINDS
from shapley.plots import COLOURS

_LINES, _MARKERS = ("-", "--"), ("o", "^")  # the second of each once all colours are used


def draw(results: Results, source: Path, figures: Path, name: str) -> None:
    """Both figures, into a folder."""
    save(curves_figure(results), figures / f"{name}-curves.png", source)
    save(halves_figure(results), figures / f"{name}-halves.png", source)


def tables(results: Results) -> str:
    """The untouched abilities, their order under each kind, and whether kinds agree."""
    head = results.head
    made = (
        f"`{head['command']}`: {len(results.records)} impairments of {len(head['watched'])} items, {head['seconds']} s on "
        f"{head['hardware']}, {head['time']}."
    )
    found = (untouched_table(results), *(order_table(results, kind) for kind in results.kinds))
    said = "\n".join(f"- {verdict}" for verdict in verdicts(results))
    return "\n\n".join([made, *(table.markdown() for table in found), said])


def curves_figure(results: Results) -> Figure:
    """Retention against strength, a panel for each kind; left out is strength zero, where it is one."""
    figure = Figure(figsize=(3.6 * len(results.kinds) + 1.6, 3.6), layout="constrained")
    panels = figure.subplots(1, len(results.kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, results.kinds, strict=True):
        for ability in results.abilities:
            for fall in results.falls[kind]:
                if fall.ability == ability:  # in the same order in every panel
                    _curve(axes, fall, *_style(results, ability))
        axes.axhline(LEVEL, color="#bbbbbb", linewidth=0.8, zorder=0)
        axes.set_ylim(-0.6, 1.3)
        _strength_axis(axes, kind)
    panels[0].set_ylabel("retention (1 untouched, 0 at the floor)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    figure.suptitle(f"{results.head['model']['name']}: every neuron impaired", fontsize=10)
    return figure


def _curve(axes: Axes, fall: Fall, colour: str, line: str, marker: str) -> None:
    """With its band; paler where the untouched model is near chance."""
    strengths, strong = fall.strengths[1:], 1.0 if fall.claimed else 0.45
    label = fall.ability if fall.claimed else f"{fall.ability} (near chance)"
    axes.plot(
        strengths, fall.retention[1:], line, marker=marker, markersize=3.5, color=colour, alpha=strong, label=label
    )
    axes.fill_between(strengths, fall.low[1:], fall.high[1:], color=colour, alpha=0.07, linewidth=0)


def halves_figure(results: Results) -> Figure:
    """ID50 of every ability with its interval, a panel for each kind; in the order of the first kind."""
    order = [fall.ability for fall in results.falls[results.kinds[0]]]
    figure = Figure(figsize=(3.0 * len(results.kinds) + 1.2, 0.26 * len(order) + 1.3), layout="constrained")
    panels = figure.subplots(1, len(results.kinds), sharey=True, squeeze=False)[0]
    for axes, kind in zip(panels, results.kinds, strict=True):
        for fall in results.falls[kind]:
            _half(axes, fall, order.index(fall.ability), _style(results, fall.ability)[0])
        _strength_axis(axes, kind, "ID50, ")
    panels[0].set_yticks(range(len(order)), order)
    panels[0].invert_yaxis()
    title = f"{results.head['model']['name']}: half is lost (arrow: or more; hollow: near chance)"
    figure.suptitle(title, fontsize=10)
    return figure


def _half(axes: Axes, fall: Fall, place: int, colour: str) -> None:
    """A dot and its interval; an arrow where either ends at the largest strength."""
    filled, largest = "full" if fall.claimed else "none", float(fall.strengths[-1])
    axes.plot([fall.half.low, fall.half.high], [place, place], color=colour, linewidth=1.2)
    if fall.censored or fall.half.high >= largest:
        axes.plot([largest], [place], ">", color=colour, markersize=5.5, fillstyle=filled)
    if not fall.censored:
        axes.plot([fall.half.estimate], [place], "o", color=colour, markersize=5.5, fillstyle=filled)


def _style(results: Results, ability: str) -> tuple[str, str, str]:
    """Colour, line and marker."""
    turn, place = divmod(results.abilities.index(ability), len(COLOURS))
    return COLOURS[place], _LINES[turn], _MARKERS[turn]


def _strength_axis(axes: Axes, kind: str, what: str = "") -> None:
    if kind in NOISE_KINDS:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_title(kind)
    axes.set_xlabel(f"{what}strength ({unit(kind)})")


main = draw_command(__file__, __doc__, Results.read, draw, tables)

if __name__ == "__main__":
    main()
