"""Files that are whole or absent, on disks that are full, in folders where others write and died."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time

import numpy as np
import pytest

from shapley import files
from shapley.errors import ShapleyError
from shapley.files import atomic_path, digest, write_text
from shapley.records import write_sweep
from shapley.store import write_checkpoint, write_scores
from tests.test_records import sweep_of
from tests.test_store import MODEL, topic_scores

WRITERS = {
    "scores": lambda path: write_scores(path, MODEL, {"t": topic_scores(shape=(8, 500))}, keep=False),
    "sweep": lambda path: write_sweep(path, sweep_of({"a": np.ones((4, 3, 8, 400))})),
    "checkpoint": lambda path: write_checkpoint(path, "{}", {"mean": np.ones(40000)}),
    "text": lambda path: write_text(path, "text" * 80000),
}
every_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


@pytest.fixture(autouse=True)
def forget():
    """Left-over files are looked for once a process."""
    files._remove_left_over.cache_clear()


@every_writer
def test_file_then_name_then_folder_reach_the_disk(tmp_path, monkeypatch, write):
    """The order matters: a name on the disk before its content is an empty file after a power cut."""
    done, sync, replace = [], os.fsync, type(tmp_path).replace

    def fsync(descriptor):
        found = os.fstat(descriptor)
        is_folder = stat.S_ISDIR(found.st_mode)
        done.append("folder" if is_folder else "file")
        assert is_folder or found.st_size > 0
        assert not is_folder or os.path.samestat(found, tmp_path.stat())
        sync(descriptor)

    def rename(self, target):
        done.append("rename")
        return replace(self, target)

    monkeypatch.setattr("os.fsync", fsync)
    monkeypatch.setattr(type(tmp_path), "replace", rename)
    write(tmp_path / "file")
    assert done == ["file", "rename", "folder"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_file_systems_that_cannot_sync_folders(tmp_path, monkeypatch, code):
    sync = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        sync(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    write_text(tmp_path / "file", "text")
    assert (tmp_path / "file").read_text() == "text"


def test_a_folder_that_fails_to_sync_is_told(tmp_path, monkeypatch):
    sync = os.fsync

    def fsync(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        sync(descriptor)

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(ShapleyError, match=r"cannot write .*file: Input/output error"):
        write_text(tmp_path / "file", "text")


class TestTemporaries:
    def name(self, path):
        with atomic_path(path) as temporary:
            temporary.write_text("x")
        assert temporary.parent == path.parent
        return temporary.name

    def test_names_never_repeat(self, tmp_path, monkeypatch):
        """Not between calls, and not between machines whose processes have the same number."""
        here = {self.name(tmp_path / "file") for _ in range(50)}
        monkeypatch.setattr("platform.node", lambda: "other")
        there = {self.name(tmp_path / "file") for _ in range(50)}
        assert len(here | there) == 100
        assert all(name.startswith(f".file.other.{os.getpid()}.") for name in there)

    @pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "𝛷" * 63])
    def test_the_longest_names_can_be_written(self, tmp_path, monkeypatch, name):
        monkeypatch.setattr("platform.node", lambda: "h" * 300)
        monkeypatch.setattr("os.getpid", lambda: 4194304)
        write_text(tmp_path / name, "x")
        assert [path.name for path in tmp_path.iterdir()] == [name]

    def test_two_writers_of_one_file(self, tmp_path):
        with atomic_path(tmp_path / "file") as one:
            one.write_text("one")
            with atomic_path(tmp_path / "file") as two:
                two.write_text("two")
        assert (tmp_path / "file").read_text() == "one"
        assert [path.name for path in tmp_path.iterdir()] == ["file"]

    def test_a_killed_writer_leaves_the_old_file(self, tmp_path):
        path = tmp_path / "file"
        write_text(path, "old")
        code = (
            "import os, sys; from pathlib import Path; from shapley.files import atomic_path\n"
            "with atomic_path(Path(sys.argv[1])) as temporary:\n"
            "    temporary.write_text('half'); os.kill(os.getpid(), 9)"
        )
        assert subprocess.run([sys.executable, "-c", code, path]).returncode == -9
        (left,) = set(tmp_path.iterdir()) - {path}
        assert path.read_text() == "old" and left.name.startswith(".file.")
        write_text(path, "new")
        assert left.exists()  # it is young, and might be of a process that is not seen from here
        os.utime(left, (0, time.time() - 3601))
        files._remove_left_over.cache_clear()
        write_text(path, "newer")
        assert list(tmp_path.iterdir()) == [path]

    @pytest.mark.parametrize(
        "name",
        [
            f".file.here.{os.getpid()}.abcd.partial",
            ".file.here.1.abcd.partial",
            ".file.there.999999999.abcd.partial",
            ".other.here.999999999.abcd.partial",
            ".file.here.mine.abcd.partial",
            ".file.here.999999999.abcd.precious",
            "file.here.999999999.abcd.partial",
        ],
        ids=["own", "alive", "another machine", "another file", "no number", "another suffix", "not hidden"],
    )
    def test_what_may_be_in_use_stays(self, tmp_path, monkeypatch, name):
        monkeypatch.setattr("platform.node", lambda: "here")
        (tmp_path / name).write_text("x")
        os.utime(tmp_path / name, (0, 0))
        write_text(tmp_path / "file", "text")
        assert (tmp_path / name).exists()

    def test_what_is_of_a_dead_process_goes(self, tmp_path, monkeypatch):
        monkeypatch.setattr("platform.node", lambda: "here.cluster.org")
        name = tmp_path / f".file[1].here.cluster.org.{2**22 + 1}.abcd.partial"  # no process has such a number
        name.write_text("x")
        os.utime(name, (0, 0))
        write_text(tmp_path / "file[1]", "text")
        assert not name.exists()


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 128 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(folder)]
    try:
        run = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("a small disk needs mount, which is not here")
    if run.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {run.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@every_writer
def test_a_disk_that_is_full(small_disk, write):
    path = small_disk / "file"
    path.write_text("old")
    with pytest.raises(ShapleyError, match=r"cannot write .*file: the disk is full; free some space and run again"):
        write(path)
    assert path.read_text() == "old"
    assert list(small_disk.iterdir()) == [path]


@every_writer
def test_a_disk_that_fills_up_at_any_point(small_disk, write):
    """HDF5 buffers, so the error may come with the data, the metadata, the close or the digest after it."""
    path, rest = small_disk / "file", small_disk / "rest"
    write_of = {WRITERS["scores"]: lambda: write_scores(path, MODEL, {"t": topic_scores()}, keep=True)}
    small = write_of.get(write, lambda: write(path))
    for used in range(0, 128, 4):
        path.unlink(missing_ok=True)
        rest.write_bytes(bytes(used * 1024))
        try:
            small()
        except ShapleyError as error:
            assert "the disk is full" in str(error)
            assert list(small_disk.iterdir()) == [rest]


class TestDigest:
    def test_it_is_of_type_shape_and_content(self):
        base = np.arange(6.0).reshape(2, 3)
        others = [base.T, base.reshape(3, 2), base.reshape(6), base.astype(np.float32), base.astype(int), base + 1]
        others += [base.astype(">f8"), base.view(np.int64), np.zeros(0), np.zeros((0, 3)), np.array(3.0), -0.0 * base]
        found = [digest(each) for each in (base, *others)]
        assert len(set(found)) == len(found)
        assert all(len(text) == 32 and set(text) <= set("0123456789abcdef") for text in found)

    def test_it_is_not_of_the_layout_in_memory(self):
        base = np.arange(6.0).reshape(2, 3)
        assert digest(base) == digest(np.asfortranarray(base)) == digest(np.repeat(base, 2, axis=1)[:, ::2])

    def test_parts_do_not_run_into_each_other(self):
        assert len({digest(b"ab", b"c"), digest(b"a", b"bc"), digest(b"abc"), digest(b"abc", b""), digest()}) == 5

    def test_it_stays_what_it_is(self):
        """Files hold it."""
        assert digest(b"text", np.arange(3, dtype="<i8")) == "fe8d4cf483182f9769dc10a853167b01"
