"""``shapley prompts build``."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import click

from shapley.cli.options import model_options, parse_memory
from shapley.errors import ShapleyError
from shapley.progress import say
from shapley.prompts import Prompt, held_out_path, write_prompts


@click.group()
def prompts() -> None:
    """Make keyword prompts."""


@prompts.command()
@model_options
@click.option("--corpus", required=True, help="A CSV of topic,text; embedded; embedded-comments; or a hub data set.")
@click.option("--text-column", default="text", show_default=True)
@click.option("--topic-column", default="topic", show_default=True)
@click.option("--topics", help="Comma-separated. [default: all of the corpus]")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="Prompts to select on; held-out ones beside it."
)
@click.option("--per-topic", type=click.IntRange(1), help="At most so many a topic on each side of the split.")
@click.option("--max-sentences", type=click.IntRange(1, 3), default=3, show_default=True)
@click.option("--max-tokens", type=click.IntRange(8), default=96, show_default=True)
@click.option("--known-only", is_flag=True, help="Keep only prompts that the unimpaired model gets right.")
@click.option("--match-loss", is_flag=True, help="Keep prompts so that topics are equally hard for the model.")
@click.option("--same-keywords", is_flag=True, help="Hold out the selection's keywords, in other documents.")
@click.option("--seed", default=0, show_default=True, help="Of the split.")
@click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def build(
    model: str,
    device: str,
    trust_remote_code: bool,
    memory: str | None,
    corpus: str,
    text_column: str,
    topic_column: str,
    topics: str | None,
    out: Path,
    per_topic: int | None,
    max_sentences: int,
    max_tokens: int,
    known_only: bool,
    match_loss: bool,
    same_keywords: bool,
    seed: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Build prompts from a corpus; the model scores each, so that known ones are marked.

    OUT gets the prompts to select on, OUT's name with .held-out those of other documents and other keywords
    (with --same-keywords, of other documents and the same).
    """
    from shapley.builder import build_prompts, match_on_loss, read_corpus
    from shapley.files import check_output

    beside = held_out_path(out)
    for path in (out, beside):
        check_output(path, overwrite=overwrite, inputs=[corpus], resumable=False)
    limit = parse_memory(memory)
    documents = read_corpus(corpus, text_column, topic_column)
    names = [name.strip() for name in topics.split(",")] if topics else list(documents)
    from shapley.hf.baseline import score_baseline
    from shapley.hf.load import load_model

    lm = load_model(model, device=device, trust_remote_code=trust_remote_code)
    sides = build_prompts(
        documents,
        names,
        lambda text: len(lm.tokenizer(text)["input_ids"]),
        seed=seed,
        per_topic=per_topic,
        max_sentences=max_sentences,
        max_tokens=max_tokens,
        same_keywords=same_keywords,
    )
    summary: dict[str, dict[str, dict[str, float]]] = {}
    written: dict[Path, list[Prompt]] = {}
    for path, side in zip((out, beside), sides, strict=True):
        say(f"scoring {len(side)} prompts on the unimpaired model")
        scored = score_baseline(lm, side, limit)
        scored = [prompt for prompt in scored if prompt.known] if known_only else scored
        scored = match_on_loss(scored) if match_loss else scored
        missing = set(names) - {prompt.topic for prompt in scored}
        if missing:
            raise ShapleyError(
                f"no prompts of {', '.join(sorted(missing))} are left: relax --known-only or --match-loss"
            )
        written[path] = scored
        summary[str(path)] = summarise(scored)
    for path, scored in written.items():
        write_prompts(path, scored)
    if as_json:
        click.echo(json.dumps(summary))
        return
    for name, by_topic in summary.items():
        for topic, figures in by_topic.items():
            click.echo(
                f"{name}: {topic}: {figures['prompts']:.0f} prompts, {figures['keywords']:.0f} keywords, "
                f"{figures['known']:.0%} known, mean log-probability {figures['logprob']:.2f}"
            )


def summarise(scored: list[Prompt]) -> dict[str, dict[str, float]]:
    """Per topic: how many prompts and keywords, the share known, the mean log-probability."""
    counts = Counter(prompt.topic for prompt in scored)
    result = {}
    for topic, count in counts.items():
        own = [prompt for prompt in scored if prompt.topic == topic]
        result[topic] = {
            "prompts": count,
            "keywords": len({prompt.answer for prompt in own}),
            "known": sum(bool(prompt.known) for prompt in own) / count,
            "logprob": sum(prompt.logprob or 0.0 for prompt in own) / count,
        }
    return result
