"""Hypothesis A, measured: does a model degrade smoothly as it is impaired by degrees? And the three original tests.

    python -m experiments.impairment_curves.run --model smollm2 --size cpu

Clusters are chosen on one set of prompts and impaired, from not at all to wholly, on others. Scores and sweeps are kept in the
cache; a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.impairment_curves.originals import ORIGINALS, clusters_of, watched
from experiments.impairment_curves.shapes import records_of
from experiments.lab.commands import Measured, run_command
from experiments.lab.scores import SEED, SEMIVALUE, scored
from experiments.lab.texts import Texts
from shapley import __version__
from shapley.clusters import Cluster
from shapley.files import cache_directory, digest
from shapley.hf.load import LanguageModel
from shapley.impairment import NOISE_KINDS, Impairment
from shapley.prompts import TopicPrompts
from shapley.records import EVERYTHING, Sweep
from shapley.store import ScoreFile
from shapley.sweeps import sweep
from shapley.types import Kind, Site


def work(lm: LanguageModel, prompts: Texts, config: Mapping[str, Any], data: Path) -> Measured:
    """All of it."""
    scores = scored(lm, {topic: prompts.selection[topic] for topic in config["topics"]}, config["budget"])
    records = list(measure(lm, prompts, ScoreFile(scores), config))
    return Measured(records, {"seed": SEED, "semivalue": SEMIVALUE}, {"scores": scores})


def measure(
    lm: LanguageModel, prompts: Texts, scores: ScoreFile, config: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    """The records of every test, site and kind (``shapes.records_of``)."""
    for number, sites in config["tests"].items():
        original = ORIGINALS[number]
        topics = watched(prompts, original, config)
        clusters = {**clusters_of(lm, scores, original, config), EVERYTHING: None}
        floors = floors_of(lm, topics)
        for site in sites:
            for kind in (kind for kind in original.kinds if kind in config["kinds"]):
                found = swept(
                    lm, topics, clusters, *impairment_of(kind, site, config), config["seeds"], config["random"]
                )
                for record in records_of(found, floors):
                    yield {"test": number, "kind": kind, "site": site, **record}


def impairment_of(kind: Kind, site: Site, config: Mapping[str, Any]) -> tuple[Impairment, Sequence[float]]:
    """A kind at a site, and its strengths: of noise in standard deviations of the site."""
    if kind in NOISE_KINDS:
        return Impairment(kind, site=site, unit="sd", seed=SEED), config["strengths"]["noise"]
    return Impairment(kind, site=site, seed=SEED), config["strengths"][kind]


def floors_of(lm: LanguageModel, topics: Mapping[str, TopicPrompts]) -> dict[str, float]:
    """By topic, what counts as nothing left: the mean log-probability with all neurons scaled to zero."""
    zero = swept(lm, topics, {EVERYTHING: None}, Impairment("scale", seed=SEED), [1.0])
    return {topic: float(zero.metric(topic, EVERYTHING)[-1].mean()) for topic in topics}


def swept(
    lm: LanguageModel,
    topics: Mapping[str, TopicPrompts],
    clusters: Mapping[str, Cluster | None],
    impairment: Impairment,
    strengths: Sequence[float],
    n_seeds: int = 1,
    n_random: int = 0,
) -> Sweep:
    """A sweep, from the cache if it is there: its file is named by all that its numbers depend on."""
    key = digest(
        *(
            str(part).encode()
            for part in (
                __version__,
                lm.fingerprint,
                [(topic, own.sha256) for topic, own in topics.items()],
                [(name, cluster and cluster.neurons) for name, cluster in clusters.items()],
                impairment.to_json(),
                strengths,
                n_seeds,
                n_random,
            )
        )
    )
    name = f"{lm.name}-{impairment.kind}-{impairment.site}-{key[:12]}.h5"
    return sweep(
        lm,
        topics,
        clusters,
        impairment,
        strengths,
        cache_directory("experiments", "sweeps") / name,
        n_seeds=n_seeds,
        n_random=n_random,
        resume=True,
    )


main = run_command(__file__, __doc__, work)

if __name__ == "__main__":
    main()
