"""One pull: read HEAD, plan, fetch, check, apply in one step. This is where the parts meet."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import msgspec

from puller.accept import Choice, Copy, Judge, Terms, first_met
from puller.apply import Step, Watching
from puller.errors import (
    ChecksumMismatch,
    Corrupt,
    FetchError,
    HeadwaterError,
    Invalid,
    LocalEdits,
    Missing,
    Moved,
    Refused,
    SchemaChanged,
    Stale,
    Unavailable,
    Untrusted,
    UsageError,
    Withheld,
)
from puller.fetch import CONNECTIONS, THREADS, Fetcher, Patience, where
from puller.heads import READ_AGAIN, Found, read_heads
from puller.lookup import Finder
from puller.mirrors import Health
from puller.partcopy import Extent
from puller.partial import Partial
from puller.parts import named, parse
from puller.plan import Plan, Reason, Way, route
from puller.progress import Progress, silent
from puller.targets.base import Changes, State, Target
from puller.tree import Reader
from puller.trust import Pins, Staleness, staleness
from puller.ways import CHANGES, Ways, read_diffs
from puller.wire.head import Head
from puller.wire.nodes import Diff, Value
from puller.wire.rows import SCHEMA_KEY

MOST_ATTEMPTS = 8
"""Beginnings of a pull, all in all: others moved the target or HEAD, or files were missing."""


@dataclass(frozen=True)
class Options(Terms):
    """How to pull; on what terms HEADs are taken, `puller.accept.Terms` says.

    `overwrite`: everything held is looked at, and local edits may be lost; `adopt`: data that is not ours may be;
    `check`: everything held is looked at first, and local edits are refused; `dry_run`: only plan; `version`: the one
    to go to, of HEAD's epoch (None: the newest), which has to be `epoch` if that is given; `max_staleness`: how
    old the newest HEAD may be, in seconds, before the outcome says that it is stale.

    `parts`: those of the dataset that the target is to hold from now on, as `puller.parts.parse` takes them; empty: all
    of it; None: what it holds, of a new target all.
    """

    adopt: bool = False
    check: bool = False
    dry_run: bool = False
    version: int | None = None
    epoch: int | None = None
    max_staleness: int | None = None
    parts: Sequence[Any] | None = None


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
    pins: Pins = field(default_factory=Pins)
    """Whom the target trusts now; no key set where the dataset is not signed."""
    met: bool = False
    """Whether this was the first contact, or the first with a signed HEAD: `pins` are new."""
    stale: Staleness | None = None
    """Why what is held may be old, though nothing is wrong with it."""
    stale_since: int = 0
    """Since when, where it is, in Unix seconds."""
    parts: list[str] = field(default_factory=list)
    """The parts that are held, as a user names them; none: the whole dataset."""

    @property
    def changed(self) -> bool:
        """Whether the target moved."""
        return self.before != self.after

    @property
    def holds_none(self) -> bool:
        """Whether parts are held in which there is no record; the schema of tables is none."""
        return bool(self.parts) and self.records <= int(self.kind == "table")


def pull(
    address: str,
    fetcher: Fetcher,
    find_target: Callable[[Head | None], Target],
    options: Options,
    *,
    progress: Progress = silent,
    now: Callable[[], float] = time.time,
    watch: Watching | None = None,
    health: Health | None = None,
    patience: Callable[[], Patience] = Patience,
    found: list[Found] | None = None,
) -> Outcome:
    """Bring a target to the newest HEAD (design: Pulling, steps 1 to 6).

    `find_target` opens the target; it is first asked without a HEAD, and may raise UsageError until it has one.
    `watch` notes what changes on the way. `health` is what the fetcher knows of its hosts: it is kept with the target.
    `patience` says how long files that are missing on the host are waited for. `found` is what `read_heads` gave just now,
    if it was asked already.
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
    fresh = state is None or must_read(state, options, current) or bool(closed)
    try:
        if found is None or fresh:
            found = read_heads(address, fetcher, None if fresh or state is None else state.etag)
        if state is None:
            target = find_target(first_met(found, fetcher, options, patience))
            state = target.state()
        partial = None if target.partial is None else Partial(target.partial)
        with ThreadPoolExecutor(THREADS if fetcher.is_local else CONNECTIONS) as pool:
            try:
                keeping = None if options.dry_run or fetcher.is_local else partial
                reader = Reader(fetcher, pool, keeping)
                copy = Copy(target, state, options.dry_run)
                puller = _Pull(address, reader, copy, closed, options, progress, now, watch, patience)
                outcome = puller.run(found, fresh)
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
        if not isinstance(error, FetchError | Untrusted):
            raise
        kept = "nothing was written" if state is None else f"{target.where} stays at version {state.version}"
        error.args = (f"{error}; {kept}",)
        raise


def must_read(state: State, options: Options, now: int) -> bool:
    """Whether HEAD itself is needed, not only whether it changed."""
    unknown = bool(options.trust) and not state.pins.key_set
    others = options.parts is not None and parse(state.kind, options.parts) != state.parts
    return bool(options.version) or options.repin or unknown or others or not 0 <= now - state.read <= READ_AGAIN


def _remember_rests(target: Target, options: Options, health: Health) -> None:
    """Keep with the target which hosts are to be left alone, also by the next process."""
    if options.dry_run:
        return
    with contextlib.suppress(HeadwaterError):
        state, rests = target.state(), health.dump()
        if state is not None and state.rests != rests:
            target.remember(msgspec.structs.replace(state, rests=rests), state)


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
            "then `puller verify --repair`, or run `puller pull --overwrite`",
            [*found.differing, *found.missing],
        )


@dataclass(frozen=True)
class _Version:
    """A published version, as `puller.lookup` takes it."""

    head: Head
    reader: Reader
    chain: list[Diff]


class _Pull:
    """One pull, once HEAD was read: accepts one, chooses a way, takes the step; and again by another where that fails."""

    def __init__(
        self,
        address: str,
        reader: Reader,
        copy: Copy,
        closed: dict[Way, Reason],
        options: Options,
        progress: Progress,
        now: Callable[[], float],
        watch: Watching | None,
        patience: Callable[[], Patience],
    ) -> None:
        self.address = address
        self.reader = reader
        self.copy = copy
        self.options = options
        self.progress = progress
        self.now = now
        self.watch = watch
        self.patience = patience
        self.notes: list[str] = []
        self.edited: list[str] = []
        self.judge = Judge(copy, reader.fetcher, options, now, patience, self.notes)
        without_values = {} if copy.target.gives_values else {Way.PATCH: Reason.NO_VALUES}
        self.ways = Ways(reader, without_values | closed)

    def run(self, found: list[Found], fresh: bool) -> Outcome:
        try:
            return self._to_newest(found, fresh)
        except BaseException:
            self.judge.remember_seen()
            raise

    def _to_newest(self, found: list[Found], fresh: bool) -> Outcome:
        """Go to the newest HEAD that is right, or to one that has taken its place where files of it are gone."""
        missing: FetchError | None = None
        head: Head | None = None
        for attempt in range(MOST_ATTEMPTS):
            last = attempt + 1 == MOST_ATTEMPTS
            try:
                choice = self.judge.choose(found)
                head = None if choice is None else choice.head
                return self._to_chosen(choice, fresh)
            except Untrusted:
                raise
            except Invalid as error:
                raise missing or error from error
            except Moved:
                if last:
                    raise
                self.copy.state = self.copy.target.state()
            except (Missing, Withheld) as error:
                missing = error
                newer = read_heads(self.address, self.reader.fetcher, None)
                if not last and head is not None and any(new and new.order > head.order for new, _ in newer):
                    found = newer
                elif last or not self._go_on_without(error):
                    raise
        raise AssertionError("unreachable")

    def _go_on_without(self, error: FetchError) -> bool:
        """A file is missing, and HEAD is no newer: wait for it, then look for another way; say whether there is any."""
        if self.ways.way is not Way.PATCH and self.reader.patience is None and not self.reader.fetcher.is_local:
            self.reader.patience = self.patience()
            return True
        if self.copy.state is None or not self.ways.give_up(error):
            return False
        self.notes.append(str(error))
        return True

    def _to_chosen(self, choice: Choice | None, fresh: bool) -> Outcome:
        """Go to the HEAD that was found to be right, unless there is nothing to do."""
        if choice is None:
            self.judge.not_modified()
            return self._unchanged(Reason.CURRENT)
        self.reader.cipher = choice.cipher
        if choice.older:
            return self._unchanged(Reason.OLDER_HEAD)
        return self._by_some_way(choice.head, choice.answer.etag, fresh)

    def _by_some_way(self, newest: Head, etag: str | None, fresh: bool) -> Outcome:
        """Take the cheapest way; where it turns out to be closed, the next one."""
        wanted = self._wanted(newest)
        first: HeadwaterError | None = None
        while True:
            try:
                return self._to(wanted, newest, etag, fresh)
            except Stale:
                self.ways.close(Reason.PATCH_FAILED, Way.PATCH)
            except SchemaChanged:
                self.ways.close(Reason.SCHEMA_CHANGED, Way.PATCH, Way.DIFFS, Way.RESYNC)
            except (Corrupt, ChecksumMismatch) as error:
                first = first or error
                if self.copy.state is None or not self.ways.give_up(error):
                    raise
                self.notes.append(str(error))
            except LocalEdits:
                if self.ways.way is not Way.RESYNC or not self.options.overwrite:
                    raise
                self.ways.close(Reason.RESYNC_FAILED, Way.RESYNC)
            except Invalid as error:
                raise first or error from error

    def _wanted(self, newest: Head) -> Head:
        """The HEAD to go to: the newest, or the one of the version that was asked for."""
        version, epoch = self.options.version, self.options.epoch
        if epoch not in (None, newest.epoch):
            raise Refused(
                f"history was restarted: version {version} of epoch {epoch} is not to be had any more, the host is at version "
                f"{newest.version} of epoch {newest.epoch}; nothing was changed. Run `puller pull --overwrite` to go there"
            )
        if version is None or version == newest.version:
            return newest
        if version > newest.version:
            raise UsageError(f"there is no version {version} yet; the newest is {newest.version}; nothing was changed")
        return self.judge.archived(newest, version)

    def _to(self, head: Head, newest: Head, etag: str | None, fresh: bool) -> Outcome:
        copy, options, accepted = self.copy, self.options, self.judge.accepted
        state = copy.state
        if state is not None and self.judge.is_other(state, head):
            self.ways.close(Reason.OVERWRITE, *CHANGES)
        extent = Extent.settle(head.kind, state, options.parts)
        self.reader.cuts.clear()
        closed = self._closed_for_parts(head, newest, extent) | self.ways.closed
        tag = etag if head is newest else None
        if state is not None and state.position == (head.epoch, head.version) and Way.NOTHING not in closed:
            if state.etag != tag or fresh or accepted["verified"] != state.verified:
                copy.remember(**accepted, etag=tag, read=int(self.now()) if fresh else state.read)
            return self._unchanged(Reason.CURRENT)
        chosen = self.ways.choose(head, state, extent, closed, costs_all=options.dry_run)
        if options.dry_run and not (options.adopt or options.overwrite):
            extent.check_tables(self.reader, head, partial(self._schema, head))
            return self._outcome(chosen, head, extent, Changes(), None)
        step = Step(
            reader=self.reader,
            target=copy.target,
            state=state,
            head=head,
            chosen=chosen,
            extent=extent,
            trusting=self.ways.trusting,
            overwrite=options.overwrite,
            adopt=options.adopt,
            dry_run=options.dry_run,
            notes=self.notes,
            edited=self.edited,
            progress=self.progress,
            watch=self.watch,
        )
        changes, after = step.take(lambda: self._draft(head, tag))
        return self._outcome(chosen, head, extent, changes, after)

    def _schema(self, head: Head) -> Value:
        """The schema of a HEAD's tables; None where there is none."""
        start = head.epoch, head.snapshot_version
        chain = route(head.snapshot_version, head.version, read_diffs(self.reader, head, start)) or []
        return Finder().find(_Version(head, self.reader, chain), [SCHEMA_KEY]).get(SCHEMA_KEY)

    def _closed_for_parts(self, head: Head, newest: Head, extent: Extent) -> dict[Way, Reason]:
        """The ways that are closed because of the parts that are or were held. Raises Untrusted."""
        state = self.copy.state
        closed = {} if extent.within is None else {Way.PATCH: Reason.PARTIAL_COPY}
        if state is None or not (state.parts or extent.parts):
            return closed
        may_follow = state.epoch == head.epoch and state.version < head.version and Way.DIFFS not in self.ways.closed
        if may_follow and not self.judge.same_history(state, newest):
            self.ways.trusting = False
            closed |= dict.fromkeys((Way.PATCH, Way.DIFFS), Reason.HISTORY_UNKNOWN)
        return closed if state.parts == extent.parts else closed | dict.fromkeys(CHANGES, Reason.PARTS_CHANGED)

    def _draft(self, head: Head, etag: str | None) -> State:
        """What the target is to remember but for what the step finds out."""
        now = int(self.now())
        return State(
            dataset=head.name,
            kind=head.kind,
            source=where(self.address),
            epoch=head.epoch,
            version=head.version,
            checksum="",
            records=0,
            time=head.time,
            publish_id=head.publish_id,
            **self.judge.accepted,
            etag=etag,
            read=now,
            pulled=now,
            interval=head.interval,
            snapshot=head.snapshot.ref.sha256.hex(),
            encryption=head.encryption or "",
        )

    def _unchanged(self, reason: Reason) -> Outcome:
        state, fetcher = self.copy.state, self.reader.fetcher
        assert state is not None
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
            pins=state.pins,
            met=self.judge.met,
            **_stale(state.staleness(int(self.now()), self.options.max_staleness)),
            parts=named(state.kind, state.parts),
        )

    def _outcome(self, chosen: Plan, head: Head, extent: Extent, changes: Changes, after: State | None) -> Outcome:
        state, accepted = self.copy.state, self.judge.accepted
        expires, most = accepted["expires"], self.options.max_staleness
        stale = staleness(
            int(self.now()), accepted["seen"][2], expires=expires, behind=None, interval=head.interval, most=most
        )
        return Outcome(
            plan=chosen,
            dataset=head.name,
            kind=head.kind,
            before=None if state is None else state.position,
            after=(head.epoch, head.version),
            records=head.records if after is None else after.records,
            checksum=f"{head.checksum:032x}" if after is None else after.checksum,
            changes=changes,
            requests=self.reader.fetcher.requests,
            received=self.reader.fetcher.received,
            notes=self.notes,
            pins=accepted["pins"],
            met=self.judge.met,
            **_stale(stale),
            parts=named(head.kind, extent.parts),
        )


def _stale(found: tuple[Staleness, int] | None) -> dict[str, Any]:
    """What an outcome says of that."""
    return {} if found is None else {"stale": found[0], "stale_since": found[1]}
