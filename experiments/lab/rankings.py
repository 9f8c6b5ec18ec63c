"""The rankings that experiments compare, kept in the cache: some look into the model for minutes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from experiments.lab.measure import Ward
from shapley.clusters import Ranking
from shapley.files import atomic_path, cache_directory, digest
from shapley.hf.load import LanguageModel
from shapley.selectors import selector
from shapley.selectors.base import Evidence, Selector
from shapley.selectors.choose import GUARDS, choose_guard

_GUARDED = ("guarded", "interval", "guarded-attribution")


def ranked(
    lm: LanguageModel,
    evidence: Evidence,
    config: Mapping[str, Any],
    name: str,
    topic: str,
    others: Sequence[str],
    k: int,
) -> tuple[Ranking, float | None]:
    """A selector's ranking for a topic, and the guard, which is chosen on the selection prompts for clusters of ``k``, for
    Shapley scores and for attributions alike."""
    key = digest(
        *(
            str(part).encode()
            for part in (
                lm.fingerprint,
                name,
                topic,
                others,
                evidence.seed,
                [(own.topic, own.sha256) for own in evidence.prompts.values()],
                _of_scores(evidence, config) if selector(name).reads == "scores" else None,
                (k, config["chosen_on"]) if name in _GUARDED else config.get("settings", {}).get(name),
            )
        )
    )
    path = cache_directory("experiments", "rankings") / f"{lm.name}-{name}-{topic}-{key[:12]}.npz"
    if not path.exists():
        guard = _guard(lm, evidence, config, name, topic, others, k) if name in _GUARDED else None
        settings = config.get("settings", {}).get(name, {}) if guard is None else {"guard": guard}
        chosen: Selector = replace(selector(name), **settings)
        ranking = chosen.rank(evidence, topic, others)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, score=ranking.score, stderr=ranking.stderr, guard=np.nan if guard is None else guard)
    with np.load(path) as kept:
        guard = float(kept["guard"])
        return Ranking(kept["score"], kept["stderr"]), None if np.isnan(guard) else guard


def _guard(
    lm: LanguageModel,
    evidence: Evidence,
    config: Mapping[str, Any],
    name: str,
    topic: str,
    others: Sequence[str],
    k: int,
) -> float:
    rankings = {guard: replace(selector(name), guard=guard).rank(evidence, topic, others) for guard in GUARDS}
    prompts = {other: own.first(config["chosen_on"]) for other, own in evidence.prompts.items()}
    site = evidence.score_file(name).attrs(topic)["site"] if selector(name).reads == "scores" else "mlp_hidden"
    intact = Ward(lm, [prompt for own in prompts.values() for prompt in own.prompts]).values(())[0]
    return choose_guard(lm, prompts, topic, rankings, k, site=site, intact=intact).guard


def _of_scores(evidence: Evidence, config: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(evidence.score_file("scores").attrs(topic)["settings"] for topic in config["topics"])
