"""Walking through a folder: what its paths look like, all of them or those that may have changed."""

from __future__ import annotations

import os
import stat as stats
import time
from collections.abc import Collection, Container, Iterable, Mapping

from publisher.sources.statcache import look, racy_since
from puller.errors import Invalid, SourceError
from puller.wire import files
from puller.wire.codec import MAX_KEY

_FORM = 0o170000


class Scan:
    """What paths below `root` look like, by key; empty folders look like files.FOLDER.

    Paths that are `known` need no check of their names.
    """

    def __init__(self, root: str, known: Container[bytes] = ()) -> None:
        self.where = root
        self._root = os.fsencode(root)
        self._known = known
        self._limit = racy_since(time.time_ns())
        self._status: dict[bytes, os.stat_result | None] = {}
        self.looks: dict[bytes, bytes] = {}
        self.unsettled: set[bytes] = set()
        """Keys of what may change again and still look the same."""
        self.gone: set[bytes] = set()
        """Keys that were known before and are no more; found by `some` only."""
        self.folders: set[bytes] = {b""}
        """Folders that were walked through."""
        self.skipped: list[tuple[str, str]] = []
        self.private = 0

    def all(self) -> None:
        """Look at everything. Raises SourceError."""
        self._walk(b"")

    def some(self, paths: Iterable[bytes], known: Mapping[bytes, bytes], folders: Collection[bytes]) -> None:
        """Look at these paths and all below them. Raises SourceError.

        `known` are the looks from before, `folders` at least the folders that there were then. What it costs follows the
        paths, unless a folder among them is gone or was replaced: then all known keys are gone through once.
        """
        tops = {self._reached(path) for path in paths}
        for path in sorted(tops):
            if not self._is_walked(path):
                self._one(path)
        for parent in {os.path.dirname(path) for path in tops} - {b""}:
            if not self._is_walked(parent):
                self._refill(parent)
        lost = {path for path in tops if path in folders}
        prefixes = tuple(path + b"/" for path in lost if lost.isdisjoint(files.parents(path)))
        if prefixes:
            self.gone.update(key for key in known if key.startswith(prefixes))
        self.gone |= tops
        self.gone = (self.gone & known.keys()) - self.looks.keys()

    def _reached(self, path: bytes) -> bytes:
        """The path, or that above it which is no folder: what lies behind a symbolic link is not ours."""
        return next((above for above in files.parents(path) if not self._is_folder(above)), path)

    def _is_folder(self, path: bytes) -> bool:
        status = self._lstat(path)
        return status is not None and stats.S_ISDIR(status.st_mode)

    def _lstat(self, path: bytes) -> os.stat_result | None:
        """What lies at a path, looked at once; None where there is nothing."""
        if path not in self._status:
            try:
                self._status[path] = os.lstat(os.path.join(self._root, path))
            except (FileNotFoundError, NotADirectoryError):
                self._status[path] = None
            except OSError as error:
                raise self._unreadable(path, error) from error
        return self._status[path]

    def _is_walked(self, path: bytes) -> bool:
        return path in self.folders or any(above in self.folders for above in files.parents(path))

    def _one(self, path: bytes) -> None:
        status = self._lstat(path)
        if status is None or path == files.RESERVED or not self._fits(path):
            return
        if stats.S_ISDIR(status.st_mode):
            self._walk(path)
        else:
            self._take(path, status)

    def _refill(self, folder: bytes) -> None:
        """Whether a folder is empty by now is a fact about it."""
        if not self._is_folder(folder) or not self._fits(folder):
            return
        try:
            with os.scandir(os.path.join(self._root, folder)) as found:
                empty = not any(self._is_data(folder + b"/" + entry.name, entry) for entry in found)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._unreadable(folder, error) from error
        if empty:
            self.looks[folder] = files.FOLDER
        else:
            self.gone.add(folder)

    def _is_data(self, key: bytes, entry: os.DirEntry[bytes]) -> bool:
        if key not in self._known and not _is_path(key):
            return False
        return entry.is_dir(follow_symlinks=False) or entry.is_symlink() or entry.is_file(follow_symlinks=False)

    def _walk(self, top: bytes) -> None:
        pending = [top]
        while pending:
            folder = pending.pop()
            try:
                with os.scandir(os.path.join(self._root, folder)) as found:
                    inner, named = self._look(folder, found)
            except FileNotFoundError as error:
                if folder == b"":
                    raise self._unreadable(folder, error) from error
                continue  # removed since its parent was read
            except OSError as error:
                raise self._unreadable(folder, error) from error
            self.folders.add(folder)
            pending += inner
            if folder and not named:
                self.looks[folder] = files.FOLDER

    def _look(self, folder: bytes, found: Iterable[os.DirEntry[bytes]]) -> tuple[list[bytes], int]:
        """Look at a folder's entries; return the folders among them, and how many entries are data."""
        inner: list[bytes] = []
        named = 0
        known = self._known
        prefix = folder + b"/" if folder else b""
        for entry in found:
            key = prefix + entry.name
            if key not in known and not self._fits(key):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            if status.st_mode & _FORM == stats.S_IFDIR:
                inner.append(key)
            elif not self._take(key, status):
                continue
            named += 1
        return inner, named

    def _take(self, key: bytes, status: os.stat_result) -> bool:
        """Note what a file or a symbolic link looks like; False for what is neither."""
        form = status.st_mode & _FORM
        if form not in (stats.S_IFREG, stats.S_IFLNK):
            self._skip(key, "it is no file, folder or symbolic link")
            return False
        self.looks[key] = look(status)
        if status.st_ctime_ns >= self._limit or status.st_mtime_ns >= self._limit:
            self.unsettled.add(key)
        if not status.st_mode & stats.S_IROTH:
            self.private += 1
        return True

    def _fits(self, key: bytes) -> bool:
        try:
            files.check_path(key)
        except Invalid as error:
            self._skip(key, str(error).rpartition(": ")[2])
            return False
        if len(key) > MAX_KEY:
            self._skip(key, "the path is longer than 4096 bytes")
            return False
        return True

    def _skip(self, key: bytes, reason: str) -> None:
        self.skipped.append((key.decode(errors="backslashreplace"), reason))

    def _unreadable(self, key: bytes, error: OSError) -> SourceError:
        name = os.path.join(self.where, os.fsdecode(key)) if key else self.where
        return SourceError(f"{name} cannot be read: {error.strerror}; nothing was published")


def _is_path(key: bytes) -> bool:
    try:
        files.check_path(key)
    except Invalid:
        return False
    return len(key) <= MAX_KEY
