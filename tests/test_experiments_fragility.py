"""The abilities of experiments/fragility, and the experiment end to end on a tiny model; numbers against plain computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import experiments.fragility.choose as choose_module
import experiments.fragility.draw as draw_module
import experiments.fragility.run as run_module
from experiments.fragility.abilities import LENGTHS, Continuation, Item, arithmetic, copying, grammar, of_prompts
from experiments.fragility.measure import performances
from experiments.fragility.page import section
from experiments.fragility.summary import Results
from experiments.lab import commands
from experiments.lab.figures import drawn_from
from experiments.lab.texts import Texts
from shapley.errors import ShapleyError
from shapley.hf.baseline import score_baseline
from shapley.hf.hooks import Rows, impair
from shapley.hf.scoring import RowPlan, RowScorer
from shapley.impairment import Impairment
from shapley.prompts import Prompt, TopicPrompts
from tests.tiny import WORDS, tiny_lm

TOPICS = ["Athlete", "Artist"]


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("make", [copying, arithmetic, lambda n: grammar()[:n]])
def test_items_are_well_formed_keyed_and_distinct(make):
    items = make(48)
    assert len(items) == 48 and items == make(48) and make(12) == items[:12]
    prompts = [prompt for item in items for prompt in (item.good, item.bad) if prompt]
    assert len({(prompt.prompt, prompt.answer) for prompt in prompts}) == len(prompts)
    for prompt in prompts:
        assert prompt.prompt == prompt.prompt.strip() and prompt.answer.strip() and prompt.topic == items[0].ability


def test_lists_are_copied_to_their_last_word():
    items = copying(8)
    for item, length in zip(items, LENGTHS * 2, strict=True):
        once, again = item.good.prompt.split(" . ")
        assert f"{again}{item.good.answer}" == once and len(set(once.split())) == length


def test_sums_come_out_and_cannot_be_copied():
    numbers = {word: i for i, word in enumerate("zero one two three four five six seven eight nine".split())}
    items = arithmetic(72)
    assert len({item.good.prompt.splitlines()[-1] for item in items}) == 72
    for item in items:
        lines = f"{item.good.prompt}{item.good.answer}".splitlines()
        sums = [line.replace(" plus ", "+").replace(" equals ", "=").replace("=", "+").split("+") for line in lines]
        values = [[numbers[part] if part in numbers else int(part) for part in own] for own in sums]
        assert len(lines) == 5 and all(a + b == total for a, b, total in values)
        assert values[-1][2] not in [total for _, _, total in values[:-1]]


def test_pairs_differ_only_in_the_continuation():
    pairs = grammar()
    assert len(pairs) >= 40 and len({pair.good.id.split("-")[0] for pair in pairs[:5]}) == 5
    for pair in pairs:
        assert pair.good.prompt == pair.bad.prompt and pair.good.answer != pair.bad.answer
        assert pair.good.key == pair.bad.key  # the same noise
        assert all(prompt.answer.startswith(" ") and " " not in prompt.answer[1:] for prompt in (pair.good, pair.bad))


def test_guessing():
    items = [Item(Prompt("x", str(i), " a" if i < 3 else f" {i}")) for i in range(6)]
    assert choose_module.chance(items) == 0.5
    assert choose_module.chance(grammar()) == 0.5 and choose_module.chance(copying(9)) == pytest.approx(1 / 3)
    assert choose_module.chance([Item(Prompt("plain", "a", " b"))]) is None


def expected(lm, topic, beginnings):
    """Prompts with the word that the model expects most, as it scores them."""
    found = []
    for beginning in beginnings:
        options = score_baseline(lm, [Prompt(topic, beginning, f" {word}") for word in WORDS])
        found.append(max(options, key=lambda prompt: prompt.logprob))
    return found


BEGINNINGS = ["the player won the", "the band sold a small", "in the city", "her last song was"]


def pair(good, bad):
    return Item(Continuation("grammar", good.prompt, good.answer), Continuation("grammar", bad.prompt, bad.answer))


def test_performances_are_means_of_plain_rows():
    lm = tiny_lm("llama")
    items = [
        *of_prompts([Prompt("x", "the player won the", " race"), Prompt("x", "a band", " sold the song")]),
        pair(Prompt("", "the club", " is"), Prompt("", "the club", " was")),
    ]
    impairment = Impairment("noise", unit="sd", seed=3)
    [found] = performances(lm, items, impairment, [0.3], n_draws=2)
    flat = [items[0].good, items[1].good, items[2].good, items[2].bad]
    scorer = RowScorer(lm, flat, impairment.at(0.3))
    rows = np.stack(
        [scorer.values(["logprob", "accuracy"], RowPlan(np.arange(4), draws=np.full(4, d))) for d in (0, 1)]
    )
    logprob, accuracy = rows.transpose(1, 0, 2)
    difference = logprob[:, 2] - logprob[:, 3]
    wanted = [[*logprob.mean(0)[:2], difference.mean()], [*accuracy.mean(0)[:2], (difference > 0).mean()]]
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    [again] = performances(lm, items, impairment, [0.3], n_draws=2)  # from the cache
    assert again.tolist() == found.tolist()


def test_both_of_a_pair_are_read_from_one_impaired_state():
    lm = tiny_lm("llama")
    item = pair(Prompt("", "the club", " is"), Prompt("", "the club", " was"))
    impairment = Impairment("noise", strength=0.5)
    [found] = performances(lm, [item], impairment, [0.5])
    ids = torch.tensor([lm.tokenizer("the club is")["input_ids"]])
    with torch.no_grad(), impair(lm, impairment, rows=Rows(prompt_keys=["the club"])):
        logits = lm.model(input_ids=ids).logits[0, -2]
    good, bad = (lm.tokenizer(word)["input_ids"][-1] for word in ("is", "was"))
    assert found[0, 0] == pytest.approx(float(logits[good] - logits[bad]), abs=1e-5)


@pytest.fixture
def tiny(monkeypatch):
    """The experiment's parts on a tiny model: its load, its texts, and the abilities that are written."""
    lm = tiny_lm("llama")
    topics = {topic: TopicPrompts(topic, tuple(expected(lm, topic, BEGINNINGS))) for topic in TOPICS}
    plain = TopicPrompts("plain", tuple(expected(lm, "plain", BEGINNINGS[:2])))
    monkeypatch.setattr(commands.models, "load", lambda name, device: lm)
    monkeypatch.setattr(commands, "texts", lambda *args: Texts(topics, topics, topics, plain))
    config = {"topics": TOPICS, "prompts": 3, "draws": 2, "strengths": {"noise": [0.5, 5.0], "scale": [0.5, 1.0]}}
    monkeypatch.setattr(commands.yaml, "safe_load", lambda text: {"small": config})
    for name in ("copying", "arithmetic"):
        own = of_prompts(expected(lm, name, [f"{start} the" for start in BEGINNINGS]))
        monkeypatch.setattr(choose_module, name, lambda n, own=own: own)
    best = expected(lm, "grammar", BEGINNINGS)
    pairs = [pair(good, Prompt("", good.prompt, " the" if good.answer != " the" else " a")) for good in best]
    wrong = Item(pairs[0].bad, pairs[0].good)
    monkeypatch.setattr(choose_module, "grammar", lambda: [wrong, *pairs])
    return lm


def test_a_run_its_tables_and_its_figures(tiny, tmp_path):
    out = tmp_path / "tiny.jsonl"
    done = CliRunner().invoke(run_module.main, ["--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    results = Results.read(out)
    assert results.abilities == [*TOPICS, "plain", "copying", "arithmetic", "grammar"]
    assert [(record["kind"], record["strength"]) for record in results.records] == [
        ("untouched", 0.0), ("floor", 1.0), ("noise", 0.5), ("noise", 5.0), ("scale", 0.5), ("scale", 1.0),
    ]  # fmt: skip
    grammar_facts = results.head["abilities"]["grammar"]
    assert grammar_facts == {"candidates": 5, "enough": 4, "right": 4, "chance": 0.5}
    assert results.head["watched"].count("grammar") == 3 and results.head["watched"].count("plain") == 2
    assert results.head["command"].endswith("fragility.run --model smollm2 --size small") and results.head["versions"]
    assert results.values("scale", "copying")[-1].tolist() == results.values("scale", "copying")[-2].tolist()
    text = draw_module.tables(results)
    assert "| grammar | 3 of 4 of 5 | 0.80 | 0.50 |" in text and "noise and scale: Kendall's tau" in text
    draw_module.draw(results, out, tmp_path / "figures", "tiny")
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert figures == ["tiny-curves.png", "tiny-halves.png"]
    assert all(drawn_from(tmp_path / "figures" / name, out) for name in figures)


def test_an_ability_that_the_model_does_not_have(tiny, monkeypatch, tmp_path):
    wrong = [item for item in choose_module.grammar() if item.good.answer in (" the", " a")][:1]
    monkeypatch.setattr(choose_module, "grammar", lambda: wrong)
    done = CliRunner().invoke(run_module.main, ["--out", str(tmp_path / "x.jsonl")])
    assert done.exit_code == 2 and "'grammar'" in done.stderr


def test_results_that_are_not_there(tmp_path):
    with pytest.raises(ShapleyError, match=r"fragility\.run makes them"):
        Results.read(tmp_path / "none.jsonl")


CURVES = {  # untouched, three strengths, floor: retention 1, .75, .25, 0 and so on
    "plain": [-1.0, -2.0, -4.0, -5.0, -5.0],
    "early": [-1.0, -4.0, -5.0, -5.0, -5.0],
    "late": [-1.0, -1.0, -1.0, -2.0, -5.0],
    "guessed": [-2.0, -3.0, -3.0, -3.0, -3.0],
    "none": [-3.0, -3.0, -3.0, -3.0, -3.0],
}


def known_results():
    """Every ability has four items that fall alike, under one kind as under the other, but for plain and early: exchanged."""
    watched = [ability for ability in CURVES for _ in range(4)]
    swapped = CURVES | {"plain": CURVES["early"], "early": CURVES["plain"]}

    def record(kind, strength, curves, place):
        values = [curves[ability][place] for ability in watched]
        return {"kind": kind, "strength": strength, "performance": values, "accuracy": [float(v > -3) for v in values]}

    records = [record("untouched", 0.0, CURVES, 0), record("floor", 1.0, CURVES, 4)]
    for kind, curves in (("noise", CURVES), ("scale", swapped)):
        records += [record(kind, strength, curves, strength) for strength in (1, 2, 3)]
    abilities = {name: {"candidates": 40, "enough": 40, "right": 30, "chance": 0.5} for name in CURVES}
    abilities["plain"] |= {"right": 0, "chance": None}
    abilities["guessed"]["right"] = 22
    head = {
        "config": {"prompts": 4, "draws": 1, "strengths": {"noise": [1, 2, 3], "scale": [1, 2, 3]}},
        "seed": 0, "abilities": abilities,
        "watched": watched, "vocabulary": 20, "command": "c", "seconds": 1, "hardware": "h", "time": "t",
        "model": {"name": "m"},
    }  # fmt: skip
    return Results(head, records)


def test_falls_of_known_curves():
    results = known_results()
    falls = {fall.ability: fall for fall in results.falls["noise"]}
    assert list(falls) == ["guessed", "early", "plain", "late"]  # "none" has nothing to lose
    assert falls["plain"].retention.tolist() == [1.0, 0.75, 0.25, 0.0]
    assert falls["plain"].half.estimate == pytest.approx(1.5)  # half way from 0.75 to 0.25
    assert falls["early"].half.estimate == pytest.approx(2 / 3)  # two thirds of the way from 1 to 0.25
    assert falls["guessed"].half.estimate == pytest.approx(0.5) and not falls["guessed"].claimed
    assert falls["late"].censored and falls["late"].half.estimate == 3.0
    assert (falls["plain"].half.low, falls["plain"].half.high) == pytest.approx((1.5, 1.5))  # items are alike
    assert results.first("noise") == {"early": 1.0, "plain": 0.0, "late": 0.0}
    assert results.first("scale") == {"plain": 1.0, "early": 0.0, "late": 0.0}
    assert results.agreement("noise", "scale").estimate == pytest.approx(1 / 3)  # two of three pairs agree
    assert results.agreement("noise", "noise").estimate == pytest.approx(1)
    assert results.explained("noise").estimate == pytest.approx(1)


def test_accuracy_has_an_id50_of_its_own():
    results = known_results()
    assert results.half_of_accuracy("noise", "plain").value == pytest.approx(1.5)  # 1, 1, 0, 0
    assert results.half_of_accuracy("noise", "late").censored
    assert results.half_of_accuracy("noise", "none") is None  # never right


def test_above_guessing_the_floor_is_a_uniform_guess():
    results = known_results()
    # From -1 half of the way to -ln 20 is -1.998: next to strength 1, where plain text is at -2.
    half = (1 + np.log(20)) / 2
    assert results.half_above_guessing("noise", "plain").value == pytest.approx(half - 1)
    assert results.half_above_guessing("noise", "none") is None  # -3 is below -ln 20
    assert results.floors_agree("noise") == pytest.approx(1)


def test_the_floor_of_grammar_is_indifference():
    results = known_results()
    places = [i for i, ability in enumerate(results.head["watched"]) if ability == "late"]
    for i in places:
        results.head["watched"][i] = "grammar"
    for record, value in zip(results.records, (4.0, 3.9, 3.0, 1.0, -1.0, 4.0, 4.0, 4.0), strict=True):
        for i in places:
            record["performance"][i], record["accuracy"][i] = value, float(value > 0)
    results.head["abilities"]["grammar"] = results.head["abilities"].pop("late")
    fall = {fall.ability: fall for fall in results.falls["noise"]}["grammar"]
    assert fall.retention.tolist() == [1.0, 0.75, 0.25, -0.25] and fall.half.estimate == pytest.approx(1.5)
    assert results.half_above_guessing("noise", "grammar").value == pytest.approx(1.5)
    assert results.half_of_accuracy("noise", "grammar").value == pytest.approx(2.25)  # 1, 1, 1, -1 of a half


def test_a_rise_is_not_explained():
    results = known_results()
    rows = [record for record in results.records if record["kind"] in ("untouched", "noise")]
    for record, value in zip(rows, (-1.0, -3.0, -2.0, -4.0), strict=True):
        record["performance"][:4] = [value] * 4
    # The fit is -1, -2.5, -2.5, -4: 0.5 of 5 is left over.
    assert results.explained("noise").estimate == pytest.approx(0.9)


def test_bands_hold_the_mean_and_intervals_the_estimate():
    results = known_results()
    rng = np.random.default_rng(0)
    for record in results.records:
        record["performance"] = (np.array(record["performance"]) + rng.normal(0, 0.3, 20)).tolist()
    for fall in results.falls["noise"]:
        if fall.ability in ("plain", "early"):
            assert (fall.low <= fall.retention).all() and (fall.retention <= fall.high).all()
            assert fall.half.low < fall.half.estimate < fall.half.high
            assert fall.low[0] == fall.high[0] == 1


def test_tables_say_what_is_claimed():
    text = draw_module.tables(known_results())
    part = section(known_results(), "known")
    assert "early falls first in 100% of resamples" in part.answers[0] and "guessed, none" in part.caveats[1]
    assert "| plain | 4 of 40 of 40 | – | – | -1.00 | -5.00 | yes |" in text
    assert "| guessed | 4 of 40 of 40 | 0.55 | 0.50 | -2.00 | -3.00 | no: near chance |" in text
    assert "| none | 4 of 40 of 40 | 0.75 | 0.50 | -3.00 | -3.00 | no: not above the floor |" in text
    assert "| late | > 3 [> 3, > 3] | 3 | > 3 | 0% of resamples |" in text  # half of the way to a guess is at -1.998
    assert "| early | 0.667 [0.667, 0.667] | 0.333 | 0.5 | 100% of resamples |" in text
    assert "tau of the claimed abilities' ID50 is 0.33 [0.33, 0.33]" in text
