"""Patches: smaller twins of single-version diffs, made with the old values of the changed keys as dictionary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from publisher.build import Costs, Kept, Sink, TreeBuilder, weight
from publisher.changes import Changed
from publisher.moved import Moved
from puller.stores.base import Store
from puller.wire import nodes
from puller.wire.checksum import run_totals
from puller.wire.codec import DIFFS
from puller.wire.links import of_values
from puller.wire.nodes import Entry, Large, PatchedLarge, Tree, Value

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from puller.wire.cipher import Cipher

SEGMENT = 7 << 20
"""Bytes of old or of new values in a leaf: the larger a leaf, the more of a renamed or moved value is found again."""
MOST = 64 << 20
"""Bytes of old or of new values up to which a patch is tried at all; it is built in memory."""
LEVEL = 9
CLEARLY = 0.75
"""A patch is kept if it has at most this share of its diff's bytes."""


class PatchBuilder(TreeBuilder):
    """Builds a patch from changes in key order; its values are pairs of the new and the old one."""

    def __init__(
        self,
        store: Store,
        pool: ThreadPoolExecutor,
        cipher: Cipher | None,
        costs: Costs | None = None,
        moved: Mapping[bytes, Moved] | None = None,
    ) -> None:
        self._kept = Kept()
        super().__init__(Sink(self._kept, DIFFS, cipher, 1), pool, SEGMENT, costs)
        self._store = store
        self._moved: Mapping[bytes, Moved] = {} if moved is None else moved
        self._total = 0
        self._known = False
        self._same = 0  # bytes of large values' files that the diff needs as well

    def change(self, changed: Changed) -> None:
        """Add changes above all that were added before."""
        if self._total <= MOST:
            self._known = self._known or bool(self._moved) or any(isinstance(v, bytes) for v in changed.before)
            self.add(changed.keys, list(zip(changed.values, changed.before, strict=True)))  # type: ignore[arg-type]

    def beside(self, diff: Tree, lead: Changed | None) -> Tree | None:
        """The patch, put into the store, if it is clearly smaller than its diff; otherwise None, and nothing is put."""
        self._known = self._known or (lead is not None and any(isinstance(v, bytes) for v in lead.before))
        if not self._known or self._total > MOST:
            return None
        pairs: Any = ([], []) if lead is None else (lead.keys, list(zip(lead.values, lead.before, strict=True)))
        patch = self.finish(pairs)
        if patch.bytes - self._same > CLEARLY * (diff.bytes - self._same):
            return None
        for path, stored in [*self._kept.files, *(file for moved in self._moved.values() for file in moved.files)]:
            self._store.put(path, stored)
        return patch

    def _sizes(self, keys: Sequence[bytes], values: Sequence[Any]) -> list[int]:
        sizes = [max(weight(new) + self._more(new), weight(old)) for new, old in values]
        self._total += sum(sizes)
        for new, _ in values:
            if isinstance(new, Large):
                self._count(new)
        return [len(key) + size for key, size in zip(keys, sizes, strict=True)]

    def _more(self, value: Value) -> int:
        """About the raw bytes of what stands in the patch beside a value."""
        moved = self._moved.get(value.record_hash) if isinstance(value, Large) else None
        return 0 if moved is None else sum(100 + 12 * len(piece.bases) for piece in moved.instead.values())

    def _count(self, value: Large) -> None:
        moved = self._moved.get(value.record_hash)
        before = self._extra_bytes
        if moved is None:
            super()._count(value)
            self._same += self._extra_bytes - before
        else:
            self._extra_files += moved.cost[0]
            self._extra_bytes += moved.cost[1]
            self._same += moved.same

    def _leaf(self, bound: bytes, keys: list[bytes], values: list[Value]) -> Entry:
        pairs: Any = values
        new, old = [self._value(value) for value, _ in pairs], [before for _, before in pairs]
        ref = self._sink.put(nodes.encode_patch(keys, new, nodes.patch_dictionary(old), LEVEL), of_values(new))
        checksum, large = run_totals(keys, new)
        return Entry(bound, ref, 0, len(keys), large, checksum.to_bytes(16, "big"))

    def _value(self, value: Value) -> Value:
        """A value as it stands in the patch."""
        moved = self._moved.get(value.record_hash) if isinstance(value, Large) else None
        if moved is None or not isinstance(value, Large):
            return value
        return PatchedLarge(value.size, value.record_hash, value.sha256, value.depth, value.entries, moved.instead)
