"""Requests that were generated to break the server, from its OpenAPI document and around its floor: nothing but clean answers.

`SHAPLEY_EXAMPLES=2500 python -m pytest tests/test_server_hostile.py` runs some ten thousand; by default it is a few hundred.
"""

from __future__ import annotations

import json
import os

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from starlette.testclient import TestClient

from shapley.impairment import KINDS, SITES
from shapley.server.app import application
from shapley.server.asked import parse
from shapley.server.keys import KeyFile
from shapley.server.policy import Policy
from shapley.server.service import Service
from shapley.server.settings import Settings
from tests.tiny import tiny_lm

EXAMPLES = int(os.environ.get("SHAPLEY_EXAMPLES", "40"))
FLOOR = parse("noise:0.5")
FIXED = "SHAPLEY_EXAMPLES" not in os.environ  # the same requests every time
RELAXED = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), derandomize=FIXED)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    key = KeyFile(folder).add("lab", Policy(floor=(FLOOR,), requests_per_minute=10**7, tokens_per_minute=10**10))[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path_factory.mktemp("cache")))
        app = application(
            Service(tiny_lm("llama"), Settings("tiny", folder, max_prompt=40, max_new=8, max_body=50_000))
        )
        with TestClient(app, raise_server_exceptions=False, headers={"Authorization": f"Bearer {key}"}) as client:
            client.folder, client.key = folder, key
            yield client


_SENT = ("method", "url", "headers", "params", "json", "data")


def check_clean(client, status, text):
    """No failure of ours, and nothing of the inside."""
    assert status < 500, text
    for inside in ("Traceback", str(client.folder), client.key, client.app.title + ".py", "site-packages"):
        assert inside not in text
    if status >= 400:
        error = json.loads(text)["error"]
        assert set(error) == {"message", "type", "param", "code"} and isinstance(error["message"], str)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_generated_requests(served, mode):
    """Of the document's schemas, and such that break them."""
    document = schemathesis.openapi.from_dict(served.app.openapi())
    for operation in (found.ok() for found in document.get_all_operations()):
        if mode is GenerationMode.NEGATIVE and operation.method == "get":
            continue  # nothing in it can be wrong

        @RELAXED
        @given(case=operation.as_strategy(generation_mode=mode))
        def answered_cleanly(case):
            if isinstance(case.body, dict) and len(str(case.body)) % 2 and "model" in case.body:
                case.body["model"] = "tiny"  # half of them get past the model's name
            wanted = case.as_transport_kwargs(base_url="http://testserver")
            wanted["headers"] = dict(wanted.get("headers") or {}) | {"Authorization": f"Bearer {served.key}"}
            sent = {name: wanted[name] for name in _SENT if wanted.get(name) is not None}
            if isinstance(sent.get("data"), bytes):
                sent["content"] = sent.pop("data")
            answer = served.request(**sent)
            check_clean(served, answer.status_code, answer.text)

        answered_cleanly()


ANY = st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8)
STRENGTHS = st.floats(-2, 101) | st.sampled_from(
    [-0.0, 1e-320, 1e308, float("nan"), float("inf"), "0.1", "nan", None, True]
)
IMPAIRMENTS = st.fixed_dictionaries(
    {"kind": st.sampled_from(KINDS) | ANY, "strength": STRENGTHS},
    optional={"site": st.sampled_from(SITES) | ANY, "cluster": ANY, "seed": ANY, "unit": ANY},
)
_TRIED = ["", "@", "@noise:0", "@noise:-1", "@scale:0", "@zero:0", "@noise:1e-9,site=mlp_out", "@noise:nan"]
SUFFIXES = st.sampled_from(_TRIED) | st.text(max_size=12).map(lambda text: f"@{text}")
HEADERS = st.none() | st.text("noise:.0123456789,= sitecluster", max_size=16)


@RELAXED
@given(impairment=st.none() | IMPAIRMENTS | ANY, suffix=SUFFIXES, header=HEADERS)
def test_no_request_gets_around_the_floor(served, impairment, suffix, header):
    body = {"model": f"tiny{suffix}", "prompt": "the race", "max_tokens": 1, "temperature": 0}
    if impairment is not None:
        body["impairment"] = impairment
    content = json.dumps(body).encode()  # with NaN and Infinity, which the json of others takes
    headers = {"Content-Type": "application/json"} | ({} if header is None else {"X-Impairment": header})
    answer = served.post("/v1/completions", content=content, headers=headers)
    check_clean(served, answer.status_code, answer.text)
    if answer.status_code == 200:
        last = answer.json()["impairment"][-1]
        assert (
            last["kind"] == "noise"
            and last["strength"] >= 0.5
            and last["cluster"] is None
            and last["site"] == "mlp_hidden"
        )
        assert all(0 <= one["strength"] <= 100 for one in answer.json()["impairment"])


def test_so_many_were_answered(served):
    """Of the tests above: six routes with something to generate, the four with a body broken too, and the floor's."""
    counts = [
        float(line.rpartition(" ")[2]) for line in served.get("/metrics").text.splitlines() if "requests_total{" in line
    ]
    assert sum(counts) >= 8 * EXAMPLES
