"""What a step of a folder target would overwrite that somebody else made: local edits, and foreign files in the way."""

from __future__ import annotations

import os
import sqlite3
import stat as stats

from puller.targets.disk import Disk
from puller.wire import files

KEEP, PLACE, FOLDER, DELETE = 0, 1, 2, 3
"""What a line of the journal does with its path."""


class Edits:
    """Compares the paths that a journal names with what lies there.

    After `find`: `edited` are paths that would be replaced though they were changed here, `foreign` those though
    they are not ours, `blockers` those of them above paths of the dataset. With `exact`, files are read even where
    their size and modification time are those that were written.
    """

    def __init__(self, disk: Disk, db: sqlite3.Connection, *, exact: bool) -> None:
        self._disk = disk
        self._db = db
        self._exact = exact
        self.edited: list[str] = []
        self.foreign: list[str] = []
        self.blockers: list[str] = []

    def find(self) -> None:
        """Look at every path of the journal."""
        going = {path for (path,) in self._db.execute("SELECT path FROM journal WHERE action = ?", (DELETE,))}
        rows = self._db.execute(
            "SELECT j.path, j.action, j.hash, j.kind, f.hash, f.kind, f.size, f.mtime FROM journal j LEFT JOIN files f "
            "ON f.path = j.path ORDER BY j.path"
        )
        for path, action, new, new_kind, old, old_kind, size, mtime in rows:
            if action == DELETE and old is None:
                continue
            blocker = self._disk.blocker(path)
            if blocker is not None:
                if blocker not in going:
                    self.blockers.append(os.fsdecode(blocker))
            elif action == KEEP or self._unedited(path, old, old_kind, size, mtime):
                continue
            elif action == DELETE or self._in_the_way(path, new, new_kind, going):
                (self.foreign if old is None else self.edited).append(os.fsdecode(path))
        self.blockers = sorted(set(self.blockers))
        self.foreign += self.blockers

    def _unedited(self, path: bytes, old: bytes | None, kind: bytes, size: int, mtime: int) -> bool:
        """Whether nothing is at `path` that could be lost: it is gone, or what was pulled."""
        stat = self._disk.stat(path)
        if stat is None:
            return True
        if old is None:
            return False
        if kind in (files.FILE, files.EXECUTABLE) and stats.S_ISREG(stat.st_mode):
            executable = bool(stat.st_mode & 0o100) == (kind == files.EXECUTABLE)
            if executable and not self._exact and (stat.st_size, stat.st_mtime_ns) == (size, mtime):
                return True
        return self._disk.hash_of(path, kind) == old

    def _in_the_way(self, path: bytes, new: bytes, kind: bytes, going: set[bytes]) -> bool:
        stat = self._disk.stat(path)
        if stat is not None and stats.S_ISDIR(stat.st_mode):
            return kind != files.FOLDER and not self._disk.holds_only(path, going)
        return self._disk.hash_of(path, kind) != new
