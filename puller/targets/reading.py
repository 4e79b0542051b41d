"""Connections for reading a SQLite file while others write to it: each holds one state still."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from puller.errors import TargetError


class Connections:
    """Hands out connections with a transaction begun; may be used from any number of threads.

    A file that `is_ours` is set to write-ahead logging, so that readers and a writer do not wait for each other;
    only then connections are kept for the next reader.
    """

    def __init__(self, path: str | bytes, is_ours: Callable[[sqlite3.Connection], bool]) -> None:
        self._path = path
        self._is_ours = is_ours
        self._lock = threading.Lock()
        self._free: list[sqlite3.Connection] = []
        self._file = (0, 0)
        """Device and number of the file that those are open on: another one may take its place."""
        self._closed = False

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees the file as it is at its first query, until the end."""
        db, file = self._take()
        try:
            db.execute("BEGIN")
            yield db
        finally:
            if db.in_transaction:
                db.execute("ROLLBACK")
            with self._lock:
                keep = file == self._file and not self._closed
                if keep:
                    self._free.append(db)
            if not keep:
                db.close()

    def close(self) -> None:
        """Close those that are free, and those in use at their end."""
        with self._lock:
            self._closed = True
            free, self._free = self._free, []
        for db in free:
            db.close()

    def _take(self) -> tuple[sqlite3.Connection, tuple[int, int] | None]:
        """A connection, and the file it is open on, if it may be kept."""
        with self._lock:
            if self._closed:
                raise TargetError(f"{os.fsdecode(self._path)} was closed")
            stat = os.stat(self._path)
            file = stat.st_dev, stat.st_ino
            while file != self._file and self._free:
                self._free.pop().close()
            self._file = file
            if self._free:
                return self._free.pop(), file
        db = sqlite3.connect(self._path, isolation_level=None, timeout=10.0, check_same_thread=False)
        try:
            ours = self._is_ours(db) and (not os.access(self._path, os.W_OK) or _set_wal(db))
            db.execute("PRAGMA query_only=ON")
        except BaseException:
            db.close()
            raise
        return db, file if ours else None


def _set_wal(db: sqlite3.Connection) -> bool:
    """Whether the file is in write-ahead logging now. It cannot be while another process writes to it."""
    try:
        return bool(db.execute("PRAGMA journal_mode=WAL").fetchone()[0] == "wal")
    except sqlite3.OperationalError:
        return False
