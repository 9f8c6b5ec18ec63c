"""The experiment's figures and the tables of its README, from the stored files.

python -m experiments.variations.draw --model smollm2 --size cpu
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.lab.commands import draw_command
from experiments.lab.effects import PERPLEXITY
from experiments.lab.figures import save
from experiments.variations.page import arms_table, dial_table, halves_table, matched_table
from experiments.variations.summary import Results
from shapley.impairment import NOISE_KINDS
from shapley.plots import COLOURS, CONTROL
from shapley.shape import Interval

_TARGET, _OTHERS = "the cluster's topic", "other topics"
_RISES = (0, 2, 5, 10, 20, 50, 100, 1000, 10_000)  # of perplexity, in percent, along an axis


def draw(results: Results, source: Path, figures: Path, name: str) -> None:
    """All figures, into a folder."""
    save(arms_figure(results), figures / f"{name}-arms.png", source)
    save(sizes_figure(results), figures / f"{name}-sizes.png", source)
    save(dial_figure(results), figures / f"{name}-dial.png", source)


def tables(results: Results) -> str:
    """All tables, and what they were made with."""
    head = results.head
    made = f"`{head['command']}`: {len(results.records)} records, {head['seconds']} s on {head['hardware']}, {head['time']}."
    found = (arms_table(results), matched_table(results), halves_table(results), dial_table(results))
    return "\n\n".join([made, *(table.markdown() for table in found)])


def arms_figure(results: Results) -> Figure:
    """For each arm, at the primary size: the drop of the clusters' topics and of the others; the rise of perplexity."""
    names = results.arms
    figure = Figure(figsize=(7.2, 0.3 * len(names) + 1.3), layout="constrained")
    drops, damage = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    effects = [results.effect(name) for name in names]
    _dots(drops, [own.target for own in effects], COLOURS[0], "o", _TARGET)
    _dots(drops, [own.others for own in effects], COLOURS[1], "s", _OTHERS)
    _dots(damage, [own.perplexity for own in effects], CONTROL, "^", "plain text", factor=100)
    damage.axvline(100 * PERPLEXITY, color="#bbbbbb", linestyle="--", linewidth=1, label="aim: less")
    drops.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    drops.set_xlabel("drop of log-probability (nats)")
    if max(own.perplexity.estimate for own in effects) > 1:  # something broke the model
        damage.set_xscale("symlog", linthresh=10, linscale=1.5)
        damage.set_xlim(left=100 * min(0.0, *(own.perplexity.low for own in effects)) - 1)
        damage.xaxis.set_major_formatter("{x:g}")
    damage.set_xlabel("rise of perplexity (%)")
    drops.set_yticks(range(len(names)), names)
    drops.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.suptitle(f"{results.head['model']['name']}: {results.columns('reference')} neurons impaired", fontsize=10)
    return figure


def _dots(axes: Axes, found: list[Interval], colour: str, marker: str, label: str, factor: float = 1) -> None:
    means = factor * np.array([x.estimate for x in found])
    sides = factor * np.array([[x.estimate - x.low, x.high - x.estimate] for x in found]).T
    axes.errorbar(
        means, range(len(found)), xerr=sides, fmt=marker, color=colour, markersize=5, elinewidth=1.2, label=label
    )


def sizes_figure(results: Results) -> Figure:
    """What each arm takes from topics against what it costs plain text, along cluster sizes; chosen otherwise on the left,
    impaired otherwise on the right."""
    figure = Figure(figsize=(7.2, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True, sharex=True)
    arms = results.head["config"]["arms"]
    otherwise = [name for name, changed in arms.items() if {"kind", "site", "above"} & set(changed)]
    groups = {"chosen otherwise": [name for name in arms if name not in otherwise], "impaired otherwise": otherwise}
    for axes, (title, names) in zip(panels, groups.items(), strict=True):
        for i, name in enumerate(dict.fromkeys(["reference", *names])):
            effects = [results.effect(name, fraction) for fraction in results.head["config"]["fractions"]]
            style = {"color": "black", "linewidth": 2} if name == "reference" else {"color": COLOURS[(i - 1) % 6]}
            if name == "random":
                style = {"color": CONTROL, "linestyle": "--"}
            axes.plot(
                [0, *(100 * own.perplexity.estimate for own in effects)],
                [0, *(own.selectivity.estimate for own in effects)],
                marker="o^sDvP*"[i % 7], markersize=4, label=name, **style,
            )  # fmt: skip
        axes.axvline(100 * PERPLEXITY, color="#bbbbbb", linestyle=":", linewidth=1)
        axes.set_xscale("symlog", linthresh=10)
        left, right = axes.get_xlim()
        ticks = [tick for tick in _RISES if left <= tick <= right]
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set_xlabel("rise of plain text's perplexity (%)")
        axes.set_title(title)
        axes.legend(frameon=False, fontsize=7.5)
    panels[0].set_ylabel("selectivity (nats)")
    sizes = ", ".join(f"{100 * fraction:g}%" for fraction in results.head["config"]["fractions"])
    figure.suptitle(f"{results.head['model']['name']}: clusters of {sizes} of the neurons", fontsize=10)
    return figure


def dial_figure(results: Results) -> Figure:
    """By kind, what each strength takes from the clusters' topics, from the others and from plain text, with 95% bands."""
    dial = results.dial()
    figure = Figure(figsize=(2.6 * len(dial) + 0.4, 3.2), layout="constrained")
    panels = figure.subplots(1, len(dial), sharey=True, squeeze=False)[0]
    for axes, (kind, steps) in zip(panels, dial.items(), strict=True):
        strengths = [0.0, *(step.strength for step in steps)]
        for what, colour, marker, label in (
            ("target", COLOURS[0], "o", _TARGET),
            ("others", COLOURS[1], "s", _OTHERS),
        ):
            found = [getattr(step.effect, what) for step in steps]
            axes.plot(strengths, [0, *(x.estimate for x in found)], f"{marker}-", color=colour, label=label)
            low, high = ([0, *(getattr(x, end) for x in found)] for end in ("low", "high"))
            axes.fill_between(strengths, low, high, color=colour, alpha=0.15, linewidth=0)
        plain = [0, *(np.log1p(step.effect.perplexity.estimate) for step in steps)]
        axes.plot(strengths, plain, "^--", color=CONTROL, label="plain text, a token")
        axes.set_xlabel(f"{kind} ({'site SDs' if kind in NOISE_KINDS else 'fraction'})")
    panels[0].set_ylabel("drop of log-probability (nats)")
    panels[0].legend(frameon=False, fontsize=8)
    figure.suptitle(
        f"{results.head['model']['name']}: the same {results.columns('reference')} neurons by degrees", fontsize=10
    )
    return figure


main = draw_command(__file__, __doc__, Results.read, draw, tables)

if __name__ == "__main__":
    main()
