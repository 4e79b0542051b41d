"""Which files a file refers to: what mirrors follow, and what encrypted files say of themselves in the clear (SPEC 11.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import ge
from typing import NamedTuple

from puller.errors import Invalid
from puller.wire.codec import CHUNKS, DIFFS, MAX_STORED, Ref
from puller.wire.nodes import Diff, Entry, Large, Log, PatchedLarge, PatchPiece, Piece, Sublist, Tree, Value

AREAS = (CHUNKS, DIFFS)
_SIZE = 37
_COUNT = 4


class Link(NamedTuple):
    """A file as another one refers to it: its area, the SHA-256 of its stored bytes, and their number."""

    area: str
    sha256: bytes
    stored: int


def to(area: str, refs: Iterable[Ref]) -> Iterator[Link]:
    """Links to files of one area."""
    return (Link(area, ref.sha256, ref.stored) for ref in refs)


def of_values(values: Sequence[Value]) -> Iterator[Link]:
    """What a leaf with these values refers to: the files with the contents of large ones, one list down."""
    for value in values:
        if isinstance(value, Large):
            yield from of_items(value.lists() if value.depth else value.pieces())
        if isinstance(value, PatchedLarge):
            yield from of_items(value.instead.values())


def of_items(items: Iterable[Piece | PatchPiece | Sublist]) -> Iterator[Link]:
    """What a list of pieces, or of lists, refers to; the bases of pieces are among it."""
    for item in items:
        yield from to(CHUNKS, [item.ref] if isinstance(item, Sublist) else item.files())


def of_index(area: str, entries: Iterable[Entry]) -> Iterator[Link]:
    """What an index of a tree in an area refers to."""
    return to(area, (entry.ref for entry in entries))


def of_diffs(diffs: Iterable[Diff]) -> Iterator[Link]:
    """What a list of diffs refers to: the roots of the diffs and of their patches."""
    for diff in diffs:
        trees: list[Tree] = [diff.tree] if diff.patch is None else [diff.tree, diff.patch]
        yield from to(DIFFS, (tree.ref for tree in trees))


def of_log(log: Log) -> Iterator[Link]:
    """What a log refers to."""
    yield from of_diffs(log.diffs)
    yield from to(DIFFS, (segment.ref for segment in log.segments))


def encode_links(links: Iterable[Link]) -> bytes:
    """The clear part of an encrypted file (SPEC 11.3): the links, each once, in one order."""
    items = {bytes([AREAS.index(area)]) + sha256 + stored.to_bytes(4, "big") for area, sha256, stored in links}
    return len(items).to_bytes(_COUNT, "big") + b"".join(sorted(items))


def clear_part(stored: bytes) -> bytes:
    """The clear part that an encrypted file begins with. Raises Invalid where it is not in its form (SPEC 11.3)."""
    end = _COUNT + _SIZE * int.from_bytes(stored[:_COUNT], "big")
    if len(stored) < max(end, _COUNT):
        raise Invalid("the clear part of an encrypted file is cut off")
    clear = stored[:end]
    items = [clear[n : n + _SIZE] for n in range(_COUNT, end, _SIZE)]
    files = [item[:33] for item in items]
    if any(map(ge, files, files[1:])):
        raise Invalid("the clear part of an encrypted file does not ascend")
    for item in items:
        if item[0] >= len(AREAS) or not 0 < int.from_bytes(item[33:], "big") <= MAX_STORED:
            raise Invalid("the clear part of an encrypted file names a file that there cannot be")
    return clear


def decode_links(stored: bytes) -> list[Link]:
    """What an encrypted file refers to, from its stored bytes (SPEC 11.3). No secret is needed."""
    clear = clear_part(stored)
    items = (clear[n : n + _SIZE] for n in range(_COUNT, len(clear), _SIZE))
    return [Link(AREAS[item[0]], item[1:33], int.from_bytes(item[33:], "big")) for item in items]
