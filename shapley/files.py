"""Files that are whole or absent: temporary file, flush, rename; and where caches live."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from shapley.errors import ShapleyError


def cache_directory(*parts: str) -> Path:
    """A folder below ``$NEURON_SHAPLEY_CACHE`` (default ``~/.cache/neuron-shapley``), made if it must."""
    root = os.environ.get("NEURON_SHAPLEY_CACHE") or Path.home() / ".cache" / "neuron-shapley"
    directory = Path(root, *parts)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed over it when the block succeeds and removed when it does not.

    Raises:
        ShapleyError: the folder is missing or not writable, or the disk is full; ``path`` is then as it was before.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


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
    if not out.parent.is_dir():
        raise ShapleyError(f"cannot write {out}: the folder {out.parent} does not exist; make it first")
    if not os.access(out.parent, os.W_OK):
        raise ShapleyError(f"cannot write {out}: no permission to write in {out.parent}")


def disk_is_full(error: BaseException) -> bool:
    """Whether an error says so; h5py wraps the system's in a message of its own and drops the errno of some."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
