"""What a copy of parts can compare where HEAD's checksum is of no use, and what the ways to HEAD cost it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from puller.parts import WHOLE, Parts, check_tables, parse, ranges_of
from puller.plan import Plan, Way
from puller.ranges import Bounds
from puller.runs import Cursor, overlay, spans
from puller.targets.base import State
from puller.tree import Reader
from puller.wire.checksum import MODULUS, Hash, record_hashes, run_sum, sum_hashes
from puller.wire.codec import CHUNKS, DIFFS
from puller.wire.head import Head
from puller.wire.nodes import Diff, Run, Value
from puller.wire.rows import SCHEMA_KEY, decode_schema


@dataclass(frozen=True)
class Extent:
    """How much of a dataset a target is to hold after a step."""

    parts: Parts
    within: list[Bounds] | None
    """The ranges of keys that these are; None: the whole dataset."""
    cuts: dict[bytes, tuple[int, int]]
    """What chunks that are cut were found to hold within the parts, in earlier pulls."""
    is_new: bool
    """Whether a user has just named other parts than the target holds."""

    @classmethod
    def settle(cls, kind: str, state: State | None, asked: Sequence[Any] | None) -> Extent:
        """The parts that are asked for, or else held (`state`) already; of a new target all. Raises UsageError."""
        held = WHOLE if state is None else state.parts
        parts = held if asked is None else parse(kind, asked)
        within = ranges_of(kind, parts) if parts else None
        if state is None or held != parts:
            return cls(parts, within, {}, is_new=asked is not None)
        cuts = {bytes.fromhex(name): (n, int(checksum, 16)) for name, (n, checksum) in state.cuts.items()}
        return cls(parts, within, cuts, is_new=False)

    def check_tables(self, reader: Reader, head: Head, schema: Callable[[], Value]) -> None:
        """Raise UsageError where a user has just named parts of tables that a schema, as its record's value, does not have."""
        if head.kind != "table" or not self.is_new or not self.parts:
            return
        value = schema()
        tables = [] if value is None else decode_schema(reader.whole(SCHEMA_KEY, value))
        check_tables(head.name, self.parts, tables, kept="; nothing was changed")

    def may_prove(self, state: State | None, head: Head) -> bool:
        """Whether diffs lead a copy of parts over the version of a snapshot that it was not compared with."""
        if self.within is None or state is None or state.epoch != head.epoch or state.parts != self.parts:
            return False
        return state.version < head.snapshot_version and state.snapshot != head.snapshot.ref.sha256.hex()


class AtSnapshot:
    """Counts what a step gives at the snapshot's version, on the way to a later one: that, an index can be held against.

    Begins with number and checksum of the records that are held before the step.
    """

    def __init__(self, records: int = 0, checksum: int = 0) -> None:
        self.records = records
        self._checksum = checksum
        self._later: dict[bytes, Hash | None | bool] | None = None
        """Of keys that change again after the snapshot: the hash at its version; True: what was held before."""

    @property
    def sums(self) -> tuple[int, int]:
        """Number and checksum of the records at the snapshot's version."""
        return self.records, self._checksum % MODULUS

    def counted(self, snapshot: Iterable[Run]) -> Iterator[Run]:
        """The runs of a snapshot that is read whole; use `take` for no others then."""
        for keys, values in snapshot:
            self.records += len(keys)
            self._checksum += run_sum(keys, values)
            yield keys, values

    def merged(self, until: Iterable[Run], after: Iterable[Run]) -> Iterator[Run]:
        """The changes up to the snapshot's version and those after it, as one stream, each run of which `take` is to see."""
        for parts in spans([Cursor(until), Cursor(after)]):
            runs = dict(parts)
            self._later = {}
            if 1 in runs:
                first = dict(zip(*runs.get(0, ([], [])), strict=True))
                twice = [key for key in runs[1][0] if key in first]
                hashes = record_hashes(twice, [first[key] for key in twice])
                self._later = dict.fromkeys(runs[1][0], True) | dict(zip(twice, hashes, strict=True))
            yield overlay([run for _, run in sorted(parts, key=lambda part: part[0])])

    def take(self, keys: list[bytes], hashes: Sequence[Hash | None], before: Sequence[Hash | None]) -> None:
        """Count a run, or a part of one, in the place of what was held under its keys."""
        if self._later is None:
            return
        there: list[Hash | None] = list(hashes)
        if self._later:
            for n, key in enumerate(keys):
                found = self._later.get(key, hashes[n])
                there[n] = before[n] if found is True else found  # type: ignore[assignment]
        self._checksum += sum_hashes(there) - sum_hashes(before)
        self.records += len(keys) - there.count(None) - len(before) + before.count(None)


def narrowed(
    reader: Reader, head: Head, diffs: Sequence[Diff], plan: Plan, within: Sequence[Bounds], *, share: float | None
) -> tuple[Head, list[Diff]]:
    """`head` and `diffs` with trees that say what they cost a copy of some ranges, as far as that may matter to a plan.

    Reads indexes: those of the diffs that `plan`, made without this, has in its ways; and the snapshot's, unless the
    diffs cost less than the `share` of it that is held (None: they do not).
    """
    steps = {step.diff.tree.ref.sha256: step.diff.tree for way in plan.candidates for step in way.steps}
    trees = {name: reader.narrow(DIFFS, tree, within) for name, tree in steps.items()}
    cheaper = [
        msgspec.structs.replace(diff, tree=trees.get(diff.tree.ref.sha256, diff.tree), patch=None) for diff in diffs
    ]
    by_diffs = next((way for way in plan.candidates if way.way is Way.DIFFS and way.closed is None), None)
    if share is not None and by_diffs is not None:
        cost = sum(trees[step.diff.tree.ref.sha256].bytes for step in by_diffs.steps)
        if cost <= share * head.snapshot.bytes:
            return head, cheaper
    return msgspec.structs.replace(head, snapshot=reader.narrow(CHUNKS, head.snapshot, within)), cheaper
