"""What of a new large value lies anywhere in its earlier version: pieces made from ranges of it, for patches (SPEC 5.7)."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

import xxhash

from publisher.build import Kept, Sink, cutter
from publisher.large import Stored, Stream
from puller.tree import Reader, ahead
from puller.wire.codec import CHUNKS, compress
from puller.wire.nodes import (
    DICTIONARY_START,
    MAX_BASES,
    MAX_RANGES,
    Large,
    PatchPiece,
    Piece,
    Range,
)

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

DEAR = 64 << 10
"""Stored bytes from which on a new piece is looked for elsewhere."""
WORTH = 256
"""The earlier value is searched if it has at most so many times the stored bytes of these pieces: a second for a megabyte."""
MOST = 32 << 20
"""Bytes of pieces that are looked for, those first that cost most."""
PARTS = (256, 64, 1024)
"""Average, least and most bytes of the parts by which contents are compared: half a page of a database has several."""
PLACES = 4
"""Places in the earlier value that are remembered of a part: what is everywhere says nothing."""
MARGIN = 2 << 10
"""Bytes around parts found that are taken too: parts end elsewhere where what is before them differs."""
LONGEST = 64 << 10
"""Bytes of a range, about: a longer one would leave no room for others."""
LEAST = 256
"""A range must hold so many of a piece's bytes that those before it do not hold."""
ROOM = 1.5
"""The ranges of a piece have at most so many times its bytes: all of them are held in memory."""
STRIDE = 8
"""One in so many of the earlier pieces, spread evenly, is searched first."""
HOPELESS = 1 / 64
"""If no more than this share of the parts is found in these, the others are not searched."""
LEVEL = 3
CLEARLY = 0.5
"""A piece made from ranges is used if it has at most this share of the other one's stored bytes."""
RANGE_COST = 8
"""About the stored bytes of a range in a patch."""

_PART = 1 << 20

Marks = dict[int, int]
"""The hashes of the parts of a content, and their lengths."""
Places = dict[int, list[int]]
"""The hashes of parts, and where they begin in the earlier value."""


class Moved(NamedTuple):
    """The pieces of a large value that are other ones in a patch, by their numbers.

    `files` (path and stored bytes) are to be put if the patch is. A reader of the version before fetches `cost`
    (files, and their stored bytes), of which `same` bytes are also fetched with the diff.
    """

    instead: dict[int, PatchPiece]
    files: list[tuple[str, bytes]]
    cost: tuple[int, int]
    same: int


def find_moved(
    new: Stored, reopen: Callable[[], Stream], old: Large, reader: Reader, pool: ThreadPoolExecutor
) -> Moved | None:
    """Those pieces of a value just put that cost much, made from ranges of `old` where that is clearly smaller.

    `reopen` gives its bytes once more. None where there is nothing to gain, or too little for the time it takes.
    Memory is bounded by MOST.
    """
    dear = _dear(new)
    if not dear or old.size > WORTH * sum(new.pieces[n].stored for n in dear):
        return None
    marks = {n: _marks(content) for n, content in _contents(reopen(), new, dear)}
    before = _Before(old, reader, pool)
    places = before.places(set().union(*marks.values()))
    chosen = {n: _choose(found, places, new.pieces[n].raw, old.size) for n, found in marks.items()}
    parts = before.parts({part for ranges in chosen.values() for part in ranges})
    kept = Kept()
    sink = Sink(kept, CHUNKS, reader.cipher)

    def patched(item: tuple[int, bytes]) -> PatchPiece | None:
        number, content = item
        return _patched(sink, new.pieces[number], content, chosen[number], parts)

    contents = _contents(reopen(), new, {n for n, ranges in chosen.items() if ranges})
    made = ahead(pool, contents, patched, lambda item: 8 * len(item[1]))
    found = {new.pieces[number].ref: piece for (number, _), piece in made if piece is not None}
    if not found:
        return None
    instead = {n: found[piece.ref] for n, piece in enumerate(new.pieces) if piece.ref in found}
    same = new.refs - found.keys()
    every = same | {piece.ref for piece in found.values()}
    return Moved(instead, kept.files, (len(every), sum(ref.stored for ref in every)), sum(ref.stored for ref in same))


def _dear(new: Stored) -> set[int]:
    """The numbers of the pieces that cost a reader of the version before most, each once."""
    numbers = {piece.ref: n for n, piece in enumerate(new.pieces) if piece.ref in new.refs and piece.stored >= DEAR}
    left, found = MOST, set()
    for ref in sorted(numbers, key=lambda ref: -ref.stored):
        left -= ref.raw
        if left >= 0:
            found.add(numbers[ref])
    return found


def _contents(stream: Stream, new: Stored, numbers: set[int]) -> Iterator[tuple[int, bytes]]:
    """The contents of some pieces, read from the source again; what changed there since is left out."""
    for number, piece in enumerate(new.pieces):
        parts, left = [], piece.raw
        while left and (part := stream.read(left)):
            parts.append(part)
            left -= len(part)
        if number in numbers and xxhash.xxh3_128_digest(content := b"".join(parts)) == piece.check:
            yield number, content
    while stream.read(_PART):
        pass


def _cut(content: bytes) -> Iterator[tuple[int, int, int]]:
    """(hash, offset, length) of the content-defined parts of a content."""
    for part in cutter(*PARTS).cut_buf(content):
        yield xxhash.xxh3_64_intdigest(part.data), part.offset, part.length


def _marks(content: bytes) -> Marks:
    return {number: length for number, _, length in _cut(content)}


class _Before:
    """The earlier version of a value: read from the store piece by piece, twice."""

    def __init__(self, value: Large, reader: Reader, pool: ThreadPoolExecutor) -> None:
        self._reader = reader
        self._pool = pool
        self._pieces = list(reader.pieces(value))
        self._starts = array("Q", [0])
        for piece in self._pieces:
            self._starts.append(self._starts[-1] + piece.raw)

    def _read(self, numbers: Iterable[int]) -> Iterator[tuple[int, bytes]]:
        pieces = self._pieces
        return ahead(self._pool, iter(numbers), lambda n: self._reader.piece(pieces[n]), lambda n: 4 * pieces[n].raw)

    def places(self, wanted: set[int]) -> Places:
        """Where parts with the wanted hashes lie; none at all, if those first searched have too few of them."""
        found: Places = {}
        for start in range(STRIDE):
            for number, content in self._read(range(start, len(self._pieces), STRIDE)):
                for hash_, offset, _ in _cut(content):
                    if hash_ in wanted and len(known := found.setdefault(hash_, [])) < PLACES:
                        known.append(self._starts[number] + offset)
            if start == 0 and len(self._pieces) > STRIDE and len(found) <= HOPELESS * len(wanted):
                return {}
        return found

    def parts(self, ranges: set[Range]) -> dict[Range, bytes]:
        """The contents of ranges."""
        wanted: dict[int, list[Range]] = {}
        for part in ranges:
            first = bisect_right(self._starts, part.offset) - 1
            last = bisect_right(self._starts, part.offset + part.raw - 1)
            for number in range(first, last):
                wanted.setdefault(number, []).append(part)
        found = dict.fromkeys(ranges, b"")
        for number, content in self._read(sorted(wanted)):
            start = self._starts[number]
            for part in wanted[number]:
                found[part] += content[max(part.offset - start, 0) : part.offset + part.raw - start]
        return found


def _choose(marks: Marks, places: Places, raw: int, size: int) -> list[Range]:
    """The ranges of the earlier value, of `size` bytes, that hold most of a piece of `raw` bytes, in order."""
    clusters: list[tuple[int, int, set[int]]] = []
    for place, part in sorted((place, mark) for mark in marks for place in places.get(mark, ())):
        end = place + marks[part]
        if clusters and place <= min(clusters[-1][1] + 2 * MARGIN, clusters[-1][0] + LONGEST):
            start, _, parts = clusters.pop()
            parts.add(part)
            clusters.append((start, end, parts))
        else:
            clusters.append((place, end, {part}))
    clusters.sort(key=lambda cluster: -sum(map(marks.__getitem__, cluster[2])))
    chosen: list[Range] = []
    known: set[int] = set()
    room = min(MAX_BASES, int(ROOM * raw))
    for start, end, parts in clusters:
        first = max(start - MARGIN, 0)
        found = Range(first, min(end + MARGIN, size) - first)
        if sum(marks[part] for part in parts - known) >= LEAST and found.raw <= room and len(chosen) < MAX_RANGES:
            room -= found.raw
            known |= parts
            chosen.append(found)
    return sorted(chosen, key=lambda part: part.offset)


def _patched(
    sink: Sink, piece: Piece, content: bytes, ranges: list[Range], parts: dict[Range, bytes]
) -> PatchPiece | None:
    """Put a piece made from ranges, if that is clearly smaller."""
    dictionary = DICTIONARY_START + b"".join(map(parts.__getitem__, ranges))
    frame = compress(content, LEVEL, dictionary)
    if len(frame) + RANGE_COST * len(ranges) > CLEARLY * piece.stored:
        return None
    ref = sink.put_frame(frame, len(content))
    return PatchPiece(ref.sha256, ref.stored, ref.raw, piece.check, list(ranges))
