"""``shapley check``."""

from __future__ import annotations

import json

import click

from shapley.cli.options import device_option
from shapley.errors import ShapleyError


@click.command()
@click.argument("model")
@device_option
@click.option("--trust-remote-code", is_flag=True, help="Allow the model repository's own code to run.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def check(model: str, device: str, trust_remote_code: bool, as_json: bool) -> None:
    """Print the sites found in MODEL, and check on it that hooks do what they promise."""
    from shapley.hf.invariants import check_model
    from shapley.hf.load import describe, load_model
    from shapley.sparse.insert import has_units

    lm = load_model(model, device=device, trust_remote_code=trust_remote_code)
    sites, found = lm.sites, describe(lm)
    family = sites.family
    of = (
        ("sparse_layer", "sparse_layer.down", "sparse_layer")
        if has_units(lm.model)
        else (family.entry, family.down, family.exit)
    )
    where = {
        "blocks": sites.blocks_path,
        "mlp_in": f"input of {of[0]}",
        "mlp_hidden": f"input of {of[1]}",
        "mlp_out": f"output of {of[2]}",
    }
    if not as_json:
        click.echo(f"{lm.architecture} {model}, fingerprint {lm.fingerprint}, on {lm.device}")
        click.echo(f"{sites.n_layers} layers x {sites.d_mlp} neurons = {sites.n_layers * sites.d_mlp} players")
        for name, place in where.items():
            click.echo(f"  {name:<11} {place}")
    results = []
    for result in check_model(lm):
        results.append(result)
        if not as_json:
            mark = "ok  " if result.holds else "FAIL"
            click.echo(f"{mark} {result.name} (off by {result.deviation:.1e}, allowed {result.allowed:.1e})")
    if as_json:
        checks = [{"name": r.name, "deviation": r.deviation, "allowed": r.allowed, "holds": r.holds} for r in results]
        click.echo(json.dumps({"model": found, "d_model": sites.d_model, "sites": where, "checks": checks}))
    failed = [result.name for result in results if not result.holds]
    if failed:
        raise ShapleyError(f"{model}: {len(failed)} invariants do not hold: {'; '.join(failed)}")
