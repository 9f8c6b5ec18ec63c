"""What a key may ask for: the notation, the floor and every way around it, keys, limits, the audit log."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from shapley.cli.keys import keys
from shapley.errors import ShapleyError
from shapley.hf.hooks import Rows, impair
from shapley.impairment import KINDS, NOISE_KINDS, SITES
from shapley.server.asked import MOST_NOISE, Asked, parse
from shapley.server.audit import AuditLog, check
from shapley.server.keys import KeyFile, secret_of
from shapley.server.limits import Limits
from shapley.server.policy import NoCluster, Policy, Refused, noise_seed, resolve
from tests.tiny import tiny_lm

SECRET = b"s" * 32
NAMES = (None, "one", "two")
REGISTERED = [(name, site) for name in NAMES[1:] for site in SITES]


def asked_of(kind, strength, site, cluster):
    most = MOST_NOISE if kind in NOISE_KINDS else 1.0
    return Asked(kind=kind, strength=strength * most, site=site, cluster=cluster)


ASKED = st.builds(asked_of, st.sampled_from(KINDS), st.floats(0, 1), st.sampled_from(SITES), st.sampled_from(NAMES))


@given(ASKED)
def test_the_notation_is_read_back(asked):
    again = parse(asked.text())
    assert again.model_copy(update={"strength": asked.strength}) == asked
    assert again.strength == pytest.approx(asked.strength, rel=1e-5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected KIND:STRENGTH"),
        ("noise", "expected KIND:STRENGTH"),
        ("noise:", "strength"),
        ("noise:-1", "greater than or equal to 0"),
        ("noise:nan", "finite"),
        ("noise:inf", "finite"),
        ("noise:1e9", "less than or equal to 100"),
        ("noise:1_0", "expected a number"),
        ("scale:1.5", "fraction from 0 to 1"),
        ("nois:0.5", "kind"),
        ("noise:0.5,site=attention", "site"),
        ("noise:0.5,cluster=", "cluster"),
        ("noise:0.5,cluster=../../etc", "cluster"),
        ("noise:0.5,cluster=a,cluster=b", "each once"),
        ("noise:0.5,seed=3", "expected cluster=NAME or site=SITE"),
    ],
)
def test_what_is_no_impairment(text, said):
    with pytest.raises(ValueError, match=said):
        parse(text)


@given(st.none() | ASKED, st.lists(ASKED, min_size=1, max_size=3))
def test_every_floor_is_in_what_is_applied_and_acts_last(asked, floor):
    policy = Policy(floor=tuple(floor))
    stack = resolve(asked, policy, "lab", SECRET, REGISTERED)
    floors = stack[-len(floor) :]
    for least, layer in zip(floor, floors, strict=True):
        assert layer.asked.same_place(least) and layer.asked.strength >= least.strength
    assert len(stack) <= len(floor) + 1
    if asked is not None:
        assert any(layer.asked.same_place(asked) and layer.asked.strength >= asked.strength for layer in stack)
    assert len({layer.seed for layer in stack}) == len(stack)


def test_the_noise_is_of_the_secret_and_the_organisation_only():
    noise = parse("noise:0.5")
    policy = Policy(floor=(noise,))
    one = resolve(None, policy, "lab", SECRET, REGISTERED)
    assert one == resolve(None, policy, "lab", SECRET, REGISTERED)
    assert one != resolve(None, policy, "other lab", SECRET, REGISTERED)
    assert one != resolve(None, policy, "lab", b"t" * 32, REGISTERED)
    assert one[-1:] == resolve(parse("scale:0.5"), policy, "lab", SECRET, REGISTERED)[-1:]
    assert 0 <= noise_seed(SECRET, "lab", "floor 0") < 2**63


def test_a_request_for_more_of_the_floor_raises_it_and_for_less_does_nothing():
    policy = Policy(floor=(parse("noise:0.5"),))
    for wanted, strength in (("noise:0.7", 0.7), ("noise:0.2", 0.5), ("noise:0", 0.5)):
        [layer] = resolve(parse(wanted), policy, "lab", SECRET, REGISTERED)
        assert layer.asked.strength == strength
    smaller = resolve(parse("noise:0.7,cluster=one"), policy, "lab", SECRET, REGISTERED)
    assert [layer.asked.text() for layer in smaller] == ["noise:0.7,cluster=one", "noise:0.5"]


def test_strict_floors_allow_their_levels_only():
    policy = Policy(floor=(parse("scale:0.5"),), levels=(parse("noise:1"), parse("noise:2")))
    assert len(resolve(parse("noise:1"), policy, "lab", SECRET, REGISTERED)) == 2
    assert len(resolve(None, policy, "lab", SECRET, REGISTERED)) == 1
    for other in ("noise:1.5", "noise:0", "scale:0.5", "noise:1,cluster=one"):
        with pytest.raises(Refused, match="calibrated levels only: noise:1, noise:2"):
            resolve(parse(other), policy, "lab", SECRET, REGISTERED)
    without = Policy(levels=policy.levels)
    assert len(resolve(parse("noise:2"), without, "lab", SECRET, REGISTERED)) == 1
    with pytest.raises(Refused, match="calibrated levels only"):
        resolve(None, without, "lab", SECRET, REGISTERED)
    with pytest.raises(NoCluster, match="no cluster 'none' is registered at mlp_hidden"):
        resolve(parse("noise:1,cluster=none"), Policy(), "lab", SECRET, REGISTERED)


BEFORE_THE_FLOOR = ASKED.filter(lambda asked: asked.cluster is None and asked.site != "mlp_out")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=BEFORE_THE_FLOOR)
def test_no_request_brings_back_what_a_floor_of_zero_took(asked, monkeypatch, tmp_path_factory):
    """A floor that zeroes the neurons: whatever is done before it, nothing of the prompt comes through them. What acts behind
    them adds to the model what is no function of them."""
    monkeypatch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    lm = tiny_lm("llama")
    stack = resolve(asked, Policy(floor=(parse("zero:1"),)), "lab", SECRET, REGISTERED)

    def logits(layers):
        with ExitStack() as contexts, torch.no_grad():
            for layer in layers:
                contexts.enter_context(impair(lm, layer.asked.impairment(layer.seed), rows=Rows(prompt_keys=[""])))
            return lm.model(input_ids=torch.tensor([[5, 9, 21, 33]])).logits

    torch.testing.assert_close(logits(stack), logits(stack[-1:]), atol=1e-5, rtol=1e-5)


def test_unknown_fields_of_a_policy_are_refused():
    with pytest.raises(ValidationError):
        Policy(flour=())
    with pytest.raises(ValidationError):
        Policy(floor=({"kind": "noise", "strength": -1},))


def test_keys_are_kept_hashed_and_revoked_ones_are_refused(tmp_path):
    mine, server = KeyFile(tmp_path), KeyFile(tmp_path)
    key, text = mine.add("lab", Policy(floor=(parse("noise:0.5"),)))
    assert server.find(text) == key and server.find(text + "x") is None and server.find("") is None
    stored = (tmp_path / "keys.json").read_text()
    assert text not in stored and text.removeprefix("sk-shapley-") not in stored
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600
    mine.revoke(key.id)
    assert server.find(text) is None and server.all()[0].revoked
    with pytest.raises(ShapleyError, match="unknown key 'nothing'"):
        mine.revoke("nothing")


def test_a_damaged_key_file_is_named(tmp_path):
    (tmp_path / "keys.json").write_text("{}")
    with pytest.raises(ShapleyError, match="is not a key file of version 1"):
        KeyFile(tmp_path).all()
    (tmp_path / "keys.json").write_text(
        json.dumps({"format": "neuron-shapley-keys", "version": 1, "keys": [{"id": "a"}]})
    )
    with pytest.raises(ShapleyError, match="holds a key that is damaged: organisation"):
        KeyFile(tmp_path).all()


def test_the_secret_is_made_once(tmp_path):
    secret = secret_of(tmp_path)
    assert len(secret) == 32 and secret_of(tmp_path) == secret
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    (tmp_path / "secret").write_bytes(b"short")
    with pytest.raises(ShapleyError, match="does not hold 32 bytes"):
        secret_of(tmp_path)


def test_limits_fill_up_with_time(tmp_path):
    clock = [0.0]
    limits = Limits(lambda: clock[0])
    key, _ = KeyFile(tmp_path).add("lab", Policy(requests_per_minute=2, tokens_per_minute=100))
    assert [limits.take(key, 40) for _ in range(2)] == [0, 0]
    assert limits.take(key, 1) == pytest.approx(30)  # half a minute for a request
    clock[0] = 30
    assert limits.take(key, 80) == pytest.approx(6)  # 20 + 50 tokens are there
    limits.give_back(key, 10)
    assert limits.take(key, 80) == 0
    assert limits.take(key, 101) == float("inf")


def test_the_audit_log_is_a_chain(tmp_path):
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    for i in range(3):
        log.write("request", n=i)
    log.close()
    with path.open("ab") as file:
        file.write(b'{"half')  # as kill -9 leaves it
    again = AuditLog(path)
    again.write("request", n=3)
    again.close()
    records, problems = check(path)
    assert [record["n"] for record in records] == [0, 1, 2, 3] and problems == ["line 4 is half written"]
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], *lines[2:]]))
    assert "line 2 does not follow the line before it" in check(path)[1]
    path.write_bytes(b"".join(lines).replace(b'"n": 1', b'"n": 7'))
    assert check(path)[1][0] == "line 3 does not follow the line before it"
    with pytest.raises(ShapleyError, match="no audit log at"):
        check(tmp_path / "none")


def test_a_line_that_goes_in_by_half_is_taken_back_and_said(tmp_path, monkeypatch):
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    log.write("request", n=0)
    whole, write = path.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda file, line: write(file, line[: len(line) // 2]))
    with pytest.raises(ShapleyError, match=r"cannot write .*: the disk is full"):
        log.write("request", n=1)
    assert path.read_bytes() == whole and not log.writable
    monkeypatch.undo()
    log.write("request", n=2)
    log.close()
    records, problems = check(path)
    assert [record["n"] for record in records] == [0, 2] and not problems and log.writable


def test_folders_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    assert "cannot make the state folder" in run("add", "--state", tmp_path / "file" / "x", "--organisation", "lab")
    assert "no keys in" in run("list", "--state", tmp_path / "none") and not (tmp_path / "none").exists()
    (tmp_path / "secret").mkdir()
    with pytest.raises(ShapleyError, match="cannot read the server's secret"):
        secret_of(tmp_path)


def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom shapley.server.audit import AuditLog\n"
        "log = AuditLog(Path(sys.argv[1]))\nn = 0\n"
        "while True:\n    log.write('request', n=n)\n    print(n, flush=True)\n    n += 1\n"
    )
    path = tmp_path / "audit.jsonl"
    process = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
    while process.stdout.readline() != "50\n":
        pass
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    acknowledged = [50, *(int(line) for line in process.stdout.read().split())]
    process.wait()
    AuditLog(path).close()
    records, _ = check(path)
    assert [record["n"] for record in records[: acknowledged[-1] + 1]] == list(range(acknowledged[-1] + 1))


def run(*arguments):
    done = CliRunner().invoke(keys, [str(argument) for argument in arguments])
    return done.output if done.exception is None else f"{done.exception}"


def test_keys_on_the_command_line(tmp_path):
    made = json.loads(
        run("add", "--state", tmp_path, "--organisation", "lab", "--floor", "noise:0.5", "--level", "noise:1", "--json")
    )
    assert KeyFile(tmp_path).find(made["key"]).policy.floor[0].text() == "noise:0.5"
    listed = run("list", "--state", tmp_path)
    assert made["id"] in listed and "floor noise:0.5, levels noise:1 only, without log-probabilities" in listed
    assert made["key"] not in listed and "sha256" not in run("list", "--state", tmp_path, "--json")
    assert "is revoked" in run("revoke", "--state", tmp_path, made["id"])
    assert KeyFile(tmp_path).find(made["key"]) is None
    assert "not shown again" in run("add", "--state", tmp_path, "--organisation", "lab")
    assert "--floor 'noise:-1': strength" in run(
        "add", "--state", tmp_path, "--organisation", "x", "--floor", "noise:-1"
    )
    assert "1 to 128 characters" in run("add", "--state", tmp_path, "--organisation", " ")
