"""Every estimator of the comparison by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import heuristics
import others
import ours
import shapiq_peers
import svarm

from shapley.estimators.registry import ESTIMATORS
from shapley.types import FloatArray

Run = Callable[[Any, str, int, int], FloatArray]


@dataclass(frozen=True)
class Peer:
    """One line of the figure.

    Attributes:
        kind: ``ours``, ``sampling`` (converges to the Shapley value), ``gradient`` or ``heuristic``.
        run: (game, variant, budget, seed) -> scores ``[n]``; the game counts rows.
        variants: of ``problem.Evaluations``; the better is reported.
        fixed: it has one cost, whatever the budget, and no randomness.
        scaled: its scores are meant to be Shapley values, so that a root mean square error makes sense.
        most_players: more are refused before trying, with the reason in ``limit``.
    """

    name: str
    kind: str
    run: Run
    variants: tuple[str, ...] = ("all",)
    fixed: bool = False
    scaled: bool = True
    most_players: int = 10**9
    limit: str = ""


BOTH = ("all", "one")
_OURS = [
    Peer(name, "sampling" if name.startswith("tmab") else "ours", run)
    for name, run in ours.plans([name for name in ESTIMATORS if name not in ("exact", "tmab")])
]
PEERS = [
    *_OURS,
    Peer("shapiq PermutationSamplingSV", "sampling", shapiq_peers.permutation, BOTH,
         most_players=8192, limit="holds n x n coalitions, and takes minutes of Python for one permutation"),
    Peer("shapiq SVARM", "sampling", shapiq_peers.approximator("SVARM", pairing_trick=True), BOTH,
         most_players=1029, limit="binom(n, n/2) overflows its float weights"),
    Peer("shapiq KernelSHAP", "sampling", shapiq_peers.approximator("KernelSHAP", pairing_trick=True), BOTH,
         most_players=1029, limit="binom(n, n/2) overflows its float weights"),
    Peer("shapiq UnbiasedKernelSHAP", "sampling", shapiq_peers.approximator("UnbiasedKernelSHAP", pairing_trick=True),
         BOTH, most_players=1029, limit="binom(n, n/2) overflows its float weights"),
    Peer("shapiq OwenSamplingSV", "sampling", shapiq_peers.approximator("OwenSamplingSV"), BOTH, most_players=8192,
         limit="two evaluations a marginal, one at a time: no budget here gives each player one"),
    Peer("shapiq StratifiedSamplingSV", "sampling", shapiq_peers.approximator("StratifiedSamplingSV"), BOTH,
         most_players=8192, limit="two evaluations a marginal, and n x n strata"),
    Peer("SVARM (vectorised)", "sampling", svarm.svarm, BOTH),
    Peer("stratified SVARM (vectorised)", "sampling", svarm.stratified_svarm, BOTH, most_players=8192,
         limit="n x n strata"),
    Peer("captum ShapleyValueSampling", "sampling", others.captum_sampling, BOTH),
    Peer("captum KernelShap", "sampling", others.captum_kernel_shap, BOTH, most_players=8192,
         limit="a dense regression over n columns"),
    Peer("msapy", "sampling", others.msapy_permutation, BOTH, most_players=2048,
         limit="keeps every coalition as a Python frozenset: n x n / 2 objects a permutation"),
    Peer("integrated gradients (captum)", "gradient", others.captum_integrated_gradients, BOTH),
    Peer("AtP (gradient at the full model)", "gradient", heuristics.attribution_patching, fixed=True),
    Peer("leave one out (captum FeatureAblation)", "heuristic", others.captum_feature_ablation, fixed=True),
    Peer("activation size", "heuristic", heuristics.activation_size, fixed=True, scaled=False),
    Peer("random", "heuristic", heuristics.random_scores, fixed=True, scaled=False),
]  # fmt: skip
