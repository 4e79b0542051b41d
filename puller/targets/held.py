"""Which pieces of large values lie in the files of a folder target, and where: an update reads them there."""

from __future__ import annotations

import os
import sqlite3
import stat as stats
import threading
from itertools import accumulate

import xxhash

from puller.errors import Stale
from puller.targets.disk import Disk
from puller.targets.edits import KEEP
from puller.wire import files

SCHEMA = """
CREATE TABLE IF NOT EXISTS pieces(path BLOB, position INTEGER, size INTEGER, hash BLOB, PRIMARY KEY (path, position))
    WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS pieces_by_hash ON pieces(hash);
CREATE TABLE IF NOT EXISTS staged_pieces(path BLOB, position INTEGER, size INTEGER, hash BLOB,
    PRIMARY KEY (path, position)) WITHOUT ROWID;
"""
"""The pieces of the large files in place and of those staged: where each begins in its value, its size, its xxh3_128."""


def stage(db: sqlite3.Connection, path: bytes, pieces: list[tuple[int, bytes]]) -> None:
    """Note the sizes and hashes of the pieces that a staged file was written from."""
    ends = accumulate(size for size, _ in pieces)
    rows = ((path, end - size, size, check) for end, (size, check) in zip(ends, pieces, strict=True))
    db.executemany("INSERT INTO staged_pieces VALUES (?, ?, ?, ?)", rows)


def place(db: sqlite3.Connection) -> None:
    """Let the pieces follow their files when a step is finished; those of files that go or are small now are forgotten."""
    db.execute("DELETE FROM pieces WHERE path IN (SELECT path FROM journal WHERE action != ?)", (KEEP,))
    db.execute("REPLACE INTO pieces SELECT * FROM staged_pieces")
    db.execute("DELETE FROM staged_pieces")


class HeldPieces:
    """Reads pieces, and other ranges, where they lie in a folder. May be used by several threads at once."""

    def __init__(self, disk: Disk, db: sqlite3.Connection) -> None:
        self._disk = disk
        self._db = db
        self._lock = threading.Lock()

    def get(self, check: bytes, size: int) -> bytes | None:
        """The content of the piece with this xxh3_128 and size in bytes, or None where no file has it any more."""
        try:
            for path, position in self._places(check, size):
                found = self._read(path, position, size)
                if found is not None and xxhash.xxh3_128_digest(found) == check:
                    return found
        except (OSError, sqlite3.Error):
            pass
        return None

    def range(self, path: bytes, offset: int, size: int) -> bytes:
        """So many bytes from an offset of the value at `path`, unchecked. Raises Stale where it has not so many."""
        try:
            found = self._read(path, offset, size)
        except OSError:
            found = None
        if found is None or len(found) != size:
            raise Stale(f"{os.fsdecode(path)} is not as it was pulled any more")
        return found

    def _places(self, check: bytes, size: int) -> list[tuple[bytes, int]]:
        query = "SELECT path, position FROM pieces WHERE hash = ? AND size = ? LIMIT 4"
        with self._lock:
            return self._db.execute(query, (check, size)).fetchall()

    def _read(self, path: bytes, position: int, size: int) -> bytes | None:
        """So many bytes from a position of the value at `path`, whose first byte is the file's type."""
        if self._disk.stat(path) is None:
            return None
        descriptor = os.open(self._disk.full(path), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            stat = os.fstat(descriptor)
            if not stats.S_ISREG(stat.st_mode):
                return None
            if position:
                return os.pread(descriptor, size, position - 1)
            kind = files.EXECUTABLE if stat.st_mode & 0o100 else files.FILE
            return kind + os.pread(descriptor, size - 1, 0)
        finally:
            os.close(descriptor)
