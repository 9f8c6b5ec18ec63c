"""``shapley assess``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shapley.errors import ShapleyError
from shapley.files import write_error
from shapley.impairment import SITES
from shapley.progress import say

if TYPE_CHECKING:
    from shapley.assess.tasks import Task

_LM_EVAL, _INSPECT = "lm-eval:", "inspect:"
_NOTHING_TESTED = 1  # exit code


@click.command()
@click.option("--endpoint", required=True, metavar="URL", help="Of an OpenAI-compatible API that takes an impairment.")
@click.option("--model", required=True, help="Its name at the endpoint.")
@click.option(
    "--task",
    required=True,
    metavar=f"FILE.jsonl|{_LM_EVAL}NAME|{_INSPECT}FILE.py@NAME",
    help="What is asked. More score is more of what is feared.",
)
@click.option(
    "--scorer",
    help="exact, includes, regex or choice; lm-eval: a metric; inspect: a scorer. [default: includes; the first]",
)
@click.option(
    "--threshold", required=True, type=float, help="The mean score that must not be reached, between 0 and 1."
)
@click.option("--levels", required=True, metavar="KIND:A,B,…", help="From heavy to light, as noise:2,1,0.5,0.25,0.")
@click.option("--site", type=click.Choice(SITES), default="mlp_hidden", show_default=True)
@click.option("--cluster", help="The operator's name of a cluster. [default: the whole site]")
@click.option("--confidence", default=0.95, show_default=True, help="Of all verdicts together.")
@click.option(
    "--least",
    default=50,
    show_default=True,
    type=click.IntRange(1),
    help="Items to ask at a level before it may be called safe; the test for a rise with impairment is of these.",
)
@click.option(
    "--margin",
    default="step",
    show_default=True,
    help="To the least level shown safe: 'step' (a level), or a strength.",
)
@click.option("--max-tokens", default=256, show_default=True, type=click.IntRange(1), help="Of a reply.")
@click.option(
    "--batch", default=8, show_default=True, type=click.IntRange(1, 256), help="Items between looks; asked at once."
)
@click.option("--timeout", default=120.0, show_default=True, type=click.FloatRange(1), help="Seconds for a reply.")
@click.option("--seed", default=0, show_default=True, help="Of the items' order.")
@click.option(
    "--key-env", default="SHAPLEY_API_KEY", show_default=True, help="The environment variable with the API key."
)
@click.option("--key-file", type=click.Path(path_type=Path), help="A file with the API key, instead.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="A folder for the journal and the report.")
@click.option(
    "--resume", is_flag=True, help="Go on with the journal in --out; of a finished one, write the report again."
)
@click.option("--signed-by", metavar="NAME", help="Who answers for the report.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def assess(
    endpoint: str,
    model: str,
    task: str,
    scorer: str | None,
    threshold: float,
    levels: str,
    site: str,
    cluster: str | None,
    confidence: float,
    least: int,
    margin: str,
    max_tokens: int,
    batch: int,
    timeout: float,
    seed: int,
    key_env: str,
    key_file: Path | None,
    out: Path,
    resume: bool,
    signed_by: str | None,
    as_json: bool,
) -> None:
    """Evaluate a model that is served impaired, from heavy to light impairment, and stop before it is dangerous.

    A level is left for a lighter one when its mean score is shown to be below the threshold. The report says which levels
    were shown safe, which one to release at, and whether the score rises with impairment, as with a model that underperforms
    on purpose. The exit code is 1 where the operator let no level be tested.
    """
    from shapley.assess.client import Client, base_address, read_key
    from shapley.assess.journal import open_journal
    from shapley.assess.ladder import climb
    from shapley.assess.levels import parse_levels
    from shapley.assess.plan import Plan, asked_order
    from shapley.assess.report import write_report

    if not math.isfinite(timeout):
        raise ShapleyError("--timeout: expected a finite number of seconds")
    wanted_levels = parse_levels(levels, site, cluster)
    client = Client(endpoint, model, read_key(key_file, key_env), timeout, say)
    items = _task(task, scorer, max_tokens)
    plan = Plan(
        base_address(endpoint),
        model,
        items.name,
        items.scorer,
        items.sha256,
        asked_order(items.ids, seed),
        wanted_levels,
        threshold,
        confidence,
        least,
        margin,
        max_tokens,
        seed,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(out, error) from error
    with open_journal(out / "journal.jsonl", plan, resume=resume) as journal:
        climb(journal, items, client, batch=batch, say=say)
        report = write_report(journal.path, signed_by)
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        _print(report, out)
    if report["least_tested"] is None:
        click.get_current_context().exit(_NOTHING_TESTED)


def _print(report: dict[str, Any], out: Path) -> None:
    if report["warned"]:
        click.echo(f"WARNING: the score rises with impairment (p = {report['rise']['p']:.2g}): see the report")
    click.echo(f"ended: {report['end']}")
    click.echo(
        f"least impairment tested: {report['least_tested'] or 'none'}; shown safe: {report['least_safe'] or 'none'}"
    )
    click.echo(f"recommended for release: {report['release']['level'] or 'none, as ' + report['release']['why_none']}")
    click.echo(f"report in {out / 'report.html'}")


def _task(name: str, scorer: str | None, max_tokens: int) -> Task:
    if name.startswith(_LM_EVAL):
        from shapley.assess.lmeval import LmEvalTask

        return LmEvalTask(name.removeprefix(_LM_EVAL), scorer)
    if name.startswith(_INSPECT):
        from shapley.assess.inspect import InspectTask

        return InspectTask(name.removeprefix(_INSPECT), scorer, max_tokens)
    from shapley.assess.tasks import JsonlTask

    return JsonlTask(Path(name), scorer or "includes", max_tokens)
