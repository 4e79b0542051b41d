"""One publish: read HEAD, read the source, write what changed, swap HEAD. This is where the parts meet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from publisher.build import Sink, TreeBuilder, make_pool
from publisher.changes import Changed, compare
from publisher.commit import (
    INTERVAL,
    Next,
    check_in_time,
    check_keep,
    check_name,
    check_newest,
    damaged,
    first_head,
    follow,
    place,
    restart,
    swap,
)
from publisher.encrypt import check_encrypted, new_locks
from publisher.published import Published, read_head
from publisher.sources.base import Remembering, Report, Source, Tracked, Unsorted
from puller.clock import uptime
from puller.errors import Conflict, Corrupt, NotFound, Refused, Shrunk, Unavailable, UsageError
from puller.progress import Progress, silent
from puller.runs import Cursor
from puller.secret import unlock
from puller.stores.base import Store, Token
from puller.stores.dry import DryStore
from puller.tree import Reader
from puller.wire.checksum import MODULUS, run_sum
from puller.wire.codec import CHUNKS, DIFFS
from puller.wire.head import Head, format_head
from puller.wire.nodes import Diff, Large, Run, Tree, Value

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from publisher.keys import Keyring
    from publisher.large import Stored
    from publisher.moved import Moved
    from publisher.signing import Signing
    from publisher.touched import Touched
    from puller.wire.cipher import Cipher
    from puller.wire.rows import Schema

ATTEMPTS = 5
COMMIT = "commit"
"""What progress says when all is written, and HEAD is about to move: until then, `progress` may raise to end the publish."""
_NAMED = 1 << 17
"""Changed keys that are remembered to be held against what a source was told of."""


@dataclass(frozen=True)
class Options:
    """How to publish. `name` is for a new dataset; `interval` (seconds between polls) and `keep` stay as they are."""

    name: str | None = None
    interval: int | None = None
    keep: int | None = None
    """How long a superseded version is promised to be pullable; older diffs leave the log."""
    existing: bool = False
    """Whether there was a dataset before: where there is none now, the store is not what it was, and none is created."""
    allow_shrink: bool = False
    dry_run: bool = False
    validate: Sequence[str] = ()
    """Commands that must end with 0 before HEAD moves (publisher.validate)."""
    secret: str | None = field(default=None, repr=False)
    """The secret of an encrypted dataset, as a text or the file that it is in; None: it is looked for."""
    encrypt: bool = False
    """Whether a new dataset is to be encrypted, and one that is there must be."""


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
    settings_changed: bool = False
    """Whether HEAD of a version that stays was written anew, with another interval or time to keep versions."""
    report: Report = field(default_factory=Report)
    signing: Signing | None = None
    """How a dataset that was created is signed."""
    secret: str | None = None
    """Where the secret is kept that was made for the dataset."""


OpenSource = Callable[[str, "Schema"], Source]
"""Opens the source, given the dataset's name and the schema published before."""


def check_unused(store: Store) -> None:
    """Raise Refused if the store holds something that is no part of a dataset, or the history of one, or cannot swap HEAD."""
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
    store.probe()


def _archive_order(path: str) -> tuple[int, ...]:
    return tuple(int(n) for n in path.rpartition("/")[2].split("-") if n.isdigit())


class Created(NamedTuple):
    """A dataset that was created, where the secret is kept that was made for it, and how it is signed."""

    head: Head
    secret: str | None
    signing: Signing | None


def create(
    store: Store,
    name: str,
    kind: str,
    *,
    interval: int = INTERVAL,
    secret: str | None = None,
    encrypt: bool = False,
    now: Callable[[], float] = time.time,
    keyring: Keyring | None = None,
) -> Created:
    """Create an empty dataset (version 1), signed with a key of `keyring`; None: not signed. Raises Refused if there is one.

    `secret` and `encrypt`: see `Options`.
    """
    began = uptime()
    head, _, token = read_head(store)
    if head is not None:
        raise Refused(f"{store.where} holds the dataset {head.name!r} already; nothing was written")
    check_name(name)
    check_unused(store)
    locks = new_locks(name, secret, encrypt=encrypt)
    with make_pool(store.threads) as pool:
        tree = TreeBuilder(Sink(store, CHUNKS, locks.cipher), pool).finish()
    first = first_head(name, kind, tree, 0, 0, interval, int(now()), locks.cipher)
    kept = locks.keep()
    first, data, signing = _signed(store, first, keyring)
    store.flush()
    try:
        place(store, token, first, data, began)
    except Conflict as error:
        raise Refused(f"somebody else created a dataset in {store.where} just now; nothing was written") from error
    return Created(first, kept, signing)


def _signed(store: Store, first: Head, keyring: Keyring | None) -> tuple[Head, bytes, Signing | None]:
    """The first HEAD, its bytes, and how it is signed; its key set is in the store then."""
    from publisher.signing import begin, note_unsigned

    if keyring is None:
        note_unsigned(store, first.name)
        return first, format_head(first), None
    signing = begin(store, first.name, keyring, first.time)
    first = msgspec.structs.replace(first, trust=1)
    return first, signing.sign(first), signing


def publish(
    store: Store,
    open_source: OpenSource,
    default_name: str,
    options: Options,
    *,
    progress: Progress = silent,
    now: Callable[[], float] = time.time,
    keyring: Keyring | None = None,
) -> Outcome:
    """Publish the state of a source as a new version, if it differs from the newest one.

    `keyring` has the private key of a signed dataset (None: the user's own keys); one that is created is signed only if
    it is given. Another publisher that comes first makes this one start again, reading the source again. Raises
    HeadwaterError (UsageError for a `keep` below the grace of garbage collection); then HEAD is as it was, unless the error is
    Unclear (puller.stores.base).
    """
    check_keep(options.keep)
    if options.dry_run:
        store = DryStore(store)
    for _ in range(ATTEMPTS):
        with make_pool(store.threads) as pool:
            try:
                return _Publish(store, open_source, default_name, options, pool, progress, now, keyring).run()
            except Conflict:
                continue
            except (Corrupt, NotFound) as error:
                raise damaged(store, error) from error
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
        keyring: Keyring | None,
    ) -> None:
        self.keyring = keyring
        self.store = store
        self.open_source = open_source
        self.default_name = default_name
        self.options = options
        self.pool = pool
        self.progress = progress
        self.now = now
        self._encrypting(None)
        self.next: Next | None = None
        self.touched: Touched | None = None
        self.reader: Reader | None = None
        self.kind = ""
        self.costs: dict[bytes, tuple[int, int]] = {}
        self.moved: dict[bytes, Moved] = {}

    def _encrypting(self, cipher: Cipher | None) -> None:
        """Write files with this cipher from now on."""
        self.cipher = cipher
        self.chunks = Sink(self.store, CHUNKS, cipher)
        self.diffs = Sink(self.store, DIFFS, cipher)

    def run(self) -> Outcome:
        found, data, token = read_head(self.store)
        if found is None and self.options.existing:
            raise Unavailable(
                f"the dataset in {self.store.where} is gone; nothing was published. Is everything mounted? To create it "
                "anew, start again"
            )
        if found is None:
            return self._first(token)
        check_encrypted(found, self.store.where, encrypt=self.options.encrypt)
        head, cipher = unlock(found, self.options.secret)
        self._encrypting(cipher)
        was = Published(self.store, self.pool, head, data, token, cipher, self.keyring)
        self.reader, self.kind = was.reader, head.kind
        source = self._source(was)
        try:
            outcome = self._new_state(was, source)
            if self.next is None:
                self._keep_settings(was, outcome)
            elif self.options.dry_run:
                check_newest(was)
            else:
                self._validate(head, outcome, was.sign(self.next.head))
                self.progress(COMMIT, 0, 0)
                after = swap(was, self.next)
                if self.touched is not None:
                    self.touched.committed(after)
        finally:
            if self.touched is not None:
                self.touched.close()
        self._remember(source, outcome.head)
        outcome.written = self.store.written
        return outcome

    def _new_state(self, was: Published, source: Source) -> Outcome:
        if was.head.records == 0:
            return self._whole(was, source)
        touched = source.recall(state_name(was.head)) if isinstance(source, Remembering) else None
        return self._changes(was, source, touched)

    def _keep_settings(self, was: Published, outcome: Outcome) -> None:
        """Write HEAD of a version that stays anew, if other settings than its own were given."""
        head, options = was.head, self.options
        wanted = msgspec.structs.replace(
            head, interval=options.interval or head.interval, keep=options.keep or head.keep
        )
        if wanted == head:
            return
        from publisher.epochs import rewrite

        outcome.settings_changed, outcome.head = True, wanted
        if not options.dry_run:
            self.progress(COMMIT, 0, 0)
            outcome.head = rewrite(was, wanted, self.now)

    def _first(self, token: Token) -> Outcome:
        began = uptime()
        name = self.options.name or self.default_name
        check_name(name)
        check_unused(self.store)
        locks = new_locks(name, self.options.secret, encrypt=self.options.encrypt)
        self._encrypting(locks.cipher)
        source = self.open_source(name, [])
        tree, checksum, records = self._snapshot_of(source, self.options.allow_shrink)
        interval = self.options.interval or INTERVAL
        head = first_head(
            name, source.kind, tree, checksum, records, interval, int(self.now()), self.cipher, self.options.keep
        )
        outcome = Outcome(
            head,
            created=True,
            added=records - (source.kind == "table"),
            written=self.store.written,
            snapshot=True,
            report=source.report,
        )
        if self.options.dry_run:
            return outcome
        outcome.head, data, outcome.signing = _signed(self.store, head, self.keyring)
        self._validate(None, outcome, data)
        self.progress(COMMIT, 0, 0)
        outcome.secret = locks.keep()
        check_in_time(self.store, began)
        self.store.flush()
        head = outcome.head
        place(self.store, token, head, data, began)
        self._remember(source, head)
        return outcome

    def _remember(self, source: Source, head: Head) -> None:
        if isinstance(source, Remembering) and not self.options.dry_run:
            source.remember(state_name(head))

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

    def _whole(self, was: Published, source: Source) -> Outcome:
        """The first state of a dataset that was created empty."""
        head = was.head
        self._check_key(was)
        tree, checksum, records = self._snapshot_of(source, allow_empty=True)
        if (checksum, records) == (head.checksum, head.records):
            return Outcome(head, changed=False, report=source.report)
        self.next = restart(
            was, tree, checksum, records, interval=self.options.interval, keep=self.options.keep, now=self.now
        )
        return Outcome(self.next.head, added=records - (source.kind == "table"), snapshot=True, report=source.report)

    def _changes(self, was: Published, source: Source, touched: list[bytes] | None) -> Outcome:
        if touched == []:
            return Outcome(was.head, changed=False, report=source.report)
        self._check_key(was)
        if touched is not None and was.head.kind == "table":
            return self._by_keys(was, source, touched)
        outcome, diff, checksum = self._compare(was, source, touched)
        if diff is None:
            return outcome
        records = was.head.records + outcome.added - outcome.deleted
        self.next = follow(
            was, diff, checksum, records, interval=self.options.interval, keep=self.options.keep, now=self.now
        )
        outcome.head, outcome.snapshot = self.next.head, self.next.carried
        return outcome

    def _by_keys(self, was: Published, source: Source, keys: list[bytes]) -> Outcome:
        """As `_changes`, for rows that are looked up by their keys; there is no patch, which takes their old values."""
        from publisher.touched import Touched
        from puller.wire.rows import SCHEMA_KEY

        self.touched = Touched(was, source, keys)
        found = self.touched.changes
        schema = int(SCHEMA_KEY in found.keys)
        outcome = Outcome(was.head, added=found.added, deleted=found.deleted, report=source.report)
        outcome.updated = len(found.keys) - found.added - found.deleted - schema
        outcome.schema_changed = bool(schema)
        outcome.changed = bool(found.keys)
        self._guard(was.head, found.deleted)
        if found.keys:
            self.next = self.touched.next(self.options.interval, self.options.keep, self.now)
            outcome.head, outcome.snapshot = self.next.head, self.next.carried
        return outcome

    def _check_key(self, was: Published) -> None:
        """Raise NoKey or Untrusted, before anything is written, where the next version could not be signed."""
        if not self.options.dry_run:
            _ = was.signing

    def _runs(self, source: Source) -> Iterator[Run]:
        for keys, values in source.runs():
            self.progress("read", source.report.bytes_read, 0)
            yield keys, values

    def _snapshot_of(self, source: Source, allow_empty: bool) -> tuple[Tree, int, int]:
        """Build the snapshot of a source's state; return it with its checksum and number of records.

        Raises Shrunk, before anything is put, where there are none and that is not allowed.
        """
        for _ in range(2):
            builder = TreeBuilder(self.chunks, self.pool, costs=self.costs)
            records = 0
            try:
                for keys, given in self._runs(source):
                    builder.add(keys, self._settle_all(keys, given))
                    records += len(keys)
            except Unsorted:
                continue
            if not records and not allow_empty:
                raise _empty(source.report.skipped)
            keys, values = source.lead()
            tree = builder.finish((keys, values))
            return tree, builder.checksum, records + len(keys)
        raise AssertionError("a source that sorts is in order")

    def _compare(self, was: Published, source: Source, touched: list[bytes] | None) -> tuple[Outcome, Diff | None, int]:
        """Put the diff, and the patch beside it, that lead to the source's state; return them with its checksum.

        Where it is known which keys were `touched`, only these are compared.
        """
        from publisher.patches import PatchBuilder

        head = was.head
        for _ in range(2):
            outcome = Outcome(head)
            builder = TreeBuilder(self.diffs, self.pool, costs=self.costs)
            patch = PatchBuilder(self.store, self.pool, self.cipher, self.costs, self.moved)
            checksum = head.checksum
            keys: set[bytes] = set()
            before = Cursor(was.records() if touched is None else was.records_of(touched))
            below = before.take_below(b"\0") if head.kind == "table" else ([], [])
            try:
                for changed in compare(_rest(before), self._runs(source), self._settle):
                    checksum += _count(outcome, changed)
                    keys.update(changed.keys if len(keys) <= _NAMED else ())
                    builder.add(changed.keys, changed.values)
                    patch.change(changed)
            except Unsorted:
                continue
            lead = next(compare([below], [source.lead()]), None)
            checksum += 0 if lead is None else _count(Outcome(head), lead)
            outcome.schema_changed = lead is not None
            outcome.report = source.report
            if isinstance(source, Tracked) and source.expected is not None and (missed := keys - source.expected):
                outcome.report.warnings.append(
                    f"{len(missed):,} changes were not tracked, and found by reading everything: run `publisher track` again, "
                    "and see what changes the database past its triggers"
                )
            if builder.empty and lead is None:
                outcome.changed = False
                return outcome, None, head.checksum
            self._guard(head, outcome.deleted)
            if lead is not None:
                self._guard_tables(lead)
            tree = builder.finish(None if lead is None else (lead.keys, lead.values))
            diff = Diff(head.version, head.version + 1, tree, patch.beside(tree, lead))
            return outcome, diff, checksum % MODULUS
        raise AssertionError("a source that sorts is in order")

    def _settle_all(self, keys: list[bytes], given: list[Any]) -> list[Value]:
        if set(map(type, given)) <= {bytes}:
            return given
        return [self._settle(key, value, None) for key, value in zip(keys, given, strict=True)]

    def _settle(self, key: bytes, given: Any, before: Value) -> Value:
        """The value of what a source gave for a key; a large value keeps the pieces that did not change."""
        if isinstance(given, bytes):
            return given
        from publisher.earlier import Earlier
        from publisher.large import hash_stream, put_stream

        known = (before.size, before.sha256) if isinstance(before, Large) else None
        if known is not None and hash_stream(given.prefix, given.open()) == known:
            return before
        earlier = None
        if isinstance(before, Large) and self.reader is not None:
            earlier = Earlier(before, self.reader, self.chunks, self.pool)
        stored = put_stream(key, given.prefix, given.open(), self.chunks, self.pool, earlier)
        if isinstance(stored.value, Large):
            self.costs[stored.value.record_hash] = stored.cost
            self._find_moved(stored.value, stored, given, before)
        return stored.value

    def _validate(self, was: Head | None, outcome: Outcome, data: bytes) -> None:
        if self.options.validate:
            from publisher.validate import validate

            self.progress("validate", 0, 0)
            secret = None if self.cipher is None else self.cipher.secret.text
            changes = outcome.added, outcome.updated, outcome.deleted
            validate(self.options.validate, self.store, was, outcome.head, data, *changes, secret=secret)

    def _find_moved(self, value: Large, stored: Stored, given: Any, before: Value) -> None:
        """Find what of a large file was moved, for the patch; copies of other kinds have no ranges to give."""
        if not isinstance(before, Large) or self.reader is None or self.kind != "files":
            return
        from publisher.large import Joined
        from publisher.moved import MOST, find_moved

        if sum(len(data) for other in self.moved.values() for _, data in other.files) > MOST:
            return  # these files are held in memory until the patch is known to be worth it
        moved = find_moved(stored, lambda: Joined(given.prefix, given.open()), before, self.reader, self.pool)
        if moved is not None:
            self.moved[value.record_hash] = moved

    def _guard_tables(self, lead: Changed) -> None:
        """Refuse a source that lacks tables that are published: mostly it is one of several."""
        from puller.wire.rows import decode_schema

        before, after = (
            {table.name for table in decode_schema(value)} if isinstance(value, bytes) else set()
            for value in (lead.before[0], lead.values[0])
        )
        gone = sorted(before - after)
        if gone and not self.options.allow_shrink:
            raise Shrunk(
                f"the source has no table {', '.join(map(repr, gone[:5]))}, which {'is' if len(gone) == 1 else 'are'} published; "
                "nothing was published. If it is to go: --allow-shrink. One of several tables is published in batches "
                "(publisher.open)"
            )

    def _guard(self, head: Head, deleted: int) -> None:
        """Refuse a source that lost over half of what is published."""
        before = head.records - (head.kind == "table")
        if deleted * 2 > before and not self.options.allow_shrink:
            raise Shrunk(
                f"the source lacks {deleted:,} of the {before:,} records that are published; nothing was published. Is it the "
                "right source, key and table? If that is meant: --allow-shrink"
            )


def _empty(skipped: Sequence[tuple[str, str]]) -> Shrunk:
    """The error for a first publish of a source without records, which names what was left out of it."""
    named = ", ".join(f"{name} ({reason})" for name, reason in skipped[:3])
    more = f" and {len(skipped) - 3:,} more" if len(skipped) > 3 else ""
    left = f", as this is left out: {named}{more}" if skipped else ""
    return Shrunk(f"the source is empty{left}; nothing was published. If that is meant: --allow-shrink")


def state_name(head: Head) -> bytes:
    """Names exactly one published state of a dataset."""
    return f"{head.name} {head.epoch} {head.version} {head.checksum:032x} {head.publish_id}".encode()


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
