"""Large values: cut into content-defined pieces while they are read, put in parallel."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from publisher.build import Sink
from puller.errors import SourceError
from puller.wire import nodes
from puller.wire.checksum import RecordHasher
from puller.wire.codec import MAX_INLINE, Ref, encode
from puller.wire.nodes import Large, Piece, Value

AVERAGE, LEAST, MOST = 2 << 20, 1 << 20, 4 << 20
LIST_LENGTH = 1000
_PART = 1 << 20


class Stream(Protocol):
    """Bytes that are read as they are needed."""

    def read(self, n: int, /) -> bytes: ...


class _Hashing:
    """Passes on what is read, after a prefix, hashed and counted."""

    def __init__(self, key: bytes, prefix: bytes, inner: Stream) -> None:
        self._inner = inner
        self._rest = prefix
        self.hasher = RecordHasher(key)
        self.size = 0

    def read(self, n: int) -> bytes:
        part = self._rest or self._inner.read(n)
        self._rest = b""
        if len(part) > n:
            part, self._rest = part[:n], part[n:]
        self.hasher.update(part)
        self.size += len(part)
        return part


def hash_stream(key: bytes, prefix: bytes, inner: Stream) -> tuple[int, bytes]:
    """The size and the record hash of the value prefix + stream."""
    stream = _Hashing(key, prefix, inner)
    while stream.read(_PART):
        pass
    return stream.size, stream.hasher.digest()


def put_stream(key: bytes, prefix: bytes, inner: Stream, sink: Sink, pool: ThreadPoolExecutor) -> Value:
    """Read the value prefix + stream, put its pieces, and return it; a value of up to 1 MiB is returned whole."""
    stream = _Hashing(key, prefix, inner)
    start = _upto(stream)
    if len(start) <= MAX_INLINE:
        return start
    waiting: deque[Future[Ref]] = deque()
    entries: list[Any] = []
    for part in _cut(start, stream):
        waiting.append(pool.submit(sink.put, part))
        while len(waiting) > 8:
            entries.append(nodes.piece_entry(Piece(waiting.popleft().result())))
    entries += [nodes.piece_entry(Piece(future.result())) for future in waiting]
    depth = 0
    while len(entries) > LIST_LENGTH:
        depth += 1
        lists = [sink.put(encode(entries[n : n + LIST_LENGTH])) for n in range(0, len(entries), LIST_LENGTH)]
        entries = [[ref.sha256, ref.stored, ref.raw] for ref in lists]
    return Large(stream.size, stream.hasher.digest(), depth, entries)


def _upto(stream: _Hashing) -> bytes:
    parts = []
    left = MAX_INLINE + 1
    while left and (part := stream.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


class _Joined:
    def __init__(self, start: bytes, rest: _Hashing) -> None:
        self._start = start
        self._rest = rest

    def read(self, n: int) -> bytes:
        if not self._start:
            return self._rest.read(n)
        part, self._start = self._start[:n], self._start[n:]
        return part


def _cut(start: bytes, rest: _Hashing) -> Iterator[bytes]:
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
