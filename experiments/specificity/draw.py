"""The experiment's figures and the tables of its README, from the stored files.

python -m experiments.specificity.draw --model smollm2 --size cpu
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.lab.commands import draw_command
from experiments.lab.effects import LEVELS
from experiments.lab.figures import save
from experiments.lab.texts import PLAIN
from experiments.specificity import page
from experiments.specificity.summary import OURS, SETTINGS, AgainstRandom, Results
from shapley.plots import COLOURS, CONTROL


def draw(results: Results, source: Path, figures: Path, name: str) -> None:
    """All figures, into a folder."""
    save(selectors_figure(results), figures / f"{name}-selectors.png", source)
    save(matrices_figure(results), figures / f"{name}-matrices.png", source)
    save(matched_figure(results), figures / f"{name}-matched.png", source)
    save(null_figure(results), figures / f"{name}-null.png", source)
    if results.head["config"]["sizes"]:
        save(sizes_figure(results), figures / f"{name}-sizes.png", source)


def tables(results: Results) -> str:
    """All tables, and what they were made with."""
    head = results.head
    made = f"`{head['command']}`: {len(results.records)} clusters, {head['seconds']} s on {head['hardware']}, {head['time']}."
    return "\n\n".join([made, *(table.markdown() for table in page.tables(results))])


def selectors_figure(results: Results) -> Figure:
    """For each selector, the drop of the clusters' topics and of the others, with 95% intervals."""
    names = results.head["config"]["selectors"]
    figure = Figure(figsize=(7.2, 0.3 * len(names) + 1.3), layout="constrained")
    panels = figure.subplots(1, len(SETTINGS), sharey=True, sharex=True)
    for axes, (setting, title) in zip(panels, SETTINGS.items(), strict=True):
        effects = results.effects(setting)
        places = [names.index(effect.selector) for effect in effects]
        for what, colour, marker in (("target", COLOURS[0], "o"), ("others", COLOURS[1], "s")):
            found = [getattr(effect, what) for effect in effects]
            means = np.array([interval.estimate for interval in found])
            sides = np.array([[x.estimate - x.low, x.high - x.estimate] for x in found]).T
            label = {"target": "the cluster's topic", "others": "other topics"}[what]
            axes.errorbar(
                means, places, xerr=sides, fmt=marker, color=colour, markersize=5, elinewidth=1.2, label=label
            )
        axes.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
        axes.set_title(f"{title} than selected on" if setting == "other_keywords" else f"{title}, other documents")
        axes.set_xlabel("drop of log-probability (nats)")
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False, fontsize=8
    )
    figure.suptitle(f"{results.head['model']['name']}: {effects[0].neurons} neurons zeroed", fontsize=10)
    return figure


def matrices_figure(
    results: Results, selectors: tuple[str, ...] = ("shapley", "guarded", "guarded-attribution")
) -> Figure:
    """Cluster by topic: the drop of each topic under each topic's cluster, other keywords."""
    figure = Figure(figsize=(3.1 * len(selectors) + 0.6, 3.6), layout="constrained")
    panels = figure.subplots(1, len(selectors), sharey=True, squeeze=False)[0]
    fraction = results.head["config"]["primary"]
    matrices = [results.matrix("other_keywords", name, fraction) for name in selectors]
    for axes, name, matrix in zip(panels, selectors, matrices, strict=True):
        _matrix(axes, matrix, results.topics, name)
    panels[0].set_ylabel("cluster of")
    figure.supxlabel("prompts of", fontsize=9)
    return figure


def _matrix(axes: Axes, matrix: np.ndarray, topics: list[str], name: str) -> None:
    largest = max(float(np.abs(matrix).max()), 1e-9)
    axes.imshow(matrix, cmap="PuOr_r", vmin=-largest, vmax=largest, aspect="auto")
    for (i, j), value in np.ndenumerate(matrix):
        dark = abs(value) > 0.6 * largest
        axes.text(j, i, f"{value:.1f}", ha="center", va="center", fontsize=6.5, color="white" if dark else "black")
    axes.set_xticks(range(len(topics) + 1), [*topics, PLAIN], rotation=60, ha="right", fontsize=7.5)
    axes.set_yticks(range(len(topics)), topics, fontsize=7.5)
    axes.set_title(f"{name}: drop (nats)")


def null_figure(results: Results) -> Figure:
    """Selectivity beside that of matched random clusters: of selectors over topics, and of each topic's cluster of ours."""
    tested = results.against_random()
    figure = Figure(figsize=(9.2, max(3.2, 0.26 * len(tested) + 1.2)), layout="constrained")
    selectors, topics = figure.subplots(1, 2)
    for place, own in enumerate(tested):
        selectors.plot([own.random.low, own.random.high], [place, place], color=CONTROL, linewidth=5, alpha=0.6)
        selectors.plot([own.mean], [place], "D", color=COLOURS[0], markersize=5)
    selectors.set_yticks(range(len(tested)), [own.selector for own in tested], fontsize=8)
    selectors.invert_yaxis()
    selectors.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    selectors.set_xlabel("selectivity, mean over topics (nats)")
    selectors.set_title("every selector; bar: 95% of random")
    [ours] = [own for own in tested if own.selector == OURS]
    _by_topic(topics, ours)
    figure.suptitle(f"{results.head['model']['name']}: against matched random clusters", fontsize=10)
    return figure


def _by_topic(axes: Axes, tested: AgainstRandom) -> None:
    for place, (topic, null) in enumerate(tested.null.items()):
        own, first = tested.own[topic], place == 0
        spread = place + np.linspace(-0.25, 0.25, len(null))
        axes.plot(spread, null, ".", color=CONTROL, markersize=3, label="matched random" if first else None)
        axes.plot([place], [own], "D", color=COLOURS[0], markersize=5, label=tested.selector if first else None)
    axes.axhline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_xticks(range(len(tested.null)), list(tested.null), rotation=40, ha="right", fontsize=8)
    axes.set_ylabel("selectivity (nats)")
    axes.margins(y=0.15)
    axes.legend(frameon=False, fontsize=8)
    axes.set_title(f"{tested.selector}: {len(null)} random clusters a topic")


def matched_figure(results: Results) -> Figure:
    """Selectivity of every selector where its clusters cost plain text as much."""
    names = results.head["config"]["selectors"]
    figure = Figure(figsize=(2.6 * len(LEVELS) + 1.4, 0.24 * len(names) + 1.2), layout="constrained")
    panels = figure.subplots(1, len(LEVELS), sharey=True, sharex=True)
    for axes, level in zip(panels, LEVELS, strict=True):
        for place, own in enumerate(results.at_damage(level)):
            found = own.selectivity
            colour = COLOURS[0] if own.selector == OURS else CONTROL if own.selector == "random" else "black"
            axes.plot([found.low, found.high], [place, place], color=colour, linewidth=1.2)
            inside = "white" if own.below else colour
            axes.plot([found.estimate], [place], "D", color=colour, markerfacecolor=inside, markersize=4)
        axes.axvline(0, color="#bbbbbb", linewidth=0.8, zorder=0)
        axes.set_title(f"perplexity {level:+.0%}")
    panels[0].set_yticks(range(len(names)), names, fontsize=8)
    panels[0].invert_yaxis()
    figure.supxlabel("selectivity (nats)", fontsize=9)
    figure.suptitle(f"{results.head['model']['name']}: where plain text costs as much", fontsize=10)
    return figure


def sizes_figure(
    results: Results, selectors: tuple[str, ...] = ("shapley", "guarded", "guarded-attribution")
) -> Figure:
    """What larger clusters buy: the drop of the topic and of the others against the number of neurons, other keywords."""
    figure = Figure(figsize=(3.1 * len(selectors) + 0.4, 3.0), layout="constrained")
    panels = figure.subplots(1, len(selectors), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, selectors, strict=True):
        effects = [
            effect
            for fraction in results.sizes(name)
            for effect in results.effects("other_keywords", fraction)
            if effect.selector == name
        ]
        neurons = [effect.neurons for effect in effects]
        for what, colour, label in (
            ("target", COLOURS[0], "the cluster's topic"),
            ("others", COLOURS[1], "other topics"),
        ):
            found = [getattr(effect, what) for effect in effects]
            axes.plot(neurons, [x.estimate for x in found], "o-", color=colour, label=label)
            axes.fill_between(
                neurons, [x.low for x in found], [x.high for x in found], color=colour, alpha=0.15, linewidth=0
            )
        plain = [float(effect.plain.mean()) for effect in effects]
        axes.plot(neurons, plain, "^--", color=CONTROL, label="plain text, a token")
        axes.set_xscale("log")
        axes.set_xlabel("neurons zeroed")
        axes.set_title(name)
        axes.legend(frameon=False, fontsize=8)
    panels[0].set_ylabel("drop of log-probability (nats)")
    return figure


main = draw_command(__file__, __doc__, Results.read, draw, tables)

if __name__ == "__main__":
    main()
