"""What does a sparse MLP layer cost, in place of the last block's MLP (`replace`) or after the last block (`add`)?

    python -m experiments.sparse.run --model smollm2 --size cpu
    python -m experiments.sparse.run --model gpt2-xl --size full --place replace    # on a GPU, from the hub

Everything but the layer is frozen. Checkpoints and the trained layers are kept in the cache: a run that was stopped goes on,
and one of both places, which is what is drawn, goes on from runs of one.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import yaml
from torch import Tensor

from experiments.lab import models
from experiments.lab.commands import Measured, mistakes
from experiments.lab.provenance import provenance
from experiments.lab.results import store
from experiments.lab.texts import corpora, passages
from experiments.sparse.simplicity import of_layer, of_neurons
from shapley.files import cache_directory, digest
from shapley.hf.load import LanguageModel, describe, load_model
from shapley.progress import say
from shapley.sparse.frozen import FrozenText
from shapley.sparse.insert import PLACES, Place, inserted, original_parameters
from shapley.sparse.kept import save_layer
from shapley.sparse.layer import LayerSpec, SparseLayer, units_for
from shapley.sparse.text import split
from shapley.sparse.train import Training, train
from shapley.sparse.usage import dead, entropy, frequencies

HERE = Path(__file__).parent
SEED = 0  # of the intervals


@click.command(help=__doc__)
@click.option(
    "--model",
    default=models.MODELS[0],
    show_default=True,
    help=f"{', '.join(models.MODELS)}, or any that shapley takes.",
)
@click.option("--size", type=click.Choice(["small", "cpu", "full"]), default="small", show_default=True)
@click.option("--place", type=click.Choice([*PLACES, "both"]), default="both", show_default=True)
@click.option("--data", type=click.Path(path_type=Path), default=Path("../shared/data"), show_default=True)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="[default: results/MODEL-SIZE.jsonl beside this file, of one place MODEL-SIZE-PLACE.jsonl]",
)
@click.option("--device", help="As torch names it. [default: the GPU where there is one]")
def main(model: str, size: str, place: str, data: Path, out: Path | None, device: str | None) -> None:
    config = yaml.safe_load((HERE / "config.yaml").read_text())[size]
    name = Path(model).name
    out = out or HERE / "results" / f"{name}-{size}{'' if place == 'both' else f'-{place}'}.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    places = PLACES if place == "both" else tuple(one for one in PLACES if one == place)
    with mistakes():
        corpus = passages(data)
        lm = models.load(model, device) if model in models.MODELS else load_model(model, device=device)
        folder = cache_directory("experiments", "sparse", f"{name}-{lm.fingerprint[:8]}")
        found = work(lm, corpus, config, places, folder)
        command = f"python -m experiments.sparse.run --model {model} --size {size} --place {place}"
        head = provenance(lm, None, command, {"passages": corpora(data)["passages"]}) | {
            "size": size,
            "config": config,
            "seconds": round(time.monotonic() - start),
            **found.head,
        }
        store(out, head, found.records)
    say(f"{len(found.records)} records: {out}")


def work(
    lm: LanguageModel,
    corpus: Mapping[str, Sequence[str]],
    config: Mapping[str, Any],
    places: Sequence[Place],
    folder: Path,
) -> Measured:
    """Every place, arm and seed.

    Args:
        corpus: texts by topic.
        folder: for checkpoints and trained layers.
    """
    sizes = {name: config[name] for name in ("train", "held_out", "max_tokens")}
    documents = split(corpus, lm.tokenizer, **sizes)
    text, held_out = FrozenText(lm, documents.train, "text"), FrozenText(lm, documents.held_out, "held-out text")
    untouched = rounded(held_out.by_document())
    runs = list(itertools.product(places, config["arms"], config["seeds"]))
    records = []
    for i, (place, arm, seed) in enumerate(runs, start=1):
        label = f"{place}, {arm}, seed {seed} ({i} of {len(runs)})"
        plan = Training(**config["training"], seed=seed)
        spec = spec_of(lm, config, arm, seed)
        found = measured(text, documents.topics, held_out, place, spec, plan, folder, label)
        records.append({"place": place, "arm": arm, "seed": seed} | found)
        gap = np.average(np.array(found["at_inference"]["losses"]) - untouched, weights=held_out.targets)
        say(f"{label}: {gap:+.3f} nats a token against the original")
    original = {
        "losses": untouched,
        "tokens": held_out.targets.tolist(),
        "parameters": original_parameters(lm),
        "simple": of_neurons(text, documents.topics),
    }
    return Measured(records, {"seed": SEED, "original": original})


def spec_of(lm: LanguageModel, config: Mapping[str, Any], arm: str, seed: int) -> LayerSpec:
    """An arm's layer, of as many parameters as the model's own MLP."""
    settings = config["layer"] | config["arms"][arm]
    width = lm.sites.d_model
    units = units_for(original_parameters(lm), width, settings["weight_density"])
    return LayerSpec(width, units, **settings, seed=seed)


def measured(
    text: FrozenText,
    topics: Sequence[str],
    held_out: FrozenText,
    place: Place,
    spec: LayerSpec,
    plan: Training,
    folder: Path,
    label: str,
) -> dict[str, Any]:
    """Train a layer, or go on; what it came to. The layer is stored in ``folder``, for what is measured of its units later
    (``shapley.sparse.kept.load_layer``, ``shapley.sparse.insert.inserted``)."""
    layer = SparseLayer(spec, text.write)
    name = digest(repr((spec, plan, place, text.digest, held_out.digest)).encode())[:16]
    done = train(layer, place, text, held_out, plan, folder / f"{name}.checkpoint", label=label)
    kept = folder / f"{name}.safetensors"
    save_layer(kept, layer, place, describe(text.lm))
    at_k = at_inference = used(layer, place, text, held_out)
    if spec.inference_factor != 1:  # as many winners as in training, in which arms are alike
        layer.winners.inference_factor = 1.0
        at_k = used(layer, place, text, held_out)
    return {
        "curve": [asdict(point) for point in done.curve],
        "units": spec.units,
        "parameters": layer.parameter_count,
        "at_inference": at_inference,
        "at_k": at_k,
        "simple": of_layer(layer, place, text, topics),
        "seconds": round(done.seconds),
        "layer": f"{folder.name}/{kept.name}",
    }


def used(layer: SparseLayer, place: Place, text: FrozenText, held_out: FrozenText) -> dict[str, Any]:
    """What a layer's winners cost, and how evenly units win."""
    shares = frequencies(layer, place, text)
    return {
        "losses": rounded(by_document(layer, place, held_out)),
        "density": round(float(shares.mean()), 5),
        "entropy": round(entropy(shares), 5),
        "dead": round(dead(shares), 5),
        "shares": rounded(np.quantile(shares, np.linspace(0, 1, 101))),
    }


def by_document(layer: SparseLayer, place: Place, text: FrozenText) -> Tensor:
    """``[documents]``, mean losses with the layer in the model."""
    with inserted(text.lm, layer, place):
        return text.by_document()


def rounded(values: Iterable[Any]) -> list[float]:
    return [round(float(value), 5) for value in values]


if __name__ == "__main__":
    main()
