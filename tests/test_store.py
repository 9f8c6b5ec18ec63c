"""Score files and checkpoints: the HDF5 contract read with plain h5py, whole or not at all, and every refusal."""

from __future__ import annotations

import dataclasses
import errno
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from shapley.errors import ShapleyError
from shapley.files import cache_directory, write_text
from shapley.hdf5 import DIGEST
from shapley.records import read_sweep, write_sweep
from shapley.store import ScoreFile, TopicScores, read_checkpoint, write_checkpoint, write_scores
from tests.test_records import sweep_of

MODEL = {
    "name": "tiny",
    "revision": "local",
    "fingerprint": "f00d",
    "architecture": "TinyForCausalLM",
    "n_layers": 2,
    "d_mlp": 6,
}
ARRAYS = {"score": np.float64, "stderr": np.float64, "count": np.int64, "truncated": np.int64, "replicates": np.float32}
FULL = "cannot write .*: the disk is full"


def topic_attrs(seed=0, **settings):
    settings = {"estimator": "permutation", "samples": 64, "seed": seed, "impairment": {"kind": "zero"}} | settings
    return {
        "estimator": "permutation",
        "semivalue": "shapley",
        "value": "logprob",
        "site": "mlp_hidden",
        "seed": seed,
        "n_prompts": 8,
        "value_full": -1.0,
        "value_empty": -9.0,
        "efficiency_gap": 0.5,
        "forward_rows": 100,
        "wall_seconds": 2.0,
        "details": json.dumps({"samples": 64}),
        "settings": json.dumps(settings),
    }


def topic_scores(key=0, shape=(2, 6), seed=0):
    rng = np.random.default_rng(key)
    return TopicScores(
        rng.normal(size=shape),
        rng.random(shape),
        rng.integers(1, 99, shape),
        rng.integers(0, 9, shape),
        rng.normal(size=(16, *shape)).astype(np.float32),
        topic_attrs(seed),
    )


@pytest.fixture
def path(tmp_path):
    """A score file with topics ``artist`` and ``athlete``."""
    write_scores(tmp_path / "s.h5", MODEL, {"athlete": topic_scores(1), "artist": topic_scores(2)}, keep=False)
    return tmp_path / "s.h5"


def assert_same(group, scores):
    for name in ARRAYS:
        np.testing.assert_array_equal(group[name][()], getattr(scores, name))


def unsealed(group):
    """A group's attributes without the digest."""
    return {name: value for name, value in group.attrs.items() if name != DIGEST}


class TestContract:
    def test_root_and_model(self, path):
        with h5py.File(path) as file:
            assert unsealed(file) == {"format": "neuron-shapley", "version": 1}
            assert unsealed(file["model"]) == MODEL
            assert set(file) == {"model", "topics"}

    def test_topics_hold_their_arrays_and_attributes(self, path):
        with h5py.File(path) as file:
            group = file["topics/athlete"]
            assert set(group) == set(ARRAYS)
            assert {name: group[name].dtype for name in group} == ARRAYS
            assert group["score"].shape == group["stderr"].shape == group["count"].shape == (2, 6)
            assert group["replicates"].shape == (16, 2, 6)
            assert_same(group, topic_scores(1))
            assert unsealed(group) == topic_attrs()

    def test_read_back(self, path):
        file = ScoreFile(path)
        assert sorted(file.topics) == ["artist", "athlete"]
        assert file.model == MODEL
        assert_same(vars(file["artist"]), topic_scores(2))
        assert file["artist"].attrs == file.attrs("artist") == topic_attrs()
        np.testing.assert_array_equal(file.array("artist", "count"), topic_scores(2).count)

    def test_attributes_come_back_as_plain_python(self, path):
        assert {type(value) for value in ScoreFile(path).attrs("artist").values()} == {str, int, float}

    def test_not_estimated_stays_nan(self, tmp_path):
        scores = topic_scores()
        scores.score[1], scores.stderr[1] = np.nan, np.nan
        write_scores(tmp_path / "s.h5", MODEL, {"t": scores}, keep=False)
        assert np.isnan(ScoreFile(tmp_path / "s.h5")["t"].score).sum(axis=1).tolist() == [0, 6]


class TestKeep:
    def test_other_topics_stay_and_the_same_one_is_replaced(self, path):
        new = topic_scores(3, seed=7)
        write_scores(path, MODEL, {"athlete": new, "company": topic_scores(4)}, keep=True)
        file = ScoreFile(path)
        assert sorted(file.topics) == ["artist", "athlete", "company"]
        assert_same(vars(file["artist"]), topic_scores(2))
        assert_same(vars(file["athlete"]), new)
        assert file.attrs("athlete")["seed"] == 7

    def test_other_groups_survive(self, path):
        with h5py.File(path, "a") as file:
            file["notes/mine"] = np.arange(3)
            file["notes"].attrs["why"] = "because"
        write_scores(path, MODEL, {"company": topic_scores(4)}, keep=True)
        with h5py.File(path) as file:
            assert file["notes/mine"][()].tolist() == [0, 1, 2]
            assert file["notes"].attrs["why"] == "because"

    def test_without_keep_the_file_is_new(self, path):
        write_scores(path, MODEL, {"company": topic_scores(4)}, keep=False)
        assert ScoreFile(path).topics == ["company"]

    def test_keep_without_a_file_makes_one(self, tmp_path):
        write_scores(tmp_path / "new.h5", MODEL, {"t": topic_scores()}, keep=True)
        assert ScoreFile(tmp_path / "new.h5").topics == ["t"]

    def test_keep_refuses_what_is_not_a_score_file(self, tmp_path):
        (tmp_path / "s.h5").write_text("precious")
        with pytest.raises(ShapleyError, match="not an HDF5 file"):
            write_scores(tmp_path / "s.h5", MODEL, {"t": topic_scores()}, keep=True)
        assert (tmp_path / "s.h5").read_text() == "precious"


def strip(path):
    """Make a file as it was before there were digests."""
    with h5py.File(path, "a") as file:
        items = [file]
        file.visititems(lambda _, item: items.append(item))
        for item in items:
            item.attrs.pop(DIGEST)
    assert DIGEST.encode() not in path.read_bytes()[-200:]


class TestFilesOfBefore:
    def test_scores_are_read(self, path):
        strip(path)
        file = ScoreFile(path)
        assert file.model == MODEL and file.topics == ["artist", "athlete"]
        assert_same(vars(file["artist"]), topic_scores(2))
        assert file["artist"].attrs == file.attrs("artist") == topic_attrs()
        assert file.groups("artist") is None

    def test_topics_that_are_kept_get_digests(self, path):
        strip(path)
        write_scores(path, MODEL, {"company": topic_scores(4)}, keep=True)
        assert_same(vars(ScoreFile(path)["artist"]), topic_scores(2))
        with h5py.File(path) as file:
            group = file["topics/artist"]
            assert DIGEST in group.attrs and all(DIGEST in item.attrs for item in group.values())

    def test_checkpoints_are_read(self, tmp_path):
        np.savez(tmp_path / "c.npz", settings=np.array("{}"), **STATE)
        settings, state = read_checkpoint(tmp_path / "c.npz")
        assert settings == "{}" and state.keys() == STATE.keys()

    def test_sweeps_are_read(self, tmp_path):
        write_sweep(tmp_path / "s.h5", sweep_of(RECORDS))
        whole = plain(read_sweep(tmp_path / "s.h5"))
        strip(tmp_path / "s.h5")
        assert plain(read_sweep(tmp_path / "s.h5")) == whole


def fails(monkeypatch, where, error):
    """Make a method of h5py's groups fail at its third call."""
    calls = iter(range(99))
    original = getattr(h5py.Group, where)

    def method(*args, **options):
        if next(calls) == (2 if where == "create_dataset" else 0):
            raise error
        return original(*args, **options)

    monkeypatch.setattr(h5py.Group, where, method)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("boom"), MemoryError()], ids=repr)
def test_what_stops_a_write_leaves_the_old_file(path, monkeypatch, error, keep):
    before = path.read_bytes()
    fails(monkeypatch, "create_dataset", error)
    with pytest.raises(type(error)):
        write_scores(path, MODEL, {"athlete": topic_scores(3)}, keep=keep)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("where", ["create_dataset", "copy"])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("Can't write data (errno = 28, error message = 'No space left on device')"),
        RuntimeError("Unable to copy (errno = 28, error message = 'No space left on device')"),
    ],
    ids=["errno", "OSError", "RuntimeError"],
)
def test_a_full_disk_is_told_in_one_line_and_leaves_the_old_file(path, monkeypatch, error, where):
    before = path.read_bytes()
    fails(monkeypatch, where, error)
    with pytest.raises(ShapleyError, match=FULL) as caught:
        write_scores(path, MODEL, {"athlete": topic_scores(3)}, keep=True)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_at_the_last_flush_is_told_too(path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    before = path.read_bytes()
    monkeypatch.setattr("os.fsync", fsync)
    for write in (
        lambda: write_scores(path, MODEL, {"t": topic_scores()}, keep=True),
        lambda: write_checkpoint(path, "{}", {}),
        lambda: write_text(path, "text"),
    ):
        with pytest.raises(ShapleyError, match=FULL):
            write()
        assert path.read_bytes() == before
        assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_scores(path, MODEL, {"t": topic_scores()}, keep=False),
        lambda path: write_checkpoint(path, "{}", {}),
        lambda path: write_text(path, "text"),
    ],
    ids=["scores", "checkpoint", "text"],
)
def test_a_missing_folder_is_named(tmp_path, write):
    with pytest.raises(ShapleyError, match=r"the folder .*/nowhere does not exist"):
        write(tmp_path / "nowhere" / "file")


class TestRefusals:
    @pytest.mark.parametrize(
        ("damage", "words"),
        [
            (lambda p: p.unlink(), "no score file at"),
            (lambda p: p.write_text("topic,score\nathlete,1\n"), "not an HDF5 file"),
            (lambda p: p.write_bytes(b""), "not an HDF5 file"),
            (lambda p: p.write_bytes(p.read_bytes()[:-1000]), "cut short"),
        ],
        ids=["missing", "csv", "empty", "truncated"],
    )
    def test_files_that_cannot_be_read(self, path, damage, words):
        damage(path)
        with pytest.raises(ShapleyError, match=words):
            ScoreFile(path)

    @pytest.mark.parametrize(
        ("name", "value", "words"),
        [
            ("format", "neuron-shapley-sweep", "is not a score file.*'neuron-shapley-sweep'"),
            ("format", None, "is not a score file"),
            ("version", 2, "version 2, this program reads version 1"),
            ("version", None, "version None"),
        ],
    )
    def test_other_formats_and_versions(self, path, name, value, words):
        with h5py.File(path, "a") as file:
            del file.attrs[name]
            if value is not None:
                file.attrs[name] = value
        with pytest.raises(ShapleyError, match=words):
            ScoreFile(path)

    @pytest.mark.parametrize("part", ["model", "topics"])
    def test_a_group_is_missing(self, path, part):
        with h5py.File(path, "a") as file:
            del file[part]
        with pytest.raises(ShapleyError, match=f"cannot read score file.*{part}"):
            ScoreFile(path)

    def test_an_array_is_missing(self, path):
        with h5py.File(path, "a") as file:
            del file["topics/artist/stderr"]
        with pytest.raises(ShapleyError, match=r"cannot read score file.*stderr"):
            ScoreFile(path)["artist"]

    @pytest.mark.parametrize(
        "ask",
        [lambda f, t: f[t], lambda f, t: f.attrs(t), lambda f, t: f.array(t, "score")],
        ids=["all", "attrs", "array"],
    )
    @pytest.mark.parametrize(("topic", "words"), [("athlet", "did you mean 'athlete'"), ("zzz", "artist, athlete")])
    def test_an_unknown_topic_is_told_the_nearest(self, path, ask, topic, words):
        with pytest.raises(ShapleyError, match=words):
            ask(ScoreFile(path), topic)

    def test_another_model(self, path):
        file = ScoreFile(path)
        file.check_model(MODEL | {"name": "renamed"})
        with pytest.raises(ShapleyError, match=r"another model.*tiny.*f00d.*other.*beef"):
            file.check_model(MODEL | {"name": "other", "fingerprint": "beef"})


STATE = {"unit": np.array(3), "mean": np.linspace(0, 1, 200), "seen": np.array([True, False])}


class TestCheckpoints:
    def test_round_trip(self, tmp_path):
        write_checkpoint(tmp_path / "c", '{"seed": 1}', STATE)
        settings, state = read_checkpoint(tmp_path / "c")
        assert settings == '{"seed": 1}'
        assert state.keys() == STATE.keys()
        for name, value in STATE.items():
            np.testing.assert_array_equal(state[name], value)
            assert state[name].dtype == value.dtype

    @pytest.mark.parametrize("size", [0, 4, 300, -5])
    def test_one_cut_short_is_refused(self, tmp_path, size):
        path = tmp_path / "c"
        write_checkpoint(path, "{}", STATE)
        path.write_bytes(path.read_bytes()[:size])
        with pytest.raises(ShapleyError, match=r"cannot read checkpoint.*--overwrite"):
            read_checkpoint(path)

    @pytest.mark.parametrize("content", [b"text", b"\x80\x04pickle"])
    def test_what_is_not_one_is_refused(self, tmp_path, content):
        (tmp_path / "c").write_bytes(content)
        with pytest.raises(ShapleyError, match="cannot read checkpoint"):
            read_checkpoint(tmp_path / "c")

    def test_a_missing_one_is_refused(self, tmp_path):
        with pytest.raises(ShapleyError, match="cannot read checkpoint"):
            read_checkpoint(tmp_path / "c")

    def test_pickles_are_not_loaded(self, tmp_path):
        np.savez(tmp_path / "c.npz", settings=np.array("{}"), evil=np.array([{"a": 1}], dtype=object))
        with pytest.raises(ShapleyError, match="cannot read checkpoint"):
            read_checkpoint(tmp_path / "c.npz")

    def test_an_interrupted_write_leaves_the_old_one(self, tmp_path, monkeypatch):
        path = tmp_path / "c"
        write_checkpoint(path, "{}", STATE)
        before = path.read_bytes()

        def savez(*args, **arrays):
            raise KeyboardInterrupt

        monkeypatch.setattr(np, "savez", savez)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(path, "{}", {})
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]


RECORDS = {"a": -np.linspace(0, 1, 120).reshape(4, 3, 2, 5), "b": -np.linspace(0, 2, 168).reshape(4, 3, 2, 7)}


def plain(found):
    """Anything that is read, as what can be compared to the bit."""
    if isinstance(found, np.ndarray):
        return found.dtype.str, found.shape, found.tobytes()
    if dataclasses.is_dataclass(found):
        return plain(vars(found))
    if isinstance(found, dict):
        return {name: plain(value) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [plain(value) for value in found]
    return type(found), repr(found)


def make_scores(path):
    grouped = dataclasses.replace(
        topic_scores(1),
        exact=np.array([[False, True, False, True, True, False]] * 2),
        group=np.array([[0, 0, 1, 1, -1, -1]] * 2),
        group_names=("first", "zweite – ü"),
    )
    write_scores(path, MODEL, {"athlete": grouped, "artist": topic_scores(2)}, keep=False)


def queries(path):
    """Every way to ask a score file, each opening it anew: what is intact is read whatever else is damaged."""
    yield lambda: (ScoreFile(path).model, ScoreFile(path).topics)
    for topic in ("athlete", "artist"):
        yield lambda topic=topic: ScoreFile(path)[topic]
        yield lambda topic=topic: ScoreFile(path).attrs(topic)
        yield lambda topic=topic: ScoreFile(path).groups(topic)
        for name in ARRAYS:
            yield lambda topic=topic, name=name: ScoreFile(path).array(topic, name)


KINDS = {
    "scores": (make_scores, queries),
    "sweep": (lambda path: write_sweep(path, sweep_of(RECORDS)), lambda path: [lambda: read_sweep(path)]),
    "checkpoint": (
        lambda path: write_checkpoint(path, '{"seed": 1}', STATE),
        lambda path: [lambda: read_checkpoint(path)],
    ),
}


@pytest.fixture(params=KINDS)
def made(request, tmp_path):
    """A file of each kind, and the ways to read it."""
    make, reads = KINDS[request.param]
    make(tmp_path / "file")
    return tmp_path / "file", list(reads(tmp_path / "file"))


class TestDamage:
    """Whatever happens to a file, what is read is what was written, or one line that names the file."""

    def check(self, path, reads, whole):
        """How many reads were refused."""
        refused = 0
        for read, expected in zip(reads, whole, strict=True):
            try:
                assert plain(read()) == expected
            except ShapleyError as error:
                refused += 1
                assert str(path) in str(error) and "\n" not in str(error)
        return refused

    def test_a_byte_is_another(self, made):
        path, reads = made
        whole, content, rng = [plain(read()) for read in reads], path.read_bytes(), np.random.default_rng(0)
        refused = []
        for _ in range(300):
            damaged = bytearray(content)
            damaged[rng.integers(len(content))] ^= rng.integers(1, 256)
            path.write_bytes(damaged)
            refused.append(self.check(path, reads, whole))
        assert np.count_nonzero(refused) > 250  # the rest hit the padding of an archive, say

    def test_it_is_cut_short(self, made):
        path, reads = made
        whole, content, rng = [plain(read()) for read in reads], path.read_bytes(), np.random.default_rng(0)
        for size in (0, 1, len(content) - 1, *rng.integers(len(content), size=297)):
            path.write_bytes(content[:size])
            self.check(path, reads, whole)
        path.write_bytes(content[: len(content) // 2])
        assert self.check(path, reads, whole) == len(reads)

    def test_a_block_is_lost(self, made):
        path, reads = made
        whole, content, rng = [plain(read()) for read in reads], path.read_bytes(), np.random.default_rng(0)
        for start in rng.integers(
            len(content) - 600, size=100
        ):  # ends before the last line, which tells what to verify
            path.write_bytes(content[:start] + bytes(512) + content[start + 512 :])
            self.check(path, reads, whole)

    @pytest.mark.parametrize("name", ["score", "replicates", "group"])
    def test_the_damaged_array_is_named_and_the_others_are_read(self, tmp_path, name):
        path = tmp_path / "s.h5"
        make_scores(path)
        with h5py.File(path) as file:
            place = file["topics/athlete"][name].id.get_offset()
        content = bytearray(path.read_bytes())
        content[place] ^= 1
        path.write_bytes(content)
        words = (
            rf"cannot read score file .*s\.h5: /topics/athlete/{name} is damaged, its checksum differs; make it again"
        )
        with pytest.raises(ShapleyError, match=words):
            ScoreFile(path)["athlete"]
        file = ScoreFile(path)
        file.array("athlete", "stderr"), file.attrs("athlete"), file["artist"]
        write_scores(path, MODEL, {"company": topic_scores(4)}, keep=True)  # does not hide it, and loses nothing else
        with pytest.raises(ShapleyError, match=words):
            ScoreFile(path)["athlete"]
        write_scores(path, MODEL, {"athlete": topic_scores(5)}, keep=True)  # mends it
        assert_same(vars(ScoreFile(path)["athlete"]), topic_scores(5))

    @pytest.mark.parametrize(
        ("change", "part"),
        [
            (lambda file: file["topics/athlete"].attrs.modify("seed", 9), "/topics/athlete"),
            (lambda file: file["topics/athlete"].attrs.pop(DIGEST), "/topics"),
            (lambda file: file["topics/athlete/score"].attrs.pop(DIGEST), "/topics/athlete"),
            (lambda file: file["topics/athlete"].pop("exact"), "/topics/athlete"),
            (lambda file: file["topics/athlete"].move("score", "x"), "score"),
            (lambda file: file["topics"].move("athlete", "athlet"), "/topics"),
            (lambda file: file["topics"].pop("athlete"), "/topics"),
            (lambda file: file["model"].attrs.pop(DIGEST), "/model"),
            (lambda file: file["model"].attrs.modify("name", "huge"), "/model"),
            (lambda file: file.attrs.pop(DIGEST), "/"),
            (lambda file: file["topics/athlete/stderr"].write_direct(np.zeros((2, 6))), "/topics/athlete/stderr"),
        ],
    )
    def test_what_hdf5_itself_takes_for_whole(self, tmp_path, change, part):
        path = tmp_path / "s.h5"
        make_scores(path)
        with h5py.File(path, "a") as file:
            change(file)
        with pytest.raises(ShapleyError, match=f"cannot read score file .*s.h5: .*{part}.*; make it again"):
            ScoreFile(path)["athlete"]

    def test_arrays_that_changed_places(self, tmp_path):
        make_scores(tmp_path / "s.h5")
        with h5py.File(tmp_path / "s.h5", "a") as file:
            group = file["topics/athlete"]
            for old, new in (("score", "x"), ("stderr", "score"), ("x", "stderr")):
                group.move(old, new)
        with pytest.raises(ShapleyError, match="/topics/athlete/score is damaged"):
            ScoreFile(tmp_path / "s.h5").array("athlete", "score")

    def test_keeping_does_not_hide_a_lost_topic(self, path):
        with h5py.File(path, "a") as file:
            del file["topics/artist"]
        before = path.read_bytes()
        with pytest.raises(ShapleyError, match=r"cannot read score file .*: /topics is damaged"):
            write_scores(path, MODEL, {"company": topic_scores(4)}, keep=True)
        assert path.read_bytes() == before

    def test_a_file_without_permission_is_not_called_damaged(self, path, monkeypatch):
        def denied(*args, **options):
            raise PermissionError(errno.EACCES, "Unable to synchronously open file")

        monkeypatch.setattr(h5py, "File", denied)
        with pytest.raises(ShapleyError, match=r"cannot read score file .*: Permission denied$"):
            ScoreFile(path)


def test_no_locks_are_taken(path, monkeypatch):
    """HDF5 locks what it opens, which fails on network file systems without locks."""
    opened = []
    original = h5py.File.__init__

    def init(self, name, mode="r", **options):
        if isinstance(name, str | Path) or hasattr(name, "write"):  # and not an object, whose file is open
            opened.append((mode, isinstance(name, str | Path), options.get("locking")))
        original(self, name, mode, **options)

    monkeypatch.setattr(h5py.File, "__init__", init)
    write_scores(path, MODEL, {"t": topic_scores()}, keep=True)
    ScoreFile(path)["t"]
    write_sweep(path.with_name("w.h5"), sweep_of(RECORDS))
    read_sweep(path.with_name("w.h5"))
    assert set(opened) == {("r", True, False), ("w", False, None)}  # what is written is a file that Python opened


WRITER = """
import sys
from pathlib import Path
import numpy as np
from shapley.store import TopicScores, write_scores
for version in range(200):
    grid = np.full((20, 500), float(version % 2))
    whole, attrs = grid.astype(np.int64), {"version": version % 2, "padding": "x" * (version % 2 * 5000)}
    scores = TopicScores(grid, grid, whole, whole, np.stack([grid] * 4).astype(np.float32), attrs)
    write_scores(Path(sys.argv[1]), {"name": "tiny", "fingerprint": "f00d"}, {"t": scores}, keep=version % 3 == 0)
    if version == 0:
        print("ready", flush=True)
"""


def test_a_reader_never_sees_half_a_file_or_a_mix(tmp_path):
    path = tmp_path / "s.h5"
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE, text=True)
    assert writer.stdout.readline() == "ready\n"
    seen = set()
    while writer.poll() is None:
        found = ScoreFile(path)["t"]
        version = found.attrs["version"]
        assert all((getattr(found, name) == version).all() for name in ARRAYS)
        seen.add(version)
    assert writer.wait() == 0 and seen == {0, 1}
    assert list(tmp_path.iterdir()) == [path]


def test_text_is_written_as_utf_8(tmp_path):
    write_text(tmp_path / "t", "naïve – text\n")
    assert (tmp_path / "t").read_bytes() == "naïve – text\n".encode()


def test_caches_live_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path / "cache"))
    assert cache_directory("a", "b") == tmp_path / "cache" / "a" / "b"
    assert (tmp_path / "cache" / "a" / "b").is_dir()
