"""The experiment's part of the report, and its tables, from its stored results."""

from __future__ import annotations

import math
from pathlib import Path

from experiments.bases.run import (
    IDENTITY,
    LEARNED,
    PCA,
    RANDOM,
    STANDARD,
    STREAM,
    STREAM_PCA,
    STREAM_RANDOM,
    TOKENS,
    UNITS,
)
from experiments.bases.summary import Results
from experiments.lab.effects import LEVELS
from experiments.lab.page import BELOW, NOT_REACHED, Picture, Section, Table, at_damage, interval, quartiles, stored
from shapley.shape import Interval

HERE = Path(__file__).parent
WHAT = {
    IDENTITY: "the neurons",
    RANDOM: "uniform rotations, the null",
    PCA: "the principal axes of the activations",
    LEARNED: "the rotation that makes the Jacobian to the next MLP sparse",
    STREAM: "columns of the residual stream, as MLPs write it",
    STREAM_RANDOM: "the stream rotated at random",
    STREAM_PCA: "its principal axes",
}

_STANDARD = "the standard basis of the site (the neurons, or the stream's columns)"


def sections() -> list[Section]:
    """One for each model that was measured."""
    return [section(Results.read(path), path.stem) for path in stored(__file__)]


def section(results: Results, name: str) -> Section:
    pictures = {
        "concentration": "What the best players hold, of the most that any number of the best hold; ranked by one estimate of "
        "the scores and summed over another one; topics in which the two do not agree are left out.",
        "selectivity": "What each basis's clusters take from their topic and from others, and the difference, with 95% "
        "intervals over prompts.",
    }
    return Section(
        f"bases: {results.head['model']['name']}",
        "Are neurons the right players, or does another basis concentrate scores more, or give more specific clusters?",
        (_concentration(results), _specificity(results)),
        tuple(Picture(HERE / "figures" / f"{name}-{part}.png", text) for part, text in pictures.items()),
        (concentration_table(results), specificity_table(results), matched_table(results)),
        _caveats(results),
        results.head["command"],
    )


def _concentration(results: Results) -> str:
    found = {basis: results.concentrated(basis) for basis in results.bases}
    parts = "; ".join(
        f"{basis} ({WHAT[basis]}) {own.half.estimate:.0f} ({own.share:.1%}), Gini {own.gini.estimate:.2f}"
        for basis, own in found.items()
    )
    better = [basis for basis, own in found.items() if basis != STANDARD[basis] and own.fewer.low > 1]
    return (
        f"Players that hold half of what the best hold: {parts}. "
        f"With fewer than {_STANDARD}, beyond the interval over {len(results.topics)} topics: {_named(better)}."
    )


def _specificity(results: Results) -> str:
    parts = []
    for fraction in results.fractions:
        found = {basis: results.specific(basis, fraction) for basis in results.bases}
        shapes = "; ".join(
            f"{basis} {own.effect.target.estimate:.2f} nats from its topic and {own.effect.others.estimate:.2f} from others"
            for basis, own in found.items()
        )
        better = [basis for basis, own in found.items() if basis != STANDARD[basis] and own.gain.low > 0]
        parts.append(
            f"Clusters of {100 * fraction:g}% of the players take: {shapes}; more selective than those of {_STANDARD} on the "
            f"same prompts, beyond the interval: {_named(better)}"
        )
    return ". ".join([*parts, *_at_matched_damage(results)]) + "."


def _at_matched_damage(results: Results) -> list[str]:
    """At the highest level that all bases reach; nothing where there is none."""
    by_level = {level: {basis: results.matched(basis, level) for basis in results.bases} for level in LEVELS}
    reached = [level for level, found in by_level.items() if not any(_missing(own.target) for own in found.values())]
    if not reached:
        return []
    level, found = reached[-1], by_level[reached[-1]]
    shapes = "; ".join(f"{basis} {own.selectivity.estimate:.2f} nats{_mark(own.below)}" for basis, own in found.items())
    others = [(basis, own) for basis, own in found.items() if basis != IDENTITY]
    better = [basis + _mark(own.gain_below) for basis, own in others if own.gain.low > 0]
    worse = [basis + _mark(own.gain_below) for basis, own in others if own.gain.high < 0]
    return [
        f"Where plain text's perplexity is up by {level:.0%}, selectivity is: {shapes}; beyond the interval above neurons': "
        f"{_named(better)}, below: {_named(worse)} ({BELOW})"
    ]


def _mark(below: bool) -> str:
    return " †" if below else ""


def _named(bases: list[str]) -> str:
    return ", ".join(bases) or "none"


def _caveats(results: Results) -> tuple[str, ...]:
    head, watched = results.head, results.head["watched"]
    few = ", ".join(f"{watched.count(topic)} of {topic}" for topic in (*results.topics, "plain"))
    return (
        f"{head['seconds']} s on {head['hardware']}; prompts watched: {few}. Intervals of drops are over these few prompts, "
        "those of concentration over topics; neither is corrected for how many bases are compared.",
        f"Two estimates of {head['config']['budget']} forward rows a topic each, in which {results.refined or 'no'} players "
        "got exact differences: all other scores are averages of gradients, whose bias the two share and which may differ "
        "between bases. Their agreement is of sampling only. Where they rank players poorly, a basis looks less concentrated "
        "than it is.",
        "The sum of scores is of a semivalue whose coalitions leave most players intact, and of gradients: it need not be the "
        "same in all bases.",
        "Of d_mlp directions at most d_model can act on the rest of the model, and a learned basis may leave others that "
        "hardly do: they hold nothing, which raises its Gini coefficient and not the number for half.",
        f"{head['config']['seeds']} seeds of random bases; the other bases are one each. Intervals hold these as they are, and "
        "the coalitions, which all topics share.",
        "Only matched damage compares players of the stream with neurons: there are fewer of them, and each is larger.",
    )


def concentration_table(results: Results) -> Table:
    """How each basis concentrates scores."""
    rows = []
    for basis in results.bases:
        own = results.concentrated(basis)
        rows.append(
            (basis, _interval(own.half, 0), f"{own.share:.1%}", _interval(own.fewer), _interval(own.gini), _interval(own.gain),
             f"{own.topics} of {len(results.topics)}", f"{own.total:.2f}", "{:.2f} ({:.2f})".format(*own.agreement),
             quartiles(results.simple(basis)))
        )  # fmt: skip
    return Table(
        (
            "basis",
            "players for half",
            "of all",
            "times fewer",
            "Gini",
            "above",
            "topics",
            "sum of scores (nats)",
            "agreement (least)",
            "simple: median [quartiles]",
        ),
        tuple(rows),
        "Concentration of scores: means over topics (of players for half, geometric) [95%, Student's, over topics]; times "
        f"fewer, above: than in {_STANDARD}; agreement: the correlation of the two estimates, and topics are left out "
        f"where it is below .1. Simple: of {UNITS} players drawn at random, the share of the variance over "
        f"{results.head['config']['passages']} passages of {TOKENS} tokens that rules of the token, the one before it and "
        "the topic predict (docs/neurons.md).",
    )


def specificity_table(results: Results) -> Table:
    """What each basis's clusters do."""
    rows = []
    for fraction in results.fractions:
        for basis in results.bases:
            own = results.specific(basis, fraction)
            seeds = ", ".join(f"{x:.2f}" for x in own.seeds) if len(own.seeds) > 1 else ""
            rows.append(
                (f"{results.players(basis, fraction)}", basis, _interval(own.effect.target), _interval(own.effect.others),
                 f"{own.share:.2f}", _interval(own.effect.selectivity), _interval(own.gain), seeds,
                 f"{own.effect.perplexity.estimate:+.1%}")
            )  # fmt: skip
    return Table(
        (
            "players",
            "basis",
            "target",
            "off topic",
            "off / target",
            "selectivity",
            "above",
            "seeds",
            "perplexity",
        ),
        tuple(rows),
        "Clusters by the guarded contrast, zeroed; drops in nats [95%, over prompts], means over topics. Above: the "
        f"selectivity of clusters of as many players of {_STANDARD}.",
    )


def matched_table(results: Results) -> Table:
    """The same where the clusters cost plain text as much."""
    rows = []
    for level in LEVELS:
        for basis in results.bases:
            own = results.matched(basis, level)
            found = (at_damage(one, own.below) for one in (own.target, own.others, own.selectivity))
            rows.append((f"{level:+.0%}", basis, *found, at_damage(own.gain, own.gain_below)))
    return Table(
        ("perplexity", "basis", "target", "off topic", "selectivity", "above neurons"),
        tuple(rows),
        "At matched general damage: where plain text's perplexity is up by as much, interpolated along the sizes from no "
        f"player on; nats [95%, over prompts]. {BELOW}. {NOT_REACHED}.",
    )


def _missing(found: Interval) -> bool:
    return math.isnan(found.estimate)


def _interval(found: Interval, digits: int = 2) -> str:
    if _missing(found):
        return "–"
    return interval(found, digits)
