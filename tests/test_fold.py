"""Impairments that are folded into weights, against the hooks."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from click.testing import CliRunner

from shapley.cli.export import export
from shapley.clusters import Cluster
from shapley.errors import ShapleyError
from shapley.hf.fold import fold
from shapley.hf.hooks import impair
from shapley.hf.load import LanguageModel, describe, load_model
from shapley.impairment import KINDS, SITES, Impairment
from tests.tiny import FAMILIES, tiny_lm

IDS = torch.tensor([[5, 9, 21, 33, 8, 40], [11, 7, 30, 12, 44, 9]])
NEURONS = ((0, 3), (1, 5), (2, 0), (2, 11))


def logits(lm):
    with torch.no_grad():
        return lm.model(input_ids=IDS, use_cache=False).logits


def copied(lm):
    return LanguageModel(copy.deepcopy(lm.model), lm.tokenizer, lm.name, lm.revision)


@pytest.mark.parametrize("cluster", [None, NEURONS])
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_folded_model_is_the_hooked_one(family, site, cluster):
    lm = tiny_lm(family)
    folded = copied(lm)
    impairment = Impairment("scale", 0.6, site=site)
    if site == "mlp_out" and "norm" in lm.sites.family.exit:
        with pytest.raises(ShapleyError, match="a norm: fold at mlp_hidden"):
            fold(folded, impairment, cluster)
        return
    fold(folded, impairment, cluster)
    with impair(lm, impairment, cluster):
        torch.testing.assert_close(logits(folded), logits(lm), atol=5e-5, rtol=1e-4)
    if "norm" not in lm.sites.family.exit or cluster is not None:  # a norm undoes what scales all neurons alike
        assert (logits(folded) - logits(lm)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in ("scale", "zero")])
def test_what_is_no_gain_is_refused(kind):
    with pytest.raises(ShapleyError, match=f"{kind} is no gain"):
        fold(copied(tiny_lm("gpt2")), Impairment(kind))


@pytest.fixture
def stored(tmp_path):
    lm = copied(tiny_lm("llama"))
    lm.model.save_pretrained(tmp_path / "model")
    lm.tokenizer.save_pretrained(tmp_path / "model")
    return load_model(str(tmp_path / "model"))


def run(*arguments):
    done = CliRunner().invoke(export, [str(argument) for argument in arguments])
    return f"{done.exception}" if isinstance(done.exception, ShapleyError) else done.output


def test_a_checkpoint_is_exported(stored, tmp_path):
    cluster = Cluster(NEURONS, model=describe(stored))
    cluster.save(tmp_path / "c.json")
    out = tmp_path / "impaired"
    run(tmp_path / "model", "--strength", 0.7, "--cluster", tmp_path / "c.json", "--out", out)
    exported = load_model(str(out))
    with impair(stored, Impairment("scale", 0.7), cluster):
        torch.testing.assert_close(logits(exported), logits(stored), atol=1e-5, rtol=1e-5)
    record = json.loads((out / "impairment.json").read_text())
    assert record["of"] == describe(stored) and record["impairment"]["strength"] == 0.7
    assert exported.fingerprint != stored.fingerprint
    assert "exists: give a new folder" in run(tmp_path / "model", "--out", out)
    assert "no folder" in run(tmp_path / "model", "--out", tmp_path / "none" / "x")
    Cluster(NEURONS, model={"name": "other", "fingerprint": "x"}).save(tmp_path / "o.json")
    said = run(tmp_path / "model", "--cluster", tmp_path / "o.json", "--out", tmp_path / "y")
    assert "belongs to another model" in said and not (tmp_path / "y").exists()
