"""What leads from a version to a newer one, straight from the host: the changes that diffs name, or all records anew.

Every diff (a, b] holds each key that a version in it touched, so a transition is right for whoever holds any version
of it, or some keys of one and some of another: a transition that was cut short needs nothing but to be told again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from enum import Enum
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec

from puller.errors import (
    ChecksumMismatch,
    Corrupt,
    Distrust,
    HeadwaterError,
    Invalid,
    NotFound,
    SecretError,
    Untrusted,
    Withheld,
)
from puller.fetch import CONNECTIONS, THREADS, Answer, Fetcher, Patience, where
from puller.forms import Form, form_of, type_name
from puller.heads import READ_AGAIN, key_sets, read_heads
from puller.parts import WHOLE, Parts, ranges_of
from puller.plan import route
from puller.runs import bounded, live
from puller.secret import unlock
from puller.tree import Reader
from puller.trust import Keeper, Pins, identity
from puller.ways import read_diffs
from puller.wire.checksum import MODULUS, Hash, record_hashes, sum_hashes
from puller.wire.codec import CHUNKS, DIFFS
from puller.wire.head import Head
from puller.wire.keyset import parse_key_set
from puller.wire.nodes import Diff, Large, Run, Value
from puller.wire.note import Key
from puller.wire.rows import SCHEMA_KEY, Schema, Table, decode_schema

if TYPE_CHECKING:
    from puller.wire.cipher import Cipher

BATCH = 512
"""Events that are made at once."""
MOST_DAMAGED = 3
"""Damaged diffs that a transition goes round before all records are told anew."""
Position = tuple[int, int]
"""Epoch and version."""
Values = Literal["all", "small", "none"]


class Unknown(Enum):
    """What is told in the place of an old value that nobody here holds."""

    UNKNOWN = "unknown"

    def __repr__(self) -> str:
        return self.name


UNKNOWN = Unknown.UNKNOWN


class Omitted(NamedTuple):
    """What is told of a value that was not asked for: its size in bytes and its record hash (SPEC 6).

    Of a path, `type` is what lies there, where that is known without fetching it, and `size` that of its content.
    """

    size: int
    hash: bytes
    type: str | None = None


class Event(NamedTuple):
    """One thing that a feed tells, as part of the transition from the position `since` to `position`.

    `type` is "change": the value under `key` was `old` and is `new` (None: absent; `UNKNOWN`: not known here);
    "reset": forget everything, all records follow, as changes; or "commit": the transition is complete. Positions
    are (epoch, version); `since` is None after a reset.
    """

    type: Literal["reset", "change", "commit"]
    since: Position | None
    position: Position
    key: Any = None
    old: Any = None
    new: Any = None


class Memory(msgspec.Struct, frozen=True):
    """What a consumer of a feed is remembered by: the position it acknowledged, and whom it trusts (SPEC 7.4, 7.5)."""

    format: int = 1
    dataset: str = ""
    kind: str = ""
    source: str = ""
    encryption: str = ""
    position: Position | None = None
    schema: bytes = b""
    """The schema of a table at `position`, where it is known."""
    parts: Parts = WHOLE
    """The parts that were told of (`puller.parts`), where a replica holds only some."""
    pins: Pins = Pins()
    seen: tuple[int, int, int] | None = None
    """The newest HEAD that was accepted: epoch, version, time."""
    seen_as: str = ""
    verified: str = ""
    rests: dict[str, tuple[int, int]] = {}
    """Addresses that are to be left alone, and until when (`puller.mirrors.Health`)."""


class Trusting(NamedTuple):
    """Whom to believe, and how to read what is encrypted; as in `puller.pull.Options`."""

    trust: Sequence[Key] = ()
    secret: str | None = None
    allow_expired: bool = False


class Host:
    """The newest HEAD of a dataset, as often as it is asked for, and what leads to it."""

    def __init__(
        self,
        address: str,
        fetcher: Fetcher,
        trusting: Trusting,
        values: Values,
        now: Callable[[], float],
        warn: Callable[[str], object],
    ) -> None:
        self._address = address
        self._fetcher = fetcher
        self._trusting = trusting
        self._values = values
        self._now = now
        self._warn = warn
        self._etag: str | None = None
        self._read = 0.0
        """When HEAD was asked for unconditionally."""
        self._newest: tuple[Head, Cipher | None] | None = None
        self._damaged: set[bytes] = set()

    def look(self, memory: Memory) -> tuple[Head | None, Memory]:
        """The newest HEAD, and what is to be remembered of it; None where there is only an older one than was seen before.

        Raises Untrusted, SecretError, FetchError.
        """
        conditional = self._newest is not None and 0 <= self._now() - self._read <= READ_AGAIN
        found = read_heads(self._address, self._fetcher, self._etag if conditional else None)
        if not conditional:
            self._read = self._now()
        first: Exception | None = None
        for head, answer in found:
            if head is None:
                break
            try:
                opened, cipher = unlock(head, self._trusting.secret)
                memory, newer = self._accept(opened, answer, memory)
            except (Invalid, SecretError) as error:
                first = first or error
                continue
            if newer:
                self._newest, self._etag = (opened, cipher), answer.etag
            break
        else:
            assert first is not None
            raise first
        return None if self._newest is None else self._newest[0], memory

    def _accept(self, head: Head, answer: Answer, memory: Memory) -> tuple[Memory, bool]:
        """Verify HEAD; what to remember, and whether it is at least as new as the one seen before."""
        assert answer.data is not None
        verified = hashlib.sha256(answer.data).hexdigest()
        if verified == memory.verified and not self._trusting.trust:
            return memory, True
        met = memory.seen is None
        if not met and (memory.dataset, memory.kind, memory.encryption) != (
            head.name,
            head.kind,
            head.encryption or "",
        ):
            raise Untrusted(
                Distrust.OTHER_DATASET,
                f"the changes told so far are of the dataset {memory.dataset!r} of kind {memory.kind}, the host serves "
                f"{head.name!r} of kind {head.kind}, or encrypts it otherwise; begin anew with another state",
            )
        if memory.seen is not None and head.order < memory.seen and (head.trust or not memory.pins.key_set):
            self._warn(
                f"the host serves version {head.version} of epoch {head.epoch}, older than version {memory.seen[1]} of epoch "
                f"{memory.seen[0]} that was seen before; it is passed over. A cache may lag behind"
            )
            return memory, False
        pins = Keeper(key_sets(self._fetcher, Patience), None if met else memory.pins, self._trusting.trust).accept(
            head, answer.data
        )
        if memory.seen is not None and memory.seen[:2] == head.order[:2] and memory.seen_as != identity(head):
            raise Untrusted(
                Distrust.FORK,
                f"the host serves another version {head.version} of {head.name!r} than the one seen before: history was "
                "forked. Ask the publisher, or begin anew with another state",
            )
        if met and head.expires is not None and int(self._now()) > head.expires and not self._trusting.allow_expired:
            raise Untrusted(
                Distrust.EXPIRED, f"HEAD of {head.name!r} is expired: whoever serves it may hold back newer ones"
            )
        if met:
            self._tell_whom(pins)
        known = msgspec.structs.replace(
            memory,
            dataset=head.name,
            kind=head.kind,
            source=where(self._address),
            encryption=head.encryption or "",
            pins=pins,
            seen=head.order,
            seen_as=identity(head),
            verified=verified,
        )
        return known, True

    def _tell_whom(self, pins: Pins) -> None:
        """Say at first contact whom that trusts, where nobody said it before."""
        if not pins.key_set:
            self._warn("not signed: whoever can write to the host, or stands between, can change the data")
        elif not pins.given:
            roots = " ".join(map(str, parse_key_set(pins.key_set)[0].roots))
            self._warn(
                f"trusts the key that it met first: {roots}. Compare it with `publisher key show`, or give the right one with "
                "--trust"
            )

    def transition(self, since: Position | None, schema: bytes, parts: Parts = WHOLE) -> Transition:
        """What leads from a position to the HEAD that was looked at last, opened up to its first records.

        `schema` is that of a table at `since`, or empty; `parts` are those that changes are told of. All records are told
        where diffs do not lead there, or where the schema changed so that records mean something else though no diff
        names them.
        """
        assert self._newest is not None
        head, cipher = self._newest
        transition = Transition(self._fetcher, cipher, head, self._values, self._damaged, parts)
        if since is None or since[0] != head.epoch or not transition.open_diffs(since, schema):
            transition.open_all()
        return transition


class Transition:
    """One transition to the version of a HEAD. Its batches end with a commit; whoever stops before that closes it.

    Diffs that turn out to be damaged are noted in `damaged`, for the next try.
    """

    def __init__(
        self, fetcher: Fetcher, cipher: Cipher | None, head: Head, values: Values, damaged: set[bytes], parts: Parts
    ) -> None:
        self.position: Position = (head.epoch, head.version)
        self.since: Position | None = None
        self.schema = b""
        """The schema of a table at `position`, as its record."""
        self._head = head
        self._values = values
        self._damaged = damaged
        self._within = ranges_of(head.kind, parts) if parts else None
        self._stack = ExitStack()
        pool = ThreadPoolExecutor(THREADS if fetcher.is_local else CONNECTIONS)
        self._stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        self._reader = Reader(fetcher, pool, cipher=cipher)
        self._reader.patience = None if fetcher.is_local else Patience()
        self._runs: Iterator[Run] = iter(())
        self._form: Form = form_of("bytes")

    def close(self) -> None:
        """Stop fetching."""
        self._stack.close()

    def open_diffs(self, since: Position, schema: bytes) -> bool:
        """Whether diffs lead here from a version of the same epoch. Raises FetchError, Invalid."""
        head = self._head
        with self._noting():
            listed = read_diffs(self._reader, head, since, without=self._damaged)
            way = route(since[1], head.version, listed) if since[1] <= head.version else None
            if way is None:
                return False
            runs = self._reader.merged([(DIFFS, diff.tree) for diff in way], self._within)
            first = next(runs, ([], []))
            self.schema = b""
            if head.kind == "table":
                touched = first[0][:1] == [SCHEMA_KEY]
                self.schema = self._whole(first) if touched else schema or self._first_schema(listed)
                if touched and not (schema and keeps_rows(decode_schema(schema), decode_schema(self.schema))):
                    return False
        self.since = since
        self._begin(first, runs)
        return True

    def open_all(self) -> None:
        """Let all records be told. Raises FetchError, Invalid."""
        head = self._head
        with self._noting():
            listed = read_diffs(self._reader, head, None, without=self._damaged, from_snapshot=True)
            way = route(head.snapshot_version, head.version, listed)
            if way is None:
                raise Invalid("HEAD and its log name no way from the snapshot to HEAD's version")
            trees = [(CHUNKS, head.snapshot), *((DIFFS, diff.tree) for diff in way)]
            runs = live(self._reader.merged(trees))
            first = next(runs, ([], []))
            if head.kind == "table" and first[0]:
                if first[0][0] != SCHEMA_KEY:
                    raise Invalid("the dataset has rows, but no schema")
                self.schema = self._whole(first)
        self.since = None
        self._begin(first, runs)

    def _begin(self, first: Run, runs: Iterator[Run]) -> None:
        self._form = form_of(self._head.kind, decode_schema(self.schema) if self.schema else None)
        self._runs = chain([first], runs)

    def _whole(self, run: Run) -> bytes:
        """The schema's record, which a run begins with."""
        if run[1][0] is None:
            raise Invalid("the dataset deletes its schema")
        return self._reader.whole(run[0][0], run[1][0])

    def _first_schema(self, listed: Sequence[Diff]) -> bytes:
        """The schema of HEAD's version, from the first leaves of the snapshot and of the diffs after it."""
        head = self._head
        way = route(head.snapshot_version, head.version, listed)
        if way is None:
            listed = read_diffs(self._reader, head, None, without=self._damaged, from_snapshot=True)
            way = route(head.snapshot_version, head.version, listed) or []
        trees = [(CHUNKS, head.snapshot), *((DIFFS, diff.tree) for diff in way)]
        for area, tree in reversed(trees):
            run = self._reader.leaf(area, next(self._reader.leaves(area, tree)))
            if run[0][:1] == [SCHEMA_KEY]:
                return self._whole(run)
        return b""

    def batches(self) -> Iterator[list[Event]]:
        """The events, some at a time; "commit" comes last. Raises FetchError, Invalid: then nothing is committed."""
        ends = self.since, self.position
        if self.since is None:
            yield [Event("reset", *ends)]
        records = checksum = 0
        with self._noting():
            for keys, values in bounded(self._runs):
                hashes = record_hashes(keys, values) if self.since is None or self._values != "all" else []
                records += len(keys)
                checksum += sum_hashes(hashes) if self.since is None else 0
                start = int(self._head.kind == "table" and keys[:1] == [SCHEMA_KEY])
                for n in range(start, len(keys), BATCH):
                    part = slice(n, n + BATCH)
                    yield self._events(keys[part], values[part], hashes[part])
        if self.since is None and (checksum % MODULUS, records) != (self._head.checksum, self._head.records):
            raise ChecksumMismatch(
                f"version {self._head.version} as served does not have the checksum that HEAD promises; it was not committed. "
                "Ask the publisher to run a check"
            )
        yield [Event("commit", *ends)]

    def _events(self, keys: list[bytes], values: list[Value], hashes: list[Hash | None]) -> list[Event]:
        old = None if self.since is None else UNKNOWN
        news = self._new_values(keys, values, hashes)
        ends = self.since, self.position
        return [
            Event("change", *ends, key, old, new) for key, new in zip(self._form.decode_keys(keys), news, strict=True)
        ]

    def _new_values(self, keys: list[bytes], values: list[Value], hashes: list[Hash | None]) -> list[Any]:
        """Values as programs see them: None where deleted, Omitted where not asked for."""
        whole: dict[int, bytes] = {}
        found: list[Any] = [None] * len(keys)
        for n, value in enumerate(values):
            if isinstance(value, bytes) and self._values != "none":
                whole[n] = value
            elif isinstance(value, Large) and self._values == "all":
                whole[n] = self._reader.whole(keys[n], value)
            elif value is not None:
                digest = hashes[n]
                assert digest is not None
                found[n] = self._omitted(value, digest)
        decoded = self._form.decode_values([keys[n] for n in whole], list(whole.values()))
        for n, value in zip(whole, decoded, strict=True):
            found[n] = value
        return found

    def _omitted(self, value: bytes | Large, digest: Hash) -> Omitted:
        size = len(value) if isinstance(value, bytes) else value.size
        if self._head.kind != "files":
            return Omitted(size, digest)
        return Omitted(size - 1, digest, type_name(value[:1]) if isinstance(value, bytes) else None)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        """Note the diff that is damaged or not there, and stop fetching, where that goes wrong."""
        try:
            yield
        except BaseException as error:
            self.close()
            diff = error.diff if isinstance(error, (Corrupt, NotFound, Withheld)) else None
            if diff is None or diff in self._damaged or len(self._damaged) >= MOST_DAMAGED:
                raise
            self._damaged.add(diff)
            raise Again(str(error)) from error


class Again(HeadwaterError):
    """A diff is damaged or missing: the transition is to be begun again, by another way."""


def keeps_rows(old: Schema, new: Schema) -> bool:
    """Whether rows that no diff names mean what they meant: tables have the same key, and only more columns at the end."""
    tables = {table.name: table for table in new}
    return all(_begins_with(tables[table.name], table) for table in old if table.name in tables)


def _begins_with(new: Table, old: Table) -> bool:
    names = [column.name for column in new.columns]
    return new.key == old.key and names[: len(old.columns)] == [column.name for column in old.columns]
