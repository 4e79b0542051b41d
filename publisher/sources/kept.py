"""What a folder looked like, kept in memory between the publishes of one process, which is told of what may have changed."""

from __future__ import annotations

from collections.abc import Iterable

from publisher.sources.statcache import StatCache


class Kept:
    """Stands between a source and its StatCache: looks at what changed cost as much as the change.

    Before each publish, `paths` are set: those that may have changed since the last one that succeeded, or None for
    all. The cache on disk is brought up to date when everything was looked at, and by `flush`.
    """

    def __init__(self) -> None:
        self.paths: set[bytes] | None = None
        self.folders: set[bytes] = set()
        """At least the folders that there were, the root as the empty path."""
        self._disk: StatCache | None = None
        self._state = b""
        self._looks: dict[bytes, bytes] = {}
        self._is_ahead = False

    def over(self, disk: StatCache | None) -> Kept:
        """The same, kept on disk there."""
        self._disk = disk
        return self

    def load(self, state: bytes) -> dict[bytes, bytes] | None:
        """The looks when `state` was published, as StatCache gives them; not to be changed."""
        if state == self._state:
            return self._looks
        self.paths = None
        self._state = b""
        return None if self._disk is None else self._disk.load(state)

    def note(self, state: bytes, looks: dict[bytes, bytes], gone: Iterable[bytes] | None, folders: set[bytes]) -> None:
        """Take up what was published as `state`: all looks, or where `gone` is given, those of what was looked at."""
        if gone is None:
            self._looks, self.folders = looks, folders
        else:
            self._looks |= looks
            for key in gone:
                self._looks.pop(key, None)
            self.folders |= folders
        self._state, self._is_ahead = state, True
        if gone is None:
            self.flush()

    def flush(self) -> None:
        """Bring the cache on disk up to date."""
        if self._is_ahead and self._disk is not None:
            self._disk.save(self._state, self._looks)
            self._is_ahead = False
