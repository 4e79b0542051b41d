"""Carrying a snapshot forward: only the chunks that diffs touched are written again."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from publisher.build import CHUNK_SIZE, Sink, TreeBuilder
from puller.runs import Cursor, live, merge, overlay
from puller.tree import Reader
from puller.wire.codec import CHUNKS, DIFFS, MAX_RAW
from puller.wire.nodes import Diff, Run, Tree

SHARE = 0.2
"""A new snapshot is due when the diffs since the last one come to more than this share of its bytes."""


def is_due(reader: Reader, snapshot: Tree, diffs: Sequence[Diff]) -> bool:
    """Whether the diffs since a snapshot have outgrown their share of it."""
    share = SHARE * node_bytes(reader, CHUNKS, snapshot) + CHUNK_SIZE // 32
    return sum(node_bytes(reader, DIFFS, diff.tree) for diff in diffs) > share


def node_bytes(reader: Reader, area: str, tree: Tree) -> int:
    """About the stored bytes of a tree's own files: pieces of large values cost no more in a diff than in a chunk."""
    if tree.level == 0:
        return tree.ref.stored
    if tree.level > 1:
        return tree.bytes
    return sum(leaf.ref.stored for leaf in reader.leaves(area, tree))


def carry(reader: Reader, snapshot: Tree, diffs: Sequence[Diff], sink: Sink, pool: ThreadPoolExecutor) -> Tree:
    """The snapshot of the version that `diffs` lead to from an older snapshot; untouched chunks stay.

    Chunks keep their bounds, but those that have grown over twice their size are split, and small ones join the next.
    """
    changes = Cursor(merge([reader.diff(diff) for diff in diffs]))
    builder = TreeBuilder(sink, pool, leaf_size=MAX_RAW // 2)
    for leaf in reader.leaves(CHUNKS, snapshot):
        touched = changes.take_below(leaf.upper)
        joins = 0 < builder.size <= CHUNK_SIZE // 4
        if not touched[0] and leaf.entry is not None and not joins:
            builder.keep(leaf.entry)
            continue
        if not joins:
            builder.start(leaf.lower)
        old = reader.leaf(CHUNKS, leaf)
        for run in live([overlay([old, touched])] if touched[0] else [old]):
            for part in split(run):
                builder.add(*part)
                if builder.size > CHUNK_SIZE // 2 and part[0][-1] != run[0][-1]:
                    builder.cut()
    return builder.finish()


def split(run: Run) -> list[Run]:
    """A run that has grown over twice the size of a chunk, in even parts; any other as it is."""
    keys, values = run
    total = sum(map(len, keys)) + sum(len(value) for value in values if isinstance(value, bytes))
    if total <= 2 * CHUNK_SIZE:
        return [run]
    step = -(-len(keys) // round(total / CHUNK_SIZE))
    return [(keys[n : n + step], values[n : n + step]) for n in range(0, len(keys), step)]
