"""One publish: read HEAD, read the source, write what changed, swap HEAD. This is where the parts meet."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import msgspec

from publisher.build import Sink, TreeBuilder, make_pool
from publisher.changes import Changed, compare
from publisher.diffs import choose_listed, fit, widen
from publisher.history import grow
from publisher.large import hash_stream, put_stream
from publisher.patches import PatchBuilder
from publisher.published import Published, read_head
from publisher.snapshots import carry, is_due
from publisher.sources.base import Report, Source, Unsorted
from publisher.stores.base import Store, Token
from publisher.stores.dry import DryStore
from publisher.validate import validate
from puller.errors import Conflict, Corrupt, HeadwaterError, Invalid, NotFound, Refused, Shrunk, UsageError
from puller.runs import Cursor
from puller.wire import nodes
from puller.wire.checksum import MODULUS, run_sum
from puller.wire.codec import CHUNKS, DIFFS, Ref
from puller.wire.head import Head, archive_path, format_head, is_name, parse_head
from puller.wire.nodes import Diff, Large, Run, Tree, Value
from puller.wire.rows import Schema

INTERVAL = 30
ATTEMPTS = 5


@dataclass(frozen=True)
class Options:
    """How to publish. `name` is for a new dataset; `interval` (seconds between polls) stays where it is not given."""

    name: str | None = None
    interval: int | None = None
    allow_shrink: bool = False
    dry_run: bool = False
    validate: Sequence[str] = ()
    """Commands that must end with 0 before HEAD moves (publisher.validate)."""


@dataclass
class Outcome:
    """What a publish did."""

    head: Head
    created: bool = False
    changed: bool = True
    added: int = 0
    updated: int = 0
    deleted: int = 0
    written: int = 0
    snapshot: bool = False
    schema_changed: bool = False
    report: Report = field(default_factory=Report)


Progress = Callable[[str, int, int], None]
OpenSource = Callable[[str, Schema], Source]
"""Opens the source, given the dataset's name and the schema published before."""


def _silent(what: str, done: int, total: int) -> None:
    pass


def check_unused(store: Store) -> None:
    """Raise Refused if the store holds something that is no part of a dataset, or the history of one."""
    foreign = store.foreign()
    if foreign is not None:
        raise Refused(
            f"{store.where} is no dataset, but is not empty ({foreign}); nothing was written. "
            "Publish to a folder of its own"
        )
    archived = max(store.list("heads/"), key=_archive_order, default=None)
    if archived is not None:
        raise Refused(
            f"{store.where} has the history of a dataset, but no HEAD; nothing was written. If HEAD was lost, copy "
            f"{archived} to HEAD and publish again; to start anew, use another folder"
        )


def _archive_order(path: str) -> tuple[int, ...]:
    return tuple(int(n) for n in path.rpartition("/")[2].split("-") if n.isdigit())


def create(
    store: Store, name: str, kind: str, *, interval: int = INTERVAL, now: Callable[[], float] = time.time
) -> Head:
    """Create an empty dataset (version 1). Raises Refused if there is one already."""
    head, _, token = read_head(store)
    if head is not None:
        raise Refused(f"{store.where} holds the dataset {head.name!r} already; nothing was written")
    _check_name(name)
    check_unused(store)
    with make_pool() as pool:
        tree = TreeBuilder(Sink(store, CHUNKS), pool).finish()
    first = _first_head(name, kind, tree, 0, 0, interval, int(now()))
    store.flush()
    try:
        store.swap_head(token, format_head(first), first.time)
    except Conflict as error:
        raise Refused(f"somebody else created a dataset in {store.where} just now; nothing was written") from error
    return first


def publish(
    store: Store,
    open_source: OpenSource,
    default_name: str,
    options: Options,
    *,
    progress: Progress = _silent,
    now: Callable[[], float] = time.time,
) -> Outcome:
    """Publish the state of a source as a new version, if it differs from the newest one.

    Another publisher that comes first makes this one start again, reading the source again. Raises
    HeadwaterError; then HEAD is as it was.
    """
    if options.dry_run:
        store = DryStore(store)
    for _ in range(ATTEMPTS):
        with make_pool() as pool:
            try:
                return _Publish(store, open_source, default_name, options, pool, progress, now).run()
            except Conflict:
                continue
            except (Corrupt, NotFound) as error:
                raise Invalid(
                    f"the dataset in {store.where} is damaged: {error}; nothing was published. Restore that file from a copy (a "
                    "mirror or a backup has it under the same name), or publish to a new folder"
                ) from error
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    raise Conflict(f"other publishers kept coming first to {store.where}; nothing was published. Try again")


class _Publish:
    def __init__(
        self,
        store: Store,
        open_source: OpenSource,
        default_name: str,
        options: Options,
        pool: ThreadPoolExecutor,
        progress: Progress,
        now: Callable[[], float],
    ) -> None:
        self.store = store
        self.open_source = open_source
        self.default_name = default_name
        self.options = options
        self.pool = pool
        self.progress = progress
        self.now = now
        self.chunks = Sink(store, CHUNKS)
        self.diffs = Sink(store, DIFFS)

    def run(self) -> Outcome:
        head, data, token = read_head(self.store)
        if head is None:
            return self._first(token)
        was = Published(self.store, self.pool, head, data, token)
        source = self._source(was)
        outcome = self._whole(head, source) if head.records == 0 else self._changes(was, source)
        if outcome.changed:
            self._validate(head, outcome)
            self._swap(was, outcome.head)
        outcome.written = self.store.written
        return outcome

    def _first(self, token: Token) -> Outcome:
        name = self.options.name or self.default_name
        _check_name(name)
        check_unused(self.store)
        source = self.open_source(name, [])
        tree, checksum, records = self._snapshot_of(source)
        if records <= (source.kind == "table") and not self.options.allow_shrink:
            raise Shrunk(f"the source of {name!r} is empty; nothing was published. If that is meant: --allow-shrink")
        head = _first_head(
            name, source.kind, tree, checksum, records, self.options.interval or INTERVAL, int(self.now())
        )
        outcome = Outcome(
            head,
            created=True,
            added=records - (source.kind == "table"),
            written=self.store.written,
            snapshot=True,
            report=source.report,
        )
        self._validate(None, outcome)
        self.store.flush()
        self.store.swap_head(token, format_head(head), head.time)
        return outcome

    def _source(self, was: Published) -> Source:
        head = was.head
        if self.options.name is not None and self.options.name != head.name:
            raise UsageError(f"{self.store.where} holds the dataset {head.name!r}, not {self.options.name!r}")
        source = self.open_source(head.name, was.schema() if head.kind == "table" else [])
        if source.kind != head.kind:
            raise UsageError(
                f"{self.store.where} holds a dataset of kind {head.kind}, the source is of kind {source.kind}; "
                "nothing was written"
            )
        return source

    def _whole(self, head: Head, source: Source) -> Outcome:
        """The first state of a dataset that was created empty."""
        tree, checksum, records = self._snapshot_of(source)
        if (checksum, records) == (head.checksum, head.records):
            return Outcome(head, changed=False, report=source.report)
        new = self._next_head(head, checksum, records, snapshot=(head.version + 1, tree), diffs=[], log=None)
        return Outcome(new, added=records - (source.kind == "table"), snapshot=True, report=source.report)

    def _changes(self, was: Published, source: Source) -> Outcome:
        outcome, diff, checksum = self._compare(was, source)
        if diff is None:
            return outcome
        head = was.head
        chain = [*was.chain, diff]
        snapshot = (head.snapshot_version, head.snapshot)
        if is_due(was.reader, head.snapshot, chain):
            snapshot = (diff.b, carry(was.reader, head.snapshot, chain, self.chunks, self.pool))
            outcome.snapshot = True
        new = [diff, *widen(diff.b, diff, snapshot[1].bytes, was.nearby, was.reader, self.diffs, self.pool)]
        log = grow(was.log, new, lambda part: self.diffs.put(nodes.encode_log(part)))
        listed = choose_listed(log.diffs)
        ref = self.diffs.put(nodes.encode_log(log)) if len(log.diffs) > len(listed) or log.segments else None
        records = head.records + outcome.added - outcome.deleted
        outcome.head = self._next_head(head, checksum, records, snapshot=snapshot, diffs=listed, log=ref)
        return outcome

    def _runs(self, source: Source) -> Iterator[Run]:
        for keys, values in source.runs():
            self.progress("read", source.report.bytes_read, 0)
            yield keys, values

    def _snapshot_of(self, source: Source) -> tuple[Tree, int, int]:
        """Build the snapshot of a source's state; return it with its checksum and number of records."""
        for _ in range(2):
            builder = TreeBuilder(self.chunks, self.pool)
            records = 0
            try:
                for keys, given in self._runs(source):
                    builder.add(keys, self._settle_all(keys, given))
                    records += len(keys)
            except Unsorted:
                continue
            keys, values = source.lead()
            tree = builder.finish((keys, values))
            return tree, builder.checksum, records + len(keys)
        raise AssertionError("a source that sorts is in order")

    def _compare(self, was: Published, source: Source) -> tuple[Outcome, Diff | None, int]:
        """Put the diff, and the patch beside it, that lead to the source's state; return them with its checksum."""
        head = was.head
        for _ in range(2):
            outcome = Outcome(head)
            builder, patch = TreeBuilder(self.diffs, self.pool), PatchBuilder(self.store, self.pool)
            checksum = head.checksum
            before = Cursor(was.records())
            below = before.take_below(b"\0") if head.kind == "table" else ([], [])
            try:
                for changed in compare(_rest(before), self._runs(source), self._settle):
                    checksum += _count(outcome, changed)
                    builder.add(changed.keys, changed.values)
                    patch.change(changed)
            except Unsorted:
                continue
            lead = next(compare([below], [source.lead()]), None)
            checksum += 0 if lead is None else _count(Outcome(head), lead)
            outcome.schema_changed = lead is not None
            outcome.report = source.report
            if builder.empty and lead is None:
                outcome.changed = False
                return outcome, None, head.checksum
            self._guard(head, outcome.deleted)
            tree = builder.finish(None if lead is None else (lead.keys, lead.values))
            diff = Diff(head.version, head.version + 1, tree, patch.beside(tree, lead))
            return outcome, diff, checksum % MODULUS
        raise AssertionError("a source that sorts is in order")

    def _settle_all(self, keys: list[bytes], given: list[Any]) -> list[Value]:
        if set(map(type, given)) <= {bytes}:
            return given
        return [self._settle(key, value, None) for key, value in zip(keys, given, strict=True)]

    def _settle(self, key: bytes, given: Any, before: Value) -> Value:
        """The value of what a source gave for a key; an unchanged large value keeps its pieces."""
        if isinstance(given, bytes):
            return given
        known = (before.size, before.sha256) if isinstance(before, Large) else None
        if known is not None and hash_stream(given.prefix, given.open()) == known:
            return before
        return put_stream(key, given.prefix, given.open(), self.chunks, self.pool)

    def _guard(self, head: Head, deleted: int) -> None:
        """Refuse a source that lost over half of what is published."""
        before = head.records - (head.kind == "table")
        if deleted * 2 > before and not self.options.allow_shrink:
            raise Shrunk(
                f"the source lacks {deleted:,} of the {before:,} records that are published; nothing was published. Is it the "
                "right source, key and table? If that is meant: --allow-shrink"
            )

    def _next_head(
        self, head: Head, checksum: int, records: int, *, snapshot: tuple[int, Tree], diffs: list[Diff], log: Ref | None
    ) -> Head:
        return fit(
            msgspec.structs.replace(
                head,
                version=head.version + 1,
                time=max(int(self.now()), head.time + 1),
                checksum=checksum,
                records=records,
                snapshot_version=snapshot[0],
                snapshot=snapshot[1],
                diffs=diffs,
                log=log,
                interval=self.options.interval or head.interval,
                publish_id=secrets.token_hex(16),
            )
        )

    def _validate(self, was: Head | None, outcome: Outcome) -> None:
        if self.options.validate and not self.options.dry_run:
            self.progress("validate", 0, 0)
            validate(
                self.options.validate, self.store, was, outcome.head, outcome.added, outcome.updated, outcome.deleted
            )

    def _swap(self, was: Published, new: Head) -> None:
        head = was.head
        self.store.flush()
        path = archive_path(head.epoch, head.version)
        if not self.store.create(path, was.data):
            archived = parse_head(self.store.get(path))
            if archived.publish_id != head.publish_id:
                raise HeadwaterError(
                    f"{path} in {self.store.where} is not the HEAD that stands there; nothing was published. "
                    "Two histories were mixed in this folder"
                )
        self.store.swap_head(was.token, format_head(new), new.time)


def _rest(cursor: Cursor) -> Iterator[Run]:
    while cursor.fill():
        yield cursor.take(cursor.last)


def _count(outcome: Outcome, changed: Changed) -> int:
    """Count the changes; return what they add to the checksum."""
    for value, before in zip(changed.values, changed.before, strict=True):
        if before is None:
            outcome.added += 1
        elif value is None:
            outcome.deleted += 1
        else:
            outcome.updated += 1
    return run_sum(changed.keys, changed.values) - run_sum(changed.keys, changed.before)


def _check_name(name: str) -> None:
    if not is_name(name):
        raise UsageError(
            f"{name!r} cannot name a dataset: use up to 64 letters, digits, '.', '_' and '-', beginning with a letter or "
            "digit (--name)"
        )


def _first_head(name: str, kind: str, tree: Tree, checksum: int, records: int, interval: int, now: int) -> Head:
    return Head(
        name=name,
        epoch=1,
        version=1,
        time=now,
        kind=kind,
        checksum=checksum,
        records=records,
        snapshot_version=1,
        snapshot=tree,
        diffs=[],
        log=None,
        interval=interval,
        publish_id=secrets.token_hex(16),
    )
