"""Batch scripts as text, and stand-ins for Slurm's commands that answer what is wanted of them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from shapley.errors import ShapleyError
from shapley.jobs.profile import Profile
from shapley.jobs.sealed import write_sealed
from shapley.jobs.slurm import (
    QueueEntry,
    Step,
    cancel,
    in_slurm,
    max_array_size,
    queue,
    render,
    requeue_self,
    submit,
)
from shapley.jobs.submit import end_chain

WORK = Step("work", ("work", "/runs/a b", "--shard", "{task}"), array=64)
MERGE = Step("merge", ("advance", "/runs/a b"), gpu=False)


def lines_of(step, profile, folder="/runs/one", code="/runs/one/code"):
    return render(step, profile, Path(folder), Path(code)).splitlines()


def test_an_array():
    profile = Profile(partition="gpu", gpus=1, memory="32G", time="04:00:00", throttle=8, python="/opt/python")
    assert lines_of(WORK, profile) == [
        "#!/bin/bash",
        "#SBATCH --job-name=shapley-work-one",
        "#SBATCH --output=/runs/one/logs/work-%A_%a.log",
        "#SBATCH --open-mode=append",
        "#SBATCH --requeue",
        "#SBATCH --array=0-63%8",
        "#SBATCH --signal=B:USR2@120",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --gres=gpu:1",
        "#SBATCH --partition=gpu",
        "#SBATCH --mem=32G",
        "#SBATCH --time=04:00:00",
        "",
        "set -eo pipefail",
        'export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"',
        "cd /runs/one/code",
        '[[ ":$PYTHONPATH:" == *":$PWD:"* ]] || export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"',
        "exec /opt/python -m shapley work '/runs/a b' --shard \"${SLURM_ARRAY_TASK_ID}\"",
    ]


def test_a_single_job_without_a_gpu():
    profile = Profile(
        partition="gpu", gpus=2, gpu_type="a100", requeue=False, options=("--exclude=n7",), merge={"partition": "cpu"}
    )
    lines = lines_of(MERGE, profile)
    assert "#SBATCH --partition=cpu" in lines
    assert "#SBATCH --no-requeue" in lines
    assert "#SBATCH --exclude=n7" in lines
    assert "#SBATCH --output=/runs/one/logs/merge-%j.log" in lines
    assert not [line for line in lines if "gres" in line or "array" in line.lower() or "signal" in line]
    assert "#SBATCH --gres=gpu:a100:2" in lines_of(WORK, profile)


def test_the_body_runs_as_it_was_meant(tmp_path):
    """The shell sees spaces, quotes and dollars as they were written; setup lines are the shell's own."""
    code = tmp_path / "the code $1"
    (code / "shapley").mkdir(parents=True)
    (code / "shapley" / "__main__.py").write_text(
        "import os, sys; print(sys.argv[1:], *map(os.environ.get, ['NOTE', 'MORE', 'OMP_NUM_THREADS', 'PYTHONPATH']))"
    )
    profile = Profile(
        modules=("cuda/12 x",),
        environment={"NOTE": "it's $HOME `x`", "OMP_NUM_THREADS": "3"},
        setup=('export MORE="$NOTE!"',),
    )
    step = Step("work", ("$HOME", "a b", "{task}", "x{task}"), array=3)
    script = "module() { echo module $#; }\n" + render(step, profile, tmp_path, code)
    environment = {"PATH": os.environ["PATH"], "SLURM_ARRAY_TASK_ID": "2", "PYTHONPATH": f"/x:{code}"}
    answer = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, cwd="/")
    note = "it's $HOME `x`"
    assert answer.stderr == ""
    assert answer.stdout == f"module 2\n['$HOME', 'a b', '2', 'x{{task}}'] {note} {note}! 3 /x:{code}\n"


def test_paths_that_sbatch_reads_in_its_own_way():
    lines = lines_of(WORK, Profile(), folder="/runs/100% a #1")
    assert '#SBATCH --job-name="shapley-work-100% a #1"' in lines
    assert '#SBATCH --output="/runs/100%% a #1/logs/work-%A_%a.log"' in lines
    for folder in ('/runs/"', "/runs/a\nb", "/runs/\\", "/a:b"):
        with pytest.raises(ShapleyError, match="without quotes"):
            lines_of(WORK, Profile(), folder=folder)


def test_python_m_shapley():
    answer = subprocess.run([sys.executable, "-m", "shapley", "--version"], capture_output=True, text=True)
    assert answer.stdout.startswith("shapley, version")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """Stand-ins for Slurm's commands, the only ones there are; what they were called with is in ``calls``."""
    programs = tmp_path / "bin"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)

    def add(name, out="", err="", code=0):
        path = programs / name
        path.write_text(
            f"#!/bin/sh\nprintf '%s\\n' \"{name} $*\" >> '{tmp_path}/calls'\n"
            f"printf '%s' '{out}'\nprintf '%s' '{err}' >&2\nexit {code}\n"
        )
        path.chmod(0o755)

    add.calls = lambda: (tmp_path / "calls").read_text().splitlines()
    return add


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "work.sh"
    profile = Profile(partition="gpuu", account="me", qos="long", time="9-00", memory="1T", gpus=9)
    path.write_text(render(WORK, profile, tmp_path, tmp_path))
    return path


def test_submit(slurm, script):
    slurm("sbatch", "17;cluster\n")
    assert submit(script) == "17"
    assert submit(script, after="16", kind="afterany") == "17"
    assert slurm.calls() == [
        f"sbatch --parsable {script}",
        f"sbatch --parsable --dependency=afterany:16 --kill-on-invalid-dep=yes {script}",
    ]


def test_the_script_counts_more_than_the_environment(slurm, script, monkeypatch, tmp_path):
    """SBATCH_PARTITION would win over the script; SLURM_ARRAY_TASK_ID would be the submitting task's."""
    path = tmp_path / "bin" / "sbatch"
    path.write_text("#!/bin/sh\nexport -p\n")
    path.chmod(0o755)
    for name in (
        "SBATCH_PARTITION",
        "SBATCH_TIMELIMIT",
        "SBATCH_ARRAY_INX",
        "SLURM_ARRAY_TASK_ID",
        "SBATCH_RESERVATION",
    ):
        monkeypatch.setenv(name, "x")
    seen = submit(script)
    assert "SBATCH_RESERVATION" in seen
    for name in ("SBATCH_PARTITION", "SBATCH_TIMELIMIT", "SBATCH_ARRAY_INX", "SLURM_ARRAY_TASK_ID"):
        assert name not in seen


@pytest.mark.parametrize(
    "said, words",
    [
        ("Invalid partition name specified", ["unknown partition 'gpuu': did you mean 'gpu'"]),
        ("Invalid account or account/partition combination specified", ["--account=me", "--partition=gpuu"]),
        ("Invalid qos specification", ["--qos=long"]),
        ("Job dependency problem", ["job 16"]),
        ("Invalid job array specification", ["--array=0-63", "50 tasks at most"]),
        ("Requested time limit is invalid (missing or exceeds some limit)", ["--time=9-00", "MaxTime"]),
        ("Requested node configuration is not available", ["--gres=gpu:9", "--mem=1T", "no node"]),
        ("Unable to contact slurm controller (connect failure)", ["does not answer"]),
        ("Job violates accounting/QOS policy", ["Slurm refused", "work.sh", "Job violates accounting/QOS policy"]),
    ],
)
def test_refusals_are_one_line(slurm, script, said, words):
    slurm("sbatch", err=f"sbatch: error: Batch job submission failed: {said}\n", code=1)
    slurm("sinfo", "cpu\ngpu\n")
    slurm("scontrol", "MaxArraySize            = 50\n")
    with pytest.raises(ShapleyError) as error:
        submit(script, after="16")
    for word in words:
        assert word in str(error.value)
    assert "\n" not in str(error.value)


def test_no_slurm(slurm, script):
    for act in (lambda: submit(script), lambda: queue(["1"]), lambda: cancel(["1"]), max_array_size):
        with pytest.raises(ShapleyError, match="no Slurm on this machine"):
            act()
    slurm("squeue", err="squeue: fatal: Could not establish a configuration source\n", code=1)
    with pytest.raises(ShapleyError, match="no Slurm on this machine"):
        queue(["1"])


def test_max_array_size(slurm):
    slurm("scontrol", "Configuration data\nMaxArraySize            = 4001\nMaxJobCount = 9\n")
    assert max_array_size() == 4001
    slurm("scontrol", "nothing of the kind")
    assert max_array_size() == 1001


def test_queue(slurm):
    slurm("squeue", "7_0|RUNNING|n1|2026-01-01T10:00:00|None\n7_1|PENDING||N/A|Priority\n8|PENDING||N/A|Dependency\n")
    assert queue(["7", "8"]) == {
        "7_0": QueueEntry("RUNNING", "", "n1", "2026-01-01T10:00:00"),
        "7_1": QueueEntry("PENDING", "Priority", "", ""),
        "8": QueueEntry("PENDING", "Dependency", "", ""),
    }
    assert queue([]) == {}
    assert len(slurm.calls()) == 1
    slurm("squeue", err="slurm_load_jobs error: Invalid job id specified\n", code=1)
    assert queue(["7"]) == {}
    slurm("squeue", err="squeue: error: something else\n", code=1)
    with pytest.raises(ShapleyError, match="squeue: something else"):
        queue(["7"])


def test_cancel(slurm):
    slurm(
        "scancel", err="scancel: error: Kill job error on job id 7: Job/step already completing or completed\n", code=1
    )
    cancel([str(number) for number in range(1200)])
    assert [len(call.split()) - 1 for call in slurm.calls()] == [500, 500, 200]
    slurm("scancel", err="scancel: error: Kill job error on job id 7: Access/permission denied\n", code=1)
    with pytest.raises(ShapleyError, match="permission denied"):
        cancel(["7"])


def test_only_what_waits_can_be_cancelled(slurm):
    slurm("scancel")
    cancel(["7", "8"], only_waiting=True)
    assert slurm.calls() == ["scancel --state=PENDING 7 8"]


@pytest.mark.parametrize("array", [True, False])
def test_whoever_finishes_a_run_cancels_what_is_left(slurm, monkeypatch, tmp_path, array):
    """Of its own array only what still waits: itself and those who look at the result just now are to end well."""
    write_sealed(tmp_path / "jobs.json", {"jobs": [{"id": str(i)} for i in range(7, 10)]})
    slurm("scancel")
    run = SimpleNamespace(path=tmp_path)
    end_chain(run)
    monkeypatch.setenv("SLURM_JOB_ID", "11" if array else "8")
    if array:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "8")
    end_chain(run)
    assert slurm.calls() == ["scancel 7 9", "scancel --state=PENDING 8"]


def test_requeue_self_names_its_task_and_not_the_array(slurm, monkeypatch):
    assert not in_slurm()
    assert not requeue_self()
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert in_slurm()
    assert not requeue_self()  # there is no scontrol
    slurm("scontrol")
    assert requeue_self()
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert requeue_self()
    assert slurm.calls() == ["scontrol requeue 7", "scontrol requeue 7_3"]
    slurm("scontrol", err="slurm_requeue error", code=1)
    assert not requeue_self()
