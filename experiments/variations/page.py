"""The experiment's part of the report, and its tables, from its stored results."""

from __future__ import annotations

import math
from pathlib import Path

from experiments.lab.effects import LEVELS, PERPLEXITY, SHARE, TARGET, Effect
from experiments.lab.page import Picture, Section, Table, damage_table, interval, stored
from experiments.variations.summary import Results, smoothness

HERE = Path(__file__).parent
_RANDOM = "random"
WHAT = {
    "reference": "neurons by the guarded contrast of their scores, zeroed",
    "mean": "their mean activation in their place, not zero",
    "plain": "plain text is among what the guard holds a topic against",
    "plain+mean": "both",
    "active": "zeroed only at tokens where the neuron is as active as in 5% of the tokens of other topics",
    "plain+mean+active": "all three",
    "before": "the cluster's footprint in what the MLP reads is zeroed",
    "after": "its footprint in what the MLP writes is zeroed",
    "uniform": "Shapley values, coalitions of all sizes alike, not beta(1,16)",
    "guarded-attribution": "gradient times activation, guarded",
    "expert-units": "average precision as a classifier",
    _RANDOM: "random neurons",
}


def sections() -> list[Section]:
    """One for each model that was measured."""
    return [section(Results.read(path), path.stem) for path in stored(__file__)]


def section(results: Results, name: str) -> Section:
    pictures = {
        "arms": "What each arm takes from its topic and from the others, and what it costs plain text, with 95% intervals over "
        "prompts.",
        "sizes": "Selectivity (topic minus other topics) against what it costs plain text, as clusters grow; dotted: the aim's "
        "2%. Higher and further left is better.",
        "dial": "The reference's clusters impaired by degrees: what is left of topic, other topics and plain text.",
    }
    return Section(
        f"variations: {results.head['model']['name']}",
        "What keeps clusters from being specific, and does impairment by degrees stay on topic?",
        (_why(results), _halves(results), _dial(results)),
        tuple(Picture(HERE / "figures" / f"{name}-{part}.png", text) for part, text in pictures.items()),
        (arms_table(results), matched_table(results), halves_table(results), dial_table(results)),
        _caveats(results),
        results.head["command"],
    )


def _why(results: Results) -> str:
    effects = {name: results.effect(name) for name in results.arms}
    changed = results.head["config"]["arms"]
    others = [name for name in effects if name != "reference" and "selector" not in changed[name]]
    parts = "; ".join(f"{name} ({WHAT[name]}): {_shape(effects[name])}" for name in others)
    most = max(effects, key=lambda name: len(effects[name].met))
    met = effects[most].met
    named = f" ({', '.join(met)})" if met else ""
    level = LEVELS[0]
    matched = {name: results.matched(name, level) for name in effects}
    reached = {name: own for name, own in matched.items() if not math.isnan(own.target.estimate)}
    best = max(reached, key=lambda name: reached[name].target.estimate - reached[name].others.estimate)
    on_line = ", on the straight line from no neuron to the clusters," if reached[best].below else ""
    return (
        f"The reference takes {_shape(effects['reference'])}. One thing changed at a time: {parts}. "
        f"The aim ({TARGET} nats, at most {SHARE:.3f} of it off topic, perplexity up by less than {PERPLEXITY:.0%}) is met "
        f"for most topics by {most}: {len(met)} of {len(results.topics)}{named}. "
        f"Where plain text's perplexity is up by {level:.0%}{on_line}, {best} is the most selective, with "
        f"{interval(reached[best].target)} nats of the topic and {reached[best].others.estimate:.2f} of others; the "
        f"reference takes {interval(matched['reference'].target)} and {matched['reference'].others.estimate:.2f} there."
    )


def _shape(own: Effect) -> str:
    return (
        f"{own.target.estimate:.2f} nats from its topic, {own.others.estimate:.2f} from others, perplexity "
        f"{own.perplexity.estimate:+.1%}"
    )


def _halves(results: Results) -> str:
    parts = []
    for name in results.head["config"]["halved"]:
        interaction, whole = results.interaction(name)
        parts.append(f"{interval(interaction)} nats of {whole.estimate:.2f} for {name}")
    return (
        "Whether neurons stand in for each other (self-repair): of what a whole cluster takes from its topic, what its two "
        f"random halves do not take one by one is {', '.join(parts)}. Above zero, one half makes up for the other; below zero, "
        "either half takes what the other would."
    )


def _dial(results: Results) -> str:
    parts = []
    for kind, steps in results.dial().items():
        r2 = smoothness([step.strength for step in steps], [step.effect.target.estimate for step in steps])
        last = steps[-1]
        sure = sum(step.adjusted <= 0.05 for step in steps)
        parts.append(
            f"{kind}: R² of a monotone fit of the topic's fall {r2:.3f}, at strength {last.strength:g} {_shape(last.effect)}; "
            f"the diagonal stands out (p ≤ .05, Holm over all steps) at {sure} of {len(steps)} strengths"
        )
    return f"The dial, the same clusters by degrees. {'; '.join(parts)}."


def _caveats(results: Results) -> tuple[str, ...]:
    head, watched = results.head, results.head["watched"]
    few = ", ".join(f"{watched.count(topic)} of {topic}" for topic in (*results.topics, "plain"))
    return (
        f"{head['seconds']} s on {head['hardware']}; prompts watched: {few}. Intervals are over these few prompts; topics, "
        "clusters and noise draws are held as they are.",
        "Arms differ from the reference in one thing at a time, or in those their names join: they do not show how changes "
        "would add up otherwise.",
        "The guard is chosen by zeroing, for all arms: those that put the mean in its place might choose another.",
        "Halves are one random split a cluster. Interaction within a cluster is what is measured, not repair by the rest of "
        "the model, which is in every drop.",
        *(
            ("One size was measured: matched damage is along the straight line from no neuron to it.",)
            if len(head["config"]["fractions"]) == 1
            else ()
        ),
        "Footprints are residual dimensions: what is impaired there is all that they carry.",
    )


def arms_table(results: Results) -> Table:
    """What each arm does at the primary size."""
    rows = []
    for name in results.arms:
        own = results.effect(name)
        rows.append(
            (name, WHAT[name], str(results.columns(name)), interval(own.target), interval(own.others),
             interval(own.selectivity), f"{own.perplexity.estimate:+.1%}", f"{len(own.met)} of {len(results.topics)}")
        )  # fmt: skip
    return Table(
        ("arm", "what", "columns", "target", "off topic", "selectivity", "perplexity", "aim met"),
        tuple(rows),
        f"Clusters of {results.primary:.0%} of the neurons, impaired wholly; drops in nats [95%], means over topics.",
    )


def matched_table(results: Results) -> Table:
    """What arms do where they cost plain text as much."""
    found = {name: [results.matched(name, level) for level in LEVELS] for name in results.arms}
    rows = {name: [(own.target, own.others, own.below) for own in levels] for name, levels in found.items()}
    return damage_table("arm", ("target", "off topic"), rows)


def halves_table(results: Results) -> Table:
    """Whether neurons of a cluster stand in for each other."""
    rows = []
    for name in results.head["config"]["halved"]:
        interaction, whole = results.interaction(name)
        rows.append((name, interval(whole), interval(interaction)))
    return Table(
        ("arm", "the whole takes", "more than its halves together"),
        tuple(rows),
        "Clusters and their random halves: drops of the topic, in nats [95%].",
    )


def dial_table(results: Results) -> Table:
    """What each strength of each kind does."""
    rows = [
        (kind, f"{step.strength:g}", interval(step.effect.target), interval(step.effect.others),
         f"{step.effect.perplexity.estimate:+.1%}", f"{step.adjusted:.3f}")
        for kind, steps in results.dial().items() for step in steps
    ]  # fmt: skip
    return Table(
        ("kind", "strength", "target", "off topic", "perplexity", "p (Holm)"),
        tuple(rows),
        "The dial: the reference's clusters by degrees; drops in nats [95%]; strengths of noise in standard deviations of the "
        "site.",
    )
