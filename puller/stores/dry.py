"""A store that only counts what would be written to another one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from puller.errors import NotFound
from puller.stores.base import Listed, Store, Token


class DryStore:
    """Reads from a store. What is put is kept in memory, where it can be read back, and never reaches the store."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self._files: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self.where = inner.where
        self.written = 0
        self.threads = inner.threads

    def get(self, path: str) -> bytes:
        try:
            return self._inner.get(path)
        except NotFound:
            if path not in self._files:
                raise
            return self._files[path]

    def size_of(self, path: str) -> int | None:
        return len(self._files[path]) if path in self._files else self._inner.size_of(path)

    def put(self, path: str, data: bytes) -> None:
        with self._lock:
            self.written += len(data)
            if path.startswith("diffs/"):
                self._files[path] = data

    def create(self, path: str, data: bytes) -> bool:
        return True

    def flush(self) -> None:
        pass

    def read_head(self) -> tuple[bytes, Token]:
        return self._inner.read_head()

    def swap_head(self, expected: Token, data: bytes, time: int) -> Token:
        return expected

    def list(self, prefix: str) -> Iterator[str]:
        return self._inner.list(prefix)

    def files(self, prefix: str) -> Iterator[Listed]:
        return self._inner.files(prefix)

    def clock(self) -> float:
        return self._inner.clock()

    def delete(self, path: str) -> None:
        pass

    def collect(self, paths: Sequence[str], before: float, unless: Callable[[], bool] | None = None) -> set[str]:
        return set(paths)

    def foreign(self) -> str | None:
        return self._inner.foreign()

    def probe(self) -> None:
        pass
