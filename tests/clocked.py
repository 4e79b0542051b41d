"""A local folder as store whose clock a test moves: what is written is written at that time."""

from __future__ import annotations

import os

from puller.stores.folder import FolderStore


class ClockedFolder(FolderStore):
    """`now` is the time, in Unix seconds; a file has the time at which it was written, told by its inode."""

    def __init__(self, root: str, now: float = 1_000_000_000.0) -> None:
        super().__init__(root)
        self.now = now
        self._times: dict[int, float] = {}

    def clock(self) -> float:
        return self.now

    def put(self, path: str, data: bytes) -> None:
        super().put(path, data)
        self._note(path)

    def create(self, path: str, data: bytes) -> bool:
        made = super().create(path, data)
        if made:
            self._note(path)
        return made

    def swap_head(self, expected: str, data: bytes, time: int) -> str:
        token = super().swap_head(expected, data, time)
        self._note("HEAD")
        return token

    def _note(self, path: str) -> None:
        self._times[os.stat(os.path.join(self.where, path)).st_ino] = self.now

    def _written(self, status: os.stat_result) -> float:
        return self._times[status.st_ino]
