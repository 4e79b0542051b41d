"""Sorted batches of records: taking them apart at a key, and merging streams of them. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence

from puller.wire.nodes import Large, Run, Value, has_large


class Cursor:
    """Reads a stream of runs up to a given key, a part of a run at a time."""

    def __init__(self, runs: Iterable[Run]) -> None:
        self._runs = iter(runs)
        self._keys: list[bytes] = []
        self._values: list[Value] = []
        self._at = 0

    def fill(self) -> bool:
        """Whether there is another record; reads on where needed."""
        while self._at >= len(self._keys):
            run = next(self._runs, None)
            if run is None:
                return False
            self._keys, self._values = run
            self._at = 0
        return True

    @property
    def last(self) -> bytes:
        """The last key of the run at hand; only after `fill` returned True."""
        return self._keys[-1]

    def take(self, limit: bytes) -> Run:
        """The records of the run at hand with keys up to and including `limit`."""
        return self._cut(bisect_right(self._keys, limit, self._at))

    def take_below(self, bound: bytes | None) -> Run:
        """All further records with keys below `bound` (None: all there are)."""
        keys: list[bytes] = []
        values: list[Value] = []
        for part in self.parts_below(bound):
            keys += part[0]
            values += part[1]
        return keys, values

    def parts_below(self, bound: bytes | None) -> Iterator[Run]:
        """The same, a part of a run at a time."""
        while self.fill():
            end = len(self._keys) if bound is None else bisect_left(self._keys, bound, self._at)
            if end == self._at:
                return
            yield self._cut(end)

    def _cut(self, end: int) -> Run:
        start, self._at = self._at, end
        if start == 0 and end == len(self._keys):
            return self._keys, self._values
        return self._keys[start:end], self._values[start:end]


def spans(cursors: Sequence[Cursor]) -> Iterator[list[tuple[int, Run]]]:
    """Walk several streams side by side.

    Yields, for consecutive ranges of keys, the parts of the streams in that range as (stream's number, run);
    streams without a record there are left out.
    """
    while True:
        live = [(n, cursor) for n, cursor in enumerate(cursors) if cursor.fill()]
        if not live:
            return
        limit = min(cursor.last for _, cursor in live)
        parts = [(n, cursor.take(limit)) for n, cursor in live]
        yield [(n, part) for n, part in parts if part[0]]


def overlay(parts: Sequence[Run]) -> Run:
    """One run from several over the same range; of a key that several hold, the last run's value stays."""
    if len(parts) == 1:
        return parts[0]
    merged: dict[bytes, Value] = {}
    for keys, values in parts:
        merged.update(zip(keys, values, strict=True))
    keys = sorted(merged)
    return keys, list(map(merged.__getitem__, keys))


def merge(streams: Sequence[Iterable[Run]]) -> Iterator[Run]:
    """One stream from several, each newer than the one before: the newest value of each key, deletions included."""
    if len(streams) == 1:
        yield from streams[0]
        return
    for parts in spans([Cursor(stream) for stream in streams]):
        yield overlay([part for _, part in parts])


def live(runs: Iterable[Run]) -> Iterator[Run]:
    """The stream without its deletions."""
    for keys, values in runs:
        if None in values:
            kept = [(k, v) for k, v in zip(keys, values, strict=True) if v is not None]
            keys, values = [k for k, _ in kept], [v for _, v in kept]
        if keys:
            yield keys, values


def bounded(runs: Iterable[Run], most: int = 64 << 20) -> Iterator[Run]:
    """The stream with runs cut so that the large values of each, once assembled, hold about `most` bytes at most."""
    for keys, values in runs:
        start = size = 0
        for n, value in enumerate(values) if has_large(values) else ():
            if isinstance(value, Large):
                if size and size + value.size > most:
                    yield keys[start:n], values[start:n]
                    start, size = n, 0
                size += value.size
        yield (keys[start:], values[start:]) if start else (keys, values)
