"""Recall of the true top k, error and rank correlation of Shapley estimators against their cost in forward rows.

python experiments/benchmarks/estimators/run.py [--games planted-1000,trained-256] [--small] [--seeds 3] [--out DIR]

Results are JSON lines in DIR/points.jsonl; finished points are not computed again. Then DIR/results.md and one figure a game.
"""

# ruff: noqa: E402 (threads are set before numpy is imported)
from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")  # one core each, so that seconds compare

import games
import numpy as np
import torch
from measures import measure
from peers import PEERS, Peer
from problem import CannotRunError
from tqdm import tqdm
from write import write_all

BUDGETS = {
    "planted-1000": [256, 1024, 4096, 16384, 65536, 262144],
    "planted-50000": [1024, 4096, 16384, 65536, 262144],
    "trained-256": [256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072],
    "trained-1024": [256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072],
    "trained-4096": [512, 2048, 8192, 32768, 131072],
}
SMALL_GAMES, SMALL_MOST = ("planted-1000", "trained-256"), 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", help=f"of {', '.join(games.NAMES)}; all but the largest trained one by default")
    parser.add_argument("--peers", help="only those whose name holds one of these, comma-separated")
    parser.add_argument("--small", action="store_true", help="two games, budgets to 8,192 rows, one seed: minutes")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="compute finished points of --peers again")
    parser.add_argument("--limit", type=float, default=120, help="seconds a point may take")
    parser.add_argument("--reference-minutes", type=float, default=15, help="at most, for a trained game without one")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    default = SMALL_GAMES if options.small else games.NAMES[:4]
    names = options.games.split(",") if options.games else list(default)
    wanted = options.peers.split(",") if options.peers else [""]
    peers = [peer for peer in PEERS if any(word in peer.name for word in wanted)]
    seeds = 1 if options.small else options.seeds
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "points.jsonl"
    for name in names:
        budgets = [b for b in BUDGETS[name] if not options.small or b <= SMALL_MOST]
        run_game(name, budgets, peers, seeds, path, options)
    write_all(path, options.out)


def run_game(name: str, budgets: list[int], peers: list[Peer], seeds: int, path: Path, options: Any) -> None:
    """All points of a game that ``path`` does not hold yet."""
    # Planted games are drawn anew for each seed; a trained game is one, as is its reference.
    game_seeds = {seed: seed if name.startswith("planted") else 0 for seed in range(seeds)}
    truths = {s: games.truth(name, s, minutes=options.reference_minutes) for s in set(game_seeds.values())}
    # What ran into a shorter limit is not finished.
    done = {key(p) for p in read_points(path) if not options.again and p.get("limit", options.limit) >= options.limit}
    stopped: dict[tuple[str, str], str] = {}  # a peer that ran into the limit is not asked for more
    points = [
        (peer, variant, budget, seed)
        for peer in peers
        for variant in (peer.variants if name.startswith("trained") else ("all",))
        for budget in (budgets[-1:] if peer.fixed else budgets)
        for seed in range(seeds)
    ]
    for peer, variant, budget, seed in tqdm(points, desc=name, mininterval=5, file=sys.stdout):
        game = games.make(name, game_seeds[seed])
        point = {"game": identity(game), "peer": peer.name, "variant": variant, "budget": budget, "seed": seed}
        if key(point) in done:
            continue
        reason = stopped.get((peer.name, variant), "")
        if game.n_players > peer.most_players:
            reason = f"not above {peer.most_players} players: {peer.limit}"
        truth = truths[game_seeds[seed]]
        point |= {"kind": peer.kind, "fixed": peer.fixed, "name": name}
        point |= (
            {"note": reason, "limit": options.limit}
            if reason
            else play(peer, game, variant, budget, seed, truth.score, options.limit)
        )
        if point.get("note", "").startswith("over ") and not reason:
            stopped[peer.name, variant] = point["note"] + " already at a smaller budget"
        with path.open("a") as file:
            file.write(json.dumps(point) + "\n")


def play(
    peer: Peer, game: Any, variant: str, budget: int, seed: int, truth: np.ndarray, limit: float
) -> dict[str, Any]:
    """What a point records: measures, rows, seconds; or a note on why there is nothing."""
    start = time.perf_counter()
    try:
        with at_most(limit):
            score = peer.run(game, variant, budget, seed)
    except CannotRunError as error:
        return {"note": str(error)}
    except TimeoutError:
        return {"note": f"over {limit:.0f} s", "limit": limit}
    except Exception as error:  # a peer's failure is a result, whatever it is
        return {"note": f"{type(error).__name__}: {error}"[:200]}
    seconds = time.perf_counter() - start
    return {**measure(score, truth, peer.scaled), "rows": game.forward_rows, "seconds": round(seconds, 4)}


def identity(game: Any) -> str:
    """The game's name, and which model or which planted scores."""
    return f"{game.name}:{game.lm.fingerprint if hasattr(game, 'lm') else zlib.crc32(game.truth.tobytes())}"


def key(point: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(point[field] for field in ("game", "peer", "variant", "budget", "seed"))


def read_points(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after so long (between two steps of Python)."""

    def ring(number: int, frame: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    main()
