"""``shapley top`` and ``merge``: queries of score files, without torch."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import click

from shapley.clusters import DEFAULT_GUARD, rank
from shapley.errors import ShapleyError
from shapley.files import check_output
from shapley.merge import merge_scores
from shapley.store import ScoreFile

_VERSUS = click.option("--versus", multiple=True, metavar="TOPIC", help="Rank by contrast with these topics.")
_GUARD = click.option(
    "--guard",
    type=float,
    help="With --versus: minus so many times the largest absolute score elsewhere; 0: minus the others' mean. "
    f"[default: {DEFAULT_GUARD:g}]",
)


def _guard(guard: float | None, versus: tuple[str, ...]) -> float:
    if guard is not None and not versus:
        raise ShapleyError("--guard goes with --versus: name the topics to guard against")
    return DEFAULT_GUARD if guard is None else guard


@click.command()
@click.argument("scores", type=click.Path(path_type=Path))
@click.option("--topic", required=True)
@click.option("-k", "--top-k", "k", default=20, show_default=True, help="How many neurons, or groups.")
@_VERSUS
@_GUARD
@click.option("--format", "style", type=click.Choice(["table", "csv", "json"]), default="table", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
def top(
    scores: Path, topic: str, k: int, versus: tuple[str, ...], guard: float | None, style: str, as_json: bool
) -> None:
    """The top neurons of a topic; the top groups, where players are groups."""
    records = rank(ScoreFile(scores), topic, versus, _guard(guard, versus)).top(k)
    if as_json or style == "json":
        known = [own | ({} if math.isfinite(own["stderr"]) else {"stderr": None}) for own in records]
        click.echo(json.dumps(known))
    elif style == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, fieldnames=list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        click.echo(text.getvalue(), nl=False)
    else:
        click.echo(_table(records))


def _table(records: list[dict[str, Any]]) -> str:
    if "group" in records[0]:
        wide = max(len("group"), *(len(row["group"]) for row in records))
        players = {"group": wide, "neurons": 7}
    else:
        players = {"layer": 5, "neuron": 6}
    head = "  ".join(f"{name:>{wide}}" for name, wide in players.items())
    lines = [f"{'rank':>4}  {head}  {'score':>10}  {'stderr':>9}"]
    for row in records:
        player = "  ".join(f"{row[name]:>{wide}}" for name, wide in players.items())
        lines.append(f"{row['rank']:>4}  {player}  {row['score']:>10.5f}  {row['stderr']:>9.5f}")
    return "\n".join(lines)


@click.command()
@click.argument("shards", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RUN | SCORES...")
@click.option("--out", type=click.Path(path_type=Path), help="The file to write, where score files are merged.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
def merge(shards: tuple[Path, ...], out: Path | None, overwrite: bool) -> None:
    """Merge what the workers of a run folder computed; or score files of one model: topics side by side, a topic's
    independent seeds into one estimate."""
    if len(shards) == 1 and shards[0].is_dir():
        if out is not None:
            raise ShapleyError(f"a run's result goes into its folder {shards[0]}: leave --out away")
        _merge_run(shards[0])
        return
    if out is None:
        raise ShapleyError("give --out for the merged score file (or one run folder, and nothing else)")
    check_output(out, overwrite=overwrite, inputs=shards, resumable=False)
    merge_scores(shards, out)
    click.echo(f"{len(ScoreFile(out).topics)} topics of {len(shards)} files: {out}")


def _merge_run(path: Path) -> None:
    from shapley.jobs.advance import merge as merge_rounds
    from shapley.jobs.folder import RunFolder
    from shapley.jobs.kinds import job_of

    run = RunFolder(path)
    standing = merge_rounds(run)
    for line in standing.damaged:
        click.echo(f"damaged, to be computed again: {line}")
    for stream in job_of(run).streams:
        if items := standing.missing.get(stream.name):
            names = ", ".join(map(stream.title, items[:5]))
            more = f" and {len(items) - 5} more" if len(items) > 5 else ""
            click.echo(f"{stream.name}: {len(items)} items missing: {names}{more}")
    if standing.finished:
        click.echo(f"finished: {run.result}")
