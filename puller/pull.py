"""One pull: read HEAD, plan, fetch, check, apply in one step. This is where the parts meet."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec

from puller.errors import (
    ChecksumMismatch,
    Corrupt,
    FetchError,
    HeadwaterError,
    Invalid,
    LocalEdits,
    Moved,
    NotFound,
    SchemaChanged,
    Stale,
    Unavailable,
    UsageError,
)
from puller.fetch import THREADS, Fetcher, shown, where
from puller.partial import Partial
from puller.plan import Plan, Reason, Way, is_good, plan, starts
from puller.runs import bounded, live, merge
from puller.targets.base import Changes, Opening, State, Target, Writer
from puller.tree import Reader
from puller.wire.checksum import MODULUS, record_hashes, sum_hashes
from puller.wire.head import Head, parse_head
from puller.wire.nodes import Diff, Run, Value

BATCH = 4096
READ_AGAIN = 3600
"""Seconds after which HEAD is asked for unconditionally: some hosts' tags miss a change."""


@dataclass(frozen=True)
class Options:
    """How to pull. `overwrite`: local edits may be lost; `adopt`: data that is not ours may be; `dry_run`: only plan."""

    overwrite: bool = False
    adopt: bool = False
    dry_run: bool = False


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
        return (None if answer.data is None else parse_head(answer.data)), answer.etag
    except NotFound as error:
        raise NotFound(f"there is no dataset at {shown(address)} ({error}); check the address") from error
    except Invalid as error:
        raise type(error)(f"{shown(address)}: {error}") from error


def pull(
    address: str,
    fetcher: Fetcher,
    find_target: Callable[[Head | None], Target],
    options: Options,
    *,
    progress: Progress = _silent,
    now: Callable[[], float] = time.time,
) -> Outcome:
    """Bring a target to the newest HEAD (design: Pulling, steps 1 to 6).

    `find_target` opens the target; it is first asked without a HEAD, and may raise UsageError until it has one.
    Raises a HeadwaterError and leaves the target as it was, if anything is wrong.
    """
    state = partial = None
    with contextlib.suppress(UsageError):
        target = find_target(None)
        state = target.state()
    anew = Reason.OVERWRITE if options.overwrite else None
    if state is not None and anew is None and not target.is_there():
        anew = Reason.DATA_MISSING
    current = int(now())
    fresh = state is None or anew is not None or not 0 <= current - state.read <= READ_AGAIN
    try:
        head, etag = read_head(address, fetcher, None if fresh or state is None else state.etag)
        if state is None:
            target = find_target(head)
            state = target.state()
        partial = Partial(target.partial)
        with ThreadPoolExecutor(THREADS) as pool:
            try:
                keeping = None if options.dry_run or fetcher.is_local else partial
                puller = _Pull(address, Reader(fetcher, pool, keeping), target, state, options, progress, now)
                puller.anew = anew
                outcome = puller.run(head, etag, fresh)
                partial.clear()
                return outcome
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except HeadwaterError as error:
        if not isinstance(error, Unavailable) and partial is not None:
            partial.clear()
        if not isinstance(error, FetchError):
            raise
        kept = "nothing was written" if state is None else f"{target.where} stays at version {state.version}"
        error.args = (f"{error}; {kept}",)
        raise


def read_diffs(reader: Reader, head: Head, position: tuple[int, int] | None) -> list[Diff]:
    """HEAD's diffs, and as much of the log as it takes to have a good way from `position`, and one from the snapshot."""
    diffs = list(head.diffs)
    if head.log is None or position == (head.epoch, head.version) or is_good(position, head, diffs):
        return diffs
    log = reader.log(head.log)
    for start in starts(position, head):
        diffs = reader.search(log, start, head.version, diffs)
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
        self.patches = True
        self.anew: Reason | None = None
        self.notes: list[str] = []

    def run(self, head: Head | None, etag: str | None, fresh: bool) -> Outcome:
        if head is None:
            assert self.state is not None
            return self._unchanged(self.state, Reason.CURRENT)
        for attempt in range(3):
            try:
                return self._by_some_way(head, etag, fresh)
            except Moved:
                if attempt == 2:
                    raise
                self.state = self.target.state()
            except NotFound:
                newer, newer_etag = read_head(self.address, self.reader.fetcher, None)
                if attempt == 2 or newer is None or newer.order <= head.order:
                    raise
                head, etag = newer, newer_etag
        raise AssertionError("unreachable")

    def _by_some_way(self, head: Head, etag: str | None, fresh: bool) -> Outcome:
        """Take the cheapest way; where it turns out to be closed, the next: diffs for patches, the snapshot for diffs."""
        while True:
            try:
                return self._to(head, etag, fresh)
            except Stale:
                self.patches = False
            except SchemaChanged:
                self.anew = Reason.SCHEMA_CHANGED
            except (Corrupt, ChecksumMismatch) as error:
                if self.anew is not None or self.state is None:
                    raise
                self.notes.append(str(error))
                if self.patches:
                    self.patches = False
                else:
                    self.anew = Reason.DIFFS_FAILED

    def _to(self, head: Head, etag: str | None, fresh: bool) -> Outcome:
        state = self.state
        if state is not None:
            if (early := self._check_same(state, head)) is not None:
                return early
            if state.position == (head.epoch, head.version) and self.anew is None:
                if not self.options.dry_run and (state.etag != etag or fresh):
                    self._remember(state, head, etag, fresh)
                return self._unchanged(state, Reason.CURRENT)
        position = None if state is None else state.position
        diffs = read_diffs(self.reader, head, position)
        chosen = plan(position, head, diffs, anew=self.anew, patches=self.patches and self.target.gives_values)
        only_planned = self.options.dry_run and not (self.options.adopt or self.options.overwrite)
        changes = Changes() if only_planned else self._apply(head, etag, chosen)
        return self._outcome(chosen, head, position, changes)

    def _check_same(self, state: State, head: Head) -> Outcome | None:
        """Refuse another dataset or a fork; pass over a HEAD that is older than one seen before."""
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
        same = state.position == (head.epoch, head.version)
        known = (state.publish_id, state.checksum, state.records, state.snapshot)
        served = (head.publish_id, f"{head.checksum:032x}", head.records, head.snapshot.ref.sha256.hex())
        forked = known != served
        if same and forked and not self.options.overwrite:
            raise Invalid(
                f"the host serves another version {head.version} of {head.name!r} than the one held: history was forked. "
                "Nothing was changed. Ask the publisher; to take the host's word, pull with --overwrite"
            )
        return None

    def _runs(self, head: Head, chosen: Plan, writer: Writer) -> Iterator[Run]:
        """The records that a plan gives: all of them, or the changed ones."""
        if chosen.way is Way.PATCH:
            return self._staged(chosen, writer)
        streams = [self.reader.diff(step.diff) for step in chosen.steps]
        if chosen.way is Way.BOOTSTRAP:
            return live(merge([self.reader.snapshot(head.snapshot), *streams]))
        return merge(streams)

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
                staged.update(zip(keys, found, strict=True))
        ordered = sorted(staged)
        for n in range(0, len(ordered), BATCH):
            keys = ordered[n : n + BATCH]
            yield keys, list(map(staged.__getitem__, keys))

    def _apply(self, head: Head, etag: str | None, chosen: Plan) -> Changes:
        replace = chosen.way is Way.BOOTSTRAP
        opening = Opening(
            kind=head.kind,
            replace=replace,
            time=head.time,
            large=self.reader.large,
            overwrite=self.options.overwrite,
            adopt=self.options.adopt,
            expected=None if self.state is None else self.state.position,
        )
        with self.target.writer(opening) as writer:
            checksum = 0 if replace or self.state is None else int(self.state.checksum, 16)
            records = 0 if replace or self.state is None else self.state.records
            checksum, records = self._stream(writer, self._runs(head, chosen, writer), checksum, records, chosen.bytes)
            if (checksum, records) != (head.checksum, head.records):
                raise self._mismatch(replace, head)
            if self.options.dry_run:
                return Changes(overwritten=writer.overwrites())
            return writer.commit(self._new_state(head, etag))

    def _stream(self, writer: Writer, runs: Iterator[Run], checksum: int, records: int, total: int) -> tuple[int, int]:
        """Hand the runs to the writer; return the checksum and the number of records that come out."""
        for keys, values in bounded(runs):
            hashes = record_hashes(keys, values)
            before = writer.put(keys, values, hashes)
            checksum += sum_hashes(hashes) - sum_hashes(before)
            records += before.count(None) - hashes.count(None)
            self.progress("pull", self.reader.done, total)
        return checksum % MODULUS, records

    def _mismatch(self, replace: bool, head: Head) -> HeadwaterError:
        if replace:
            return ChecksumMismatch(
                f"version {head.version} as served does not have the checksum that HEAD promises; nothing was changed. "
                "Ask the publisher to run a check"
            )
        return LocalEdits(
            f"applying the changes to {self.target.where} does not give the checksum that HEAD promises: rows were "
            "changed here since they were pulled. Nothing was written. Run `puller verify`, or pull with --overwrite"
        )

    def _new_state(self, head: Head, etag: str | None) -> State:
        now = int(self.now())
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
            seen=head.order,
            etag=etag,
            read=now,
            pulled=now,
            interval=head.interval,
            snapshot=head.snapshot.ref.sha256.hex(),
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
