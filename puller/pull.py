"""One pull: read HEAD, plan, fetch, check, apply in one step. This is where the parts meet."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from puller.errors import (
    ChecksumMismatch,
    Corrupt,
    FetchError,
    HeadwaterError,
    Invalid,
    LocalEdits,
    Missing,
    Moved,
    NotFound,
    SchemaChanged,
    Stale,
    Unavailable,
    UsageError,
    Withheld,
)
from puller.fetch import CONNECTIONS, THREADS, Fetcher, Patience, shown, where
from puller.mirrors import Health
from puller.partial import Partial
from puller.plan import Plan, Reason, Way, is_good, plan, route, starts
from puller.ranges import Ranges
from puller.runs import bounded, live
from puller.targets.base import Changes, Opening, State, Target, Writer
from puller.tree import Reader
from puller.wire.checksum import record_hashes
from puller.wire.codec import CHUNKS, DIFFS
from puller.wire.head import MAX_HEAD, Head, archive_path, parse_head
from puller.wire.nodes import Diff, PatchedLarge, Run, Value, has_large

if TYPE_CHECKING:
    from puller.events import Watch

BATCH = 4096
MOST_DAMAGED = 3
"""Damaged diffs that a pull goes round before it gives up."""
MOST_NAMED = 10_000
"""Records that are named one by one when local edits are overwritten."""
CHANGES = (Way.NOTHING, Way.PATCH, Way.DIFFS)
MOST_ATTEMPTS = 8
"""Beginnings of a pull, all in all: others moved the target or HEAD, or files were missing."""
READ_AGAIN = 3600
"""Seconds after which HEAD is asked for unconditionally: some hosts' tags miss a change."""


@dataclass(frozen=True)
class Options:
    """How to pull.

    `overwrite`: everything held is looked at, and local edits may be lost; `adopt`: data that is not ours may be;
    `check`: everything held is looked at first, and local edits are refused; `dry_run`: only plan; `version`: the one
    to go to, of HEAD's epoch (None: the newest).
    """

    overwrite: bool = False
    adopt: bool = False
    check: bool = False
    dry_run: bool = False
    version: int | None = None


@dataclass
class Outcome:
    """What a pull did: the plan, the position before and after, and what it took."""

    plan: Plan
    dataset: str
    kind: str
    before: tuple[int, int] | None
    after: tuple[int, int]
    records: int
    checksum: str
    changes: Changes = field(default_factory=Changes)
    requests: int = 0
    received: int = 0
    notes: list[str] = field(default_factory=list)
    """What went wrong on the way and was got over."""

    @property
    def changed(self) -> bool:
        """Whether the target moved."""
        return self.before != self.after


Progress = Callable[[str, int, int], None]
"""Called with what is being done, and the bytes of how many are there."""


def _silent(what: str, done: int, total: int) -> None:
    pass


def read_head(address: str, fetcher: Fetcher, etag: str | None) -> tuple[Head | None, str | None]:
    """HEAD (None: not modified since it came with `etag`), and its tag. Raises Invalid, FetchError."""
    try:
        answer = fetcher.fetch_head(etag)
    except (NotFound, Withheld) as error:
        what = "there is no dataset at" if isinstance(error, NotFound) else "no dataset can be read at"
        raise type(error)(f"{what} {shown(address)} ({error}); check the address") from error
    first: Invalid | None = None
    for one in (answer, *answer.others):  # the newest first; one that is refused makes room for the next
        try:
            return (None if one.data is None else parse_head(one.data)), one.etag
        except Invalid as error:
            first = first or error
    raise type(first)(f"{shown(address)}: {first}") from first  # type: ignore[misc]


def pull(
    address: str,
    fetcher: Fetcher,
    find_target: Callable[[Head | None], Target],
    options: Options,
    *,
    progress: Progress = _silent,
    now: Callable[[], float] = time.time,
    watch: Watch | None = None,
    health: Health | None = None,
    patience: Callable[[], Patience] = Patience,
) -> Outcome:
    """Bring a target to the newest HEAD (design: Pulling, steps 1 to 6).

    `find_target` opens the target; it is first asked without a HEAD, and may raise UsageError until it has one.
    `watch` notes what changes on the way. `health` is what the fetcher knows of its hosts: it is kept with the target.
    `patience` says how long files that are missing on the host are waited for.
    Raises a HeadwaterError and leaves the target as it was, if anything is wrong.
    """
    health = health or Health()
    state = partial = None
    closed = dict.fromkeys(CHANGES, Reason.OVERWRITE) if options.overwrite else {}
    with contextlib.suppress(UsageError):
        target = find_target(None)
        state = target.state()
    if state is not None:
        closed |= _closed_by_what_is_there(target, state, options)
        health.load(state.rests)
    current = int(now())
    fresh = state is None or bool(closed or options.version) or not 0 <= current - state.read <= READ_AGAIN
    try:
        head, etag = read_head(address, fetcher, None if fresh or state is None else state.etag)
        if state is None:
            target = find_target(head)
            state = target.state()
        partial = None if target.partial is None else Partial(target.partial)
        with ThreadPoolExecutor(THREADS if fetcher.is_local else CONNECTIONS) as pool:
            try:
                keeping = None if options.dry_run or fetcher.is_local else partial
                puller = _Pull(address, Reader(fetcher, pool, keeping), target, state, options, progress, now)
                puller.closed |= closed
                puller.watch = watch
                puller.patience = patience
                outcome = puller.run(head, etag, fresh)
                if partial is not None:
                    partial.clear()
                outcome.notes[:0] = dict.fromkeys(health.notes)
                _remember_rests(target, options, health)
                return outcome
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except HeadwaterError as error:
        if state is not None:
            _remember_rests(target, options, health)
        if not isinstance(error, (Unavailable, Missing, Withheld)) and partial is not None:
            partial.clear()
        if not isinstance(error, FetchError):
            raise
        kept = "nothing was written" if state is None else f"{target.where} stays at version {state.version}"
        error.args = (f"{error}; {kept}",)
        raise


def _remember_rests(target: Target, options: Options, health: Health) -> None:
    """Keep with the target which hosts are to be left alone, also by the next process."""
    if options.dry_run:
        return
    with contextlib.suppress(HeadwaterError):
        state, rests = target.state(), health.dump()
        if state is not None and state.rests != rests:
            target.remember(msgspec.structs.replace(state, rests=rests))


def _closed_by_what_is_there(target: Target, state: State, options: Options) -> dict[Way, Reason]:
    """The ways that are closed before HEAD is known. Raises LocalEdits where that was asked to be checked."""
    if not target.is_there():
        return dict.fromkeys((*CHANGES, Way.RESYNC), Reason.DATA_MISSING)
    if options.check:
        _check(target, state)
    return {}


def _check(target: Target, state: State) -> None:
    """Raise LocalEdits if what is there is not what was pulled."""
    found = target.check()
    if not found.equals(state):
        raise LocalEdits(
            f"{target.where} is not what was pulled any more: it was changed here; nothing was written. Run `puller verify`, "
            "then `puller verify --repair`, or pull with --overwrite",
            [*found.differing, *found.missing],
        )


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
        self, keys: list[bytes], hashes: Sequence[int | None], before: Sequence[int | None], *, anew: bool = False
    ) -> None:
        """Count a run in the place of what was there before it; `anew` where runs come in order to an empty place."""
        if anew:
            self.ranges.extend(keys, hashes)
            self.records += len(keys)
        else:
            self.ranges.change(keys, hashes, before)
            self.records += len(keys) - hashes.count(None) - len(before) + before.count(None)


def read_diffs(
    reader: Reader,
    head: Head,
    position: tuple[int, int] | None,
    *,
    without: Collection[bytes] = (),
    from_snapshot: bool = False,
) -> list[Diff]:
    """HEAD's diffs, and as much of the log as it takes to have a good way from `position`, and one from the snapshot.

    `without` names the roots of diffs that are of no use. The way from the snapshot is looked for only if there is none
    from `position` or it may cost less, or if it is asked for (`from_snapshot`).
    """
    diffs = [diff for diff in head.diffs if diff.tree.ref.sha256 not in without]
    covered = not from_snapshot or route(head.snapshot_version, head.version, diffs) is not None
    if head.log is None or (covered and is_good(position, head, diffs)):
        return diffs
    log = reader.log(head.log)
    for start in starts(position, head):
        diffs = reader.search(log, start, head.version, diffs, without)
    return diffs


class _Pull:
    def __init__(
        self,
        address: str,
        reader: Reader,
        target: Target,
        state: State | None,
        options: Options,
        progress: Progress,
        now: Callable[[], float],
    ) -> None:
        self.address = address
        self.reader = reader
        self.target = target
        self.state = state
        self.options = options
        self.progress = progress
        self.now = now
        self.closed: dict[Way, Reason] = {} if target.gives_values else {Way.PATCH: Reason.NO_VALUES}
        self.trusting = True
        self.damaged: set[bytes] = set()
        self.edited: list[str] = []
        self.way = Way.NOTHING
        self.watch: Watch | None = None
        self.patience: Callable[[], Patience] = Patience
        self.notes: list[str] = []

    def run(self, head: Head | None, etag: str | None, fresh: bool) -> Outcome:
        if head is None:
            assert self.state is not None
            return self._unchanged(self.state, Reason.CURRENT)
        missing: FetchError | None = None
        for attempt in range(MOST_ATTEMPTS):
            last = attempt + 1 == MOST_ATTEMPTS
            try:
                return self._by_some_way(head, etag, fresh)
            except Invalid as error:
                raise missing or error from error
            except Moved:
                if last:
                    raise
                self.state = self.target.state()
            except (Missing, Withheld) as error:
                missing = error
                newer, newer_etag = read_head(self.address, self.reader.fetcher, None)
                if newer is not None and newer.order > head.order and not last:
                    head, etag = newer, newer_etag
                elif last or not self._go_on_without(error):
                    raise
        raise AssertionError("unreachable")

    def _go_on_without(self, error: FetchError) -> bool:
        """A file is missing, and HEAD is no newer: wait for it, then look for another way; say whether there is any."""
        if self.way is not Way.PATCH and self.reader.patience is None and not self.reader.fetcher.is_local:
            self.reader.patience = self.patience()
            return True
        if self.state is None or not self._close(error):
            return False
        self.notes.append(str(error))
        return True

    def _by_some_way(self, newest: Head, etag: str | None, fresh: bool) -> Outcome:
        """Take the cheapest way; where it turns out to be closed, the next one."""
        wanted = self._wanted(newest)
        first: HeadwaterError | None = None
        while True:
            try:
                return self._to(wanted, newest, etag, fresh)
            except Stale:
                self.closed[Way.PATCH] = Reason.PATCH_FAILED
            except SchemaChanged:
                self.closed |= dict.fromkeys((Way.PATCH, Way.DIFFS, Way.RESYNC), Reason.SCHEMA_CHANGED)
            except (Corrupt, ChecksumMismatch) as error:
                first = first or error
                if self.state is None or not self._close(error):
                    raise
                self.notes.append(str(error))
            except LocalEdits:
                if self.way is not Way.RESYNC or not self.options.overwrite:
                    raise
                self.closed[Way.RESYNC] = Reason.RESYNC_FAILED
            except Invalid as error:
                raise first or error from error

    def _wanted(self, newest: Head) -> Head:
        """The HEAD to go to: the newest, or the one of the version that was asked for."""
        version = self.options.version
        if version is None or version == newest.version:
            return newest
        if version > newest.version:
            raise UsageError(f"there is no version {version} yet; the newest is {newest.version}; nothing was changed")
        path = archive_path(newest.epoch, version)
        try:
            wanted = parse_head(self.reader.fetcher.fetch(path, MAX_HEAD))
        except (NotFound, Withheld) as error:
            raise NotFound(f"version {version} is not kept on the host any more ({error})") from error
        if (wanted.name, wanted.kind, wanted.epoch, wanted.version) != (
            newest.name,
            newest.kind,
            newest.epoch,
            version,
        ):
            raise Invalid(f"{path} on the host is not the HEAD of version {version}; nothing was changed")
        return wanted

    def _close(self, error: HeadwaterError) -> bool:
        """Close the way that failed, or a part of it; say whether another is left to try."""
        if self.way is Way.PATCH:
            self.closed[Way.PATCH] = Reason.PATCH_FAILED
        elif isinstance(error, (Corrupt, FetchError)) and error.diff is not None:
            self.damaged.add(error.diff)
            return len(self.damaged) <= MOST_DAMAGED
        elif self.way is Way.DIFFS:
            self.closed |= dict.fromkeys((Way.PATCH, Way.DIFFS), Reason.DIFFS_FAILED)
        elif self.way is Way.RESYNC and isinstance(error, ChecksumMismatch):
            if self.trusting:
                self.trusting = False
            else:
                self.closed[Way.RESYNC] = Reason.RESYNC_FAILED
        else:
            return False
        return True

    def _to(self, head: Head, newest: Head, etag: str | None, fresh: bool) -> Outcome:
        state = self.state
        if state is not None:
            if (early := self._check_same(state, newest)) is not None:
                return early
            self._check_fork(state, head)
            if state.position == (head.epoch, head.version) and Way.NOTHING not in self.closed:
                tag = etag if head is newest else None
                if not self.options.dry_run and (state.etag != tag or fresh):
                    self._remember(state, newest, tag, fresh)
                return self._unchanged(state, Reason.CURRENT)
        position = None if state is None else state.position
        self.way = Way.NOTHING
        whole = self.options.dry_run or Way.DIFFS in self.closed
        diffs = read_diffs(self.reader, head, position, without=self.damaged, from_snapshot=whole)
        chosen = plan(position, head, diffs, closed=self.closed)
        self.way = chosen.way
        only_planned = self.options.dry_run and not (self.options.adopt or self.options.overwrite)
        changes = Changes() if only_planned else self._apply(head, newest, etag, chosen)
        return self._outcome(chosen, head, position, changes)

    def _check_same(self, state: State, head: Head) -> Outcome | None:
        """Refuse another dataset; pass over a HEAD that is older than one seen before."""
        if (state.dataset, state.kind) != (head.name, head.kind):
            raise Invalid(
                f"{self.target.where} holds the dataset {state.dataset!r} of kind {state.kind}, the host serves "
                f"{head.name!r} of kind {head.kind}; nothing was changed. Use another target"
            )
        if head.order < state.seen and not self.options.overwrite:
            self.notes.append(
                f"the host serves version {head.version} of epoch {head.epoch}, older than version {state.seen[1]} of epoch "
                f"{state.seen[0]} that was seen before; kept what is held. A cache may lag behind; if the dataset was "
                "really set back, pull with --overwrite"
            )
            return self._unchanged(state, Reason.OLDER_HEAD)
        return None

    def _check_fork(self, state: State, head: Head) -> None:
        """Refuse another HEAD for the version that is held (SPEC 7.4)."""
        same = state.position == (head.epoch, head.version)
        known = (state.publish_id, state.checksum, state.records, state.snapshot)
        served = (head.publish_id, f"{head.checksum:032x}", head.records, head.snapshot.ref.sha256.hex())
        forked = known != served
        if same and forked and not self.options.overwrite:
            raise Invalid(
                f"the host serves another version {head.version} of {head.name!r} than the one held: history was forked. "
                "Nothing was changed. Ask the publisher; to take the host's word, pull with --overwrite"
            )

    def _trees(self, head: Head, chosen: Plan) -> Iterator[Run]:
        """The newest value of each key in what a plan reads, deletions as None."""
        diffs = [(DIFFS, step.diff.tree) for step in chosen.steps]
        return self.reader.merged([(CHUNKS, head.snapshot), *diffs] if chosen.way is Way.BOOTSTRAP else diffs)

    def _staged(self, chosen: Plan, writer: Writer) -> Iterator[Run]:
        """The changes of steps with patches among them; each step sees the values that those before it gave."""
        staged: dict[bytes, Value] = {}

        def values(keys: list[bytes]) -> list[Value]:
            unknown = [key for key in keys if key not in staged]
            held = dict(zip(unknown, writer.values(unknown), strict=True))
            found = [staged[key] if key in staged else held[key] for key in keys]
            return [value if isinstance(value, bytes) else None for value in found]

        for step in chosen.steps:
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

    def _apply(self, head: Head, newest: Head, etag: str | None, chosen: Plan) -> Changes:
        state = self.state
        opening = Opening(
            kind=head.kind,
            replace=chosen.way is Way.BOOTSTRAP,
            time=head.time,
            large=self.reader.large,
            overwrite=self.options.overwrite,
            adopt=self.options.adopt,
            expected=None if state is None else state.position,
        )
        if self.watch is not None:
            self.watch.begin(opening)
        with self.target.writer(opening) as writer:
            if chosen.way is Way.BOOTSTRAP or state is None:
                held = _Sums(Ranges(), 0)
                runs = self._trees(head, chosen)
                if chosen.steps:
                    runs = live(runs)
            elif chosen.way is Way.RESYNC:
                held, runs = self._resync(state, head, chosen, writer)
            else:
                held = _Sums(self._ranges(state), state.records)
                runs = self._staged(chosen, writer) if chosen.way is Way.PATCH else self._trees(head, chosen)
            self._stream(writer, runs, held, chosen)
            if (held.ranges.checksum, held.records) != (head.checksum, head.records):
                raise self._mismatch(chosen.way, head)
            if self.options.dry_run:
                return Changes(overwritten=writer.overwrites() or self.edited)
            if self.watch is not None:
                self.watch.end()
            changes = writer.commit(self._new_state(head, newest, etag, held.ranges))
            changes.overwritten = changes.overwritten or self.edited
            return changes

    def _resync(self, state: State, head: Head, chosen: Plan, writer: Writer) -> tuple[_Sums, Iterator[Run]]:
        """What is held, and what brings it to `head`; raise LocalEdits if it is not what was pulled, unless told."""
        from puller.resync import Resync

        expected = self._ranges(state)
        held = _Sums(expected.empty(), 0)
        for keys, hashes in writer.held():
            held.take(keys, hashes, ())
        suspects = expected.differing(held.ranges)
        edited = bool(suspects) or held.records != state.records
        if edited and not self.options.overwrite:
            raise LocalEdits(
                f"{self.target.where} is not what was pulled any more: it was changed here. Nothing was written. Run "
                "`puller verify`, or pull with --overwrite"
            )
        known = state.epoch == head.epoch and head.snapshot_version <= state.version <= head.version
        self.trusting = self.trusting and known
        resync = Resync(
            self.reader, head.snapshot, is_table=head.kind == "table", suspects=suspects if self.trusting else None
        )
        runs = resync.runs(writer.held(), self._trees(head, chosen))
        if state.position == (head.epoch, head.version):
            runs = self._noted(head.kind, runs)
        elif edited and head.kind != "files":  # a folder names each path itself
            self.notes.append(f"{self.target.where} was changed here since it was pulled: --overwrite writes over that")
        return held, runs

    def _ranges(self, state: State) -> Ranges:
        """The checksums of ranges that belong to what was pulled; one range, if the bookkeeping has no others."""
        ranges = Ranges()
        with contextlib.suppress(Invalid):
            ranges = Ranges.load(state.ranges)
        if f"{ranges.checksum:032x}" != state.checksum:
            ranges = Ranges()
            ranges.change([b""], [int(state.checksum, 16)])
        return ranges

    def _noted(self, kind: str, runs: Iterator[Run]) -> Iterator[Run]:
        """Note the names of what is brought back to the version that is held: it was edited here."""
        self.edited = []
        for keys, values in runs:
            self.edited += [name_of(kind, key) for key in keys[: MOST_NAMED - len(self.edited)]]
            yield keys, values

    def _stream(self, writer: Writer, runs: Iterator[Run], held: _Sums, chosen: Plan) -> None:
        """Hand the runs to the writer, and keep `held` right."""
        for keys, values in bounded(runs):
            hashes = record_hashes(keys, values)
            before = writer.put(keys, values, hashes)
            held.take(keys, hashes, before, anew=chosen.way is Way.BOOTSTRAP)
            if self.watch is not None:
                self.watch.note(keys, values, before, hashes)
            self.progress("pull", self.reader.done, chosen.bytes)

    def _mismatch(self, way: Way, head: Head) -> HeadwaterError:
        if way is Way.BOOTSTRAP:
            return ChecksumMismatch(
                f"version {head.version} as served does not have the checksum that HEAD promises; nothing was changed. "
                "Ask the publisher to run a check"
            )
        return ChecksumMismatch(
            f"applying the {way} to {self.target.where} does not give the checksum that HEAD promises; nothing was written"
        )

    def _new_state(self, head: Head, newest: Head, etag: str | None, ranges: Ranges) -> State:
        now = int(self.now())
        seen = newest.order if self.state is None or self.options.overwrite else max(self.state.seen, newest.order)
        return State(
            dataset=head.name,
            kind=head.kind,
            source=where(self.address),
            epoch=head.epoch,
            version=head.version,
            checksum=f"{head.checksum:032x}",
            records=head.records,
            time=head.time,
            publish_id=head.publish_id,
            seen=seen,
            etag=etag if head is newest else None,
            read=now,
            pulled=now,
            interval=head.interval,
            snapshot=head.snapshot.ref.sha256.hex(),
            ranges=ranges.dump(),
        )

    def _remember(self, state: State, head: Head, etag: str | None, fresh: bool) -> None:
        read = int(self.now()) if fresh else state.read
        self.target.remember(msgspec.structs.replace(state, seen=max(state.seen, head.order), etag=etag, read=read))

    def _unchanged(self, state: State, reason: Reason) -> Outcome:
        fetcher = self.reader.fetcher
        return Outcome(
            plan=Plan(Way.NOTHING, reason),
            dataset=state.dataset,
            kind=state.kind,
            before=state.position,
            after=state.position,
            records=state.records,
            checksum=state.checksum,
            requests=fetcher.requests,
            received=fetcher.received,
            notes=self.notes,
        )

    def _outcome(self, chosen: Plan, head: Head, before: tuple[int, int] | None, changes: Changes) -> Outcome:
        return Outcome(
            plan=chosen,
            dataset=head.name,
            kind=head.kind,
            before=before,
            after=(head.epoch, head.version),
            records=head.records,
            checksum=f"{head.checksum:032x}",
            changes=changes,
            requests=self.reader.fetcher.requests,
            received=self.reader.fetcher.received,
            notes=self.notes,
        )
