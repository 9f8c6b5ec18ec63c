"""A server in a process of its own, and the clients that people have: openai, lm-evaluation-harness, inspect-ai; kill -9."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import openai
import pytest
import torch

from shapley.clusters import Cluster
from shapley.hf.hooks import impair
from shapley.hf.load import describe
from shapley.server.asked import parse
from shapley.server.audit import check
from shapley.server.keys import KeyFile
from shapley.server.policy import Policy
from tests.tiny import tiny_lm

TEMPLATE = "{% for m in messages %}{{ m.content }} {% endfor %}"


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


class Server:
    """``shapley serve`` on a tiny model."""

    def __init__(self, folder, *options):
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.command = [
            sys.executable, "-m", "shapley", "serve", str(folder / "model"), "--name", "tiny", "--state", str(folder / "state"),
            "--port", str(self.port), *options,
        ]  # fmt: skip
        self.process = None

    def start(self):
        """Seconds until it answers."""
        started = time.monotonic()
        self.log = (self.folder / "log").open("ab")
        self.process = subprocess.Popen(
            self.command, stdout=self.log, stderr=self.log, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=1).read()
                return time.monotonic() - started
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                assert self.process.poll() is None, (self.folder / "log").read_text()
                assert time.monotonic() - started < 60
                time.sleep(0.1)

    def stop(self, how=signal.SIGINT):
        self.process.send_signal(how)
        self.log.close()
        return self.process.wait(timeout=40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    lm = tiny_lm("llama")
    lm.tokenizer.chat_template = TEMPLATE
    lm.model.save_pretrained(folder / "model")
    lm.tokenizer.save_pretrained(folder / "model")
    lm.tokenizer.chat_template = None
    Cluster(((0, 1), (2, 3)), model=describe(lm)).save(folder / "some.json")
    return folder


@pytest.fixture(scope="module")
def key(folder):
    return KeyFile(folder / "state").add(
        "lab", Policy(logprobs=True, requests_per_minute=10**6, tokens_per_minute=10**9)
    )[1]


@pytest.fixture(scope="module")
def server(folder, key):
    server = Server(folder, "--cluster", f"some={folder / 'some.json'}", "--max-prompt", "48", "--max-new", "16")
    server.start()
    yield server
    assert server.stop() == 0
    records, problems = check(folder / "state" / "audit.jsonl")
    assert records[-1]["event"] == "stop" and not problems


@pytest.fixture
def client(server, key):
    return openai.OpenAI(base_url=server.url, api_key=key, max_retries=0)


def test_openai_completions(client):
    answer = client.completions.create(
        model="tiny", prompt=["the player won", "the band"], max_tokens=4, temperature=0, logprobs=2,
        extra_body={"impairment": {"kind": "scale", "strength": 0.5, "cluster": "some"}},
    )  # fmt: skip
    assert [choice.index for choice in answer.choices] == [0, 1] and answer.usage.completion_tokens == 8
    assert answer.model_extra["impairment"][0]["cluster"] == "some"
    assert len(answer.choices[0].logprobs.tokens) == 4
    raw = client.completions.with_raw_response.create(model="tiny@noise:0.5", prompt="the", max_tokens=1)
    assert raw.headers["x-impairment-applied"] == "noise:0.5"


def test_openai_chat_whole_and_streamed(client):
    messages = [{"role": "user", "content": "the player won"}]
    whole = client.chat.completions.create(model="tiny", messages=messages, max_tokens=5, temperature=0, logprobs=True)
    parts = list(
        client.chat.completions.create(
            model="tiny",
            messages=messages,
            max_tokens=5,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content and parts[-1].usage == whole.usage
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
    streamed = client.completions.create(model="tiny", prompt="the player", max_tokens=5, temperature=0, stream=True)
    assert "".join(part.choices[0].text for part in streamed)


def test_a_client_that_goes_away_is_accounted_for(server, client, folder):
    stream = client.completions.create(
        model="tiny", prompt="the player", max_tokens=16, temperature=0, stream=True, n=8
    )
    name = next(iter(stream)).id
    stream.close()
    for _ in range(100):
        records, _ = check(folder / "state" / "audit.jsonl")
        ended = [record for record in records if record["event"] == "done" and record["id"] == name]
        if ended:
            break
        time.sleep(0.1)
    assert ended[0]["status"] in ("cancelled", "done")


def test_openai_models_and_errors(server, client):
    assert [model.id for model in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.AuthenticationError, match="not known, or was revoked"):
        openai.OpenAI(base_url=server.url, api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError, match="no such model"):
        client.completions.create(model="other", prompt="the")
    with pytest.raises(openai.BadRequestError, match=r"impairment\.strength"):
        client.completions.create(
            model="tiny", prompt="the", extra_body={"impairment": {"kind": "noise", "strength": -1}}
        )
    with pytest.raises(openai.NotFoundError, match="no cluster 'x' is registered"):
        client.completions.create(model="tiny@noise:1,cluster=x", prompt="the")


def test_a_second_server_and_one_without_keys_are_refused(server, tmp_path):
    second = subprocess.run([*server.command[:9], "--port", "0"], capture_output=True, text=True)
    assert second.returncode == 2 and "another server runs on" in second.stderr
    without = [*server.command[:5], "--state", str(tmp_path / "none"), "--name", "tiny"]
    refused = subprocess.run(without, capture_output=True, text=True)
    assert refused.returncode == 2 and "shapley keys add" in refused.stderr
    taken = [
        *server.command[:4],
        f"{server.command[4]}@random",  # what is behind the @ does not get in the way of its name
        "--state",
        str(tmp_path / "open"),
        "--open",
        "--port",
        str(server.port),
    ]
    refused = subprocess.run(taken, capture_output=True, text=True)
    assert refused.returncode == 2 and refused.stderr.startswith("shapley: cannot listen on")


def test_kill_9_under_load_loses_nothing_acknowledged(folder, key, tmp_path):
    state = tmp_path / "state"
    text = KeyFile(state).add("lab", Policy(requests_per_minute=10**6, tokens_per_minute=10**9))[1]
    server = Server(folder)
    server.command[server.command.index("--state") + 1] = str(state)
    server.start()
    acknowledged = []

    def work(i):
        own = openai.OpenAI(base_url=server.url, api_key=text, max_retries=0, timeout=20)
        while True:
            try:
                answer = own.completions.create(model=f"tiny@noise:0.{i}", prompt="the player won", max_tokens=3)
            except openai.APIError:
                return
            acknowledged.append((answer.id, answer.model_extra["impairment"]))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(1, 9)]
    for thread in threads:
        thread.start()
    while len(acknowledged) < 60:
        time.sleep(0.02)
    assert server.stop(signal.SIGKILL) == -signal.SIGKILL
    for thread in threads:
        thread.join()
    assert server.start() < 10  # a tiny model; most of it is imports
    client = openai.OpenAI(base_url=server.url, api_key=text, max_retries=0)
    assert client.completions.create(model="tiny", prompt="the", max_tokens=1).usage.completion_tokens == 1
    assert server.stop() == 0
    records, _ = check(state / "audit.jsonl")
    logged = {record["id"]: record["applied"] for record in records if record["event"] == "request"}
    assert all(logged[id] == applied for id, applied in acknowledged)


ITEMS = [
    ("the player won the", "race", "guitar"),
    ("the band sold a", "song", "goal"),
    ("the club in the", "city", "painter"),
] * 3


@pytest.fixture(scope="module")
def task(folder):
    """A task of lm-evaluation-harness that needs no network."""
    home = folder / "tasks"
    home.mkdir()
    rows = [{"question": question, "choices": [right, wrong], "answer": 0} for question, right, wrong in ITEMS]
    (home / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = f"dataset_path: json\ndataset_kwargs:\n  data_files: {{test: {home / 'items.jsonl'}}}\ntest_split: test\n"
    (home / "choice.yaml").write_text(
        f"task: tiny_choice\n{shared}output_type: multiple_choice\ndoc_to_text: '{{{{question}}}}'\n"
        "doc_to_choice: choices\ndoc_to_target: answer\nmetric_list:\n  - metric: acc\n"
    )
    (home / "open.yaml").write_text(
        f"task: tiny_open\n{shared}output_type: generate_until\ndoc_to_text: '{{{{question}}}}'\n"
        "doc_to_target: '{{choices[0]}}'\ngeneration_kwargs: {until: ['.'], max_gen_toks: 4, do_sample: false}\n"
        "metric_list:\n  - metric: exact_match\n"
    )
    return home


def evaluate(server, folder, key, task, kind, model, names, route):
    """``lm_eval`` as a user runs it: its samples, by task."""
    out = folder / f"{kind}-{model}"
    chat = ["--apply_chat_template"] if kind == "local-chat-completions" else []
    settings = (
        f"model={model},base_url={server.url}/{route},num_concurrent=4,max_retries=1,tokenizer={folder / 'model'}"
    )
    command = [
        sys.executable, "-m", "lm_eval", "--model", kind, "--model_args", settings, "--tasks", ",".join(names),
        "--include_path", str(task), "--output_path", str(out), "--log_samples", *chat,
    ]  # fmt: skip
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | offline | {"OPENAI_API_KEY": key})
    assert done.returncode == 0, done.stderr[-3000:]
    [results] = out.rglob("results_*.json")
    assert model in json.dumps(json.loads(results.read_text())["config"])  # which impairment it was is recorded
    found = {}
    for name in names:
        [samples] = out.rglob(f"samples_{name}_*.jsonl")
        found[name] = [json.loads(line) for line in samples.read_text().splitlines()]
    return found


def test_lm_eval_scores_choices_as_the_impaired_model_does_and_generates(server, folder, key, task):
    names = ["tiny_choice", "tiny_open"]
    samples = evaluate(server, folder, key, task, "local-completions", "tiny@scale:0.6", names, "completions")
    lm = tiny_lm("llama")
    with impair(lm, parse("scale:0.6").impairment(0)):
        for sample in samples["tiny_choice"]:
            question = lm.tokenizer(sample["doc"]["question"])["input_ids"]
            wanted = []
            for choice in sample["doc"]["choices"]:
                ids = [*question, *lm.tokenizer(choice)["input_ids"]]
                with torch.no_grad():
                    logits = lm.model(input_ids=torch.tensor([ids])).logits[0]
                wanted.append(float(torch.log_softmax(logits[len(question) - 1], dim=-1)[ids[-1]]))
            found = [float(one[0][0] if isinstance(one[0], list) else one[0]) for one in sample["resps"]]
            assert found == pytest.approx(wanted, abs=1e-4)
    assert len(samples["tiny_choice"]) == len(samples["tiny_open"]) == len(ITEMS)


def test_lm_eval_chats(server, folder, key, task):
    samples = evaluate(server, folder, key, task, "local-chat-completions", "tiny", ["tiny_open"], "chat/completions")
    assert len(samples["tiny_open"]) == len(ITEMS) and all(sample["resps"][0][0] for sample in samples["tiny_open"])


def test_inspect_ai(server, folder, key):
    code = (
        "from inspect_ai import Task, eval\nfrom inspect_ai.dataset import Sample\nfrom inspect_ai.scorer import includes\n"
        "from inspect_ai.solver import generate\nfrom inspect_ai.model import GenerateConfig, get_model\nimport sys\n"
        "task = Task([Sample(input='the player won', target='the') for _ in range(4)], solver=generate(), scorer=includes())\n"
        "config = GenerateConfig(max_tokens=4, temperature=0, extra_body={'impairment': {'kind': 'scale', 'strength': 0.5}})\n"
        "model = get_model('openai-api/shapley/tiny', base_url=sys.argv[1], api_key=sys.argv[2], config=config)\n"
        "[log] = eval(task, model=model, display='none', log_dir=sys.argv[3])\n"
        "assert log.status == 'success', log.error\nprint(len(log.samples), log.samples[0].output.completion)\n"
    )
    command = [sys.executable, "-c", code, server.url, key, str(folder / "inspect")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("4 ")
