"""How long `shapley top` takes on a score file of 307,200 neurons (48 x 6,400, as GPT-2-XL), the process's start included.

python experiments/benchmarks/queries.py [--repeats 9]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from shapley.store import TopicScores, write_scores

SHAPE = (48, 6400)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "scores.h5")
        model = {
            "name": "none",
            "revision": "none",
            "fingerprint": "0",
            "architecture": "none",
            "n_layers": 48,
            "d_mlp": 6400,
        }
        write_scores(path, model, {topic: _random_scores(i) for i, topic in enumerate("abc")}, keep=False)
        command = [sys.executable, "-m", "shapley.cli.main", "top", str(path), "--topic", "a"]
        for name, words in (("top", []), ("top --versus b --versus c", ["--versus", "b", "--versus", "c"])):
            seconds = [_time([*command, *words]) for _ in range(options.repeats + 1)][1:]  # the first warms up
            print(f"{name}: median {statistics.median(seconds):.2f} s, {min(seconds):.2f} to {max(seconds):.2f}")


def _random_scores(seed: int) -> TopicScores:
    rng = np.random.default_rng(seed)
    replicates = rng.normal(size=(16, *SHAPE)).astype(np.float32)
    ones = np.ones(SHAPE, dtype=np.int64)
    return TopicScores(
        rng.normal(size=SHAPE), rng.random(SHAPE), 16 * ones, 0 * ones, replicates, {"site": "mlp_hidden"}
    )


def _time(command: list[str]) -> float:
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
