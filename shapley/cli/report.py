"""``shapley report``."""

from __future__ import annotations

from pathlib import Path

import click

from shapley.errors import ShapleyError


@click.command()
@click.argument("directory", type=click.Path(path_type=Path))
@click.option(
    "--out", type=click.Path(path_type=Path), help="Where to write the page. [default: DIRECTORY/report.html]"
)
def report(directory: Path, out: Path | None) -> None:
    """Make one HTML page from the score file, clusters, prompts and sweeps in DIRECTORY."""
    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        raise ShapleyError(f"--out {out}: expected a name that ends in .html")
    from shapley.report import write_report

    click.echo(f"report in {write_report(directory, out)}")
