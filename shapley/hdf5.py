"""HDF5 files that are written whole or not at all, and read as they were written or not at all.

Every dataset and group carries a digest of itself, verified when it is read. Files made before there were digests have
none anywhere, and are read; one that has some and lacks others is damaged. A file ends in a digest of its metadata, of
all but the arrays, verified before HDF5 sees it: HDF5 may crash on damaged metadata, or work on it for ever.
"""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import h5py
import numpy as np

from shapley.errors import ShapleyError
from shapley.files import atomic_path, digest, disk_is_full, write_error

VERSION = 1
DIGEST = "blake2b"
_NUMBERS = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.ENUM)
_LAST_LINE = re.compile(rb"neuron-shapley metadata (\d{16})\n")
_LAST_LINE_SIZE = 41


@contextmanager
def open_hdf5(path: Path, expected: str, what: str) -> Iterator[h5py.File]:
    """Open one of this package's HDF5 files for reading.

    Raises:
        ShapleyError: in one line, why it cannot be.
    """
    if not path.exists():
        raise ShapleyError(f"no {what} at {path}")
    try:
        _verify_metadata(path)
        with h5py.File(path, "r", locking=False) as file:  # network file systems may have no locks
            found = file.attrs.get("format")
            if found != expected:
                raise ShapleyError(f"{path} is not a {what}: its format is {found!r}, expected {expected!r}")
            if file.attrs.get("version") != VERSION:
                version = file.attrs.get("version")
                raise ShapleyError(f"{path} has version {version}, this program reads version {VERSION}")
            read_attrs(file)
            yield file
    except ShapleyError:
        raise
    except Exception as error:  # h5py raises all sorts where a file is damaged
        if disk_is_full(error):  # of a file that is written from this one
            raise
        raise ShapleyError(f"cannot read {what} {path}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """Why a file cannot be read and what to do, in one line."""
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    text = " ".join(str(error).split()) or type(error).__name__
    known = {"truncated file": "it is cut short", "file signature not found": "it is not an HDF5 file"}
    return f"{next((known[words] for words in known if words in text), text)}; make it again"


@contextmanager
def create_hdf5(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file, which takes the place of ``path`` when the block succeeds.

    Raises:
        ShapleyError: as ``atomic_path``.
    """
    with atomic_path(path) as temporary:
        with temporary.open("w+b", buffering=0) as raw:
            disk = _Disk(raw)
            try:
                with h5py.File(disk, "w") as file:
                    yield file
                    file.flush()
                    places = _places(file)
            except (OSError, RuntimeError) as error:  # h5py wraps the system's errors in either
                raise write_error(path, error if isinstance(error, OSError) else OSError(str(error))) from error
        if disk.error is not None:
            raise disk.error
        _append_metadata_digest(temporary, places)


class _Disk:
    """A file for HDF5 to write, which goes on in memory where it cannot: HDF5 crashes on a disk that is full."""

    def __init__(self, raw: IO[bytes]) -> None:
        self._file = raw
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        start = self._file.tell()
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            self.error = error
            self._file.seek(0)
            self._file = io.BytesIO(self._file.read())
            self._file.seek(start)
            self._file.write(data)
        return len(data)


def seal(*items: h5py.Dataset | h5py.Group) -> None:
    """Store with datasets and groups their digests; a group is sealed after what is in it."""
    for item in items:
        if isinstance(item, h5py.Dataset):
            item.attrs[DIGEST] = _array_digest(item.name, item[()])
        else:
            item.attrs[DIGEST] = _group_digest(item, _attrs(item))


def read_array(group: h5py.Group, name: str) -> Any:
    """A dataset, verified.

    Raises:
        ValueError: it is not what was written; ``open_hdf5`` names the file.
    """
    dataset = group[name]
    values = dataset[()]
    _verify(dataset, _array_digest(dataset.name, values))
    return values


def read_attrs(group: h5py.Group) -> dict[str, Any]:
    """The attributes of a group, verified with the names of what is in it.

    Raises:
        ValueError: they are not what was written; ``open_hdf5`` names the file.
    """
    attrs = _attrs(group)
    _verify(group, _group_digest(group, attrs))
    return attrs


def read_texts(group: h5py.Group, name: str) -> list[str]:
    """A dataset of texts, verified.

    Raises:
        ValueError: as ``read_array``.
    """
    return [text.decode() for text in read_array(group, name)]


def _verify(item: h5py.Dataset | h5py.Group, found: str) -> None:
    stored = item.attrs.get(DIGEST)
    if stored is None and DIGEST not in item.file.attrs and not (isinstance(item, h5py.Group) and _sealed(item)):
        return  # made before there were digests
    if stored != found:
        raise ValueError(f"{item.name} is damaged, its checksum differs")


def _array_digest(name: str, values: np.ndarray) -> str:
    if values.dtype == object:  # texts
        lengths = np.array([len(text) for text in values])
        return digest(name.encode(), lengths, b"".join(values))
    return digest(name.encode(), values)


def _group_digest(group: h5py.Group, attrs: Mapping[str, Any]) -> str:
    # Of the root, names are left out: what misses there is missed by name.
    names = [] if group.name == "/" else _sealed(group)
    text = json.dumps([group.name, names, attrs], sort_keys=True, default=np.ndarray.tolist)
    return digest(text.encode())


def _sealed(group: h5py.Group) -> list[str]:
    """Names of what was written with a digest into a group; others may add what they like."""
    return sorted(name for name, item in group.items() if item is not None and DIGEST in item.attrs)


def _places(file: h5py.File) -> list[tuple[int, int]]:
    """Where in a file its arrays lie, as offset and size; what damage to them does is seen by their own digests."""
    places: list[tuple[int, int]] = []

    def visit(_: str, item: h5py.Dataset | h5py.Group) -> None:
        if not isinstance(item, h5py.Dataset) or item.id.get_type().get_class() not in _NUMBERS:
            return  # texts are stored as addresses, which are metadata
        if item.chunks is not None:
            chunks = [item.id.get_chunk_info(i) for i in range(item.id.get_num_chunks())]
            places.extend((chunk.byte_offset, chunk.size) for chunk in chunks)
        elif item.id.get_offset() is not None:
            places.append((item.id.get_offset(), item.id.get_storage_size()))

    file.visititems(visit)
    return sorted(places)


def _append_metadata_digest(path: Path, places: list[tuple[int, int]]) -> None:
    """Add to the end of an HDF5 file, where HDF5 does not look, the digest of all but the arrays.

    Whoever changes the file with HDF5 cuts it off thereby.
    """
    with path.open("r+b") as file:
        end = file.seek(0, os.SEEK_END)
        text = json.dumps([_metadata_digest(file, places, end), places]).encode()
        file.seek(end)
        file.write(text + b"neuron-shapley metadata %016d\n" % len(text))


def _verify_metadata(path: Path) -> None:
    """Raises ValueError when a file has a digest of its metadata, and it differs."""
    with path.open("rb") as file:
        last = max(0, file.seek(0, os.SEEK_END) - _LAST_LINE_SIZE)
        file.seek(last)
        match = _LAST_LINE.fullmatch(file.read())
        if match is None:
            return
        end = last - int(match[1])
        try:
            file.seek(end)
            stored, places = json.loads(file.read(last - end))
            intact = stored == _metadata_digest(file, places, end)
        except (ValueError, TypeError, OSError, OverflowError):
            intact = False
        if not intact:
            raise ValueError("it is damaged, the checksum of its metadata differs")


def _metadata_digest(file: IO[bytes], places: Sequence[Sequence[int]], end: int) -> str:
    between, position = [], 0
    for start, size in (*places, (end, 0)):
        file.seek(position)
        between.append(file.read(max(0, start - position)))
        position = start + size
    return digest(json.dumps([places, end]).encode(), *between)


def _attrs(group: h5py.Group) -> dict[str, Any]:
    return {name: _plain(value) for name, value in group.attrs.items() if name != DIGEST}


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
