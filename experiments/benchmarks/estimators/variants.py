"""What was tried for the screen, on the trained games: recall@20 and error over the spread, means over seeds.

    python experiments/benchmarks/estimators/variants.py [--games trained-256,trained-1024] [--seeds 3]

- plain: mean mask gradient at random coalitions.
- two-point: the trapezoid rule over a player's own gate (half of the weight on coalitions that hold it, half on the others).
- shrunk: the same, each player's correction shrunk by its reliability (empirical Bayes); what `two-stage` does, unit by unit.
- soft e: a share 4 e q (1 - q) of the players at gates uniform in [0, 1] in place of 0 or 1.
- diagonal: integrated gradients along equal gates (Sun and Sundararajan 2011), as many steps as the rows hold.
"""

from __future__ import annotations

import argparse
import os
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import games
import numpy as np
import torch
from measures import measure

from shapley.types import FloatArray

ROWS = (960, 3072, 12_288)
LEAST_FRACTION = 0.06


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--games", default="trained-256,trained-1024")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| game | screen |" + "".join(f" {rows:,} rows |" for rows in ROWS))
    print("|" + " --- |" * (2 + len(ROWS)))
    for name in options.games.split(","):
        truth = games.truth(name).score
        game = games.make(name)
        cells: dict[str, list[str]] = {}
        for rows in ROWS:
            runs = [screens(game, rows // 48, np.random.default_rng(seed)) for seed in range(options.seeds)]
            for screen in runs[0]:
                found = [measure(run[screen], truth, scaled=True) for run in runs]
                recall, error = (np.mean([one[what] for one in found]) for what in ("recall", "rmse"))
                cells.setdefault(screen, []).append(f"{recall:.2f} / {error:.3f}")
        for screen, row in cells.items():
            print(f"| {name} | {screen} | " + " | ".join(row) + " |", flush=True)


def screens(game: Any, n_units: int, rng: np.random.Generator) -> dict[str, FloatArray]:
    """Every screen's scores ``[n]`` from ``16 n_units`` gradient rows of its own."""
    plain, corrections = units(game, n_units, rng, soft=0.0)
    mean, correction = plain.mean(axis=0), corrections.mean(axis=0)
    noise = corrections.var(axis=0, ddof=1) / n_units
    scale = plain.var(axis=0, ddof=1) + mean**2
    signal = max(0.0, (correction**2 - noise).sum() / scale.sum()) * scale
    found = {"plain": mean, "two-point": mean + correction, "shrunk": mean + signal / (signal + noise) * correction}
    for soft in (0.1, 0.2, 0.5):
        found[f"soft {soft}"] = units(game, n_units, rng, soft=soft)[0].mean(axis=0)
    return found | {"diagonal": diagonal(game, max(1, 16 * n_units // game.n_prompts))}


def units(game: Any, n_units: int, rng: np.random.Generator, soft: float) -> tuple[FloatArray, FloatArray]:
    """``[units, n]`` mean gradients and trapezoid corrections of units of 8 stratified antithetic pairs."""
    n = game.n_players
    plain, corrections = np.empty((n_units, n)), np.empty((n_units, n))
    for unit in range(n_units):
        p = rng.permutation((np.arange(8) + rng.random(8)) / 8)
        u = rng.random((8, n))
        q = np.stack([p, 1 - p], axis=1).reshape(-1)
        inside = np.stack([u < p[:, None], 1 - u < 1 - p[:, None]], axis=1).reshape(16, n)
        gates: Any = inside
        if soft:
            chosen = rng.random((16, n)) < 4 * soft * (q * (1 - q))[:, None]
            gates = np.where(chosen, rng.random((16, n)), inside).astype(np.float32)
        prompts = np.repeat(rng.permutation(game.n_prompts)[:8], 2)
        _, gradients = game.gradients(gates, prompts=prompts)
        weight_in, weight_out = (0.5 / np.maximum(chance, LEAST_FRACTION) - 1 for chance in (q, 1 - q))
        plain[unit] = gradients.mean(axis=0)
        corrections[unit] = (np.where(inside, weight_in[:, None], weight_out[:, None]) * gradients).mean(axis=0)
    return plain, corrections


def diagonal(game: Any, steps: int) -> FloatArray:
    """Midpoint rule along equal gates, all prompts at each step."""
    gates = ((np.arange(steps) + 0.5) / steps).astype(np.float32)
    rows = [game.gradients(np.full((1, game.n_players), gate, dtype=np.float32))[1][0] for gate in gates]
    return np.mean(rows, axis=0)


if __name__ == "__main__":
    main()
