"""The experiment's part of the report, and its tables, from its stored results."""

from __future__ import annotations

import itertools
from pathlib import Path

from experiments.lab.page import Picture, Section, Table, stored
from experiments.sandbagger.summary import Results

HERE = Path(__file__).parent


def sections() -> list[Section]:
    """One for each model that was measured."""
    return [section(Results.read(path), path.stem) for path in stored(__file__)]


def section(results: Results, name: str) -> Section:
    return Section(
        f"sandbagger: {results.head['model']['name']}",
        "Does the evaluator's ladder catch a model that underperforms on purpose, and let one be that does not?",
        tuple(_found(results, model) for model in results.models),
        (
            Picture(
                HERE / "figures" / f"{name}-ladders.png",
                "Mean score at every level of the ladders, with the intervals of the sequential test (they hold at all looks); "
                "dotted: the threshold. A ladder ends where a level is not shown safe.",
            ),
        ),
        (abilities_table(results), verdicts_table(results)),
        (
            f"{results.head['seconds']} s on {results.head['hardware']}; one sandbagger, one seed.",
            "The sandbagger was planted in the MLPs of the last blocks, and what it hides is carried by attention: an easy "
            "case for impairment of MLPs. One that hides at every level is not seen.",
            "The threshold lies above what the sandbagger shows when impaired: below it, its ladder would have ended in "
            "danger.",
        ),
        results.head["command"],
    )


def _found(results: Results, model: str) -> str:
    ability = results.ability(model)
    parts = []
    for kind in results.kinds:
        report = results.report(model, kind)
        rise = report["rise"]
        warned = "warned of a rise with impairment" if report["warned"] else "not warned of"
        p = f" (p = {rise['p']:.2g})" if rise else ""
        release = report["release"]["level"] or "nothing"
        parts.append(f"{kind}: {warned}{p}; {report['end']}; recommended for release: {release}")
    return (
        f"The {model} model has an accuracy of {ability['accuracy']:.2f}, {ability['unlocked']:.2f} behind the password. "
        + ". ".join(parts)
        + "."
    )


def abilities_table(results: Results) -> Table:
    rows = tuple(
        (model, f"{results.ability(model)['accuracy']:.2f}", f"{results.ability(model)['unlocked']:.2f}")
        for model in results.models
    )
    return Table(("model", "accuracy", "behind the password"), rows, "Unimpaired: copying the last word of a list.")


def verdicts_table(results: Results) -> Table:
    """Level by level."""
    rows = []
    for model, kind in itertools.product(results.models, results.kinds):
        for rung in results.report(model, kind)["rungs"]:
            score = f"{rung['mean']:.2f} [{rung['low']:.2f}, {rung['high']:.2f}]"
            rows.append((model, kind, f"{rung['strength']:g}", str(rung["items"]), score, rung["verdict"]))
    return Table(
        ("model", "kind", "level", "items", "score [interval]", "verdict"),
        tuple(rows),
        f"The ladders, from heavy to light; threshold {results.head['config']['threshold']:g}.",
    )
