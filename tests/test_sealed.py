"""Small files of a run say whether they are what was written, and what to do if not."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from shapley.errors import ShapleyError
from shapley.jobs.advance import merge, prepare
from shapley.jobs.folder import RunFolder
from shapley.jobs.sealed import DamagedRecordError, read_sealed, write_sealed
from shapley.jobs.submit import jobs_of, profile_of
from shapley.jobs.worker import work
from tests.test_jobs import PLANS, a_link_for_each_round, assert_same, new_run  # noqa: F401  (a fixture)


@pytest.mark.parametrize("indent", [None, 1])
def test_no_byte_can_change_unseen(tmp_path, indent):
    path, record = tmp_path / "a.json", {"seed": 12, "rate": 0.25, "names": ["é", None], "deep": {"b": 1, "a": True}}
    write_sealed(path, record, indent)
    assert read_sealed(path, "", "") == record
    whole = path.read_bytes()
    for place in range(len(whole)):
        for change in (1, 0x20, 0x80):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ change]) + whole[place + 1 :])
            try:
                assert read_sealed(path, "", "throw it away") == record  # white space may be another
            except DamagedRecordError as error:
                assert str(error) == f"{path} is damaged: throw it away"
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        with pytest.raises(DamagedRecordError):
            read_sealed(path, "", "")


def test_what_is_not_there_and_what_cannot_be_read(tmp_path):
    with pytest.raises(ShapleyError, match=r"^make it first$"):
        read_sealed(tmp_path / "a.json", "make it first", "")
    with pytest.raises(ShapleyError, match=r"cannot read .*Is a directory"):
        read_sealed(tmp_path, "", "")
    (tmp_path / "list.json").write_text("[" * 10_000)
    with pytest.raises(DamagedRecordError):
        read_sealed(tmp_path / "list.json", "", "")


def spoil(path):
    """Change a letter or digit in the middle."""
    data = bytearray(path.read_bytes())
    place = next(i for i in range(len(data) // 2, len(data)) if chr(data[i]).isalnum())
    data[place] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["run.json", "prompts.jsonl"])
def test_what_nothing_could_make_again_has_a_copy(tmp_path, name):
    run = new_run(tmp_path)
    prepare(run, show=False)
    spoil(run.path / name)
    copy = run.path / "spare" / name
    with pytest.raises(ShapleyError, match=f"{name} is damaged.*: copy {copy} over it"):
        merge(RunFolder(run.path), show=False)
    shutil.copy(copy, run.path / name)
    while not merge(RunFolder(run.path), show=False).finished:
        work(RunFolder(run.path), 0, 1)
    assert_same(run, run.plan)


@pytest.mark.parametrize("name", ["topics/00-one/facts.json", "memory.json"])
def test_what_preparing_makes_can_be_made_again(tmp_path, name):
    run = new_run(tmp_path, PLANS["permutation"])
    prepare(run, show=False)
    before = (run.path / name).read_bytes()
    spoil(run.path / name)
    with pytest.raises(ShapleyError, match=f"{name} is damaged: .*'shapley prepare {run.path}' makes it again, or"):
        work(RunFolder(run.path), 0, 1)
    if name == "memory.json":
        (run.path / name).unlink()
    prepare(RunFolder(run.path), show=False)
    assert (run.path / name).read_bytes() == before
    work(RunFolder(run.path), 0, 1)
    merge(RunFolder(run.path), show=False)
    assert_same(run, run.plan)


def test_the_copy_of_the_code(tmp_path, monkeypatch):
    run = new_run(tmp_path)
    monkeypatch.setattr("shapley.jobs.folder._package", lambda: run.code / "shapley")
    run.check_code()
    spoil(run.code / "shapley" / "game.py")
    with pytest.raises(ShapleyError, match=f"{run.code} is damaged, or was changed: copy version"):
        run.check_code()


def test_what_was_handed_to_slurm(tmp_path):
    run = new_run(tmp_path)
    assert jobs_of(run) == []
    with pytest.raises(ShapleyError, match="was not submitted to Slurm: give --profile"):
        profile_of(run)
    write_sealed(run.path / "jobs.json", {"jobs": [{"id": "7", "step": "work", "array": 3}]})
    assert jobs_of(run) == ["7"]
    spoil(run.path / "jobs.json")
    with pytest.raises(ShapleyError, match=r"jobs.json is damaged: remove it; 'squeue --me' still lists its jobs"):
        jobs_of(run)


def test_a_damaged_result_of_a_topic(tmp_path):
    run = new_run(tmp_path, PLANS["permutation"])
    prepare(run, show=False)
    work(run, 0, 1)
    merge(run, show=False)
    run.scores.unlink()
    path = run.topics[0].scores
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(ShapleyError, match=f"{path}.*make it again: remove it, and 'shapley merge {run.path}' does"):
        merge(run, show=False)
    path.unlink()
    merge(run, show=False)
    assert_same(run, run.plan)


def test_numbers_come_back_as_they_were(tmp_path):
    values = np.random.default_rng(0).standard_normal(50).tolist()
    write_sealed(tmp_path / "a.json", {"values": values})
    assert read_sealed(tmp_path / "a.json", "", "")["values"] == values
    assert "digest" in json.loads((tmp_path / "a.json").read_text())


def test_what_was_computed_is_never_thrown_away(tmp_path):
    """Not even where memory.json was removed, as its remedy says, and another command names the folder."""
    run = new_run(tmp_path, PLANS["gradient"])
    prepare(run, show=False)
    work(run, 0, 1)
    (run.path / "memory.json").unlink()
    with pytest.raises(ShapleyError, match="belongs to another run, with plan"):
        new_run(tmp_path, PLANS["permutation"])
    prepare(run, show=False)
    merge(run, show=False)
    assert_same(run, run.plan)
