"""Options that make a policy: of a key, or of a server that is open."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from shapley.errors import ShapleyError

if TYPE_CHECKING:
    from shapley.server.asked import Asked
    from shapley.server.policy import Policy

F = TypeVar("F", bound=Callable[..., Any])
_NOTATION = "KIND:STRENGTH[,cluster=NAME][,site=SITE]"


def policy_options(command: F) -> F:
    """``--floor``, ``--level``, ``--logprobs`` and the limits."""
    for option in (
        click.option("--tokens-per-minute", type=click.IntRange(1), default=600_000, show_default=True),
        click.option("--requests-per-minute", type=click.IntRange(1), default=600, show_default=True),
        click.option("--logprobs", is_flag=True, help="Give out log-probabilities."),
        click.option(
            "--level",
            "levels",
            multiple=True,
            metavar=_NOTATION,
            help="Allow these impairments only (a strict floor); repeat.",
        ),
        click.option(
            "--floor", multiple=True, metavar=_NOTATION, help="An impairment that always applies, as noise:0.5; repeat."
        ),
    ):
        command = option(command)
    return command


def policy_of(options: dict[str, Any]) -> Policy:
    """From the options of ``policy_options``, which are taken out of ``options``."""
    from shapley.server.policy import Policy

    floor, levels = (
        tuple(_asked(f"--{what}", text) for text in options.pop(name))
        for what, name in (("floor", "floor"), ("level", "levels"))
    )
    limits = {name: options.pop(name) for name in ("logprobs", "requests_per_minute", "tokens_per_minute")}
    return Policy(floor=floor, levels=levels, **limits)


def _asked(option: str, text: str) -> Asked:
    from shapley.server.asked import parse

    try:
        return parse(text)
    except ValueError as error:
        raise ShapleyError(f"{option} {text!r}: {error}") from None
