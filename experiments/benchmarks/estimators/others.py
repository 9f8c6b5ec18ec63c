"""captum and msapy on a mask: players are the entries of a vector, one where intact."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from problem import CannotRunError, Evaluations
from soft import soft_game
from torch import Tensor

from shapley.types import FloatArray

with contextlib.suppress(ImportError):
    import msapy.msa  # noqa: F401 (before captum: its typeguard fails if captum came first)

_CHUNK = 64
IG_STEPS = 2048  # at most: the integral has converged long before


def captum_sampling(game: Any, variant: str, budget: int, seed: int) -> FloatArray:
    """ShapleyValueSampling (Castro et al. 2009), a permutation a call, so that each can have its prompt."""
    from captum.attr import ShapleyValueSampling

    torch.manual_seed(seed)

    def walk(evaluations: Evaluations) -> FloatArray:
        method = ShapleyValueSampling(_forward(evaluations))
        ones = torch.ones(1, game.n_players)
        return method.attribute(ones, torch.zeros_like(ones), n_samples=1, perturbations_per_eval=_CHUNK)[0].numpy()

    return _mean_of_walks(game, variant, budget, seed, walk)


def captum_kernel_shap(game: Any, variant: str, budget: int, seed: int) -> FloatArray:
    """KernelShap (Lundberg and Lee 2017)."""
    from captum.attr import KernelShap

    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (captum draws from the global generator)
    evaluations = Evaluations(game, variant, seed)
    ones = torch.ones(1, game.n_players)
    method = KernelShap(_forward(evaluations))
    found = method.attribute(
        ones, torch.zeros_like(ones), n_samples=evaluations.left(budget), perturbations_per_eval=_CHUNK
    )
    return found[0].double().numpy()


def captum_feature_ablation(game: Any, variant: str, budget: int, seed: int) -> FloatArray:
    """v(N) - v(N without i): an evaluation a player."""
    from captum.attr import FeatureAblation

    evaluations = Evaluations(game, "all", seed)
    ones = torch.ones(1, game.n_players)
    method = FeatureAblation(_forward(evaluations))
    return method.attribute(ones, torch.zeros_like(ones), perturbations_per_eval=_CHUNK)[0].double().numpy()


def captum_integrated_gradients(game: Any, variant: str, budget: int, seed: int) -> FloatArray:
    """IntegratedGradients (Sundararajan et al. 2017) from no player to all, all gates alike: the Aumann-Shapley value. As many
    steps as the budget holds."""
    from captum.attr import IntegratedGradients

    play = soft_game(game, variant)
    steps = min(budget // 3 // (game.n_prompts if variant == "all" else 1), IG_STEPS)
    if steps < 2:
        raise CannotRunError("the budget does not hold two steps")
    ones = torch.ones(1, game.n_players)
    method = IntegratedGradients(play)
    found = method.attribute(ones, torch.zeros_like(ones), n_steps=steps, internal_batch_size=8)
    return found[0].detach().double().numpy()


def msapy_permutation(game: Any, variant: str, budget: int, seed: int) -> FloatArray:
    """Multi-perturbation Shapley analysis (Fakhar and Hilgetag 2021): permutations, each coalition a call."""
    from msapy import msa

    seeds = iter(np.random.SeedSequence(seed).generate_state(100_000).tolist())

    def walk(evaluations: Evaluations) -> FloatArray:
        def value(complements: tuple[Any, ...]) -> float:
            coalition = np.ones(game.n_players, dtype=bool)
            coalition[[player for player in complements if isinstance(player, int)]] = False
            return float(evaluations(coalition)[0])

        with contextlib.redirect_stdout(io.StringIO()):
            table = msa.interface(
                n_permutations=1,
                elements=list(range(game.n_players)),
                objective_function=value,
                n_parallel_games=1,
                dual_progress_bars=False,
                random_seed=next(seeds),
            )
        return np.asarray(table.mean()[list(range(game.n_players))], dtype=np.float64)

    return _mean_of_walks(game, variant, budget, seed, walk)


def _mean_of_walks(
    game: Any, variant: str, budget: int, seed: int, walk: Callable[[Evaluations], FloatArray]
) -> FloatArray:
    """As many whole permutations as the budget holds."""
    evaluations = Evaluations(game, variant, seed, walk=True)
    walks = evaluations.left(budget) // (game.n_players - 1)
    if walks < 1:
        raise CannotRunError("the budget does not hold one permutation")
    total = np.zeros(game.n_players)
    for _ in range(walks):
        evaluations.next_walk()
        total += walk(evaluations)
    return total / walks


def _forward(evaluations: Evaluations) -> Callable[[Tensor], Tensor]:
    def forward(mask: Tensor) -> Tensor:
        return torch.from_numpy(evaluations(mask.numpy() > 0.5))

    return forward
