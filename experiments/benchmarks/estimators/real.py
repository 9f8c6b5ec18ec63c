"""SmolLM2-135M, all 46,080 neurons, three topics: recall of the top 100 against a long run of the same game.

    python experiments/benchmarks/estimators/real.py --out DIR [--topics athlete,artist,company] [--reference 24000]

Every run is a score file in DIR and is kept; give the command again to go on. The reference is a two-stage run with
another seed and a budget that its name states; it shares no coalition with the runs that are held against it. Sixteen
prompts a topic, Beta(1, 16)-Shapley (94% intact on average, as in the demo), zero ablation.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

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
    parser.add_argument("--out", type=Path, default=Path("experiments/benchmarks/estimators/results/real"))
    parser.add_argument("--topics", default=",".join(TOPICS))
    parser.add_argument("--reference", type=int, default=24_000, help="forward rows of the reference, a topic")
    parser.add_argument("--rows", default="1536,3072,6144", help="budgets to try")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    lm = load_model(DEMO_MODEL)
    topics = {topic: prompts_of(lm, options.out)[topic] for topic in options.topics.split(",")}
    reference = run(lm, topics, options.out, "two-stage", options.reference, REFERENCE_SEED)
    lines = []
    for rows in map(int, options.rows.split(",")):
        for estimator in ("two-stage", "gradient"):
            scores = run(lm, topics, options.out, estimator, rows, 0)
            lines += [compare(scores, reference, topic, estimator) for topic in topics]
    for topic, prompts in topics.items():
        lines.append(attribution_patching(lm, prompts, reference, topic))
        write_table(lines, reference, topics, options.out)


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


def run(
    lm: LanguageModel, topics: dict[str, TopicPrompts], out: Path, estimator: str, rows: int, seed: int
) -> ScoreFile:
    top_k = K if estimator == "two-stage" else None
    plan = Plan(estimator=estimator, semivalue=SEMIVALUE, budget=rows, seed=seed, top_k=top_k)
    return estimate(lm, topics, out / f"{estimator}-{rows}-seed{seed}.h5", plan=plan, resume=True)


def compare(scores: ScoreFile, reference: ScoreFile, topic: str, name: str) -> dict[str, Any]:
    attrs = scores.attrs(topic)
    found = measures(scores.array(topic, "score"), reference.array(topic, "score"))
    return {"topic": topic, "estimator": name, "rows": attrs["forward_rows"], "seconds": attrs["wall_seconds"], **found}


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
    return {"topic": topic, "estimator": "AtP", "rows": game.forward_rows, "seconds": np.nan, **found}


def write_table(lines: list[dict[str, Any]], reference: ScoreFile, topics: Any, out: Path) -> None:
    (out / "table.json").write_text(json.dumps(lines, indent=1))
    text = [
        "| topic | estimator | forward rows | seconds | recall@100 | error / spread | rank correlation |",
        "|" + " --- |" * 7,
    ]
    for x in lines:
        how_good = f"{x['recall']:.2f} | {x['error']:.2f} | {x['rank']:.2f}"
        text.append(f"| {x['topic']} | {x['estimator']} | {x['rows']} | {x['seconds']:.0f} | {how_good} |")
    for topic in topics:
        attrs = reference.attrs(topic)
        text.append(
            f"\n{topic}: reference {attrs['forward_rows']} rows, {attrs['wall_seconds']:.0f} s, {attrs['details']}"
        )
    (out / "table.md").write_text("\n".join(text) + "\n")
    print("\n".join(text))


if __name__ == "__main__":
    main()
