"""``shapley neurons``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shapley.builder import read_corpus
from shapley.cli.options import model_options, parse_memory
from shapley.clusters import DEFAULT_GUARD, Cluster, rank
from shapley.errors import ShapleyError
from shapley.files import check_output, write_text
from shapley.store import ScoreFile

if TYPE_CHECKING:
    from shapley.look.seen import Player

_TOP_K = 50


@click.command()
@click.argument("scores", required=False, type=click.Path(path_type=Path))
@click.option("--topic", help="The highest-scoring players of this topic in SCORES.")
@click.option("--top-k", type=click.IntRange(1), help=f"So many of them.  [default: {_TOP_K}]")
@click.option("--versus", multiple=True, metavar="TOPIC", help="Rank by contrast with these topics.")
@click.option("--cluster", type=click.Path(path_type=Path), help="The neurons of a cluster file, instead.")
@click.option("--players", "named", metavar="L:N,…", help="These neurons, by layer and number, instead.")
@click.option(
    "--corpus", default="embedded", show_default=True, help="Passages: a CSV file of topic,text, or a corpus' name."
)
@click.option("--text-column", default="text", show_default=True)
@click.option("--topic-column", default="topic", show_default=True)
@click.option("--passages", type=click.IntRange(2), help="So many passages, drawn at random. [default: all]")
@click.option("--tokens", default=32, show_default=True, type=click.IntRange(2), help="Of a passage, at most.")
@model_options
@click.option("--out", type=click.Path(path_type=Path), help="The page to write, a name that ends in .html.")
@click.option("--json", "as_json", is_flag=True, help="Print the record as JSON.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
def neurons(
    scores: Path | None,
    topic: str | None,
    top_k: int | None,
    versus: tuple[str, ...],
    cluster: Path | None,
    named: str | None,
    corpus: str,
    text_column: str,
    topic_column: str,
    passages: int | None,
    tokens: int,
    model: str,
    device: str,
    memory: str | None,
    trust_remote_code: bool,
    out: Path | None,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Look at neurons: what they are active on, what they write, their scores, and how simple they are.

    Which: the top of a topic in SCORES (--topic), or --cluster, or --players. As one HTML page (--out), as JSON (--json), or
    both.
    """
    if out is None and not as_json:
        raise ShapleyError("nothing to write: give --out PAGE.html, or --json")
    if out is not None:
        if out.suffix.lower() not in (".html", ".htm"):
            raise ShapleyError(f"--out {out}: expected a name that ends in .html")
        inputs = [path for path in (scores, cluster) if path is not None]
        check_output(out, overwrite=overwrite, inputs=inputs, resumable=False)
    file = None if scores is None else ScoreFile(scores)
    players = _players(file, topic, top_k, versus, cluster, named)
    texts = read_corpus(corpus, text_column, topic_column)
    from shapley.hf.load import describe, load_model
    from shapley.look.cards import record
    from shapley.look.page import page
    from shapley.look.seen import cut

    lm = load_model(model, device=device, trust_remote_code=trust_remote_code)
    if cluster is not None:
        Cluster.load(cluster).check_model(describe(lm), cluster)
    found = record(lm, players, cut(texts, lm.tokenizer, tokens, passages), file, parse_memory(memory))
    if as_json:
        click.echo(json.dumps(found))
    if out is not None:
        title = f"{len(players)} neurons of {lm.name}" + (f": {topic}" if topic else "")
        write_text(out, page(found, title))
        click.echo(f"{len(players)} neurons: {out}", err=as_json)


def _players(
    file: ScoreFile | None,
    topic: str | None,
    top_k: int | None,
    versus: tuple[str, ...],
    cluster: Path | None,
    named: str | None,
) -> list[Player]:
    ways = [
        way for way, given in (("--topic", topic), ("--cluster", cluster), ("--players", named)) if given is not None
    ]
    if len(ways) != 1:
        raise ShapleyError(
            f"{' and '.join(ways) or 'no neurons'} given: name them by one of --topic (of SCORES), --cluster and --players"
        )
    if topic is None and (top_k is not None or versus):
        raise ShapleyError("--top-k and --versus go with --topic: leave them away")
    if topic is not None:
        if file is None:
            raise ShapleyError(f"--topic {topic} is of a score file: name it")
        ranking = rank(file, topic, versus, DEFAULT_GUARD)
        width = ranking.score.shape[1]
        if ranking.group is not None:
            raise ShapleyError(
                f"the players of {file.path} are groups: give --players, the neurons that you want to see"
            )
        return [(int(i) // width, int(i) % width) for i in ranking.best(_TOP_K if top_k is None else top_k)]
    if cluster is not None:
        found = Cluster.load(cluster)
        if found.site != "mlp_hidden":
            raise ShapleyError(f"{cluster} holds columns of {found.site}: neurons are those of mlp_hidden")
        return list(found.neurons)
    from shapley.look.cards import parse_players

    return parse_players(named or "")
