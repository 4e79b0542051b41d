"""Patches: smaller twins of single-version diffs, made with the old values of the changed keys as dictionary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from publisher.build import Costs, TreeBuilder, weight
from publisher.changes import Changed
from publisher.stores.base import Store
from puller.wire import nodes
from puller.wire.checksum import run_sum
from puller.wire.codec import DIFFS, Ref, path_of, seal
from puller.wire.nodes import Entry, Large, Tree, Value

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

SEGMENT = 7 << 20
"""Bytes of old or of new values in a leaf: the larger a leaf, the more of a renamed or moved value is found again."""
MOST = 64 << 20
"""Bytes of old or of new values up to which a patch is tried at all; it is built in memory."""
LEVEL = 9
CLEARLY = 0.75
"""A patch is kept if it has at most this share of its diff's bytes."""


class _Held:
    """A sink that holds files back until it is known that they are wanted."""

    area = DIFFS

    def __init__(self) -> None:
        self.files: list[tuple[str, bytes]] = []

    def put(self, raw: bytes) -> Ref:
        ref, stored = seal(raw, 1)
        self.files.append((path_of(self.area, ref.sha256), stored))
        return ref


class PatchBuilder(TreeBuilder):
    """Builds a patch from changes in key order; its values are pairs of the new and the old one."""

    def __init__(self, store: Store, pool: ThreadPoolExecutor, costs: Costs | None = None) -> None:
        self._held = _Held()
        super().__init__(self._held, pool, SEGMENT, costs)
        self._store = store
        self._total = 0
        self._known = False

    def change(self, changed: Changed) -> None:
        """Add changes above all that were added before."""
        if self._total <= MOST:
            self._known = self._known or any(isinstance(value, bytes) for value in changed.before)
            self.add(changed.keys, list(zip(changed.values, changed.before, strict=True)))  # type: ignore[arg-type]

    def beside(self, diff: Tree, lead: Changed | None) -> Tree | None:
        """The patch, put into the store, if it is clearly smaller than its diff; otherwise None, and nothing is put."""
        self._known = self._known or (lead is not None and any(isinstance(v, bytes) for v in lead.before))
        if not self._known or self._total > MOST:
            return None
        pairs: Any = ([], []) if lead is None else (lead.keys, list(zip(lead.values, lead.before, strict=True)))
        patch = self.finish(pairs)
        if patch.bytes - self._extra_bytes > CLEARLY * (diff.bytes - self._extra_bytes):
            return None
        for path, stored in self._held.files:
            self._store.put(path, stored)
        return patch

    def _sizes(self, keys: Sequence[bytes], values: Sequence[Any]) -> Iterable[int]:
        sizes = [max(weight(new), weight(old)) for new, old in values]
        self._total += sum(sizes)
        for new, _ in values:
            if isinstance(new, Large):
                self._count(new)
        return [len(key) + size for key, size in zip(keys, sizes, strict=True)]

    def _leaf(self, bound: bytes, keys: list[bytes], values: list[Value]) -> Entry:
        pairs: Any = values
        new, old = [value for value, _ in pairs], [before for _, before in pairs]
        ref = self._sink.put(nodes.encode_patch(keys, new, nodes.patch_dictionary(old), LEVEL))
        checksum = run_sum(keys, new).to_bytes(16, "big")
        return Entry(bound, ref, 0, len(keys), nodes.large_bytes(new), checksum)
