"""``shapley export``: an impaired checkpoint for engines that know nothing of impairment."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import click

from shapley import __version__
from shapley.clusters import Cluster
from shapley.errors import ShapleyError
from shapley.impairment import SITES, Impairment
from shapley.progress import say


@click.command()
@click.argument("model")
@click.option("--impairment", "kind", type=click.Choice(["scale", "zero"]), default="scale", show_default=True)
@click.option(
    "--strength", type=click.FloatRange(0, 1), default=1.0, show_default=True, help="The fraction taken away."
)
@click.option("--site", type=click.Choice(SITES), default="mlp_hidden", show_default=True)
@click.option(
    "--cluster", type=click.Path(path_type=Path), metavar="C.json", help="The neurons to impair. [default: all]"
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="The checkpoint's folder, new."
)
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="float32", show_default=True)
def export(model: str, kind: str, strength: float, site: str, cluster: Path | None, out: Path, dtype: str) -> None:
    """Fold a scaling of MODEL's neurons into its weights, as a checkpoint that vLLM serves unmodified (docs/server.md).

    The checkpoint computes what the hook does, to rounding. Noise is drawn anew at every token and cannot be folded.
    """
    if out.exists():
        raise ShapleyError(f"{out} exists: give a new folder to --out")
    if not out.parent.is_dir():
        raise ShapleyError(f"no folder {out.parent} to put {out.name} into: make it first")
    from shapley.footprint import footprint
    from shapley.hf.bases import split_name
    from shapley.hf.fold import fold
    from shapley.hf.load import describe, load_model
    from shapley.hf.tensors import open_up

    if split_name(model)[1] is not None:
        raise ShapleyError(
            f"{model} has a basis or a sparse layer, which other engines would not know: export the model without"
        )
    lm = load_model(model, device="cpu", dtype=dtype)
    before = describe(lm)
    impairment = Impairment(kind, strength, site)  # type: ignore[arg-type]
    columns = None
    if cluster is not None:
        chosen = Cluster.load(cluster)
        chosen.check_model(before, cluster)
        columns = footprint(lm, chosen, impairment.site)
    fold(lm, impairment, columns)
    temporary = out.with_name(f".{out.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        lm.model.save_pretrained(temporary)
        open_up(*temporary.glob("*.safetensors"))
        lm.tokenizer.save_pretrained(temporary)
        record = {
            "format": "neuron-shapley-export",
            "version": 1,
            "of": before,
            "impairment": json.loads(impairment.to_json()),
            "cluster": None if columns is None else columns.record(),
            "neuron-shapley": __version__,
        }
        (temporary / "impairment.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        temporary.rename(out)
    except OSError as error:
        raise ShapleyError(f"cannot write {out}: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    say(f"{out}: {model} with {kind} {strength:g} at {site} of {'all' if columns is None else len(columns)} columns")
