"""Processes under test. ``python -m shapley`` takes half a second to start, most of it imports; a fork of a process that has
imported them takes a hundredth, and can be killed as well. So the long run forks, and starts some the slow way."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NoReturn

# Forks have these from the start; the commands import them when they are called.
from shapley.cli import jobs as _jobs  # noqa: F401
from shapley.cli import query as _query  # noqa: F401
from shapley.cli.main import main
from shapley.jobs import advance as _advance  # noqa: F401
from shapley.jobs import estimate as _estimate  # noqa: F401
from shapley.jobs import status as _status  # noqa: F401
from shapley.jobs import worker as _worker  # noqa: F401
from tests.faults.instruments import Instruments

Mode = Literal["fork", "exec"]
_REPOSITORY = Path(__file__).parents[2]
_TICK = 0.003


@dataclass
class Process:
    """A child. ``code`` is its exit code, negative for the signal that killed it, once it has ended."""

    pid: int
    words: Sequence[str]
    log: Path
    code: int | None = None
    _stopped: bool = field(default=False, repr=False)

    @property
    def lives(self) -> bool:
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code is None

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait(self, seconds: float = 60) -> int:
        """Until it ends; returns its exit code."""
        end = time.monotonic() + seconds
        while self.lives:
            assert time.monotonic() < end, f"{self.words} still runs after {seconds} s; it said: {self.said}"
            time.sleep(_TICK)
        assert self.code is not None
        return self.code

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; returns whether the process was alive to get it."""
        if not self.lives:
            return False
        os.kill(self.pid, number)
        return True

    def kill(self) -> bool:
        """``kill -9``, and wait for its end. Returns whether that is what it died of."""
        self.send(signal.SIGKILL)
        return self.wait() == -signal.SIGKILL


def start(
    words: Sequence[str],
    log: Path,
    *,
    mode: Mode,
    code: Path,
    instruments: Instruments,
    prefix: Sequence[str] = (),
) -> Process:
    """Run ``shapley WORDS``, output to ``log``.

    Args:
        code: the folder with the package that an ``exec`` is to run; a fork runs what this process has imported.
        prefix: words before the command line of an ``exec``.
    """
    log.touch()  # it may be killed before it could
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if not pid:
        _child(words, log, mode, code, instruments, prefix)
    return Process(pid, tuple(words), log)


def _child(
    words: Sequence[str],
    log: Path,
    mode: Mode,
    code: Path,
    instruments: Instruments,
    prefix: Sequence[str],
) -> NoReturn:
    status = 1
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for name in [name for name in os.environ if name.startswith("SLURM_")]:
            del os.environ[name]  # a worker would requeue the job that the harness runs in
        os.environ["OMP_NUM_THREADS"] = "1"
        if mode == "exec":
            os.chdir(code)
            os.environ["PYTHONPATH"] = str(_REPOSITORY)
            settings = json.dumps({**vars(instruments), "items": str(instruments.items)})
            command = [*prefix, sys.executable, "-m", "tests.faults.child", settings, *words]
            os.execvp(command[0], command)
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
        instruments.apply()
        sys.argv = ["shapley", *words]
        main()
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
