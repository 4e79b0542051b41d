"""Large values: cut into content-defined pieces while they are read, put in parallel where no earlier version has them."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec
import xxhash

from publisher.build import Sink, cut_stably, cutter
from publisher.earlier import Earlier, put_piece
from puller.wire.checksum import RecordHasher
from puller.wire.codec import MAX_INLINE, Ref, encode
from puller.wire.links import of_items
from puller.wire.nodes import MAX_ENTRIES, Large, Piece, Sublist, Value

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

AVERAGE, LEAST, MOST = 2 << 20, 1 << 20, 4 << 20
LIST_LEAST, LIST_MOST, LIST_MASK = 128, 900, 255
IN_FLIGHT = 4
"""Pieces that may wait for the pool, each with the bases of its patch."""
_PART = 1 << 20


class Stream(Protocol):
    """Bytes that are read as they are needed."""

    def read(self, n: int, /) -> bytes: ...


class _Reading:
    """Passes on what is read, after a prefix; counts it, and hashes it by SHA-256 and whatever `also` is."""

    def __init__(self, prefix: bytes, inner: Stream, also: RecordHasher | None = None) -> None:
        self._inner = inner
        self._rest = prefix
        self._also = also
        self.sha256 = hashlib.sha256()
        self.size = 0

    def read(self, n: int) -> bytes:
        part = self._rest or self._inner.read(n)
        self._rest = b""
        if len(part) > n:
            part, self._rest = part[:n], part[n:]
        self.sha256.update(part)
        if self._also is not None:
            self._also.update(part)
        self.size += len(part)
        return part


def hash_stream(prefix: bytes, inner: Stream) -> tuple[int, bytes]:
    """The size and the SHA-256 of the value prefix + stream."""
    stream = _Reading(prefix, inner)
    while stream.read(_PART):
        pass
    return stream.size, stream.sha256.digest()


class Stored(NamedTuple):
    """A value that was put, and its pieces; and the files of it that a reader of the earlier version needs."""

    value: Value
    pieces: list[Piece]
    refs: set[Ref]

    @property
    def cost(self) -> tuple[int, int]:
        """The number of these files, and their stored bytes."""
        return len(self.refs), sum(ref.stored for ref in self.refs)


def put_stream(
    key: bytes, prefix: bytes, inner: Stream, sink: Sink, pool: ThreadPoolExecutor, earlier: Earlier | None = None
) -> Stored:
    """Read the value prefix + stream and put its pieces; a value of up to 1 MiB is returned whole.

    Pieces that `earlier` holds are not put again, and new ones as patches on its pieces where that is smaller.
    """
    hasher = RecordHasher(key)
    stream = _Reading(prefix, inner, hasher)
    start = _upto(stream)
    if len(start) <= MAX_INLINE:
        return Stored(start, [], set())
    pieces: list[Piece] = []
    refs: set[Ref] = set()
    waiting: deque[Future[Piece] | Piece] = deque()

    def take() -> None:
        done = waiting.popleft()
        if isinstance(done, Piece):
            pieces.append(done)
        else:
            pieces.append(done.result())
            refs.add(pieces[-1].ref)

    for part in _cut(start, stream):
        check = xxhash.xxh3_128_digest(part)
        kept = None if earlier is None else earlier.same(check, len(part))
        bases = [] if earlier is None or kept is not None else earlier.bases(part)
        waiting.append(kept or pool.submit(put_piece, sink, part, check, bases))
        while len(waiting) > IN_FLIGHT:
            take()
    while waiting:
        take()
    entries: list[Any] = [(piece, piece.raw, piece.check) for piece in pieces]
    depth = 0
    while len(entries) > LIST_MOST or len(encoded := encode([entry for entry, _, _ in entries])) > MAX_ENTRIES:
        depth += 1
        entries = [_put_list(sink, group) for group in _lists(entries)]
        refs.update(entry.ref for entry, _, _ in entries)
    value = Large(stream.size, hasher.digest(), stream.sha256.digest(), depth, msgspec.Raw(encoded))
    return Stored(value, pieces, refs)


def _put_list(sink: Sink, group: list[Any]) -> tuple[Sublist, int, bytes]:
    """Put a list of entries; return the entry for it, the size of its content, and a hash that it may be cut by."""
    entries = [entry for entry, _, _ in group]
    ref = sink.put(encode(entries), of_items(entries))
    size = sum(size for _, size, _ in group)
    return Sublist(ref.sha256, ref.stored, ref.raw, size), size, ref.sha256


def _lists(entries: list[Any]) -> list[list[Any]]:
    return cut_stably(entries, lambda entry: entry[2], LIST_LEAST, LIST_MOST, LIST_MASK)


def _upto(stream: _Reading) -> bytes:
    parts = []
    left = MAX_INLINE + 1
    while left and (part := stream.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


class Joined:
    """Some bytes, then a stream."""

    def __init__(self, start: bytes, rest: Stream) -> None:
        self._start = start
        self._rest = rest

    def read(self, n: int, /) -> bytes:
        if not self._start:
            return self._rest.read(n)
        part, self._start = self._start[:n], self._start[n:]
        return part


def _cut(start: bytes, rest: _Reading) -> Iterator[bytes]:
    for chunk in cutter(AVERAGE, LEAST, MOST).cut_stream(Joined(start, rest)):
        yield bytes(chunk.data)
