"""``shapley``: commands are imported when they are called, so that queries of stored files start at once."""

from __future__ import annotations

import sys
from importlib import import_module

import click

from shapley import __version__
from shapley.errors import ShapleyError, unknown_name

_COMMANDS = {
    "demo": "shapley.cli.demo",
    "check": "shapley.cli.check",
    "prompts": "shapley.cli.prompts",
    "estimate": "shapley.cli.estimate",
    "top": "shapley.cli.query",
    "cluster": "shapley.cli.cluster",
    "selectors": "shapley.cli.cluster",
    "merge": "shapley.cli.query",
    "basis": "shapley.cli.basis",
    "sweep": "shapley.cli.sweep",
    "compare": "shapley.cli.compare",
    "report": "shapley.cli.report",
    "neurons": "shapley.cli.neurons",
    "assess": "shapley.cli.assess",
    "submit": "shapley.cli.submit",
    "prepare": "shapley.cli.jobs",
    "work": "shapley.cli.jobs",
    "status": "shapley.cli.jobs",
    "serve": "shapley.cli.serve",
    "keys": "shapley.cli.keys",
    "export": "shapley.cli.export",
    "cancel": "shapley.cli.jobs",
}


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        if cmd_name not in _COMMANDS:
            raise unknown_name("command", cmd_name, _COMMANDS)
        command: click.Command = getattr(import_module(_COMMANDS[cmd_name]), cmd_name)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="shapley")
def cli() -> None:
    """Neuron Shapley for transformers: which MLP neurons carry a topic, and what the model still does without them."""


def main() -> None:
    """Entry point: the user's mistakes end in one line on standard error and exit code 2."""
    try:
        code = cli.main(prog_name="shapley", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        where = context.command_path if context else "shapley"
        _fail(f"{where}: {error.format_message()} (see '{where} --help')")
    except ShapleyError as error:
        _fail(f"shapley: {error}")
    except (KeyboardInterrupt, click.Abort):
        _fail("shapley: interrupted; nothing was left half written")


def _fail(line: str) -> None:
    click.echo(" ".join(line.split()), err=True)
    sys.exit(2)


if __name__ == "__main__":
    main()
