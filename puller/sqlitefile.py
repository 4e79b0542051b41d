"""What both halves must know of SQLite's files: telling one without losing its locks, and quoting names."""

from __future__ import annotations

import contextlib
import os
import sys
from urllib.parse import quote as quote_path


def is_database(path: str) -> bool:
    """Whether a file is a SQLite database.

    A program may have it open: closing any other descriptor of the file would drop the locks by which SQLite, in all of
    this process, keeps other processes from removing the log that it reads from. So SQLite itself looks, once it is loaded.
    """
    if not os.path.getsize(path):
        return False
    if "sqlite3" not in sys.modules:
        with open(path, "rb") as file:
            return file.read(16) == b"SQLite format 3\0"
    import sqlite3

    with contextlib.closing(sqlite3.connect(path, timeout=10.0)) as db:
        try:
            db.execute("PRAGMA schema_version")
        except sqlite3.DatabaseError as error:
            return "not a database" not in str(error)
        return True


def quote(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def address(path: str, options: str) -> str:
    """The URI by which SQLite opens a file with options: `mode=ro`, `mode=rw` (never creates it), `immutable=1`."""
    return f"file:{quote_path(os.fsencode(os.path.abspath(path)))}?{options}"


def wants_log(error: Exception) -> bool:
    """Whether SQLite could not make, or take up, the log of a database in WAL mode."""
    return "unable to open" in str(error) or "readonly database" in str(error)


def is_closed_to_us(path: str) -> bool:
    """Whether a database in WAL mode cannot be read as such by this user, who may not write to its folder."""
    return not os.access(os.path.dirname(os.path.abspath(path)), os.W_OK)


def has_log(path: str) -> bool:
    """Whether a log with commits lies beside a database."""
    try:
        return os.path.getsize(f"{path}-wal") > 0
    except FileNotFoundError:
        return False
