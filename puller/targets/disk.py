"""What lies at the paths of a folder target, never looked at through a symbolic link."""

from __future__ import annotations

import os
import stat as stats

from puller.wire import files
from puller.wire.checksum import RecordHasher

_PART = 1 << 20


class Disk:
    """Reads below a folder. What is above a path is looked at once: call `forget` when it may have changed."""

    def __init__(self, root: bytes) -> None:
        self.root = root
        self._blockers: dict[bytes, bytes | None] = {b"": None}

    def forget(self) -> None:
        """Look at folders anew."""
        self._blockers = {b"": None}

    def full(self, path: bytes) -> bytes:
        """The path as the system takes it."""
        return self.root + b"/" + path

    def blocker(self, path: bytes) -> bytes | None:
        """The path above `path` that is there and is no real folder (a file, a symbolic link), if there is one."""
        folder = path.rpartition(b"/")[0]
        if folder in self._blockers:
            return self._blockers[folder]
        for parent in files.parents(path):
            above = parent.rpartition(b"/")[0]
            found = self._blockers.get(above)
            if found is None:
                mode = self._mode(parent)
                found = parent if mode is not None and not stats.S_ISDIR(mode) else None
            self._blockers[parent] = found
        return self._blockers[folder]

    def _mode(self, path: bytes) -> int | None:
        try:
            return os.lstat(self.full(path)).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return None

    def stat(self, path: bytes) -> os.stat_result | None:
        """The status of what lies at `path` itself, or None if nothing does."""
        if self.blocker(path) is not None:
            return None
        try:
            return os.lstat(self.full(path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def look(self, path: bytes) -> tuple[bytes, int, int] | None:
        """Type, size in bytes and mtime in nanoseconds of what lies at `path`, or None if nothing does."""
        stat = self.stat(path)
        if stat is None:
            return None
        if stats.S_ISLNK(stat.st_mode):
            kind = files.SYMLINK
        elif stats.S_ISDIR(stat.st_mode):
            kind = files.FOLDER
        else:
            kind = files.EXECUTABLE if stat.st_mode & 0o100 else files.FILE
        return kind, 0 if kind == files.FOLDER else stat.st_size, stat.st_mtime_ns

    def hash_of(self, path: bytes, kind: bytes) -> bytes | None:
        """The record hash of what lies at `path`, or None if nothing does. `kind` settles what an empty folder is."""
        stat = self.stat(path)
        if stat is None:
            return None
        full, hasher = self.full(path), RecordHasher(path)
        if stats.S_ISLNK(stat.st_mode):
            hasher.update(files.SYMLINK + os.readlink(full))
        elif stats.S_ISDIR(stat.st_mode):
            hasher.update(files.FOLDER if kind == files.FOLDER else b"")
        elif stats.S_ISREG(stat.st_mode):
            hasher.update(files.EXECUTABLE if stat.st_mode & 0o100 else files.FILE)
            with open(full, "rb", buffering=0) as file:
                while part := file.read(_PART):
                    hasher.update(part)
        return hasher.digest()

    def read(self, path: bytes) -> bytes | None:
        """The value of what lies at `path`, or None if nothing does, or what no dataset can hold."""
        stat = self.stat(path)
        if stat is None:
            return None
        full = self.full(path)
        if stats.S_ISLNK(stat.st_mode):
            return files.SYMLINK + os.readlink(full)
        if stats.S_ISDIR(stat.st_mode):
            return files.FOLDER
        if not stats.S_ISREG(stat.st_mode):
            return None
        with open(full, "rb") as file:
            return (files.EXECUTABLE if stat.st_mode & 0o100 else files.FILE) + file.read()

    def holds_only(self, path: bytes, going: set[bytes]) -> bool:
        """Whether the folder at `path` holds nothing but what is in `going`, and folders of that."""
        above = {parent for gone in going for parent in files.parents(gone)}
        pending = [path]
        while pending:
            folder = pending.pop()
            with os.scandir(self.full(folder)) as entries:
                for entry in entries:
                    inner = folder + b"/" + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        if inner not in above and inner not in going:
                            return False
                        pending.append(inner)
                    elif inner not in going:
                        return False
        return True


def remove_tree(path: bytes) -> None:
    """Remove a folder with all that is in it, however deep; what cannot be removed stays."""
    pending, folders = [path], []
    while pending:
        folder = pending.pop()
        folders.append(folder)
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(entry.path)
                    else:
                        _try(os.unlink, entry.path)
        except OSError:
            continue
    for folder in reversed(folders):
        _try(os.rmdir, folder)


def _try(act: object, path: bytes) -> None:
    try:
        act(path)  # type: ignore[operator]
    except OSError:
        return
