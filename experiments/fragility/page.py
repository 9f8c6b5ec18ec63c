"""The experiment's part of the report, and its tables, from its stored results."""

from __future__ import annotations

import itertools
from pathlib import Path

from experiments.fragility.summary import EXPLAINED, Fall, Results
from experiments.lab.page import Picture, Section, Table, interval, stored
from shapley.impairment import NOISE_KINDS
from shapley.shape import Dose

HERE = Path(__file__).parent
_FIRST = 0.5  # share of resamples from which on an ability is said to fall first


def sections() -> list[Section]:
    """One for each model that was measured."""
    return [section(Results.read(path), path.stem) for path in stored(__file__)]


def section(results: Results, name: str) -> Section:
    return Section(
        f"fragility: {results.head['model']['name']}",
        "How does each ability fall as everything is impaired, and which goes first?",
        (*(_first(results, kind) for kind in results.kinds), *verdicts(results)),
        (
            Picture(
                HERE / "figures" / f"{name}-curves.png",
                "What is left of each ability as every neuron is impaired: 1 untouched, 0 at the floor (every neuron at zero).",
            ),
            Picture(
                HERE / "figures" / f"{name}-halves.png",
                "The strength at which half of an ability is gone, with 95% intervals over items.",
            ),
        ),
        (untouched_table(results), *(order_table(results, kind) for kind in results.kinds)),
        _caveats(results),
        results.head["command"],
    )


def _first(results: Results, kind: str) -> str:
    own = [fall for fall in results.falls[kind] if fall.claimed]
    name, share = max(results.first(kind).items(), key=lambda found: found[1])
    order = ", ".join(f"{fall.ability} {half_of(fall)}" for fall in own)
    said = f"{name} falls first in {share:.0%} of resamples"
    sure = said if share >= _FIRST else "none falls first in half of the resamples"
    return f"{kind.capitalize()}, abilities in the order of their ID50 in {unit(kind)}: {order}; {sure}."


def _caveats(results: Results) -> tuple[str, ...]:
    head = results.head
    near = [ability for ability in results.abilities if not (results.above(ability) and results.claimed(ability))]
    return (
        f"{head['seconds']} s on {head['hardware']}; {head['config']['prompts']} items an ability at most, "
        f"{head['config']['draws']} noise draws, one seed.",
        f"The untouched model is near chance, or at its floor, on {', '.join(near) or 'none'}: nothing is claimed on these.",
        "The floor is every neuron at zero, where a model is surer of wrong answers than a guess: the order above guessing, in "
        "the tables, can be another.",
        "An increasing curve explains all of a loss that never falls, however it rises.",
    )


def untouched_table(results: Results) -> Table:
    """What the untouched model makes of each ability."""
    return Table(
        ("ability", "items", "accuracy", "chance", "log-probability", "at the floor", "claimed"),
        tuple(_untouched(results, ability) for ability in results.abilities),
        "Untouched. Items: measured, of those that are right enough, of all candidates. Accuracy is of all candidates; "
        "log-probabilities are of the measured items, nats a token (grammar: good minus bad continuation, nats).",
    )


def _untouched(results: Results, ability: str) -> tuple[str, ...]:
    facts = results.head["abilities"][ability]
    curve = results.values(results.kinds[0], ability).mean(axis=1)
    measured = results.head["watched"].count(ability)
    whole = facts["chance"] is None
    return (
        ability,
        f"{measured} of {facts['enough']} of {facts['candidates']}",
        "–" if whole else f"{facts['right'] / facts['candidates']:.2f}",
        "–" if whole else f"{facts['chance']:.2f}",
        f"{curve[0]:.2f}",
        f"{curve[-1]:.2f}",
        _claimed(results, ability),
    )


def _claimed(results: Results, ability: str) -> str:
    if not results.above(ability):
        return "no: not above the floor"
    return "yes" if results.claimed(ability) else "no: near chance"


def order_table(results: Results, kind: str) -> Table:
    """The abilities, what falls first first."""
    first = results.first(kind)
    rows = []
    for fall in results.falls[kind]:
        share = f"{first[fall.ability]:.0%} of resamples" if fall.claimed else "not claimed"
        others = results.half_above_guessing(kind, fall.ability), results.half_of_accuracy(kind, fall.ability)
        rows.append((fall.ability, half_of(fall), *map(_dose, others), share))
    return Table(
        ("ability", "ID50 [95%]", "above guessing", "of accuracy", "falls first in"),
        tuple(rows),
        f"{kind.capitalize()}, ID50 in {unit(kind)}; what falls first comes first.",
    )


def half_of(fall: Fall) -> str:
    """ID50 and its interval."""
    low, high = (_dose(Dose(end, bool(end >= fall.strengths[-1]))) for end in (fall.half.low, fall.half.high))
    return f"{_dose(Dose(fall.half.estimate, fall.censored))} [{low}, {high}]"


def _dose(dose: Dose | None) -> str:
    return "–" if dose is None else f"{'> ' if dose.censored else ''}{dose.value:.3g}"


def verdicts(results: Results) -> list[str]:
    """Whether kinds agree, and hypothesis A."""
    lines = [
        f"{one} and {other}: Kendall's tau of the claimed abilities' ID50 is {interval(results.agreement(one, other))}."
        for one, other in itertools.combinations(results.kinds, 2)
    ]
    lines += [
        f"{kind}: Kendall's tau of ID50 with that above guessing is {results.floors_agree(kind):.2f}."
        for kind in results.kinds
    ]
    for kind in results.kinds:
        r2 = results.explained(kind)
        lines.append(
            f"Hypothesis A, {kind}: an increasing curve of strength explains R² = {interval(r2)} of plain text's loss; "
            f"{EXPLAINED} or more: {'met' if r2.estimate >= EXPLAINED else 'not met'}."
        )
    return lines


def unit(kind: str) -> str:
    """Of a kind's strengths."""
    return "site standard deviations" if kind in NOISE_KINDS else "share taken away"
