"""``shapley demo``."""

from __future__ import annotations

from pathlib import Path

import click

from shapley.cli.options import command_line, output_options
from shapley.errors import ShapleyError


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="A folder.")
@output_options
def demo(out: Path, resume: bool, overwrite: bool) -> None:
    """The whole pipeline on the embedded corpus and model, in minutes."""
    if resume and overwrite:
        raise ShapleyError("--resume and --overwrite exclude each other")
    if out.exists() and not out.is_dir():
        raise ShapleyError(f"{out} is not a folder: give one with --out")
    if (out / "scores.h5").exists() and not (resume or overwrite):
        raise ShapleyError(f"{out} holds a demo: pass --overwrite to run it again, or --resume to go on with it")
    from shapley.demo import run_demo

    run_demo(out, resume=resume, say=click.echo, argv=command_line())
