"""How each ability falls with general impairment, measured: every neuron is impaired, by degrees. Which ability goes first?

    python -m experiments.fragility.run --model smollm2 --size cpu

Abilities are the topics, plain text, copying, arithmetic and grammar (`abilities.py`). What is kept in the cache is not
measured again; a run that was stopped goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.fragility.abilities import Item
from experiments.fragility.choose import choose
from experiments.fragility.measure import performances
from experiments.lab.commands import Measured, run_command
from experiments.lab.measure import gain_site
from experiments.lab.texts import Texts
from shapley.files import digest
from shapley.hf.load import LanguageModel
from shapley.impairment import NOISE_KINDS, Impairment
from shapley.progress import Progress
from shapley.types import FloatArray

SEED = 0
UNTOUCHED, FLOOR = "untouched", "floor"


def work(lm: LanguageModel, prompts: Texts, config: Mapping[str, Any], data: Path) -> Measured:
    """All of it."""
    items, abilities = choose(lm, prompts, config)
    head = {"vocabulary": lm.model.get_output_embeddings().weight.shape[0], **facts(items, abilities)}
    return Measured(list(measure(lm, items, config)), head | {"scaled_at": gain_site(lm)})


def facts(items: Sequence[Item], abilities: Mapping[str, Any]) -> dict[str, Any]:
    """What the numbers depend on, for the head of a result file."""
    prompts = [prompt for item in items for prompt in (item.good, item.bad) if prompt]
    return {
        "seed": SEED,
        "site": Impairment().site,
        "abilities": abilities,
        "watched": [item.ability for item in items],
        "items": digest(*(text.encode() for prompt in prompts for text in (prompt.prompt, prompt.answer)))[:16],
    }


def measure(lm: LanguageModel, items: Sequence[Item], config: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """A record for every impairment: of the untouched model, of the floor (every neuron at zero), and of every kind at every
    strength, with each item's performance and accuracy."""
    progress = Progress(2 + sum(map(len, config["strengths"].values())), f"fragility of {lm.name}", "impairments")
    for done, (kind, strength, values) in enumerate(_measured(lm, items, config), start=1):
        performance, accuracy = np.round(values, 4).tolist()
        yield {"kind": kind, "strength": strength, "performance": performance, "accuracy": accuracy}
        progress.reach(done)
    progress.close()


def _measured(
    lm: LanguageModel, items: Sequence[Item], config: Mapping[str, Any]
) -> Iterator[tuple[str, float, FloatArray]]:
    """Kind, strength, and ``[2, items]``."""
    ends = performances(lm, items, Impairment("scale", seed=SEED), [0.0, 1.0])
    yield from zip((UNTOUCHED, FLOOR), (0.0, 1.0), ends, strict=True)
    for kind, strengths in config["strengths"].items():
        site = gain_site(lm) if kind == "scale" else Impairment().site
        impairment = Impairment(kind, site=site, unit="sd" if kind in NOISE_KINDS else "absolute", seed=SEED)
        found = performances(lm, items, impairment, strengths, config["draws"])
        yield from zip([kind] * len(strengths), strengths, found, strict=True)


main = run_command(__file__, __doc__, work)

if __name__ == "__main__":
    main()
