"""Point lookups: the values of some keys in a published version, reading only the files that can hold them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from puller.tree import Leaf, Reader, ahead
from puller.wire.codec import CHUNKS, DIFFS, Ref
from puller.wire.head import Head
from puller.wire.nodes import Diff, Entry, Run, Tree, Value

KEPT = 16 << 20
"""Raw bytes of indexes and leaves that are kept decoded."""

Touched = list[tuple[Leaf, list[bytes]]]
"""Leaves, and the keys in the range of each."""


class Version(Protocol):
    """A published version, and how its files are read."""

    @property
    def head(self) -> Head: ...

    @property
    def reader(self) -> Reader: ...

    @property
    def chain(self) -> list[Diff]:
        """The diffs that lead from the snapshot to the version."""
        ...


class Finder:
    """Looks keys up in the newest diffs first, then in the snapshot. Keeps the nodes that were used last."""

    def __init__(self) -> None:
        self._kept: OrderedDict[bytes, tuple[int, Any]] = OrderedDict()
        self._size = 0

    def find(self, was: Version, keys: Sequence[bytes]) -> dict[bytes, Value]:
        """The values of those of some keys, in key order, that there are."""
        found: dict[bytes, Value] = {}
        left = list(keys)
        for area, tree in _newest_first(was):
            if not left:
                break
            held = self._search(was.reader, area, tree, left)
            if held:
                found.update(held)
                left = [key for key in left if key not in held]
        return {key: value for key, value in found.items() if value is not None}

    def cost(self, was: Version, keys: Sequence[bytes]) -> int:
        """At most how many stored bytes of leaves `find` would read. Reads indexes."""
        if not keys:
            return 0
        leaves = (leaf for area, tree in _newest_first(was) for leaf, _ in self._leaves(was.reader, area, tree, keys))
        return sum(leaf.ref.stored for leaf in leaves if leaf.ref.sha256 not in self._kept)

    def _search(self, reader: Reader, area: str, tree: Tree, keys: Sequence[bytes]) -> dict[bytes, Value]:
        found: dict[bytes, Value] = {}
        away: Touched = []
        for leaf, wanted in self._leaves(reader, area, tree, keys):
            kept = self._get(leaf.ref)
            if kept is None:
                away.append((leaf, wanted))
            else:
                _pick(kept, wanted, found)
        if len(away) == 1:
            leaf, wanted = away[0]
            _pick(self._keep(leaf.ref, reader.leaf(area, leaf)), wanted, found)
            return found
        loads = ahead(reader.pool, iter(away), lambda item: reader.leaf(area, item[0]), lambda item: item[0].ref.raw)
        for (leaf, wanted), run in loads:
            _pick(self._keep(leaf.ref, run), wanted, found)
        return found

    def _leaves(
        self, reader: Reader, area: str, tree: Tree, keys: Sequence[bytes]
    ) -> Iterator[tuple[Leaf, list[bytes]]]:
        return self._descend(reader, area, Leaf(tree.ref, b"", None, None), tree.level, list(keys))

    def _descend(
        self, reader: Reader, area: str, node: Leaf, level: int, keys: list[bytes]
    ) -> Iterator[tuple[Leaf, list[bytes]]]:
        if level == 0:
            yield node, keys
            return
        bounds, entries = self._index(reader, area, node, level)
        start = 0
        while start < len(keys):
            at = bisect_right(bounds, keys[start]) - 1
            end = bounds[at + 1] if at + 1 < len(bounds) else node.upper
            stop = len(keys) if end is None else bisect_left(keys, end, start)
            entry = entries[at]
            below = Leaf(entry.ref, entry.bound, end, entry)
            yield from self._descend(reader, area, below, entry.level, keys[start:stop])
            start = stop

    def _index(self, reader: Reader, area: str, node: Leaf, level: int) -> tuple[list[bytes], list[Entry]]:
        kept: tuple[list[bytes], list[Entry]] | None = self._get(node.ref)
        if kept is None:
            entries = reader.index(area, node.ref, level, node.lower, node.upper, node.entry)
            kept = self._keep(node.ref, ([entry.bound for entry in entries], entries))
        return kept

    def _get(self, ref: Ref) -> Any:
        kept = self._kept.get(ref.sha256)
        if kept is None:
            return None
        self._kept.move_to_end(ref.sha256)
        return kept[1]

    def _keep(self, ref: Ref, decoded: Any) -> Any:
        self._kept[ref.sha256] = ref.raw, decoded
        self._size += ref.raw
        while self._size > KEPT and len(self._kept) > 1:
            self._size -= self._kept.popitem(last=False)[1][0]
        return decoded


def _newest_first(was: Version) -> Iterator[tuple[str, Tree]]:
    for diff in reversed(was.chain):
        yield DIFFS, diff.tree
    yield CHUNKS, was.head.snapshot


def _pick(run: Run, wanted: list[bytes], found: dict[bytes, Value]) -> None:
    """Add those of the wanted keys that a leaf holds."""
    keys, values = run
    for key in wanted:
        at = bisect_left(keys, key)
        if at < len(keys) and keys[at] == key:
            found[key] = values[at]
