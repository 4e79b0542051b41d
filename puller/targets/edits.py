"""What a step of a folder target would overwrite that somebody else made: local edits, and foreign files in the way."""

from __future__ import annotations

import os
import sqlite3
import stat as stats
from collections.abc import Callable

from puller.wire import files

KEEP, PLACE, FOLDER, DELETE = 0, 1, 2, 3
"""What a line of the journal does with its path."""

HashOf = Callable[[bytes, bytes], bytes | None]
"""The record hash of what lies at a path now (None: nothing), given the kind that an empty folder would be."""


class Edits:
    """Compares the paths that a journal names with what lies there."""

    def __init__(self, root: bytes, db: sqlite3.Connection, hash_of: HashOf) -> None:
        self._root = root
        self._db = db
        self._hash_of = hash_of

    def find(self) -> tuple[list[str], list[str]]:
        """Paths that this step would replace though they were changed here, and though they are not ours."""
        edited: list[str] = []
        foreign: list[str] = []
        deleted = {path for (path,) in self._db.execute("SELECT path FROM journal WHERE action = ?", (DELETE,))}
        rows = self._db.execute(
            "SELECT j.path, j.action, j.hash, j.kind, f.hash, f.kind, f.size, f.mtime FROM journal j LEFT JOIN files f "
            "ON f.path = j.path WHERE j.action != ? ORDER BY j.path",
            (KEEP,),
        )
        blocked: dict[bytes, bytes | None] = {}
        for path, action, new, new_kind, old, old_kind, size, mtime in rows:
            if (blocker := self._blocker(path, deleted, blocked)) is not None:
                foreign.append(os.fsdecode(blocker))
            elif action == DELETE:
                if old is not None and not self._unedited(path, old, old_kind, size, mtime):
                    edited.append(os.fsdecode(path))
            elif not self._unedited(path, old, old_kind, size, mtime) and self._in_the_way(
                path, new, new_kind, deleted
            ):
                (foreign if old is None else edited).append(os.fsdecode(path))
        return edited, foreign

    def _unedited(self, path: bytes, old: bytes | None, kind: bytes, size: int, mtime: int) -> bool:
        """Whether nothing is at `path` that could be lost: it is gone, or what was pulled."""
        full = os.path.join(self._root, path)
        try:
            stat = os.lstat(full)
        except (FileNotFoundError, NotADirectoryError):
            return True
        if old is None:
            return False
        if kind in (files.FILE, files.EXECUTABLE) and stats.S_ISREG(stat.st_mode):
            executable = bool(stat.st_mode & 0o100) == (kind == files.EXECUTABLE)
            if executable and (stat.st_size, stat.st_mtime_ns) == (size, mtime):
                return True
        return self._hash_of(path, kind) == old

    def _in_the_way(self, path: bytes, new: bytes, kind: bytes, deleted: set[bytes]) -> bool:
        full = os.path.join(self._root, path)
        if os.path.isdir(full) and not os.path.islink(full):
            return kind != files.FOLDER and not self._empties(full, deleted)
        return self._hash_of(path, kind) != new

    def _empties(self, full: bytes, deleted: set[bytes]) -> bool:
        """Whether a folder holds nothing but what this step deletes."""
        start = len(self._root) + 1
        for folder, _, names in os.walk(full):
            if any(os.path.join(folder, name)[start:] not in deleted for name in names):
                return False
        return True

    def _blocker(self, path: bytes, deleted: set[bytes], known: dict[bytes, bytes | None]) -> bytes | None:
        """The path above `path` that is there, is no folder, and is not about to go."""
        found = None
        for parent in files.parents(path):
            if parent not in known:
                known[parent] = None
                try:
                    mode = os.lstat(os.path.join(self._root, parent)).st_mode
                except (FileNotFoundError, NotADirectoryError):
                    continue
                if not stats.S_ISDIR(mode) and parent not in deleted:
                    known[parent] = parent
            found = found or known[parent]
        return found
