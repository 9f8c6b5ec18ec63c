"""Sweeps in run folders: any number of shards gives the records of ``shapley.sweep``, to the bit."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from shapley.cli import main as entry
from shapley.clusters import Cluster
from shapley.errors import ShapleyError
from shapley.hf.load import load_model
from shapley.impairment import Impairment
from shapley.jobs.advance import merge, prepare
from shapley.jobs.folder import RunFolder
from shapley.jobs.local import run_here
from shapley.jobs.sealed import write_sealed
from shapley.jobs.segments import Item, read_header
from shapley.jobs.status import describe, status
from shapley.jobs.sweep import create_sweep, sweep_record
from shapley.jobs.worker import work
from shapley.records import read_sweep
from shapley.sweeps import sweep
from tests.test_jobs import a_link_for_each_round  # noqa: F401  (a fixture)
from tests.test_sweeps import TOPICS, assert_same_records
from tests.test_workers import save_model

CLUSTERS = {"c": Cluster(((0, 3), (0, 7), (2, 20))), "everything": None}
NOISE = Impairment("noise", seed=5)
STRENGTHS = [0.5, 1.0]
BLOCKS = 1 + 4 * 2  # the untouched model; c, two random controls and everything, at two strengths


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    return folder


def new_run(model, tmp_path, shards=2, impairment=NOISE, clusters=CLUSTERS, topics=TOPICS, **changes):
    record = sweep_record(
        str(model),
        trust_remote_code=False,
        impairment=json.loads(impairment.to_json()),
        strengths=STRENGTHS,
        seeds=2,
        random=2,
        dtype="float32",
        memory=None,
    )
    return create_sweep(tmp_path / "run", topics, clusters, record | changes, shards, ["shapley", "submit"])


def to_the_end(run, shards):
    prepare(run, show=False)
    for shard in range(shards):
        assert work(run, shard, shards) == "done"
    assert merge(run, show=False).finished


def alone(model, out, impairment=NOISE, clusters=CLUSTERS, **options):
    lm = load_model(str(model), device="cpu")
    options = {"n_seeds": 2, "n_random": 2, "dtype": "float32", "show": False} | options
    return sweep(lm, TOPICS, clusters, impairment, STRENGTHS, out, **options)


def segments(run):
    return sorted((run.path / "sweep" / "round-0000").glob("*.segment"))


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_any_number_of_shards_gives_the_records_of_one_process(model, tmp_path, shards):
    run = new_run(model, tmp_path, shards)
    to_the_end(run, shards)
    found, expected = read_sweep(run.path / "sweep.h5"), alone(model, tmp_path / "alone.h5")
    assert_same_records(found, expected)
    np.testing.assert_array_equal(found.strengths, expected.strengths)
    np.testing.assert_array_equal(found.absolute, expected.absolute)
    assert found.impairment == expected.impairment
    assert json.loads(found.attrs.pop("argv")) == ["shapley", "submit"]
    assert found.attrs.pop("wall_seconds") > 0
    assert found.attrs == {name: expected.attrs[name] for name in found.attrs}


@pytest.mark.parametrize(
    "impairment",
    [Impairment("noise", unit="sd", site="mlp_out"), Impairment("mean"), Impairment("scale", site="mlp_in")],
    ids=lambda impairment: f"{impairment.kind} at {impairment.site}",
)
def test_what_the_model_decides_is_decided_once(model, tmp_path, impairment):
    """Footprints, standard deviations and seeds, frozen by ``prepare``."""
    run = new_run(model, tmp_path, impairment=impairment)
    to_the_end(run, 2)
    found, expected = read_sweep(run.result), alone(model, tmp_path / "alone.h5", impairment)
    assert_same_records(found, expected)
    np.testing.assert_array_equal(found.absolute, expected.absolute)
    assert found.attrs["settings"] == expected.attrs["settings"]


def test_a_sweep_can_be_drawn_from_the_result(model, tmp_path):
    """``shapley sweep --resume`` finds it made with its own settings, and measures nothing."""
    run = new_run(model, tmp_path)
    to_the_end(run, 2)
    before = run.result.read_bytes()
    assert_same_records(alone(model, run.result, resume=True), read_sweep(run.result))
    assert run.result.read_bytes() == before


def test_the_model_is_not_needed_to_merge(model, tmp_path):
    """Nor are the cluster files, which are copied, nor torch."""
    lent, clusters = tmp_path / "lent", tmp_path / "c.json"
    shutil.copytree(model, lent)
    CLUSTERS["c"].save(clusters)
    run = new_run(lent, tmp_path, clusters={"c": Cluster.load(clusters), "everything": None})
    clusters.unlink()
    prepare(run, show=False)
    work(run, 0, 1)
    shutil.rmtree(lent)
    code = (
        "import sys; from shapley.jobs.advance import merge; from shapley.jobs.folder import RunFolder; "
        "sys.exit(not merge(RunFolder(sys.argv[1])).finished or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code, run.path], stderr=subprocess.DEVNULL).returncode == 0
    assert_same_records(read_sweep(run.result), alone(model, tmp_path / "alone.h5"))


def test_two_processes_here(model, tmp_path):
    run = new_run(model, tmp_path)
    run_here(run, ["cpu", "cpu"], 1, show=False)
    assert_same_records(read_sweep(run.result), alone(model, tmp_path / "alone.h5"))


def test_what_is_damaged_is_named_and_computed_again(model, tmp_path):
    run = new_run(model, tmp_path)
    prepare(run, show=False)
    work(run, 0, 1)
    first = segments(run)[0]
    flip(first, -1)
    standing = merge(run, show=False)
    assert str(first) in standing.damaged[0] and standing.missing["sweep"] and not run.result.exists()
    to_the_end(run, 1)
    assert_same_records(read_sweep(run.result), alone(model, tmp_path / "alone.h5"))


def test_an_item_in_two_segments_counts_once(model, tmp_path):
    run = new_run(model, tmp_path)
    prepare(run, show=False)
    work(run, 0, 1)
    for path in segments(run):
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    merge(run, show=False)
    expected = alone(model, tmp_path / "alone.h5")
    assert_same_records(read_sweep(run.result), expected)
    assert read_sweep(run.result).attrs["forward_rows"] == expected.attrs["forward_rows"]


def test_items_are_blocks(model, tmp_path):
    run = new_run(model, tmp_path)
    prepare(run, show=False)
    work(run, 0, 1)
    found = [item for path in segments(run) for item in read_header(path)[1]]
    assert sorted(found) == [Item(0, 0), *(Item(arm, level) for arm in range(4) for level in (1, 2))]


class TestStatus:
    def test_from_nothing_to_the_end(self, model, tmp_path, monkeypatch):
        run = new_run(model, tmp_path)
        assert [stream.state for stream in status(run).topics] == ["not prepared"]
        prepare(run, show=False)
        (found,) = status(run).topics
        assert (found.topic, found.state, found.done, found.items, found.planned) == ("sweep", "working", 0, BLOCKS, 85)
        monkeypatch.setattr("shapley.jobs.worker.Worker._help", lambda *arguments: False)
        work(run, 0, 2)
        (found,) = status(run).topics
        assert (found.done, found.rows) == (4, 5 + 3 * 10)
        assert "sweep: working, round 0: 4 of 9 items, 35 of at most 85 rows" in describe(run, status(run))
        work(run, 1, 2)
        assert status(run).topics[0].state == "to be merged"
        merge(run, show=False)
        found = status(run)
        assert found.finished and found.topics[0].rows == 85 and not found.topics[0].top
        assert f"finished: records in {run.result}" in describe(run, found)

    def test_a_run_that_is_finished_is_left_as_it_is(self, model, tmp_path):
        run = new_run(model, tmp_path)
        to_the_end(run, 1)
        before = run.result.read_bytes()
        prepare(run, show=False)
        assert work(run, 0, 2) == "done" and merge(run, show=False).finished
        assert run.result.read_bytes() == before


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "change"),
        [
            ("sweep: strengths", {"strengths": [0.5, 2.0]}),
            ("sweep: seeds", {"seeds": 3}),
            ("sweep: random", {"random": 1}),
            ("sweep: impairment", {"impairment": Impairment("noise", seed=6)}),
            ("sweep: dtype", {"dtype": "bfloat16"}),
            ("clusters: c", {"clusters": {**CLUSTERS, "c": Cluster(((0, 4),))}}),
            ("clusters: everything", {"clusters": {"c": CLUSTERS["c"]}}),
            ("prompts: artist", {"topics": {"athlete": TOPICS["athlete"]}}),
        ],
    )
    def test_a_folder_belongs_to_one_configuration(self, model, tmp_path, name, change):
        run = new_run(model, tmp_path)
        assert new_run(model, tmp_path).record == run.record
        prepare(run, show=False)
        with pytest.raises(ShapleyError, match=f"{name} = .* where this has .*--run"):
            new_run(model, tmp_path, **change)

    def test_an_estimate_is_no_sweep(self, model, tmp_path):
        from shapley.estimators.registry import Plan
        from shapley.jobs.folder import create

        run = new_run(model, tmp_path)
        prepare(run, show=False)
        with pytest.raises(ShapleyError, match="kind = 'sweep' where this has 'estimate'"):
            create(run.path, TOPICS, Plan(), {}, 2, [])

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            (
                {"clusters": {"c": Cluster(((0, 3),), model={"name": "big", "fingerprint": "beef"})}},
                "another model: big",
            ),
            ({"clusters": {"c": Cluster(((0, 3), (3, 0)))}}, r"\(3, 0\)"),
            ({"clusters": {"c": Cluster(((0, 3),), "mlp_out")}}, "holds dimensions of mlp_out"),
            ({"clusters": {"c": Cluster(tuple((0, i) for i in range(20)))}}, "--random 0"),
            ({"impairment": Impairment("shift", scope="batch")}, "scope 'batch'"),
            ({"strengths": [-1.0]}, "at least 0"),
        ],
    )
    def test_what_does_not_fit_the_model_is_refused_before_any_work(self, model, tmp_path, change, words):
        run = new_run(model, tmp_path, **change)
        with pytest.raises(ShapleyError, match=words):
            prepare(run, show=False)
        with pytest.raises(ShapleyError, match="was not prepared"):
            work(run, 0, 2)
        with pytest.raises(ShapleyError, match="was not prepared"):
            merge(run, show=False)

    def test_a_model_that_changed_is_refused(self, model, tmp_path):
        """In place, since the run was prepared."""
        lent = tmp_path / "lent"
        shutil.copytree(model, lent)
        run = new_run(lent, tmp_path)
        prepare(run, show=False)
        lm = load_model(str(model), device="cpu")
        next(lm.model.parameters()).data[0] += 1
        lm.model.save_pretrained(lent)
        with pytest.raises(ShapleyError, match=f"prepared with another model: .* had fingerprint {lm.fingerprint}"):
            work(run, 0, 2)

    def test_segments_of_another_run(self, model, tmp_path):
        run = new_run(model, tmp_path)
        (tmp_path / "b").mkdir()
        other = new_run(model, tmp_path / "b", seeds=3)
        for one in (run, other):
            prepare(one, show=False)
        work(other, 0, 1)
        shutil.copy(segments(other)[0], run.path / "sweep" / "round-0000")
        with pytest.raises(ShapleyError, match=f"{segments(other)[0].name}.*other settings"):
            merge(run, show=False)

    def test_no_shards(self, model, tmp_path):
        with pytest.raises(ShapleyError, match="--shards 0"):
            new_run(model, tmp_path, shards=0)


class TestCommands:
    """Of ``shapley submit sweep``."""

    @pytest.fixture
    def shapley(self, monkeypatch, capsys):
        """Returns exit code, standard output, standard error."""

        def run(*words):
            monkeypatch.setattr(sys, "argv", ["shapley", *map(str, words)])
            with pytest.raises(SystemExit) as stop:
                entry.main()
            return stop.value.code, *capsys.readouterr()

        return run

    @pytest.fixture
    def words(self, model, tmp_path):
        """The same for ``sweep`` and ``submit sweep``."""
        prompts, cluster = tmp_path / "p.jsonl", tmp_path / "c.json"
        lines = [
            {"topic": topic, "prompt": prompt.prompt, "answer": prompt.answer}
            for topic, group in TOPICS.items()
            for prompt in group.prompts
        ]
        prompts.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        CLUSTERS["c"].save(cluster)
        return ("--model", model, "--prompts", prompts, "--cluster", cluster, "--cluster", "all", "--strength", "0,0.5,1",
                "--impairment", "noise", "--noise-seed", 5, "--seeds", 2, "--random", 2, "--dtype", "float32")  # fmt: skip

    def test_here(self, shapley, words, tmp_path):
        run = tmp_path / "run"
        code, _, err = shapley("submit", "sweep", *words, "--run", run, "--shards", 2, "--here", "--device", "cpu")
        assert code == 0 and "finished: records in" in err, err
        code, _, err = shapley("sweep", *words, "--out", tmp_path / "alone.h5", "--device", "cpu")
        assert code == 0, err
        found, expected = read_sweep(run / "sweep.h5"), read_sweep(tmp_path / "alone.h5")
        assert_same_records(found, expected)
        assert found.attrs["settings"] == expected.attrs["settings"]
        code, out, _ = shapley("merge", run)
        assert code == 0 and out == f"finished: {run / 'sweep.h5'}\n"
        code, _, err = shapley("submit", "sweep", *words, "--random", 1, "--run", run, "--here")
        assert code == 2 and "sweep: random = 2 where this has 1" in err

    def test_a_dry_run_does_nothing(self, shapley, words, tmp_path):
        (tmp_path / "site.yaml").write_text("partition: main\ntime: 01:00:00\n")
        run = tmp_path / "run"
        code, out, err = shapley(
            "submit", "sweep", *words, "--run", run, "--shards", 3, "--profile", tmp_path / "site.yaml", "--dry-run"
        )
        assert code == 0 and not run.exists(), err
        assert "#SBATCH --array=0-2" in out and f"work {run} --shard" in out and out.count("sbatch --parsable") > 2

    def test_the_missing_are_named(self, shapley, model, tmp_path):
        run = new_run(model, tmp_path)
        prepare(run, show=False)
        code, out, _ = shapley("merge", run.path)
        assert code == 0
        assert "sweep: 9 items missing: the untouched model, c at strength 0.5, c at strength 1, c/random-1" in out

    @pytest.mark.parametrize(
        ("extra", "line"),
        [
            (["--here", "--profile", "site.yaml"], "--profile SITE.yaml to submit to Slurm, or --here"),
            ([], "--profile SITE.yaml to submit to Slurm, or --here"),
            (["--here", "--dry-run"], "give it a --profile"),
            (["--here", "--shards", "0"], "--shards 0 must be at least 1"),
            (["--here", "--cluster", "all"], "two clusters are called 'everything'"),
            (["--here", "--strength", "a"], "expected numbers"),
            (["--here", "--prompts", "none.jsonl"], "no prompts file at none.jsonl"),
            (["--here", "--topic", "athlet"], "did you mean 'athlete'"),
        ],
    )
    def test_mistakes(self, shapley, words, tmp_path, extra, line):
        code, _, err = shapley("submit", "sweep", *words, "--run", tmp_path / "run", *extra)
        assert code == 2 and line in err and err.count("\n") == 1
        assert not (tmp_path / "run").exists()


def test_a_run_of_an_unknown_kind_is_refused(model, tmp_path):
    run = new_run(model, tmp_path)
    write_sealed(run.path / "run.json", run.record | {"kind": "dream"})
    with pytest.raises(ShapleyError, match="kind 'dream'"):
        RunFolder(run.path)


def test_a_damaged_cluster_or_design_is_named(model, tmp_path):
    run = new_run(model, tmp_path)
    (cluster,) = run.path.glob("clusters/*.json")
    whole = cluster.read_bytes()
    cluster.write_bytes(whole.replace(b"20", b"21"))
    with pytest.raises(ShapleyError, match=f"{cluster} is damaged, or was changed: copy the cluster file"):
        prepare(run, show=False)
    cluster.write_bytes(whole)
    prepare(run, show=False)
    design = run.path / "sweep" / "design.json"
    flip(design, 100)
    with pytest.raises(ShapleyError, match=f"{design} is damaged: 'shapley prepare {run.path}' makes it again"):
        work(RunFolder(run.path), 0, 1)
    prepare(RunFolder(run.path), show=False)
    to_the_end(RunFolder(run.path), 1)
    assert_same_records(read_sweep(run.result), alone(model, tmp_path / "alone.h5"))
