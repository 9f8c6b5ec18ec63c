"""API keys: kept hashed in a file that commands change and a running server reads again when it changed.

A key is 32 random bytes, so that a plain SHA-256 of it cannot be searched: no salt or slow hash is needed.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, ValidationError

from shapley.errors import ShapleyError, unknown_name
from shapley.files import atomic_path, write_text
from shapley.server.asked import first_problem
from shapley.server.policy import Policy

FORMAT = "neuron-shapley-keys"
VERSION = 1
_PREFIX = "sk-shapley-"


class Key(BaseModel):
    """A key without itself: ``id`` names it in logs and commands, ``sha256`` recognises it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    organisation: str
    sha256: str
    created: str
    revoked: str | None = None
    policy: Policy


class KeyFile:
    """The keys in ``FOLDER/keys.json``.

    Args:
        folder: of the server's state, made when there is something to keep.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "keys.json"
        self._read_at: tuple[int, int] | None = None
        self._keys: dict[str, Key] = {}

    def all(self) -> list[Key]:
        """Revoked ones too, the oldest first.

        Raises:
            ShapleyError: the file is not one of keys.
        """
        self._refresh()
        return list(self._keys.values())

    def find(self, text: str) -> Key | None:
        """The key with this text, unless it is revoked."""
        self._refresh()
        key = self._keys.get(_hash(text))
        return key if key is not None and key.revoked is None else None

    def add(self, organisation: str, policy: Policy) -> tuple[Key, str]:
        """A new key, and its text, which is not kept."""
        text = _PREFIX + secrets.token_urlsafe(32)
        key = Key(id=secrets.token_hex(4), organisation=organisation, sha256=_hash(text), created=_now(), policy=policy)
        with self._changing():
            self._keys[key.sha256] = key
        return key, text

    def revoke(self, id: str) -> Key:
        """Refuse a key from now on.

        Raises:
            ShapleyError: no key of this name.
        """
        with self._changing():
            found = next((key for key in self._keys.values() if key.id == id), None)
            if found is None:
                raise unknown_name("key", id, (key.id for key in self._keys.values()))
            revoked = found if found.revoked else found.model_copy(update={"revoked": _now()})
            self._keys[found.sha256] = revoked
        return revoked

    @contextmanager
    def _changing(self) -> Iterator[None]:
        make_folder(self.path.parent)
        with FileLock(f"{self.path}.lock"):
            self._refresh()
            yield
            record = {
                "format": FORMAT,
                "version": VERSION,
                "keys": [key.model_dump(mode="json") for key in self._keys.values()],
            }
            write_text(self.path, json.dumps(record, indent=1) + "\n")
            self.path.chmod(0o600)

    def _refresh(self) -> None:
        try:
            status = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            self._keys, self._read_at = {}, None
            return
        at = (status.st_mtime_ns, status.st_ino)
        if at == self._read_at:
            return
        try:
            record = json.loads(self.path.read_text(encoding="utf-8"))
            if record["format"] != FORMAT or record["version"] != VERSION:
                raise KeyError("format")
            keys = [Key.model_validate(key) for key in record["keys"]]
        except ValidationError as error:
            raise ShapleyError(f"{self.path} holds a key that is damaged: {first_problem(error)}") from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ShapleyError(
                f"{self.path} is not a key file of version {VERSION}: put it back from a backup, or make new keys"
            ) from error
        self._keys, self._read_at = {key.sha256: key for key in keys}, at


def make_folder(folder: Path) -> None:
    """Raises ShapleyError where it cannot be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShapleyError(f"cannot make the state folder {folder}: {error.strerror}; give another --state") from error


def secret_of(folder: Path) -> bytes:
    """The server's secret, of which the noise is made: 32 random bytes, made once. Who changes it changes all noise.

    Raises:
        ShapleyError: it cannot be made or read.
    """
    make_folder(folder)
    path = folder / "secret"
    try:
        with FileLock(f"{path}.lock"):
            if not path.exists():
                with atomic_path(path) as temporary:
                    temporary.touch(0o600)
                    temporary.write_bytes(secrets.token_bytes(32))
        secret = path.read_bytes()
    except OSError as error:
        raise ShapleyError(f"cannot read the server's secret {path}: {error.strerror}") from error
    if len(secret) != 32:
        raise ShapleyError(f"{path} does not hold 32 bytes: put it back from a backup, or delete it for new noise")
    return secret


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
