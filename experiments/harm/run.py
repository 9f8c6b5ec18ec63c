"""Is an impaired model a safer one? How toxic continuations are as all neurons are impaired by degrees, draw by draw.

    python -m experiments.harm.run --model smollm2 --size cpu

Continuations come from the server's own batches: a draw of noise is what an organisation would be served at that level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from joblib import Memory

from experiments.lab.commands import Measured, run_command
from experiments.lab.texts import COMMENT_TOPICS, Texts, comments
from experiments.lab.toxicity import Toxicity, judged
from shapley.files import cache_directory, digest
from shapley.hf.load import LanguageModel
from shapley.hf.scoring import RowPlan, RowScorer
from shapley.impairment import NOISE_KINDS, Impairment
from shapley.progress import Progress
from shapley.prompts import Prompt
from shapley.server.asked import Asked
from shapley.server.batch import Batch
from shapley.server.policy import Layer, Stack
from shapley.server.sampling import Sampler
from shapley.server.sequence import Running
from shapley.server.stream import TextStream

SEED = 0
UNTOUCHED = "none"
_NEW_TOKENS = 20
_ROWS = 40  # that are gone on with together


def work(lm: LanguageModel, prompts: Texts, config: Mapping[str, Any], data: Path) -> Measured:
    """All of it."""
    found = judged(comments(data))
    beginnings = {topic: found.beginnings[topic][: config["beginnings"]] for topic in COMMENT_TOPICS}
    every = [beginning for own in beginnings.values() for beginning in own]
    passages = prompts.plain.first(config["plain"]).prompts
    levels = [(None, 0), *_levels(config)]
    written: Any = Memory(cache_directory("experiments", "rows"), verbose=0).cache(_written, ignore=["lm", "every"])
    key = digest(*(text.encode() for text in (lm.fingerprint, *every)))
    progress = Progress(len(levels), f"continuations of {lm.name}", "levels")
    records = []
    for asked, draw in levels:
        level = None if asked is None else asked.model_dump_json()
        texts = written(key, level, draw, config["samples"], lm, every)
        records.append(
            {
                "kind": UNTOUCHED if asked is None else asked.kind,
                "strength": 0.0 if asked is None else asked.strength,
                "draw": draw,
                "toxicity": dict(zip(beginnings, _split(_toxicity(found.judge, texts), len(beginnings)), strict=True)),
                "known": round(float(np.mean([found.judge.known(text) for of in texts for text in of])), 4),
                "plain": _plain(lm, passages, asked, draw),
            }
        )
        progress.reach(len(records))
    progress.close()
    head = {"seed": SEED, "auc": found.auc, "beginnings": {topic: len(own) for topic, own in beginnings.items()}}
    return Measured(records, head)


def _levels(config: Mapping[str, Any]) -> Iterator[tuple[Asked, int]]:
    for kind, strengths in config["strengths"].items():
        for strength in strengths:
            for draw in range(config["draws"] if kind in NOISE_KINDS else 1):
                yield Asked(kind=kind, strength=strength), draw


def _toxicity(judge: Toxicity, texts: Sequence[Sequence[str]]) -> list[float]:
    """``[beginning]``, means over samples."""
    return [round(float(np.mean([judge(text) for text in of])), 4) for of in texts]


def _split(values: list[float], n: int) -> list[list[float]]:
    return [part.tolist() for part in np.split(np.array(values), n)]


def _written(
    key: str, level: str | None, draw: int, samples: int, lm: LanguageModel, every: Sequence[str]
) -> list[list[str]]:
    stack = () if level is None else (Layer(Asked.model_validate_json(level), draw),)
    return continuations(lm, every, stack, samples)


def continuations(lm: LanguageModel, beginnings: Sequence[str], stack: Stack, samples: int) -> list[list[str]]:
    """``[beginning][sample]``; the draws of tokens are the same at every level, and do not depend on what shares the batch."""
    rows = [
        Running(
            lm.tokenizer(beginning)["input_ids"],
            stack,
            _NEW_TOKENS,
            Sampler(1.0, seed=(SEED, i, sample)),
            TextStream(lm.tokenizer),
        )
        for i, beginning in enumerate(beginnings)
        for sample in range(samples)
    ]
    for start in range(0, len(rows), _ROWS):
        batch = Batch(lm, {})
        batch.enter(rows[start : start + _ROWS])
        while batch.entering:
            batch.advance()
        while batch.rows:
            batch.step()
    texts = [row.stream.text for row in rows]
    return [texts[i : i + samples] for i in range(0, len(texts), samples)]


def _plain(lm: LanguageModel, passages: Sequence[Prompt], asked: Asked | None, draw: int) -> float:
    """Mean log-probability of plain text, nats a token."""
    impairment = Impairment("scale", 0.0) if asked is None else asked.impairment(draw)
    values = RowScorer(lm, passages, impairment).values(["logprob"], RowPlan(np.arange(len(passages))))
    return round(float(values[0].mean()), 4)


main = run_command(__file__, __doc__, work)

if __name__ == "__main__":
    main()
