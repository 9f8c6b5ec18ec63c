"""Are neurons the right players? Scores and clusters of directions of other bases of the same activations, beside the neurons'.

    python -m experiments.bases.run --model smollm2 --size cpu

The model computes the same in every basis. Two estimates of the scores are made: by one players are ranked, of the
other their shares are summed, so that the noise of the scores does not look like concentration. Clusters are by the guarded
contrast of the first. Scores, rankings, rows and the learned basis are kept in the cache; a run that was stopped goes on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Parallel, delayed

from experiments.bases.concentration import concentration
from experiments.lab.commands import Measured, run_command
from experiments.lab.measure import Ward
from experiments.lab.models import load, source
from experiments.lab.rankings import ranked
from experiments.lab.scores import SEED, SEMIVALUE, scored
from experiments.lab.texts import Texts, passages
from shapley.clusters import select
from shapley.errors import ShapleyError
from shapley.files import cache_directory
from shapley.hf.bases import RESIDUAL
from shapley.hf.learned import learn
from shapley.hf.load import LanguageModel, load_model
from shapley.impairment import Impairment
from shapley.look.players import Players
from shapley.look.rules import rules
from shapley.look.seen import cut, observed
from shapley.progress import say
from shapley.prompts import Prompt, TopicPrompts
from shapley.selectors.base import Evidence
from shapley.store import ScoreFile
from shapley.types import Site
from shapley.workers import follow

IDENTITY, RANDOM, PCA, LEARNED = "identity", "random", "pca", "learned"
STREAM, STREAM_RANDOM, STREAM_PCA = OF_STREAM = ("stream", "stream-random", "stream-pca")
BASES = (IDENTITY, RANDOM, PCA, LEARNED, *OF_STREAM)
STANDARD = {basis: STREAM if basis in OF_STREAM else IDENTITY for basis in BASES}  # the basis of its site's own columns
DRAWN = (RANDOM, STREAM_RANDOM)
CONCENTRATION, CLUSTER, SIMPLE = "concentration", "cluster", "simple"
UNITS, TOKENS = 64, 32  # whose simplicity is measured, and of a passage
_SELECTOR = "guarded"
_LONGEST_FIRST = (LEARNED, RANDOM, PCA, IDENTITY, *OF_STREAM)  # learning takes time, and so does what is turned


def work(lm: LanguageModel, prompts: Texts, config: Mapping[str, Any], data: Path) -> Measured:
    """All of it, the bases shared among processes."""
    chosen = {topic: prompts.selection[topic].first(config["selection"]) for topic in config["topics"]}
    watched = prompts.watched(config)
    jobs = [(basis, seed) for basis in _LONGEST_FIRST for seed in range(config["seeds"] if basis in DRAWN else 1)]
    parallel = Parallel(n_jobs=config["processes"], backend="loky", batch_size=1)  # loky divides the cores' threads
    measure = delayed(of_basis)
    try:
        found = parallel(
            measure(os.getpid(), lm.name, str(lm.device), *job, chosen, watched, config, data) for job in jobs
        )
    except BrokenProcessPool as error:
        raise ShapleyError("a process was killed: run the command again, which goes on from what is kept") from error
    records = [record for own, _ in found for record in own]
    files = {name: path for _, own in found for name, path in own.items()}
    head = {"seed": SEED, "semivalue": SEMIVALUE, "watched": [prompt.topic for prompt in watched]}
    return Measured(records, head, files)


def of_basis(
    parent: int,
    model: str,
    device: str,
    basis: str,
    seed: int,
    chosen: Mapping[str, TopicPrompts],
    watched: list[Prompt],
    config: Mapping[str, Any],
    data: Path,
) -> tuple[list[dict[str, Any]], dict[str, Path]]:
    """The records of a basis, and the files of its scores; a process of its own goes with its parent."""
    follow(parent)
    say(f"{model}: the basis {basis} {seed}")
    lm, site = in_basis(load(model, device), basis, seed, config["steps"])
    corpus = passages(data)
    scores = [scored(lm, chosen, config["budget"], site=site, seed=own) for own in (SEED, SEED + 1)]
    found = (
        *concentrations(*map(ScoreFile, scores), chosen),
        *clusters(lm, site, scores[0], chosen, watched, config),
        {"what": SIMPLE, "explained": simplicity(lm, site, corpus, config["passages"])},
    )
    records = [{"basis": basis, "seed": seed, **record} for record in found]
    return records, {f"scores {own} of {basis} {seed}": path for own, path in enumerate(scores)}


def in_basis(lm: LanguageModel, basis: str, seed: int, steps: int) -> tuple[LanguageModel, Site]:
    """The model with directions for players, under a name of its own, and the site whose columns they are."""
    site: Site = "mlp_out" if basis in OF_STREAM else "mlp_hidden"
    if basis in (IDENTITY, STREAM):
        return lm, site
    if basis == LEARNED:
        named = str(learned(lm, steps))
    else:
        kind = f"{RANDOM}:{seed}" if basis in DRAWN else PCA
        named = f"{RESIDUAL}{kind}" if basis in OF_STREAM else kind
    turned = load_model(f"{source(lm.name)}@{named}", device=str(lm.device))
    turned.name = f"{lm.name}@{basis}-{steps if basis == LEARNED else seed}"
    return turned, site


def learned(lm: LanguageModel, steps: int) -> Path:
    """The file of the learned basis, in the cache."""
    path = cache_directory("experiments", "bases") / f"{lm.name}-{lm.fingerprint[:12]}-{steps}.safetensors"
    if not path.exists():
        learn(lm, path, steps, SEED)
    return path


def concentrations(one: ScoreFile, other: ScoreFile, chosen: Mapping[str, TopicPrompts]) -> Iterator[dict[str, Any]]:
    """A record a topic."""
    for topic in chosen:
        yield {
            "what": CONCENTRATION,
            "topic": topic,
            "refined": [json.loads(own.attrs(topic)["details"])["refined"] for own in (one, other)],
            **concentration(one[topic].score.ravel(), other[topic].score.ravel()),
        }


def clusters(
    lm: LanguageModel,
    site: Site,
    scores: Path,
    chosen: Mapping[str, TopicPrompts],
    watched: list[Prompt],
    config: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """A record for every topic's cluster of every size: by how much each watched prompt falls when it is zeroed."""
    evidence = Evidence(ScoreFile(scores), lm, dict(chosen), seed=SEED)
    ward = Ward(lm, watched, Impairment("zero", site=site))
    for fraction in config["fractions"]:
        k = max(1, round(fraction * lm.sites.n_layers * lm.sites.width(site)))
        for topic in config["topics"]:
            others = [other for other in config["topics"] if other != topic]
            ranking, guard = ranked(lm, evidence, config, _SELECTOR, topic, others, k)
            drop, _ = ward.drops(select(ranking, top_k=k))
            yield {
                "what": CLUSTER,
                "topic": topic,
                "fraction": fraction,
                "players": k,
                "guard": guard,
                "drop": np.round(drop, 4).tolist(),
            }


def simplicity(lm: LanguageModel, site: Site, corpus: Mapping[str, Sequence[str]], passages: int) -> list[float]:
    """Of some players drawn at random, the shares of their activation's held-out variance that simple rules predict."""
    every = Players(lm, site)
    seen = observed(every, every.sample(UNITS), cut(corpus, lm.tokenizer, TOKENS, passages))
    found = [rule.explained.estimate for rule in rules(seen, SEED)]
    return [round(value, 4) for value in found if np.isfinite(value)]


main = run_command(__file__, __doc__, work)

if __name__ == "__main__":
    main()
