"""``shapley report``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where to write the page. [default: DIRECTORY/report.html]"
)
def report(directory: Path, out: Path | None) -> None:
    """Make one HTML page from the score file, clusters, prompts and sweeps in DIRECTORY."""
    from shapley.report import write_report

    click.echo(f"report in {write_report(directory, out)}")
