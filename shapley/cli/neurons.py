"""``shapley neurons``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from shapley.builder import read_corpus
from shapley.cli.options import model_options, parse_memory
from shapley.clusters import DEFAULT_GUARD, Cluster, rank
from shapley.errors import ShapleyError
from shapley.files import check_output, write_text
from shapley.impairment import SITES
from shapley.store import ScoreFile
from shapley.types import Site

if TYPE_CHECKING:
    from shapley.look.players import Player

_TOP_K = 50
_MOST = 1000  # each keeps its activation at every token


@click.command()
@click.argument("scores", required=False, type=click.Path(path_type=Path))
@click.option("--topic", help="The highest-scoring players of this topic in SCORES.")
@click.option("--top-k", type=click.IntRange(1), help=f"So many of them. [default: {_TOP_K}, or all]")
@click.option("--versus", multiple=True, metavar="TOPIC", help="Rank by contrast with these topics.")
@click.option("--cluster", type=click.Path(path_type=Path), help="The players of a cluster file, instead.")
@click.option("--players", "named", metavar="L:N,…", help="These players, by layer and number, instead.")
@click.option("--sample", type=click.IntRange(1), metavar="N", help="So many players, drawn at random, instead.")
@click.option(
    "--site",
    type=click.Choice(SITES),
    help="Of --players and --sample: mlp_hidden for neurons, the others for directions of the residual stream. "
    "[default: that of SCORES, or mlp_hidden]",
)
@click.option(
    "--corpus", default="embedded", show_default=True, help="Passages: a CSV file of topic,text, or a corpus' name."
)
@click.option("--text-column", default="text", show_default=True)
@click.option("--topic-column", default="topic", show_default=True)
@click.option("--passages", type=click.IntRange(2), help="Draw so many at random, copies left out. [default: all]")
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
    sample: int | None,
    site: Site | None,
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

    Which: the top of a topic in SCORES (--topic), or --cluster, --players or --sample. Directions (--basis, --site) and the
    units of a sparse layer (--model MODEL@sparse:FILE) are looked at in the same way.

    As one HTML page (--out), as JSON (--json), or both.
    """
    if out is None and not as_json:
        raise ShapleyError("nothing to write: give --out PAGE.html, or --json")
    if out is not None:
        if out.suffix.lower() not in (".html", ".htm"):
            raise ShapleyError(f"--out {out}: expected a name that ends in .html")
        inputs = [path for path in (scores, cluster) if path is not None]
        check_output(out, overwrite=overwrite, inputs=inputs, resumable=False)
    _check_ways(topic, top_k, versus, cluster, named, sample)
    file = None if scores is None else ScoreFile(scores)
    asked = _asked(file, topic, top_k, versus, cluster, named, site)
    texts = read_corpus(corpus, text_column, topic_column)
    from shapley.hf.load import describe, load_model
    from shapley.look.cards import record
    from shapley.look.page import page
    from shapley.look.players import Players
    from shapley.look.seen import cut

    lm = load_model(model, device=device, trust_remote_code=trust_remote_code)
    if tokens > (lm.most_tokens or tokens):
        raise ShapleyError(f"--tokens {tokens}: {lm.name} takes {lm.most_tokens}")
    if cluster is not None:
        Cluster.load(cluster).check_model(describe(lm), cluster)
    every = Players(lm, asked.site)
    players = every.sample(sample) if sample is not None else asked.players
    if len(players) > _MOST:
        raise ShapleyError(f"{len(players)} {every.noun}s are too many for a page: ask for {_MOST} at most")
    found = record(every, players, cut(texts, lm.tokenizer, tokens, passages), file, parse_memory(memory))
    if as_json:
        click.echo(json.dumps(found))
    if out is not None:
        what = f"{len(players)} {every.noun}" + ("" if len(players) == 1 else "s")
        write_text(out, page(found, f"{what} of {lm.name}" + (f": {topic}" if topic else "")))
        click.echo(f"{what}: {out}", err=as_json)


@dataclass(frozen=True)
class _Asked:
    """Columns of a site; none yet, where they are drawn at random."""

    site: Site
    players: list[Player]


def _check_ways(
    topic: str | None,
    top_k: int | None,
    versus: tuple[str, ...],
    cluster: Path | None,
    named: str | None,
    sample: int | None,
) -> None:
    given = {"--topic": topic, "--cluster": cluster, "--players": named, "--sample": sample}
    ways = [way for way, value in given.items() if value is not None]
    if len(ways) != 1:
        raise ShapleyError(
            f"{' and '.join(ways) or 'no neurons'} given: name them by one of --topic (of SCORES), --cluster, --players and "
            "--sample"
        )
    if topic is None and (top_k is not None or versus):
        raise ShapleyError("--top-k and --versus go with --topic: leave them away")


def _asked(
    file: ScoreFile | None,
    topic: str | None,
    top_k: int | None,
    versus: tuple[str, ...],
    cluster: Path | None,
    named: str | None,
    site: Site | None,
) -> _Asked:
    if topic is not None:
        if file is None:
            raise ShapleyError(f"--topic {topic} is of a score file: name it")
        ranking = rank(file, topic, versus, DEFAULT_GUARD)
        width = ranking.score.shape[1]
        if ranking.group is not None:
            raise ShapleyError(
                f"the players of {file.path} are groups: give --players, the neurons that you want to see"
            )
        best = ranking.best(min(_TOP_K, len(ranking.order())) if top_k is None else top_k)
        own = _agreed(site, file.attrs(topic)["site"], file.path)
        return _Asked(own, [(int(i) // width, int(i) % width) for i in best])
    if cluster is not None:
        found = Cluster.load(cluster)
        return _Asked(_agreed(site, found.site, cluster), list(found.neurons))
    if site is None and file is not None and file.topics:
        site = file.attrs(file.topics[0])["site"]
    from shapley.look.players import parse_players

    return _Asked(site or "mlp_hidden", parse_players(named) if named is not None else [])


def _agreed(asked: Site | None, own: Site, path: Path) -> Site:
    if asked not in (None, own):
        raise ShapleyError(f"{path} holds columns of {own}, not of {asked}: leave --site away")
    return own
