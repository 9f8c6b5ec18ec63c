"""The server's batches against transformers' own generate and forward, alone and mixed, and against ``shapley.impair``."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest
import torch

from shapley.clusters import Cluster
from shapley.hf.hooks import Rows, impair
from shapley.server.asked import Asked
from shapley.server.batch import Batch
from shapley.server.engine import Engine
from shapley.server.policy import Layer
from shapley.server.sampling import Sampler
from shapley.server.sequence import Running
from shapley.server.stream import TextStream
from tests.tiny import FAMILIES, tiny_lm

PROMPTS = [[5, 9, 21, 33, 8, 40], [11, 7, 30], [12, 44, 9, 10, 6, 7, 8, 22, 31], [5, 9]]
CLUSTERS = {("some", "mlp_hidden"): Cluster(((0, 1), (1, 4), (2, 7)))}
STACKS = [
    (),
    (Layer(Asked(kind="scale", strength=0.6), 0),),
    (Layer(Asked(kind="negative-noise", strength=0.2), 3), Layer(Asked(kind="noise", strength=0.5), 7)),
    (
        Layer(Asked(kind="noise", strength=0.5, site="mlp_out"), 7),
        Layer(Asked(kind="mean", strength=1, cluster="some"), 1),
    ),
]


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path):
    monkeypatch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path / "cache"))


def running(lm, ids, stack=(), max_new=5, **options):
    return Running(ids, stack, max_new, Sampler(), TextStream(lm.tokenizer), n_top=3, **options)


def directly(lm, stack):
    """Context of ``shapley.impair``, in the stack's order."""
    contexts = ExitStack()
    for layer in stack:
        cluster = None if layer.asked.cluster is None else CLUSTERS[layer.asked.cluster, layer.asked.site]
        contexts.enter_context(impair(lm, layer.asked.impairment(layer.seed), cluster, rows=Rows(prompt_keys=[""])))
    return contexts


def generated(lm, ids, stack, max_new):
    """Tokens, and log-probabilities of prompt and answer, one sequence alone, without a cache."""
    with directly(lm, stack), torch.no_grad():
        out = lm.model.generate(
            torch.tensor([ids]), max_new_tokens=max_new, min_new_tokens=max_new, do_sample=False, pad_token_id=0,
            eos_token_id=None,
        )[0]  # fmt: skip
        logprobs = torch.log_softmax(lm.model(input_ids=out[None]).logits[0].float(), dim=-1)
    return out.tolist(), logprobs[:-1].gather(1, out[1:, None])[:, 0].tolist()


def check(lm, row):
    out, logprobs = generated(lm, row.ids, row.stack, row.max_new)
    assert [scored.token for scored in row.new] == out[len(row.ids) :]
    found = [scored.logprob for scored in [*row.prompt_scores[1:], *row.new]]
    assert found == pytest.approx(logprobs[-len(found) :], abs=1e-4)
    assert all(scored.top[0][1] == scored.logprob for scored in row.new)  # greedy is the likeliest, as the same number


def admit(batch, rows):
    batch.enter(rows)
    while batch.entering:
        batch.advance()


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_generate_whatever_shares_the_batch(family, monkeypatch):
    lm = tiny_lm(family)
    batch = Batch(lm, CLUSTERS)
    rows = [
        running(lm, ids, stack, score_prompt=i % 2 == 0)
        for i, (ids, stack) in enumerate(zip(PROMPTS, STACKS, strict=True))
    ]
    admit(batch, rows[:2])
    batch.step()
    monkeypatch.setattr("shapley.server.batch._columns", lambda n_rows: 2)  # in chunks
    batch.enter(rows[2:])  # joins the running ones
    while batch.entering:
        batch.advance()
        if batch.rows:
            batch.step()
    while batch.rows:
        batch.step()
    for row in rows:
        assert row.reason == "length"
        check(lm, row)


def test_a_cluster_is_impaired_alone():
    lm = tiny_lm("llama")
    row = running(lm, PROMPTS[0], (Layer(Asked(kind="scale", strength=1, cluster="some"), 0),), score_prompt=True)
    admit(Batch(lm, CLUSTERS), [row])
    with impair(lm, Asked(kind="zero", strength=1).impairment(0), CLUSTERS["some", "mlp_hidden"]), torch.no_grad():
        logprobs = torch.log_softmax(lm.model(input_ids=torch.tensor([PROMPTS[0]])).logits[0], dim=-1)
    wanted = [float(logprobs[i, token]) for i, token in enumerate(PROMPTS[0][1:])]
    assert [scored.logprob for scored in row.prompt_scores[1:]] == pytest.approx(wanted, abs=1e-4)


def test_the_engine_runs_more_sequences_than_fit_into_a_batch():
    lm = tiny_lm("llama")
    engine = Engine(lm, CLUSTERS, max_rows=3)
    ended = threading.Semaphore(0)
    rows = [running(lm, PROMPTS[i % 4], STACKS[i % 4], max_new=1 + i % 6) for i in range(20)]
    for row in rows:
        row.emit = lambda text, row=row: ended.release() if row.reason else None
    engine.start()
    engine.submit(rows)
    for _ in rows:
        assert ended.acquire(timeout=30)
    engine.close()
    for row in rows:
        check(lm, row)


def test_a_long_prompt_does_not_hold_up_others(monkeypatch):
    monkeypatch.setattr("shapley.server.batch._columns", lambda n_rows: 1)
    lm = tiny_lm("llama")
    batch = Batch(lm, CLUSTERS)
    short, long = running(lm, PROMPTS[1], max_new=20), running(lm, PROMPTS[2], STACKS[1], score_prompt=True)
    admit(batch, [short])
    engine = Engine(lm, CLUSTERS)
    engine._batch = batch
    ended = threading.Semaphore(0)
    during = []
    long.emit = lambda text: during.append(len(short.new)) or (ended.release() if long.reason else None)
    engine.submit([long])
    engine.start()
    assert ended.acquire(timeout=30)
    engine.close()
    assert during[0] >= len(long.ids)  # a token of the short one between any two chunks
    check(lm, long)


def test_a_failing_pass_ends_its_sequences_and_not_the_engine(monkeypatch):
    lm = tiny_lm("llama")
    failures = []
    engine = Engine(lm, CLUSTERS, failed=failures.append)
    ended = threading.Semaphore(0)

    def tell(row):
        row.emit = lambda text: ended.release() if row.reason else None
        return row

    bad = tell(running(lm, [10_000]))  # no such token
    good = tell(running(lm, PROMPTS[0]))
    engine.start()
    engine.submit([bad])
    assert ended.acquire(timeout=30) and bad.reason == "error" and len(failures) == 1
    engine.submit([good])
    assert ended.acquire(timeout=30) and good.reason == "length"
    ended_before = len(failures)
    mixed = [tell(running(lm, ids)) for ids in ([5, 9], [10_000], [7, 8, 9])]
    engine.submit(mixed)
    for _ in mixed:
        assert ended.acquire(timeout=30)
    assert [row.reason for row in mixed] == ["length", "error", "length"] and len(failures) > ended_before
    late = tell(running(lm, PROMPTS[1], max_new=10**6))
    engine.submit([late])
    late.cancelled.set()
    assert ended.acquire(timeout=30) and late.reason == "cancelled"
    engine.close()


def test_an_end_token_and_a_stop_sequence_end_a_sequence():
    lm = tiny_lm("llama")
    out, _ = generated(lm, PROMPTS[0], (), 5)
    new = out[len(PROMPTS[0]) :]
    row = running(lm, PROMPTS[0], ends=frozenset({new[2]}))
    words = lm.tokenizer.decode(new).split()
    stopped = Running(PROMPTS[0], (), 5, Sampler(), TextStream(lm.tokenizer, [words[1]]))
    batch = Batch(lm, CLUSTERS)
    admit(batch, [row, stopped])
    while batch.rows:
        batch.step()
    assert row.reason == stopped.reason == "stop"
    assert [scored.token for scored in row.new] == new[: new.index(new[2]) + 1]
    assert stopped.stream.text.split() == words[:1] or words[0] == words[1]


class Bytes:
    """A tokenizer of single bytes."""

    def decode(self, ids, **options):
        return bytes(ids).decode("utf-8", errors="replace")


def test_characters_of_several_tokens_are_waited_for():
    stream = TextStream(Bytes())
    parts = [stream.add(byte) for byte in "aé€😀z".encode()]
    assert parts == ["a", "", "é", "", "", "€", "", "", "", "😀", "z"] and stream.text == "aé€😀z"
    broken = TextStream(Bytes())
    assert broken.add(0xE2) == "" and broken.finish() == "�"


@pytest.mark.parametrize("stop", [["END"], ["xx", "END"], ["D!", "END"]])
def test_stop_sequences_are_cut_out_and_what_may_begin_one_is_held_back(stop):
    stream = TextStream(Bytes(), stop)
    given = ""
    for byte in b"an E, an EN, and ENEND! more":
        given += stream.add(byte)
        assert "END" not in given and stream.text == given
        if stream.stopped:
            break
    assert given == "an E, an EN, and EN" and stream.add(0x61) == "" and stream.finish() == ""
    open_end = TextStream(Bytes(), ["END"])
    assert "".join(open_end.add(byte) for byte in b"the EN") == "the " and open_end.finish() == "EN"


def test_sampling_follows_the_distribution_within_top_p():
    logprobs = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))
    drawn = [Sampler(1.0, 0.75, (7, i))(logprobs) for i in range(2000)]
    assert set(drawn) == {0, 1} and drawn.count(0) / 2000 == pytest.approx(0.625, abs=0.04)
    cold = [Sampler(0.5, 1.0, (7, i))(logprobs) for i in range(2000)]
    weights = torch.tensor([0.25, 0.09, 0.0225, 0.0025])
    assert cold.count(1) / 2000 == pytest.approx(float(weights[1] / weights.sum()), abs=0.04)
    assert [Sampler(1.0, 1.0, (7,))(logprobs) for _ in range(5)] == [Sampler(1.0, 1.0, (7,))(logprobs)] * 5
    assert Sampler()(logprobs) == 0


def test_memory_bounds_prefill_and_cache():
    lm = tiny_lm("llama")
    batch = Batch(lm, CLUSTERS)
    rows = [running(lm, [5] * 10, max_new=6) for _ in range(4)]
    a_token = 2 * 3 * 2 * 8 * 4  # keys and values, layers, heads, size, bytes
    assert batch.cache_fits(rows, 4 * 16 * a_token) and not batch.cache_fits(rows, 4 * 16 * a_token - 1)
    assert not batch.cache_fits([*rows, running(lm, [5], max_new=16)], 4 * 16 * a_token)
    assert batch.prefill_fits(rows, 1 << 20) and not batch.prefill_fits(rows, 1000)
    engine = Engine(lm, CLUSTERS, memory=1)  # nothing fits: one at a time
    ended = threading.Semaphore(0)
    for row in rows:
        row.emit = lambda text, row=row: ended.release() if row.reason else None
    engine.start()
    engine.submit(rows)
    for _ in rows:
        assert ended.acquire(timeout=30)
    engine.close()
    assert all(row.reason == "length" for row in rows)
