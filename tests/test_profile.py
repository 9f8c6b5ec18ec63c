"""Profiles: what is read, what is refused in one line, and the way into a run's folder and back."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from shapley.errors import ShapleyError
from shapley.jobs.profile import Profile, read_profile

TEMPLATES = sorted((Path(__file__).parents[1] / "slurm").glob("*.yaml"))

FULL = """
partition: gpu
account: my-project
qos: long
gpus: 2
gpu_type: a100
cpus: 8
memory: 32G
time: 12:00:00  # YAML 1.1 would make this the number 43200
modules: [cuda/12.4, gcc]
environment: {HF_HUB_OFFLINE: 1, NOTE: "a b"}
setup:
  - export HF_HOME=$SCRATCH/hf
throttle: 50
requeue: no
signal_seconds: 300
options: [--constraint=a100|h100]
python: /opt/python
merge: {partition: cpu, cpus: 1, options: []}
"""


@pytest.fixture
def read(tmp_path):
    def read(text):
        path = tmp_path / "site.yaml"
        path.write_text(text)
        return read_profile(path)

    return read


def test_every_key(read):
    profile = read(FULL)
    assert profile == Profile(
        partition="gpu",
        account="my-project",
        qos="long",
        gpus=2,
        gpu_type="a100",
        cpus=8,
        memory="32G",
        time="12:00:00",
        modules=("cuda/12.4", "gcc"),
        environment={"HF_HUB_OFFLINE": "1", "NOTE": "a b"},
        setup=("export HF_HOME=$SCRATCH/hf",),
        throttle=50,
        requeue=False,
        signal_seconds=300,
        options=("--constraint=a100|h100",),
        python="/opt/python",
        merge={"partition": "cpu", "cpus": 1, "options": ()},
    )
    merge = profile.without_gpu()
    assert (merge.partition, merge.cpus, merge.gpus, merge.gpu_type, merge.options) == ("cpu", 1, 0, "", ())
    assert (merge.account, merge.time) == ("my-project", "12:00:00")


@pytest.mark.parametrize("text", ["", "# nothing\n", "partition:\naccount: ~\n"])
def test_what_is_empty_is_left_to_the_cluster(read, text):
    assert read(text) == Profile()
    assert Profile().python == sys.executable


def test_record_survives_json(read):
    for profile in (Profile(), read(FULL)):
        assert Profile.from_record(json.loads(json.dumps(profile.record()))) == profile


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_templates(path):
    assert read_profile(path).partition


def test_the_readme_has_every_key():
    readme = (TEMPLATES[0].parent / "README.md").read_text()
    for key in Profile().record():
        assert f"`{key}`" in readme


@pytest.mark.parametrize(
    "text, words",
    [
        ("partitoin: gpu", ["site.yaml", "'partitoin'", "did you mean 'partition'"]),
        ("merge: {partitoin: gpu}", ["site.yaml, merge", "did you mean 'partition'"]),
        ("merge: {gpus: 1}", ["merge", "'gpus'"]),
        ("merge: cpu", ["merge must be lines"]),
        ("merge: {cpus: 0}", ["merge.cpus '0'", "at least 1"]),
        ("- partition", ["must be lines such as"]),
        ("partition: [a]", ["partition ['a']", "one word"]),
        ("partition: a b", ["partition 'a b'", "one word"]),
        ("account: |\n  x\n  #SBATCH --exclusive", ["account", "one word"]),
        ("gpus: -1", ["gpus '-1'", "at least 0"]),
        ("gpus: many", ["gpus 'many'", "whole number"]),
        ("cpus: 1.5", ["cpus '1.5'", "whole number"]),
        ("throttle: 0", ["throttle '0'", "at least 1"]),
        ("signal_seconds: 100000", ["at most 65535"]),
        ("memory: lots", ["memory 'lots'", "32G"]),
        ("time: 4 hours", ["time '4 hours'", "04:00:00"]),
        ("time: 04:99:00", ["time '04:99:00'"]),
        ("time: 2", ["signal_seconds 120 must be less than the time limit 2"]),
        ("gpu_type: a100", ["gpu_type 'a100' without GPUs"]),
        ("requeue: maybe", ["requeue 'maybe'", "true or false"]),
        ("modules: cuda", ["modules 'cuda'", "a list"]),
        ("modules: [[cuda]]", ["a list of lines"]),
        ("setup: ['a\n\n    b']", ["a list of lines"]),
        ("environment: [A]", ["environment", "HF_HUB_OFFLINE: 1"]),
        ("environment: {A-B: 1}", ["'A-B'", "names of variables"]),
        ("environment: {A: [1]}", ["one line of text for A"]),
        ("options: [constraint=a100]", ["options such as --constraint=a100"]),
        ("options: [--array=0-3]", ["no --array"]),
        ("python: bin/python", ["python 'bin/python'", "whole path"]),
        ("partition: 'gpu", ["is not YAML"]),
    ],
)
def test_mistakes_are_one_line(read, text, words):
    with pytest.raises(ShapleyError) as error:
        read(text)
    for word in words:
        assert word in str(error.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(ShapleyError, match=r"none.yaml \(No such file"):
        read_profile(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ShapleyError, match="not UTF-8"):
        read_profile(tmp_path / "bytes.yaml")


@pytest.mark.parametrize(
    "time, fits", [("3", True), ("2:00", False), ("2:01", True), ("0-1", True), ("0-00:02", False)]
)
def test_times_are_read_as_slurm_reads_them(read, time, fits):
    if fits:
        assert read(f"time: {time}").time == time
    else:
        with pytest.raises(ShapleyError, match="must be less than"):
            read(f"time: {time}")
