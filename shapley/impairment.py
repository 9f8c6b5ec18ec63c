"""How a neuron is taken out: the impairment kinds, as pure functions of the activation.

An impairment replaces the activation ``x`` at a site by ``impaired(x)``; strength zero always returns ``x``.

=================  ============================================  =========================
kind               impaired activation                           strength
=================  ============================================  =========================
``noise``          x + s * e                                     absolute, or site SDs
``negative-noise`` x + s * (e - max e)                           absolute, or site SDs
``shift``          x - s * max e    (the control: no noise)      absolute, or site SDs
``scale``          x * (1 - s)                                   a fraction, 1 is zero
``zero``           x * (1 - s)                                   a fraction of the way, default 1
``mean``           x + s * (mean - x)                            a fraction of the way, default 1
``resample``       x + s * (donor - x)                           a fraction of the way, default 1
=================  ============================================  =========================

``e`` is a draw of i.i.d. noise, ``mean`` the neuron's mean over a reference text, ``donor`` its activation at another
position of that text. Nothing here imports torch: the formulas hold for arrays and tensors alike.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from typing import Any, get_args

from shapley.errors import ShapleyError, unknown_name
from shapley.types import Distribution, Kind, Scope, Site, Unit

KINDS: tuple[str, ...] = get_args(Kind)
SITES: tuple[str, ...] = get_args(Site)
NOISE_KINDS = frozenset({"noise", "negative-noise", "shift"})


@dataclass(frozen=True)
class Impairment:
    """What is done to an impaired neuron, and where.

    Args:
        kind: one of ``KINDS``.
        strength: 0 leaves the model untouched. In activation units for the noise kinds (or site standard
            deviations, see ``unit``); a fraction for the others.
        site: ``mlp_in``, ``mlp_hidden`` (the neurons) or ``mlp_out``.
        unit: ``absolute``, or ``sd``: the strength is multiplied by the site's activation standard deviation in
            that layer (the root mean square over neurons of their standard deviations on the reference text).
        distribution: of the noise: ``gaussian``, ``uniform`` on [-1, 1], or ``clipped_gaussian`` (to [-1, 1]).
        scope: what the maximum of ``negative-noise`` and ``shift`` is taken over, in each layer: the neurons of a
            ``token``, of a whole ``prompt``, or of the ``batch``.
        seed: of the noise and of the choice of donors.

    Raises:
        ShapleyError: an unknown kind, site, unit, distribution or scope, or a strength that is not a finite number
            of at least zero.
    """

    kind: Kind = "zero"
    strength: float = 1.0
    site: Site = "mlp_hidden"
    unit: Unit = "absolute"
    distribution: Distribution = "gaussian"
    scope: Scope = "prompt"
    seed: int = 0

    def __post_init__(self) -> None:
        for what, name, known in (
            ("impairment", self.kind, KINDS),
            ("site", self.site, SITES),
            ("unit", self.unit, get_args(Unit)),
            ("distribution", self.distribution, get_args(Distribution)),
            ("scope", self.scope, get_args(Scope)),
        ):
            if name not in known:
                raise unknown_name(what, name, known)
        if not math.isfinite(self.strength) or self.strength < 0:
            raise ShapleyError(f"strength {self.strength!r} is not a finite number of at least 0")
        if self.unit == "sd" and not self.is_noise:
            raise ShapleyError(f"unit 'sd' is for the noise kinds; the strength of {self.kind!r} is a fraction")

    @property
    def is_noise(self) -> bool:
        return self.kind in NOISE_KINDS

    @property
    def is_random(self) -> bool:
        """Whether the impaired activation depends on a draw."""
        return self.is_noise or self.kind == "resample"

    @property
    def needs_statistics(self) -> bool:
        """Whether the activations of a reference text are needed."""
        return self.kind in ("mean", "resample") or self.unit == "sd"

    def at(self, strength: float) -> Impairment:
        """The same impairment at another strength."""
        return replace(self, strength=strength)

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Impairment:
        return cls(**json.loads(text))


def impaired(kind: Kind, x: Any, strength: Any, noise: Any = None, maximum: Any = None, target: Any = None) -> Any:
    """The impaired activation.

    Args:
        kind: the impairment kind.
        x: activations, ``[row, token, neuron]``.
        strength: in the units of ``x`` for the noise kinds, else a fraction; broadcasts against ``x``.
        noise: the draw ``e``, shaped as ``x`` (``noise`` and ``negative-noise``).
        maximum: the maximum of ``e`` over its scope, broadcasting against ``x`` (``negative-noise``, ``shift``).
        target: what an ablation puts in place of ``x`` (``mean``, ``resample``), broadcasting against ``x``.
    """
    if kind == "noise":
        return x + strength * noise
    if kind == "negative-noise":
        return x + strength * (noise - maximum)
    if kind == "shift":
        return x - strength * maximum
    if kind in ("scale", "zero"):
        return x * (1 - strength)
    # (1 - s) x + s t, and not x + s (t - x): exact at both ends.
    return x * (1 - strength) + strength * target
