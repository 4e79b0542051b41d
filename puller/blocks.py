"""Sorted records in memory, as immutable blocks that a state shares with the states it came from. Pure."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from puller.runs import live, overlay
from puller.wire.nodes import Value

MOST = 8192
"""Records that a block holds at most."""
LEAST = MOST // 8
"""Records under which a block is joined with the one before it."""
MANY = 4
"""From a block in so many records changed on, it is merged as a whole; below, record by record."""

Block = tuple[list[bytes], list[bytes]]
"""Keys in ascending order, and their values. Never changed once a state holds it."""


class Blocks:
    """One state: its records in key order. Immutable, so any number of threads may read it while another is made.

    A lookup takes two binary searches.
    """

    __slots__ = ("blocks", "bounds", "records")

    def __init__(self, blocks: Sequence[Block] = ()) -> None:
        self.blocks = list(blocks)
        self.bounds = [keys[0] for keys, _ in self.blocks]
        self.records = sum(len(keys) for keys, _ in self.blocks)

    def get(self, key: bytes) -> bytes | None:
        """The value under a key, or None."""
        n = bisect_right(self.bounds, key) - 1
        if n < 0:
            return None
        keys, values = self.blocks[n]
        at = bisect_left(keys, key)
        return values[at] if at < len(keys) and keys[at] == key else None

    def runs(self, lower: bytes = b"", upper: bytes | None = None) -> Iterator[Block]:
        """The records whose keys are in [lower, upper), in key order."""
        for n in range(max(0, bisect_right(self.bounds, lower) - 1), len(self.blocks)):
            keys, values = self.blocks[n]
            if upper is not None and keys[0] >= upper:
                return
            start = bisect_left(keys, lower) if keys[0] < lower else 0
            stop = len(keys) if upper is None or keys[-1] < upper else bisect_left(keys, upper)
            if start < stop:
                yield (keys, values) if stop - start == len(keys) else (keys[start:stop], values[start:stop])


class Edit:
    """Makes the next state from one and a stream of changes in key order; blocks without changes are shared."""

    def __init__(self, old: Blocks) -> None:
        self._old = old
        self._next = 0
        """The first block of the old state that was not taken up yet."""
        self._keys: list[bytes] = []
        self._values: list[bytes] = []
        self._upper: bytes | None = b"" if old.blocks else None
        """The keys at hand are below this; None: there is no bound."""
        self._done: list[Block] = []

    def put(self, keys: list[bytes], values: list[bytes | None]) -> list[bytes | None]:
        """Take changes, None deletes; return what the old state holds under their keys."""
        if not self._old.blocks:
            for run in live([(keys, values)]):  # type: ignore[list-item]
                self.append(*run)  # type: ignore[arg-type]
            return [None] * len(keys)
        before: list[bytes | None] = []
        start = 0
        while start < len(keys):
            if self._upper is not None and keys[start] >= self._upper:
                self._move_to(keys[start])
            stop = len(keys) if self._upper is None else bisect_left(keys, self._upper, start)
            before += self._change(keys[start:stop], values[start:stop])
            start = stop
        return before

    def append(self, keys: list[bytes], values: list[bytes]) -> None:
        """Take records above all that were taken before; the old state must be empty."""
        self._keys += keys
        self._values += values
        if len(self._keys) >= MOST:
            self._flush()

    def finish(self) -> Blocks:
        """The next state."""
        self._flush()
        for block in self._old.blocks[self._next :]:
            self._add(*block)
        return Blocks(self._done)

    def _move_to(self, key: bytes) -> None:
        """Take up the block where `key` belongs; those before it stay as they are."""
        self._flush()
        bounds = self._old.bounds
        at = max(bisect_right(bounds, key) - 1, self._next)
        for block in self._old.blocks[self._next : at]:
            self._add(*block)
        keys, values = self._old.blocks[at]
        self._keys, self._values = keys.copy(), values.copy()
        self._next = at + 1
        self._upper = bounds[at + 1] if at + 1 < len(bounds) else None

    def _change(self, keys: list[bytes], values: list[bytes | None]) -> list[bytes | None]:
        """Apply changes to the block at hand; return what it held."""
        if len(keys) * MANY < len(self._keys):
            return self._change_few(keys, values)
        held: dict[bytes, Value] = dict(zip(self._keys, self._values, strict=True))
        before = list(map(held.get, keys))
        merged = list(live([overlay([(self._keys, list(self._values)), (keys, list(values))])]))
        self._keys, self._values = merged[0] if merged else ([], [])  # type: ignore[assignment]
        return before  # type: ignore[return-value]

    def _change_few(self, keys: list[bytes], values: list[bytes | None]) -> list[bytes | None]:
        ours, held = self._keys, self._values
        before: list[bytes | None] = []
        at = 0
        for key, value in zip(keys, values, strict=True):
            at = bisect_left(ours, key, at)
            there = at < len(ours) and ours[at] == key
            before.append(held[at] if there else None)
            if value is None:
                if there:
                    del ours[at], held[at]
            elif there:
                held[at] = value
            else:
                ours.insert(at, key)
                held.insert(at, value)
        return before

    def _flush(self) -> None:
        """Put the records at hand away, cut into blocks of about the same size."""
        keys, values = self._keys, self._values
        self._keys, self._values = [], []
        parts = -(-len(keys) // MOST)
        for n in range(parts):
            start, stop = len(keys) * n // parts, len(keys) * (n + 1) // parts
            self._add(keys[start:stop], values[start:stop])

    def _add(self, keys: list[bytes], values: list[bytes]) -> None:
        """Add a block; a small one joins the one before it."""
        if self._done and min(len(keys), len(self._done[-1][0])) < LEAST and len(keys) + len(self._done[-1][0]) <= MOST:
            before = self._done[-1]
            self._done[-1] = before[0] + keys, before[1] + values
        else:
            self._done.append((keys, values))
