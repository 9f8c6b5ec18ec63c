"""What hooks cost: the impaired model against the bare one, on the same batch, in one run, medians.

    python experiments/benchmarks/hooks.py [--model smollm2] [--rows 48] [--tokens 24] [--repeats 9]

- gradient: a forward and backward with a gate per row at every neuron and the gates' gradients, against the bare model's
  forward and backward to its input embeddings (weights frozen in both, logits of the last token only in both);
- zero, noise: a forward with every neuron gated per row, with noise at every neuron or in a cluster of 46, against the bare
  forward; and the least that fresh noise at every neuron can cost, torch.randn added by a plain hook.

The two sides of a ratio are timed in turn, so that drift of the machine's speed falls on both.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch

from shapley.hf.hooks import Rows, attach, impair, only_answer_logits
from shapley.hf.load import LanguageModel, fast_dtype, load_model
from shapley.impairment import Impairment


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    lm = load_model(options.model)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 40_000, (options.rows, options.tokens), generator=generator).to(lm.device)
    print(
        f"{options.model} on {lm.device} ({platform.processor() or platform.machine()}, {torch.get_num_threads()} threads), "
    )
    print(f"{options.rows} rows of {options.tokens} tokens, medians of {options.repeats}")
    print(f"{'what':<25}{'dtype':<10}{'bare s':>8}{'hooked s':>10}{'speed, hooked / bare':>22}")
    for dtype in {torch.float32: None, fast_dtype(lm.device): None}:
        for name, bare, hooked in _pairs(lm, ids, dtype):
            a, b, ratio = _compare(bare, hooked, options.repeats)
            print(f"{name:<25}{str(dtype).removeprefix('torch.'):<10}{a:>8.3f}{b:>10.3f}{ratio:>21.1%}")


def _pairs(
    lm: LanguageModel, ids: torch.Tensor, dtype: torch.dtype
) -> list[tuple[str, Callable[[], None], Callable[[], None]]]:
    last = torch.full((len(ids), 1), ids.shape[1] - 1, device=lm.device)
    mask = torch.rand(lm.sites.n_layers, len(ids), lm.sites.d_mlp, generator=torch.Generator().manual_seed(1)) < 0.94
    gates = list(mask.float().to(lm.device))
    keys = [str(row) for row in range(len(ids))]

    def value(**inputs: torch.Tensor) -> torch.Tensor:
        enabled = dtype != torch.float32
        with torch.autocast(lm.device.type, dtype=dtype, enabled=enabled), only_answer_logits(lm.model, last):
            return lm.model(**inputs, use_cache=False).logits.float().log_softmax(-1)[..., 5].sum()

    def synchronise() -> None:
        if lm.device.type == "cuda":
            torch.cuda.synchronize()

    def bare_gradient() -> None:
        embedded = lm.model.get_input_embeddings()(ids).detach().requires_grad_(True)
        torch.autograd.grad(value(inputs_embeds=embedded), embedded)
        synchronise()

    def mask_gradient() -> None:
        leaves = [gate.clone().requires_grad_(True) for gate in gates]
        with impair(lm, Impairment("zero"), rows=Rows(intact=leaves)):
            torch.autograd.grad(value(input_ids=ids), leaves)
        synchronise()

    def bare() -> None:
        with torch.no_grad():
            value(input_ids=ids)
        synchronise()

    def under(impairment: Impairment, rows: Rows, cluster: Any = None) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad(), impair(lm, impairment, cluster, rows=rows):
                value(input_ids=ids)
            synchronise()

        return run

    def randn() -> None:
        with torch.no_grad(), ExitStack() as stack:
            for block in lm.sites.blocks:
                stack.callback(attach(block, "mlp_hidden", lambda x: x + 0.1 * torch.randn_like(x)).remove)
            value(input_ids=ids)
        synchronise()

    own = Rows(prompt_keys=keys)
    cluster = [(i % lm.sites.n_layers, 7 * i) for i in range(46)]
    return [
        ("gradient", bare_gradient, mask_gradient),
        ("zero, gate per row", bare, under(Impairment("zero"), Rows(intact=gates))),
        ("scale, cluster of 46", bare, under(Impairment("scale", 0.5), own, cluster)),
        ("noise, cluster of 46", bare, under(Impairment("noise", 0.1), own, cluster)),
        ("noise, every neuron", bare, under(Impairment("noise", 0.1), own)),
        ("noise, one prompt", bare, under(Impairment("noise", 0.1), Rows(prompt_keys=["p"] * len(ids)))),
        ("torch.randn, plain hook", bare, randn),
    ]


def _compare(bare: Callable[[], None], hooked: Callable[[], None], repeats: int) -> tuple[float, float, float]:
    """Median seconds of both, and the median over pairs of bare / hooked: the hooked side's speed."""
    times = []
    for _ in range(repeats + 1):
        pair = []
        for run in (bare, hooked):
            start = time.perf_counter()
            run()
            pair.append(time.perf_counter() - start)
        times.append(pair)
    times = times[1:]  # the first warms up
    a, b = (statistics.median(column) for column in zip(*times, strict=True))
    return a, b, statistics.median(x / y for x, y in times)


if __name__ == "__main__":
    main()
