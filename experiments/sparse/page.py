"""The experiment's part of the report, and its table, from its stored results."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from experiments.lab.page import Picture, Section, Table, quartiles, stored
from experiments.sparse.summary import AT_INFERENCE, Results
from shapley.shape import Interval

HERE = Path(__file__).parent
PLACE_NAMES = {"replace": "in place of the last MLP", "add": "after the last block"}
BASE, PLAIN_RULE = "dense", "top-k"  # which arms are held against
_USAGE = (("density", ".1%"), ("entropy", ".2f"), ("dead", ".1%"))  # and how they are shown


def sections() -> list[Section]:
    """One for each model that was measured."""
    return [section(Results.read(path), path.stem) for path in stored(__file__)]


def section(results: Results, name: str) -> Section:
    config = results.head["config"]
    return Section(
        f"sparse: {results.head['model']['name']}",
        "What does a sparse MLP layer cost, in place of the last block's or after it, and does boosting keep its units in use?",
        tuple(_found(results, place) for place in results.places),
        (
            Picture(
                HERE / "figures" / f"{name}-curves.png",
                f"Held-out loss above the original model's as the layer is trained{_more(results)}; bands: all seeds. Dotted: "
                "the original.",
            ),
            Picture(
                HERE / "figures" / f"{name}-usage.png",
                "At what share of the training tokens each unit is active after training, with as many winners as in it, mean "
                "over seeds. Dotted: the target.",
            ),
        ),
        (arms_table(results),),
        (
            f"{results.seconds} s of training on {results.head['hardware']}; "
            f"{len(config['seeds'])} seeds, {len(results.head['original']['losses'])} held-out documents. Intervals hold the "
            "seeds as they are.",
            "The layers saw few tokens, and the original's MLP was trained on a great many: the costs are of that training, "
            "not of sparsity alone. Compare arms with each other, at equal tokens.",
            "One rate of learning, tuned for none of the arms, trains them all, and what an arm writes is scaled by its number "
            "of winners: another rate may order them otherwise.",
            "How simple units are is of the text that was trained on (rules fitted to half of its documents, scored on the "
            "others), of some units drawn from those that are ever active.",
        ),
        results.head["command"],
    )


def _found(results: Results, place: str) -> str:
    costs = ", ".join(f"{arm} {shown(results.cost(place, arm))}" for arm in results.arms)
    used = ", ".join(
        f"{arm} {results.mean(place, arm, 'dead'):.1%} and {results.mean(place, arm, 'entropy'):.2f}"
        for arm in results.arms
    )
    more = "".join(
        f" With more winners at inference {arm} is {shown(results.cost(place, arm, AT_INFERENCE))}."
        for arm in results.arms
        if results.raises_k(arm)
    )
    return (
        f"{PLACE_NAMES[place][0].upper()}{PLACE_NAMES[place][1:]}: loss above the original's, nats a token: {costs}.{more} "
        f"Dead units and duty-cycle entropy: {used}."
    )


def _more(results: Results) -> str:
    """What to say of arms with more winners at inference, where their losses are those."""
    raised = [arm for arm in results.arms if results.raises_k(arm)]
    arms = [f"{arm} with {results.factor(arm):g} times the winners" for arm in raised]
    return f" ({', '.join(arms)}, as at inference; crosses: with as many as in training)" if arms else ""


def arms_table(results: Results) -> Table:
    rows = []
    for place in results.places:
        for arm in results.arms:
            costs = results.costs(place, arm)
            first = results.of(place, arm)[0]
            rows.append(
                (
                    place,
                    arm,
                    f"{first['units']:,}",
                    f"{first['parameters']:,}",
                    shown(results.cost(place, arm)),
                    f"{min(costs):+.3f} to {max(costs):+.3f}",
                    *(_against(results, place, arm, other) for other in (BASE, PLAIN_RULE)),
                    shown(results.cost(place, arm, AT_INFERENCE)) if results.raises_k(arm) else "-",
                    *(_usage(results, place, arm, name, shape) for name, shape in _USAGE),
                    quartiles(results.simple(place, arm)),
                )
            )
    tokens = round(max(record["curve"][-1]["tokens"] for record in results.records), -2)
    without = ""
    if "replace" in results.places:
        start = results.curve("replace", results.arms[0])[1][0, 0]
        without = f", {start:+.3f} where the last MLP writes nothing (the start of `replace`)"
    return Table(
        (
            "place",
            "arm",
            "units",
            "parameters not zero",
            "loss above the original's [95%]",
            "by seed",
            *(f"above {other} [95%]" for other in (BASE, PLAIN_RULE)),
            "with more winners at inference [95%]",
            "units active",
            "duty-cycle entropy",
            "dead units",
            "simple: median [quartiles]",
        ),
        tuple(rows),
        f"After some {tokens:,} tokens; losses in nats a held-out token, mean over seeds. The original: "
        f"{results.original:.3f}, {results.head['original']['parameters']:,} parameters in its last MLP{without}. "
        "All is with as many winners as in training, but for the column that says so and usage in brackets. Simple: the "
        "share of a unit's variance that rules of the token, the one before it and the topic predict (docs/neurons.md); of "
        f"the last MLP's own neurons {quartiles(np.array(results.head['original']['simple']))}.",
    )


def _usage(results: Results, place: str, arm: str, name: str, shape: str) -> str:
    """With as many winners as in training; where more win at inference, with those in brackets."""
    own = f"{results.mean(place, arm, name):{shape}}"
    return f"{own} ({results.mean(place, arm, name, AT_INFERENCE):{shape}})" if results.raises_k(arm) else own


def _against(results: Results, place: str, arm: str, other: str) -> str:
    """What an arm costs above another, unless they are the same, or it is what that one is held against."""
    compared = other in results.arms and arm not in (BASE, other)
    return shown(results.against(place, arm, other)) if compared else "-"


def shown(interval: Interval) -> str:
    return f"{interval.estimate:+.3f} [{interval.low:+.3f}, {interval.high:+.3f}]"
