"""Against a real Slurm on this machine. What the stand-ins of test_slurm.py pretend is looked at here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shapley.errors import ShapleyError
from shapley.jobs.profile import Profile, read_profile
from shapley.jobs.slurm import Step, cancel, max_array_size, queue, render, submit

pytestmark = pytest.mark.slurm
CODE = Path(__file__).parents[1]
LAPTOP = read_profile(CODE / "slurm" / "laptop.yaml")
VERSION = Step("version", ("--version",))


@pytest.fixture
def send(cluster, tmp_path):
    """Render and submit, with logs in a folder whose name is no easy one."""
    folder = tmp_path / "100% it's #1"
    (folder / "logs").mkdir(parents=True)

    def send(step, profile=LAPTOP, **options):
        path = folder / f"{step.name}.sh"
        path.write_text(render(step, profile, folder, CODE))
        return submit(path, **options)

    send.logs = folder / "logs"
    yield send
    left = subprocess.run(["squeue", "--noheader", "--format=%A"], capture_output=True, text=True).stdout.split()
    cancel(left)
    cluster.wait(left)


def sleeper(tmp_path, *options):
    path = tmp_path / "sleep.sh"
    path.write_text("\n".join(["#!/bin/bash", *(f"#SBATCH {option}" for option in options), "exec sleep 60", ""]))
    return path


def test_an_array_and_what_waits_for_it(cluster, send):
    array = send(Step("array", ("--version",), array=3))
    after = send(VERSION, after=array)
    assert set(queue([array, after])) == {f"{array}_0", f"{array}_1", f"{array}_2", after}
    cluster.wait([array, after])
    names = {f"array-{array}_0.log", f"array-{array}_1.log", f"array-{array}_2.log", f"version-{after}.log"}
    assert {path.name for path in send.logs.iterdir()} == names
    assert {path.read_text().split(",")[0] for path in send.logs.iterdir()} == {"shapley"}


def test_a_failed_task_ends_what_waits_for_it(cluster, send):
    array = send(Step("array", ("no-such-command",), array=1))
    after = send(VERSION, after=array)
    cluster.wait([array, after])
    assert "unknown command 'no-such-command'" in (send.logs / f"array-{array}_0.log").read_text()
    assert not (send.logs / f"version-{after}.log").exists()


@pytest.mark.parametrize(
    "profile, array, words",
    [
        (Profile(cpus=1, partition="mian"), None, "unknown partition 'mian': did you mean 'main'"),
        (Profile(cpus=1, gpus=99), None, "--gres=gpu:99: no node has that"),
        (Profile(cpus=1), 1002, "an array has 1001 tasks at most"),
        (Profile(cpus=1, options=("--nonsense",)), None, "unrecognized option '--nonsense'"),
    ],
)
def test_refusals(send, profile, array, words):
    assert max_array_size() == 1001
    with pytest.raises(ShapleyError, match=words):
        send(Step("refused", ("--version",), array=array), profile)


def test_an_unknown_job_cannot_be_waited_for(send):
    with pytest.raises(ShapleyError, match="job x cannot be waited for"):
        send(VERSION, after="x")


def test_queue_and_cancel(cluster, send, tmp_path):
    job = submit(sleeper(tmp_path, "--array=0-1%1", "--output=/dev/null"))
    entries = cluster.wait_until(lambda entries: entries[f"{job}_0"].state == "RUNNING", [job])
    assert entries[f"{job}_0"].node in ("n1", "n2")
    assert entries[f"{job}_1"].state == "PENDING"
    assert queue([job, "99999"]).keys() == entries.keys()
    cancel([job, "99999"])
    cluster.wait([job])
    cancel([job])
    assert queue([job]) == queue(["99999"]) == {}


def test_a_task_requeues_itself_alone(cluster, send, tmp_path):
    """The last task of an array has the array's own job id: the one that would take all others with it."""
    batch, task, log = tmp_path / "batch.sh", tmp_path / "task.py", tmp_path / "log"
    task.write_text(
        "import os, time\n"
        "from shapley.jobs.slurm import requeue_self\n"
        "number, restarts = os.environ['SLURM_ARRAY_TASK_ID'], os.environ.get('SLURM_RESTART_COUNT', '0')\n"
        "print('task', number, restarts, flush=True)\n"
        "if number == '1' and restarts == '0' and requeue_self():\n"
        "    time.sleep(30)\n"
    )
    batch.write_text(
        f"#!/bin/bash\n#SBATCH --array=0-1 --requeue --open-mode=append --output={log}\n"
        f"export PYTHONPATH='{CODE}'\nexec {sys.executable} {task}\n"
    )
    cluster.wait([submit(batch)])
    lines = [line for line in log.read_text().splitlines() if line.startswith("task")]  # not what Slurm says of it
    assert sorted(lines) == ["task 0 0", "task 1 0", "task 1 1"]
