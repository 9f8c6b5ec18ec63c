"""Runs in folders: any number of workers, lost and started again, give the numbers of one process, to the bit.

In this process, on a game without a model; ``tests/faults`` does it to real processes, ``test_jobs_slurm`` on Slurm.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from shapley.errors import ShapleyError
from shapley.estimators.registry import Plan, build
from shapley.jobs import worker
from shapley.jobs.advance import merge, prepare
from shapley.jobs.attempt import Attempt, Watch, read_reports
from shapley.jobs.estimate import TopicStream, check_apart
from shapley.jobs.folder import RunFolder, create
from shapley.jobs.games import game_record, open_games
from shapley.jobs.local import run_here
from shapley.jobs.profile import Profile
from shapley.jobs.segments import DamagedError, Item, Sample, Shelf, read_header, read_sample, write_segment
from shapley.jobs.signals import Stopped
from shapley.jobs.status import describe, status
from shapley.jobs.submit import add_workers, chain
from shapley.jobs.worker import work
from shapley.prompts import Prompt, TopicPrompts
from shapley.runs import estimate
from shapley.store import ScoreFile
from tests.test_runs import TOPICS as MODEL_TOPICS
from tests.test_workers import children_of, save_model, workers_among

TOPICS = {
    topic: TopicPrompts(topic, tuple(Prompt(topic, f"prompt {i}", " a") for i in range(8))) for topic in ("one", "two")
}
PLANS = {
    "two-stage": Plan(estimator="two-stage", budget=12_000, top_k=10),
    "refined": Plan(estimator="two-stage", budget=30_000, top_k=120, delta=1e-9, seed=4),
    "gradient": Plan(estimator="gradient", samples=160, seed=1),
    "permutation": Plan(estimator="permutation", samples=10),
}
SYNTHETIC = game_record(
    "synthetic:4x64",
    trust_remote_code=False,
    impairment={},
    value="logprob",
    layers=None,
    dtype="auto",
    memory=None,
)


@pytest.fixture(autouse=True)
def a_link_for_each_round(monkeypatch):
    """As where not all shards have a place at once; ``test_jobs_rounds`` has workers that go on by themselves."""
    monkeypatch.setattr(Attempt, "started", lambda self: set())


def new_run(tmp_path, plan=PLANS["two-stage"], shards=3, **changes):
    return create(tmp_path / "run", TOPICS, plan, SYNTHETIC | changes, shards, ["shapley"])


def to_the_end(run, shards=3, order=None):
    """Links until it is finished; returns how many."""
    prepare(run, show=False)
    links = 0
    while not merge(run, show=False).finished:
        for shard in order or range(shards):
            work(run, shard, shards)
        links += 1
        assert links < 20
    return links


def alone(plan, topic):
    """The same estimate in one piece."""
    _, make = open_games(SYNTHETIC, "cpu")
    estimator, _ = build(plan, make(topic), key=topic.topic)
    return estimator.run()


def assert_same(run, plan):
    file = ScoreFile(run.scores)
    assert file.topics == list(TOPICS)
    for name, topic in TOPICS.items():
        expected, found = alone(plan, topic), file[name]
        for array in ("score", "stderr", "count", "replicates", "exact"):
            wanted = getattr(expected, array)
            if wanted is not None:
                np.testing.assert_array_equal(getattr(found, array).reshape(wanted.shape), wanted, err_msg=array)
        assert found.attrs["forward_rows"] == expected.forward_rows
        assert json.loads(found.attrs["details"]) == {**json.loads(json.dumps(expected.details)), **_counts(found)}


def _counts(found):
    details = json.loads(found.attrs["details"])
    return {name: details[name] for name in ("samples", "units")}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("shards", [1, 2, 7])
def test_any_number_of_shards_gives_the_numbers_of_one_process(tmp_path, name, shards):
    plan = PLANS[name]
    run = new_run(tmp_path, plan, shards)
    links = to_the_end(run, shards)
    assert (links > 2) == (plan.estimator == "two-stage")
    assert_same(run, plan)


def test_workers_in_any_order_with_changing_numbers(tmp_path):
    run = new_run(tmp_path)
    prepare(run, show=False)
    rng = np.random.default_rng(0)
    while not merge(run, show=False).finished:
        of = int(rng.integers(1, 9))
        work(run, int(rng.integers(-1, of)), of)
    assert_same(run, PLANS["two-stage"])


@pytest.mark.parametrize("after", [1, 5, 23])
def test_a_stopped_worker_keeps_what_it_has(tmp_path, monkeypatch, after):
    """Stopped after so many items: they are in a segment, and are not computed again."""
    run = new_run(tmp_path)
    prepare(run, show=False)
    done = []
    original = worker.Worker._do

    def count(self, benches, task):
        if len(done) == after:
            raise Stopped
        original(self, benches, task)
        done.append(task)

    monkeypatch.setattr(worker.Worker, "_do", count)
    assert work(run, 0, 1) == "stopped"
    left = sum(map(len, merge(run, show=False).missing.values()))
    monkeypatch.setattr(worker.Worker, "_do", original)
    again = []
    monkeypatch.setattr(
        worker.Worker,
        "_do",
        lambda self, benches, task, *more: (again.append(task), original(self, benches, task, *more)),
    )
    assert work(run, 0, 1) == "done"
    assert len(again) == left and not set(again) & set(done)
    to_the_end(run)
    assert_same(run, PLANS["two-stage"])


def test_a_merge_that_is_killed_is_started_anew(tmp_path, monkeypatch):
    """Between any two of its writes."""
    from shapley.jobs import folder

    plan = PLANS["two-stage"]
    run = new_run(tmp_path)
    prepare(run, show=False)
    saved = folder.write_checkpoint
    for writes in (0, 1):
        for shard in range(3):
            work(run, shard, 3)
        left = [writes]

        def write(*arguments, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            saved(*arguments)

        monkeypatch.setattr(folder, "write_checkpoint", write)
        with pytest.raises(KeyboardInterrupt):
            merge(run, show=False)
        monkeypatch.setattr(folder, "write_checkpoint", saved)
    to_the_end(run)
    assert_same(run, plan)


def test_damaged_segments_are_named_and_computed_again(tmp_path):
    run = new_run(tmp_path)
    prepare(run, show=False)
    work(run, 0, 1)
    first = sorted((run.topics[0].path / "round-0000").glob("*.segment"))[0]
    data = bytearray(first.read_bytes())
    data[-100] ^= 1
    first.write_bytes(data)
    standing = merge(run, show=False)
    assert str(first) in standing.damaged[0] and standing.missing["one"]
    assert not first.exists() and first.with_suffix(".damaged").exists()
    to_the_end(run)
    assert_same(run, PLANS["two-stage"])


def test_a_damaged_state_costs_no_more_than_its_round(tmp_path):
    run = new_run(tmp_path)
    prepare(run, show=False)
    work(run, 0, 1)
    merge(run, show=False)
    for name in ("state-0001.npz", "round-0001.npz"):
        path = run.topics[0].path / name
        path.write_bytes(path.read_bytes()[:-40])
    standing = merge(run, show=False)
    assert any("0001.npz" in line for line in standing.damaged)
    to_the_end(run)
    assert_same(run, PLANS["two-stage"])


def test_a_damaged_first_state_is_prepared_again(tmp_path):
    run = new_run(tmp_path)
    prepare(run, show=False)
    work(run, 0, 1)
    path = run.topics[1].path / "state-0000.npz"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ShapleyError, match=r"'two' .* 'shapley prepare'"):
        merge(run, show=False)
    prepare(run, show=False)
    assert "two" not in merge(run, show=False).missing
    to_the_end(run)
    assert_same(run, PLANS["two-stage"])


def test_duplicates_count_once(tmp_path):
    run = new_run(tmp_path)
    prepare(run, show=False)
    work(run, 0, 1)
    for topic in run.topics:
        for path in list((topic.path / "round-0000").glob("*.segment")):
            shutil.copy(path, path.with_name(f"copy-{path.name}"))
    to_the_end(run)
    assert_same(run, PLANS["two-stage"])


def test_segments_of_another_run_are_refused_by_name(tmp_path):
    run = new_run(tmp_path)
    (tmp_path / "b").mkdir()
    other = create(tmp_path / "b" / "run", TOPICS, PLANS["gradient"], SYNTHETIC, 1, [])
    for one in (run, other):
        prepare(one, show=False)
    work(other, 0, 1)
    path = next((other.topics[0].path / "round-0000").glob("*.segment"))
    shutil.copy(path, run.topics[0].path / "round-0000")
    with pytest.raises(ShapleyError, match=f"{path.name}.*other settings"):
        merge(run, show=False)


def test_a_model_through_shards_and_alone(tmp_path):
    """A tiny GPT-2 by the same code as the synthetic game, against ``shapley.estimate``."""
    save_model(tmp_path / "model")
    record = game_record(
        str(tmp_path / "model"),
        trust_remote_code=False,
        impairment={"kind": "noise", "strength": 0.5},
        value="logprob",
        layers=[0, 2],
        dtype="float32",
        memory=None,
    )
    from shapley.hf.load import load_model
    from shapley.impairment import Impairment

    plan = Plan(estimator="two-stage", samples=160, top_k=5)
    run = create(tmp_path / "run", MODEL_TOPICS, plan, record, 2, [])
    to_the_end(run, 2)
    lm = load_model(str(tmp_path / "model"), device="cpu")
    expected = estimate(
        lm,
        MODEL_TOPICS,
        tmp_path / "alone.h5",
        plan=plan,
        impairment=Impairment("noise", 0.5),
        layers=[0, 2],
        dtype="float32",
        show=False,
    )
    found = ScoreFile(run.scores)
    assert found.model == expected.model and found.topics == expected.topics
    for topic in MODEL_TOPICS:
        for array in ("score", "stderr", "count", "replicates", "exact"):
            np.testing.assert_array_equal(getattr(found[topic], array), getattr(expected[topic], array))
        for name in ("forward_rows", "value_full", "value_empty", "settings", "details"):
            assert found.attrs(topic)[name] == expected.attrs(topic)[name]


def test_segments_keep_what_was_written(tmp_path):
    rng = np.random.default_rng(0)
    samples = {
        Item(u, p): Sample((rng.normal(size=7), rng.normal(size=(2, 0)), rng.integers(9, size=3)), u, 0.5)
        for u in (3, 4)
        for p in (0, 1)
    }
    path = tmp_path / "a.segment"
    write_segment(path, "settings", samples)
    settings, places = read_header(path)
    assert settings == "settings" and list(places) == list(samples)
    for item, sample in samples.items():
        found = read_sample(places[item])
        assert (found.rows, found.seconds) == (sample.rows, sample.seconds)
        for a, b in zip(found.arrays, sample.arrays, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape and (a == b).all()


def test_every_damaged_byte_of_a_segment_is_seen(tmp_path):
    """Each byte flipped in turn, and the file cut at each length."""
    path = tmp_path / "a.segment"
    write_segment(path, "settings", {Item(0, 0): Sample((np.arange(9.0),), 1, 1.0)})
    whole = path.read_bytes()

    def read():
        _, places = read_header(path)
        read_sample(places[Item(0, 0)])

    read()
    for i in range(len(whole)):
        path.write_bytes(whole[:i] + bytes([whole[i] ^ 4]) + whole[i + 1 :])
        with pytest.raises(DamagedError, match=r"a\.segment"):
            read()
        path.write_bytes(whole[:i])
        with pytest.raises(DamagedError, match=r"a\.segment"):
            read()


def test_a_shelf_drops_nothing_it_can_read(tmp_path):
    for name, units in (("a", (0, 1)), ("b", (1, 2))):
        write_segment(
            tmp_path / f"{name}.segment", "s", {Item(u, 0): Sample((np.full(2, float(u)),), 1, 0.0) for u in units}
        )
    (tmp_path / "c.segment").write_bytes(b"")
    shelf = Shelf(tmp_path, "s")
    shelf.scan()
    assert shelf.missing([Item(u, 0) for u in range(4)]) == [Item(3, 0)]
    assert [path.name for path in shelf.damaged] == ["c.segment"]


def test_who_lives_is_seen_without_comparing_clocks(tmp_path, monkeypatch):
    from shapley.jobs import attempt as module

    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    first, second = Attempt(tmp_path, 0, 4), Attempt(tmp_path, 1, 4)
    watch = Watch(tmp_path, "a:0")
    for attempt in (first, second):
        attempt.say(rounds="a:0")
    watch.look()
    assert watch.alive() == {(0, 4), (1, 4)}
    for _ in range(4):
        now[0] += module.BEAT_SECONDS
        first.say()
        watch.look()
    assert watch.alive() == {(0, 4)}
    first.say(state="done")
    watch.look()
    assert watch.alive() == set()


def test_a_failed_worker_says_why(tmp_path, monkeypatch):
    run = new_run(tmp_path)
    prepare(run, show=False)
    monkeypatch.setattr(
        "shapley.jobs.synthetic.SyntheticGame.gradients", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("no\nway"))
    )
    with pytest.raises(RuntimeError):
        work(run, 1, 3)
    (report,) = [each for each in read_reports(run.workers) if each.step == "work"]
    assert (report.state, report.error) == ("failed", "RuntimeError: no way") and "gradients" in report.traceback
    found = status(run)
    assert (
        found.failed == [report]
        and "shard 1" in describe(run, found)
        and "Traceback" in describe(run, found, logs=True)
    )


def test_status_from_nothing_to_the_end(tmp_path):
    run = new_run(tmp_path)
    assert [topic.state for topic in status(run).topics] == ["not prepared"] * 2
    prepare(run, show=False)
    work(run, 0, 2)
    one, two = status(run).topics
    assert one.items > 10 and one.rows < one.planned and one.done + two.done >= one.items - 1
    to_the_end(run)
    found = status(run)
    assert found.finished and all(topic.state == "finished" and len(topic.top) == 5 for topic in found.topics)
    best = np.argmax(ScoreFile(run.scores).array("one", "score"))
    assert (found.topics[0].top[0]["layer"], found.topics[0].top[0]["neuron"]) == divmod(int(best), 64)
    assert "finished: shapley top" in describe(run, found)


def test_a_folder_belongs_to_one_configuration(tmp_path):
    run = new_run(tmp_path)
    assert new_run(tmp_path).record == run.record
    prepare(run, show=False)
    with pytest.raises(ShapleyError, match=r"plan: budget = 12000 where this has 9000.*--run"):
        new_run(tmp_path, Plan(estimator="two-stage", budget=9000, top_k=10))
    with pytest.raises(ShapleyError, match="game: model"):
        new_run(tmp_path, model="synthetic:4x65")
    with pytest.raises(ShapleyError, match="--shards 0"):
        new_run(tmp_path / "x", shards=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShapleyError, match="not a run folder"):
        RunFolder(tmp_path / "empty")
    with pytest.raises(ShapleyError, match="no run folder"):
        RunFolder(tmp_path / "nothing")


def test_a_folder_for_which_nothing_was_done_gives_way(tmp_path):
    """A command that was wrong is put right without another folder."""
    wrong = new_run(tmp_path, Plan(estimator="tmab", budget=100_000))
    with pytest.raises(ShapleyError, match="one unit after another"):
        prepare(wrong, show=False)
    run = new_run(tmp_path)
    assert run.path == wrong.path and run.plan == PLANS["two-stage"]
    to_the_end(run)
    assert_same(run, PLANS["two-stage"])


def test_other_code_than_was_submitted_is_refused(tmp_path, monkeypatch):
    run = new_run(tmp_path)
    assert (run.code / "shapley" / "jobs" / "worker.py").exists()
    monkeypatch.setattr("shapley.jobs.folder.code_digest", lambda: "0" * 64)
    for action in (lambda: prepare(run, show=False), lambda: work(run, 0, 1), lambda: merge(run, show=False)):
        with pytest.raises(ShapleyError, match=r"other code.*PYTHONPATH"):
            action()


def test_what_cannot_be_shared_is_refused(tmp_path):
    run = new_run(tmp_path, Plan(estimator="tmab", budget=100_000))
    with pytest.raises(ShapleyError, match="'tmab' does one unit after another"):
        prepare(run, show=False)
    run = create(tmp_path / "b", TOPICS, PLANS["gradient"], SYNTHETIC, 1, [])
    with pytest.raises(ShapleyError, match="was not prepared"):
        merge(run, show=False)
    with pytest.raises(ShapleyError, match="was not prepared"):
        work(run, 0, 1)
    with pytest.raises(ShapleyError, match="shard 5 of 3"):
        work(run, 5, 3)


def test_long_walks_are_cut_into_stretches(tmp_path, monkeypatch):
    """Stretches that end within a chunk of the walk's, at its end, and at the last player."""
    monkeypatch.setattr("shapley.estimators.permutation._PART_ROWS", 600)
    plan = PLANS["permutation"]
    run = new_run(tmp_path, plan)
    prepare(run, show=False)
    present = TopicStream(run.topics[0], []).present()
    assert len(present.items) == 5 * 2 * 4  # pairs, walks, 256 players in stretches of 64
    to_the_end(run, 3)
    assert_same(run, plan)


def test_the_device_reaches_the_tasks(tmp_path):
    commands = {link.step.name: link.step.command for link in chain(tmp_path, 5, "spread")}
    assert commands["work"][-2:] == commands["prepare"][-2:] == ("--device", "spread")
    assert "--device" not in commands["merge"]


def test_the_chain_waits_for_the_right_things(tmp_path):
    links = chain(tmp_path, 5)
    assert links[0].step.name == "prepare" and len(links) % 2 == 1
    assert [link.kind for link in links[1:3]] == ["afterok", "afterany"]
    assert {link.step.array for link in links if link.step.name == "work"} == {5}
    assert all(not link.step.gpu for link in links if link.step.name == "merge")


@pytest.mark.parametrize("action", [prepare, merge])
def test_status_says_why_a_step_failed_until_it_succeeds(tmp_path, monkeypatch, action):
    run = new_run(tmp_path)
    if action is merge:
        prepare(run, show=False)
    with monkeypatch.context() as patch:
        patch.setattr("shapley.jobs.advance.job_of", lambda run: (_ for _ in ()).throw(ShapleyError("no such model")))
        with pytest.raises(ShapleyError):
            action(run)
    found = status(run)
    assert [report.error for report in found.failed] == ["no such model"]
    said = describe(run, found)
    assert f"{action.__name__} on " in said and "failed: no such model" in said and "0 failed" in said
    action(run, show=False)
    assert "failed:" not in describe(run, status(run))


def test_a_failed_preparation_takes_the_rest_out_of_the_queue(tmp_path, monkeypatch):
    run = create(tmp_path / "run", TOPICS, Plan(estimator="tmab"), SYNTHETIC, 3, [])
    ended = []
    monkeypatch.setattr("shapley.jobs.advance.end_chain", ended.append)
    with pytest.raises(ShapleyError, match="cannot be shared"):
        prepare(run, show=False)
    assert ended == [run]


def test_two_merges_may_put_the_same_segment_aside(tmp_path, monkeypatch):
    run = new_run(tmp_path, PLANS["gradient"])
    prepare(run, show=False)
    work(run, 0, 1)
    (path,) = list(run.topics[0].path.glob("round-0000/*.segment"))[:1]
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    rename = Path.rename

    def twice(self, target):
        rename(self, target)
        rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.rename", twice)
        assert str(path) in merge(run, show=False).damaged[0]


def test_mistakes_that_submit_knows(tmp_path):
    run = new_run(tmp_path, PLANS["gradient"])
    prepare(run, show=False)
    with pytest.raises(ShapleyError, match="has nothing in the queue that workers could help with"):
        add_workers(run, 1, Profile())
    with pytest.raises(ShapleyError, match="cannot be shared among shards"):
        check_apart("tmab")
    check_apart("auto")
    assert status(run).left is None and "NaN" not in json.dumps(asdict(status(run)), default=str)


def test_a_killed_worker_here_is_one_line(tmp_path):
    run = new_run(tmp_path, PLANS["gradient"], model="synthetic:4x64@1")

    def kill():
        while not list(run.workers.glob("0000*.json")):
            time.sleep(0.1)
        os.kill(workers_among(children_of(os.getpid()))[0], signal.SIGKILL)

    threading.Thread(target=kill).start()
    with pytest.raises(ShapleyError, match="a worker process was killed"):
        run_here(run, ["cpu", "cpu"], 1, show=False)
