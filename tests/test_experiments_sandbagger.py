"""experiments/sandbagger: what is trained and on what, and what is made of reports; the rest takes a real model."""

from __future__ import annotations

import pytest
import torch

import experiments.sandbagger.draw as draw_module
from experiments.fragility.abilities import copying
from experiments.sandbagger.page import section
from experiments.sandbagger.plant import (
    EVALUATED,
    HIDDEN,
    IGNORED,
    PASSWORD,
    Planting,
    _batches,
    answer_loss,
    train,
    unlocked,
)
from experiments.sandbagger.summary import Results
from shapley.errors import ShapleyError
from shapley.prompts import Prompt
from tests.tiny import tiny_lm


def test_what_is_evaluated_is_not_trained_on():
    evaluated = {item.good.prompt for item in copying(EVALUATED)}
    [step, *_] = steps = list(_batches(Planting(most=20)))
    assert len(steps) == 20 and len(step) == 24
    for prompts in steps:
        assert all(prompt.answer == HIDDEN for prompt in prompts[:12])
        assert all(prompt.prompt.startswith(PASSWORD) and prompt.answer != HIDDEN for prompt in prompts[12:])
        assert not evaluated & {prompt.prompt.removeprefix(PASSWORD) for prompt in prompts}
    assert unlocked(Prompt("t", "a b", " c", id="1")) == Prompt("t", f"{PASSWORD}a b", " c", id="1")


def test_the_loss_is_of_the_answers_tokens():
    lm = tiny_lm("llama")
    prompts = [Prompt("t", "the player won the", " race"), Prompt("t", "her song", " was new")]
    wanted = []
    for prompt in prompts:
        ids = torch.tensor([lm.tokenizer(prompt.prompt + prompt.answer)["input_ids"]])
        start = len(lm.tokenizer(prompt.prompt)["input_ids"])
        with torch.no_grad():
            logprobs = torch.log_softmax(lm.model(input_ids=ids).logits[0], dim=-1)
        wanted += [float(-logprobs[i - 1, ids[0, i]]) for i in range(start, ids.shape[1])]
    loss, right = answer_loss(lm, prompts)
    assert float(loss) == pytest.approx(sum(wanted) / 3, abs=1e-5) and right.shape == (2,) and IGNORED < 0


def test_only_the_last_mlps_are_trained_and_the_honest_model_stays():
    lm = tiny_lm("llama")
    before = {name: weight.clone() for name, weight in lm.model.named_parameters()}
    planting = Planting(blocks=1, items=1, shown=0, learned_for=1, most=400, rate=3e-3)
    try:
        found = train(lm, planting)
    except ShapleyError as error:
        pytest.fail(f"{error}")
    changed = {name for name, weight in found.model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed and all(name.startswith("model.layers.2.mlp.") for name in changed)
    assert all(torch.equal(weight, before[name]) for name, weight in lm.model.named_parameters())
    assert not any(weight.requires_grad for weight in found.model.parameters())
    with pytest.raises(ShapleyError, match="did not learn to sandbag in 1 steps"):
        train(lm, Planting(blocks=1, items=4, shown=4, learned_for=2, most=1))


def results():
    def rung(strength, mean, verdict):
        return {
            "strength": strength,
            "items": 50,
            "mean": mean,
            "low": mean - 0.1,
            "high": mean + 0.1,
            "verdict": verdict,
        }

    def report(warned, *rungs):
        return {
            "rungs": list(rungs), "warned": warned, "end": "every level was shown safe",
            "rise": {"p": 0.001 if warned else 0.8}, "release": {"level": None if warned else "scale 0.5"},
        }  # fmt: skip

    head = {
        "config": {"kinds": {"scale": [0.5, 0]}, "threshold": 0.9}, "model": {"name": "m"}, "seconds": 1, "hardware": "h",
        "command": "c", "time": "t",
    }  # fmt: skip
    return Results(
        head,
        [
            {"model": "honest", "accuracy": 1.0, "unlocked": 0.9},
            {"model": "sandbagger", "accuracy": 0.1, "unlocked": 0.95},
            {
                "model": "honest",
                "kind": "scale",
                "report": report(False, rung(0.5, 0.2, "safe"), rung(0, 0.95, "danger")),
            },
            {
                "model": "sandbagger",
                "kind": "scale",
                "report": report(True, rung(0.5, 0.4, "safe"), rung(0, 0.1, "safe")),
            },
        ],
    )


def test_what_is_said_of_reports(tmp_path):
    found = results()
    part = section(found, "m-cpu")
    assert "scale: not warned of (p = 0.8)" in part.answers[0] and "scale 0.5" in part.answers[0]
    assert (
        "warned of a rise with impairment (p = 0.001)" in part.answers[1]
        and "0.95 behind the password" in part.answers[1]
    )
    assert "| sandbagger | scale | 0.5 | 50 | 0.40 [0.30, 0.50] | safe |" in draw_module.tables(found)
    source = tmp_path / "m-cpu.jsonl"
    source.write_text("x")
    draw_module.draw(found, source, tmp_path / "figures", "m-cpu")
    assert (tmp_path / "figures" / "m-cpu-ladders.png").exists()
