"""Comparing models by how they fall: known curves give known differences, nothing but signs depends on the order of models or
prompts, and models at the ceiling of a test are told apart."""

from __future__ import annotations

import copy
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid

from shapley import compare_report
from shapley.cli import main as entry
from shapley.cli.compare import file_names
from shapley.compare import PLAIN, answer_tokens, compare, floors_of, plain_text, unused_passages
from shapley.corpus import reference_texts
from shapley.errors import ShapleyError
from shapley.impairment import Impairment
from shapley.keyed import keyed_rng
from shapley.prompts import Prompt, TopicPrompts
from shapley.records import EVERYTHING, METRICS, Sweep
from tests.tiny import WORDS, tiny_model, word_tokenizer

STRENGTHS = np.array([0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0])
N_PROMPTS = 24
TEXTS = TopicPrompts("sums", tuple(Prompt("sums", f"what is {i} and one", f" {i + 1}") for i in range(N_PROMPTS)))
PASSAGES = plain_text([f"once upon a time there {'was ' * i}a king" for i in range(1, 7)])
TOPICS = {"sums": TEXTS, PLAIN: PASSAGES}
BYTES = np.array([len(prompt.answer.encode()) for prompt in PASSAGES.prompts])
DAMAGES = (0.1, 0.4)
KEEP = {"n": 200}


def sweep_of(kept, topics=TOPICS, rise=0.5, tokens=1, strengths=STRENGTHS, changes=None):
    """A sweep whose accuracy is ``kept``, ``[strengths, prompts]`` (the same for all prompts if it has one axis); its plain
    text loses ``rise`` nats a byte at strength 1, in proportion to the strength."""
    records = {}
    for topic, prompts in topics.items():
        n = len(prompts)
        values = {"accuracy": np.zeros((len(strengths), n)), "loss": np.zeros((len(strengths), n))}
        if topic == PLAIN:
            values["loss"] = -(1 + rise * strengths[:, None]) * BYTES
            values["logprob"] = values["loss"] / 7
        else:
            kept = np.asarray(kept, dtype=float)
            values["accuracy"] = np.broadcast_to(kept if kept.ndim == 2 else kept[:, None], (len(strengths), n))
            values["loss"] = values["accuracy"] - 2
            values["logprob"] = values["loss"] / tokens
        records[topic] = np.stack([values[name] for name in METRICS])[:, None, :, None, :]
    impairment = Impairment("noise", unit="sd")
    settings = {
        "prompts": {topic: prompts.sha256 for topic, prompts in topics.items()},
        "impairment": json.loads(impairment.to_json()),
        "strengths": strengths.tolist(),
        "seeds": 1,
    } | (changes or {})
    attrs = {"settings": json.dumps(settings)}
    return Sweep(records, [EVERYTHING], [72], strengths, strengths[:, None], impairment, attrs)


def straight(half, spread=0.0):
    """``[strengths, prompts]``: accuracy that falls in a straight line and is 1/2 at ``half``, which differs by prompt."""
    halves = half * np.exp(spread * keyed_rng("halves").normal(size=N_PROMPTS))
    return 1 - STRENGTHS[:, None] / (2 * halves)


def compared(sweeps, topics=TOPICS, floor=0.0, damages=DAMAGES, **options):
    tasks = [topic for topic in topics if topic != PLAIN]
    floors = {name: dict.fromkeys(tasks, floor) for name in sweeps}
    return compare(sweeps, topics, floors, damages, **{**KEEP, **options})


class TestKnownCurves:
    def test_straight_lines_have_the_known_doses_areas_and_losses(self):
        found = compared({"a": sweep_of(straight(2.0)), "b": sweep_of(straight(0.75), rise=1.0)})
        a, b = (found.curves["sums"][name] for name in "ab")
        assert (a.id50.estimate, b.id50.estimate) == pytest.approx((2.0, 0.75))
        assert not a.censored and not b.censored
        places = np.log(STRENGTHS[1:])
        area = trapezoid(1 - STRENGTHS[1:] / 4, places) / (places[-1] - places[0])
        assert a.area.estimate == pytest.approx(area)
        # Damage is rise * s, and the loss s / (2 half): at damage d it is d / (2 half rise).
        assert [lost.estimate for lost in a.lost] == pytest.approx([d / (2 * 2.0 * 0.5) for d in DAMAGES])
        assert [lost.estimate for lost in b.lost] == pytest.approx([d / (2 * 0.75 * 1.0) for d in DAMAGES])
        np.testing.assert_allclose(found.damage["a"], 0.5 * STRENGTHS)
        (pair,) = found.pairs
        assert pair.log_id50.estimate == pytest.approx(np.log(2.0 / 0.75))
        assert pair.area.estimate == pytest.approx(a.area.estimate - b.area.estimate)
        assert pair.lost[0].estimate == pytest.approx(a.lost[0].estimate - b.lost[0].estimate)

    def test_retention_is_above_the_floor(self):
        """At floor 1/2 a straight line from 1 is down to half of what can be lost where it is down to 3/4."""
        found = compared({"a": sweep_of(straight(2.0)), "b": sweep_of(straight(1.0))}, floor=0.5)
        assert found.curves["sums"]["a"].id50.estimate == pytest.approx(1.0)
        np.testing.assert_allclose(found.curves["sums"]["a"].retention, 1 - STRENGTHS / 2)

    def test_double_sensitivity_falls_first_by_a_factor_of_two(self):
        """What B does at a strength A does at twice that."""
        kept = straight(1.5, spread=0.4)
        shifted = np.vstack([kept[:1], kept[2:], kept[-1:] - 1])
        found = compared({"a": sweep_of(kept), "b": sweep_of(shifted)})
        (pair,) = found.pairs
        assert pair.log_id50.estimate == pytest.approx(np.log(2))
        assert pair.log_id50.low > 0.5 and pair.p_holm < 0.05
        assert (pair.verdict, pair.falls_first) == ("b falls first", "b")

    def test_pairing_finds_what_separate_intervals_hide(self):
        """Prompts differ far more than the models do."""
        found = compared({"a": sweep_of(straight(1.1, spread=0.8)), "b": sweep_of(straight(1.0, spread=0.8))})
        a, b = (found.curves["sums"][name].id50 for name in "ab")
        assert a.low < b.high
        assert found.pairs[0].verdict == "b falls first"

    def test_identical_models_are_not_told_apart(self):
        kept = straight(1.0, spread=0.5)
        (pair,) = compared({"a": sweep_of(kept), "b": sweep_of(kept)}).pairs
        assert (pair.log_id50.estimate, pair.log_id50.low, pair.log_id50.high) == (0, 0, 0)
        assert (pair.p, pair.verdict, pair.falls_first) == (1, "not told apart", None)

    def test_a_difference_on_few_prompts_is_not_told_apart(self):
        noise = keyed_rng("noise").normal(size=(2, N_PROMPTS))
        models = {
            name: sweep_of(1 - STRENGTHS[:, None] / (2 * np.exp(0.5 * own)))
            for name, own in zip("ab", noise, strict=True)
        }
        (pair,) = compared(models).pairs
        assert pair.log_id50.low < 0 < pair.log_id50.high and pair.verdict == "not told apart"

    def test_log_probability_as_the_value(self):
        """The loss of two tokens is accuracy - 2; so the log-probability falls from -1/2 in a straight line."""
        models = {name: sweep_of(straight(half), tokens=2) for name, half in (("a", 2.0), ("b", 1.0))}
        found = compared(models, floor=-1.0, value="logprob")
        assert found.curves["sums"]["a"].performance[0] == -0.5
        assert found.pairs[0].log_id50.estimate == pytest.approx(np.log(2))


class TestWhatIsNotReached:
    def test_id50_beyond_the_strengths_is_censored(self):
        found = compared({"a": sweep_of(straight(20.0)), "b": sweep_of(straight(1.0, spread=0.3))})
        a = found.curves["sums"]["a"]
        assert a.censored and a.id50.estimate == 4.0
        assert found.pairs[0].log_id50.estimate == pytest.approx(np.log(4.0 / found.curves["sums"]["b"].id50.estimate))
        assert found.pairs[0].verdict == "b falls first"
        assert any("at least that" in line for line in compare_report.caveats(found))
        assert ">=4" in compare_report.table(found)

    def test_both_censored_are_not_told_apart_by_id50(self):
        (pair,) = compared({"a": sweep_of(straight(20.0)), "b": sweep_of(straight(10.0))}).pairs
        assert pair.log_id50.estimate == 0 and pair.verdict == "not told apart"
        assert pair.area.low > 0

    def test_a_damage_that_was_not_done_has_no_loss(self):
        found = compared({"a": sweep_of(straight(1.0)), "b": sweep_of(straight(1.0), rise=0.05)}, damages=[0.1, 1.0])
        assert np.isnan(found.curves["sums"]["b"].lost[1].estimate)
        assert np.isnan(found.pairs[0].lost[1].estimate)
        assert found.pairs[0].lost[0].estimate < 0  # B loses more before plain text is so much worse

    def test_a_model_at_its_floor_is_not_comparable(self):
        found = compared({"a": sweep_of(straight(1.0)), "b": sweep_of(np.zeros(len(STRENGTHS)))})
        (pair,) = found.pairs
        assert np.isnan(found.curves["sums"]["b"].id50.estimate)
        assert pair.verdict == "not comparable" and np.isnan(pair.p_holm)
        assert any("b is not above its floor" in line for line in compare_report.caveats(found))
        json.dumps(compare_report.record(found), allow_nan=False)
        compare_report.figure(found).canvas.draw()

    def test_a_model_that_is_hardly_above_its_floor_is_not_comparable(self):
        """A third of the resamples hold no prompt that it knows."""
        known = np.zeros(N_PROMPTS)
        known[3] = 1
        kept = straight(1.0) * known
        found = compared({"a": sweep_of(straight(1.0)), "b": sweep_of(kept)})
        assert 0.2 < found.pairs[0].log_id50.undefined < 0.5
        assert found.pairs[0].verdict == "not comparable"

    def test_one_prompt_has_no_interval(self):
        topics = {**TOPICS, "sums": TEXTS.first(1)}
        models = {name: sweep_of(straight(half)[:, :1], topics) for name, half in (("a", 2.0), ("b", 1.0))}
        (pair,) = compared(models, topics).pairs
        assert pair.log_id50.estimate == pytest.approx(np.log(2)) and np.isnan(pair.log_id50.low)
        assert pair.verdict == "not comparable"


class TestOrder:
    MODELS = (("a", 1.3, 0.4), ("b", 1.0, 0.6), ("c", 0.9, 0.2))

    def test_models_in_another_order_change_signs_only(self):
        sweeps = {name: sweep_of(straight(half, spread)) for name, half, spread in self.MODELS}
        there, back = compared(sweeps), compared(dict(reversed(sweeps.items())))
        for task, curves in there.curves.items():
            for name, curve in curves.items():
                other = back.curves[task][name]
                assert (curve.id50, curve.area, curve.lost) == (other.id50, other.area, other.lost)
        turned = {(pair.second, pair.first): pair for pair in back.pairs}
        for pair in there.pairs:
            other = turned[pair.first, pair.second]
            mine, its = ((one.log_id50, one.area, *one.lost) for one in (pair, other))
            for a, b in zip(mine, its, strict=True):
                np.testing.assert_allclose((a.estimate, a.low, a.high), (-b.estimate, -b.high, -b.low))
            assert (pair.p, pair.p_holm, pair.falls_first) == (other.p, other.p_holm, other.falls_first)

    def test_prompts_in_another_order_change_nothing(self):
        order = keyed_rng("order").permutation(N_PROMPTS)
        topics = {**TOPICS, "sums": TopicPrompts("sums", tuple(TEXTS.prompts[i] for i in order))}
        curves = {name: straight(half, spread) for name, half, spread in self.MODELS}
        one = compared({name: sweep_of(kept) for name, kept in curves.items()})
        two = compared({name: sweep_of(kept[:, order], topics) for name, kept in curves.items()}, topics)
        assert compare_report.record(one) == compare_report.record(two)

    def test_holm_counts_all_tasks_and_pairs(self):
        topics = {**TOPICS, "twice": TopicPrompts("twice", TEXTS.prompts)}
        sweeps = {name: sweep_of(straight(half, 0.1), topics) for name, half in (("a", 4.0), ("b", 2.0), ("c", 1.0))}
        pairs = compared(sweeps, topics).pairs
        assert len(pairs) == 6
        assert {pair.p for pair in pairs} == {2 / 201}
        assert [pair.p_holm for pair in pairs] == pytest.approx([12 / 201] * 6)
        assert {pair.verdict for pair in pairs} == {"not told apart"}  # 200 resamples are too few for six claims


class TestTokens:
    def test_answers_that_are_cut_otherwise_are_a_caveat(self):
        one, two = sweep_of(straight(1.0)), sweep_of(straight(1.0), tokens=2)
        assert answer_tokens(one, "sums").tolist() == [1] * N_PROMPTS
        assert answer_tokens(two, "sums").tolist() == [2] * N_PROMPTS
        found = compared({"a": one, "b": two})
        assert any(f"cut {N_PROMPTS} of {N_PROMPTS} answers" in line for line in compare_report.caveats(found))
        assert not any("cut" in line for line in compare_report.caveats(compared({"a": one, "b": one})))

    def test_damage_is_by_byte_whatever_the_tokens(self):
        sweep = sweep_of(straight(1.0), rise=0.3)
        records = dict(sweep.records)
        records[PLAIN] = (
            records[PLAIN] * np.array([3.0, 1, 1])[:, None, None, None, None]
        )  # fewer tokens, the same loss
        found = compared({"a": sweep, "b": replace(sweep, records=records)})
        np.testing.assert_array_equal(found.damage["a"], found.damage["b"])
        np.testing.assert_allclose(found.damage["a"], 0.3 * STRENGTHS)


class TestRefused:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"seeds": 2}, "differ in seeds: 1, 2"),
            ({"prompts": {"sums": "x"}}, "a and b differ in prompts"),
            ({"strengths": [0, 1]}, "differ in strengths"),
            ({"impairment": {"kind": "scale"}}, "differ in impairment"),
        ],
    )
    def test_sweeps_that_differ_in_more_than_the_model(self, changes, words):
        with pytest.raises(ShapleyError, match=words):
            compared({"a": sweep_of(straight(1.0)), "b": sweep_of(straight(1.0), changes=changes)})

    def test_other_prompts_than_were_swept(self):
        sweeps = {name: sweep_of(straight(1.0)) for name in "ab"}
        with pytest.raises(ShapleyError, match="other prompts"):
            compared(sweeps, {**TOPICS, "sums": TEXTS.first(3)})

    def test_what_is_missing(self):
        one = sweep_of(straight(1.0))
        with pytest.raises(ShapleyError, match="two or more"):
            compared({"a": one})
        with pytest.raises(ShapleyError, match="plain text as the topic 'plain'"):
            compared({"a": one, "b": one}, {"sums": TEXTS})
        with pytest.raises(ShapleyError, match="does not impair everything"):
            compared({"a": one, "b": replace(one, clusters=["c"])})
        with pytest.raises(ShapleyError, match=r"no floor of b on \['sums'\]"):
            compare({"a": one, "b": one}, TOPICS, {"a": {"sums": 0.0}}, DAMAGES)
        with pytest.raises(ShapleyError, match="two strengths or more"):
            short = sweep_of([1.0, 0.0], strengths=np.array([0.0, 1.0]))
            compared({"a": short, "b": short})

    @pytest.mark.parametrize("damages", [[], [0.0], [-0.1, 1], [np.nan]])
    def test_damages_that_are_not_positive(self, damages):
        one = sweep_of(straight(1.0))
        with pytest.raises(ShapleyError, match="damages"):
            compared({"a": one, "b": one}, damages=damages)


def test_floors_are_chance_or_measured():
    zero = sweep_of([1.0, 0.25], strengths=np.array([0.0, 1.0]))
    assert floors_of(["sums"], zero, "accuracy", {}) == {"sums": 0.25}
    assert floors_of(["sums"], zero, "logprob", {}) == {"sums": -1.75}
    assert floors_of(["sums"], zero, "accuracy", {"sums": 0.1}) == {"sums": 0.1}
    assert floors_of(["sums"], None, "accuracy", {"sums": 0.1}) == {"sums": 0.1}


def test_plain_text_is_cut_to_forty_words_two_of_them_given():
    (prompt,) = plain_text([" ".join(f"w{i}" for i in range(50))]).prompts
    assert prompt.prompt == "w0 w1" and prompt.answer.startswith(" w2 ") and prompt.answer.endswith(" w39")
    with pytest.raises(ShapleyError, match="three words or more"):
        plain_text(["too short"])


def test_passages_by_default_are_not_those_of_the_statistics():
    passages = unused_passages()
    assert len(set(passages)) == 32 and not set(passages) & set(reference_texts())


@pytest.mark.parametrize(
    ("models", "names"),
    [
        (("org/a", "org/b"), ["a", "b"]),
        (("one/a", "two/a"), ["one-a", "two-a"]),
        (("one/A", "two/a", "b"), ["one-A", "two-a", "b"]),
        (("/runs/1/best/a", "/runs/2/best/a", "b/a"), ["1-best-a", "2-best-a", "b-a"]),
        (("one/a", "one/a", "two/a"), ["one-a", "one-a-2", "two-a"]),
        (("/long/way/to/a", "/long/way/to/a"), ["a", "a-2"]),
        (("a", "a", "a"), ["a", "a-2", "a-3"]),
        (("x/a", "y/a", "x-a"), ["a", "y-a", "x-a"]),
        (("a", "a", "a-2"), ["a", "a-2", "a-2-2"]),
        (("../models/m 1/", "smollm2"), ["m-1", "smollm2"]),
        (("..", "/"), ["model", "model-2"]),
        (("a" * 300, "b" + "a" * 299), ["a" * 80, "a" * 80 + "-2"]),
    ],
)
def test_names_tell_models_apart(models, names):
    assert file_names(models) == names


@pytest.fixture
def shapley(monkeypatch, capsys):
    """Run the command in this process; returns exit code, standard output, standard error."""

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["shapley", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            entry.main()
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return run


@pytest.fixture(scope="module")
def at_ceiling(tmp_path_factory):
    """Two models, and prompts that both answer right: what they predict comes past the MLPs, whose outputs are small; those of
    the second are four times as large, and so is the noise that comes through them."""
    folder = tmp_path_factory.mktemp("models")
    models = {}
    for name, size in (("firm", 0.02), ("frail", 0.08)):
        models[name] = copy.deepcopy(tiny_model("gpt2"))
        for block in models[name].transformer.h:
            with torch.no_grad():
                block.mlp.c_proj.weight.mul_(size)
                block.mlp.c_proj.bias.mul_(size)
        models[name].save_pretrained(folder / name)
        word_tokenizer().save_pretrained(folder / name)
    rng, lines = keyed_rng("ceiling"), []
    while len(lines) < 40:
        words = rng.choice(WORDS, 4)
        ids = torch.tensor([[WORDS.index(word) + 4 for word in words]])
        with torch.no_grad():
            said = {int(model(ids).logits[0, -1].argmax()) - 4 for model in models.values()}
        if len(said) == 1 and 0 <= (answer := said.pop()) < len(WORDS):
            lines.append({"topic": "next", "prompt": " ".join(words), "answer": f" {WORDS[answer]}"})
    prompts = folder / "p.jsonl"
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    plain = folder / "plain.jsonl"
    plain.write_text("".join(json.dumps({"text": " ".join(rng.choice(WORDS, 12))}) + "\n" for _ in range(6)))
    return folder / "firm", folder / "frail", prompts, plain


@pytest.fixture
def words(at_ceiling, tmp_path, monkeypatch, tmp_path_factory):
    """A command line without its last options."""
    monkeypatch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    firm, frail, prompts, plain = at_ceiling
    options = (
        "--strength",
        "0.5,1,2,4,8,16,32",
        "--seeds",
        2,
        "--damage",
        "0.01,0.05",
        "--dtype",
        "float32",
        "--out",
        tmp_path / "out",
    )
    return "compare", firm, frail, "--prompts", prompts, "--plain", plain, *options


class TestCommand:
    def test_models_at_the_ceiling_are_told_apart(self, shapley, words, tmp_path):
        out = tmp_path / "out"
        code, text, err = shapley(*words, "--chance", "next=0.02")
        assert code == 0, err
        assert "frail falls first" in text and "firm - frail" in text
        found = json.loads((out / "compare.json").read_text())
        assert [found["tasks"]["next"][name]["performance"][0] for name in ("firm", "frail")] == [1.0, 1.0]
        assert found["pairs"][0]["falls_first"] == "frail"
        assert found["impairment"]["unit"] == "sd" and list(found["models"]) == ["firm", "frail"]
        assert (out / "compare.png").read_bytes()[:4] == b"\x89PNG"
        assert sorted(path.name for path in out.iterdir()) == ["compare.json", "compare.png", "firm.h5", "frail.h5"]

        before = (out / "frail.h5").read_bytes()
        assert "exists: pass --overwrite" in shapley(*words, "--chance", "next=0.02")[2]
        code, text, err = shapley(*words, "--chance", "next=-8", "--value", "logprob", "--resume", "--json")
        assert code == 0, err
        assert json.loads(text)["value"] == "logprob" and json.loads((out / "compare.json").read_text()) == json.loads(
            text
        )
        assert (out / "frail.h5").read_bytes() == before
        code, _, err = shapley(*words, "--chance", "next=0.02", "--resume", "--noise-seed", 1)
        assert code == 2 and "cannot resume" in err

    def test_a_scaling_that_a_norm_undoes_is_refused(self, shapley, words, tmp_path):
        normed = tmp_path / "normed"
        tiny_model("gemma3_text").save_pretrained(normed)
        word_tokenizer().save_pretrained(normed)
        scaled = ("--impairment", "scale", "--strength", "0.5,1", "--chance", "next=0")
        code, _, err = shapley("compare", normed, words[1], *words[3:], *scaled)
        assert code == 2 and "undoes a scaling of all neurons alike: compare with --site mlp_out" in err

    def test_a_model_and_itself_are_not(self, shapley, words, at_ceiling, tmp_path):
        firm = at_ceiling[0]
        code, text, err = shapley(
            "compare", firm, firm, *words[3:], "--chance", "next=0", "--impairment", "scale", "--json"
        )
        assert code == 0, err
        found = json.loads(text)
        assert list(found["models"]) == ["firm", "firm-2"]
        assert found["pairs"][0]["verdict"] == "not told apart" and found["impairment"]["unit"] == "absolute"

    def test_a_measured_floor(self, shapley, words, tmp_path):
        """Without their MLPs these models do almost what they did. The plain text is the embedded corpus's."""
        code, _, err = shapley(
            *words[:5], *words[7:], "--impairment", "negative-noise", "--site", "mlp_out", "--value", "logprob"
        )
        assert code == 0, err
        assert sorted(path.name for path in (tmp_path / "out" / "floors").iterdir()) == ["firm.h5", "frail.h5"]
        floors = json.loads((tmp_path / "out" / "compare.json").read_text())["tasks"]["next"]
        assert all(abs(curve["floor"] - curve["performance"][0]) < 1 for curve in floors.values())

    def test_a_run_that_failed_leaves_no_comparison_and_goes_on(self, shapley, words, at_ceiling, tmp_path):
        out = tmp_path / "out"
        out.mkdir()
        (out / "compare.json").write_text("{}")
        code, _, err = shapley(
            "compare", at_ceiling[0], tmp_path / "none", *words[3:], "--overwrite", "--chance", "next=0"
        )
        assert code == 2 and "none" in err
        assert [path.name for path in out.iterdir()] == ["firm.h5"]
        before = (out / "firm.h5").read_bytes()
        code, _, err = shapley(*words, "--resume", "--chance", "next=0")
        assert code == 0, err
        assert (out / "firm.h5").read_bytes() == before and (out / "compare.json").exists()

    @pytest.mark.parametrize(
        ("extra", "line"),
        [
            (("--resume", "--overwrite"), "exclude each other"),
            (("--strength", "1"), "two strengths or more"),
            (("--strength", "a"), "expected numbers"),
            (("--damage", "0.1,x"), "--damage: 'x' is not a finite number"),
            (("--damage", "-1"), "above 0"),
            (("--chance", "next"), "expected TOPIC=VALUE"),
            (("--chance", "nxt=0"), "did you mean 'next'"),
            (("--chance", "next=nan"), "not a finite number"),
            (("--topic", "other"), "unknown topic"),
            (("--plain", "nowhere.jsonl"), "cannot read plain text"),
            (("--value", "loss"), "Invalid value for '--value'"),
            (("--impairment", "zero"), "Invalid value for '--impairment'"),
            (("--memory", "much"), "--memory"),
            (("--out", "no/such/folder"), "does not exist"),
        ],
    )
    def test_bad_options_are_one_line_and_write_nothing(self, shapley, words, tmp_path, extra, line):
        code, out, err = shapley(*words, *extra)
        assert (code, out) == (2, "") and line in err and err.count("\n") == 1
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize(
        ("name", "content", "line"),
        [
            ("--plain", '{"text": "a b c"}\n{"words": "a"}\n', "line 2: expected"),
            ("--plain", "not json\n", "line 1: expected"),
            ("--plain", "\n", "holds no plain text"),
            ("--plain", '{"text": "two words"}\n', "three words or more"),
            ("--prompts", '{"topic": "plain", "prompt": "a b", "answer": " c"}\n', "stands for plain text"),
            ("--prompts", "\n", "holds no prompts"),
        ],
    )
    def test_bad_files_are_one_line(self, shapley, words, tmp_path, name, content, line):
        path = tmp_path / "bad.jsonl"
        path.write_text(content)
        code, out, err = shapley(*words, name, path)
        assert (code, out) == (2, "") and line in err and err.count("\n") == 1
        assert [found.name for found in tmp_path.iterdir()] == ["bad.jsonl"]

    def test_one_model_and_a_file_for_a_folder_are_refused(self, shapley, words, tmp_path):
        assert "give two or more" in shapley("compare", words[1], *words[3:])[2]
        (tmp_path / "out").write_text("precious")
        code, _, err = shapley(*words)
        assert code == 2 and "give a folder" in err and (tmp_path / "out").read_text() == "precious"
