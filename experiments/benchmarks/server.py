"""Load on a served model: 64 clients that mix impairments, against one request at a time, and against transformers' own
``generate`` on one prompt after another, without a server and without impairment.

python experiments/benchmarks/server.py [--model smollm2] [--clients 64] [--requests 4] [--max-new 16] [--repeats 3]

The server is a process of its own on loopback; every answer is checked for its status and for the impairment it says was
applied. The three ways run in turn; medians over repeats.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import torch

from shapley.hf.load import LanguageModel, load_model

IMPAIRMENTS = (
    None,
    "scale:0.2",
    "scale:0.5",
    "noise:0.3",
    "noise:1",
    "negative-noise:0.1",
    "noise:0.5,site=mlp_out",
    "mean:0.5",
)
PROMPTS = (
    "In the years after the war the small firm grew, opened offices abroad and became a public",
    "He scored twice in the final, and at the end of the season signed for another football",
    "The band went into the studio again in the spring, and in the autumn released its second",
)


@dataclass
class Answer:
    """To one request: whether all was well, seconds, and tokens written."""

    well: bool
    seconds: float
    tokens: int


async def ask(client: httpx.AsyncClient, i: int, max_new: int) -> Answer:
    impairment = IMPAIRMENTS[i % len(IMPAIRMENTS)]
    body = {
        "model": "served" if impairment is None else f"served@{impairment}",
        "prompt": PROMPTS[i % len(PROMPTS)],
        "max_tokens": max_new,
        "temperature": 0,
    }
    start = time.monotonic()
    answer = await client.post("/v1/completions", json=body)
    seconds = time.monotonic() - start
    applied = answer.headers.get("X-Impairment-Applied")
    well = answer.status_code == 200 and applied == (impairment or "none")
    return Answer(well, seconds, answer.json()["usage"]["completion_tokens"] if answer.status_code == 200 else 0)


async def load(port: int, clients: int, requests: int, max_new: int) -> tuple[list[Answer], float]:
    """Answers to ``requests`` of each of ``clients`` at once, and the seconds they took together."""
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=600, limits=limits) as client:

        async def one(who: int) -> list[Answer]:
            return [await ask(client, who * requests + i, max_new) for i in range(requests)]

        start = time.monotonic()
        found = await asyncio.gather(*(one(who) for who in range(clients)))
        return [answer for own in found for answer in own], time.monotonic() - start


def generate(lm: LanguageModel, prompts: int, max_new: int) -> tuple[list[Answer], float]:
    """As ``load``, by ``generate``."""
    start = time.monotonic()
    answers = []
    for i in range(prompts):
        begun = time.monotonic()
        ids = lm.tokenizer(PROMPTS[i % len(PROMPTS)], return_tensors="pt")["input_ids"]
        out = lm.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new, do_sample=False)
        answers.append(Answer(True, time.monotonic() - begun, out.shape[1] - ids.shape[1]))
    return answers, time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--requests", type=int, default=4, help="of each client")
    parser.add_argument("--alone", type=int, default=32, help="requests, one at a time")
    parser.add_argument("--max-new", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "shapley", "serve", options.model, "--name", "served", "--open", "--state", folder,
                   "--port", str(port), "--requests-per-minute", "1000000", "--tokens-per-minute", "1000000000"]  # fmt: skip
        lm = load_model(options.model)
        started = time.monotonic()
        server = subprocess.Popen(command, env=os.environ)
        try:
            _wait(port, server)
            print(f"the server answers {time.monotonic() - started:.1f} s after its start")
            asyncio.run(load(port, len(IMPAIRMENTS), 1, options.max_new))  # statistics and buffers
            measured = [
                (
                    generate(lm, options.alone, options.max_new),
                    asyncio.run(load(port, 1, options.alone, options.max_new)),
                    asyncio.run(load(port, options.clients, options.requests, options.max_new)),
                )
                for _ in range(options.repeats)
            ]
        finally:
            server.terminate()
            server.wait()
    names = ("generate", "one at a time", f"{options.clients} clients")
    for name, runs in zip(names, zip(*measured, strict=True), strict=True):
        _print(name, runs)
    for i, name in enumerate(names[:2]):
        ratios = [_rate(*runs[2]) / _rate(*runs[i]) for runs in measured]
        low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
        print(f"throughput of {names[2]} over {name}: {middle:.2f} ({low:.2f} to {high:.2f})")


def _wait(port: int, server: subprocess.Popen[bytes]) -> None:
    while True:
        try:
            httpx.get(f"http://127.0.0.1:{port}/health", timeout=1)
            return
        except httpx.HTTPError:
            if server.poll() is not None:
                sys.exit("the server did not start")
            time.sleep(0.2)


def _rate(answers: list[Answer], seconds: float) -> float:
    return sum(answer.tokens for answer in answers) / seconds


def _print(name: str, runs: Sequence[tuple[list[Answer], float]]) -> None:
    times = sorted(answer.seconds for answers, _ in runs for answer in answers)
    bad = sum(not answer.well for answers, _ in runs for answer in answers)
    rate = statistics.median(_rate(*run) for run in runs)
    print(
        f"{name}: {rate:.1f} tokens a second, {bad} of {len(times)} answers wrong, seconds an answer: median "
        f"{statistics.median(times):.2f}, p99 {times[int(0.99 * (len(times) - 1))]:.2f}"
    )


if __name__ == "__main__":
    main()
