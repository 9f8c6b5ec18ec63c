"""Score files and checkpoints: the HDF5 contract read with plain h5py, whole or not at all, and every refusal."""

from __future__ import annotations

import errno
import json

import h5py
import numpy as np
import pytest

from shapley.errors import ShapleyError
from shapley.files import cache_directory, write_text
from shapley.store import ScoreFile, TopicScores, read_checkpoint, write_checkpoint, write_scores

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


class TestContract:
    def test_root_and_model(self, path):
        with h5py.File(path) as file:
            assert dict(file.attrs) == {"format": "neuron-shapley", "version": 1}
            assert dict(file["model"].attrs) == MODEL
            assert set(file) == {"model", "topics"}

    def test_topics_hold_their_arrays_and_attributes(self, path):
        with h5py.File(path) as file:
            group = file["topics/athlete"]
            assert set(group) == set(ARRAYS)
            assert {name: group[name].dtype for name in group} == ARRAYS
            assert group["score"].shape == group["stderr"].shape == group["count"].shape == (2, 6)
            assert group["replicates"].shape == (16, 2, 6)
            assert_same(group, topic_scores(1))
            assert dict(group.attrs) == topic_attrs()

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


def test_text_is_written_as_utf_8(tmp_path):
    write_text(tmp_path / "t", "naïve – text\n")
    assert (tmp_path / "t").read_bytes() == "naïve – text\n".encode()


def test_caches_live_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("NEURON_SHAPLEY_CACHE", str(tmp_path / "cache"))
    assert cache_directory("a", "b") == tmp_path / "cache" / "a" / "b"
    assert (tmp_path / "cache" / "a" / "b").is_dir()
