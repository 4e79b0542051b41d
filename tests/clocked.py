"""A local folder as store whose clock a test moves: what is written is written at that time."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence

from puller.stores.base import Listed
from puller.stores.folder import FolderStore


class ClockedFolder(FolderStore):
    """`now` is the time, in Unix seconds; a file has the time at which it was written, told by its inode."""

    def __init__(self, root: str, now: float = 1_000_000_000.0) -> None:
        super().__init__(root)
        self.now = now
        self._times: dict[int, float] = {}
        self._lock = threading.RLock()

    def clock(self) -> float:
        return self.now

    def put(self, path: str, data: bytes) -> None:
        with self._lock:
            super().put(path, data)
            self._note(path)

    def create(self, path: str, data: bytes) -> bool:
        with self._lock:
            made = super().create(path, data)
            if made:
                self._note(path)
        return made

    def swap_head(self, expected: str, data: bytes, time: int) -> str:
        with self._lock:
            token = super().swap_head(expected, data, time)
            self._note("HEAD")
        return token

    def files(self, prefix: str) -> Iterator[Listed]:
        with self._lock:
            return iter(list(super().files(prefix)))

    def collect(self, paths: Sequence[str], before: float, unless: Callable[[], bool] | None = None) -> set[str]:
        with self._lock:
            return super().collect(paths, before, unless)

    def _note(self, path: str) -> None:
        self._times[os.stat(os.path.join(self.where, path)).st_ino] = self.now

    def _written(self, status: os.stat_result) -> float:
        return self._times[status.st_ino]
