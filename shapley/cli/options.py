"""Options that several commands share, and their values as the library wants them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from shapley.errors import ShapleyError
from shapley.impairment import KINDS, NOISE_KINDS, SITES, Impairment
from shapley.types import Distribution, Scope, Unit

F = TypeVar("F", bound=Callable[..., Any])

device_option = click.option(
    "--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, mps; spread: one model over all GPUs."
)


def _model_options(required: bool) -> Callable[[F], F]:
    def add(command: F) -> F:
        for option in (
            click.option(
                "--basis",
                callback=_with_basis,
                expose_value=False,
                metavar="NAME",
                help="Directions in place of neurons: identity, random[:SEED], pca, a safetensors FILE; or residual:NAME.",
            ),
            click.option("--memory", default=None, help="Memory for activations, as 2GiB or 500MiB. [default: chosen]"),
            click.option("--trust-remote-code", is_flag=True, help="Allow the model repository's own code to run."),
            device_option,
            click.option(
                "--model",
                required=required,
                metavar="MODEL",
                is_eager=True,  # before --basis, which goes into its name
                help="A hub id, a local directory, or smollm2; MODEL@sparse:FILE with a trained sparse layer in it.",
            ),
        ):
            command = option(command)
        return command

    return add


model_options = _model_options(required=True)  # --model, --device and what goes with them
optional_model_options = _model_options(required=False)


def _with_basis(context: click.Context, option: click.Parameter, basis: str | None) -> None:
    """Into the model's name, which every part of a run has."""
    if basis is None:
        return
    if not context.params.get("model"):
        raise ShapleyError("--basis turns the neurons of a model: give --model")
    from shapley.hf.bases import split_name

    if basis.startswith("sparse:"):
        raise ShapleyError(
            f"--basis {basis}: a sparse layer is no basis; write --model {context.params['model']}@{basis}"
        )
    name = f"{context.params['model']}@{basis}"
    if split_name(name)[1] is None:
        raise ShapleyError(
            f"--basis {basis!r}: expected identity, random[:SEED], pca or a file that ends in .safetensors; or residual: and "
            "one of these"
        )
    context.params["model"] = name


def impairment_options(command: F) -> F:
    """The impairment but for its strength."""
    for option in (
        click.option("--noise-seed", default=0, show_default=True, help="Seed of noise and donors."),
        click.option(
            "--scope",
            type=click.Choice(get_args(Scope)),
            default="prompt",
            show_default=True,
            help="What the maximum of negative-noise and shift is taken over.",
        ),
        click.option(
            "--distribution", type=click.Choice(get_args(Distribution)), default="gaussian", show_default=True
        ),
        click.option(
            "--unit",
            type=click.Choice(get_args(Unit)),
            default="absolute",
            show_default=True,
            help="Of a noise strength: absolute, or standard deviations of the site's activation.",
        ),
        click.option("--site", type=click.Choice(SITES), default="mlp_hidden", show_default=True),
        click.option("--impairment", "kind", type=click.Choice(KINDS), default="zero", show_default=True),
    ):
        command = option(command)
    return command


def output_options(command: F) -> F:
    """``--resume`` and ``--overwrite``."""
    for option in (
        click.option("--overwrite", is_flag=True, help="Replace the output if it exists."),
        click.option("--resume", is_flag=True, help="Go on where an interrupted run with the same settings stopped."),
    ):
        command = option(command)
    return command


def make_impairment(options: dict[str, Any], strength: str | float = 1.0) -> Impairment:
    """An impairment from the options of ``impairment_options``, which are taken out of ``options``."""
    names = ("kind", "site", "unit", "distribution", "scope", "noise_seed")
    kind, site, unit, distribution, scope, noise_seed = (options.pop(name) for name in names)
    try:
        number = float(strength)
    except ValueError:
        raise ShapleyError(f"--strength {strength!r} is not a number") from None
    if unit == "sd" and kind not in NOISE_KINDS:
        raise ShapleyError(f"--unit sd is for noise, negative-noise and shift; the strength of {kind!r} is a fraction")
    return Impairment(kind, number, site, unit, distribution, scope, noise_seed)


def parse_memory(text: str | None) -> int | None:
    """Bytes from ``2GiB``, ``500MiB`` or a plain number."""
    if text is None:
        return None
    units = {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "gb": 10**9, "mb": 10**6}
    lowered = text.strip().lower()
    suffix = next((unit for unit in units if lowered.endswith(unit)), "")
    try:
        amount = float(lowered.removesuffix(suffix)) * units.get(suffix, 1)
    except ValueError:
        amount = 0
    if not 0 < amount < float("inf"):
        raise ShapleyError(f"--memory {text!r}: expected an amount such as 2GiB or 500MiB")
    return int(amount)


def parse_devices(text: str, workers: int | None) -> tuple[list[str], int]:
    """Devices from ``cpu`` or ``cuda:0,cuda:1``, and the number of workers: one for each device if not given."""
    devices = [part.strip() for part in text.split(",")]
    if workers is None:
        return devices, len(devices)
    if workers < 1:
        raise ShapleyError(f"--workers {workers} must be at least 1")
    if len(devices) not in (1, workers):
        raise ShapleyError(f"--device names {len(devices)} devices for {workers} workers: name one for each")
    return devices, workers


def parse_layers(text: str | None) -> list[int] | None:
    """Layers from ``0-11`` or ``3,5,7-9``."""
    if text is None:
        return None
    layers: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            if dash and int(last) < int(first):
                raise ValueError
            layers.extend(range(int(first), int(last) + 1) if dash else [int(first)])
    except ValueError:
        raise ShapleyError(f"--layers {text!r}: expected layers such as 0-11 or 3,5,7-9") from None
    return layers


def command_line() -> list[str]:
    """What was typed, for the record."""
    return ["shapley", *sys.argv[1:]]
