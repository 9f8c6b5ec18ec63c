"""``shapley keys``: who may use a server, and under which floor."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shapley.cli.policy_options import policy_of, policy_options
from shapley.errors import ShapleyError

if TYPE_CHECKING:
    from shapley.server.keys import Key, KeyFile

_state = click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("server"),
    show_default=True,
    help="The server's folder.",
)


@click.group()
def keys() -> None:
    """Make, list and revoke the API keys of `shapley serve`; a running server follows at once."""


@keys.command()
@_state
@click.option("--organisation", required=True, help="Whose key it is: all of its keys see the same noise.")
@policy_options
@click.option("--json", "as_json", is_flag=True)
def add(state: Path, organisation: str, as_json: bool, **options: Any) -> None:
    """Make a key and print it: it is not kept, and cannot be shown again."""
    if not organisation.strip() or len(organisation) > 128 or not organisation.isprintable():
        raise ShapleyError("--organisation: expected a name of 1 to 128 characters")
    key, text = _file(state).add(organisation.strip(), policy_of(options))
    if as_json:
        click.echo(json.dumps({"id": key.id, "key": text}))
    else:
        click.echo(f"{text}\n(key {key.id} of {key.organisation}: {_describe(key)}. It is not shown again.)")


@keys.command("list")
@_state
@click.option("--json", "as_json", is_flag=True)
def list_(state: Path, as_json: bool) -> None:
    """Show the keys, without themselves."""
    found = _file(state).all()
    if as_json:
        click.echo(json.dumps([key.model_dump(mode="json", exclude={"sha256"}) for key in found]))
        return
    for key in found:
        ended = f", revoked {key.revoked}" if key.revoked else ""
        click.echo(f"{key.id}  {key.organisation}  made {key.created}{ended}  {_describe(key)}")
    if not found:
        click.echo(f"no keys in {state}")


@keys.command()
@_state
@click.argument("key")
def revoke(state: Path, key: str) -> None:
    """Refuse KEY, by its id, from now on."""
    revoked = _file(state).revoke(key)
    click.echo(f"key {revoked.id} of {revoked.organisation} is revoked")


def _describe(key: Key) -> str:
    policy = key.policy
    floor = " and ".join(asked.text() for asked in policy.floor) or "none"
    levels = f", levels {', '.join(asked.text() for asked in policy.levels)} only" if policy.levels else ""
    logprobs = "with" if policy.logprobs else "without"
    return (
        f"floor {floor}{levels}, {logprobs} log-probabilities, {policy.requests_per_minute} requests and "
        f"{policy.tokens_per_minute} tokens a minute"
    )


def _file(state: Path) -> KeyFile:
    try:
        from shapley.server.keys import KeyFile
    except ImportError:
        raise ShapleyError("keys need the server extra: pip install 'neuron-shapley[server]'") from None
    return KeyFile(state)
