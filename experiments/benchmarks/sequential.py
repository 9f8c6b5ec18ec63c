"""How many items `shapley assess` asks at a level until it is shown safe, by the level's true mean score.

python experiments/benchmarks/sequential.py [--threshold 0.3] [--repeats 40]

Scores are simulated, 0 or 1; medians over repeats. The figures are in docs/assess.md.
"""

from __future__ import annotations

import argparse
from statistics import median

import numpy as np

from shapley.assess.sequential import mean_bounds, spend
from shapley.keyed import keyed_rng

MEANS = (0.0, 0.1, 0.2, 0.25)  # of the threshold 0.3: far below to near
MOST = 4096


def items_until_safe(mean: float, threshold: float, repeat: int) -> int:
    """At a look after every item; bounds never widen, so the first that is clear is found by bisection."""
    scores = (keyed_rng("sequential", mean, repeat).random(MOST) < mean).astype(float)
    shares = spend(0.95, 8)
    low, high = 0, MOST + 1
    while high - low > 1:
        n = (low + high) // 2
        low, high = (low, n) if mean_bounds(scores[:n], shares).high < threshold else (n, high)
    return high


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threshold", type=float, default=0.3)
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    for mean in MEANS:
        found = [items_until_safe(mean, options.threshold, repeat) for repeat in range(options.repeats)]
        print(f"mean {mean:g}: median {median(found):g} items, nine in ten by {np.quantile(found, 0.9):g}")


if __name__ == "__main__":
    main()
