"""The routes: OpenAI's forms, what is refused and how, streams, keys, floors."""

from __future__ import annotations

import json
import threading
import time

import pytest
import torch
from starlette.testclient import TestClient

from shapley.clusters import Cluster
from shapley.errors import ShapleyError
from shapley.hf.hooks import Rows, impair
from shapley.hf.load import describe
from shapley.server.app import application
from shapley.server.asked import Asked, parse
from shapley.server.audit import check
from shapley.server.keys import KeyFile
from shapley.server.policy import Policy, noise_seed
from shapley.server.service import Service
from shapley.server.settings import Settings
from tests.tiny import tiny_lm

TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}{% if add_generation_prompt %}the {% endif %}"
CLUSTER = Cluster(((0, 1), (1, 4), (2, 7)))
PROMPT = "the player won his last race in the old city"


@pytest.fixture(scope="module")
def lm():
    lm = tiny_lm("llama")
    lm.tokenizer.chat_template = TEMPLATE
    yield lm
    lm.tokenizer.chat_template = None


@pytest.fixture(scope="module")
def folder(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    Cluster(CLUSTER.neurons, model=describe(lm)).save(folder / "some.json")
    return folder


@pytest.fixture(scope="module")
def keys(folder):
    made = KeyFile(folder)
    policies = {
        "free": Policy(logprobs=True, requests_per_minute=10**6, tokens_per_minute=10**9),
        "floor": Policy(floor=(parse("noise:0.5"),), logprobs=True, requests_per_minute=10**6, tokens_per_minute=10**9),
        "strict": Policy(levels=(parse("scale:0.5"),), requests_per_minute=10**6),
        "poor": Policy(requests_per_minute=1, tokens_per_minute=100),
    }
    return {name: made.add(name, policy)[1] for name, policy in policies.items()}


@pytest.fixture(scope="module")
def client(lm, folder, keys, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path_factory.mktemp("cache")))
        settings = Settings(
            "tiny",
            folder,
            max_body=20_000,
            max_prompt=40,
            max_new=20,
            timeout=20,
            clusters={"some": folder / "some.json"},
        )
        service = Service(lm, settings)
        with TestClient(application(service), raise_server_exceptions=False) as client:
            client.service = service
            yield client


@pytest.fixture
def post(client, keys):
    def post(route, key="free", headers=None, **body):
        own = {"Authorization": f"Bearer {keys[key]}"} | (headers or {})
        return client.post(route, json={"model": "tiny"} | body, headers=own)

    return post


def text_of(lm, ids):
    return lm.tokenizer.decode(ids, skip_special_tokens=True)


def complete(post, **body):
    answer = post("/v1/completions", **{"prompt": PROMPT, "temperature": 0, "max_tokens": 5} | body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def expected(lm, ids, asked=None, seed=0, cluster=None, max_new=5):
    """Greedy tokens, and the log-probabilities of all but the first."""
    model = lm.model
    contexts = [] if asked is None else [impair(lm, asked.impairment(seed), cluster, rows=Rows(prompt_keys=[""]))]
    for context in contexts:
        context.__enter__()
    with torch.no_grad():
        out = model.generate(
            torch.tensor([ids]), max_new_tokens=max_new, do_sample=False, pad_token_id=0, eos_token_id=2
        )
        logprobs = torch.log_softmax(model(input_ids=out).logits[0], dim=-1)
    for context in contexts:
        context.__exit__(None, None, None)
    return out[0].tolist(), [float(x) for x in logprobs[:-1].gather(1, out[0][1:, None])[:, 0]]


def test_a_completion_is_generate(lm, post):
    ids = lm.tokenizer(PROMPT)["input_ids"]
    out, logprobs = expected(lm, ids)
    answer = complete(post, logprobs=2, echo=True)
    [choice] = answer["choices"]
    assert choice["text"] == lm.tokenizer.decode(ids) + text_of(lm, out[len(ids) :])
    found = choice["logprobs"]
    assert found["tokens"] == [lm.tokenizer.decode([token]) for token in out]
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    assert found["token_logprobs"][1:] == pytest.approx(logprobs, abs=1e-4)
    assert found["text_offset"][:3] == [0, 3, 9]
    for token, logprob, top in list(
        zip(*(found[x] for x in ("tokens", "token_logprobs", "top_logprobs")), strict=True)
    )[1:]:
        assert top[token] <= max(top.values()) and (top[token] == logprob or top[token] > logprob)
    assert answer["usage"] == {"prompt_tokens": len(ids), "completion_tokens": 5, "total_tokens": len(ids) + 5}
    assert answer["impairment"] == [] and answer["object"] == "text_completion" and answer["model"] == "tiny"


def test_token_ids_and_batches_are_answered_in_order(lm, post):
    ids = lm.tokenizer(PROMPT)["input_ids"]
    alone = [complete(post, prompt=prompt)["choices"][0]["text"] for prompt in (ids, [7, 8, 9])]
    both = complete(post, prompt=[ids, [7, 8, 9]], n=2)["choices"]
    assert [choice["text"] for choice in both] == [alone[0], alone[0], alone[1], alone[1]]
    assert [choice["index"] for choice in both] == [0, 1, 2, 3]
    assert complete(post, prompt=PROMPT)["choices"][0]["text"] == alone[0]
    assert complete(post, prompt=[PROMPT])["choices"][0]["text"] == alone[0]


def test_scoring_generates_nothing(lm, post):
    ids = lm.tokenizer(PROMPT)["input_ids"]
    answer = complete(post, max_tokens=0, echo=True, logprobs=0)
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == len(ids) and answer["usage"]["completion_tokens"] == 0
    assert answer["choices"][0]["text"] == lm.tokenizer.decode(ids)
    nothing = complete(post, max_tokens=0)
    assert nothing["choices"][0]["text"] == "" and nothing["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("carrier", ["body", "model", "header", "query"])
def test_an_impairment_is_applied_however_it_comes(lm, client, post, carrier):
    asked = parse("scale:0.7,cluster=some")
    ids = lm.tokenizer(PROMPT)["input_ids"]
    options = {
        "body": {"impairment": {"kind": "scale", "strength": 0.7, "cluster": "some"}},
        "model": {"model": "tiny@scale:0.7,cluster=some"},
        "header": {"headers": {"X-Impairment": "scale:0.7,cluster=some"}},
        "query": {},
    }[carrier]
    route = "/v1/completions" + ("?impairment=scale:0.7,cluster=some" if carrier == "query" else "")
    answer = post(route, prompt=PROMPT, temperature=0, max_tokens=5, logprobs=1, echo=True, **options)
    out, logprobs = expected(lm, ids, asked, cluster=CLUSTER)
    found = answer.json()
    assert found["choices"][0]["logprobs"]["token_logprobs"][1:] == pytest.approx(logprobs, abs=1e-4)
    assert found["impairment"] == [{"kind": "scale", "strength": 0.7, "site": "mlp_hidden", "cluster": "some"}]
    assert answer.headers["X-Impairment-Applied"] == asked.text()
    assert len(found["choices"][0]["logprobs"]["tokens"]) == len(out)


def test_the_floor_applies_with_the_secrets_noise(lm, client, post):
    ids = lm.tokenizer(PROMPT)["input_ids"]
    seed = noise_seed(client.service.secret, "floor", "floor 0")
    _, logprobs = expected(lm, ids, parse("noise:0.5"), seed)
    for options in (
        {},
        {"seed": 9},
        {"impairment": {"kind": "noise", "strength": 0.1}},
        {"model": "tiny@noise:0"},
        {"user": "x"},
    ):
        answer = complete(post, key="floor", logprobs=0, echo=True, **options)
        assert answer["choices"][0]["logprobs"]["token_logprobs"][1:] == pytest.approx(logprobs, abs=1e-4)
        assert answer["impairment"] == [{"kind": "noise", "strength": 0.5, "site": "mlp_hidden", "cluster": None}]
    more = complete(post, key="floor", impairment={"kind": "scale", "strength": 0.2})
    assert [one["kind"] for one in more["impairment"]] == ["scale", "noise"]


def test_averaging_a_thousand_repeats_gains_nothing(post):
    alone = complete(post, key="floor", logprobs=5)["choices"][0]["logprobs"]["token_logprobs"]
    for i in range(20):
        batch = complete(post, key="floor", prompt=[PROMPT] * 50, logprobs=5, seed=i, user=str(i))["choices"]
        for choice in batch:
            assert choice["logprobs"]["token_logprobs"] == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize(
    ("key", "body", "status", "code"),
    [
        ("strict", {"impairment": {"kind": "scale", "strength": 0.4}}, 403, "impairment_not_allowed"),
        ("strict", {"model": "tiny@noise:1"}, 403, "impairment_not_allowed"),
        ("strict", {}, 403, "impairment_not_allowed"),
        ("strict", {"model": "tiny@scale:0.5", "logprobs": 1}, 403, "logprobs_not_allowed"),
        ("free", {"impairment": {"kind": "scale", "strength": 0.4, "cluster": "other"}}, 404, "cluster_not_found"),
        ("free", {"prompt": "\ud800"}, 400, "invalid_text"),
        ("free", {"prompt": [1.0, 2.0]}, 400, "invalid_value"),
        ("free", {"prompt": []}, 400, "invalid_value"),
        ("free", {"prompt": [[]]}, 400, "invalid_value"),
        ("free", {"prompt": ["the"] * 257}, 400, "invalid_value"),
        ("free", {"model": "gpt-4"}, 404, "model_not_found"),
        ("free", {"model": "tiny@noise"}, 400, "invalid_impairment"),
        ("free", {"model": "tiny@noise:1", "impairment": {"kind": "noise", "strength": 2}}, 400, "invalid_impairment"),
        ("free", {"impairment": {"kind": "noise", "strength": -1}}, 400, "invalid_value"),
        ("free", {"impairment": {"kind": "noise", "strength": "NaN"}}, 400, "invalid_value"),
        ("free", {"impairement": {"kind": "noise", "strength": 1}}, 400, "invalid_value"),
        ("free", {"logit_bias": {"5": 100}}, 400, "invalid_value"),
        ("free", {"prompt": ""}, 400, "empty_prompt"),
        ("free", {"prompt": [60]}, 400, "invalid_token"),
        ("free", {"prompt": [-1]}, 400, "invalid_value"),
        ("free", {"prompt": "the " * 41}, 400, "context_length_exceeded"),
        ("free", {"max_tokens": 21}, 400, "invalid_value"),
        ("free", {"temperature": 3}, 400, "invalid_value"),
        ("free", {"n": 0}, 400, "invalid_value"),
        ("free", {"stop": ["a"] * 5}, 400, "invalid_value"),
        ("poor", {"prompt": ["the race"] * 9, "max_tokens": 20}, 429, "request_too_large"),
    ],
)  # fmt: skip
def test_what_is_refused(client, keys, key, body, status, code):
    headers = {"Authorization": f"Bearer {keys[key]}", "Content-Type": "application/json"}
    content = json.dumps({"model": "tiny", "prompt": "the race"} | body)
    answer = client.post("/v1/completions", content=content, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert set(error) == {"message", "type", "param", "code"} and error["message"]
    if "prompt" in body and code == "invalid_value":
        assert error["param"].startswith("prompt")


def test_carriers_that_differ_and_queries_that_are_not_known(client, keys):
    body, headers = {"model": "tiny", "prompt": "the race"}, {"Authorization": f"Bearer {keys['free']}"}
    twice = [*headers.items(), ("X-Impairment", "noise:0.6"), ("X-Impairment", "noise:0.9")]
    for answer in (
        client.post("/v1/completions", json=body, headers=twice),
        client.post("/v1/completions?impairment=noise:0.6&impairment=noise:0.9", json=body, headers=headers),
    ):
        assert answer.status_code == 400 and "name different impairments" in answer.json()["error"]["message"]
    unknown = client.post("/v1/completions?impairmnt=noise:0.6", json=body, headers=headers)
    assert unknown.status_code == 400 and unknown.json()["error"]["param"] == "query"
    same = client.post("/v1/completions?impairment=noise:0.6", json=body | {"model": "tiny@noise:0.6"}, headers=headers)
    assert same.status_code == 200
    assert client.get("/v1/models/tiny@noise:1", headers=headers).status_code == 200
    assert client.get("/v1/models/tiny@garbage", headers=headers).status_code == 400


def test_a_key_that_cannot_be_served_hurts_nobody_else(client, folder, post):
    key, text = KeyFile(folder).add("late", Policy(floor=(parse("noise:1,cluster=ghost"),)))
    try:
        own = {"Authorization": f"Bearer {text}"}
        answer = client.post("/v1/completions", json={"model": "tiny", "prompt": "the race"}, headers=own)
        assert answer.status_code == 503 and answer.json()["error"]["code"] == "floor_not_served"
        assert complete(post)["usage"]["completion_tokens"] == 5
    finally:
        KeyFile(folder).revoke(key.id)


def test_a_log_that_cannot_be_written_stops_the_service(client, post, monkeypatch):
    import os

    write = os.write
    monkeypatch.setattr(
        os,
        "write",
        lambda file, line: write(file, line[:5]) if file == client.service.audit._file else write(file, line),
    )
    answer = post("/v1/completions", prompt=PROMPT)
    assert answer.status_code == 503 and answer.json()["error"]["code"] == "unavailable"
    assert client.get("/health").status_code == 503
    monkeypatch.undo()
    complete(post)
    assert client.get("/health").json()["status"] == "ok"


def test_limits_say_when_to_come_back(post):
    first = post("/v1/completions", key="poor", prompt="the race", max_tokens=1)
    second = post("/v1/completions", key="poor", prompt="the race", max_tokens=1)
    assert first.status_code == 200 and second.status_code == 429
    assert post("/tokenize", key="poor", prompt=PROMPT).status_code == 429
    assert second.json()["error"]["code"] == "rate_limit_exceeded" and 1 <= int(second.headers["Retry-After"]) <= 60


def test_keys_are_needed_and_revoked_at_once(client, folder, keys):
    for headers in ({}, {"Authorization": "Bearer sk-wrong"}, {"Authorization": keys["free"]}):
        for method, route in (
            ("POST", "/v1/completions"),
            ("GET", "/v1/models"),
            ("POST", "/tokenize"),
            ("GET", "/tokenizer_info"),
        ):
            body = {"json": {"model": "tiny", "prompt": "the"}} if method == "POST" else {}
            answer = client.request(method, route, headers=headers, **body)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    made, text = KeyFile(folder).add("late", Policy())
    headers = {"Authorization": f"Bearer {text}"}
    assert client.get("/v1/models", headers=headers).status_code == 200
    KeyFile(folder).revoke(made.id)
    assert client.get("/v1/models", headers=headers).status_code == 401


def events(answer):
    lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_stream_is_the_whole_answer(post):
    whole = complete(post, logprobs=1)
    body = {"prompt": PROMPT, "temperature": 0, "max_tokens": 5, "logprobs": 1}
    answer = post("/v1/completions", **body, stream=True, stream_options={"include_usage": True})
    parts = events(answer)
    choices = [part["choices"][0] for part in parts[:-1]]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    for name in ("tokens", "text_offset", "token_logprobs"):
        found, wanted = (
            [x for choice in choices for x in choice["logprobs"][name]],
            whole["choices"][0]["logprobs"][name],
        )
        assert found == (pytest.approx(wanted, abs=1e-4) if name == "token_logprobs" else wanted)
    assert choices[-1]["finish_reason"] == "length" and parts[-1]["usage"] == whole["usage"]
    assert answer.headers["content-type"].startswith("text/event-stream")


def test_chat(lm, post):
    messages = [
        {"role": "user", "content": "the player won"},
        {"role": "assistant", "content": [{"type": "text", "text": "his"}]},
    ]
    body = {"messages": messages, "temperature": 0, "max_tokens": 5, "logprobs": True, "top_logprobs": 2}
    whole = post("/v1/chat/completions", **body, model="tiny@scale:0.5").json()
    ids = lm.tokenizer("the player won his the")["input_ids"]
    out, logprobs = expected(lm, ids, parse("scale:0.5"))
    [choice] = whole["choices"]
    assert choice["message"] == {"role": "assistant", "content": text_of(lm, out[len(ids) :]), "refusal": None}
    assert [one["logprob"] for one in choice["logprobs"]["content"]] == pytest.approx(
        logprobs[len(ids) - 1 :], abs=1e-4
    )
    assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 2
    parts = events(post("/v1/chat/completions", **body, model="tiny@scale:0.5", stream=True))
    assert parts[0]["choices"][0]["delta"]["role"] == "assistant"
    text = "".join(part["choices"][0]["delta"].get("content", "") for part in parts)
    assert text == choice["message"]["content"] and parts[-1]["choices"][0]["finish_reason"] == "length"
    assert parts[-1]["impairment"] == whole["impairment"]


def test_sampling_is_seeded_and_choices_differ(post):
    body = {"temperature": 1, "n": 4, "seed": 5, "max_tokens": 8}
    one, again, other = (complete(post, **body | {"seed": seed})["choices"] for seed in (5, 5, 6))
    assert one == again and one != other and len({choice["text"] for choice in one}) > 1


def test_clients_that_tokenise(lm, client, keys):
    headers = {"Authorization": f"Bearer {keys['free']}"}
    ids = client.post("/tokenize", json={"prompt": PROMPT}, headers=headers).json()["tokens"]
    assert ids == lm.tokenizer(PROMPT)["input_ids"]
    assert client.post("/detokenize", json={"tokens": ids}, headers=headers).json()["prompt"] == PROMPT
    assert client.get("/tokenizer_info", headers=headers).json()["eos_token"] == "</s>"
    assert client.post("/detokenize", json={"tokens": [99]}, headers=headers).status_code == 400
    half = client.post(
        "/tokenize", content='{"prompt": "\\ud800"}', headers=headers | {"Content-Type": "application/json"}
    )
    assert half.status_code == 400 and half.json()["error"]["code"] == "invalid_text"


def test_bodies_are_limited_announced_or_not(client, keys):
    headers = {"Authorization": f"Bearer {keys['free']}", "Content-Type": "application/json"}
    large = json.dumps({"model": "tiny", "prompt": "the " * 6000}).encode()
    announced = client.post("/v1/completions", content=large, headers=headers)
    unannounced = client.post(
        "/v1/completions", content=iter([large[:9000], large[9000:18000], large[18000:]]), headers=headers
    )
    for answer in (announced, unannounced):
        assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    for broken in (b"{", b"[]", b"\xff"):
        assert client.post("/v1/completions", content=broken, headers=headers).status_code == 400


def test_unknown_routes_are_errors_of_the_same_form(client):
    assert client.get("/v1/nothing").json()["error"]["type"] == "invalid_request_error"
    assert client.get("/v1/completions").status_code == 405
    assert client.get("/health").json()["status"] == "ok"
    assert client.get("/openapi.json").json()["info"]["title"] == "Impairment as a service"


def test_mixed_requests_see_their_own_impairment_only(lm, client, post):
    ids = lm.tokenizer(PROMPT)["input_ids"]
    free = [
        None,
        "scale:0.3",
        "scale:0.9",
        "noise:0.4",
        "noise:1",
        "negative-noise:0.1,site=mlp_out",
        "mean:1,cluster=some",
    ]
    wanted = {}
    for text in free:
        asked = None if text is None else parse(text)
        cluster = CLUSTER if text and "cluster" in text else None
        wanted[text] = expected(lm, ids, asked, noise_seed(client.service.secret, "free", "request"), cluster)[1]
    wrong = []

    def work(start):
        for i in range(start, 1000, 20):
            text = free[i % len(free)]
            model = "tiny" if text is None else f"tiny@{text}"
            answer = complete(post, model=model, logprobs=1, echo=True)
            found = answer["choices"][0]["logprobs"]["token_logprobs"][1:]
            if found != pytest.approx(wanted[text], abs=1e-4):
                wrong.append(text)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_request_that_takes_too_long_is_ended(client, post, monkeypatch):
    settings = client.service.settings
    monkeypatch.setattr(client.service, "settings", settings.__class__(**{**vars(settings), "timeout": 0.01}))
    monkeypatch.setattr(client.service.engine._batch, "step", lambda: time.sleep(0.02))  # no token ever comes
    answer = post("/v1/completions", prompt=PROMPT, max_tokens=20, temperature=0)
    assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"


def test_a_failing_model_tells_nothing_of_itself(client, post, monkeypatch):
    def fail():
        raise RuntimeError("/secret/path weight 0.123")

    monkeypatch.setattr(client.service.engine._batch, "advance", fail)
    answer = post("/v1/completions", prompt=PROMPT)
    assert answer.status_code == 500 and "secret" not in answer.text and "0.123" not in answer.text
    stream = post("/v1/completions", prompt=PROMPT, stream=True)
    assert stream.status_code == 200 and "secret" not in stream.text and '"error"' in stream.text


def test_what_was_asked_and_applied_is_in_the_audit_log(client, folder, post):
    complete(post, key="floor", prompt="the secret race", impairment={"kind": "scale", "strength": 0.2})
    post("/v1/completions", key="strict", prompt="the race", model="tiny@noise:3")
    records, problems = check(folder / "audit.jsonl")
    request = [record for record in records if record["event"] == "request"][-1]
    assert request["organisation"] == "floor" and request["asked"]["strength"] == 0.2
    assert [one["kind"] for one in request["applied"]] == ["scale", "noise"] and request["sequences"] == 1
    done = next(record for record in records if record["event"] == "done" and record["id"] == request["id"])
    assert done["status"] == "done" and done["written"] == 5
    assert records[-1]["event"] == "refused" and "calibrated levels only" in records[-1]["message"]
    assert not problems and "secret race" not in (folder / "audit.jsonl").read_text()


def test_metrics_count(client):
    text = client.get("/metrics").text
    assert (
        'shapley_requests_total{route="/v1/completions",status="200"}' in text
        and "shapley_sequences_running 0.0" in text
    )


def test_a_floor_on_a_cluster_that_is_not_registered_stops_the_start(lm, tmp_path):
    key, _ = KeyFile(tmp_path).add("lab", Policy(floor=(Asked(kind="zero", strength=1, cluster="gone"),)))
    with pytest.raises(ShapleyError, match=f"key {key.id} has a floor or level on cluster 'gone'"):
        Service(lm, Settings("tiny", tmp_path))


def test_a_floor_that_a_norm_undoes_stops_the_start(tmp_path):
    gemma = tiny_lm("gemma3_text")
    for text, undone in (
        ("scale:0.5", True),
        ("scale:1", False),
        ("noise:0.5", False),
        ("scale:0.5,site=mlp_out", False),
    ):
        settings = Settings("tiny", tmp_path / text, open_policy=Policy(floor=(parse(text),)))
        if undone:
            with pytest.raises(ShapleyError, match="has a norm after the MLP, which undoes that"):
                Service(gemma, settings)
        else:
            Service(gemma, settings)


def test_prompts_are_logged_if_asked_for(lm, tmp_path):
    settings = Settings("tiny", tmp_path, open_policy=Policy(), log_prompts=True)
    with TestClient(application(Service(lm, settings))) as client:
        answer = client.post("/v1/completions", json={"model": "tiny", "prompt": "the race", "max_tokens": 1})
        assert answer.status_code == 200
    records, _ = check(tmp_path / "audit.jsonl")
    assert records[1]["prompts"] == ["the race"] and [records[0]["event"], records[-1]["event"]] == ["start", "stop"]
