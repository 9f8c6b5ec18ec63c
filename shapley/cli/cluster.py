"""``shapley cluster`` and ``selectors``: neurons chosen for a topic. Selectors that read scores do not wait for torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np

from shapley.cli.options import optional_model_options, parse_memory
from shapley.clusters import DEFAULT_GUARD, Cluster, Ranking, select
from shapley.errors import ShapleyError, unknown_name
from shapley.files import check_output
from shapley.progress import say
from shapley.prompts import read_prompts
from shapley.selectors import NAMES, selector
from shapley.selectors.base import Evidence, Selector
from shapley.store import ScoreFile
from shapley.types import Site

if TYPE_CHECKING:
    from shapley.selectors.choose import Choice

_AUTO = "auto"


@click.command()
@click.argument("scores", required=False, type=click.Path(path_type=Path))
@click.option("--topic", required=True)
@click.option("--selector", "name", help="How neurons are ranked: see 'shapley selectors'. [default: by the score]")
@click.option(
    "--like",
    type=click.Path(path_type=Path),
    help="With --selector random: as many neurons in each layer as in this cluster file, matched in activation norm.",
)
@click.option("--top-k", type=int, help="So many neurons, or groups.")
@click.option("--fraction", type=float, help="This fraction of all neurons, or groups.")
@click.option("--per-layer", is_flag=True, help="The fraction of each layer instead.")
@click.option(
    "--versus", multiple=True, metavar="TOPIC", help="Hold the topic against these. [with --selector: all others]"
)
@click.option(
    "--guard",
    help="Minus so many times the largest absolute value elsewhere; 0: minus the others' mean; auto: what does best on the "
    f"prompts to select on. [default: {DEFAULT_GUARD:g}]",
)
@click.option(
    "--prompts", type=click.Path(path_type=Path), help="Prompts to select on, for selectors that read the model."
)
@click.option("--seed", default=0, show_default=True, help="Of what a selector draws.")
@optional_model_options
@click.option("--out", required=True, type=click.Path(path_type=Path))
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
def cluster(
    scores: Path | None,
    topic: str,
    name: str | None,
    like: Path | None,
    top_k: int | None,
    fraction: float | None,
    per_layer: bool,
    versus: tuple[str, ...],
    guard: str | None,
    prompts: Path | None,
    seed: int,
    model: str | None,
    device: str,
    trust_remote_code: bool,
    memory: str | None,
    out: Path,
    overwrite: bool,
) -> None:
    """Select a topic's cluster of neurons and write it as JSON: from SCORES, or by other selectors from a model."""
    inputs = [path for path in (scores, prompts, like) if path is not None]
    check_output(out, overwrite=overwrite, inputs=inputs, resumable=False)
    if scores is None and model is None:
        raise ShapleyError("nothing to select from: name a score file, or give --model and --prompts with --selector")
    if (model is None) != (prompts is None):
        raise ShapleyError("--model and --prompts go together: give both, for selectors that read the model")
    given = {"--device": device != "auto", "--trust-remote-code": trust_remote_code, "--memory": memory is not None}
    for option in (option for option, is_given in given.items() if is_given and model is None):
        raise ShapleyError(f"{option} goes with --model: leave it away, or give --model and --prompts")
    chosen = _selector(name, versus, guard)
    if like is not None:
        if name != "random" or model is None:
            raise ShapleyError(
                "--like draws random neurons by their activations: give --selector random, --model and --prompts"
            )
        chosen = replace(chosen, like=str(like))  # type: ignore[type-var]
        top_k = len(Cluster.load(like)) if top_k is None and fraction is None else top_k
    file = None if scores is None else ScoreFile(scores)
    known = read_prompts(prompts) if prompts else {}
    evidence = Evidence(file, None, known, memory=parse_memory(memory), seed=seed)
    others = _others(chosen, topic, versus, evidence, everyone=name is not None)
    if model is not None:
        from shapley.hf.load import load_model

        evidence = replace(evidence, lm=load_model(model, device=device, trust_remote_code=trust_remote_code))
    rule: dict[str, Any] = {"topic": topic, "selector": chosen.name}
    if guard == _AUTO:
        choice = _choose(
            chosen, evidence, topic, others, {"top_k": top_k, "fraction": fraction, "per_layer": per_layer}
        )
        rule["tried"] = {f"{tried:g}": [choice.target[tried], choice.others[tried]] for tried in choice.target}
        chosen = _with_guard(chosen, choice.guard)
    ranking = chosen.rank(evidence, topic, others)
    neurons = select(ranking, top_k=top_k, fraction=fraction, per_layer=per_layer)
    # What a selector reads off the model, or draws, is of the neurons themselves, at whatever site the scores are.
    by_scores = chosen.reads == "scores"
    site: Site = evidence.score_file(chosen.name).attrs(topic)["site"] if by_scores else "mlp_hidden"
    settings = {"top_k": top_k, "fraction": fraction, "per_layer": per_layer or None, "versus": list(others) or None}
    rule |= {key: value for key, value in settings.items() if value is not None}
    of_selector = {field.name: getattr(chosen, field.name) for field in fields(chosen)}  # type: ignore[arg-type]
    rule |= {key: value for key, value in of_selector.items() if value is not None}
    if chosen.name == "contrast":
        rule["guard"] = 0.0
    if not by_scores:
        rule["seed"] = seed
    if ranking.group is not None:
        rule["of"] = "groups"
    Cluster(neurons, site, _model(evidence), rule).save(out)
    click.echo(f"{len(neurons)} neurons in {len({layer for layer, _ in neurons})} layers: {out}")


def _selector(name: str | None, versus: Sequence[str], guard: str | None) -> Selector:
    """By name; without one what --versus and --guard say of scores."""
    number = None if guard in (None, _AUTO) else _number(guard)
    if name is None:
        if not versus:
            if guard is not None:
                raise ShapleyError("--guard goes with --versus: name the topics to guard against")
            return _named("shapley")
        name = "contrast" if number == 0 else "guarded"
        guard = None if number == 0 else guard
    chosen = _named(name)
    if versus and not chosen.compares:
        raise ShapleyError(f"selector {name!r} ranks a topic by itself: leave --versus away")
    if guard is None:
        return chosen
    if not any(field.name == "guard" for field in fields(chosen)):  # type: ignore[arg-type]
        raise ShapleyError(f"selector {name!r} has no guard: leave --guard away")
    return chosen if number is None else _with_guard(chosen, number)


def _named(name: str) -> Selector:
    chosen: Selector = selector(name)
    return chosen


def _with_guard(chosen: Selector, guard: float) -> Selector:
    changed: Selector = replace(chosen, guard=guard)  # type: ignore[type-var]
    return changed


def _number(guard: str | None) -> float:
    try:
        number = float(guard or "")
    except ValueError:
        number = float("nan")
    if not 0 <= number < float("inf"):
        raise ShapleyError(f"--guard {guard} must be a number of at least 0, or auto")
    return number


def _others(chosen: Selector, topic: str, versus: Sequence[str], evidence: Evidence, everyone: bool) -> list[str]:
    """The topics to compare with; all others where a selector was named and they were not."""
    for other in (topic, *versus):
        if other not in evidence.topics:
            raise unknown_name("topic", other, evidence.topics)
    if topic in versus:
        raise ShapleyError(f"topic {topic!r} is ranked against itself: leave it out of --versus")
    if not chosen.compares:
        return []
    others = list(versus) or ([other for other in evidence.topics if other != topic] if everyone else [])
    if not others:
        raise ShapleyError(f"selector {chosen.name!r} holds a topic against others, and there is only {topic!r}")
    return others


def _choose(chosen: Selector, evidence: Evidence, topic: str, others: Sequence[str], rule: Mapping[str, Any]) -> Choice:
    from shapley.selectors.choose import GUARDS, choose_guard

    if evidence.lm is None:
        raise ShapleyError("--guard auto tries clusters on the model: give --model and --prompts")
    if rule["per_layer"]:
        raise ShapleyError("--guard auto chooses for clusters of the whole model: leave --per-layer away")
    site: Site = evidence.score_file(chosen.name).attrs(topic)["site"] if chosen.reads == "scores" else "mlp_hidden"
    rankings: dict[float, Ranking] = {
        guard: _with_guard(chosen, guard).rank(evidence, topic, others) for guard in GUARDS
    }
    first = next(iter(rankings.values()))
    neurons = np.array(select(first, **rule))  # of groups, all their neurons, while choose_guard counts groups
    k = len(neurons) if first.group is None else len(np.unique(first.group[neurons[:, 0], neurons[:, 1]]))
    prompts = {name: evidence.prompts_of(name) for name in (topic, *others)}
    rows = (1 + len(GUARDS)) * sum(len(own.prompts) for own in prompts.values())
    guards = ", ".join(f"{guard:g}" for guard in GUARDS)
    say(f"{topic}: trying the guards {guards} on {len(prompts)} topics, {rows} forward rows")
    return choose_guard(evidence.lm, prompts, topic, rankings, k, site=site, memory=evidence.memory)


def _model(evidence: Evidence) -> dict[str, Any]:
    if evidence.scores is not None:
        return {key: evidence.scores.model[key] for key in ("name", "fingerprint")}
    lm = evidence.model("cluster")
    return {"name": lm.name, "fingerprint": lm.fingerprint}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def selectors(as_json: bool) -> None:
    """What 'shapley cluster --selector' knows: name, what it reads, where it is from."""
    known = [selector(name) for name in NAMES]
    if as_json:
        keys = ("name", "reads", "compares", "source")
        click.echo(json.dumps([{key: getattr(own, key) for key in keys} for own in known]))
        return
    for own in known:
        click.echo(f"{own.name:20} {own.reads:16} {own.source}")
