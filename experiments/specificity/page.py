"""The experiment's part of the report, from its stored results."""

from __future__ import annotations

from pathlib import Path

from experiments.lab.effects import SHARE, TARGET
from experiments.lab.page import Picture, Section, Table, stored
from experiments.specificity.summary import SETTINGS, Results, Tested

HERE = Path(__file__).parent
BROKEN = 0.5  # rise of plain text's perplexity from which on a cluster is one that the whole model hangs on
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
        "null": "The selectivity of each topic's cluster against random clusters of as many neurons in each layer, matched in "
        "activation norm; p by Holm over topics.",
        "sizes": "The same with clusters of 0.01% to 3% of all neurons.",
    }
    return Section(
        f"specificity: {head['model']['name']}",
        "Does impairing a topic's cluster hurt that topic, and no other?",
        (
            *(_answer(results, setting) for setting in SETTINGS),
            *(_against_random(results, who) for who in _nulls(results)),
        ),
        tuple(Picture(HERE / "figures" / f"{name}-{part}.png", text) for part, text in pictures.items()),
        tuple(table(results, setting) for setting in SETTINGS),
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


def _nulls(results: Results) -> list[str]:
    return [name for name in results.head["config"]["random_for"] if results.null(name)]


def _against_random(results: Results, selector: str) -> str:
    """For which topics no random cluster is as selective."""
    found = results.null(selector)
    above = [topic for topic, (own, null, _) in found.items() if own > null.max()]
    draws = results.head["config"]["null_draws"]
    return (
        f"Against {draws} random clusters matched in layers and activation norm, the clusters of {selector} are "
        f"more selective than every one for {len(above)} of {len(found)} topics: {', '.join(above) or 'none'}."
    )


def _selectivity(effect: Tested) -> float:
    return effect.selectivity.estimate


def table(results: Results, setting: str) -> Table:
    """What every selector's clusters do to one set of held-out prompts."""
    effects = results.effects(setting)
    head = ("selector", "target", "off topic", "selectivity [95%]", "perplexity", "p (Holm)", "aim met")
    rows = tuple(
        (
            effect.selector,
            f"{effect.target.estimate:.2f}",
            f"{effect.others.estimate:.2f}",
            f"{effect.selectivity.estimate:.2f} [{effect.selectivity.low:.2f}, {effect.selectivity.high:.2f}]",
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


def _caveats(results: Results) -> tuple[str, ...]:
    config, watched = results.head["config"], results.head["watched"]["other_keywords"]
    few = ", ".join(f"{watched.count(topic)} of {topic}" for topic in (*results.topics, "plain"))
    return (
        f"{results.head['seconds']} s on {results.head['hardware']}; prompts watched: {few}. Intervals are over these few "
        "prompts; topics and clusters are held as they are.",
        f"Scores of {config['budget']} forward rows a topic (two-stage, {results.head['semivalue']}), one seed.",
        "Only prompts are kept whose keyword the untouched model gives at least one chance in a hundred: a keyword that "
        "it does not expect cannot fall.",
        "Toxic and harmless comments yield few prompts of few keywords; read their figures as such.",
        f"Against random clusters, with {config['null_draws']} draws and Holm over {len(results.topics)} topics, no p "
        f"value can lie below {len(results.topics) / (config['null_draws'] + 1):.3f}: no topic is significant alone.",
        "The guard of guarded selectors is chosen on the selection prompts, for Shapley scores and for attributions alike.",
    )
