"""Segments: what a worker computed since its last checkpoint, in one file that is written once and never changed.

A segment holds whole *samples*, one an item of work, each a few arrays. Its name is unique to the attempt that wrote it, so
two workers with the same shard never write the same file, and nothing is locked. An item that is in two segments is the same
in both, bit for bit: whichever is read counts, once.

Layout: a line that names the format; the header's length and digest; the header (JSON) with each sample's item, forward
rows, and arrays (dtype, shape, place, digest); the arrays' bytes. Arrays are read and verified one sample at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple
from zlib import crc32

import numpy as np

from shapley.errors import ShapleyError
from shapley.files import atomic_path

SUFFIX = ".segment"
_MAGIC = b"neuron-shapley-segment 2\n"
_DIGEST = 16


class Item(NamedTuple):
    """The smallest piece of work: a part of a unit's sample."""

    unit: int
    part: int


@dataclass(frozen=True)
class Sample:
    """What came of an item: its arrays, and the forward rows and seconds that they cost."""

    arrays: tuple[np.ndarray, ...]
    rows: int
    seconds: float


@dataclass(frozen=True)
class Place:
    """Where a sample is: ``record`` is its entry in the header of the segment at ``path``."""

    path: Path
    start: int
    record: Mapping[str, Any]


class DamagedError(ShapleyError):
    """A segment that is not what was written."""


def write_segment(path: Path, settings: str, samples: Mapping[Item, Sample]) -> None:
    """Write samples to a new file: whole or not at all.

    Args:
        path: of the segment; its folder exists.
        settings: digest of the settings that the samples depend on.
        samples: at least one.

    Raises:
        ShapleyError: the disk is full, or the folder cannot be written to.
    """
    records, blocks, offset = [], [], 0
    for item, sample in samples.items():
        arrays = []
        for array in sample.arrays:
            data = np.ascontiguousarray(array)
            blocks.append(data)
            arrays.append([data.dtype.str, list(data.shape), offset, _checksum(_bytes(data))])
            offset += data.nbytes
        records.append({"item": list(item), "rows": sample.rows, "seconds": sample.seconds, "arrays": arrays})
    header = json.dumps({"settings": settings, "samples": records}).encode()
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_MAGIC + len(header).to_bytes(8, "little") + bytes.fromhex(_digest(header)) + header)
        for block in blocks:
            file.write(_bytes(block))
        file.flush()
        os.fsync(file.fileno())


def read_header(path: Path) -> tuple[str, dict[Item, Place]]:
    """The settings' digest of a segment, and the places of its samples; the arrays are not read.

    Raises:
        DamagedError: it is not what was written, as far as the header and the file's length tell.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
            if magic != _MAGIC:
                raise DamagedError(f"{path} is not a segment, or is damaged at its beginning")
            length = int.from_bytes(file.read(8), "little")
            digest, size = file.read(_DIGEST).hex(), os.fstat(file.fileno()).st_size
            if length > size:
                raise DamagedError(f"{path} is cut short or damaged")
            text = file.read(length)
    except OSError as error:
        raise DamagedError(f"cannot read {path}: {error.strerror or error}") from error
    if _digest(text) != digest:
        raise DamagedError(f"{path} is cut short or damaged: its header does not match its checksum")
    header = json.loads(text)
    start = len(_MAGIC) + 8 + _DIGEST + length
    places = {Item(*record["item"]): Place(path, start, record) for record in header["samples"]}
    if size != start + _end(header["samples"]):
        raise DamagedError(f"{path} is cut short: {size} bytes, expected {start + _end(header['samples'])}")
    return header["settings"], places


class Reader:
    """Reads samples and verifies them. The last segment stays open: samples that follow each other mostly lie in one, and to
    open a file of a network file system takes as long as to read a megabyte."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file: BinaryIO | None = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def read(self, place: Place) -> Sample:
        """A sample.

        Raises:
            DamagedError: it is not what was written.
        """
        arrays = []
        try:
            file = self._open(place.path)
            for dtype, shape, offset, digest in place.record["arrays"]:
                file.seek(place.start + offset)
                data = file.read(int(np.prod(shape)) * np.dtype(dtype).itemsize)
                if _checksum(data) != digest:
                    raise DamagedError(
                        f"{place.path} is damaged: item {place.record['item']} does not match its checksum"
                    )
                arrays.append(np.frombuffer(data, dtype=dtype).reshape(shape))
        except OSError as error:
            raise DamagedError(f"cannot read {place.path}: {error.strerror or error}") from error
        return Sample(tuple(arrays), place.record["rows"], place.record["seconds"])

    def _open(self, path: Path) -> BinaryIO:
        if self._file is None or path != self._path:
            self._close()
            self._file, self._path = path.open("rb"), path
        return self._file

    def _close(self) -> None:
        if self._file:
            self._file.close()
        self._file = None


def read_sample(place: Place) -> Sample:
    """One sample. Raises DamagedError when it is not what was written."""
    with Reader() as reader:
        return reader.read(place)


class Shelf:
    """All samples of one round, in the segments of a folder.

    Attributes:
        places: by item, as of the last ``scan``.
        damaged: what is wrong with segments that could not be read, a line each, by path.
    """

    def __init__(self, folder: Path, settings: str) -> None:
        self.folder, self.settings = folder, settings
        self.places: dict[Item, Place] = {}
        self.damaged: dict[Path, str] = {}
        self._read: set[Path] = set()

    def scan(self, ending: str = "") -> None:
        """Take in the segments that came since the last scan; only those whose names end so, if that is asked for.

        Raises:
            ShapleyError: a segment belongs to work with other settings.
        """
        for path in sorted(self.folder.glob(f"*{ending}{SUFFIX}")):
            if path in self._read:
                continue
            self._read.add(path)
            try:
                settings, places = read_header(path)
            except DamagedError as error:
                self.damaged[path] = str(error)
                continue
            if settings != self.settings:
                raise ShapleyError(
                    f"{path} was made with other settings, prompts, model or code: it does not belong here"
                )
            for item, place in places.items():
                self.places.setdefault(item, place)

    def missing(self, items: Iterable[Item]) -> list[Item]:
        """Those that no segment holds."""
        return [item for item in items if item not in self.places]

    def drop(self, path: Path, why: str) -> None:
        """Take a segment that turned out to be damaged out of the shelf; what else holds its items comes in its place."""
        self.damaged[path] = why
        self.places.clear()
        self._read = set(self.damaged)
        self.scan()


def _bytes(array: np.ndarray) -> memoryview:
    """Of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data


def _digest(data: bytes | memoryview) -> str:
    return blake2b(data, digest_size=_DIGEST).hexdigest()


def _checksum(data: bytes | memoryview) -> str:
    """Of an array: against accidents, and three times as fast as the header's digest; a merge reads many gigabytes."""
    return f"{crc32(data):08x}"


def _end(records: Sequence[Mapping[str, Any]]) -> int:
    """Bytes of all arrays."""
    ends = [
        offset + int(np.prod(shape)) * np.dtype(dtype).itemsize
        for record in records
        for dtype, shape, offset, _ in record["arrays"]
    ]
    return max(ends, default=0)
