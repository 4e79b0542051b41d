"""Which files a HEAD needs: from a file's stored bytes to the files that it names (SPEC 5, 11.3). Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple

from puller.errors import Corrupt
from puller.wire import nodes
from puller.wire.codec import CHUNKS, DIFFS, MAX_RAW, Ref, decompress, path_of
from puller.wire.head import Head
from puller.wire.links import decode_links
from puller.wire.nodes import Diff, Entry, Large, Segment, Sublist, Tree

if TYPE_CHECKING:
    from puller.wire.cipher import Cipher


class Node(NamedTuple):
    """A file, and what gives the files that it names from its stored bytes (None: a piece, which names none).

    `form` says as what it is read: equal bytes may be a piece of one value and an index of a tree. `leads` says whether
    it can name others. `below` checks what it reads and raises Invalid.
    """

    area: str
    ref: Ref
    form: str
    below: Callable[[bytes], Iterable[Node]] | None
    leads: bool

    @property
    def path(self) -> str:
        """Where it lies."""
        return path_of(self.area, self.ref.sha256)


class Graph:
    """The files of one dataset. `cipher` decrypts them, where it is encrypted.

    Without it, an encrypted file names what stands in its clear part (SPEC 11.3): as much, but each file has to be read.
    """

    def __init__(self, cipher: Cipher | None = None) -> None:
        self._cipher = cipher

    def roots(self, head: Head) -> list[Node]:
        """The files that HEAD names: the snapshot first."""
        if head.encryption is not None and self._cipher is None:
            trees = [tree for diff in head.diffs for tree in (diff.tree, diff.patch) if tree is not None]
            refs = [*(tree.ref for tree in trees), *([] if head.log is None else [head.log])]
            return [_sealed(CHUNKS, head.snapshot.ref), *(_sealed(DIFFS, ref) for ref in refs)]
        logs = [] if head.log is None else [self.log(head.log)]
        return [self.tree(CHUNKS, head.snapshot), *chain.from_iterable(map(self.diff, head.diffs)), *logs]

    def diff(self, diff: Diff) -> list[Node]:
        """The roots of a diff, and of the patch beside it."""
        found = [self.tree(DIFFS, diff.tree)]
        return found if diff.patch is None else [*found, self.tree(DIFFS, diff.patch, patch=True)]

    def tree(self, area: str, tree: Tree, *, patch: bool = False) -> Node:
        """The root of a tree."""
        return self._inner(area, tree.ref, tree.level, b"", None, None, patch=patch)

    def log(self, ref: Ref, within: Segment | None = None) -> Node:
        """A log file; `within` is the segment that names it, where it is not HEAD that does."""

        def below(data: bytes) -> Iterator[Node]:
            log = nodes.decode_log(self._raw(ref, data), within)
            segments = (self.log(segment.ref, segment) for segment in log.segments)
            return chain(chain.from_iterable(map(self.diff, log.diffs)), segments)

        return Node(DIFFS, ref, "log", below, leads=True)

    def value(self, value: Large) -> list[Node]:
        """The files that a large value names."""
        if value.depth:
            return [self._list(item, value.depth - 1) for item in value.lists()]
        return [_piece(ref) for piece in value.pieces() for ref in piece.files()]

    def _raw(self, ref: Ref, stored: bytes, limit: int = MAX_RAW) -> bytes:
        frame = stored if self._cipher is None else self._cipher.decrypt(stored)
        return decompress(frame, ref.raw, limit)

    def _inner(
        self, area: str, ref: Ref, level: int, lower: bytes, upper: bytes | None, entry: Entry | None, *, patch: bool
    ) -> Node:
        """An index or a leaf that covers [lower, upper)."""

        def index(data: bytes) -> Iterator[Node]:
            entries = nodes.decode_index(self._raw(ref, data), level=level, lower=lower, upper=upper)
            _check_records(entry, sum(here.records for here in entries))
            for here, after in zip(entries, [*entries[1:], None], strict=True):
                end = upper if after is None else after.bound
                yield self._inner(area, here.ref, here.level, here.bound, end, here, patch=patch)

        def leaf(data: bytes) -> Iterator[Node]:
            raw = self._raw(ref, data)
            if patch:
                found = nodes.decode_patch(raw, lower=lower, upper=upper)
                _check_records(entry, len(found.keys))
                pieces = (piece for instead in found.instead.values() for piece in instead.values())
                return (_piece(ref) for piece in pieces for ref in piece.files())
            keys, values = nodes.decode_leaf(raw, lower=lower, upper=upper, deletions=area == DIFFS)
            _check_records(entry, len(keys))
            return (node for value in values if isinstance(value, Large) for node in self.value(value))

        kind = "patch" if patch else "tree"
        if level:
            return Node(area, ref, f"{kind} {level}", index, leads=True)
        return Node(area, ref, kind, leaf, leads=entry is None or entry.large > 0)

    def _list(self, item: Sublist, depth: int) -> Node:
        """A list of the entries of a large value."""

        def below(data: bytes) -> list[Node]:
            raw = self._raw(item.ref, data, nodes.MAX_NODE)
            if depth:
                return [self._list(inner, depth - 1) for inner in nodes.decode_sublists(raw, item.size)]
            return [_piece(ref) for piece in nodes.decode_pieces(raw, item.size) for ref in piece.files()]

        return Node(CHUNKS, item.ref, f"list {depth}", below, leads=True)


def _sealed(area: str, ref: Ref) -> Node:
    """A file of an encrypted dataset, of which only the clear part can be read."""

    def below(data: bytes) -> Iterator[Node]:
        return (_sealed(link.area, Ref(link.sha256, link.stored, 1)) for link in decode_links(data))

    return Node(area, ref, "sealed", below, leads=True)


def _check_records(entry: Entry | None, records: int) -> None:
    if entry is not None and entry.records != records:
        raise Corrupt(f"it holds {records} records, where the index above it says {entry.records}")


def _piece(ref: Ref) -> Node:
    return Node(CHUNKS, ref, "piece", None, leads=False)
