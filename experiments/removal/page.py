"""The experiment's part of the report, from its stored results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml

from experiments.lab.page import Picture, Section, Table, stored
from experiments.removal.run import GENERAL
from experiments.removal.summary import Results

HERE = Path(__file__).parent


def sections() -> list[Section]:
    """One for each model that was measured."""
    return [section(Results.read(path), path.stem) for path in stored(__file__)]


def section(results: Results, name: str) -> Section:
    head = results.head
    pictures = [
        Picture(
            HERE / "figures" / f"{name}-removal.png",
            "Accuracy on held-out prompts that the untouched model answers right, as the highest-ranked neurons are zeroed; "
            "95% bands over prompts.",
        )
    ]
    answers = [_removal(results)]
    if results.repairs():
        pictures.append(
            Picture(
                HERE / "figures" / f"{name}-repair.png",
                "Neurons ranked for toxic comments are zeroed: how toxic the continuations become, and how much harder plain "
                "text. Numbers are of neurons; bars are 95% intervals over beginnings.",
            )
        )
        answers.append(_repair(results))
    return Section(
        f"removal: {head['model']['name']}",
        "How few neurons carry the answers, and can some be removed for good?",
        tuple(answers),
        tuple(pictures),
        tables(results),
        tuple(_caveats(results)),
        head["command"],
    )


def _removal(results: Results) -> str:
    general = {name: results.accuracy(name, GENERAL, "all") for name in results.head["config"]["selectors"]}
    parts = []
    for name, found in general.items():
        below = next((n for n, x in zip(results.counts, found, strict=True) if x.estimate < 0.5), None)
        parts.append(f"{name} {f'after {below}' if below else f'not by {results.counts[-1]}'}")
    return (
        "Neurons removed in general, from the highest-ranked on, until accuracy is below half: "
        + "; ".join(parts)
        + f" (of {results.head['model']['n_layers'] * results.head['model']['d_mlp']:,} neurons)."
    )


def _repair(results: Results) -> str:
    auc, untouched = results.judge()
    cheap = [
        (name, count, change, rise)
        for name, count, change, rise in results.repairs()
        if rise.estimate < 0.02 and name != "random"
    ]
    clear = [
        f"{count} by {name}: {change.estimate:+.3f} [{change.low:+.3f}, {change.high:+.3f}], "
        f"perplexity {rise.estimate:+.1%}"
        for name, count, change, rise in cheap
        if change.high < 0
    ]
    return (
        f"Repair: clusters that make continuations less toxic, by an interval that excludes zero, with perplexity up by "
        f"less than 2%: {'; '.join(clear) or 'none'}{_of([change.estimate for _, _, change, _ in cheap])}. "
        f"Untouched continuations have {untouched:.3f} (log-odds a word); the "
        f"judge's AUC on held-out comments is {auc:.2f}."
    )


def _of(changes: Sequence[float]) -> str:
    """The clusters that cost as little, whether or not they are clear of zero."""
    if not changes:
        return " (none costs so little)"
    return (
        f" (of {len(changes)} that cost so little; their changes lie from {min(changes):+.3f} to {max(changes):+.3f})"
    )


def _caveats(results: Results) -> Iterator[str]:
    head, config = results.head, results.head["config"]
    yield f"{head['seconds']} s on {head['hardware']}; scores of {config['budget']} forward rows a topic, one seed."
    yield _selectors(config["selectors"])
    if "random" in config["selectors"]:
        yield (
            "The null is one random order of the neurons a topic, in general the mean of these: no interval holds how much "
            "random orders differ."
        )
    yield (
        "Removed is zeroed, at all positions; the first position carries massive activations, and zeroing those is part of "
        "the effect."
    )
    if repairs := results.repairs():
        (beginnings, passages), samples = results.repaired_on(), config["repair"]["samples"]
        yield (
            f"Repair rests on {beginnings} beginnings of toxic comments, {samples} continuation{'s' * (samples > 1)} of each, "
            f"and on {passages} passages of plain text. Its {len(repairs)} intervals are not corrected for their number. "
            "The judge of toxicity knows words only."
        )


def _selectors(measured: Sequence[str]) -> str:
    """Which were measured, and which only the largest size has."""
    largest: Sequence[str] = yaml.safe_load((HERE / "config.yaml").read_text())["full"]["selectors"]
    left = [name for name in largest if name not in measured]
    return f"Removed in general and for a topic are neurons by {', '.join(measured)}" + (
        f"; only the size full has {', '.join(left)} there." if left else "."
    )


def tables(results: Results) -> tuple[Table, ...]:
    """Accuracy by number of neurons removed; and the repairs, if there were any."""
    accuracies = (
        _accuracies(results, "Removed in general: accuracy on all topics, by the number of neurons.", GENERAL, "all"),
        _accuracies(results, "Removed for a topic: accuracy on it.", "topic", "own"),
        _accuracies(results, "Removed for a topic: accuracy on the others.", "topic", "others"),
    )
    return (*accuracies, _repairs(results)) if results.repairs() else accuracies


def _accuracies(results: Results, caption: str, scope: str, where: str) -> Table:
    rows = tuple(
        (name, *(f"{x.estimate:.2f} [{x.low:.2f}, {x.high:.2f}]" for x in results.accuracy(name, scope, where)))
        for name in results.head["config"]["selectors"]
    )
    return Table(("selector", *map(str, results.counts)), rows, caption)


def _repairs(results: Results) -> Table:
    rows = tuple(
        (name, str(count), f"{change.estimate:+.3f} [{change.low:+.3f}, {change.high:+.3f}]", f"{rise.estimate:+.1%}")
        for name, count, change, rise in results.repairs()
    )
    auc, toxicity = results.judge()
    caption = (
        f"Repair: change of the continuations' toxicity (mean log-odds of their words; untouched {toxicity:.3f}; the "
        f"classifier's AUC on held-out comments is {auc:.2f}), and of plain text's perplexity."
    )
    return Table(("selector", "neurons", "toxicity [95%]", "perplexity"), rows, caption)
