"""``shapley serve``: an OpenAI-compatible server of a model that can be impaired."""

from __future__ import annotations

import math
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from filelock import FileLock, Timeout

from shapley.cli.options import device_option
from shapley.cli.policy_options import policy_of, policy_options
from shapley.errors import ShapleyError
from shapley.progress import say

_NAME = re.compile(r"[A-Za-z0-9._/-]{1,128}")
_UNNAMED = re.compile(r"[^A-Za-z0-9._-]+")  # as in MODEL@BASIS


@click.command()
@click.argument("model")
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("server"),
    show_default=True,
    help="Folder of the keys, the secret that noise is made of, and the audit log.",
)
@click.option("--name", help="That clients know the model by. [default: the last part of MODEL]")
@click.option(
    "--cluster", "clusters", multiple=True, metavar="NAME=FILE", help="A cluster that requests may name; repeat."
)
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option(
    "--open", "is_open", is_flag=True, help="Answer requests without a key, under the policy of the options below."
)
@policy_options
@device_option
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
@click.option("--max-rows", type=click.IntRange(1), default=64, show_default=True, help="Sequences in a batch.")
@click.option("--max-prompt", type=click.IntRange(1), default=2048, show_default=True, help="Tokens of a prompt.")
@click.option("--max-new", type=click.IntRange(1), default=1024, show_default=True, help="Tokens to generate.")
@click.option("--max-body", type=click.IntRange(1024), default=1 << 20, show_default=True, help="Bytes of a request.")
@click.option(
    "--timeout", type=click.FloatRange(1), default=120.0, show_default=True, help="Seconds that a request may take."
)
@click.option("--log-prompts", is_flag=True, help="Put the prompts into the audit log.")
def serve(
    model: str, state: Path, name: str | None, clusters: tuple[str, ...], host: str, port: int, **options: Any
) -> None:
    """Serve MODEL with OpenAI's API and an `impairment` parameter (docs/server.md).

    A key is needed, with a floor of its own: `shapley keys add` makes one. On Ctrl-C running requests end first.
    """
    uvicorn = _uvicorn()
    from shapley.hf.load import load_model
    from shapley.server.app import application
    from shapley.server.keys import KeyFile, make_folder
    from shapley.server.service import Service
    from shapley.server.settings import Settings

    policy = policy_of(options)
    is_open, device, dtype = (options.pop(what) for what in ("is_open", "device", "dtype"))
    name = name or _UNNAMED.sub("-", Path(model).name)
    if not _NAME.fullmatch(name):
        raise ShapleyError(f"--name {name!r}: expected letters, digits, dot, dash, slash and underscore")
    if not math.isfinite(options["timeout"]):
        raise ShapleyError("--timeout: expected a finite number of seconds")
    if not is_open and not any(key.revoked is None for key in KeyFile(state).all()):
        raise ShapleyError(
            f"no keys in {state}: make one with 'shapley keys add --state {state} --organisation NAME', or serve without any "
            "(--open)"
        )
    settings = Settings(name, state, policy if is_open else None, clusters=_clusters(clusters), **options)
    make_folder(state)
    lock = FileLock(state / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ShapleyError(f"another server runs on {state}: stop it, or give another --state") from None
    with lock, _listening(host, port) as listening:
        service = Service(load_model(model, device=device, dtype=dtype), settings)
        app = application(service)
        server = uvicorn.Server(
            uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=30, server_header=False)
        )
        say(f"{name} at http://{host}:{listening.getsockname()[1]}/v1 (Ctrl-C ends it; docs at /docs)")
        with suppress(KeyboardInterrupt):  # raised again by uvicorn when all has ended
            server.run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    """A socket of the address, so that one that is taken is known before the model is loaded."""
    try:
        return socket.create_server(
            (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=2048
        )
    except OSError as error:
        raise ShapleyError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port or --host"
        ) from None


def _clusters(named: tuple[str, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for text in named:
        name, equals, path = text.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or not path:
            raise ShapleyError(f"--cluster {text!r}: expected NAME=FILE, as toxic=toxic.json")
        if name in found:
            raise ShapleyError(f"--cluster {name!r} is given twice")
        found[name] = Path(path)
    return found


def _uvicorn() -> Any:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn
    except ImportError:
        raise ShapleyError("serving needs the server extra: pip install 'neuron-shapley[server]'") from None
    return uvicorn
