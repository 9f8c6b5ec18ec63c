"""Whether mask gradients keep to their memory budget: peak memory above that of the loaded model, a process a budget.

python experiments/benchmarks/memory.py [--model smollm2] [--budgets 0.25 0.5 1]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np

from shapley.game import NeuronGame
from shapley.hf.load import load_model
from shapley.prompts import Prompt, TopicPrompts

GIB = 1 << 30
TEXT = "In the years after the war the small firm grew, opened offices abroad and became a public"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.25, 0.5, 1.0], help="in GiB")
    parser.add_argument("--one", action="store_true", help="measure one budget in this process")
    options = parser.parse_args()
    if options.one:
        _measure(options.model, options.budgets[0])
        return
    for budget in options.budgets:
        subprocess.run(
            [sys.executable, __file__, "--one", "--model", options.model, "--budgets", str(budget)], check=True
        )


def _measure(model: str, budget: float) -> None:
    lm = load_model(model)
    game = NeuronGame(
        lm, TopicPrompts("t", (Prompt("t", TEXT, " company"),)), memory=int(budget * GIB), dtype="float32"
    )
    coalitions = np.ones((64, game.n_players), dtype=bool)
    zeros = np.zeros(64, dtype=np.int64)
    game.gradients(coalitions[:1], prompts=zeros[:1])
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = _resident("VmRSS")
    game.gradients(coalitions, prompts=zeros)
    print(
        f"budget {budget:g} GiB: 64 gradient rows took {(_resident('VmHWM') - before) / GIB:.2f} GiB more", flush=True
    )


def _resident(field: str) -> int:
    """Bytes, from the kernel's account of this process (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) << 10


if __name__ == "__main__":
    main()
