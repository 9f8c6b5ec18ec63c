"""What keeps clusters from being specific, and does impairment by degrees stay on topic? One thing is varied at a time.

    python -m experiments.variations.run --model smollm2 --size cpu

The reference is what `specificity` measures: neurons by the guarded contrast of their scores, zeroed everywhere. Prompts are of
other documents and other keywords than selected on. What is kept in the cache is not measured again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.lab.commands import Measured, run_command
from experiments.lab.measure import Ward
from experiments.lab.rankings import ranked
from experiments.lab.scores import SEED, scored
from experiments.lab.texts import PLAIN, Texts
from experiments.variations.active import values_where_active
from experiments.variations.arms import Arm, arms_of, selection
from shapley.clusters import Cluster, select
from shapley.footprint import footprint
from shapley.hf.load import LanguageModel
from shapley.impairment import NOISE_KINDS, Impairment
from shapley.keyed import keyed_rng
from shapley.progress import Progress
from shapley.prompts import Prompt, TopicPrompts
from shapley.selectors.base import Evidence
from shapley.store import ScoreFile
from shapley.types import FloatArray

WHOLE, FIRST, SECOND = "whole", "first half", "second half"
_REFERENCE_PROMPTS = 12  # of each other topic, whose tokens say when a neuron is active


@dataclass(frozen=True)
class Task:
    """A cluster to be impaired: of an arm's, or a half of one; wholly, or by degrees."""

    arm: str
    topic: str
    fraction: float
    part: str
    cluster: Cluster
    guard: float | None
    impairment: Impairment


def work(lm: LanguageModel, prompts: Texts, config: Mapping[str, Any], data: Path) -> Measured:
    """All of it."""
    chosen = selection(prompts, config)
    semivalues = sorted({arm.semivalue for arm in arms_of(config).values()})
    scores = {semivalue: scored(lm, chosen, config["budget"], semivalue) for semivalue in semivalues}
    watched = prompts.watched(config)
    head = {"seed": SEED, "watched": [prompt.topic for prompt in watched]}
    records = list(measure(lm, chosen, watched, {name: ScoreFile(path) for name, path in scores.items()}, config))
    return Measured(records, head, {f"scores, {semivalue}": path for semivalue, path in scores.items()})


def measure(
    lm: LanguageModel,
    chosen: Mapping[str, TopicPrompts],
    watched: list[Prompt],
    scores: Mapping[str, ScoreFile],
    config: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """A record for every cluster and impairment."""
    arms = arms_of(config)
    tasks = list(plan(lm, chosen, scores, config))
    wards: dict[str, Ward] = {}
    progress = Progress(len(tasks), f"variations on {lm.name}", "clusters")
    for done, task in enumerate(tasks):
        progress.reach(done)
        key = task.impairment.to_json()
        if key not in wards:
            wards[key] = Ward(lm, watched, task.impairment, config["draws"])
        ward, above = wards[key], arms[task.arm].above
        if above is None:
            drops = ward.drops(task.cluster)
        else:
            reference = [
                own.first(_REFERENCE_PROMPTS) for topic, own in chosen.items() if topic not in (task.topic, PLAIN)
            ]
            drops = ward.values(()) - values_where_active(
                lm, watched, task.cluster, task.impairment.kind, reference, above
            )
        yield _record(task, drops)
    progress.reach(len(tasks))
    progress.close()


def plan(
    lm: LanguageModel,
    chosen: Mapping[str, TopicPrompts],
    scores: Mapping[str, ScoreFile],
    config: Mapping[str, Any],
) -> Iterator[Task]:
    """What to measure: every arm at every size; of some, their halves; of one, its clusters by degrees."""
    dial = config["dial"]
    shared: dict[tuple[str, bool], Evidence] = {}
    for name, arm in arms_of(config).items():
        topics = [*config["topics"], *([PLAIN] if arm.plain else ())]
        evidence = shared.setdefault(
            (arm.semivalue, arm.plain),
            Evidence(scores[arm.semivalue], lm, {topic: chosen[topic] for topic in topics}, seed=SEED),
        )
        wholly = Impairment(arm.kind, site=arm.site, seed=SEED)
        for fraction in config["fractions"]:
            for topic in config["topics"]:
                cluster, guard = cluster_of(lm, evidence, config, arm, topic, fraction)
                yield Task(name, topic, fraction, WHOLE, cluster, guard, wholly)
                if fraction != config["primary"]:
                    continue
                if name in config["halved"]:
                    for part, half in zip((FIRST, SECOND), halves(cluster, topic), strict=True):
                        yield Task(name, topic, fraction, part, half, guard, wholly)
                if name == dial["arm"]:
                    for kind, strengths in dial["kinds"].items():
                        unit = "sd" if kind in NOISE_KINDS else "absolute"
                        for strength in strengths:
                            impairment = Impairment(kind, strength, site=arm.site, unit=unit, seed=SEED)
                            yield Task(name, topic, fraction, WHOLE, cluster, guard, impairment)


def cluster_of(
    lm: LanguageModel, evidence: Evidence, config: Mapping[str, Any], arm: Arm, topic: str, fraction: float
) -> tuple[Cluster, float | None]:
    """An arm's cluster of a topic, and its guard."""
    k = max(1, round(fraction * lm.sites.n_layers * lm.sites.d_mlp))
    others = [other for other in evidence.topics if other != topic]
    ranking, guard = ranked(lm, evidence, {**config, "topics": evidence.topics}, arm.selector, topic, others, k)
    return footprint(lm, Cluster(select(ranking, top_k=k)), arm.site), guard


def halves(cluster: Cluster, topic: str) -> tuple[Cluster, Cluster]:
    """Two random halves."""
    order = keyed_rng(SEED, "halves", topic).permutation(len(cluster))
    first, second = (
        Cluster(tuple(cluster.neurons[i] for i in half), cluster.site) for half in np.array_split(order, 2)
    )
    return first, second


def _record(task: Task, drops: FloatArray) -> dict[str, Any]:
    drop, accuracy = drops
    return {
        "arm": task.arm,
        "topic": task.topic,
        "fraction": task.fraction,
        "part": task.part,
        "kind": task.impairment.kind,
        "strength": task.impairment.strength,
        "columns": len(task.cluster),
        "guard": task.guard,
        "drop": np.round(drop, 4).tolist(),
        "accuracy_drop": np.round(accuracy, 4).tolist(),
    }


main = run_command(__file__, __doc__, work)

if __name__ == "__main__":
    main()
