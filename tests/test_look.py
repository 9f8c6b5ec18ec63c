"""Looking at players: what is shown of them against plain computations, and the command."""

from __future__ import annotations

import json
import re
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from shapley.cli.main import cli
from shapley.clusters import Cluster
from shapley.errors import ShapleyError
from shapley.estimators.registry import Plan
from shapley.hf.bases import haar
from shapley.hf.hooks import observe
from shapley.hf.residual import turn_stream
from shapley.hf.sites import write_weights
from shapley.impairment import Impairment
from shapley.look import seen as seen_module
from shapley.look.cards import record
from shapley.look.players import Players, parse_players
from shapley.look.rules import rules
from shapley.look.seen import Passages, Seen, cut, observed
from shapley.look.writes import nearest, token_effects
from shapley.prompts import Prompt, TopicPrompts
from shapley.runs import estimate
from shapley.store import ScoreFile
from tests.passages import CORPUS, PLAYERS, passages
from tests.tiny import tiny_lm, with_units


@pytest.fixture(autouse=True)
def _exact(monkeypatch):
    monkeypatch.setattr(seen_module, "fast_dtype", lambda device: torch.float32)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gemma3_text", "bloom"])
def test_activations_are_those_of_each_passage_alone(family):
    lm = tiny_lm(family)
    own = passages(lm)
    seen = observed(Players(lm), PLAYERS, own)
    for number, ids in enumerate(own.ids):
        with torch.no_grad(), observe(lm.sites, "mlp_hidden") as layers:
            lm.model(input_ids=torch.tensor([ids]))
        wanted = [layers[layer].view(len(ids), -1)[:, column].numpy() for layer, column in PLAYERS]
        found = seen.activation[seen.passage == number]
        assert np.isnan(found[0]).all()
        np.testing.assert_allclose(found[1:], np.stack(wanted, axis=1)[1:], atol=1e-5)


def test_batches_may_be_of_one_passage():
    lm = tiny_lm("llama")
    own = passages(lm)
    np.testing.assert_allclose(
        observed(Players(lm), PLAYERS, own, memory=1).activation,
        observed(Players(lm), PLAYERS, own).activation,
        atol=1e-5,
    )


def test_passages_are_cut_and_drawn():
    lm = tiny_lm("llama")
    own = cut(CORPUS, lm.tokenizer, 2)
    assert {len(ids) for ids in own.ids} == {2} and len(own.ids) == 7 and own.names == ["music", "sport"]
    assert len(cut(CORPUS, lm.tokenizer, 8, 3).ids) == 3
    for few in (["race"], ["race", "the player won"], ["the player won", "the player won"]):
        with pytest.raises(ShapleyError, match="two passages of two tokens or more are needed"):
            cut({"a": few}, lm.tokenizer, 8)


def test_of_copies_the_first_is_kept():
    """Else rules would be scored on copies of what they were fitted to."""
    lm = tiny_lm("llama")
    copies = {"sport": [*CORPUS["sport"], "the race"], "music": [*CORPUS["music"], CORPUS["sport"][1], "song band"]}
    assert cut(copies, lm.tokenizer, 8) == passages(lm)
    alike_once_cut = {"a": ["the player won", "the band"], "b": ["the player lost", "a race"]}
    assert cut(alike_once_cut, lm.tokenizer, 2) == cut(
        {"a": ["the player", "the band"], "b": ["a race"]}, lm.tokenizer, 2
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3_text"])
def test_token_effects_are_those_of_the_weights(family):
    lm = deepcopy(tiny_lm(family))
    with torch.no_grad():
        for parameter in lm.model.parameters():  # norms that do something
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    written = torch.stack([write_weights(lm.sites.blocks[layer])[column] for layer, column in PLAYERS]).detach()
    if family == "gemma3_text":
        gains = torch.stack([lm.model.model.layers[layer].post_feedforward_layernorm.weight for layer, _ in PLAYERS])
        written = written * (1 + gains)
    torch.testing.assert_close(Players(lm).directions(PLAYERS), written, atol=1e-4, rtol=1e-3)
    if family == "gpt2":
        through = (written - written.mean(dim=1, keepdim=True)) * lm.model.transformer.ln_f.weight
    else:
        gain = lm.model.model.norm.weight
        through = written * (1 + gain if family == "gemma3_text" else gain)
    effects = through @ lm.model.get_output_embeddings().weight.T
    wanted = (effects - effects.mean(dim=1, keepdim=True)) / effects.std(dim=1, keepdim=True)
    torch.testing.assert_close(token_effects(lm, written), wanted.detach(), atol=1e-3, rtol=1e-3)


def test_a_neuron_that_writes_nothing_has_a_card():
    lm = deepcopy(tiny_lm("llama"))
    with torch.no_grad():
        write_weights(lm.sites.blocks[2])[5] = 0
    found = record(Players(lm), PLAYERS, passages(lm))
    json.dumps(found, allow_nan=False)
    assert {value for _, value in found["players"][0]["promoted"]} == {0}


def test_token_effects_do_not_depend_on_the_basis_of_the_stream():
    lm = deepcopy(tiny_lm("llama"))
    with torch.no_grad():
        lm.model.model.norm.weight.uniform_(0.5, 2, generator=torch.Generator().manual_seed(1))
    before = token_effects(lm, Players(lm).directions(PLAYERS))
    turn_stream(lm.model, lm.sites, lambda: haar(16, 0, 0))
    torch.testing.assert_close(token_effects(lm, Players(lm).directions(PLAYERS)), before, atol=1e-4, rtol=1e-3)


def test_nearest_are_those_that_write_alike():
    lm = deepcopy(tiny_lm("llama"))
    with torch.no_grad():
        own = write_weights(lm.sites.blocks[2])[5].clone()
        write_weights(lm.sites.blocks[0])[7] = 3 * own
        write_weights(lm.sites.blocks[1])[9] = -own
    every = Players(lm)
    [found] = nearest(every, [(2, 5)], every.directions([(2, 5)]), 3)
    assert dict(found[:2]) == pytest.approx({(0, 7): 1, (1, 9): -1}) and abs(found[2][1]) < 0.99
    assert all(player != (2, 5) for player, _ in found)


# Directions of the residual stream, and units of a sparse layer


@pytest.mark.parametrize("site", ["mlp_in", "mlp_out"])
def test_directions_are_coordinates_of_the_site(site):
    lm = deepcopy(tiny_lm("llama"))
    own, turn = passages(lm), haar(16, 0, 0)
    with torch.no_grad(), observe(lm.sites, site) as layers:
        lm.model(input_ids=torch.tensor([own.ids[0]]))
    gain = lm.model.model.layers[2].post_attention_layernorm.weight if site == "mlp_in" else torch.ones(16)
    wanted = ((layers[2][0] / gain) @ turn.float())[1:, 5].numpy(force=True)
    turn_stream(lm.model, lm.sites, lambda: turn)
    found = observed(Players(lm, site), [(2, 5), (0, 15)], own)
    np.testing.assert_allclose(found.activation[found.passage == 0][1:, 0], wanted, atol=1e-4)


def test_directions_write_themselves_and_are_near_to_neurons_that_write_along_them():
    lm = deepcopy(tiny_lm("llama"))
    with torch.no_grad():
        write_weights(lm.sites.blocks[1])[9] = -2 * torch.eye(16)[3]
    every = Players(lm, "mlp_out")
    written = every.directions([(0, 3)])
    assert written.tolist() == [torch.eye(16)[3].tolist()]
    [found] = nearest(every, [(0, 3)], written, 2)
    assert found[0] == ((1, 9), pytest.approx(-1))
    with pytest.raises(ShapleyError, match="0 to 15 of layers 0 to 2"):
        every.check([(0, 16)])


@pytest.mark.parametrize("place", ["replace", "add"])
def test_units_of_a_sparse_layer(place):
    lm = with_units(tiny_lm("llama"), place)
    own, every = passages(lm), Players(lm)
    players = [(0, unit) for unit in (0, 7, 39)]
    found = observed(every, players, own)
    rows, last = [], []
    moved = torch.zeros(40)

    def watch(module, args, output):
        rows.append(output[0])
        return output + moved

    with torch.no_grad():
        handles = [
            lm.model.sparse_layer.winners.register_forward_hook(watch),
            lm.model.model.norm.register_forward_pre_hook(lambda module, args: last.append(args[0][0])),
        ]
        lm.model(input_ids=torch.tensor([own.ids[0]]))
        moved[7] = 1
        lm.model(input_ids=torch.tensor([own.ids[0]]))
        for handle in handles:
            handle.remove()
    np.testing.assert_allclose(found.activation[found.passage == 0][1:], rows[0][1:, [0, 7, 39]], atol=1e-5)
    assert (np.nan_to_num(found.activation) != 0).mean() < 0.4  # what did not win is not active
    written = torch.nn.functional.normalize(every.directions(players)[1], dim=0)
    change = torch.nn.functional.normalize(last[1] - last[0], dim=1)
    torch.testing.assert_close(change, written.expand_as(change), atol=1e-4, rtol=1e-4)
    [near, *_] = nearest(every, players, every.directions(players), 39)
    assert {layer for (layer, _), _ in near} == {0} and (0, 0) not in dict(near)
    shown = record(every, players, own)
    assert shown["noun"] == "unit" and shown["players"][0]["promoted"]
    with pytest.raises(ShapleyError, match="units are 0 to 39 of layers 0 to 0"):
        every.check([(1, 0)])


def test_a_sample_is_of_all_layers_and_the_same_again():
    every = Players(tiny_lm("llama"))
    found = every.sample(40)
    assert found == every.sample(40) == sorted(set(found)) and {layer for layer, _ in found} == {0, 1, 2}
    assert every.sample(1000) == [(layer, column) for layer in range(3) for column in range(24)]
    every.check(found)


# The interpretability score


def made(units, n=400, length=9, seed=0):
    """Passages of random tokens, and units that are functions of (token, previous, topic, rng)."""
    rng = np.random.default_rng(seed)
    ids = tuple(tuple(int(token) for token in rng.integers(0, 20, length)) for _ in range(n))
    topics = tuple(("a", "b")[i % 2] for i in range(n))
    tokens = np.concatenate([np.array(own) for own in ids])
    previous = np.concatenate([[0], tokens[:-1]])
    topic = np.repeat([name == "b" for name in topics], length)
    activation = np.stack([unit(tokens, previous, topic, rng) for unit in units], axis=1).astype(np.float32)
    activation[::length] = np.nan
    return Seen(Passages(ids, topics), tokens, np.repeat(np.arange(n), length), activation)


def test_simple_units_score_high_and_noise_scores_nothing():
    found = rules(
        made(
            [
                lambda token, previous, topic, rng: 2.0 * (token == 3) + 1.0 * (token == 7),
                lambda token, previous, topic, rng: 1.0 * (previous == 4),
                lambda token, previous, topic, rng: 1.0 * topic,
                lambda token, previous, topic, rng: 1.0 * (token == 3) + (previous == 4) - topic,
                lambda token, previous, topic, rng: rng.standard_normal(len(token)),
                lambda token, previous, topic, rng: 1.0 * ((token == 3) & (previous == 4)),
                lambda token, previous, topic, rng: np.ones(len(token)),
            ]
        )
    )
    token, previous, topic, all_three, noise, both, constant = found
    assert token.explained.estimate > 0.98 and token.parts["token"] > 0.98 and abs(token.parts["topic"]) < 0.01
    assert [number for number, _ in token.tokens[:2]] == [3, 7] and token.tokens[0][1] == pytest.approx(1.8, abs=0.2)
    assert previous.explained.estimate > 0.98 and previous.parts["previous"] > 0.98 > 0.1 > previous.parts["token"]
    assert topic.explained.estimate > 0.98 and topic.parts["topic"] > 0.98
    assert all_three.explained.estimate > 0.98 and max(all_three.parts.values()) < 0.9
    assert (
        -0.1 < noise.explained.estimate < 0.02
        and noise.explained.low <= noise.explained.estimate <= noise.explained.high
    )
    assert both.explained.estimate < 0.5  # a conjunction is no sum
    assert np.isnan(constant.explained.estimate)


def test_the_score_is_of_held_out_passages():
    """Every token is seen once or twice: what was learned of it is noise."""
    rng = np.random.default_rng(1)
    ids = tuple(tuple(int(token) for token in rng.permutation(5000)[:8]) for _ in range(60))
    tokens = np.concatenate([np.array(own) for own in ids])
    activation = rng.standard_normal((len(tokens), 1)).astype(np.float32)
    [found] = rules(Seen(Passages(ids, ("a",) * 60), tokens, np.repeat(np.arange(60), 8), activation))
    assert found.explained.estimate < 0.02


# The command


@pytest.fixture(scope="module")
def lm():
    return tiny_lm("llama")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--players", "0:1"], "nothing to write"),
        (["--players", "0:1", "--out", "page.txt"], "ends in .html"),
        (["--out", "page.html"], "no neurons given"),
        (["--players", "0:1", "--cluster", "c.json", "--json"], "--cluster and --players given"),
        (["--players", "0:1", "--top-k", "3", "--json"], "go with --topic"),
        (["--topic", "sport", "--json"], "is of a score file"),
        (["--players", "0-1", "--json"], "expected LAYER:NEURON"),
        (["--players", "0:1,0:1", "--json"], "named twice"),
        (["--players", "0:1", "--json", "--corpus", "nowhere.csv"], "no corpus at nowhere.csv"),
        (["nowhere.h5", "--topic", "a", "--json"], "nowhere.h5"),
        (["--cluster", "nowhere.json", "--json"], "no cluster file"),
        (["--sample", "3", "--players", "0:1", "--json"], "--players and --sample given"),
    ],
)
def test_mistakes_are_told_before_a_model_is_loaded(arguments, said, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["neurons", "--model", "nosuchmodel", *arguments])
    assert isinstance(result.exception, ShapleyError) and said in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_players_that_are_not_there(lm):
    with pytest.raises(ShapleyError, match=r"9:0 is not in .* layers 0 to 2"):
        observed(Players(lm), [(9, 0)], passages(lm))
    assert parse_players("3:120, 17:4") == [(3, 120), (17, 4)]


def test_command(lm, tmp_path, monkeypatch):
    monkeypatch.setattr("shapley.hf.load.load_model", lambda name, **options: lm)
    (tmp_path / "text.csv").write_text(
        "topic,text\n" + "".join(f"{topic},{text}\n" for topic, texts in CORPUS.items() for text in texts)
    )
    out = tmp_path / "page.html"
    arguments = ["neurons", "--model", "tiny", "--players", "2:5,0:3", "--corpus", str(tmp_path / "text.csv")]
    result = CliRunner().invoke(cli, [*arguments, "--out", str(out), "--json"])
    assert result.exit_code == 0, result.exception
    printed = json.loads(result.stdout)
    assert [card["layer"] for card in printed["players"]] == [2, 0] and "2 neurons of" in out.read_text()
    again = CliRunner().invoke(cli, [*arguments, "--out", str(out)])
    assert "--overwrite" in str(again.exception)
    monkeypatch.setattr("shapley.cli.neurons._MOST", 70)
    many = CliRunner().invoke(cli, [*arguments[:3], "--sample", "9999", *arguments[5:], "--json"])
    assert "72 neurons are too many for a page: ask for 70 at most" in str(many.exception)
    long = CliRunner().invoke(cli, [*arguments, "--json", "--tokens", "100000"])
    assert re.search("--tokens 100000: .* takes", str(long.exception))


def test_command_for_directions(lm, tmp_path, monkeypatch):
    monkeypatch.setattr("shapley.hf.load.load_model", lambda name, **options: lm)
    monkeypatch.chdir(tmp_path)

    def shown(*arguments):
        result = CliRunner().invoke(
            cli, ["neurons", "--model", "tiny", "--passages", "20", "--out", "p.html", *arguments]
        )
        if result.exception:
            return str(result.exception)
        return Path("p.html").read_text()

    assert "2 directions of tiny" in shown("--sample", "2", "--site", "mlp_in")
    Cluster(((0, 3),), "mlp_out").save("c.json")
    assert "c.json holds columns of mlp_out" in shown("--cluster", "c.json", "--site", "mlp_hidden", "--overwrite")
    assert "1 direction of tiny" in shown("--cluster", "c.json", "--overwrite")


def test_scores_of_a_site_go_with_its_players(lm, tmp_path, monkeypatch):
    monkeypatch.setattr("shapley.hf.load.load_model", lambda name, **options: lm)
    monkeypatch.chdir(tmp_path)
    topics = {"sport": TopicPrompts("sport", (Prompt("sport", "the player won the", " race"),))}
    estimate(lm, topics, "s.h5", plan=Plan("gradient", budget=64), impairment=Impairment("zero", site="mlp_out"))
    arguments = ["neurons", "s.h5", "--model", "tiny", "--json"]
    result = CliRunner().invoke(cli, [*arguments, "--topic", "sport", "--top-k", "3"])
    found = json.loads(result.stdout)
    assert found["site"] == "mlp_out" and found["noun"] == "direction" and len(found["players"]) == 3
    scores = ScoreFile("s.h5")["sport"].score
    for card in found["players"]:
        assert card["scores"]["sport"][0] == pytest.approx(scores[card["layer"], card["neuron"]], rel=1e-3)
    of_site = json.loads(CliRunner().invoke(cli, [*arguments, "--players", "1:2"]).stdout)
    assert of_site["site"] == "mlp_out" and of_site["players"][0]["scores"]
    wrong = CliRunner().invoke(cli, [*arguments, "--players", "1:2", "--site", "mlp_hidden"])
    assert "holds scores of mlp_out (sport), not of the neurons" in str(wrong.exception)
