"""Values of rows against plain loops over torch's log_softmax, with answers of several lengths in one batch."""

from __future__ import annotations

import pytest
import torch

from shapley.values import DIFFERENTIABLE, VALUES, row_values

LENGTHS = [1, 2, 3, 3, 2, 1]
VOCABULARY = 11


def batch(seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(len(LENGTHS), 3, VOCABULARY, generator=generator)
    answers = torch.randint(VOCABULARY, (len(LENGTHS), 3), generator=generator)
    best = logits.argmax(2)
    answers[3] = best[3]
    answers[0] = (best[0] + torch.tensor([0, 1, 1])) % VOCABULARY
    answers[2, :2] = best[2, :2]
    answers[2, 2] = (best[2, 2] + 1) % VOCABULARY
    present = torch.arange(3) < torch.tensor(LENGTHS)[:, None]
    return logits, answers, present


def by_definition(name, logits, answers):
    """One row: its real places only."""
    total = 0.0
    for scores, answer in zip(logits, answers.tolist(), strict=True):
        if name == "accuracy":
            total += all(scores[answer] >= score for score in scores)
        elif name == "margin":
            total += float(scores[answer] - max(score for i, score in enumerate(scores) if i != answer))
        else:
            total += float(torch.log_softmax(scores.double(), 0)[answer])
    if name == "accuracy":
        return float(total == len(answers))
    return total if name == "loss" else total / len(answers)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["logprob", "loss", "accuracy", "margin"])
def test_a_value_is_what_its_definition_says(name, seed):
    logits, answers, present = batch(seed)
    expected = [by_definition(name, logits[row, :n], answers[row, :n]) for row, n in enumerate(LENGTHS)]
    assert row_values([name], logits, answers, present)[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_accuracy_needs_every_token_of_the_answer():
    accuracy = row_values(["accuracy"], *batch())[0].tolist()
    assert accuracy[0] == accuracy[3] == 1 and accuracy[2] == 0


def test_values_come_in_the_order_asked_for():
    names = ["margin", "logprob", "accuracy", "loss", "logprob"]
    together = row_values(names, *batch())
    assert together.shape == (5, len(LENGTHS)) and together.dtype == torch.float32
    for row, name in zip(together, names, strict=True):
        assert torch.equal(row, row_values([name], *batch())[0])


@pytest.mark.parametrize("filling", [50.0, -50.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", VALUES)
def test_what_stands_in_padded_places_does_not_matter(name, filling):
    logits, answers, present = batch()
    expected = row_values([name], logits, answers, present)
    answers = torch.where(present, answers, 0)
    logits = torch.where(present[..., None], logits, torch.tensor(filling))
    assert torch.equal(row_values([name], logits, answers, present), expected)


@pytest.mark.parametrize("name", VALUES)
def test_half_precision_logits_are_reduced_in_float32(name):
    logits, answers, present = batch()
    half = logits.bfloat16()
    found = row_values([name], half, answers, present)
    assert found.dtype == torch.float32
    expected = [by_definition(name, half[row, :n].float(), answers[row, :n]) for row, n in enumerate(LENGTHS)]
    assert found[0].tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["logprob", "loss"])
def test_gradients_are_those_of_the_log_probability(name):
    """d log p(answer) / d logits = one-hot(answer) - p, in real places only."""
    logits, answers, present = batch()
    logits.requires_grad_(True)
    row_values([name], logits, answers, present)[0].sum().backward()
    with torch.no_grad():
        expected = torch.nn.functional.one_hot(answers, VOCABULARY) - logits.softmax(2)
        expected *= present[..., None]
        if name == "logprob":
            expected /= torch.tensor(LENGTHS)[:, None, None]
    torch.testing.assert_close(logits.grad, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", VALUES)
def test_the_differentiable_values_are_those_with_a_gradient(name):
    logits, answers, present = batch()
    logits.requires_grad_(True)
    assert row_values([name], logits, answers, present).requires_grad == (name in DIFFERENTIABLE)


@pytest.mark.parametrize("name", VALUES)
def test_every_value_grows_with_the_answers_logits(name):
    logits, answers, present = batch()
    better = logits.scatter_add(2, answers[..., None], torch.full((*answers.shape, 1), 20.0))
    before, after = (row_values([name], x, answers, present)[0] for x in (logits, better))
    assert (after >= before).all() and (after > before).any()
