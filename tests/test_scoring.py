"""Rows of prompts: where answers start, batches by length and memory, and what happens when memory runs out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from shapley.errors import ShapleyError
from shapley.hf.scoring import RowPlan, RowScorer, encode
from shapley.impairment import Impairment
from shapley.prompts import Prompt
from tests.tiny import tiny_lm

LM = tiny_lm("gpt2")
TEXTS = ("the player won", "a singer with her first", "the old company in the new city sold a", "his last race")
PROMPTS = tuple(
    Prompt("t", text, answer) for text, answer in zip(TEXTS, (" race", " album song", " bank", " season"), strict=True)
)


def scorer(**options):
    return RowScorer(LM, PROMPTS, Impairment("zero"), **options)


def test_the_answer_starts_after_the_prompt():
    encoded = encode(LM, PROMPTS[1])
    assert encoded.start == 5
    assert LM.tokenizer.decode(encoded.ids[encoded.start :]) == "album song"


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (Prompt("t", "the player", "   "), "tokenises to nothing"),
        (Prompt("t", "", "player"), "longer prompt"),
        (Prompt("t", "the player " * 40, " won", id="p7"), "p7 has 81 tokens, the model takes 64"),
    ],
)
def test_prompts_that_cannot_be_scored(prompt, words):
    with pytest.raises(ShapleyError, match=words):
        encode(LM, prompt)


def test_batches_hold_rows_of_like_length(monkeypatch):
    monkeypatch.setattr("shapley.hf.scoring._CPU_TOKENS", 16)
    rows = scorer()
    shapes = []
    forward = rows._forward

    def spy(names, prompts, *rest):
        shapes.append(sorted(len(rows._encoded[i].ids) for i in prompts))
        return forward(names, prompts, *rest)

    monkeypatch.setattr(rows, "_forward", spy)
    rows.values(["logprob"], RowPlan(np.array([2, 0, 1, 3, 2, 0, 1, 3])), cluster=())
    lengths = [length for batch in shapes for length in batch]
    assert lengths == sorted(lengths) and [len(batch) for batch in shapes] == [4, 2, 1, 1]


def test_order_of_rows_is_kept():
    order = np.array([2, 0, 3, 1, 1, 0])
    one = np.concatenate([scorer().values(["logprob"], RowPlan(np.array([i])), cluster=()) for i in order], axis=1)
    together = scorer().values(["logprob"], RowPlan(order), cluster=())
    np.testing.assert_allclose(together, one, atol=1e-5)


def test_a_small_memory_budget_makes_small_batches(monkeypatch):
    plan = RowPlan(np.arange(4).repeat(8))
    sizes = []

    def count(batch, run):
        sizes.append(len(batch))
        run(batch)

    monkeypatch.setattr("shapley.hf.scoring._halving", count)
    roomy = scorer().values(["logprob"], plan, cluster=())
    assert sizes == [32]
    sizes.clear()
    tight = scorer(memory=4 * scorer()._row_bytes(9, False)).values(["logprob"], plan, cluster=())
    assert max(sizes) < 32 and len(sizes) > 3
    np.testing.assert_allclose(roomy, tight, atol=1e-5)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("out"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_running_out_of_memory_halves_the_batch_and_goes_on(error, monkeypatch):
    plan = RowPlan(np.arange(4).repeat(4), np.arange(16) % 2)
    coalitions = np.random.default_rng(0).random((2, 72)) < 0.5
    expected = scorer().gradients("logprob", plan, coalitions)
    rows = scorer()
    forward, tried = rows._forward, []

    def limited(names, prompts, *rest):
        tried.append(len(prompts))
        if len(prompts) > 4:
            raise error
        return forward(names, prompts, *rest)

    monkeypatch.setattr(rows, "_forward", limited)
    found = rows.gradients("logprob", plan, coalitions)
    assert tried == [16, 8, 4, 4, 8, 4, 4]
    for one, other in zip(expected, found, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert rows.forward_rows == 48


def test_other_errors_are_not_swallowed(monkeypatch):
    rows = scorer()
    monkeypatch.setattr(rows, "_forward", lambda *args: (_ for _ in ()).throw(RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        rows.values(["logprob"], RowPlan(np.arange(4)), cluster=())


@pytest.mark.parametrize("kind", ["zero", "scale", "noise"])
def test_rows_have_their_own_strength_coalition_and_draw(kind):
    """All three in one batch, against each row alone."""
    rows = RowScorer(LM, PROMPTS, Impairment(kind, 0.5))
    rng = np.random.default_rng(3)
    coalitions = rng.random((3, 72)) < 0.5
    plan = RowPlan(
        np.array([0, 1, 1, 3]), np.array([0, 1, 2, 2]), np.array([0, 3, 3, 1]), np.array([0.0, 0.3, 1.0, 0.7])
    )
    together = rows.values(["logprob"], plan, coalitions=coalitions)
    alone = [rows.values(["logprob"], plan.part(slice(i, i + 1)), coalitions=coalitions) for i in range(4)]
    np.testing.assert_allclose(together, np.concatenate(alone, axis=1), atol=1e-5)
    untouched = rows.values(["logprob"], RowPlan(np.array([0, 1])), cluster=())
    assert together[0, 0] == pytest.approx(untouched[0, 0], abs=1e-6)
    assert abs(together[0, 1] - untouched[0, 1]) > 1e-4
