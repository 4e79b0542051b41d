"""Bringing what is held to a snapshot and the diffs after it by fetching only the chunks whose range differs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from puller.errors import LocalEdits
from puller.parts import EVERYTHING, cut_all
from puller.ranges import Bounds, overlaps
from puller.runs import Cursor, merge, overlay
from puller.tree import Leaf, Reader, ahead
from puller.wire.checksum import Hash, record_hashes, sum_hashes
from puller.wire.codec import CHUNKS
from puller.wire.nodes import Run, Tree, Value, is_ascending
from puller.wire.rows import SCHEMA_KEY

Hashed = tuple[list[bytes], list[Hash]]
"""Keys in strictly ascending order, and the hash of the record that is held under each."""

_AFTER_SCHEMA = b"\0"


@dataclass(frozen=True)
class _Range:
    """A chunk's range: what is held in it, and what the diffs after the snapshot say about it.

    The schema of a table is handled before all else: it is neither in `held` nor in `changes`, but counts in `holds`.
    """

    leaf: Leaf
    held: Hashed
    changes: Run
    trusted: bool
    """Whether what is held is known to be from the snapshot's version or later ones."""
    chunk: Run | None
    """The chunk, where it was read already."""
    holds: bool
    """Whether what is held is what the snapshot has in the range, by count and checksum (SPEC 5.2)."""

    @property
    def size(self) -> int:
        return self.leaf.ref.raw + 100 * len(self.held[0])


class Resync:
    """One walk over a snapshot's leaves and what is held, side by side.

    `suspects` are the only ranges in which what is held may be anything; in others it is from the snapshot's version
    or later ones, and needs nothing but the diffs. None: all of it may be anything. `within` are the ranges to be held.
    """

    def __init__(
        self,
        reader: Reader,
        snapshot: Tree,
        *,
        is_table: bool,
        suspects: list[Bounds] | None,
        within: Sequence[Bounds] = EVERYTHING,
    ) -> None:
        self._reader = reader
        self._within = within
        self._snapshot = snapshot
        self._is_table = is_table
        self._suspects: list[Bounds] = [(b"", None)] if suspects is None else suspects

    def runs(self, held: Iterable[Hashed], changes: Iterable[Run]) -> Iterator[Run]:
        """The differences, in key order, deletions as None: applied to what is held, they give the newest state.

        `changes` are those after the snapshot; they and `held` lie within the ranges to be held. The schema of a table
        comes first, in a run of its own, and no row that is held is read before that is consumed: the table may change
        its form in between. Raises LocalEdits if what is held is out of order.
        """
        batches = _in_order(held)
        diffs = Cursor(changes)
        leaves = self._reader.leaves(CHUNKS, self._snapshot, self._within)
        if self._is_table:
            first = next(leaves)
            lead: Hashed = next(batches, ([], []))
            schema = diffs.take_below(_AFTER_SCHEMA)
            chunk = None
            if not schema[0] and overlaps(self._suspects, b"", _AFTER_SCHEMA):
                chunk = self._reader.cut_leaf(CHUNKS, first, self._within)
                schema = chunk[0][:1], chunk[1][:1]
            if (run := differences(lead, schema, whole=False))[0]:
                yield run
            rows = Cursor(cast("Any", batches))
            yield from self._differing([self._range(first, rows, diffs, lead, chunk)])
        else:
            rows = Cursor(cast("Any", batches))
        yield from self._differing(self._range(leaf, rows, diffs) for leaf in leaves)

    def _range(
        self,
        leaf: Leaf,
        rows: Cursor,
        diffs: Cursor,
        lead: Hashed = ([], []),
        chunk: Run | None = None,
    ) -> _Range:
        held = cast("Hashed", rows.take_below(leaf.upper))
        changes = diffs.take_below(leaf.upper)
        count, checksum = len(lead[0]) + len(held[0]), sum_hashes(lead[1] + held[1])
        entry = leaf.entry
        holds = entry is not None and (entry.records, int.from_bytes(entry.checksum, "big")) == (count, checksum)
        trusted = not overlaps(self._suspects, leaf.lower, leaf.upper)
        return _Range(leaf, held, changes, trusted, chunk, holds)

    def _differing(self, ranges: Iterable[_Range]) -> Iterator[Run]:
        for here, chunk in ahead(self._reader.pool, iter(ranges), self._chunk, lambda here: here.size):
            if chunk is None:
                run = differences(here.held, here.changes, whole=False)
            else:
                run = differences(here.held, overlay([chunk, here.changes]), whole=True)
            if run[0]:
                yield run

    def _chunk(self, here: _Range) -> Run | None:
        """The records of a range's chunk but for the schema, or None where they are not needed."""
        if here.trusted or here.holds:
            return None
        keys, values = here.chunk or self._reader.cut_leaf(CHUNKS, here.leaf, self._within)
        first = int(keys[:1] == [SCHEMA_KEY] and self._is_table)
        return keys[first:], values[first:]


def dropping(runs: Iterator[Run], held: Iterable[Hashed], left: Sequence[Bounds]) -> Iterator[Run]:
    """The runs of a resync, with deletions of all that is held in ranges that are left; a schema stays first."""
    first = next(runs, None)
    if first is not None and first[0] == [SCHEMA_KEY]:
        yield first
        first = None
    gone: Iterator[Run] = ((keys, [None] * len(keys)) for keys, _ in cut_all(held, left))
    yield from merge([_chained(first, runs), gone])


def _chained(first: Run | None, rest: Iterator[Run]) -> Iterator[Run]:
    if first is not None:
        yield first
    yield from rest


def _in_order(held: Iterable[Hashed]) -> Iterator[Hashed]:
    last = None
    for keys, hashes in held:
        if not keys:
            continue
        if not is_ascending(keys) or (last is not None and keys[0] <= last):
            raise LocalEdits("what is held is out of order: it was changed since it was pulled; nothing was written")
        last = keys[-1]
        yield keys, hashes


def differences(held: Hashed, wanted: Run, *, whole: bool) -> Run:
    """The records of `wanted` that are not held; with `whole`, deletions of all else that is held, too."""
    if not wanted[0] and not whole:
        return [], []
    known: dict[bytes, Hash] = dict(zip(*held, strict=True))
    hashes = record_hashes(*wanted)
    changed: dict[bytes, Value] = {
        key: value for key, value, digest in zip(*wanted, hashes, strict=True) if known.get(key) != digest
    }
    if not whole:
        return list(changed), list(changed.values())
    changed.update(dict.fromkeys(known.keys() - set(wanted[0])))
    keys = sorted(changed)
    return keys, [changed[key] for key in keys]
