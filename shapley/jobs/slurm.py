"""Slurm: a batch script rendered from a step and a profile by a pure function, and the few commands that are needed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shapley.errors import ShapleyError, unknown_name
from shapley.jobs.profile import Profile

TASK = "{task}"  # stands for the array task's number in a step's command
_DEFAULT_MAX_ARRAY = 1001
_CHUNK = 500  # job ids in one command line


@dataclass(frozen=True)
class Step:
    """A job of a run.

    Attributes:
        name: for the job's name and its logs.
        command: what follows ``shapley``. A word ``{task}`` becomes the task's number.
        array: the number of tasks, or nothing for a single job.
        gpu: whether it computes with the model; if not, the profile's ``merge`` counts.
    """

    name: str
    command: tuple[str, ...]
    array: int | None = None
    gpu: bool = True


@dataclass(frozen=True)
class QueueEntry:
    """A task that the queue knows. ``state`` is Slurm's word, as PENDING; ``node`` is empty before it starts."""

    state: str
    reason: str
    node: str
    start: str


def render(step: Step, profile: Profile, folder: Path, code: Path) -> str:
    """The batch script of a step, complete.

    Args:
        folder: of the run; logs go to its ``logs``, which must be there when the job starts.
        code: the folder with the package ``shapley`` that is to run.

    Raises:
        ShapleyError: a path that a batch script cannot name.
    """
    if not step.gpu:
        profile = profile.without_gpu()
    words = [f"#SBATCH {option}" for option in _options(step, profile, folder)]
    task = '"${SLURM_ARRAY_TASK_ID}"'
    command = " ".join(task if word == TASK and step.array is not None else shlex.quote(word) for word in step.command)
    environment = [f"export {name}={shlex.quote(value)}" for name, value in profile.environment.items()]
    if "OMP_NUM_THREADS" not in profile.environment:
        environment.append('export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"')
    body = [
        # Not -u: the scripts behind modules and conda use variables that are not set.
        "set -eo pipefail",
        *(f"module load {shlex.quote(name)}" for name in profile.modules),
        *environment,
        *profile.setup,
        # Python looks in the working directory first, which must not be where somebody goes on editing.
        f"cd {shlex.quote(_absolute(code))}",
        # A job that submits the next hands its environment on: the path is not to grow with every round.
        '[[ ":$PYTHONPATH:" == *":$PWD:"* ]] || export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"',
        # exec: the signal reaches only the batch script's own process.
        f"exec {shlex.quote(profile.python)} -m shapley {command}",
    ]
    return "\n".join(["#!/bin/bash", *words, "", *body, ""])


def _options(step: Step, profile: Profile, folder: Path) -> Iterator[str]:
    """What goes after ``#SBATCH``."""
    logs = _absolute(folder / "logs").replace("%", "%%")
    yield f"--job-name={_quote(f'shapley-{step.name}-{folder.name}')}"
    yield f"--output={_quote(f'{logs}/{step.name}-%j.log' if step.array is None else f'{logs}/{step.name}-%A_%a.log')}"
    yield "--open-mode=append"
    yield "--requeue" if profile.requeue else "--no-requeue"
    if step.array is not None:
        yield f"--array=0-{step.array - 1}" + (f"%{profile.throttle}" if profile.throttle else "")
        yield f"--signal=B:USR2@{profile.signal_seconds}"
    yield f"--cpus-per-task={profile.cpus}"
    if profile.gpus:
        yield f"--gres=gpu:{profile.gpu_type}{':' if profile.gpu_type else ''}{profile.gpus}"
    for name, value in {
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "mem": profile.memory,
        "time": profile.time,
    }.items():
        if value:
            yield f"--{name}={value}"
    yield from profile.options


def _absolute(path: Path) -> str:
    text = str(path.absolute())
    if re.search(r"[\n\\\":]", text):
        raise ShapleyError(f"{text!r}: a run on Slurm needs a path without quotes, colons, backslashes and line breaks")
    return text


def _quote(text: str) -> str:
    return f'"{text}"' if re.search(r"[\s'#]", text) else text


def submit(script: Path, *, after: str | None = None, kind: str = "afterok") -> str:
    """Hand a batch script to Slurm, to start when the job ``after`` allows it; returns the job's id.

    Raises:
        ShapleyError: there is no Slurm, or it refuses the script.
    """
    text = script.read_text(encoding="utf-8")
    command = ["sbatch", "--parsable"]
    if after is not None:
        command += [f"--dependency={kind}:{after}", "--kill-on-invalid-dep=yes"]
    answer = _call([*command, str(script)], drop=_overriding(text))
    if answer.returncode:
        raise _refusal(answer.stderr, script, text, after)
    return answer.stdout.strip().split(";")[0]  # the cluster's name may follow


def _overriding(text: str) -> str:
    """A pattern of environment variables that would count for more than what the script says, or that a job would take
    for its own if this process is a task of an array."""
    other = {"time": "TIMELIMIT", "mem": "MEM_PER_NODE", "array": "ARRAY_INX", "requeue": "(NO_)?REQUEUE"}
    names = re.findall(r"^#SBATCH --(?:no-)?([a-z-]+)", text, re.MULTILINE)
    names = [other.get(name, name.upper().replace("-", "_")) for name in names]
    return f"SBATCH_({'|'.join(names)})|SLURM_ARRAY_.*|SLURM_RESTART_COUNT"


def _refusal(stderr: str, script: Path, text: str, after: str | None) -> ShapleyError:
    """What to say when sbatch refused: the setting's name and value, rather than Slurm's words."""

    def asked(*names: str) -> str:
        return " ".join(re.findall(rf"^#SBATCH (--(?:{'|'.join(names)})=.*)", text, re.MULTILINE)) or "Slurm's defaults"

    said = stderr.lower()
    if "invalid partition" in said:
        known = _call(["sinfo", "--noheader", "--format=%R"]).stdout.split()
        return unknown_name("partition", asked("partition").partition("=")[2], known)
    if "invalid job array" in said:
        return ShapleyError(f"{asked('array')}: an array has {max_array_size()} tasks at most on this cluster")
    yours = "(sacctmgr show associations user=$USER names yours)"
    for sign, line in {
        "invalid account": f"{asked('account', 'partition')}: not an account of yours, or not for this partition {yours}",
        "invalid qos": f"{asked('qos', 'account')}: not a qos of yours {yours}",
        "dependency problem": f"job {after} cannot be waited for: Slurm does not know it",
        "time limit is invalid": f"{asked('time', 'partition')}: not a time that this partition allows (see its MaxTime "
        "in scontrol show partition)",
        "node configuration": f"{asked('cpus-per-task', 'mem', 'gres', 'partition')}: no node has that "
        "(sinfo --format='%P %c %m %G' shows cores, MB and GPUs)",
    }.items():
        if sign in said:
            return ShapleyError(line)
    return ShapleyError(f"Slurm refused {script}: {_last(stderr)}")


def max_array_size() -> int:
    """How many tasks an array may have here.

    Raises:
        ShapleyError: there is no Slurm, or it does not answer.
    """
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", _call(["scontrol", "show", "config"]).stdout, re.MULTILINE)
    return int(match[1]) if match else _DEFAULT_MAX_ARRAY


def queue(job_ids: Sequence[str]) -> dict[str, QueueEntry]:
    """The tasks of these jobs that the queue still knows, by ``JOB_TASK`` or, for a single job, by ``JOB``.

    Raises:
        ShapleyError: there is no Slurm, or it does not answer.
    """
    entries = {}
    for ids in _chunks(job_ids):
        answer = _call(["squeue", "--noheader", "--array", f"--jobs={','.join(ids)}", "--format=%i|%T|%N|%S|%r"])
        if answer.returncode and "invalid job id" not in answer.stderr.lower():  # that is, all of them are gone
            raise ShapleyError(f"squeue: {_last(answer.stderr)}")
        for line in answer.stdout.splitlines():
            task, state, node, start, reason = line.split("|", 4)
            entries[task] = QueueEntry(state, "" if reason == "None" else reason, node, "" if start == "N/A" else start)
    return entries


def cancel(job_ids: Sequence[str], *, only_waiting: bool = False) -> None:
    """End these jobs or tasks; those that have ended are passed over, and those that run, if that is asked for.

    Raises:
        ShapleyError: there is no Slurm, or it refuses.
    """
    for ids in _chunks(job_ids):
        for line in _call(["scancel", *(["--state=PENDING"] if only_waiting else []), *ids]).stderr.splitlines():
            if not re.search("invalid job id|already complet", line, re.IGNORECASE):
                raise ShapleyError(f"scancel: {_last(line)}")


def in_slurm() -> bool:
    """Whether this process belongs to a Slurm job."""
    return "SLURM_JOB_ID" in os.environ


def requeue_self() -> bool:
    """Ask that this task be ended and started again; returns whether Slurm accepts."""
    # The bare job id may be that of the whole array, and all of its tasks would be requeued.
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        task = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ.get('SLURM_ARRAY_TASK_ID')}"
    else:
        task = os.environ.get("SLURM_JOB_ID", "")
    try:
        return bool(task) and _call(["scontrol", "requeue", task], seconds=20).returncode == 0
    except ShapleyError:
        return False


def _call(words: Sequence[str], *, seconds: float = 120, drop: str = "") -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands, in English, without the user's own defaults for formats and filters."""
    pattern = f"(SQUEUE|SCANCEL|SINFO)_.*|SLURM_TIME_FORMAT|{drop}"
    environment = {name: value for name, value in os.environ.items() if not re.fullmatch(pattern, name)}
    environment["LC_ALL"] = "C"
    try:
        answer = subprocess.run(
            words, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL, env=environment
        )
    except FileNotFoundError:
        raise _absent(f"{words[0]} is not there") from None
    except subprocess.TimeoutExpired:
        raise ShapleyError(f"{words[0]} did not answer within {seconds:g} s: try again when Slurm does") from None
    if "configuration source" in answer.stderr:
        raise _absent("it belongs to no cluster, and SLURM_CONF names none")
    if re.search("unable to contact slurm controller|connection refused", answer.stderr, re.IGNORECASE):
        raise ShapleyError(
            f"{words[0]}: Slurm's controller does not answer: try again later, or ask with scontrol ping"
        )
    return answer


def _absent(reason: str) -> ShapleyError:
    return ShapleyError(f"no Slurm on this machine ({reason}): work on a login node, or try slurm/dev-cluster.sh")


def _chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    return (ids[first : first + _CHUNK] for first in range(0, len(ids), _CHUNK))


def _last(stderr: str) -> str:
    """The last line of what a command said, without its name."""
    lines = [line for line in stderr.splitlines() if line and not line.startswith("Try ")] or ["no reason given"]
    return re.sub(r"^\w+: (error: )?", "", lines[-1])
