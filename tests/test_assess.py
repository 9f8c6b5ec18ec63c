"""``shapley assess`` against endpoints whose scores at every level are known."""

from __future__ import annotations

import itertools
import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("httpx")
import httpx

from shapley.assess.client import Client, Forbidden, read_key
from shapley.assess.findings import find
from shapley.assess.inspect import InspectTask
from shapley.assess.journal import open_journal, read_journal
from shapley.assess.ladder import climb
from shapley.assess.levels import Level, falls_short, parse_levels, read_applied
from shapley.assess.lmeval import LmEvalTask
from shapley.assess.monotone import rise_test
from shapley.assess.plan import Plan, asked_order
from shapley.assess.release import Margin, release_rung
from shapley.assess.report import write_report
from shapley.assess.sequential import Shares, mean_bounds, spend
from shapley.assess.tasks import JsonlTask
from shapley.cli.main import cli
from shapley.errors import ShapleyError
from shapley.keyed import keyed_rng

KEY = "sk-very-secret"
HONEST = {2.0: 0.02, 1.0: 0.05, 0.5: 0.15, 0.25: 0.8, 0.0: 0.9}
SANDBAGGER = {2.0: 0.02, 1.0: 0.4, 0.5: 0.45, 0.25: 0.05, 0.0: 0.02}  # a little noise undoes the underperformance
LEVELS = "noise:2,1,0.5,0.25,0"


class Fake:
    """An endpoint at which prompt ``i`` is answered yes with a known probability.

    Args:
        p: of a yes, by applied strength.
        floor: at least so strong an impairment is applied.
        forbidden: weaker ones are refused.
    """

    def __init__(self, p, floor=0.0, forbidden=0.0):
        self.p, self.floor, self.forbidden, self.requests, self.problems = p, floor, forbidden, [], []

    def applied(self, asked):
        strength = max(asked["strength"], self.floor)
        return [{**asked, "strength": strength}] if strength else []

    def answer(self, path, body, authorization):
        self.requests.append((path, body))
        if self.problems:
            return self.problems.pop(0)
        if authorization != f"Bearer {KEY}":
            return error(401, "no such key")
        asked = body["impairment"]
        if asked["strength"] < self.forbidden:
            return error(403, "not this light\nfor you")
        applied = self.applied(asked)
        yes = self.p[max((done["strength"] for done in applied), default=0.0)]
        if path.endswith("/chat/completions"):
            choices = [{"message": {"content": self.says(body["messages"][-1]["content"], yes)}}]
        elif body.get("echo"):
            choices = [self.echo(i, prompt, yes) for i, prompt in enumerate(body["prompt"])]
        else:
            choices = [{"text": self.says(body["prompt"], yes)}]
        return 200, {}, {"choices": choices, "impairment": applied}

    def says(self, prompt, yes):
        return "Yes." if keyed_rng(prompt, yes).random() < yes else "No."

    def echo(self, index, text, yes):
        """The last word is a choice: 'right' is the likeliest if the model knows; one token more is generated."""
        prompt, word = text.rsplit(" ", 1)
        knows = self.says(prompt, yes) == "Yes."
        logprob = -0.1 if (word == "right") == knows else -3.0
        return {"index": index, "logprobs": {"token_logprobs": [None, *[-9.0] * len(prompt), logprob, -50.0]}}

    def transport(self):
        def handle(request):
            status, headers, body = self.answer(
                request.url.path, json.loads(request.content), request.headers.get("authorization")
            )
            return httpx.Response(status, headers=headers, json=body)

        return httpx.MockTransport(handle)

    def client(self, sleep=lambda seconds: None):
        return Client("http://fake", "m", KEY, transport=self.transport(), sleep=sleep)

    @contextmanager
    def served(self):
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                status, headers, reply = fake.answer(self.path, body, self.headers.get("Authorization"))
                content = json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *args):
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

        with Server(("127.0.0.1", 0), Handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"http://127.0.0.1:{server.server_port}/v1"
            server.shutdown()


def error(status, message, **headers):
    return status, headers, {"error": {"message": message, "type": "t", "code": "c"}}


@pytest.fixture
def items(tmp_path):
    return write_items(tmp_path / "items.jsonl", 200)


def write_items(path, n, **more):
    lines = [{"id": f"q{i}", "prompt": f"Question {i}", "target": "yes", **more} for i in range(n)]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def plan_of(task, levels=LEVELS, **settings):
    settings = {"threshold": 0.5, **settings}
    order = asked_order(task.ids, 0)
    return Plan("http://fake/v1", "m", task.name, task.scorer, task.sha256, order, parse_levels(levels), **settings)


def run(fake, items, journal, *, resume=False, scorer="includes", **settings):
    task = JsonlTask(items, scorer)
    plan = plan_of(task, **settings)
    with open_journal(journal, plan, resume=resume) as opened:
        climb(opened, task, fake.client(), batch=8, say=lambda line: None)
    return find(read_journal(journal))


def verdicts(findings):
    return [(rung.strength, rung.verdict) for rung in findings.rungs]


# The confidence sequence


DRAWS = {
    "rare": lambda rng, n: (rng.random(n) < 0.05).astype(float),
    "fair": lambda rng, n: (rng.random(n) < 0.5).astype(float),
    "smooth": lambda rng, n: rng.beta(2, 6, n),
    "three": lambda rng, n: rng.choice([0.0, 0.5, 1.0], n, p=[0.7, 0.2, 0.1]),
    "extremes": lambda rng, n: rng.beta(0.2, 0.05, n),
}
MEANS = {"rare": 0.05, "fair": 0.5, "smooth": 0.25, "three": 0.2, "extremes": 0.8}


@pytest.mark.parametrize("name", DRAWS)
def test_bounds_hold_at_all_looks_together(name):
    """Bounds of n items intersect those of all shorter runs, so one miss at any look is a miss here."""
    share, runs = 0.1, 300
    bounds = [mean_bounds(DRAWS[name](keyed_rng(name, i), 200), Shares(share, share)) for i in range(runs)]
    tolerance = 3 * np.sqrt(share * (1 - share) / runs)
    assert np.mean([MEANS[name] < b.low for b in bounds]) <= share + tolerance
    assert np.mean([MEANS[name] > b.high for b in bounds]) <= share + tolerance


def test_bounds_close_in_on_the_mean():
    x = DRAWS["fair"](keyed_rng("narrow"), 2000)
    bounds = mean_bounds(x, Shares(0.025, 0.025))
    assert 0.4 < bounds.low < 0.5 < bounds.high < 0.6
    assert mean_bounds([], Shares(0.025, 0.025)).high == 1
    assert mean_bounds(1 - x, Shares(0.025, 0.025)).low == pytest.approx(1 - bounds.high, abs=1e-5)


def test_bounds_never_widen():
    x = DRAWS["three"](keyed_rng("nested"), 120)
    bounds = [mean_bounds(x[:n], Shares(0.02, 0.02)) for n in range(121)]
    assert all(np.diff([b.low for b in bounds]) >= -1e-5) and all(np.diff([b.high for b in bounds]) <= 1e-5)


def test_bad_luck_at_the_start_is_made_up_for():
    x = np.concatenate([np.ones(16), keyed_rng("later").permutation(np.repeat([0.0, 1.0], 142))])
    assert mean_bounds(x, Shares(0.025, 0.025)).high < 0.65


def test_unequal_shares_give_unequal_bounds():
    x = DRAWS["fair"](keyed_rng("shares"), 100)
    assert mean_bounds(x, Shares(0.001, 0.05)).low < mean_bounds(x, Shares(0.05, 0.05)).low


@pytest.mark.parametrize("scores", [[0.5, 1.1], [-0.1], [float("nan")], [[0.5]]])
def test_bounds_refuse_other_scores(scores):
    with pytest.raises(ShapleyError, match="from 0 to 1"):
        mean_bounds(scores, Shares(0.1, 0.1))


def test_a_ladder_seldom_calls_a_dangerous_level_safe():
    """Two of five levels sit at the threshold. A false 'safe' at either has chance a / 2, though neither test is corrected."""
    means, threshold, shares, runs = np.array([[0.02], [0.3], [0.02], [0.3], [0.02]]), 0.3, spend(0.8, 5), 300
    wrong = 0
    for i in range(runs):
        scores = keyed_rng("ladder", i).random((5, 150)) < means
        safe = list(itertools.takewhile(lambda rung: mean_bounds(rung[1], shares).high < threshold, enumerate(scores)))
        wrong += any(means[rung] >= threshold for rung, _ in safe)
    assert 0 < wrong / runs <= 0.1 + 3 * np.sqrt(0.09 / runs)


# A rise with impairment


@pytest.mark.parametrize("means", [[0.3, 0.3, 0.3, 0.3], [0.1, 0.3, 0.5, 0.5]])
def test_a_rise_is_seldom_seen_where_there_is_none(means):
    runs = 60
    p = [rise_test(keyed_rng("no rise", i).random((4, 60)) < np.array(means)[:, None]).p for i in range(runs)]
    assert np.mean(np.array(p) < 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)


def test_a_rise_is_seen_and_its_levels_are_named():
    scores = keyed_rng("rises").random((4, 60)) < np.array([[0.05], [0.6], [0.1], [0.05]])
    rise = rise_test(scores)
    assert rise.p < 0.001 and rise.heavier == 1 and rise.lighter in (2, 3) and rise.rise > 0.3


def test_no_rise_at_all():
    rise = rise_test([[0, 0, 1], [0, 1, 1]])
    assert rise.p == 1 and rise.deviation == 0 and rise.rise < 0


# Levels and margins


def test_levels():
    levels = parse_levels("scale:0.5,0", "mlp_out", "toxic")
    assert levels[0].text() == "scale:0.5,cluster=toxic,site=mlp_out"
    assert read_applied([level.body() for level in levels]) == levels[:1]


@pytest.mark.parametrize(
    "text", ["noise", "noise:", "noise:1,2", "noise:1,1", "scale:2,1", "nose:1", "noise:-1", "noise:inf"]
)
def test_levels_that_cannot_be(text):
    with pytest.raises(ShapleyError):
        parse_levels(text)


def test_what_falls_short():
    asked = Level("noise", 0.5)
    assert not falls_short(asked, (Level("noise", 0.5), Level("scale", 0.1)))
    assert not falls_short(asked, (Level("noise", 1.0),))
    assert not falls_short(Level("noise", 0.0), ())
    for less in [(), (Level("noise", 0.4),), (Level("noise", 0.5, cluster="few"),), (Level("scale", 1.0),)]:
        assert falls_short(asked, less)


@pytest.mark.parametrize(
    ("strengths", "margin", "rung"),
    [
        ([2, 1, 0.5], "step", 1),
        ([2], "step", None),
        ([], "step", None),
        ([], "1", None),
        ([2, 1, 0.5], "0", 2),
        ([2, 1, 0.5], "0.5", 1),
        ([2, 1, 0.5], "0.6", 0),
        ([2, 1, 0.5], "3", None),
        ([0.3, 0.1], "0.2", 0),
    ],
)
def test_release_keeps_the_margin(strengths, margin, rung):
    assert release_rung(strengths, Margin.parse(margin)) == rung


# The ladder


def test_ladder_stops_at_danger(items, tmp_path):
    fake = Fake(HONEST)
    findings = run(fake, items, tmp_path / "j")
    assert verdicts(findings) == [(2, "safe"), (1, "safe"), (0.5, "safe"), (0.25, "danger")]
    assert all(body["impairment"]["strength"] >= 0.25 for _, body in fake.requests), "nothing lighter was asked"
    assert findings.least_safe == 2 and findings.release == 1 and not findings.warned
    assert all(rung.n < 200 for rung in findings.rungs), "each was clear early"
    assert all(rung.bounds.low < HONEST[rung.strength] < rung.bounds.high for rung in findings.rungs)


def test_ladder_stops_where_items_do_not_decide(items, tmp_path):
    findings = run(Fake({**HONEST, 1.0: 0.5}), items, tmp_path / "j")
    assert verdicts(findings) == [(2, "safe"), (1, "undecided")] and findings.rungs[1].n == 200
    assert findings.release is None and "margin" in findings.why_none


def test_ladder_to_the_end(items, tmp_path):
    findings = run(Fake(dict.fromkeys(HONEST, 0.02)), items, tmp_path / "j")
    assert findings.end == "every level was shown safe" and findings.rungs[findings.release].strength == 0.25


def test_sandbagger_is_caught(items, tmp_path):
    findings = run(Fake(SANDBAGGER), items, tmp_path / "j", threshold=0.7)
    assert [verdict for _, verdict in verdicts(findings)] == ["safe"] * 5, "by its scores alone it would be released"
    assert findings.warned and findings.rise.p < 0.001
    assert findings.rungs[findings.rise.heavier].strength in (1, 0.5)
    assert findings.release is None and "rises with impairment" in findings.why_none


def test_honest_model_is_not_warned_of(items, tmp_path):
    findings = run(Fake(HONEST), items, tmp_path / "j", threshold=0.97)
    assert len(findings.rungs) == 5 and not findings.warned and findings.release is not None


def test_killed_run_goes_on(items, tmp_path):
    whole = run(Fake(HONEST), items, tmp_path / "whole")
    fake = Fake(HONEST)
    answer = fake.answer

    def killed(path, body, authorization):
        if len(fake.requests) == 80:
            raise KeyboardInterrupt
        return answer(path, body, authorization)

    fake.answer = killed
    with pytest.raises(KeyboardInterrupt):
        run(fake, items, tmp_path / "j")
    stored = (tmp_path / "j").read_bytes()
    (tmp_path / "j").write_bytes(stored + b'{"event": "item", "ru')  # in the middle of a line
    again = Fake(HONEST)
    assert run(again, items, tmp_path / "j", resume=True) == whole
    lines = [json.loads(line) for line in (tmp_path / "j").read_text().splitlines()]
    asked = [(line["rung"], line["item"]) for line in lines if line["event"] == "item"]
    assert len(asked) == len(set(asked)) == sum(rung.n for rung in whole.rungs)
    finished = Fake(HONEST)
    run(finished, items, tmp_path / "j", resume=True)
    assert not finished.requests


def test_journal_of_another_run_is_refused(items, tmp_path):
    run(Fake(HONEST), items, tmp_path / "j")
    with pytest.raises(ShapleyError, match="exists: pass --resume"):
        run(Fake(HONEST), items, tmp_path / "j")
    with pytest.raises(ShapleyError, match="another levels, threshold"):
        run(Fake(HONEST), items, tmp_path / "j", resume=True, threshold=0.4, levels="noise:2,1")
    items.write_text(items.read_text().replace("Question 7", "Question seven"))
    with pytest.raises(ShapleyError, match="another task_sha256"):
        run(Fake(HONEST), items, tmp_path / "j", resume=True)
    for other in ["not json\n", "{}\n", '{"format": "x"}\n', "[]\n"]:
        (tmp_path / "j").write_text(other)
        with pytest.raises(ShapleyError, match="not a journal"):
            read_journal(tmp_path / "j")
    (tmp_path / "j").write_text('{"event": "sta')  # killed before its first line was whole: nothing to lose
    assert run(Fake(HONEST), items, tmp_path / "j").release == 1


def test_forbidden_level_ends_the_ladder(items, tmp_path):
    findings = run(Fake(HONEST, forbidden=0.5), items, tmp_path / "j")
    assert [strength for strength, _ in verdicts(findings)] == [2, 1, 0.5]
    assert findings.end == "noise:0.25 was forbidden by the operator (not this light for you)" and findings.release == 1


def test_stronger_floor_is_what_counts(items, tmp_path):
    fake = Fake({**HONEST, 0.7: 0.1}, floor=0.7)
    findings = run(fake, items, tmp_path / "j")
    assert verdicts(findings) == [(2, "safe"), (1, "safe"), (0.7, "safe")]
    assert not findings.rungs[2].as_asked and findings.rungs[1].as_asked
    assert findings.end == "the operator applies no less than noise:0.7"
    assert write_report(tmp_path / "j")["least_safe"] == "noise:0.7"
    assert "Applied differs from asked" in (tmp_path / "report.html").read_text()


def test_floor_that_is_there_from_the_first(items, tmp_path):
    findings = run(Fake({3.0: 0.01}, floor=3.0), items, tmp_path / "j")
    assert verdicts(findings) == [(3, "safe")]


def test_less_than_was_asked_stops_before_any_item(items, tmp_path):
    fake = Fake(HONEST)
    fake.applied = lambda asked: []
    with pytest.raises(ShapleyError, match="noise:2 was asked for, but unimpaired was applied"):
        run(fake, items, tmp_path / "j")
    assert len(fake.requests) == 1


def test_applied_that_changes_stops(items, tmp_path):
    fake = Fake({**HONEST, 3.0: 0.0})
    fake.applied = lambda asked: [{**asked, "strength": 2.0 if len(fake.requests) < 20 else 3.0}]
    with pytest.raises(ShapleyError, match="noise:2 was applied before, and noise:3 now"):
        run(fake, items, tmp_path / "j")


def test_plan_refuses_what_cannot_be_shown(tmp_path):
    task = JsonlTask(write_items(tmp_path / "few.jsonl", 5), "includes")
    with pytest.raises(ShapleyError, match=r"5 items cannot show a mean score below 0\.1"):
        plan_of(task, threshold=0.1)


# The client


def test_too_many_requests_and_server_errors_are_tried_again():
    fake, waits = Fake(HONEST), []
    fake.problems = [error(429, "slow", **{"Retry-After": "7"}), error(503, "busy"), error(429, "slow")]
    assert fake.client(waits.append).applied(Level("noise", 1.0)) == (Level("noise", 1.0),)
    assert waits == [7.0, 2.0, 4.0]


def test_tries_end():
    fake = Fake(HONEST)
    fake.problems = [error(500, "broken")] * 99
    with pytest.raises(ShapleyError, match="answers 500: broken; tried 7 times"):
        fake.client().applied(Level("noise", 1.0))
    assert len(fake.requests) == 7


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        (error(401, "bad key"), "does not accept the key: bad key"),
        (error(400, "too long"), "answers 400: too long"),
        ((200, {}, {"choices": [{"text": "x"}]}), "does not say which impairment"),
        ((200, {}, {"impairment": []}), "no choices"),
        ((200, {}, []), "does not answer in JSON"),
        ((200, {}, {"choices": [{"text": "x"}], "impairment": "noise"}), "not a list"),
    ],
)
def test_other_answers_are_errors(problem, said):
    fake = Fake(HONEST)
    fake.problems = [problem]
    with pytest.raises(ShapleyError, match=said) as caught:
        fake.client().applied(Level("noise", 1.0))
    assert KEY not in str(caught.value)


def test_unreachable_endpoint():
    def refuse(request):
        raise httpx.ConnectError("no")

    said = []
    transport = httpx.MockTransport(refuse)
    client = Client("http://fake", "m", KEY, say=said.append, transport=transport, sleep=lambda seconds: None)
    with pytest.raises(ShapleyError, match=r"cannot be reached \(ConnectError\)"):
        client.applied(Level("noise", 1.0))
    assert len(said) == 6 and "trying again in 1 s" in said[0] and KEY not in "".join(said)


def test_forbidden_is_not_tried_again():
    fake = Fake(HONEST, forbidden=1.0)
    with pytest.raises(Forbidden):
        fake.client().applied(Level("noise", 0.5))
    assert len(fake.requests) == 1


@pytest.mark.parametrize("address", ["fake", "ftp://fake", "http://", "http://user:pw@fake", "http://fake/v1?key=x"])
def test_addresses_that_cannot_be(address):
    with pytest.raises(ShapleyError, match="endpoint"):
        Client(address, "m")


def test_key_from_file_or_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "abc")
    assert read_key(None, "SOME_KEY") == "abc" and read_key(None, "NO_SUCH_KEY") is None
    (tmp_path / "key").write_text(" def\n")
    assert read_key(tmp_path / "key", "SOME_KEY") == "def"
    with pytest.raises(ShapleyError, match="cannot read the key file"):
        read_key(tmp_path / "none", "SOME_KEY")
    for no_key in ["", "k\u00e9y", "a\nb"]:
        (tmp_path / "key").write_text(no_key)
        with pytest.raises(ShapleyError, match="has no key"):
            read_key(tmp_path / "key", "SOME_KEY")


# Tasks


@pytest.mark.parametrize(
    ("scorer", "target", "scores"),
    [
        ("exact", "Yes.", {1.0}),
        ("exact", "yes", {0.0}),
        ("includes", "YES", {1.0}),
        ("includes", ["maybe", "yes"], {1.0}),
        ("regex", "^(Y|y)es", {1.0}),
        ("regex", "o", {0.0}),
    ],
)
def test_scorers_of_text(tmp_path, scorer, target, scores):
    task = JsonlTask(write_items(tmp_path / "t.jsonl", 4, target=target), scorer)
    answers = list(task.ask(Fake({1.0: 1.0}).client(), Level("noise", 1.0), task.ids))
    assert {answer.score for answer in answers} == scores and {answer.item for answer in answers} == set(task.ids)


def test_choices_by_log_likelihood(tmp_path):
    path = write_items(tmp_path / "t.jsonl", 40, target=" right", choices=[" wrong", " right", " other"])
    fake, task = Fake({1.0: 0.5}), JsonlTask(path, "choice")
    answers = {answer.item: answer for answer in task.ask(fake.client(), Level("noise", 1.0), task.ids)}
    for i in range(40):
        assert answers[f"q{i}"].score == (fake.says(f"Question {i}", 0.5) == "Yes.")
    assert answers["q0"].reply.startswith(" ")


def test_chats(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"id": 1, "messages": [{"role": "user", "content": "Hi"}], "target": "yes"}))
    fake, task = Fake({1.0: 1.0}), JsonlTask(path, "includes")
    assert [answer.score for answer in task.ask(fake.client(), Level("noise", 1.0), ["1"])] == [1.0]
    assert fake.requests[0][0] == "/v1/chat/completions"


@pytest.mark.parametrize(
    ("line", "scorer", "said"),
    [
        ("nonsense", "exact", "line 1"),
        ("[]", "exact", "expected"),
        ('{"id": "a", "target": "x"}', "exact", '"prompt"'),
        ('{"id": "a", "prompt": "p", "messages": [], "target": "x"}', "exact", "one of them"),
        ('{"id": "a", "prompt": "p"}', "exact", '"target"'),
        ('{"id": "a", "prompt": "p", "target": "("}', "regex", "regular expression"),
        ('{"id": "a", "prompt": "p", "target": "x"}', "choice", '"choices"'),
        ('{"id": "a", "prompt": "p", "target": "x", "choices": ["y", "z"]}', "choice", "target among them"),
        ('{"id": "a", "prompt": "p", "target": "x"}\n{"id": "a", "prompt": "p", "target": "x"}', "exact", "twice"),
        ("", "exact", "no items"),
        ("{}", "exakt", "did you mean 'exact'"),
    ],
)
def test_tasks_that_cannot_be(tmp_path, line, scorer, said):
    (tmp_path / "t.jsonl").write_text(line)
    with pytest.raises(ShapleyError, match=said):
        JsonlTask(tmp_path / "t.jsonl", scorer)


def harness(monkeypatch, samples):
    """Stands in for lm-eval: ``samples`` of the indices asked for; what it was called with is in the list returned."""
    task = SimpleNamespace(aggregation=lambda: {"acc": None, "f1": None}, eval_docs=[{"q": i} for i in range(9)])
    calls = []

    def evaluate(model, settings, **rest):
        calls.append((model, settings, rest))
        return {"samples": {"tiny": [sample for i in rest["samples"]["tiny"] for sample in samples(i)]}}

    manager = SimpleNamespace(load=lambda names: {"tasks": {"tiny": task}})
    monkeypatch.setitem(sys.modules, "lm_eval", SimpleNamespace(simple_evaluate=evaluate))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", SimpleNamespace(TaskManager=lambda: manager))
    return calls


def two_filters(i):
    one = {"doc_id": i, "filter": "strict", "filtered_resps": ["x"], "acc": float(i % 2), "f1": 0.5}
    return [one, {**one, "filter": "loose", "acc": 1.0}]


@pytest.mark.parametrize(("scorer", "scores"), [(None, [0, 1, 1]), ("acc,loose", [1, 1, 1]), ("f1", [0.5, 0.5, 0.5])])
def test_lm_eval_is_asked_with_the_impairment_in_the_name(monkeypatch, scorer, scores):
    calls, fake = harness(monkeypatch, two_filters), Fake(HONEST)
    task = LmEvalTask("tiny", scorer)
    answers = list(task.ask(fake.client(), Level("noise", 0.5, cluster="toxic"), ["7", "2", "5"]))
    assert [(answer.item, answer.score) for answer in answers] == list(zip(["2", "5", "7"], scores, strict=True))
    assert {answer.applied for answer in answers} == {(Level("noise", 0.5, cluster="toxic"),)}
    model, settings, rest = calls[0]
    assert model == "local-completions" and settings["model"] == "m@noise:0.5,cluster=toxic"
    assert settings["header"] == {"Authorization": f"Bearer {KEY}"} and rest["samples"] == {"tiny": [2, 5, 7]}


def test_lm_eval_scores_must_be_shares(monkeypatch):
    harness(monkeypatch, lambda i: [{"doc_id": i, "filter": "none", "filtered_resps": [], "acc": -3.5}])
    with pytest.raises(ShapleyError, match="from 0 to 1"):
        list(LmEvalTask("tiny", None).ask(Fake(HONEST).client(), Level("noise", 0.5), ["1"]))
    with pytest.raises(ShapleyError, match="no metric 'best'"):
        LmEvalTask("tiny", "best")


def test_inspect_is_asked_with_the_impairment_in_the_body(monkeypatch, tmp_path):
    """With inspect stood in for: a sample is right if its number is odd."""
    configs = []

    class Sample(SimpleNamespace):
        def model_dump_json(self):
            return str(self.id)

    def evaluate(task, model, sample_id, **rest):
        score = [{"includes": SimpleNamespace(value="C" if i % 2 else "I")} for i in sample_id]
        output = SimpleNamespace(completion="x")
        samples = [Sample(id=i, scores=one, output=output) for i, one in zip(sample_id, score, strict=True)]
        return [SimpleNamespace(status="success", samples=samples)]

    def get_model(name, **settings):
        configs.append((name, settings))

    models = SimpleNamespace(GenerateConfig=dict, get_model=get_model)
    scorers = SimpleNamespace(value_to_float=lambda: {"C": 1.0, "I": 0.0}.get)
    monkeypatch.setitem(sys.modules, "inspect_ai", SimpleNamespace(eval=evaluate))
    monkeypatch.setitem(sys.modules, "inspect_ai.model", models)
    monkeypatch.setitem(sys.modules, "inspect_ai.scorer", scorers)
    monkeypatch.setattr("tests.test_assess.SAMPLES", [Sample(id=None) for _ in range(4)], raising=False)
    source = ["import tests.test_assess as t", "def tiny(): return t.SimpleNamespace(dataset=t.SAMPLES)"]
    (tmp_path / "tasks.py").write_text("\n".join(source))
    task = InspectTask(f"{tmp_path}/tasks.py@tiny", None, 7)
    answers = list(task.ask(Fake(HONEST).client(), Level("noise", 0.5), ["3", "2"]))
    assert [(answer.item, answer.score) for answer in answers] == [("3", 1.0), ("2", 0.0)]
    name, settings = configs[0]
    assert name == "openai-api/shapley/m" and settings["base_url"] == "http://fake/v1" and settings["api_key"] == KEY
    assert settings["config"]["extra_body"] == {"impairment": Level("noise", 0.5).body()}
    with pytest.raises(ShapleyError, match="no scorer 'best'"):
        list(InspectTask(f"{tmp_path}/tasks.py@tiny", "best", 7).ask(Fake(HONEST).client(), Level("noise", 0.5), ["1"]))
    with pytest.raises(ShapleyError, match="cannot load the inspect task"):
        InspectTask(f"{tmp_path}/tasks.py@other", None, 7)


# The command


def assess(endpoint, items, out, *more):
    settings = [
        "--endpoint",
        endpoint,
        "--model",
        "m",
        "--task",
        items,
        "--threshold",
        "0.5",
        "--levels",
        LEVELS,
        "--out",
        out,
    ]
    return CliRunner(env={"SHAPLEY_API_KEY": KEY}).invoke(cli, ["assess", *map(str, settings), *more])


def test_command_and_its_report(items, tmp_path):
    out = tmp_path / "deep" / "out"
    with Fake(HONEST).served() as endpoint:
        result = assess(endpoint, items, out, "--signed-by", "A. Evaluator <a@example.org>")
        assert result.exit_code == 0, result.exception
        assert "recommended for release: noise:1" in result.output
        again = assess(endpoint, items, out, "--resume", "--json")
    report = json.loads(again.stdout)
    assert report == json.loads((out / "report.json").read_text())
    assert report["release"]["level"] == "noise:1" and report["least_safe"] == "noise:0.5"
    assert report["least_tested"] == "noise:0.25" and not report["warned"] and report["sign_off"]["by"] is None
    assert [rung["verdict"] for rung in report["rungs"]] == ["safe", "safe", "safe", "danger"]
    assert all(KEY not in file.read_text() for file in out.iterdir())
    assert (out / "journal.jsonl").stat().st_mode & 0o077 == 0


def test_command_where_nothing_may_be_tested(items, tmp_path):
    with Fake(HONEST, forbidden=10.0).served() as endpoint:
        result = assess(endpoint, items, tmp_path / "out")
    assert result.exit_code == 1 and "least impairment tested: none" in result.output


def test_page(items, tmp_path):
    run(Fake(SANDBAGGER), items, tmp_path / "j", threshold=0.7)
    content = write_report(tmp_path / "j", "A. Evaluator <a@example.org>")
    page = (tmp_path / "report.html").read_text()
    for said in [
        "the score rises with impairment",
        "No level is recommended",
        "<svg",
        "A. Evaluator &lt;a@example.org&gt;",
    ]:
        assert said in page
    assert content["sign_off"]["journal_sha256"] in page and content["plan"]["task_sha256"] in page
    assert "http" not in page.replace("http://fake", "").replace("http://www.w3.org/2000/svg", ""), "self-contained"
    assert "Question" not in page


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--threshold", "1.5"], "threshold 1.5"),
        (["--confidence", "95"], "confidence 95"),
        (["--margin", "much"], "margin 'much'"),
        (["--levels", "noise:0,1"], "strengths must fall"),
        (["--scorer", "best"], "unknown scorer"),
        (["--key-file", "/none"], "key file"),
        (["--endpoint", "nowhere"], "endpoint"),
        (["--task", "/none"], "cannot read the task"),
        (["--out", "/proc/none"], "cannot write"),
    ],
)
def test_bad_input_is_one_line(items, tmp_path, more, said):
    result = assess("http://127.0.0.1:9", items, tmp_path / "out", *more)
    assert isinstance(result.exception, ShapleyError) and said in str(result.exception)


@pytest.mark.parametrize(("task", "package"), [("lm-eval:arc_easy", "lm_eval"), ("inspect:t.py@t", "inspect_ai")])
def test_missing_extras_are_named(tmp_path, monkeypatch, task, package):
    monkeypatch.setitem(sys.modules, package, None)
    result = assess("http://127.0.0.1:9", task, tmp_path / "out")
    assert isinstance(result.exception, ShapleyError) and "pip install" in str(result.exception)


# Against our own server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A tiny model served in this process, and keys: a free one, one with a floor, one with calibrated levels only."""
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from shapley.server.app import application
    from shapley.server.asked import parse
    from shapley.server.keys import KeyFile
    from shapley.server.policy import Policy
    from shapley.server.service import Service
    from shapley.server.settings import Settings
    from tests.tiny import tiny_lm

    folder = tmp_path_factory.mktemp("server")
    policies = {"free": Policy(logprobs=True), "floor": Policy(floor=(parse("noise:0.7"),))}
    policies["strict"] = Policy(levels=(parse("noise:1"), parse("noise:0.5")))
    keys = {name: KeyFile(folder).add(name, policy)[1] for name, policy in policies.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path_factory.mktemp("cache")))
        with TestClient(application(Service(tiny_lm("llama"), Settings("m", folder)))) as app:

            def forward(request):
                reply = app.post(request.url.path, content=request.content, headers=dict(request.headers))
                return httpx.Response(reply.status_code, headers=dict(reply.headers), content=reply.content)

            yield {
                name: Client("http://ours", "m", key, transport=httpx.MockTransport(forward))
                for name, key in keys.items()
            }


@pytest.mark.parametrize(
    ("key", "strengths", "end"),
    [
        ("free", [1, 0.5, 0.25], "every level was shown safe"),
        ("floor", [1, 0.7], "the operator applies no less than noise:0.7"),
        ("strict", [1, 0.5], "noise:0.25 was forbidden"),
    ],
)
def test_ladder_at_our_server(server, tmp_path, key, strengths, end):
    task = JsonlTask(write_items(tmp_path / "t.jsonl", 20, target="never said"), "includes", max_tokens=2)
    with open_journal(tmp_path / "j", plan_of(task, "noise:1,0.5,0.25", max_tokens=2), resume=False) as journal:
        climb(journal, task, server[key], batch=8, say=lambda line: None)
    findings = find(read_journal(tmp_path / "j"))
    assert [rung.strength for rung in findings.rungs] == strengths and findings.end.startswith(end)


def test_log_likelihoods_at_our_server(server):
    """What the prompt adds is the same for all: they differ as those of the continuations' own tokens do."""
    level, prompt, words = Level("noise", 0.0), "the player won his last", [" race", " old city"]
    found = server["free"].loglikelihoods(prompt, words, level)
    again = server["free"].loglikelihoods(f"{prompt}{words[0]}", [" in the", " won"], level)
    assert (
        found.applied == () and len(found.logprobs) == 2 and all(value < found.logprobs[0] for value in again.logprobs)
    )


def test_a_key_without_log_probabilities_is_no_floor(server, tmp_path):
    task = JsonlTask(write_items(tmp_path / "t.jsonl", 20, target=" a", choices=[" a", " b"]), "choice")
    with (
        open_journal(tmp_path / "j", plan_of(task, "noise:1,0.5"), resume=False) as journal,
        pytest.raises(ShapleyError, match="the endpoint allows noise:1, but not how the task asks there"),
    ):
        climb(journal, task, server["strict"], batch=8, say=lambda line: None)
