"""Publishing a state of which it is known which keys were touched: by the hashes that these records had, reading no others."""

from __future__ import annotations

import io
from functools import cached_property
from typing import TYPE_CHECKING

from publisher.build import TreeBuilder
from publisher.commit import Next, follow
from publisher.hashes import Changes, Hashes, cache_of
from publisher.large import put_stream
from puller.errors import ChecksumMismatch
from puller.lookup import Finder
from puller.wire.checksum import MODULUS
from puller.wire.codec import CHUNKS, DIFFS, MAX_INLINE
from puller.wire.nodes import Diff

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from publisher.build import Sink
    from publisher.published import Published
    from publisher.sources.base import Source
    from publisher.tables import Records
    from puller.wire.nodes import Value


class Touched:
    """The changes that lead from what is published to a source's state, looked for among `keys` only."""

    def __init__(self, was: Published, source: Source, keys: Sequence[bytes]) -> None:
        self._was = was
        self._hashes = Hashes(cache_of(was.store.where, was.head.name), Finder(), eager=True)
        self._records: Records = dict.fromkeys(keys)
        for found, values in source.runs():
            whole = [value if isinstance(value, bytes) else value.open().read() for value in values]  # type: ignore[union-attr]
            self._records.update(zip(found, whole, strict=True))
        self._records.update(zip(*source.lead(), strict=True))  # type: ignore[arg-type]

    @cached_property
    def changes(self) -> Changes:
        """What differs. Raises Conflict if HEAD was replaced."""
        return Changes(self._records, self._hashes, self._was)

    def next(self, interval: int | None, keep: int | None, now: Callable[[], float]) -> Next:
        """Put the diff, and make the version that it leads to."""
        try:
            return self._next(interval, keep, now)
        except ChecksumMismatch:  # a hash in the cache was wrong
            self._hashes.forget(for_good=True)
            del self.changes
            return self._next(interval, keep, now)

    def committed(self, after: Published) -> None:
        """Take up, for the next time, that the version was published."""
        self._hashes.committed(self._was, after, self.changes.marks)

    def close(self) -> None:
        """Let go of the cache of hashes."""
        self._hashes.close()

    def _next(self, interval: int | None, keep: int | None, now: Callable[[], float]) -> Next:
        was, changes, head = self._was, self.changes, self._was.head
        builder = TreeBuilder(was.sink(DIFFS), was.reader.pool)
        chunks = was.sink(CHUNKS)
        builder.add(changes.keys, [self._put(key, chunks) for key in changes.keys])
        diff = Diff(head.version, head.version + 1, builder.finish())
        checksum = (head.checksum + changes.sum) % MODULUS
        return follow(was, diff, checksum, head.records + changes.grown, interval=interval, keep=keep, now=now)

    def _put(self, key: bytes, chunks: Sink) -> Value:
        value = self._records[key]
        if value is None or len(value) <= MAX_INLINE:
            return value
        return put_stream(key, b"", io.BytesIO(value), chunks, self._was.reader.pool).value
