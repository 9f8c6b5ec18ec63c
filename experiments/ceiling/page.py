"""The experiment's part of the report, and its tables, from its stored results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.ceiling.summary import Results
from experiments.lab.page import Picture, Section, Table, stored

HERE = Path(__file__).parent
NAMES = ("both",)


def sections() -> list[Section]:
    """None where it was not run."""
    return [section(Results.read(path), path.stem) for path in stored(__file__, NAMES)]


def section(results: Results, name: str) -> Section:
    items = " and ".join(f"{n} of {task}" for task, n in results.head["items"].items())
    return Section(
        f"ceiling: {' against '.join(results.names)}",
        f"Two models get every item of a test right ({items}). Which one falls first when it is impaired?",
        tuple(_found(results, kind) for kind in results.kinds),
        (
            Picture(
                HERE / "figures" / f"{name}-curves.png",
                "Share of the accuracy above the floor that is left, with 95% intervals over prompts. Impaired is everything: "
                "by noise at the neurons, by scaling behind the MLP (a norm after Gemma's would undo it before).",
            ),
        ),
        (models_table(results), pairs_table(results)),
        (
            f"{results.head['seconds']} s on {results.head['hardware']}, in part from the cache.",
            "Items were chosen for both models doing them untouched: they are not a sample of any test.",
            *dict.fromkeys(note for kind in results.kinds for note in results.comparison(kind)["caveats"]),
        ),
        results.head["command"],
    )


def _found(results: Results, kind: str) -> str:
    parts = [
        f"{pair['task']}: {verdict} (p = {_number(pair['p_holm'])} after Holm)"
        for its_kind, pair, verdict in _verdicts(results)
        if its_kind == kind
    ]
    return f"By {kind}: {'; '.join(parts)}."


def models_table(results: Results) -> Table:
    """ID50, area, and what is lost at matched damage."""
    damages = results.comparison(results.kinds[0])["damages"]
    rows = []
    for kind in results.kinds:
        for task, curves in results.comparison(kind)["tasks"].items():
            for model, curve in curves.items():
                id50 = f"{'≥ ' if curve['id50']['censored'] else ''}{_interval(curve['id50'])}"
                untouched, floor = f"{curve['performance'][0]:.2f}", f"{curve['floor']:.2f}"
                rows.append(
                    (kind, task, results.name(kind, model), untouched, floor, id50, _interval(curve["area"]),
                     *map(_interval, curve["lost"]))
                )  # fmt: skip
    return Table(
        ("kind", "task", "model", "untouched", "floor", "ID50 [95%]", "area", *(f"lost at {d:g}" for d in damages)),
        tuple(rows),
        "Accuracy. ID50: the strength at which half of what is above the floor is left (noise: site SDs; scale: a fraction). "
        "Lost at d: the share that is lost where the loss on plain text is up by d nats a byte.",
    )


def pairs_table(results: Results) -> Table:
    """Differences, and verdicts."""
    rows = tuple(
        (kind, pair["task"], *map(_interval, (pair["log_id50"], pair["area"])), _number(pair["p_holm"]), verdict)
        for kind, pair, verdict in _verdicts(results)
    )
    first, second = results.names
    return Table(
        ("kind", "task", "log ID50", "area", "p (Holm)", "verdict"),
        rows,
        f"{first} minus {second}, with 95% intervals from resamples of prompts that are the same for both.",
    )


def _verdicts(results: Results) -> Iterator[tuple[str, dict[str, Any], str]]:
    for kind in results.kinds:
        for pair in results.comparison(kind)["pairs"]:
            yield kind, pair, results.verdict(kind, pair)


def _interval(found: Mapping[str, float | None]) -> str:
    if found["estimate"] is None:
        return "-"
    if found["low"] is None or found["high"] is None:
        return f"{found['estimate']:.2f}"
    return f"{found['estimate']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2g}"
