"""Small JSON files that say whether they are what was written: the digest of the rest is their first entry."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shapley.errors import ShapleyError
from shapley.files import digest, write_text

_DIGEST = "digest"


class DamagedRecordError(ShapleyError):
    """A file that is not what was written."""


def write_sealed(path: Path, record: Mapping[str, Any], indent: int | None = None) -> None:
    """Write a JSON object, atomically. Raises ShapleyError when it cannot be written."""
    write_text(path, json.dumps({_DIGEST: _digest(record), **record}, indent=indent))


def read_sealed(path: Path, missing: str, remedy: str) -> dict[str, Any]:
    """What ``write_sealed`` wrote.

    Args:
        path: of the file.
        missing: the line for a file that is not there.
        remedy: what to do about one that is damaged.

    Raises:
        ShapleyError: it is not there, or cannot be read.
        DamagedRecordError: it is not what was written.
    """
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ShapleyError(missing) from None
    except OSError as error:
        raise ShapleyError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.pop(_DIGEST, None) != _digest(record):
        raise DamagedRecordError(f"{path} is damaged: {remedy}")
    return record


def _digest(record: Mapping[str, Any]) -> str:
    return digest(json.dumps(record, sort_keys=True).encode())
