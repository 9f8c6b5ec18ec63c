"""Files that are whole or absent: temporary file, flush, rename; their checksums; and where caches live."""

from __future__ import annotations

import errno
import functools
import glob
import hashlib
import os
import platform
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from shapley.errors import ShapleyError

_LEFT_OVER_SECONDS = 3600
_NO_FOLDER_FSYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EACCES)


def cache_directory(*parts: str) -> Path:
    """A folder below ``$NEURON_SHAPLEY_CACHE`` (default ``~/.cache/neuron-shapley``), made if it must."""
    root = os.environ.get("NEURON_SHAPLEY_CACHE") or Path.home() / ".cache" / "neuron-shapley"
    directory = Path(root, *parts)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed over it when the block succeeds and removed when it does not.

    The file is on the disk, and so is its name, before this returns.

    Raises:
        ShapleyError: the folder is missing or not writable, or the disk is full; ``path`` is then as it was before.
    """
    temporary = path.with_name(f"{_prefix(path)}{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
        _remove_left_over(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _prefix(path: Path) -> str:
    """Of the names of temporaries, whole with both parts cut: a name may have 255 bytes."""
    return f".{path.name[:40]}.{platform.node()[:64]}."


@functools.cache  # once a process is enough: folders that hundreds of jobs write to are slow to list
def _remove_left_over(path: Path) -> None:
    """Remove what processes killed in the middle of writing ``path``, which was just written, left beside it.

    Only what is an hour old, of this machine, and of no process alive: another machine's cannot be asked after, and
    containers that share the machine's name do not see each other's processes.
    """
    try:
        now = path.stat().st_mtime  # by the clock of the file system, which may differ from this machine's
        for temporary in path.parent.glob(f"{glob.escape(_prefix(path))}*.partial"):
            pid = temporary.name.split(".")[-3]
            old = now - temporary.stat().st_mtime > _LEFT_OVER_SECONDS
            if old and pid.isdecimal() and not _alive(int(pid)):
                temporary.unlink()
    except OSError:
        return  # it is only tidying: what was asked for is written


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass  # another user's, or no process of ours to judge
    return True


def _sync_folder(folder: Path) -> None:
    """Make a rename outlive a power cut, where the file system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_FSYNC:
            raise


def digest(*parts: bytes | np.ndarray) -> str:
    """32 hexadecimal digits of blake2b: of bytes and their lengths, of arrays with their dtypes and shapes."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, np.ndarray):
            state.update(f"{part.dtype.str}{part.shape}".encode())
            state.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        else:
            state.update(f"{len(part)}:".encode())
            state.update(part)
    return state.hexdigest()


def write_error(path: Path, error: OSError) -> ShapleyError:
    """The one line for a file that could not be written."""
    if disk_is_full(error):
        return ShapleyError(f"cannot write {path}: the disk is full; free some space and run again")
    if not path.parent.exists():
        return ShapleyError(f"cannot write {path}: the folder {path.parent} does not exist; make it first")
    return ShapleyError(f"cannot write {path}: {error.strerror or error}")


def check_output(
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    inputs: Sequence[str | Path] = (),
    resumable: bool = True,
) -> None:
    """Raises ShapleyError when ``out`` cannot be written, is one of the inputs, or holds what nobody said to replace."""
    if resume and overwrite:
        raise ShapleyError("--resume and --overwrite exclude each other")
    if out.is_dir():
        raise ShapleyError(f"{out} is a folder: give a file to write")
    if out.resolve() in {Path(path).resolve() for path in inputs}:
        raise ShapleyError(f"{out} is an input of this command, and would be lost: write somewhere else")
    if out.exists() and not (resume or overwrite):
        hint = ", or --resume to go on with it" if resumable else ""
        raise ShapleyError(f"{out} exists: pass --overwrite to replace it{hint}")
    if resumable and not (resume or overwrite) and checkpoint_of(out).exists():
        raise ShapleyError(
            f"{checkpoint_of(out)} holds the work of a run that was stopped: pass --resume to go on with it, or --overwrite "
            "to start again"
        )
    if not out.parent.is_dir():
        raise ShapleyError(f"cannot write {out}: the folder {out.parent} does not exist; make it first")
    if not os.access(out.parent, os.W_OK):
        raise ShapleyError(f"cannot write {out}: no permission to write in {out.parent}")


def checkpoint_of(out: Path) -> Path:
    """Where a run that writes ``out`` keeps what it has done so far."""
    return out.with_name(f"{out.name}.checkpoint")


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says so; h5py wraps the system's in a message of its own and drops the errno of some."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
