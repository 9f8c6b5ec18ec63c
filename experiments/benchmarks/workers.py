"""Units per second of one process and of several workers on the same work.

python experiments/benchmarks/workers.py [--model smollm2] [--device cpu] [--workers 2] [--units 16] [--repeats 5]

The runs alternate; each starts with its model loaded and warm, which is what a long estimate comes down to. What it takes
to start the workers (their imports and their copies of the model) is printed beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time

from shapley.estimators.coalitions import ROWS_PER_UNIT
from shapley.estimators.registry import Plan, build
from shapley.game import NeuronGame
from shapley.hf.load import load_model
from shapley.prompts import Prompt, TopicPrompts
from shapley.workers import Recipe, WorkerPool, worker_devices, worker_pool

TEXTS = (
    ("In the years after the war the small firm grew, opened offices abroad and became a public", " company"),
    ("He scored twice in the final, and at the end of the season signed for another football", " club"),
    ("The band went into the studio again in the spring, and in the autumn released its second", " album"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, or one for each worker as cuda:0,cuda:1")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--estimator", choices=["gradient", "two-stage"], default="gradient")
    parser.add_argument("--units", type=int, default=16, help="of gradients, 16 coalitions each")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    names = options.device.split(",")
    lm = load_model(options.model, device=names[0])
    topic = TopicPrompts("t", tuple(Prompt("t", *text) for text in TEXTS))
    game = NeuronGame(lm, topic)
    plan = Plan(estimator=options.estimator, samples=options.units * ROWS_PER_UNIT)
    _run(game, plan, None)
    alone, shared = [], []
    with worker_pool(worker_devices(names, lm.device, options.workers)) as pool:
        start = time.monotonic()
        _run(game, plan, pool)
        print(f"first run with {options.workers} workers, their start included: {time.monotonic() - start:.1f} s")
        for _ in range(options.repeats):
            alone.append(_run(game, plan, None))
            shared.append(_run(game, plan, pool))
    one, several = statistics.median(alone), statistics.median(shared)
    print(f"{options.estimator}, {game.n_players} players, medians of {options.repeats}, each pair in turn")
    print(f"1 process: {one:.3f} units/s ({min(alone):.3f} to {max(alone):.3f})")
    print(f"{options.workers} workers: {several:.3f} units/s ({min(shared):.3f} to {max(shared):.3f})")
    print(f"ratio {several / one:.2f}")


def _run(game: NeuronGame, plan: Plan, pool: WorkerPool | None) -> float:
    """Units per second of a whole estimate, the two ends of the game left out."""
    estimator, _ = build(plan, game, key="t")
    estimator.begin()
    start = time.monotonic()
    if pool is None:
        estimator.run()
    else:
        recipe = Recipe.of(game, plan, "t", dtype="auto", memory=None)
        for _ in pool.steps(estimator, recipe):
            pass
    return estimator.unit / (time.monotonic() - start)


if __name__ == "__main__":
    main()
