"""The experiment's part of the report, and its tables, from its stored results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from experiments.impairment_curves.originals import ORIGINALS
from experiments.impairment_curves.summary import SMOOTH, Place, Results, Smoothness
from experiments.lab.page import Picture, Section, Table, stored
from shapley.records import EVERYTHING
from shapley.shape import Dose

HERE = Path(__file__).parent


def sections() -> list[Section]:
    """One for each model that was measured."""
    return [section(Results.read(path), path.stem) for path in stored(__file__)]


def section(results: Results, name: str) -> Section:
    pictures = [
        Picture(
            HERE / "figures" / f"{name}-smooth.png",
            "Plain text's loss as everything is impaired, by kind and site; points with 95% bands over passages, lines the "
            "rising curves nearest to them.",
        )
    ]
    for test in results.tests:
        original = ORIGINALS[test]
        pictures += [
            Picture(
                HERE / "figures" / f"{name}-test-{test}-{cluster}.png",
                f"Test {test}: the {original.target} cluster ({cluster}) impaired by degrees; loss on the keywords of each "
                "topic, with 95% bands over prompts. Dashed: as many random columns.",
            )
            for cluster in results.clusters
        ]
        pictures.append(
            Picture(
                HERE / "figures" / f"{name}-test-{test}-accuracy.png",
                f"Test {test}: accuracy on the keywords of each topic as a {original.target} cluster is impaired by degrees "
                f"{original.where}, with 95% bands over prompts. Dashed: as many random columns.",
            )
        )
    return Section(
        f"impairment-curves: {results.head['model']['name']}",
        "Does the model degrade smoothly as it is impaired by degrees, and the cluster's topic before others?",
        (_smooth(results), *(_test(results, test) for test in results.tests)),
        tuple(pictures),
        (smooth_table(results), *(table for test in results.tests for table in tables_of(results, test))),
        _caveats(results),
        results.head["command"],
    )


def verdict(results: Results) -> str:
    """Hypothesis A, in a clause."""
    found = results.smoothness()
    least = min(found, key=lambda one: one.general.estimate)
    holds = sum(one.holds for one in found)
    return (
        f"{results.head['model']['name']}: at {holds} of {len(found)} pairs of kind and site (least R² "
        f"{least.general.estimate:.3f}, {least.kind} at {least.site})"
    )


def _smooth(results: Results) -> str:
    found = results.smoothness()
    failing = [f"{one.kind} at {one.site} (R² {one.general.estimate:.3f})" for one in found if not one.holds]
    curves = [value for one in found for value in one.clusters]
    smooth = sum(value >= SMOOTH for value in curves)
    return (
        f"Hypothesis A: a rising curve explains {SMOOTH:.0%} or more of how the general loss (plain text, everything impaired) "
        f"varies over strengths for {len(found) - len(failing)} of {len(found)} kinds and sites"
        f"{'; not for ' + ', '.join(failing) if failing else ''}. Under clusters it does for {smooth} of {len(curves)} curves, "
        "a topic's under one cluster; those that hardly move are rough by their nature."
    )


def _test(results: Results, test: int) -> str:
    """Whether the target falls before the other topics, at the test's own site."""
    target = ORIGINALS[test].target
    parts = []
    for place in own_places(results, test):
        for cluster in results.clusters:
            halves = {topic: results.fit(place, cluster, topic) for topic in ORIGINALS[test].topics}
            own = halves.pop(target)
            if own["id50"] is None:
                continue
            before = [topic for topic, fit in halves.items() if falls_before(own, fit)]
            if before:
                parts.append(f"{place.kind} of {cluster}: before {' and '.join(before)}")
    said = "; ".join(parts) if parts else "under no kind and cluster"
    return (
        f"Test {test} ({ORIGINALS[test].where}): {target} is down to a half before other topics, by intervals that do not "
        f"overlap: {said}."
    )


def falls_before(own: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether one ID50 is surely the smaller."""
    if own["censored"] or own["id50_high"] is None or other["id50"] is None:
        return False
    least = other["id50"] if other["id50_low"] is None else other["id50_low"]
    return bool(own["id50_high"] < least)


def _caveats(results: Results) -> tuple[str, ...]:
    head, config = results.head, results.head["config"]
    return (
        f"{head['seconds']} s on {head['hardware']}; {config['prompts']} prompts a topic at most, "
        f"{config['seeds']} noise draw{'s' * (config['seeds'] > 1)}, {config['random']} random cluster beside each; "
        f"scores of {config['budget']} forward rows a topic.",
        "A monotone fit asks for order only, and explains a part of pure noise too, the more, the fewer the strengths.",
        "Before and after the MLP a cluster is impaired in residual dimensions, its footprint: all that they carry.",
        "Negative noise moves the mean by several standard deviations at strength 1: compare it with shift.",
    )


def smooth_table(results: Results) -> Table:
    """Hypothesis A, for each kind and site."""
    return Table(
        ("kind", "site", "R² of general loss [95%]", "holds", "its rise, nats a token",
         f"of curves under clusters, R² ≥ {SMOOTH}", "their least R²"),
        tuple(map(_smooth_row, results.smoothness())),
        f"Hypothesis A: R² of monotone fits. General loss: plain text, everything impaired; it holds from {SMOOTH} on.",
    )  # fmt: skip


def _smooth_row(found: Smoothness) -> tuple[str, ...]:
    general = found.general
    defined = [value for value in found.clusters if not np.isnan(value)]
    return (
        found.kind,
        found.site,
        f"{general.estimate:.3f} [{general.low:.3f}, {general.high:.3f}]",
        "yes" if found.holds else "no",
        f"{found.rise:.2f}",
        f"{sum(value >= SMOOTH for value in defined)} of {len(found.clusters)}",
        f"{min(defined, default=np.nan):.3f}",
    )


def doses_table(results: Results, test: int) -> Table:
    """At the test's own site, for each kind and cluster, the dose that halves each topic's performance."""
    topics = results.topics(test)
    own = own_places(results, test)
    n = {topic: results.fit(own[0], EVERYTHING, topic)["prompts"] for topic in topics}
    rows = []
    for place in own:
        for cluster in results.arms():
            fits = [results.fit(place, cluster, topic) for topic in topics]
            rows.append((place.kind, cluster, str(fits[0]["columns"]), *map(_dose, fits)))
    return Table(
        ("kind", "impaired", "columns", *(f"{topic} ({n[topic]} prompts)" for topic in topics)),
        tuple(rows),
        f"Test {test}, {ORIGINALS[test].where} ({own[0].site}), cluster {ORIGINALS[test].target}: the strength at which "
        "half of the log-probability above the floor is lost (ID50) [95%].",
    )


def shapes_table(results: Results, test: int) -> Table:
    """At the test's own site, what else there is to say of the shape of the target's curve, and of the others'."""
    target = ORIGINALS[test].target
    rows = []
    for place in own_places(results, test):
        for cluster in results.arms():
            fit = results.fit(place, cluster, target)
            areas = [
                results.fit(place, cluster, topic)["log_area"] for topic in results.topics(test) if topic != target
            ]
            shape = (fit["slope"], fit["log_area"])
            rows.append(
                (place.kind, cluster, _id95(results.id95(place, cluster, target)), *map(_known, shape),
                 ", ".join(map(_known, areas)))
            )  # fmt: skip
    others = ", ".join(topic for topic in results.topics(test) if topic != target)
    return Table(
        ("kind", "impaired", "ID95", "slope at ID50", "area", f"area of {others}"),
        tuple(rows),
        f"Test {test}, the shape of the curve of {target}: the strength at which 95% of the log-probability above the floor is "
        "lost; what is lost within the doubling of strength around ID50, of 1; the mean of what is left over the logarithm of "
        "strength, and of other topics (docs/curves.md).",
    )


def tables_of(results: Results, test: int) -> tuple[Table, Table]:
    """Of a test: its doses, and its shapes."""
    return doses_table(results, test), shapes_table(results, test)


def _id95(dose: Dose | None) -> str:
    return "at the floor" if dose is None else f"> {dose.value:g}" if dose.censored else f"{dose.value:.2f}"


def _known(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def own_places(results: Results, test: int) -> list[Place]:
    return [place for place in results.places if place.test == test and place.site == results.sites(test)[0]]


def _dose(fit: dict[str, Any]) -> str:
    if fit["id50"] is None:
        return "at the floor"
    if fit["censored"]:
        return f"> {fit['id50']:g}"
    if fit["id50_low"] is None:
        return f"{fit['id50']:.2f}"
    return f"{fit['id50']:.2f} [{fit['id50_low']:.2f}, {fit['id50_high']:.2f}]"
