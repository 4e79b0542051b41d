"""The earlier version of a large value: which of its pieces a new one is like, and patches on them."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import msgspec
import xxhash

from publisher.build import Sink, cutter
from puller.plan import REQUEST_COST
from puller.tree import Reader
from puller.wire.codec import Ref, compress, encode
from puller.wire.nodes import (
    DICTIONARY_START,
    MAX_BASES,
    MAX_NESTING,
    MAX_PIECE_FILES,
    MAX_PIECE_WORK,
    Large,
    Piece,
)

LEVEL = 1
CLEARLY = 0.5
"""A patch is kept if it has at most this share of the bytes of the plain piece."""
SHARE = 0.5
"""What a fresh reader may have to fetch for patches below a piece, as a share of the plain piece."""
FEW = 4 * REQUEST_COST
"""What it may have to fetch for them in any case: some tiny files are not worth writing a piece again."""
MARK = (4 << 10, 1 << 10, 16 << 10)
"""Average, least and most bytes of the parts by which contents are compared."""
HELPFUL = 8
"""A base must hold at least one in so many of a piece's bytes."""
SCOUTED = 8
"""Pieces that are looked at further on where nothing of a new piece is found; one more for each piece in vain."""
MOST_SCOUTED = 32
CONTENTS, MARKED = 8, 48
"""Pieces whose contents, and whose marks, are held in memory."""

Marks = dict[int, int]
"""The hashes of the parts of a content, and where they begin."""

_decode = msgspec.msgpack.Decoder(Piece).decode


class Base(NamedTuple):
    """A piece to patch on (it may still have to be written), and its content."""

    piece: Future[Piece]
    content: bytes


class Earlier:
    """The pieces of a value's earlier version, found again from first to last while the new one is cut.

    Memory is bounded by a few contents, and by some hundred bytes for each piece. Contents are read, and verified,
    in the pool when something changed at their place.
    """

    def __init__(self, value: Large, reader: Reader, sink: Sink, pool: ThreadPoolExecutor) -> None:
        self._reader = reader
        self._sink = sink
        self._pool = pool
        self._entries: list[bytes] = []
        self._starts = array("Q", [0])
        self._numbers: dict[bytes, int] = {}
        for piece in reader.pieces(value):
            self._numbers.setdefault(piece.check, len(self._entries))
            self._entries.append(encode(piece))
            self._starts.append(self._starts[-1] + piece.raw)
        self._reads: OrderedDict[int, Future[tuple[bytes, Marks]]] = OrderedDict()
        self._marks: OrderedDict[int, Marks] = OrderedDict()
        self._pieces: OrderedDict[int, Future[Piece]] = OrderedDict()
        self._place = 0  # where the next new piece is expected in the earlier value
        self._known = 0  # the end of the last part that was found again
        self._vain = 0

    def same(self, check: bytes, raw: int) -> Piece | None:
        """The piece that has the content of the next new one."""
        number = self._at(self._place)
        piece = _decode(self._entries[number])
        if (piece.check, piece.raw) != (check, raw) or self._starts[number] != self._place:
            found = self._numbers.get(check)
            if found is None:
                return None
            number, piece = found, _decode(self._entries[found])
            if piece.raw != raw:
                return None
        self._found(self._starts[number] + raw)
        return piece

    def bases(self, part: bytes) -> list[Base]:
        """The pieces that the next new one, which equals none of them, is to be patched on; those that help most first."""
        marks = _marks_of(part)
        near = self._near(len(part))
        hits = self._hits(marks, near)
        if not any(hits.values()):
            hits = self._hits(marks, self._ahead(near))
        self._advance(marks, hits, len(part))
        chosen = _choose(hits, len(part) // HELPFUL) or self._overlapping(near, len(part))
        bases = []
        room = min(MAX_BASES, 8 * len(part))
        for number in chosen:
            content, _ = self._read(number).result()
            if len(content) <= room:
                room -= len(content)
                bases.append(Base(self._base(number, content), content))
        for number in range(self._at(self._place), min(self._at(self._place) + 2, len(self._entries))):
            self._read(number)
        return bases

    def _at(self, place: int) -> int:
        """The number of the piece at a place; the last one's beyond the end."""
        return min(bisect_right(self._starts, place), len(self._entries)) - 1

    def _found(self, end: int) -> None:
        self._place = self._known = min(end, self._starts[-1])
        self._vain = 0

    def _near(self, raw: int) -> list[int]:
        """The pieces around the place where a new one is expected to come from."""
        margin = raw // 8
        return list(range(self._at(max(self._place - margin, 0)), self._at(self._place + raw + margin) + 1))

    def _ahead(self, near: list[int]) -> list[int]:
        """The pieces that follow on what was found last: something may have been inserted since, or deleted."""
        start = self._at(self._known)
        stop = min(start + SCOUTED + self._vain, start + MOST_SCOUTED, len(self._entries))
        return [number for number in range(start, stop) if number not in near]

    def _hits(self, marks: list[tuple[int, int, int]], numbers: list[int]) -> dict[int, dict[int, tuple[int, int]]]:
        """For each of some pieces, where the new piece's parts begin that are in it: (length, place in the earlier value)."""
        hits = {}
        for n, number in enumerate(numbers):
            for soon in numbers[n : n + 3]:
                if soon not in self._marks:
                    self._read(soon)
            known, start = self._marks_at(number), self._starts[number]
            hits[number] = {o: (length, start + known[h]) for h, o, length in marks if h in known}
        return hits

    def _advance(
        self, marks: list[tuple[int, int, int]], hits: dict[int, dict[int, tuple[int, int]]], raw: int
    ) -> None:
        """Move on by a piece: from the last of its parts that was found again, if there is one."""
        last = max(((offset, place) for found in hits.values() for offset, (_, place) in found.items()), default=None)
        if last is None:
            self._vain += 1
            self._place = min(self._place + raw, self._starts[-1])
        else:
            self._found(last[1] + raw - last[0])

    def _overlapping(self, near: list[int], raw: int) -> list[int]:
        """The pieces at the very place, for changes too fine for marks."""
        end = self._place
        return [n for n in near if self._starts[n + 1] > max(end - raw, 0) and self._starts[n] < end][:4]

    def _read(self, number: int) -> Future[tuple[bytes, Marks]]:
        """The content of a piece, and its marks, under way in the pool."""
        future = self._reads.get(number)
        if future is None:
            future = self._reads[number] = self._pool.submit(self._load, number)
            while len(self._reads) > CONTENTS:
                self._reads.popitem(last=False)
        self._reads.move_to_end(number)
        return future

    def _load(self, number: int) -> tuple[bytes, Marks]:
        content = self._reader.piece(_decode(self._entries[number]))
        return content, {hash_: offset for hash_, offset, _ in _marks_of(content)}

    def _marks_at(self, number: int) -> Marks:
        if number not in self._marks:
            self._marks[number] = self._read(number).result()[1]
            while len(self._marks) > MARKED:
                self._marks.popitem(last=False)
        self._marks.move_to_end(number)
        return self._marks[number]

    def _base(self, number: int, content: bytes) -> Future[Piece]:
        """The piece as base of others: written again, if it stands on so many patches that fresh readers would suffer.

        Readers that hold its content do not need the new file.
        """
        future = self._pieces.get(number)
        if future is None:
            piece = _decode(self._entries[number])
            if _is_dear(piece):
                future = self._pool.submit(self._again, piece, content)
            else:
                future = Future()
                future.set_result(piece)
            self._pieces[number] = future
            while len(self._pieces) > MARKED:
                self._pieces.popitem(last=False)
        return future

    def _again(self, piece: Piece, content: bytes) -> Piece:
        """Write a piece anew: as one patch on the plain pieces that it stands on, if that is small; else plain."""
        roots = _roots(piece)
        plain = _plain_size(roots, piece.raw)
        if sum(root.raw for root in roots) <= min(MAX_BASES, 8 * piece.raw):
            frame = compress(content, LEVEL, _dictionary(map(self._reader.piece, roots)))
            if len(frame) <= SHARE / 2 * plain:
                return _named(self._sink.put_frame(frame, piece.raw), piece.check, roots)
        return _named(self._sink.put(content), piece.check, [])


def put_piece(sink: Sink, part: bytes, check: bytes, bases: list[Base]) -> Piece:
    """Put a new piece: as a patch on `bases` where that is clearly smaller, else plain."""
    pieces = [base.piece.result() for base in bases]
    while pieces and not _fits(len(part), pieces):
        pieces.pop()
    if not pieces:
        return _named(sink.put(part), check, [])
    frame = compress(part, LEVEL, _dictionary(base.content for base in bases[: len(pieces)]))
    if len(frame) > CLEARLY / 2 * _plain_size(_roots(*pieces), len(part)):
        plain = compress(part, sink.level)
        if len(frame) > CLEARLY * len(plain):
            return _named(sink.put_frame(plain, len(part)), check, [])
    return _named(sink.put_frame(frame, len(part)), check, pieces)


def _named(ref: Ref, check: bytes, bases: list[Piece]) -> Piece:
    return Piece(ref.sha256, ref.stored, ref.raw, check, bases)


def _dictionary(contents: Iterable[bytes]) -> bytes:
    return DICTIONARY_START + b"".join(contents)


def _marks_of(content: bytes) -> list[tuple[int, int, int]]:
    """(hash, offset, length) of the content-defined parts of a content."""
    return [(xxhash.xxh3_64_intdigest(c.data), c.offset, c.length) for c in cutter(*MARK).cut_buf(content)]


def _choose(hits: dict[int, dict[int, tuple[int, int]]], least: int) -> list[int]:
    """The pieces that hold most of a new one, each at least `least` bytes that those before it do not hold."""
    chosen: list[int] = []
    left = {number: {offset: length for offset, (length, _) in found.items()} for number, found in hits.items()}
    while left:
        best = max(left, key=lambda number: sum(left[number].values()))
        found = left.pop(best)
        if sum(found.values()) < max(least, 1):
            break
        chosen.append(best)
        left = {n: {o: length for o, length in other.items() if o not in found} for n, other in left.items()}
    return chosen


def _fits(raw: int, bases: list[Piece]) -> bool:
    """Whether a piece on these bases keeps the limits of SPEC 5.4."""
    files = [ref for base in bases for ref in base.files()]
    return (
        max(map(_height, bases)) < MAX_NESTING
        and len(files) < MAX_PIECE_FILES
        and raw + sum(ref.raw for ref in files) <= MAX_PIECE_WORK
    )


def _height(piece: Piece) -> int:
    return 1 + max(map(_height, piece.bases)) if piece.bases else 0


def _is_dear(piece: Piece) -> bool:
    """Whether a fresh reader has to fetch so much for the patches below a piece that no further one may stand on it."""
    roots = _roots(piece)
    plain = {root.ref for root in roots}
    cost = sum(ref.stored + REQUEST_COST for ref in piece.files() if ref not in plain)
    return _height(piece) >= MAX_NESTING or cost > max(FEW, SHARE * _plain_size(roots, piece.raw))


def _roots(*pieces: Piece) -> list[Piece]:
    """The plain pieces that some pieces stand on, each once."""
    found: dict[bytes, Piece] = {}
    for piece in pieces:
        below = _roots(*piece.bases) if piece.bases else [piece]
        found.update((root.sha256, root) for root in below)
    return list(found.values())


def _plain_size(roots: list[Piece], raw: int) -> int:
    """About the stored bytes of a plain piece with `raw` bytes that are like those of some plain pieces."""
    return raw * sum(root.stored for root in roots) // sum(root.raw for root in roots)
