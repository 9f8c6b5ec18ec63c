"""One page for all experiments, for a researcher: `python -m experiments.report` writes docs/experiments.html from the
stored results. What was not run is left out."""

from __future__ import annotations

import os
from pathlib import Path

import click
from jinja2 import Environment, FileSystemLoader, select_autoescape

from experiments.bases import page as bases
from experiments.ceiling import page as ceiling
from experiments.fragility import page as fragility
from experiments.harm import page as harm
from experiments.impairment_curves import page as impairment_curves
from experiments.impairment_curves import summary as impairment_curves_summary
from experiments.lab.page import Section, stored
from experiments.removal import page as removal
from experiments.sandbagger import page as sandbagger
from experiments.sparse import page as sparse
from experiments.specificity import page as specificity
from experiments.specificity import summary as specificity_summary
from experiments.variations import page as variations
from shapley import __version__
from shapley.files import write_text

HERE = Path(__file__).parent
PAGES = (impairment_curves, specificity, variations, removal, fragility, ceiling, sandbagger, harm, bases, sparse)


@click.command(help=__doc__)
@click.option("--out", type=click.Path(path_type=Path), default=HERE.parent / "docs" / "experiments.html")
def main(out: Path) -> None:
    sections = [section for page in PAGES for section in page.sections()]
    write_text(out, render(sections, out.parent))
    click.echo(f"{len(sections)} sections: {out}")


def render(sections: list[Section], folder: Path) -> str:
    """The page, to be put into ``folder``; figures stay where they are."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["from_here"] = lambda path: Path(os.path.relpath(path, folder)).as_posix()
    verdicts = {
        name: [page.verdict(results) for results in map(read, stored(page.__file__))]
        for name, page, read in (
            ("A", impairment_curves, impairment_curves_summary.Results.read),
            ("B", specificity, specificity_summary.Results.read),
        )
    }
    return environment.get_template("report.html").render(sections=sections, verdicts=verdicts, version=__version__)


if __name__ == "__main__":
    main()
