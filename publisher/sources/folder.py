"""A folder as source (kind `files`)."""

from __future__ import annotations

import os
import stat as stats
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from publisher.sources.base import Report
from publisher.sources.statcache import StatCache, look, mode_of, racy_since
from puller.errors import Invalid, Refused, SourceError
from puller.wire import files
from puller.wire.codec import MAX_INLINE, MAX_KEY
from puller.wire.nodes import Run

if TYPE_CHECKING:
    from publisher.large import Stream

ATTEMPTS = 3
_BATCH = 1 << 20
_FORM = 0o170000


class FolderSource:
    """Reads files, executables, symlinks and empty folders; what a dataset cannot hold is reported.

    With `strict`, such a thing is an error instead. With a `cache`, files that look as they did when they were
    published are not read again.
    """

    kind = "files"

    def __init__(self, root: str, *, strict: bool = False, cache: StatCache | None = None) -> None:
        self.where = root
        self._root = os.fsencode(root)
        self._strict = strict
        self._cache = cache
        self._looks: dict[bytes, bytes] = {}
        self._unsettled: set[bytes] = set()
        self._touched: list[bytes] | None = None
        self.report = Report()

    def lead(self) -> Run:
        return [], []

    def recall(self, state: bytes) -> list[bytes] | None:
        known = None if self._cache is None else self._cache.load(state)
        if known is None:
            return None
        self._scan(known)
        self._touched = [] if self._looks == known else sorted({key for key, _ in self._looks.items() ^ known.items()})
        return self._touched

    def remember(self, state: bytes) -> None:
        if self._cache is not None:
            self._cache.save(state, self._looks | dict.fromkeys(self._unsettled, b""))

    def runs(self) -> Iterator[Run]:
        if self._touched is None:
            self._scan({})
            wanted = sorted(self._looks)
        else:
            wanted = [key for key in self._touched if key in self._looks]
        keys: list[bytes] = []
        values: list[Any] = []
        size = 0
        for key in wanted:
            value = self._value(key, self._looks[key])
            if value is None:
                continue
            keys.append(key)
            values.append(value)
            size += len(value) if isinstance(value, bytes) else 0
            if size >= _BATCH or len(keys) >= 4096:
                self.report.bytes_read += size
                yield keys, values
                keys, values, size = [], [], 0
        self.report.bytes_read += size
        if keys:
            yield keys, values

    def _scan(self, known: dict[bytes, bytes]) -> None:
        """Look at everything below the root; paths that are `known` need no check."""
        self.report = Report()
        self._looks = {}
        self._unsettled = set()
        limit = racy_since(time.time_ns())
        pending = [b""]
        while pending:
            folder = pending.pop()
            try:
                with os.scandir(os.path.join(self._root, folder)) as found:
                    inner, named = self._look(folder, found, known, limit)
            except OSError as error:
                raise SourceError(
                    f"{self._name(folder)} cannot be read: {error.strerror}; nothing was published"
                ) from error
            pending += inner
            if folder and not named:
                self._looks[folder] = files.FOLDER
        self._check_skipped()

    def _look(
        self, folder: bytes, found: Iterable[os.DirEntry[bytes]], known: dict[bytes, bytes], limit: int
    ) -> tuple[list[bytes], int]:
        """Look at a folder's entries; return the folders among them, and how many entries are data."""
        inner: list[bytes] = []
        looks = self._looks
        named = 0
        prefix = folder + b"/" if folder else b""
        for entry in found:
            key = prefix + entry.name
            if key == files.RESERVED or (key not in known and not self._fits(key)):
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue
            form = status.st_mode & _FORM
            if form == stats.S_IFDIR:
                inner.append(key)
            elif form == stats.S_IFREG or form == stats.S_IFLNK:
                looks[key] = look(status)
                if status.st_ctime_ns >= limit or status.st_mtime_ns >= limit:
                    self._unsettled.add(key)
                if not status.st_mode & stats.S_IROTH:
                    self.report.private += 1
            else:
                self._skip(key, "it is no file, folder or symbolic link")
                continue
            named += 1
        return inner, named

    def _value(self, key: bytes, seen: bytes) -> Any:
        path = os.path.join(self._root, key)
        try:
            if seen == files.FOLDER:
                return files.FOLDER
            if stats.S_ISLNK(mode_of(seen)):
                return self._link(key, path)
            return self._file(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise SourceError(f"{self._name(key)} cannot be read: {error.strerror}; nothing was published") from error

    def _link(self, key: bytes, path: bytes) -> bytes | None:
        value = files.SYMLINK + os.readlink(path)
        try:
            files.check_values([key], [value])
        except Invalid as error:
            self._skip(key, str(error))
            self._unsettled.add(key)
            self._check_skipped()
            return None
        return value

    def _file(self, path: bytes) -> Any:
        for _ in range(ATTEMPTS):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                before = os.fstat(descriptor)
                prefix = files.EXECUTABLE if before.st_mode & 0o100 else files.FILE
                if before.st_size >= MAX_INLINE:
                    return _Large(path, prefix)
                data = os.read(descriptor, before.st_size + 1)
                if len(data) == before.st_size and _same(before, os.fstat(descriptor)):
                    return prefix + data
            finally:
                os.close(descriptor)
        raise SourceError(
            f"{os.fsdecode(path)} keeps changing while it is read; nothing was published. Publish when it is still"
        )

    def _check_skipped(self) -> None:
        if self._strict and self.report.skipped:
            named = "; ".join(f"{name}: {reason}" for name, reason in self.report.skipped[:5])
            more = f"; and {len(self.report.skipped) - 5} more" if len(self.report.skipped) > 5 else ""
            raise Refused(f"{named}{more}; nothing was published (--strict)")

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
        name = key.decode(errors="backslashreplace")
        self.report.skipped.append((name, reason))

    def _name(self, key: bytes) -> str:
        return os.path.join(self.where, os.fsdecode(key)) if key else self.where


def _same(before: os.stat_result, after: os.stat_result) -> bool:
    return (before.st_size, before.st_mtime_ns, before.st_ctime_ns) == (
        after.st_size,
        after.st_mtime_ns,
        after.st_ctime_ns,
    )


class _Large:
    """A file over 1 MiB, read as it is needed."""

    def __init__(self, path: bytes, prefix: bytes) -> None:
        self._path = path
        self.prefix = prefix

    def open(self) -> Stream:
        try:
            return _Watched(self._path)
        except OSError as error:
            raise SourceError(
                f"{os.fsdecode(self._path)} cannot be read: {error.strerror}; nothing was published"
            ) from error


class _Watched:
    """Reads a file and complains at its end if it changed meanwhile."""

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115
        self._before = os.fstat(self._file.fileno())
        if not stats.S_ISREG(self._before.st_mode):
            raise SourceError(f"{os.fsdecode(path)} is no file any more; nothing was published")

    def read(self, n: int, /) -> bytes:
        if self._file.closed:
            return b""
        part = self._file.read(n)
        if not part:
            same = _same(self._before, os.fstat(self._file.fileno()))
            self._file.close()
            if not same:
                raise SourceError(
                    f"{os.fsdecode(self._path)} changed while it was read; nothing was published. Publish when it is still"
                )
        return part
