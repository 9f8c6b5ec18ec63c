"""What a key may ask for, and what is applied: the operator's floor always, what was asked on top of it.

A floor cannot be lowered, replaced or undone, because nothing that a request names takes anything away:

- what was asked acts on the activation first and the floor last, so that the floor is on whatever the request left;
- the same kind at the same columns is applied once, at the larger strength;
- strengths cannot be negative, and a fraction cannot exceed 1 (a scale of 2 on top of one of 2 would be the identity);
- the noise of floor and request are of different seeds, from the operator's secret, and cannot cancel.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from shapley.server.asked import Asked


class Policy(BaseModel):
    """Of a key.

    Attributes:
        floor: impairments that are always applied.
        levels: if not empty, the only impairments that may be asked for (a strict floor): those that were calibrated. Without a
            floor one of them must be.
        logprobs: whether log-probabilities are given out.
        requests_per_minute, tokens_per_minute: limits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    floor: tuple[Asked, ...] = ()
    levels: tuple[Asked, ...] = ()
    logprobs: bool = False
    requests_per_minute: Annotated[int, Field(gt=0)] = 600
    tokens_per_minute: Annotated[int, Field(gt=0)] = 600_000


@dataclass(frozen=True)
class Layer:
    """One impairment that is applied, and the seed of its noise."""

    asked: Asked
    seed: int


Stack = tuple[Layer, ...]  # in the order in which they act on an activation


class Refused(Exception):
    """The policy does not allow what was asked for."""


class NoCluster(Exception):
    """A cluster that is not registered."""


def resolve(
    asked: Asked | None, policy: Policy, organisation: str, secret: bytes, clusters: Collection[tuple[str, str]]
) -> Stack:
    """What is applied to a request, in this order.

    Args:
        asked: by the request; ``None`` for nothing.
        organisation: that the key belongs to: its noise is of this and of the secret only, not of the key, the request, the
            prompt or the time, so that there is nothing to average.
        clusters: that are registered, by name and the site that they have columns of.

    Raises:
        NoCluster: what was asked for names a cluster that is not registered.
        Refused: a level that a strict floor does not allow, or none where one must be asked for.
    """
    if asked is not None and asked.cluster is not None and (asked.cluster, asked.site) not in clusters:
        raise NoCluster(f"no cluster {asked.cluster!r} is registered at {asked.site}")
    if policy.levels and asked not in policy.levels and not (asked is None and policy.floor):
        allowed = ", ".join(level.text() for level in policy.levels)
        raise Refused(f"this key allows calibrated levels only: {allowed}")
    floor = list(policy.floor)
    layers: list[Layer] = []
    if asked is not None:
        for i, least in enumerate(floor):
            if asked.same_place(least):
                floor[i] = least if least.strength >= asked.strength else asked
                break
        else:
            layers.append(Layer(asked, noise_seed(secret, organisation, "request")))
    return (*layers, *(Layer(least, noise_seed(secret, organisation, f"floor {i}")) for i, least in enumerate(floor)))


def noise_seed(secret: bytes, organisation: str, purpose: str) -> int:
    """63 bits of an HMAC-SHA256."""
    digest = hmac.new(secret, f"{organisation}\x1f{purpose}".encode(), hashlib.sha256).digest()
    return int.from_bytes(digest[:8], "big") >> 1
