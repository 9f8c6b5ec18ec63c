"""experiments/removal: continuations and summaries against plain computations, and the experiment on a tiny model."""

from __future__ import annotations

import copy
import csv

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import experiments.removal.draw as draw_module
import experiments.removal.run as run_module
from experiments.lab import commands
from experiments.lab.figures import drawn_from
from experiments.lab.texts import Texts
from experiments.lab.toxicity import judged
from experiments.removal.continuations import NEW_TOKENS, continuations
from experiments.removal.page import section
from experiments.removal.summary import Results
from shapley.hf.baseline import score_baseline
from shapley.hf.load import LanguageModel, load_model
from shapley.hf.scoring import RowPlan, RowScorer
from shapley.impairment import Impairment
from shapley.prompts import Prompt, TopicPrompts
from shapley.store import ScoreFile
from tests.tiny import WORDS, tiny_lm

BEGINNINGS = ["the player won the", "the band sold a small", "her last song was"]
NEURONS = ((0, 3), (1, 7), (2, 5))


def without(lm, neurons):
    """The model with these neurons' weights behind them at zero."""
    model = copy.deepcopy(lm.model)
    edited = LanguageModel(model, lm.tokenizer, lm.name, "local")
    with torch.no_grad():
        for layer, column in neurons:
            edited.sites.blocks[layer].down.weight[:, column] = 0
    return edited


def sampled(lm, beginning, seed):
    """A token after the other from the whole distribution, but for the end of the text; the text anew for each."""
    ids = lm.tokenizer(beginning, return_tensors="pt")["input_ids"]
    start = ids.shape[1]
    torch.manual_seed(seed)
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            logits = lm.model(input_ids=ids, use_cache=False).logits[:, -1].clone()
        logits[:, lm.tokenizer.eos_token_id] = -torch.inf
        ids = torch.cat([ids, torch.multinomial(logits.softmax(dim=-1), 1)], dim=1)
    return lm.tokenizer.decode(ids[0, start:], skip_special_tokens=True)


def test_continuations_are_those_of_edited_weights_sampled_by_hand():
    lm = tiny_lm("llama")
    found, edited = continuations(lm, BEGINNINGS, NEURONS, seed=2), without(lm, NEURONS)
    assert found == continuations(edited, BEGINNINGS, (), seed=2)
    assert found == [sampled(edited, text, 2 * 1_000_003 + i) for i, text in enumerate(BEGINNINGS)]
    untouched = continuations(lm, BEGINNINGS, (), seed=2)
    assert untouched == [sampled(lm, text, 2 * 1_000_003 + i) for i, text in enumerate(BEGINNINGS)]
    assert all(ours != theirs for ours, theirs in zip(found, untouched, strict=True))
    # Neurons that do nothing any more change nothing: clusters have the same draws.
    assert continuations(edited, BEGINNINGS, NEURONS, seed=2) == found


def test_a_seed_gives_the_same_text_whatever_else_is_gone_on_with_and_another_seed_another():
    lm = tiny_lm("llama")
    once = continuations(lm, BEGINNINGS, NEURONS, seed=0)
    torch.rand(5)
    assert continuations(lm, BEGINNINGS, NEURONS, seed=0) == once
    assert continuations(lm, BEGINNINGS[:1], NEURONS, seed=0) == once[:1]
    other = continuations(lm, BEGINNINGS, NEURONS, seed=1)
    assert all(ours != theirs for ours, theirs in zip(once, other, strict=True))
    same = continuations(lm, BEGINNINGS[:1] * 2, NEURONS, seed=0)
    assert same[0] != same[1]  # each beginning has draws of its own


TOPICS = ["x", "y", "toxic"]
WATCHED = ["x"] * 20 + ["y"] * 30 + ["toxic"] * 10 + ["plain"] * 5


def bootstrapped(values):
    """The percentile interval of the mean, of resamples that are drawn one value at a time."""
    drawn = np.random.default_rng(1).choice(values, (20_000, len(values)))
    return np.quantile(drawn.mean(axis=1), [0.025, 0.975])


def stored(repair=()):
    """Records of two selectors with random accuracies, and of repair as they are given."""
    rng = np.random.default_rng(0)
    records = [{"selector": "none", "scope": "general", "count": 0, "accuracy": [1.0] * 60 + [0.2] * 5}]
    for i, name in enumerate(("shapley", "random")):
        for scope in ("general", *TOPICS):
            for count in (1, 4):
                accuracy = rng.beta(*((0.3, 0.7), (0.9, 0.1))[i], 60).tolist() + [0.1] * 5
                records.append({"selector": name, "scope": scope, "count": count, "accuracy": accuracy})
    config = {
        "topics": TOPICS, "counts": [1, 4], "selectors": ["shapley", "random"], "budget": 9,
        "repair": {"selectors": ["guarded", "random"], "counts": [4, 8], "samples": 3} if repair else {},
    }  # fmt: skip
    head = {
        "config": config, "seed": 0, "watched": WATCHED, "command": "c", "seconds": 1, "hardware": "h", "time": "t",
        "model": {"name": "m", "n_layers": 3, "d_mlp": 24},
    }  # fmt: skip
    return Results(head, [*records, *repair])


def accuracy_of(results, name, scope, count):
    """By prompt, plain text left out."""
    [found] = [r for r in results.records if (r.get("selector"), r.get("scope"), r["count"]) == (name, scope, count)]
    return found["accuracy"][:60]


@pytest.mark.parametrize("where", ["all", "own", "others"])
@pytest.mark.parametrize("name", ["shapley", "random"])
def test_accuracy_is_a_mean_over_prompts_and_of_others_over_rankings_first(name, where):
    results = stored()
    found = results.accuracy(name, "general" if where == "all" else "topic", where)
    assert results.counts == [0, 1, 4] and [(x.estimate, x.low, x.high) for x in found[:1]] == [(1, 1, 1)]
    for count, interval in zip((1, 4), found[1:], strict=True):
        by_prompt = []
        for i, own in enumerate(WATCHED[:60]):
            scopes = {
                "all": ["general"],
                "own": [own],
                "others": [topic for topic in TOPICS if topic != own],
            }[where]
            by_prompt.append(np.mean([accuracy_of(results, name, scope, count)[i] for scope in scopes]))
        assert interval.estimate == pytest.approx(np.mean(by_prompt))
        np.testing.assert_allclose([interval.low, interval.high], bootstrapped(by_prompt), atol=0.01)


def test_what_is_removed_in_general_on_a_topics_prompts_is_not_that_topics_ranking():
    results = stored()
    general, topic = (results.accuracy("shapley", scope, "all")[1].estimate for scope in ("general", "topic"))
    assert general == pytest.approx(np.mean(accuracy_of(results, "shapley", "general", 1)))
    assert topic == pytest.approx(np.mean([accuracy_of(results, "shapley", scope, 1) for scope in TOPICS]))
    assert general != pytest.approx(topic)


def repairs():
    """Of 40 beginnings, which differ by far more than what a cluster changes."""
    rng = np.random.default_rng(2)
    untouched, plain = rng.normal(0, 1, 40), rng.normal(-3, 1, 5)
    of = [
        ("none", 0, np.zeros(40), 0.0),
        ("guarded", 4, rng.normal(-0.2, 0.3, 40), 0.01),  # clear of zero, and cheap
        ("guarded", 8, np.full(40, -0.3), 0.05),  # not cheap
        ("random", 4, np.full(40, -0.25), 0.0),  # what is compared with
        ("random", 8, np.full(40, 0.1), -0.01),
    ]
    return [
        {"repair": name, "count": n, "toxicity": list(untouched + change), "plain": list(plain - loss), "auc": 0.875}
        for name, n, change, loss in of
    ]


def test_repair_is_the_paired_change_of_each_beginning():
    records = repairs()
    results = stored(records)
    found = {(name, count): (change, rise) for name, count, change, rise in results.repairs()}
    assert list(found) == [("guarded", 4), ("guarded", 8), ("random", 4), ("random", 8)]
    change, rise = found["guarded", 4]
    differences = np.array(records[1]["toxicity"]) - records[0]["toxicity"]
    assert change.estimate == pytest.approx(differences.mean())
    np.testing.assert_allclose([change.low, change.high], bootstrapped(differences), atol=0.012)
    alike, _ = found["guarded", 8]  # beginnings differ, by what they are changed they do not
    assert (alike.estimate, alike.low, alike.high) == pytest.approx((-0.3, -0.3, -0.3))
    perplexity, before = (np.exp(-np.mean(record["plain"])) for record in (records[1], records[0]))
    assert (rise.estimate, rise.low, rise.high) == pytest.approx([perplexity / before - 1] * 3)
    assert results.judge() == pytest.approx((0.875, np.mean(records[0]["toxicity"])))
    assert results.repaired_on() == (40, 5)
    assert stored().repairs() == []


def test_the_rise_of_perplexity_has_an_interval_over_passages():
    records = repairs()
    losses = np.random.default_rng(3).normal(0.1, 0.02, 30)
    for record, loss in zip(records, (0 * losses, losses, losses, losses, losses), strict=True):
        record["plain"] = (-3 - loss).tolist()
    _, _, _, rise = stored(records).repairs()[0]
    assert rise.estimate == pytest.approx(np.expm1(losses.mean()))
    np.testing.assert_allclose([rise.low, rise.high], np.expm1(bootstrapped(losses)), atol=0.002)


def test_the_page_says_what_is_claimed_and_on_how_much_it_rests():
    results = stored(repairs())
    part = section(results, "m")
    general = results.accuracy("shapley", "general", "all")
    assert general[1].estimate < 0.5 < results.accuracy("random", "general", "all")[2].estimate
    assert "shapley after 1; random not by 4 (of 72 neurons)" in part.answers[0]
    [(_, _, change, _), *_] = results.repairs()
    assert f"less than 2%: 4 by guarded: {change.estimate:+.3f} [" in part.answers[1]
    assert "8 by guarded" not in part.answers[1] and "by random" not in part.answers[1]
    assert f"(of 1 that cost so little; their changes lie from {change.estimate:+.3f} to " in part.answers[1]
    caveats = " ".join(part.caveats)
    assert "by shapley, random; only the size full has contrast, guarded, interval, attribution," in caveats
    assert "one random order of the neurons a topic" in caveats and "Its 4 intervals" in caveats
    assert "40 beginnings of toxic comments, 3 continuations of each, and on 5 passages of plain text" in caveats
    assert len(part.pictures) == 2 and part.tables[-1].rows[1][:3] == ("guarded", "8", "-0.300 [-0.300, -0.300]")
    without_repair = section(stored(), "m")
    assert len(without_repair.answers) == len(without_repair.pictures) == 1 and len(without_repair.tables) == 3
    assert "beginnings" not in " ".join(without_repair.caveats)


def test_where_no_cluster_is_clear_of_zero_the_page_says_none():
    records = repairs()
    records[1]["toxicity"] = (np.array(records[0]["toxicity"]) + np.tile([-0.55, 0.45], 20)).tolist()
    assert "less than 2%: none (of 1 that cost so little" in section(stored(records), "m").answers[1]
    records[1]["plain"] = (np.array(records[0]["plain"]) - 1).tolist()
    assert "less than 2%: none (none costs so little)." in section(stored(records), "m").answers[1]


SIZE = {
    "topics": TOPICS, "counts": [2, 6], "selectors": ["shapley", "guarded", "attribution", "random"], "watched": 2, "plain": 3,
    "repair": {"selectors": ["shapley", "random"], "counts": [3, 6], "beginnings": 3, "samples": 2},
    "budget": 192, "chosen_on": 2,
}  # fmt: skip
FULL = {"selectors": [*SIZE["selectors"], "norm"]}


def tiny_texts(lm):
    """Held-out prompts of which the first is not known, and of the known ones more than are watched."""

    def expected(topic, beginning):
        options = score_baseline(lm, [Prompt(topic, beginning, f" {word}") for word in WORDS])
        return max(options, key=lambda prompt: prompt.logprob)

    def held_out(topic, beginning, word):
        every = [expected(topic, f"{beginning} {word} {end}") for end in WORDS[:16]]
        known, unknown = ([prompt for prompt in every if prompt.known is wanted] for wanted in (True, False))
        return TopicPrompts(topic, (*unknown[:1], *known[:3]))

    words = ("player", "band", "store")
    selection = {
        topic: TopicPrompts(topic, tuple(expected(topic, f"{text} {word}") for text in BEGINNINGS))
        for topic, word in zip(TOPICS, words, strict=True)
    }
    other = {topic: held_out(topic, "in the", word) for topic, word in zip(TOPICS, words, strict=True)}
    plain = TopicPrompts("plain", tuple(Prompt("plain", f"the {word}", " won the race") for word in words))
    return Texts(selection, other, selection, plain)


def write_comments(folder):
    (folder / "toxicity").mkdir()
    rng = np.random.default_rng(0)
    kinds = {"Toxic": WORDS[:25], "Not Toxic": WORDS[15:]}
    rows = [(" ".join(rng.choice(words, 12)), label) for label, words in kinds.items() for _ in range(10)]
    with (folder / "toxicity" / "comments.csv").open("w", encoding="utf-8", newline="") as lines:
        csv.writer(lines).writerows([("text", "is_toxic"), *rows])
    return {topic: [text for text, own in rows if own == label] for topic, label in LABELS.items()}


LABELS = {"toxic": "Toxic", "harmless": "Not Toxic"}


def top(score, k):
    layers, columns = np.unravel_index(np.argsort(-score, axis=None)[:k], score.shape)
    return tuple((int(layer), int(column)) for layer, column in zip(layers, columns, strict=True))


def rows_of(lm, prompts, neurons):
    """``[metric, prompt]``: log-probability and accuracy with neurons zeroed by hand."""
    scorer = RowScorer(without(lm, neurons), prompts, Impairment("zero"))
    return scorer.values(["logprob", "accuracy"], RowPlan(np.arange(len(prompts))), cluster=())


def check_removed(results, lm, scores, prompts):
    """Everything that Shapley scores remove, by edited weights."""
    assert results.head["watched"] == [prompt.topic for prompt in prompts]
    assert all(prompt.known for prompt in prompts if prompt.topic != "plain")
    removed = {(r["selector"], r["scope"], r["count"]): r for r in results.records if "selector" in r}
    assert len(removed) == 1 + 4 * (1 + len(TOPICS)) * 2
    assert removed["none", "general", 0]["accuracy"][:6] == [1.0] * 6
    score = {topic: scores[topic].score for topic in TOPICS}
    score["general"] = np.mean(list(score.values()), axis=0)
    for scope, own in score.items():
        for count in (2, 6):
            record = removed["shapley", scope, count]
            logprob, accuracy = rows_of(lm, prompts, top(own, count))
            np.testing.assert_allclose(record["logprob"], logprob, atol=1e-4)
            assert record["accuracy"] == np.round(accuracy, 3).tolist()
    assert any(record["accuracy"][:6] != [1.0] * 6 for record in removed.values())


def check_repaired(results, lm, scores, comments, plain):
    """Everything that Shapley scores for toxic comments repair, by edited weights."""
    found = judged(comments)
    records = {(r["repair"], r["count"]): r for r in results.records if "repair" in r}
    assert list(records) == [("none", 0), ("shapley", 3), ("shapley", 6), ("random", 3), ("random", 6)]
    for count in (0, 3, 6):
        record, edited = records["shapley" if count else "none", count], without(lm, top(scores["toxic"].score, count))
        by_sample = [
            [found.judge(text) for text in continuations(edited, found.beginnings["toxic"][:3], (), seed)]
            for seed in (0, 1)
        ]
        np.testing.assert_allclose(record["toxicity"], np.mean(by_sample, axis=0), atol=1e-4)
        np.testing.assert_allclose(record["plain"], rows_of(edited, plain, ())[0], atol=1e-4)
        assert record["auc"] == found.auc
    assert len({tuple(record["toxicity"]) for record in records.values()}) == 5


def test_the_experiment_end_to_end(monkeypatch, folder, own_cache):
    """Measured, drawn, and once more from what is kept: but for continuations no row is measured again."""

    def load(name, device=None):
        lm = load_model(str(folder / "model"), device="cpu")
        lm.name = name
        return lm

    def again(*args, **kwargs):
        raise AssertionError("measured again")

    lm = load("smollm2")
    prompts = tiny_texts(lm)
    monkeypatch.setattr(commands.models, "load", load)
    monkeypatch.setattr(commands, "texts", lambda *args: prompts)
    monkeypatch.setattr(commands.yaml, "safe_load", lambda text: {"small": SIZE, "full": FULL})
    comments = write_comments(folder)
    out, kept = folder / "smollm2-small.jsonl", folder / "kept.jsonl"
    run(out, folder)
    results = Results.read(out)

    [path] = (folder / "cache" / "experiments" / "scores").glob("*.h5")
    known = [prompt for topic in TOPICS for prompt in prompts.other_keywords[topic].prompts[1:3]]
    check_removed(results, lm, ScoreFile(path), [*known, *prompts.plain.prompts])
    check_repaired(results, lm, ScoreFile(path), comments, prompts.plain.prompts)

    draw_module.draw(results, out, folder / "figures", "smollm2-small")
    figures = sorted((folder / "figures").iterdir())
    assert [figure.name for figure in figures] == ["smollm2-small-removal.png", "smollm2-small-repair.png"]
    assert all(drawn_from(figure, out) for figure in figures)
    text = draw_module.tables(results)
    assert f"{len(results.records)} clusters, 6 known prompts" in text and "| guarded | 1.00 [1.00, 1.00] |" in text
    assert text.count("\n| shapley | ") == 3 + 2 and "| random | 6 | " in text
    part = section(results, "smollm2-small")
    assert "3 beginnings of toxic comments, 2 continuations of each, and on 3 passages" in " ".join(part.caveats)
    assert "only the size full has norm there" in " ".join(part.caveats)

    for name in ("values", "gradients"):
        monkeypatch.setattr(RowScorer, name, again)
    monkeypatch.setattr("experiments.lab.scores.estimate", again)
    run(kept, folder)
    assert Results.read(kept).records == results.records


def run(out, folder):
    done = CliRunner().invoke(run_module.main, ["--out", str(out), "--data", str(folder)], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def test_without_repair_no_comments_are_needed(monkeypatch, tmp_path, own_cache):
    """As at the size for trying; and only one figure is drawn."""
    lm = tiny_lm("llama")
    prompts = tiny_texts(lm)
    monkeypatch.setattr(commands.models, "load", lambda name, device=None: lm)
    monkeypatch.setattr(commands, "texts", lambda *args: prompts)
    size = {**SIZE, "repair": {}, "selectors": ["random"], "counts": [2]}
    monkeypatch.setattr(commands.yaml, "safe_load", lambda text: {"small": size})
    run(tmp_path / "out.jsonl", tmp_path)
    results = Results.read(tmp_path / "out.jsonl")
    assert len(results.records) == 1 + 1 + len(TOPICS) and results.repairs() == []
    draw_module.draw(results, tmp_path / "out.jsonl", tmp_path / "figures", "m")
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["m-removal.png"]
    assert "Repair" not in draw_module.tables(results)
