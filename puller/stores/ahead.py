"""Wraps a store that waits on a network: files are put many at once, while the publisher goes on, and not got twice."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from puller.errors import Invalid
from puller.stores.base import Listed, Store, Token
from puller.wire.codec import CHUNKS, DIFFS

BUDGET = 64 << 20
"""Bytes of files that may be under way at once."""
RECENT = 16 << 20
"""Bytes of diffs and logs that are remembered: the next version's are merged from them."""
CHUNKS_KEPT = 8 << 20
"""Bytes of chunks that are put and kept for the next process: those that a small change writes anew."""
IDLE = 1.0
"""Seconds after which a thread that has nothing to do ends."""


class Keep(Protocol):
    """Keeps files from one process to the next, by names that stand for one content for ever; it may lose any of them."""

    def get(self, name: str, /) -> bytes | None: ...

    def keep(self, name: str, data: bytes, /) -> None: ...


class Ahead:
    """Puts at once return; `flush` waits for them, and raises what went wrong with one. Threads come as they are needed.

    The threads are daemons: a publisher that is interrupted ends, whatever is still under way. What is in `kept` is not
    got again, and what is got, and diffs and some chunks that are put, are kept there; `flush` looks whether the store still
    has what was taken from it, a file at a time.
    """

    def __init__(self, inner: Store, threads: int, budget: int = BUDGET, kept: Keep | None = None) -> None:
        self._inner = inner
        self._kept = kept
        self._head: str | None = None
        self._key_sets: dict[str, bytes] = {}
        self._most = threads
        self._budget = budget
        self.where = inner.where
        self.written = 0
        self.threads = inner.threads
        self._changed = threading.Condition()
        self._under_way: dict[str, bytes] = {}
        self._queue: deque[str] = deque()
        self._bytes = 0
        self._recent: OrderedDict[str, bytes] = OrderedDict()
        self._recent_bytes = 0
        self._chunk_bytes = 0
        self._puts = 0
        self._unseen: set[str] = set()
        """What was taken from `kept` since HEAD was read, and not seen in the store."""
        self._running = 0
        self._idle = 0
        self._error: BaseException | None = None

    def get(self, path: str) -> bytes:
        with self._changed:
            data = self._under_way.get(path) or self._recent.get(path)
        if data is None:
            data = self._kept_copy(path)
        if data is None:
            data = self._inner.get(path)
            with self._changed:
                self._remember(path, data)
            self._keep(path, data)
        if path.startswith("trust/"):
            self._key_sets[path] = data
        return data

    def _kept_copy(self, path: str) -> bytes | None:
        name = self._name(path)
        data = None if self._kept is None or name is None else self._kept.get(name)
        if data is not None and name == path:
            with self._changed:
                self._unseen.add(path)
        return data

    def _keep(self, path: str, data: bytes) -> None:
        name = self._name(path)
        if self._kept is not None and name is not None and not _is_damaged(path, data):
            self._kept.keep(name, data)

    def _name(self, path: str) -> str | None:
        """What stands for a file's content for ever: its path, where that has its hash; with HEAD's bytes, that of a key set.

        For a dataset might be deleted, and another one with the same name be made in its place.
        """
        if path.startswith((f"{CHUNKS}/", f"{DIFFS}/")):
            return path
        return f"{path}-{self._head}" if path.startswith("trust/") and self._head is not None else None

    def size_of(self, path: str) -> int | None:
        with self._changed:
            data = self._under_way.get(path)
        return self._inner.size_of(path) if data is None else len(data)

    def put(self, path: str, data: bytes) -> None:
        with self._changed:
            while self._error is None and self._under_way and self._bytes + len(data) > self._budget:
                self._changed.wait()
            self._raise()
            self.written += len(data)
            self._puts += 1
            self._unseen.discard(path)
            if path in self._under_way:
                return
            self._under_way[path] = data
            self._remember(path, data)
            self._bytes += len(data)
            self._queue.append(path)
            if self._idle < len(self._queue) and self._running < self._most:
                self._running += 1
                threading.Thread(target=self._work, daemon=True).start()
            self._changed.notify_all()
            self._chunk_bytes += len(data) if path.startswith(f"{CHUNKS}/") else 0
            kept = path.startswith(f"{DIFFS}/") or self._chunk_bytes <= CHUNKS_KEPT
        if kept:
            self._keep(path, data)

    def create(self, path: str, data: bytes) -> bool:
        created = self._inner.create(path, data)
        if created and path.startswith("trust/"):
            self._key_sets[path] = data
        return created

    def flush(self) -> None:
        with self._changed:
            while self._under_way and self._error is None:
                self._changed.wait()
            self._raise()
        self._look()
        self._inner.flush()

    def _look(self) -> None:
        """See that one of the files is in the store that were taken from `kept`, each time another one.

        Where several files were put, those were requests enough. Raises Invalid where one is missing, which is put back.
        """
        with self._changed:
            unseen = sorted(self._unseen) if self._puts <= 2 else []
        if not unseen:
            return
        path = unseen[int(self._head or "0", 16) % len(unseen)]
        data = self._kept_copy(path)
        if data is None or self._inner.size_of(path) is not None:
            return
        self._inner.put(path, data)
        raise Invalid(
            f"{path} was missing in {self.where}, though HEAD needs it. It was put back from the copy on this "
            "machine; nothing was published. See who removes files there, let `publisher fsck` find what else is missing, "
            "and publish again"
        )

    def read_head(self) -> tuple[bytes, Token]:
        with self._changed:
            # The store forgets now what was put over old files: no put of before may count as newer.
            while self._under_way:
                self._changed.wait()
            self._error = None
            self._puts = 0
            self._unseen = set()
        data, token = self._inner.read_head()
        self._head = hashlib.sha256(data).hexdigest()
        return data, token

    def swap_head(self, expected: Token, data: bytes, time: int) -> Token:
        token = self._inner.swap_head(expected, data, time)
        self._head = hashlib.sha256(data).hexdigest()
        for path, key_set in self._key_sets.items():
            self._keep(path, key_set)
        return token

    def list(self, prefix: str) -> Iterator[str]:
        self.flush()
        return self._inner.list(prefix)

    def files(self, prefix: str) -> Iterator[Listed]:
        self.flush()
        return self._inner.files(prefix)

    def clock(self) -> float:
        return self._inner.clock()

    def collect(self, paths: Sequence[str], before: float, unless: Callable[[], bool] | None = None) -> set[str]:
        return self._inner.collect(paths, before, unless)

    def delete(self, path: str) -> None:
        self._inner.delete(path)

    def foreign(self) -> str | None:
        return self._inner.foreign()

    def probe(self) -> None:
        self._inner.probe()

    def _remember(self, path: str, data: bytes) -> None:
        if not path.startswith(f"{DIFFS}/") or len(data) > RECENT // 4 or path in self._recent:
            return
        if _is_damaged(path, data):
            return  # it may be better the next time
        self._recent[path] = data
        self._recent_bytes += len(data)
        while self._recent_bytes > RECENT:
            self._recent_bytes -= len(self._recent.popitem(last=False)[1])

    def _raise(self) -> None:
        """What went wrong stays known until HEAD is read again: nothing may be published that lacks a file."""
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (path := self._next()) is not None:
            error: BaseException | None = None
            try:
                self._inner.put(path, self._under_way[path])
            except BaseException as raised:  # noqa: BLE001 - whoever flushes has to know of it
                error = raised
            with self._changed:
                self._bytes -= len(self._under_way.pop(path))
                if error is not None:
                    self._give_up(error)
                self._changed.notify_all()

    def _next(self) -> str | None:
        """The next file's path, or None where this thread is to end."""
        with self._changed:
            self._idle += 1
            self._changed.wait_for(lambda: self._queue, IDLE)
            self._idle -= 1
            if self._queue:
                return self._queue.popleft()
            self._running -= 1
            return None

    def _give_up(self, error: BaseException) -> None:
        self._error = self._error or error
        for path in self._queue:
            self._bytes -= len(self._under_way.pop(path))
        self._queue.clear()


def _is_damaged(path: str, data: bytes) -> bool:
    """Whether a file whose path has its hash is another one."""
    return path.startswith((f"{CHUNKS}/", f"{DIFFS}/")) and hashlib.sha256(data).hexdigest() not in path
