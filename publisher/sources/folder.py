"""A folder as source (kind `files`)."""

from __future__ import annotations

import os
import stat as stats
import time
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from publisher.sources.base import Report
from publisher.sources.kept import Kept
from publisher.sources.scan import Scan
from publisher.sources.statcache import StatCache, mode_of
from puller.errors import Invalid, Refused, SourceError
from puller.wire import files
from puller.wire.codec import MAX_INLINE
from puller.wire.nodes import Run

if TYPE_CHECKING:
    from publisher.large import Stream

ATTEMPTS = 3
MOMENT = 20_000_000
"""Nanoseconds within which a file that was begun is mostly written."""
LOOKS = 8
"""How often what was touched is looked at again, while it keeps changing."""
_BATCH = 1 << 20


class FolderSource:
    """Reads files, executables, symlinks and empty folders; what a dataset cannot hold is reported.

    With `strict`, such a thing is an error instead. With a `cache`, files that look as they did when they were
    published are not read again; one that is `Kept` may say which paths have to be looked at, and what changed has to look
    the same twice.
    """

    kind = "files"

    def __init__(self, root: str, *, strict: bool = False, cache: StatCache | Kept | None = None) -> None:
        self.where = root
        self._root = os.fsencode(root)
        self._strict = strict
        self._cache = cache
        self._partial = False
        self._scan = Scan(root)
        self._touched: list[bytes] | None = None
        self.report = Report()

    def lead(self) -> Run:
        return [], []

    def recall(self, state: bytes) -> list[bytes] | None:
        cache = self._cache
        known = None if cache is None else cache.load(state)
        if known is None:
            return None
        scan = self._begin(known)
        if isinstance(cache, Kept) and cache.paths is not None:
            self._partial = True
            scan.some(cache.paths, known, cache.folders)
            touched = sorted([*(key for key, seen in scan.looks.items() if known.get(key) != seen), *scan.gone])
        else:
            scan.all()
            touched = [] if scan.looks == known else sorted({key for key, _ in scan.looks.items() ^ known.items()})
        self._touched = self._agreed(touched, known, cache.folders) if isinstance(cache, Kept) else touched
        self._told(scan)
        return self._touched

    def _agreed(self, touched: list[bytes], known: dict[bytes, bytes], folders: Collection[bytes]) -> list[bytes]:
        """Look again at what was touched, until it looks the same twice; what keeps changing is taken as it was last seen."""
        scan = self._scan
        for _ in range(LOOKS if touched else 0):
            again = Scan(self.where, known)
            again.some(touched, known, folders)
            if all(scan.looks.get(key) == again.looks.get(key) for key in touched):
                break
            for key in touched:
                scan.looks.pop(key, None)
            scan.looks |= again.looks
            scan.unsettled |= again.unsettled
            scan.folders |= again.folders
            scan.gone = (scan.gone | again.gone) - scan.looks.keys()
            touched = sorted({*touched, *again.looks, *again.gone})
        return touched

    def remember(self, state: bytes) -> None:
        cache, scan = self._cache, self._scan
        if cache is None:
            return
        looks = scan.looks | dict.fromkeys(scan.unsettled & scan.looks.keys(), b"")
        if isinstance(cache, Kept):
            cache.note(state, looks, scan.gone if self._partial else None, scan.folders)
        else:
            cache.save(state, looks)

    def runs(self) -> Iterator[Run]:
        looks = self._scan.looks
        if self._touched is None:
            scan = self._begin({})
            scan.all()
            self._told(scan)
            looks = scan.looks
        wanted = sorted(looks) if self._touched is None else [key for key in self._touched if key in looks]
        keys: list[bytes] = []
        values: list[Any] = []
        size = 0
        for key in wanted:
            value = self._value(key, looks[key])
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

    def _begin(self, known: dict[bytes, bytes]) -> Scan:
        self._partial = False
        self._scan = Scan(self.where, known)
        return self._scan

    def _told(self, scan: Scan) -> None:
        """Take up what a scan found out."""
        self.report = Report(skipped=scan.skipped, private=scan.private)
        self._check_skipped()

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
            self.report.skipped.append((key.decode(errors="backslashreplace"), str(error)))
            self._scan.unsettled.add(key)
            self._check_skipped()
            return None
        return value

    def _file(self, path: bytes) -> Any:
        for _ in range(ATTEMPTS):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                before = self._rested(descriptor)
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

    def _rested(self, descriptor: int) -> os.stat_result:
        """What a file looks like; where publishing is not asked for but begins by itself, whoever just writes gets a moment."""
        status = os.fstat(descriptor)
        for _ in range(ATTEMPTS if isinstance(self._cache, Kept) else 0):
            if not 0 <= time.time_ns() - status.st_mtime_ns < MOMENT:
                break
            time.sleep(MOMENT / 1e9)
            status = os.fstat(descriptor)
        return status

    def _check_skipped(self) -> None:
        if self._strict and self.report.skipped:
            named = "; ".join(f"{name}: {reason}" for name, reason in self.report.skipped[:5])
            more = f"; and {len(self.report.skipped) - 5} more" if len(self.report.skipped) > 5 else ""
            raise Refused(f"{named}{more}; nothing was published (--strict)")

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
