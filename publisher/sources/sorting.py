"""Sorting records in bounded memory: sorted runs are spilled to temporary files and merged."""

from __future__ import annotations

import contextlib
import tempfile
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from operator import eq
from types import TracebackType
from typing import IO, Any, Self

import msgspec

from puller.errors import SourceError
from puller.runs import Cursor, overlay, spans

MEMORY = 64 << 20
"""Bytes of records, with what Python needs for them, that are sorted in memory."""
BATCH = 256 << 10
"""Bytes of records in a batch of a spilled run; one batch of each run is in memory while they are merged."""
FAN = 64
"""So many runs are merged into one, so that the batches of all runs stay within some 32 MiB."""
PARTS = 32
"""Records in memory are sorted in so many parts, if their keys are spread as those of the first block were."""
_OBJECTS = 100

Rows = tuple[list[bytes], list[Any]]
"""Keys and values, which are bytes."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[list[bytes], list[bytes]]).decode


class Duplicate(Exception):
    """Two records have the same key."""

    def __init__(self, key: bytes) -> None:
        super().__init__(key)
        self.key = key


class Sorter:
    """Takes records in any order and gives them back in key order; `memory` is in bytes, as for MEMORY.

    Records are sorted in small parts, which stay in the processor's caches: each block that comes is sorted at once, cut
    where the first one was, and packed; what lies between two cuts is sorted when it is wanted.

    Temporary files lie where the environment says (TMPDIR) and have no name: whatever ends the process removes
    them. Raises Duplicate, from `add` or `runs`, and SourceError where a temporary file cannot be written.
    """

    def __init__(self, memory: int = MEMORY) -> None:
        self._memory = memory
        self._cuts: list[bytes] = []
        self._parts: list[list[bytes]] = []
        """Packed records, by the cuts between which they lie."""
        self._unpacked: list[int] = []
        """Bytes that each part needs when it is unpacked."""
        self._packed = 0
        self._levels: list[list[_Spill]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for spill in chain(*self._levels):
            spill.close()

    def add(self, keys: list[bytes], values: list[Any]) -> None:
        """Take up records with bytes as values."""
        if not keys:
            return
        keys, values = _sorted(keys, values)
        if not self._parts:
            self._cuts = keys[len(keys) // PARTS :: max(1, len(keys) // PARTS)]
            self._parts = [[] for _ in range(len(self._cuts) + 1)]
            self._unpacked = [0] * len(self._parts)
        start = 0
        for n, cut in enumerate([*self._cuts, None]):
            stop = len(keys) if cut is None else bisect_left(keys, cut, start)
            if start < stop:
                packed = _encode((keys[start:stop], values[start:stop]))
                self._parts[n].append(packed)
                self._packed += len(packed)
                self._unpacked[n] += len(packed) + _OBJECTS * (stop - start)
            start = stop
        if self._packed + max(self._unpacked) >= self._memory:
            self._spill(self._take(), 0)

    def runs(self) -> Iterator[Rows]:
        """All records that were added, in key order; only once."""
        yield from _merge([*(spill.runs() for spill in chain(*self._levels)), self._take()])

    def _take(self) -> Iterator[Rows]:
        """The records in memory, in key order and in batches."""
        parts = list(zip(self._parts, self._unpacked, strict=True))[::-1]
        self._parts, self._unpacked, self._packed = [], [], 0
        while parts:
            part, size = parts.pop()
            keys: list[bytes] = []
            values: list[bytes] = []
            for more in map(_decode, part):
                keys += more[0]
                values += more[1]
            del part
            keys, values = _sorted(keys, values)
            _check_distinct(keys)
            step = max(1, len(keys) * BATCH // max(1, size))
            for start in range(0, len(keys), step):
                yield from _halved(keys[start : start + step], values[start : start + step])

    def _spill(self, runs: Iterable[Rows], level: int) -> None:
        if level == len(self._levels):
            self._levels.append([])
        self._levels[level].append(_Spill(runs))
        if len(self._levels[level]) == FAN:
            full, self._levels[level] = self._levels[level], []
            try:
                self._spill(_merge([spill.runs() for spill in full]), level + 1)
            finally:
                for spill in full:
                    spill.close()


class _Spill:
    """A sorted run in a temporary file, in batches."""

    def __init__(self, runs: Iterable[Rows]) -> None:
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by its owner
            try:
                self._sizes = [self._file.write(_encode(run)) for run in runs]
                self._file.flush()
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise SourceError(
                f"the rows cannot be sorted in {tempfile.gettempdir()}: {error.strerror}; nothing was published. Name a folder "
                "that has room for them in TMPDIR, or sort the rows by key"
            ) from error

    def runs(self) -> Iterator[Rows]:
        self._file.seek(0)
        for size in self._sizes:
            yield _decode(self._file.read(size))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()


def _merge(streams: list[Iterator[Rows]]) -> Iterator[Rows]:
    if len(streams) == 1:
        yield from streams[0]
        return
    for parts in spans([Cursor(stream) for stream in streams]):
        run = overlay([part for _, part in parts])
        if len(run[0]) < sum(len(part[0]) for _, part in parts):
            _check_distinct(sorted(chain(*(part[0] for _, part in parts))))
        yield run


def _sorted(keys: list[bytes], values: list[Any]) -> Rows:
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return list(map(keys.__getitem__, order)), list(map(values.__getitem__, order))


def _halved(keys: list[bytes], values: list[Any]) -> Iterator[Rows]:
    """A batch, in parts if it is far too large."""
    if len(keys) > 1 and sum(map(len, values)) > 2 * BATCH:
        half = len(keys) // 2
        yield from _halved(keys[:half], values[:half])
        yield from _halved(keys[half:], values[half:])
    else:
        yield keys, values


def _check_distinct(keys: list[bytes]) -> None:
    """Raise Duplicate if two of the keys, which are sorted, are the same."""
    if any(map(eq, keys, keys[1:])):
        raise Duplicate(next(key for key, after in pairwise(keys) if key == after))
