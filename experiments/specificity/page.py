"""The experiment's part of the report, from its stored results."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.lab.effects import LEVELS, SHARE, TARGET
from experiments.lab.page import Picture, Section, Table, damage_table, interval, stored
from experiments.specificity.summary import OURS, SETTINGS, AgainstRandom, AtDamage, Results, Tested
from shapley.selectors import NAMES

HERE = Path(__file__).parent
BROKEN = 0.5  # rise of plain text's perplexity from which on a cluster is one that the whole model hangs on
ALPHA = 0.05
_SAME = "same_keywords"
SCORED = ("shapley", "contrast", "guarded", "interval")  # what ranks by Shapley scores


def sections() -> list[Section]:
    """One for each model that was measured."""
    return [section(Results.read(path), path.stem) for path in stored(__file__)]


def section(results: Results, name: str) -> Section:
    head = results.head
    pictures = {
        "selectors": "Drop of the answer's log-probability when each selector's clusters are zeroed, means over topics: on "
        "the cluster's topic and on the other topics, with 95% intervals over prompts.",
        "matrices": "Which topic falls under which topic's cluster, other keywords than selected on; the last "
        "column is plain text, a token.",
        "null": "Selectivity against random clusters of as many neurons in each layer, matched in activation norm. Left: every "
        "selector, means over topics, with where 95% of such means of random clusters lie; right: each topic's cluster of "
        f"{OURS}.",
        "matched": "Selectivity where clusters cost plain text as much (its perplexity is up by 2, 5 and 10%), interpolated "
        "along the sizes from no neuron on, with 95% intervals over prompts; hollow: below the smallest clusters, on the "
        "straight line from none to them; left out: not reached.",
        "sizes": "What larger clusters take, with 95% intervals over prompts.",
    }
    return Section(
        f"specificity: {head['model']['name']}",
        "Does impairing a topic's cluster hurt that topic, and no other?",
        (
            *(_answer(results, setting) for setting in SETTINGS),
            _at_all_sizes(results),
            *(_matched(results.at_damage(level), level) for level in LEVELS),
            *_against_random(results),
        ),
        tuple(Picture(HERE / "figures" / f"{name}-{part}.png", text) for part, text in pictures.items()),
        tables(results),
        _caveats(results),
        head["command"],
    )


def _answer(results: Results, setting: str) -> str:
    """What was found for one set of held-out prompts, aim and all."""
    everyone = results.effects(setting)
    effects = {effect.selector: effect for effect in everyone if effect.perplexity.estimate < BROKEN}
    broken = ", ".join(effect.selector for effect in everyone if effect.perplexity.estimate >= BROKEN)
    ours = max((effects[name] for name in SCORED if name in effects), key=_selectivity)
    rival = max((effect for name, effect in effects.items() if name not in SCORED), key=_selectivity)
    ratio = _selectivity(ours) / _selectivity(rival) if _selectivity(rival) > 0 else float("inf")
    return (
        f"{SETTINGS[setting].capitalize()}: of the selectors that rank by Shapley scores, {ours.selector} is the most "
        f"selective of those that leave plain text readable (perplexity up by less than half; not so: {broken or 'none'}). "
        f"{ours.neurons} neurons zeroed take {ours.target.estimate:.2f} nats "
        f"[{ours.target.low:.2f}, {ours.target.high:.2f}] from their topic and {ours.others.estimate:.2f} from the others, "
        f"with the perplexity of plain text at {ours.perplexity.estimate:+.1%}; the diagonal stands out with "
        f"p = {ours.adjusted:.3f} (permutation, Holm). "
        f"The best of the others is {rival.selector}, with {rival.target.estimate:.2f} and {rival.others.estimate:.2f}: "
        f"the selectivity of ours is {ratio:.2f} times its own. The aim, {TARGET} nats with at most {SHARE:.3f} of it off "
        f"topic and perplexity up by less than 2%, "
        f"is met for {len(ours.met)} of {len(results.topics)} topics by {ours.selector}"
        + (f" ({', '.join(ours.met)})" if ours.met else "")
        + f", and for {len(rival.met)} by {rival.selector}."
    )


def _against_random(results: Results) -> list[str]:
    """What random clusters leave of the selectors' claims: one sentence for all, and one for ours, by topic."""
    tested, diagonal, both = results.against_random(), _of_columns(results), _specific(results)
    not_so = [
        f"{own.selector} (p = {own.adjusted:.2g} and {diagonal[own.selector]:.2g})"
        for own in tested
        if own.selector not in both
    ]
    [ours] = [own for own in tested if own.selector == OURS]
    useless = ", ".join(_breaking(results, both)) or "none"
    return [
        "A selector's clusters are called specific here if they are unlike random ones that are matched to them in layers and "
        "activation norm (their selectivity, stratified permutation over topics), and if they stand out on their own topics "
        f"(the diagonal, permutation of the matrix's columns), each with p < {ALPHA} by Holm over selectors. The first alone "
        "would also hold of clusters that break the model, whose drops are large on any prompt. Both hold for: "
        f"{', '.join(both) or 'none'}. Not so: {', '.join(not_so) or 'none'}. That is more than "
        f"chance, and no more: clusters that raise perplexity by half or more are among them, useless as they are: {useless}.",
        f"Against {_draws(ours)} random clusters a topic, the clusters of {ours.selector} are more selective than every one "
        f"for {len(ours.above)} of {len(ours.own)} topics: {', '.join(ours.above) or 'none'} (each p = "
        f"{1 / (_draws(ours) + 1):.2g}, not corrected for how many topics there are){_of_the_others(ours)}.",
    ]


def _of_the_others(own: AgainstRandom) -> str:
    """The p values of topics whose cluster is not above every random one."""
    others = ", ".join(f"{topic} {p:.2g}" for topic, p in own.single.items() if topic not in own.above)
    return f"; the others: p = {others}" if others else ""


def _breaking(results: Results, names: Sequence[str]) -> list[str]:
    """Of selectors, those whose clusters the whole model hangs on."""
    effects = results.effects("other_keywords")
    return [own.selector for own in effects if own.selector in names and own.perplexity.estimate >= BROKEN]


def _specific(results: Results) -> list[str]:
    """Selectors whose clusters are unlike random ones and stand out on their own topics."""
    diagonal = _of_columns(results)
    tested = results.against_random()
    return [own.selector for own in tested if own.adjusted < ALPHA and diagonal[own.selector] < ALPHA]


def _of_columns(results: Results) -> dict[str, float]:
    """By selector, the adjusted p value of the diagonal, other keywords."""
    return {effect.selector: effect.adjusted for effect in results.effects("other_keywords")}


def _draws(tested: AgainstRandom) -> int:
    return len(next(iter(tested.null.values())))


def _selectivity(effect: Tested) -> float:
    return effect.selectivity.estimate


def _matched(found: list[AtDamage], level: float) -> str:
    """Who is the most selective at equal cost."""
    reached = [own for own in found if not (own.below or math.isnan(own.selectivity.estimate))]
    if not reached:
        return f"Where plain text's perplexity is up by {level:.0%}: no selector's clusters are measured around that."
    best = max(reached, key=lambda own: own.selectivity.estimate)
    [ours] = [own for own in found if own.selector == OURS]
    better, worse = (
        ", ".join(own.selector for own in reached if beyond(own.above)) or "none"
        for beyond in (lambda above: above.low > 0, lambda above: above.high < 0)
    )
    beside = "" if best is ours else f"; {OURS}: {interval(ours.selectivity)}"
    return (
        f"Where plain text's perplexity is up by {level:.0%}, the most selective is {best.selector}: "
        f"{interval(best.selectivity)} nats{beside}. More selective than "
        f"{ours.selector} (95% intervals of the difference): {better}; less: {worse}. Left out are selectors that do not get "
        "there, or whose smallest clusters already cost more."
    )


def tables(results: Results) -> tuple[Table, ...]:
    """All of them."""
    at_primary = (table(results, setting) for setting in SETTINGS)
    return (*at_primary, *small_tables(results), matched_table(results), null_table(results))


def small_tables(results: Results) -> tuple[Table, ...]:
    """What smaller clusters do to prompts of the keywords that they were selected on, where that was measured."""
    measured = {own["fraction"] for own in results.records if (own["setting"], own["draw"]) == (_SAME, 0)}
    primary = results.head["config"]["primary"]
    return tuple(table(results, _SAME, fraction) for fraction in sorted(measured) if fraction < primary)


def matched_table(results: Results) -> Table:
    """What selectors do where they cost plain text as much."""
    by_selector = zip(*(results.at_damage(level) for level in LEVELS), strict=True)
    rows = {found[0].selector: [(own.selectivity, own.target, own.below) for own in found] for found in by_selector}
    return damage_table("selector", ("selectivity", "target"), rows, ", other keywords")


def table(results: Results, setting: str, fraction: float | None = None) -> Table:
    """What every selector's clusters do to one set of held-out prompts; by default at the primary size."""
    effects = results.effects(setting, fraction)
    head = ("selector", "target", "off topic", "selectivity [95%]", "perplexity", "p (Holm)", "aim met")
    rows = tuple(
        (
            effect.selector,
            f"{effect.target.estimate:.2f}",
            f"{effect.others.estimate:.2f}",
            interval(effect.selectivity),
            f"{effect.perplexity.estimate:+.1%}",
            f"{effect.adjusted:.3f}",
            f"{len(effect.met)} of {len(results.topics)}",
        )
        for effect in effects
    )
    return Table(
        head,
        rows,
        f"{SETTINGS[setting].capitalize()}, {effects[0].neurons} neurons zeroed; drops in nats, means over topics.",
    )


def null_table(results: Results) -> Table:
    """Every selector beside random clusters."""
    diagonal = _of_columns(results)
    rows = tuple(
        (
            own.selector,
            f"{own.mean:.2f}",
            interval(own.random),
            f"{own.adjusted:.2g}",
            f"{diagonal[own.selector]:.2g}",
            f"{len(own.above)} of {len(own.own)}",
            str(_draws(own)),
        )
        for own in results.against_random()
    )
    return Table(
        (
            "selector",
            "selectivity",
            "of random clusters [95%]",
            "p (Holm)",
            "p of the diagonal",
            "above all",
            "draws a topic",
        ),
        rows,
        "Against random clusters with as many neurons in each layer, matched in activation norm: selectivity in nats, means "
        "over topics, other keywords, on the fewer prompts that random clusters are measured on.",
    )


def _caveats(results: Results) -> tuple[str, ...]:
    config, watched = results.head["config"], results.head["watched"]["other_keywords"]
    draws = {own.selector: _draws(own) for own in results.against_random()}
    fewest, n = min(draws.values()), len(results.topics)
    few = ", ".join(f"{watched.count(topic)} of {topic}" for topic in (*results.topics, "plain"))
    return (
        f"{results.head['seconds']} s on {results.head['hardware']}, less what was kept of earlier runs; prompts "
        f"watched: {few}. Intervals are over these few prompts; topics and clusters are held as they are.",
        f"Scores of {config['budget']} forward rows a topic (two-stage, {results.head['semivalue']}), one seed.",
        "Only prompts are kept whose keyword the untouched model gives at least one chance in a hundred: a keyword that "
        "it does not expect cannot fall.",
        "Toxic and harmless comments yield few prompts of few keywords; read their figures as such.",
        f"Random clusters: {draws[OURS]} a topic for {OURS}, {fewest} at least for the others ({fewest * n} over all "
        f"topics). A single topic's p value can lie no lower than {1 / (draws[OURS] + 1):.2g} and {1 / (fewest + 1):.2g}, {n} "
        f"times as high corrected for {n} topics: claims are over all topics together. "
        f"Random clusters are measured on {config['null_watched']} prompts of the topic and as many of others. They hold none "
        "of the cluster's own neurons, so those matched to clusters of the most active neurons are a little less active.",
        f"The guard of guarded selectors is chosen on {config['chosen_on']} selection prompts a topic, for Shapley scores and "
        "for attributions alike.",
        "Comparisons with ours at matched damage are 95% intervals one by one, not corrected for how many they are.",
        *_reduced(config),
    )


def _reduced(config: dict[str, Any]) -> list[str]:
    """What was not measured as published, or not at all."""
    changed = "; ".join(
        f"{name} with " + ", ".join(f"{what} {value}" for what, value in settings.items()).replace("_", " ")
        for name, settings in config["settings"].items()
    )
    left_out = ", ".join(name for name in NAMES if name not in config["selectors"])
    return [
        *([f"Not with their published settings, which would take longer: {changed}."] if changed else []),
        *([f"Not measured: {left_out}."] if left_out else []),
    ]


def verdict(results: Results) -> str:
    """Hypothesis B, in a clause."""
    specific, met = _specific(results), _met(results)
    n, reached = len(results.against_random()), len({topic for *_, topic in met})
    return (
        f"{results.head['model']['name']}: the clusters of {len(specific)} of {n} selectors hurt their own topics more than "
        f"chance allows; the aim is met for {reached} of {len(results.topics)} topics, by any selector at any size"
        f"{_listed(met)}"
    )


def _met(results: Results) -> list[tuple[str, float, str]]:
    """Selector, fraction and topic of every cluster that meets the aim, other keywords."""
    fractions = sorted({fraction for name in results.head["config"]["selectors"] for fraction in results.sizes(name)})
    return [
        (own.selector, fraction, topic)
        for fraction in fractions
        for own in results.effects("other_keywords", fraction)
        for topic in own.met
    ]


def _listed(met: list[tuple[str, float, str]]) -> str:
    clusters = "; ".join(f"{topic} by {selector} with {100 * fraction:g}%" for selector, fraction, topic in met)
    return f" ({clusters})" if clusters else ""


def _at_all_sizes(results: Results) -> str:
    met, n = _met(results), sum(len(results.sizes(name)) for name in results.head["config"]["selectors"])
    caution = ": the best of so many, on a few prompts each" if met else ""
    return (
        f"Of {n * len(results.topics)} clusters of all selectors and sizes, {len(met)} meet the aim with other keywords"
        f"{_listed(met)}{caution}."
    )
