"""The audit log: who asked for what, when, and what was applied; append-only, and on the disk before a request is answered.

A line is a JSON object with the SHA-256 of the line before it, so that a line that was changed or taken out shows.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from shapley.errors import ShapleyError
from shapley.files import write_error

_FIRST = "0" * 64
_LONGEST_LINE = 1 << 20  # bytes; a log of years is not read to be gone on with


class AuditLog:
    """An open log; safe to write from several threads.

    A line that ``kill -9`` left half written was never acknowledged: it is closed by a line end and reported by ``check``.

    Raises:
        ShapleyError: the file cannot be opened for appending.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise ShapleyError(f"cannot append to the audit log {path}: {error.strerror}") from error
        self._failed = False
        self._last = self._close_last_line()

    def write(self, event: str, **fields: Any) -> None:
        """Append a line, and return when it is on the disk.

        Raises:
            ShapleyError: it is not; then nothing of it is in the file.
        """
        with self._lock:
            record = {"time": _now(), "event": event, **fields, "previous": self._last}
            line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
            self._append(line)
            self._last = hashlib.sha256(line).hexdigest()

    @property
    def writable(self) -> bool:
        """Whether the last line went in whole."""
        return not self._failed

    def close(self) -> None:
        os.close(self._file)

    def _append(self, line: bytes) -> None:
        """All of it, or none: a full disk takes a part, which is taken back."""
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file)
            self._failed = False
        except OSError as error:
            self._failed = True
            with suppress(OSError):
                os.ftruncate(self._file, size)
            raise write_error(self.path, error) from error

    def _close_last_line(self) -> str:
        """End a half-written last line; the hash of the last line."""
        size = os.fstat(self._file).st_size
        tail = os.pread(self._file, _LONGEST_LINE, max(0, size - _LONGEST_LINE))
        if tail and not tail.endswith(b"\n"):
            self._append(b"\n")
            tail += b"\n"
        last = tail[tail[:-1].rfind(b"\n") + 1 :]
        return hashlib.sha256(last).hexdigest() if last else _FIRST


def check(path: Path) -> tuple[list[Mapping[str, Any]], list[str]]:
    """The log's records, and what is wrong with it, a line each: half-written lines, and places where one does not follow the
    other.

    Raises:
        ShapleyError: no log.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise ShapleyError(f"no audit log at {path}: {error.strerror}") from error
    records: list[Mapping[str, Any]] = []
    problems: list[str] = []
    previous = _FIRST
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            problems.append(f"line {number} is half written")
        else:
            records.append(record)
            if record.get("previous") != previous:
                problems.append(f"line {number} does not follow the line before it")
        previous = hashlib.sha256(line).hexdigest()
    return records, problems


def _now() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
