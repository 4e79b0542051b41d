"""Large values: cut into content-defined pieces while they are read, put in parallel."""

from __future__ import annotations

import hashlib
import warnings
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import xxhash

from publisher.build import Sink, cut_stably
from puller.errors import SourceError
from puller.wire.checksum import RecordHasher
from puller.wire.codec import MAX_INLINE, encode
from puller.wire.nodes import Large, Piece, Sublist, Value

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

AVERAGE, LEAST, MOST = 2 << 20, 1 << 20, 4 << 20
LIST_LEAST, LIST_MOST, LIST_MASK = 128, 900, 255
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


def put_stream(key: bytes, prefix: bytes, inner: Stream, sink: Sink, pool: ThreadPoolExecutor) -> Value:
    """Read the value prefix + stream, put its pieces, and return it; a value of up to 1 MiB is returned whole."""
    hasher = RecordHasher(key)
    stream = _Reading(prefix, inner, hasher)
    start = _upto(stream)
    if len(start) <= MAX_INLINE:
        return start
    waiting: deque[Future[Piece]] = deque()
    pieces: list[Piece] = []
    for part in _cut(start, stream):
        waiting.append(pool.submit(_put_piece, sink, part))
        while len(waiting) > 8:
            pieces.append(waiting.popleft().result())
    pieces += [future.result() for future in waiting]
    entries: list[Any] = [(piece, piece.raw, piece.check) for piece in pieces]
    depth = 0
    while len(entries) > LIST_MOST:
        depth += 1
        entries = [_put_list(sink, group) for group in _lists(entries)]
    listed = msgspec.Raw(encode([entry for entry, _, _ in entries]))
    return Large(stream.size, hasher.digest(), stream.sha256.digest(), depth, listed)


def _put_piece(sink: Sink, part: bytes) -> Piece:
    ref = sink.put(part)
    return Piece(ref.sha256, ref.stored, ref.raw, xxhash.xxh3_128_digest(part), [])


def _put_list(sink: Sink, group: list[Any]) -> tuple[Sublist, int, bytes]:
    """Put a list of entries; return the entry for it, the size of its content, and a hash that it may be cut by."""
    ref = sink.put(encode([entry for entry, _, _ in group]))
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


class _Joined:
    def __init__(self, start: bytes, rest: _Reading) -> None:
        self._start = start
        self._rest = rest

    def read(self, n: int) -> bytes:
        if not self._start:
            return self._rest.read(n)
        part, self._start = self._start[:n], self._start[n:]
        return part


def _cut(start: bytes, rest: _Reading) -> Iterator[bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            import pyfastcdc.cy as fast
        except (ImportError, Warning) as error:
            raise SourceError(
                "the compiled part of pyfastcdc is missing on this platform, and its Python part is too slow to use; "
                f"reinstall pyfastcdc with a C compiler at hand ({error})"
            ) from error
    cutter = fast.FastCDC(AVERAGE, min_size=LEAST, max_size=MOST)
    for chunk in cutter.cut_stream(_Joined(start, rest)):
        yield bytes(chunk.data)
