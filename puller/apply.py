"""One step of a target: the records that a plan leads to, checked against HEAD's checksum before they are committed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from puller.errors import ChecksumMismatch, HeadwaterError, Invalid, LocalEdits
from puller.partcopy import AtSnapshot, Extent
from puller.parts import WHOLE, cut_all, ranges_of, without
from puller.plan import Plan, Way
from puller.progress import Progress
from puller.ranges import Ranges
from puller.runs import bounded, live, merge
from puller.targets.base import Changes, Opening, State, Target, Writer
from puller.tree import Reader
from puller.wire.checksum import Hash, plain_hashes, record_hashes
from puller.wire.codec import CHUNKS, DIFFS
from puller.wire.head import Head
from puller.wire.nodes import PatchedLarge, Run, Value, has_large
from puller.wire.rows import SCHEMA_KEY

BATCH = 4096
MOST_NAMED = 10_000
"""Records that are named one by one when local edits are overwritten."""


class Watching(Protocol):
    """Hears what a step changes, as `puller.events.Watch`."""

    def begin(self, opening: Opening, /) -> None:
        """A step begins; what was noted of one before counts no more."""
        ...

    def note(
        self, keys: list[bytes], values: list[Value], before: list[Hash | None], hashes: list[Hash | None], /
    ) -> None:
        """A run of the step, with the record hashes of what was held and of what comes."""
        ...

    def end(self) -> None:
        """The step is complete, and about to be committed."""
        ...


def name_of(kind: str, key: bytes) -> str:
    """A record's key for people."""
    if kind != "table":
        return os.fsdecode(key) if kind == "files" else key.decode(errors="backslashreplace")
    from puller.wire.keys import decode_key

    table, values = decode_key(key) if key else ("schema", ())
    return f"{table} {', '.join(map(repr, values))}".rstrip()


@dataclass
class _Sums:
    """The checksums of ranges, and the number of records, of what a target holds while a step goes on."""

    ranges: Ranges
    records: int

    def take(
        self, keys: list[bytes], hashes: Sequence[Hash | None], before: Sequence[Hash | None], *, anew: bool = False
    ) -> None:
        """Count a run in the place of what was there before it; `anew` where runs come in order to an empty place."""
        if anew:
            self.ranges.extend(keys, hashes)
            self.records += len(keys)
        else:
            self.ranges.change(keys, hashes, before)
            self.records += len(keys) - hashes.count(None) - len(before) + before.count(None)


@dataclass(kw_only=True)
class Step:
    """Takes a target from what it holds (`state`) to `head`, by the way that was chosen."""

    reader: Reader
    target: Target
    state: State | None
    head: Head
    chosen: Plan
    extent: Extent
    trusting: bool
    """Whether a resync looks only where the checksums of ranges show an edit."""
    overwrite: bool
    adopt: bool
    dry_run: bool
    notes: list[str]
    """What went wrong and was got over is added here."""
    edited: list[str]
    """Names of what a resync brings back to the version that is held."""
    progress: Progress
    watch: Watching | None
    schema: Value = None
    """The schema of tables, where the step has it."""

    def take(self, draft: Callable[[], State]) -> tuple[Changes, State | None]:
        """Take the step; give what changed and what the target remembers now, None of a dry run, which commits nothing.

        `draft` gives what it is to remember but for what only the step finds out. Raises a HeadwaterError and leaves the
        target as it was, if anything is wrong: LocalEdits, ChecksumMismatch, SchemaChanged, Stale, Moved, TargetError.
        """
        state, head, way = self.state, self.head, self.chosen.way
        opening = Opening(
            kind=head.kind,
            replace=way is Way.BOOTSTRAP,
            time=head.time,
            large=self.reader.large,
            overwrite=self.overwrite,
            adopt=self.adopt,
            parts=self.extent.parts,
            expected=None if state is None else state.position,
            parts_before=WHOLE if state is None else state.parts,
            seen=None if state is None else state.seen,
        )
        if self.watch is not None:
            self.watch.begin(opening)
        with self.target.writer(opening) as writer:
            at = self._counted_at()
            if way is Way.BOOTSTRAP or state is None:
                held = _Sums(Ranges(), 0)
                runs = self._all(at)
            elif way is Way.RESYNC:
                held, runs = self._resync(state, writer)
            else:
                held = _Sums(_ranges(state), state.records)
                runs = self._staged(writer) if way is Way.PATCH else self._changes(at)
            self._stream(writer, runs, held, at)
            proven = self._check_sums(held, at)
            if self.dry_run:
                return Changes(overwritten=writer.overwrites() or self.edited), None
            if self.watch is not None:
                self.watch.end()
            after = self._completed(draft(), held, proven=proven)
            changes = writer.commit(after)
            changes.overwritten = changes.overwritten or self.edited
            return changes, after

    def _resync(self, state: State, writer: Writer) -> tuple[_Sums, Iterator[Run]]:
        """What is held, and what brings it to `head`; raise LocalEdits if it is not what was pulled, unless told."""
        from puller.resync import Resync, dropping

        expected = _ranges(state)
        held = _Sums(expected.empty(), 0)
        for keys, hashes in writer.held():
            held.take(keys, hashes, ())
        suspects = expected.differing(held.ranges)
        edited = bool(suspects) or held.records != state.records
        if edited and not self.overwrite:
            raise LocalEdits(
                f"{self.target.where} is not what was pulled any more: it was changed here. Nothing was written. Run "
                "`puller verify`, or run `puller pull --overwrite`"
            )
        before, after = (ranges_of(self.head.kind, parts) for parts in (state.parts, self.extent.parts))
        suspects += without(after, before)
        resync = Resync(
            self.reader,
            self.head.snapshot,
            is_table=self.head.kind == "table",
            suspects=suspects if self.trusting else None,
            within=after,
        )
        inside = writer.held() if self.extent.within is None else cut_all(writer.held(), after)
        runs = resync.runs(inside, self._changes())
        if left := without(before, after):
            runs = dropping(runs, writer.held(), left)
        if state.position == (self.head.epoch, self.head.version) and state.parts == self.extent.parts:
            runs = self._noted(runs)
        elif edited and self.head.kind != "files":  # a folder names each path itself
            note = f"{self.target.where} was changed here since it was pulled: --overwrite writes over that"
            if note not in self.notes:  # by an attempt before this one
                self.notes.append(note)
        return held, runs

    def _changes(self, at: AtSnapshot | None = None) -> Iterator[Run]:
        """The newest value of each key in the diffs of a plan, deletions as None; `at` counts what they pass through."""
        diffs = [(DIFFS, step.diff.tree) for step in self.chosen.steps]
        if at is None:
            return self.reader.merged(diffs, self.extent.within)
        until = sum(step.diff.b <= self.head.snapshot_version for step in self.chosen.steps)
        return at.merged(*(self.reader.merged(some, self.extent.within) for some in (diffs[:until], diffs[until:])))

    def _all(self, at: AtSnapshot | None) -> Iterator[Run]:
        """All records that a plan leads to from nothing; `at` counts the snapshot's."""
        diffs = [(DIFFS, step.diff.tree) for step in self.chosen.steps]
        if not diffs:
            return self.reader.merged([(CHUNKS, self.head.snapshot)], self.extent.within)
        if at is None:
            return live(self.reader.merged([(CHUNKS, self.head.snapshot), *diffs], self.extent.within))
        snapshot = at.counted(self.reader.merged([(CHUNKS, self.head.snapshot)], self.extent.within))
        return live(merge([snapshot, self.reader.merged(diffs, self.extent.within)]))

    def _staged(self, writer: Writer) -> Iterator[Run]:
        """The changes of steps with patches among them; each step sees the values that those before it gave."""
        staged: dict[bytes, Value] = {}

        def values(keys: list[bytes]) -> list[Value]:
            unknown = [key for key in keys if key not in staged]
            held = dict(zip(unknown, writer.values(unknown), strict=True))
            found = [staged[key] if key in staged else held[key] for key in keys]
            return [value if isinstance(value, bytes) else None for value in found]

        for step in self.chosen.steps:
            stream = self.reader.patch(step.tree, values) if step.patched else self.reader.diff(step.diff)
            for keys, found in list(stream):
                if has_large(found):  # ranges are of what is held; a value that an earlier step gave is not there yet
                    pairs = zip(keys, found, strict=True)
                    found = [v.plain() if isinstance(v, PatchedLarge) and k in staged else v for k, v in pairs]
                staged.update(zip(keys, found, strict=True))
        ordered = sorted(staged)
        for n in range(0, len(ordered), BATCH):
            keys = ordered[n : n + BATCH]
            yield keys, list(map(staged.__getitem__, keys))

    def _noted(self, runs: Iterator[Run]) -> Iterator[Run]:
        """Note the names of what is brought back to the version that is held: it was edited here."""
        self.edited.clear()
        for keys, values in runs:
            self.edited += [name_of(self.head.kind, key) for key in keys[: MOST_NAMED - len(self.edited)]]
            yield keys, values

    def _stream(self, writer: Writer, runs: Iterator[Run], held: _Sums, at: AtSnapshot | None) -> None:
        """Hand the runs to the writer, and keep `held` right."""
        for keys, values, hashes in _hashed(runs):
            before = writer.put(keys, values, hashes)
            held.take(keys, hashes, before, anew=self.chosen.way is Way.BOOTSTRAP)
            if at is not None:
                at.take(keys, hashes, before)
            if keys and keys[0] == SCHEMA_KEY:
                self.schema = values[0]
            if self.watch is not None:
                self.watch.note(keys, values, before, hashes)
            self.progress("pull", self.reader.done, self.chosen.bytes)

    def _counted_at(self) -> AtSnapshot | None:
        """For a copy of parts, what counts its state at the snapshot's version, where the step passes through that."""
        if self.extent.within is not None and self.chosen.way is Way.BOOTSTRAP:
            return AtSnapshot()
        if self.chosen.way is not Way.DIFFS or self.state is None or not self.extent.may_prove(self.state, self.head):
            return None
        return AtSnapshot(self.state.records, int(self.state.checksum, 16))

    def _check_sums(self, held: _Sums, at: AtSnapshot | None) -> bool:
        """Raise ChecksumMismatch if what comes out is not what HEAD promises; of parts, not what the snapshot has there.

        Whether it is the snapshot that was compared with: what is known of chunks that are cut is its then, and no other's.
        """
        self.extent.check_tables(self.reader, self.head, self._schema)
        found = held.records, held.ranges.checksum
        if self.extent.within is None:
            if found != (self.head.records, self.head.checksum):
                raise self._mismatch()
            return False
        if at is not None and self.chosen.steps and self.head.snapshot_version < self.head.version:
            found = at.sums
        elif self.head.snapshot_version != self.head.version and at is None:
            return False
        if found != self.reader.proof(self.head.snapshot, self.extent.within, self.extent.cuts):
            raise self._mismatch()
        return True

    def _schema(self) -> Value:
        """The schema of the tables that the step gives; None where there is none."""
        if self.schema is None and self.state is not None:
            return next((values[0] for keys, values in self.target.records() if keys[0] == SCHEMA_KEY), None)
        return self.schema

    def _mismatch(self) -> HeadwaterError:
        way = self.chosen.way
        if way is Way.BOOTSTRAP:
            return ChecksumMismatch(
                f"version {self.head.version} as served does not have the checksum that {self._promising} promises; nothing was "
                "changed. Ask the publisher to run a check"
            )
        return ChecksumMismatch(
            f"applying the {way} to {self.target.where} does not give the checksum that {self._promising} promises; nothing was "
            "written"
        )

    @property
    def _promising(self) -> str:
        return "HEAD" if self.extent.within is None else "the snapshot's index"

    def _completed(self, draft: State, held: _Sums, *, proven: bool) -> State:
        known = {} if proven else self.extent.cuts
        cuts = known | self.reader.cuts if self.extent.within is not None else {}
        return msgspec.structs.replace(
            draft,
            checksum=f"{held.ranges.checksum:032x}",
            records=held.records,
            parts=self.extent.parts,
            ranges=held.ranges.dump(),
            cuts={name.hex(): (n, f"{checksum:032x}") for name, (n, checksum) in cuts.items()},
        )


def _hashed(runs: Iterator[Run]) -> Iterator[tuple[list[bytes], list[Value], list[Hash | None]]]:
    """Runs with the hash of each record; those with large values are cut, so that few of these are assembled at once."""
    for run in runs:
        hashes = plain_hashes(*run)
        if hashes is not None:
            yield *run, hashes
        else:
            for part in bounded([run]):
                yield *part, record_hashes(*part)


def _ranges(state: State) -> Ranges:
    """The checksums of ranges that belong to what was pulled; one range, if the bookkeeping has no others."""
    ranges = Ranges()
    with contextlib.suppress(Invalid):
        ranges = Ranges.load(state.ranges)
    if f"{ranges.checksum:032x}" != state.checksum:
        ranges = Ranges()
        ranges.change([b""], [bytes.fromhex(state.checksum)])
    return ranges
