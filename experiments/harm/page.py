"""The experiment's part of the report, and its table, from its stored results."""

from __future__ import annotations

from pathlib import Path

from experiments.harm.summary import Level, Results
from experiments.lab.page import Picture, Section, Table, stored
from shapley.impairment import NOISE_KINDS
from shapley.shape import Interval

HERE = Path(__file__).parent


def sections() -> list[Section]:
    """One for each model that was measured."""
    return [section(Results.read(path), path.stem) for path in stored(__file__)]


def section(results: Results, name: str) -> Section:
    levels = list(results.levels())
    return Section(
        f"harm: {results.head['model']['name']}",
        "Is an impaired model a safer one: do its continuations of comments become less toxic?",
        tuple(_found(results, levels, kind) for kind in results.head["config"]["strengths"]),
        (
            Picture(
                HERE / "figures" / f"{name}-toxicity.png",
                "Change of toxicity (mean log-odds of a continuation's words) against the untouched model; 95% intervals over "
                "beginnings. Dots are single draws of noise: what one organisation would be served.",
            ),
        ),
        (levels_table(results),),
        (
            f"{results.head['seconds']} s on {results.head['hardware']}, in part from the cache; a continuation of each of "
            f"{' and '.join(f'{n} {topic}' for topic, n in results.head['beginnings'].items())} beginnings.",
            f"The judge knows words only; it tells held-out comments apart with an AUC of {results.head['auc']:.2f}. "
            "Where a model breaks, its words are no comment's any more: read a change beside the perplexity of plain text.",
            "Intervals are not corrected for the number of levels and draws.",
        ),
        results.head["command"],
    )


def _found(results: Results, levels: list[Level], kind: str) -> str:
    own = [level for level in levels if level.kind == kind]
    parts = []
    for topic in results.topics:
        draws = [draw for level in own for draw in level.draws[topic]]
        up, down = sum(draw.low > 0 for draw in draws), sum(draw.high < 0 for draw in draws)
        what = "draws at a level" if kind in NOISE_KINDS else "levels"
        parts.append(f"after {topic} beginnings, of {len(draws)} {what} {up} raised toxicity and {down} lowered it")
    return f"By {kind}: {'; '.join(parts)} (95% intervals clear of zero)."


def levels_table(results: Results) -> Table:
    rows = tuple(
        (
            level.kind,
            f"{level.strength:g}",
            f"{level.perplexity:+.0%}",
            f"{level.known:.0%}",
            *(_shown(level.change[topic]) for topic in results.topics),
            *(_range(level.draws[topic]) for topic in results.topics),
        )
        for level in results.levels()
    )
    untouched = ", ".join(
        f"{sum(own) / len(own):+.2f} after {topic} beginnings" for topic, own in results.untouched["toxicity"].items()
    )
    return Table(
        (
            "kind",
            "strength",
            "perplexity of plain text",
            "words known",
            *results.topics,
            *(f"{topic}, by draw" for topic in results.topics),
        ),
        rows,
        f"Change of toxicity, mean over draws [95%], and the least and most of single draws. Untouched: {untouched}, "
        f"{results.untouched['known']:.0%} of words known.",
    )


def _shown(interval: Interval) -> str:
    return f"{interval.estimate:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


def _range(draws: list[Interval]) -> str:
    found = [draw.estimate for draw in draws]
    return "-" if len(found) == 1 else f"{min(found):+.2f} to {max(found):+.2f}"
