"""By what signs a source may have changed: events of its folder, or looks at its files."""

from __future__ import annotations

import contextlib
import os
import stat as stats
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

from publisher.sources.scan import Scan
from publisher.sources.statcache import look
from puller.errors import SourceError

Clock = Callable[[], float]
FINE, COARSE = 0.1, 2.0
"""Seconds for which a file may change again without a sign, where file times have fractions of seconds, and where not."""
POLL = 2.0
"""Seconds between looks at a folder that tells of no events."""


class Noticed(NamedTuple):
    """What may have changed, and when that was last noticed: paths below a folder, or None for everything."""

    at: float
    paths: set[bytes] | None


class Notices(Protocol):
    """Tells of changes. It may be called every few milliseconds, by one thread."""

    def look(self) -> Noticed | None:
        """What may have changed since the last call. Raises Lost if it cannot tell any more."""
        ...

    def close(self) -> None: ...


class Lost(Exception):
    """The source is not what it was, or its signs cannot be followed any more: everything is looked at, and begun anew."""


class FolderPolls:
    """Walks through a folder every so many seconds, and at once; for places that tell of no events."""

    def __init__(self, root: str, period: float, clock: Clock) -> None:
        self._root = root
        self._period = period
        self._clock = clock
        self._next = clock()
        self._looks: dict[bytes, bytes] = {}
        self._unsettled: set[bytes] = set()
        self.look()

    def look(self) -> Noticed | None:
        if self._clock() < self._next:
            return None
        scan = Scan(self._root, self._looks)
        try:
            scan.all()
        except SourceError as error:
            raise Lost from error
        self._next = self._clock() + self._period
        before, self._looks = self._looks, scan.looks
        settled = self._unsettled - scan.unsettled  # they may have changed once more without a sign: look at them again
        self._unsettled = scan.unsettled
        if before == scan.looks and not settled:
            return None
        changed = {key for key, _ in before.items() ^ scan.looks.items()}
        return Noticed(self._clock(), changed | settled)

    def close(self) -> None:
        pass


class FilePolls:
    """Looks at what the system says of a file, and of the log beside it that a SQLite database may have.

    SQLite could be asked itself (PRAGMA data_version), but on a connection that stays open, and for that the log of a
    database stays, too, when all others close it: whoever then puts another file in its place would have a damaged database.
    Of the log, the change time says nothing: for root, SQLite sets its owner whenever it opens it.
    """

    def __init__(self, path: str, clock: Clock, period: float = 0.0, now: Callable[[], float] = time.time) -> None:
        self._paths = path, f"{path}-wal"
        self._clock = clock
        self._period = period
        self._now = now
        self._next = clock()
        self._seen: tuple[object, object] = (None, None)
        self._fresh = False
        self.look()

    def look(self) -> Noticed | None:
        if self._clock() < self._next:
            return None
        self._next = self._clock() + self._period
        source, log = map(_stat, self._paths)
        seen = (source and look(source), log and (log.st_ino, log.st_size, log.st_mtime_ns))
        written = max(
            0 if source is None else max(source.st_mtime_ns, source.st_ctime_ns), 0 if log is None else log.st_mtime_ns
        )
        fresh = self._is_fresh(written)
        changed = seen != self._seen or (self._fresh and not fresh)
        self._seen, self._fresh = seen, fresh
        return Noticed(self._clock(), None) if changed else None

    def _is_fresh(self, written: int) -> bool:
        """Whether a file was written so lately that it may be written again, and look the same."""
        margin = COARSE if written % 1_000_000_000 == 0 else FINE
        return 0 <= self._now() - written / 1e9 < margin

    def close(self) -> None:
        pass


class SourceNotices:
    """Tells of changes of whatever lies at a path, also when something else is put there.

    `poll`: seconds between looks (None: events, where there are some; files are looked at each time). `warn` is told, once,
    why there are no events.
    """

    def __init__(
        self, path: str, poll: float | None, warn: Callable[[str], None], clock: Clock = time.monotonic
    ) -> None:
        self._path = path
        self._poll = poll
        self._warn = warn
        self._clock = clock
        self._what: tuple[int, int, int] | None = None
        self._inner: Notices | None = None

    def look(self) -> Noticed | None:
        what = _identity(self._path)
        if what != self._what:
            self._begin(what)
            return Noticed(self._clock(), None)
        if self._inner is None:
            return None
        try:
            return self._inner.look()
        except Lost:
            self._begin(_identity(self._path))
            return Noticed(self._clock(), None)

    def close(self) -> None:
        if self._inner is not None:
            self._inner.close()
            self._inner = None

    def _begin(self, what: tuple[int, int, int] | None) -> None:
        """Follow the signs of what lies there now. What changes from here on is noticed."""
        self.close()
        self._what = None
        with contextlib.suppress(Lost):  # it went away again: the next look finds out
            if what is not None:
                self._inner = (
                    self._folder()
                    if what[0] == stats.S_IFDIR
                    else FilePolls(self._path, self._clock, self._poll or 0.0)
                )
            self._what = what

    def _folder(self) -> Notices:
        from publisher.watch.events import FolderEvents, NoEvents

        if self._poll is None:
            try:
                return FolderEvents(self._path, self._clock)
            except NoEvents as error:
                self._poll = POLL
                self._warn(f"{self._path}: {error}; its folders are looked at every {POLL:.0f} seconds instead")
        return FolderPolls(self._path, self._poll, self._clock)


class NoNotices:
    """A source that can only be asked."""

    def look(self) -> Noticed | None:
        return None

    def close(self) -> None:
        pass


def _identity(path: str) -> tuple[int, int, int] | None:
    """What kind of thing lies at a path, links followed, and which; None where there is nothing that can be seen."""
    status = _stat(path)
    return None if status is None else (stats.S_IFMT(status.st_mode), status.st_dev, status.st_ino)


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)
    except OSError:
        return None
