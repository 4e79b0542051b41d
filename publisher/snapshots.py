"""Carrying a snapshot forward: only the chunks that diffs touched are written again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import msgspec

from publisher.build import CHUNK_SIZE, Sink, TreeBuilder
from puller.runs import Cursor, live, merge
from puller.tree import Leaf, Reader
from puller.wire.codec import CHUNKS, DIFFS, MAX_RAW
from puller.wire.nodes import Diff, Entry, Run, Tree, Value

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

SHARE = 0.2
"""A new snapshot is due when the diffs since the last one come to more than this share of its bytes."""
MOST = 8 * CHUNK_SIZE
"""About how many bytes of a chunk that has grown are held while it is split."""


def is_due(reader: Reader, snapshot: Tree, diffs: Sequence[Diff], sizes: dict[bytes, int]) -> bool:
    """Whether the diffs since a snapshot have outgrown their share of it; `sizes` keeps what had to be read for that."""
    share = SHARE * node_bytes(reader, CHUNKS, snapshot, sizes) + CHUNK_SIZE // 32
    return sum(node_bytes(reader, DIFFS, diff.tree, sizes) for diff in diffs) > share


def node_bytes(reader: Reader, area: str, tree: Tree, sizes: dict[bytes, int]) -> int:
    """About the stored bytes of a tree's own files: pieces of large values cost no more in a diff than in a chunk."""
    if tree.level == 0:
        return tree.ref.stored
    if tree.level > 1:
        return tree.bytes
    root = tree.ref.sha256
    if root not in sizes:
        sizes[root] = sum(leaf.ref.stored for leaf in reader.leaves(area, tree))
    return sizes[root]


def carry(
    reader: Reader, snapshot: Tree, diffs: Sequence[Diff], sink: Sink, pool: ThreadPoolExecutor
) -> tuple[Tree, int]:
    """The snapshot of the version that `diffs` lead to from an older one, and its checksum; untouched chunks stay.

    Chunks keep their bounds, but those that have grown over twice their size are split, and small ones join the next.
    """
    changes = Cursor(reader.merged([(DIFFS, diff.tree) for diff in diffs]))
    large = Kept(snapshot)
    builder = TreeBuilder(sink, pool, leaf_size=MAX_RAW // 2)
    for leaf in reader.leaves(CHUNKS, snapshot):
        touching = changes.parts_below(leaf.upper)
        first = next(touching, None)
        large.see(leaf)
        joins = 0 < builder.size <= CHUNK_SIZE // 4
        if first is None and leaf.entry is not None and not joins:
            builder.keep(leaf.entry)
            large.keep(leaf.entry)
            continue
        if not joins:
            builder.start(leaf.lower)
        old = reader.leaf(CHUNKS, leaf)
        touched = [] if first is None else [chain([first], touching)]
        for n, part in enumerate(split(live(merge([[old], *touched])))):
            if n and builder.size > CHUNK_SIZE // 2:
                builder.cut()
            builder.add(*part)
    tree = large.counted(builder.finish())
    return tree, builder.checksum


class Kept:
    """What the large values in chunks that stay add to the hints of a snapshot: their share of what all added before."""

    def __init__(self, snapshot: Tree) -> None:
        self._files = snapshot.files
        self._bytes = snapshot.bytes
        self._all = self._kept = 0

    def see(self, leaf: Leaf) -> None:
        """Count a chunk of the old snapshot."""
        self._files -= 1
        self._bytes -= leaf.ref.stored
        self._all += 0 if leaf.entry is None else leaf.entry.large

    def keep(self, entry: Entry) -> None:
        """Count a chunk that stays."""
        self._kept += entry.large

    def counted(self, tree: Tree) -> Tree:
        """The new snapshot, with the large values in chunks that stayed among its files and bytes."""
        if not self._kept:
            return tree
        files, size = (max(left, 0) * self._kept // self._all for left in (self._files, self._bytes))
        return msgspec.structs.replace(tree, files=tree.files + files, bytes=tree.bytes + size)


def split(runs: Iterable[Run]) -> Iterator[Run]:
    """What became of a chunk: as it is, or in even parts where it has grown over twice the size of one.

    However much it has grown, little of it is in memory at a time.
    """
    keys: list[bytes] = []
    values: list[Value] = []
    size = 0
    for more_keys, more in runs:
        keys += more_keys
        values += more
        size += sum(map(len, more_keys)) + sum(len(value) for value in more if isinstance(value, bytes))
        if size >= MOST:
            yield from _evenly(keys, values, size)
            keys, values, size = [], [], 0
    if keys:
        yield from _evenly(keys, values, size)


def _evenly(keys: list[bytes], values: list[Value], size: int) -> list[Run]:
    step = len(keys) if size <= 2 * CHUNK_SIZE else -(-len(keys) // round(size / CHUNK_SIZE))
    return [(keys[n : n + step], values[n : n + step]) for n in range(0, len(keys), step)]
