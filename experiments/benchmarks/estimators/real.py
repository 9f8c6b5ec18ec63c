"""SmolLM2-135M, all 46,080 neurons, three topics: recall of the top 100 against a long run of the same game, and what
sampling permutations would need for as much.

    python experiments/benchmarks/estimators/real.py [--topics athlete,artist] [--reference 48000] [--rows 3072,12288]

Every run is a score file in the cache and is kept; give the command again to go on. The reference is a two-stage run with
another seed and a budget that its name states; it shares no coalition with the runs that are held against it. Sixteen
prompts a topic, Beta(1, 16)-Shapley (94% intact on average, as in the demo), zero ablation. On one core a thousand rows
take forty seconds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from trained import cache_folder

from shapley.builder import build_prompts, read_corpus
from shapley.demo import TOPICS
from shapley.estimators.registry import Plan
from shapley.game import NeuronGame
from shapley.hf.load import DEMO_MODEL, LanguageModel, load_model
from shapley.prompts import TopicPrompts, read_prompts, write_prompts
from shapley.runs import estimate
from shapley.store import ScoreFile

K = 100
N_PROMPTS = 16
SEMIVALUE = "beta(1,16)"
REFERENCE_SEED = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "real.md")
    parser.add_argument("--topics", default=",".join(TOPICS))
    parser.add_argument("--reference", type=int, default=48_000, help="forward rows of the reference, a topic")
    parser.add_argument("--rows", default="3072,12288", help="budgets to try")
    parser.add_argument("--estimators", default="two-stage,gradient")
    options = parser.parse_args()
    lm = load_model(DEMO_MODEL)
    lines, notes = [], []
    for topic in options.topics.split(","):
        folder = cache_folder() / "real" / topic
        folder.mkdir(parents=True, exist_ok=True)
        prompts = prompts_of(lm, folder.parent)[topic]
        reference = run(lm, prompts, folder, "two-stage", options.reference, REFERENCE_SEED)
        notes.append(describe(reference, topic))
        for estimator in options.estimators.split(","):
            for rows in map(int, options.rows.split(",")):
                lines.append(compare(run(lm, prompts, folder, estimator, rows, 0), reference, topic, estimator))
        lines.append(attribution_patching(lm, prompts, reference, topic))
        lines += [sampling(reference, topic, marginals) for marginals in (256, 1024, 2048)]
        write_table(lines, notes, options.out)


def prompts_of(lm: LanguageModel, out: Path) -> dict[str, TopicPrompts]:
    """The demo's selection prompts, the first sixteen of each topic."""
    path = out / "prompts.jsonl"
    if not path.exists():
        side = build_prompts(
            read_corpus("embedded"),
            TOPICS,
            lambda text: len(lm.tokenizer(text)["input_ids"]),
            max_sentences=1,
            max_tokens=32,
        )[0]
        write_prompts(path, [x for topic in TOPICS for x in [p for p in side if p.topic == topic][:N_PROMPTS]])
    return read_prompts(path)


def run(lm: LanguageModel, prompts: TopicPrompts, folder: Path, estimator: str, rows: int, seed: int) -> ScoreFile:
    top_k = K if estimator == "two-stage" else None
    plan = Plan(estimator=estimator, semivalue=SEMIVALUE, budget=rows, seed=seed, top_k=top_k)
    out = folder / f"{estimator}-{rows}-seed{seed}.h5"
    return estimate(lm, {prompts.topic: prompts}, out, plan=plan, resume=True)


def compare(scores: ScoreFile, reference: ScoreFile, topic: str, name: str) -> dict[str, Any]:
    attrs = scores.attrs(topic)
    found = measures(scores.array(topic, "score"), reference.array(topic, "score"))
    return {"topic": topic, "estimator": name, "rows": attrs["forward_rows"], **found}


def sampling(reference: ScoreFile, topic: str, marginals: int) -> dict[str, Any]:
    """What so many marginals of *every* player would give, one forward row each: extrapolated. The reference's scores plus
    normal noise of the standard deviation of a row's sample, as the reference saw it; its rows are stratified, antithetic
    and (for most players) gradients, which vary less than marginals do, so this flatters permutations and TMAB."""
    score, stderr, count = (reference.array(topic, name).ravel() for name in ("score", "stderr", "count"))
    a_row = stderr * np.sqrt(16.0 * count)
    rng = np.random.default_rng(0)
    draws = [measures(score + rng.normal(size=len(score)) * a_row / np.sqrt(marginals), score) for _ in range(8)]
    mean = {name: float(np.mean([draw[name] for draw in draws])) for name in draws[0]}
    return {"topic": topic, "estimator": "permutations, extrapolated", "rows": marginals * len(score), **mean}


def describe(reference: ScoreFile, topic: str) -> str:
    """The reference's cost, audit and own reliability."""
    attrs, replicates = reference.attrs(topic), reference.array(topic, "replicates").reshape(16, -1)
    halves = [set(np.argsort(-replicates[part::2].mean(axis=0))[:K].tolist()) for part in (0, 1)]
    score, stderr = (reference.array(topic, name).ravel() for name in ("score", "stderr"))
    rng = np.random.default_rng(0)
    again = [measures(score + stderr * rng.normal(size=len(score)), score) for _ in range(20)]
    details = json.loads(attrs["details"])
    return (
        f"{topic}: reference {attrs['forward_rows']} rows, {attrs['wall_seconds']:.0f} s, {details['refined']} players refined,"
        f" audited bias {details['audit']['bias_rms']:.4f} (largest {details['audit']['bias_bound']:.4f}), the score at "
        f"place {K} {np.sort(score)[-K]:.4f}; its halves share {len(halves[0] & halves[1])} of {K}; by its standard errors "
        f"another such run would have recall {np.mean([x['recall'] for x in again]):.2f} and error "
        f"{np.mean([x['error'] for x in again]):.2f} against it"
    )


def measures(score: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Recall of the reference's top 100, root mean square error over its spread, rank correlation in its top 1,000."""
    score, truth = score.ravel(), truth.ravel()
    top, found = (set(np.argsort(-values)[:K].tolist()) for values in (truth, score))
    best = np.argsort(-np.abs(truth))[:1000]
    ranks = [np.argsort(np.argsort(values[best])) for values in (score, truth)]
    return {
        "recall": len(top & found) / K,
        "error": float(np.sqrt(((score - truth) ** 2).mean()) / truth.std()),
        "rank": float(np.corrcoef(*ranks)[0, 1]),
    }


def attribution_patching(lm: LanguageModel, prompts: TopicPrompts, reference: ScoreFile, topic: str) -> dict[str, Any]:
    """AtP (Kramar et al. 2024, eq. 3): the gradient at the whole model, over all prompts."""
    game = NeuronGame(lm, prompts)
    _, gradient = game.gradients(np.ones((1, game.n_players), dtype=bool))
    found = measures(game.to_grid(gradient[0]), reference.array(topic, "score"))
    return {"topic": topic, "estimator": "AtP", "rows": game.forward_rows, **found}


def write_table(lines: list[dict[str, Any]], notes: list[str], out: Path) -> None:
    text = ["| topic | estimator | forward rows | recall@100 | error / spread | rank correlation |", "|" + " --- |" * 6]
    for x in lines:
        how_good = f"{x['recall']:.2f} | {x['error']:.2f} | {x['rank']:.2f}"
        text.append(f"| {x['topic']} | {x['estimator']} | {x['rows']:,} | {how_good} |")
    text += [f"\n{note}." for note in notes]
    out.write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
