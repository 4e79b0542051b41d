"""Which files a HEAD needs: from a file's stored bytes to the files that it names (SPEC 5). Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from puller.errors import Corrupt
from puller.wire import nodes
from puller.wire.codec import CHUNKS, DIFFS, Ref, path_of, unseal
from puller.wire.head import Head
from puller.wire.nodes import Diff, Entry, Large, Segment, Sublist, Tree


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


def roots(head: Head) -> list[Node]:
    """The files that HEAD names: the snapshot first."""
    logs = [] if head.log is None else [log_node(head.log)]
    return [tree_node(CHUNKS, head.snapshot), *chain.from_iterable(map(diff_nodes, head.diffs)), *logs]


def diff_nodes(diff: Diff) -> list[Node]:
    """The roots of a diff, and of the patch beside it."""
    found = [tree_node(DIFFS, diff.tree)]
    return found if diff.patch is None else [*found, tree_node(DIFFS, diff.patch, patch=True)]


def tree_node(area: str, tree: Tree, *, patch: bool = False) -> Node:
    """The root of a tree."""
    return _inner(area, tree.ref, tree.level, b"", None, None, patch=patch)


def log_node(ref: Ref, within: Segment | None = None) -> Node:
    """A log file; `within` is the segment that names it, where it is not HEAD that does."""

    def below(data: bytes) -> Iterator[Node]:
        log = nodes.decode_log(unseal(ref, data), within)
        segments = (log_node(segment.ref, segment) for segment in log.segments)
        return chain(chain.from_iterable(map(diff_nodes, log.diffs)), segments)

    return Node(DIFFS, ref, "log", below, leads=True)


def value_nodes(value: Large) -> list[Node]:
    """The files that a large value names."""
    if value.depth:
        return [_list(item, value.depth - 1) for item in value.lists()]
    return [_piece(ref) for piece in value.pieces() for ref in piece.files()]


def _inner(
    area: str, ref: Ref, level: int, lower: bytes, upper: bytes | None, entry: Entry | None, *, patch: bool
) -> Node:
    """An index or a leaf that covers [lower, upper)."""

    def index(data: bytes) -> Iterator[Node]:
        entries = nodes.decode_index(unseal(ref, data), level=level, lower=lower, upper=upper)
        _check_records(entry, sum(here.records for here in entries))
        for here, after in zip(entries, [*entries[1:], None], strict=True):
            end = upper if after is None else after.bound
            yield _inner(area, here.ref, here.level, here.bound, end, here, patch=patch)

    def leaf(data: bytes) -> Iterator[Node]:
        raw = unseal(ref, data)
        if patch:
            found = nodes.decode_patch(raw, lower=lower, upper=upper)
            _check_records(entry, len(found.keys))
            return (
                _piece(ref) for pieces in found.instead.values() for piece in pieces.values() for ref in piece.files()
            )
        keys, values = nodes.decode_leaf(raw, lower=lower, upper=upper, deletions=area == DIFFS)
        _check_records(entry, len(keys))
        return (node for value in values if isinstance(value, Large) for node in value_nodes(value))

    kind = "patch" if patch else "tree"
    if level:
        return Node(area, ref, f"{kind} {level}", index, leads=True)
    return Node(area, ref, kind, leaf, leads=entry is None or entry.large > 0)


def _check_records(entry: Entry | None, records: int) -> None:
    if entry is not None and entry.records != records:
        raise Corrupt(f"it holds {records} records, where the index above it says {entry.records}")


def _piece(ref: Ref) -> Node:
    return Node(CHUNKS, ref, "piece", None, leads=False)


def _list(item: Sublist, depth: int) -> Node:
    """A list of the entries of a large value."""

    def below(data: bytes) -> list[Node]:
        raw = unseal(item.ref, data)
        if depth:
            return [_list(inner, depth - 1) for inner in nodes.decode_sublists(raw, item.size)]
        return [_piece(ref) for piece in nodes.decode_pieces(raw, item.size) for ref in piece.files()]

    return Node(CHUNKS, item.ref, f"list {depth}", below, leads=True)
