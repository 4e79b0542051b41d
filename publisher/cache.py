"""A local cache of record hashes: what a batch must know of the records it replaces, without reading the dataset.

A SQLite database with a *mark* for each record, and the version that they are of in the same transaction. It can be
deleted at any time. Several processes may use one: readers check the version in the transaction they read in.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from operator import add
from typing import NamedTuple

from puller.durable import sync_folder
from puller.errors import Invalid
from puller.runs import live
from puller.wire.checksum import MODULUS, record_hashes, sum_hashes
from puller.wire.nodes import Large, Run, Value

Mark = bytes
"""32 bytes: the record hash, big-endian, and the first half of the value's SHA-256.

The checksum needs the first half. Whether a value changed is told by the second one as well: whoever writes both
values could make the first half collide.
"""

FORMAT = 1
_WAIT = 10.0
_SUFFIX = ".db"
_BESIDE = ("", "-wal", "-shm", "-journal")


class Place(NamedTuple):
    """The version that marks are of; `publish_id` tells histories apart."""

    epoch: int
    version: int
    publish_id: str


class Unusable(Exception):
    """The cache cannot be read or written; it is to be forgotten."""


def mark(key: bytes, value: Value) -> Mark | None:
    """The mark of a record; None for a deleted one."""
    return marks([key], [value])[0]


def marks(keys: Sequence[bytes], values: Sequence[Value]) -> list[Mark | None]:
    """The mark of each record; None for a deleted one."""
    hashes = record_hashes(keys, values)
    if set(map(type, values)) == {bytes}:
        return list(map(add, hashes, [hashlib.sha256(v).digest()[:16] for v in values]))  # type: ignore[arg-type]
    return [
        None if digest is None else digest + _sha256(value)[:16] for digest, value in zip(hashes, values, strict=True)
    ]


def _sha256(value: Value) -> bytes:
    return value.sha256 if isinstance(value, Large) else hashlib.sha256(value or b"").digest()


def hash_sum(found: Iterable[Mark]) -> int:
    """The sum of the record hashes in some marks."""
    return sum_hashes([one[:16] for one in found])


class Cache:
    """The marks of all records of one version."""

    def __init__(self, path: str) -> None:
        """Open a cache that is there. Raises Unusable."""
        self.path = path
        try:
            # Our lock guards it: calls never overlap, though they come from several threads.
            uri = f"file:{_quoted(path)}?mode=rw"
            self._db = sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False, timeout=_WAIT)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.execute("PRAGMA cache_size=-8192")
            if self._db.execute("PRAGMA user_version").fetchone() != (FORMAT,):
                raise Unusable("the cache is of another release")
            self.opened = self._place()
            """The version that it was of when it was opened."""
        except (sqlite3.Error, TypeError) as error:
            raise self._unusable(error) from error

    def _place(self) -> Place:
        return Place(*self._db.execute("SELECT epoch, version, publish_id FROM place").fetchone())

    def look(self, keys: Sequence[bytes]) -> tuple[Place, dict[bytes, Mark]]:
        """The marks of those keys that are there, and the version that they are of. Raises Unusable."""
        execute = self._db.execute
        found: dict[bytes, Mark] = {}
        try:
            execute("BEGIN")
            try:
                place = self._place()
                for key in keys:
                    row = execute("SELECT mark FROM record WHERE key = ?", (key,)).fetchone()
                    if row is not None:
                        found[key] = row[0]
            finally:
                execute("COMMIT")
        except (sqlite3.Error, TypeError) as error:
            raise self._unusable(error) from error
        return place, found

    def advance(self, expected: Place, place: Place, changes: Mapping[bytes, Mark | None]) -> bool:
        """Apply changes in one transaction, if it is of the expected version; say whether it was. Raises Unusable."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if self._place() != expected:
                    self._db.execute("ROLLBACK")
                    return False
                ordered = sorted(changes.items())
                gone = [(key,) for key, one in ordered if one is None]
                self._db.executemany("DELETE FROM record WHERE key = ?", gone)
                put = (item for item in ordered if item[1] is not None)
                self._db.executemany("INSERT OR REPLACE INTO record VALUES (?, ?)", put)
                self._db.execute("UPDATE place SET epoch = ?, version = ?, publish_id = ?", place)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except (sqlite3.Error, TypeError) as error:
            raise self._unusable(error) from error
        return True

    def close(self) -> None:
        """Let go of it."""
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def delete(self) -> None:
        """Forget it for good."""
        self.close()
        _remove(self.path)

    def _unusable(self, error: Exception) -> Unusable:
        if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
            _remove(self.path)
        return Unusable(f"{self.path}: {error}")


def find(folder: str) -> Cache | None:
    """The newest usable cache in a folder."""
    for path in _caches(folder):
        with contextlib.suppress(Unusable):
            return Cache(path)
    return None


def build(folder: str, place: Place, checksum: int, runs: Iterable[Run]) -> Cache:
    """Make a cache of all records of a version, in place of the older ones in the folder.

    Raises Unusable where it cannot be written, and Invalid if the records do not have the given checksum. It gets a name
    that was never used: another process may still have an older cache open.
    """
    path = os.path.join(folder, f"{secrets.token_hex(8)}{_SUFFIX}")
    temporary = f"{path}-{os.getpid()}"
    try:
        os.makedirs(folder, exist_ok=True)
        total = _fill(temporary, place, runs)
        if total != checksum:
            raise Invalid("the records do not have the checksum that HEAD gives")
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        older = _caches(folder)
        os.rename(temporary, path)
        sync_folder(folder)
    except (sqlite3.Error, OSError) as error:
        raise Unusable(f"{folder}: {error}") from error
    finally:
        _remove(temporary)
    for old in older:
        _remove(old)
    return Cache(path)


def _fill(path: str, place: Place, runs: Iterable[Run]) -> int:
    """Write the database; return the sum of all record hashes. It is moved into place whole, so nothing is journalled."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA page_size=1024")
        db.execute("PRAGMA journal_mode=OFF")
        db.execute("PRAGMA synchronous=OFF")
        db.execute(f"PRAGMA user_version={FORMAT}")
        db.execute("CREATE TABLE place (epoch INTEGER, version INTEGER, publish_id TEXT)")
        db.execute("CREATE TABLE record (key BLOB PRIMARY KEY, mark BLOB NOT NULL) WITHOUT ROWID")
        db.execute("BEGIN")
        total = 0
        for keys, values in live(runs):
            found = [one for one in marks(keys, values) if one is not None]
            total += hash_sum(found)
            db.executemany("INSERT INTO record VALUES (?, ?)", zip(keys, found, strict=True))
        db.execute("INSERT INTO place VALUES (?, ?, ?)", place)
        db.execute("COMMIT")
    return total % MODULUS


def _caches(folder: str) -> list[str]:
    """The caches in a folder, the newest first."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry.stat().st_mtime, entry.path) for entry in entries if entry.name.endswith(_SUFFIX)]
    except OSError:
        return []
    return [path for _, path in sorted(found, reverse=True)]


def _remove(path: str) -> None:
    for ending in _BESIDE:
        with contextlib.suppress(OSError):
            os.unlink(path + ending)


def _quoted(path: str) -> str:
    return path.replace("%", "%25").replace("?", "%3f").replace("#", "%23")
