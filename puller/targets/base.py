"""What a target is: a place that holds one state of a dataset and moves to the next one in one step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import msgspec

from puller.errors import Invalid, LocalEdits, Moved
from puller.trust import Pins, Staleness, staleness
from puller.wire.checksum import MODULUS, Hash, run_sum
from puller.wire.nodes import Held, Large, Old, Run, Value, has_large
from puller.wire.rows import MAX_ROW, MAX_SCHEMA

STATE_FORMAT = 1


class State(msgspec.Struct, frozen=True):
    """What a target remembers beside the data, stored with it atomically.

    The position (`epoch`, `version`, `checksum`) says what it holds; `seen` is the newest HEAD that was ever
    accepted, as (epoch, version, time). `etag` and `read` (Unix seconds of the last unconditional answer)
    belong to polling, `time` is the version's publish time and `pulled` when it was applied.
    """

    dataset: str
    kind: str
    source: str
    epoch: int
    version: int
    checksum: str
    records: int
    time: int
    publish_id: str
    seen: tuple[int, int, int]
    etag: str | None
    read: int
    pulled: int
    interval: int = 30
    snapshot: str = ""
    """SHA-256 of the snapshot's root in the HEAD that the version came with, where it was noted."""
    pins: Pins = Pins()
    """Whom the copy trusts (SPEC 7.5)."""
    seen_as: str = ""
    """What HEADs of the seen epoch and version must have in common (`puller.trust.identity`)."""
    verified: str = ""
    """SHA-256 of the bytes of the seen HEAD: the same bytes need not be verified again."""
    expires: int | None = None
    """When the seen HEAD expires, in Unix seconds."""
    behind: int | None = None
    """Since when the host serves an older HEAD than the seen one, in Unix seconds; None: it does not."""
    ranges: bytes = b""
    """Checksums of ranges of what is held (`puller.ranges`), by which an edit is found again."""
    encryption: str = ""
    """The id of the secret of an encrypted dataset (SPEC 11.1); empty for any other."""
    parts: tuple[bytes, ...] = ()
    """Prefixes of the keys that are held (`puller.parts`); none: the whole dataset. `checksum` and `records` are theirs."""
    cuts: dict[str, tuple[int, str]] = {}
    """Of chunks of the snapshot that lie only in part within `parts`, by their SHA-256: what of them does, as number of
    records and checksum."""
    rests: dict[str, tuple[int, int]] = {}
    """Addresses that are to be left alone, and until when (`puller.mirrors.Health`)."""
    format: int = STATE_FORMAT

    def staleness(self, now: int, most: int | None) -> tuple[Staleness, int] | None:
        """Why what is held is stale `now`, and since when, as `puller.trust.staleness`; `most` is of --max-staleness."""
        return staleness(now, self.seen[2], expires=self.expires, behind=self.behind, interval=self.interval, most=most)

    @property
    def position(self) -> tuple[int, int]:
        """Epoch and version of what is held."""
        return self.epoch, self.version

    @property
    def mark(self) -> tuple[tuple[int, int], tuple[int, int, int], Pins, tuple[bytes, ...]]:
        """What no other puller may have moved between a reading of the state and its replacement."""
        return self.position, self.seen, self.pins, self.parts


class Assemble(Protocol):
    """Gives the bytes of a large value, part by part; what `held` gives need not be fetched.

    `old` gives bytes of what is held under the key, which a patch saves fetching. Raises Corrupt at the end if they are
    not what the value declares, or Stale where `held` or `old` may be the reason: use nothing before that.
    """

    def __call__(
        self, key: bytes, value: Large, held: Held | None = None, old: Old | None = None, /
    ) -> Iterator[bytes]: ...


@dataclass(frozen=True)
class Opening:
    """How a writer is to work.

    `replace`: the stream holds the whole state, and what it does not name goes. `overwrite`: local edits may be
    lost. `adopt`: data that is not ours may be overwritten. `time`: the version's publish time. `large` gives
    the bytes of a large value.
    """

    kind: str
    replace: bool
    time: int
    large: Assemble
    overwrite: bool = False
    adopt: bool = False
    parts: tuple[bytes, ...] = ()
    """The parts that the target is to hold after the step (`State.parts`)."""
    expected: tuple[int, int] | None = None
    """The position that the target must hold for the step to be right."""
    parts_before: tuple[bytes, ...] = ()
    """The parts that it must hold."""
    seen: tuple[int, int, int] | None = None
    """The newest HEAD that the target must know of, where that matters: another puller may have seen a newer one."""


def check_held(state: State | None, opening: Opening, where: str) -> None:
    """Raise Moved if a target holds or knows another version than the step starts from; call it under the target's lock."""
    seen = None if state is None or opening.seen is None else state.seen
    held = (None, ()) if state is None else (state.position, state.parts)
    if (*held, seen) != (opening.expected, opening.parts_before, opening.seen):
        raise Moved(f"another puller changed {where} in the meantime; nothing was written")


def whole(opening: Opening, keys: list[bytes], values: list[Value]) -> list[bytes | None]:
    """The bytes of values, assembled where they are large; None for deleted ones. Raises Invalid for a row over its limit."""
    if not has_large(values):
        return values  # type: ignore[return-value]
    return [_whole(opening, key, value) for key, value in zip(keys, values, strict=True)]


def _whole(opening: Opening, key: bytes, value: Value) -> bytes | None:
    if not isinstance(value, Large):
        return value
    if opening.kind == "table" and value.size > (MAX_ROW if key else MAX_SCHEMA):
        raise Invalid("a row is larger than 256 MiB, or the schema than 16 MiB")
    return b"".join(opening.large(key, value))


@dataclass
class Changes:
    """What a commit did: numbers of records, and names of what was overwritten though it was not ours."""

    written: int = 0
    deleted: int = 0
    overwritten: list[str] = field(default_factory=list)


def count(changes: Changes, keys: list[bytes], values: list[Value], *, opening: Opening) -> None:
    """Count a run into `changes`; the schema of a table is no row."""
    deleted = 0 if opening.replace else values.count(None)
    schema = int(opening.kind == "table" and bool(keys) and not keys[0])
    changes.deleted += deleted
    changes.written += len(keys) - deleted - schema


class Writer(Protocol):
    """One step of a target from a state to the next.

    Runs come in key order, each key once. Nothing of them shows before `commit`, which applies all of them and
    the new state at once; leaving the writer's context without it leaves the target as it was.
    """

    def put(self, keys: list[bytes], values: list[Value], hashes: list[Hash | None]) -> list[Hash | None]:
        """Take a run, with the hashes of its records; a value of None deletes.

        Returns the record hashes of what was held under its keys (None: nothing); all None where `replace` is set.
        """
        ...

    def held(self) -> Iterator[tuple[list[bytes], list[Hash]]]:
        """The keys of all that is held, in order, with the hashes of their records; a table's schema first, alone.

        What is edited counts as it is now where the target reads its data for it, or is told to `overwrite`; a hash is
        what `put` would return. Raises LocalEdits for what no dataset can hold. Not where `replace` is set.
        """
        ...

    def values(self, keys: Sequence[bytes]) -> list[Value]:
        """The values that are held under keys, as dictionary for a patch: None where absent or large.

        Only where the target `gives_values`; what it gives may have been edited, and is checked by its hash.
        """
        ...

    def overwrites(self) -> list[str]:
        """Names of what `commit` would overwrite though it was edited here, or is not ours. Call it once, at the end."""
        ...

    def commit(self, state: State) -> Changes:
        """Apply what was taken. Raises Refused for local edits or foreign data in the way, and keeps everything."""
        ...


@dataclass
class Check:
    """What `verify` found: the checksum and number of records of what is there, and what is known to differ."""

    checksum: int
    records: int
    differing: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unread: str = ""
    """Why not all that is there could be read, where that is so: then checksum and number are of the rest."""

    def equals(self, state: State) -> bool:
        """Whether what is there is what was pulled."""
        same = (f"{self.checksum:032x}", self.records) == (state.checksum, state.records)
        return same and not self.differing and not self.missing


def check_all(records: Iterable[Run], missing: list[str]) -> Check:
    """What reading all records finds; nothing is read where something is `missing`, by its name."""
    check = Check(0, 0, missing=missing, unread="not all of it is there" if missing else "")
    try:
        for keys, values in records if not missing else ():
            check.records += len(keys)
            check.checksum = (check.checksum + run_sum(keys, values)) % MODULUS
    except LocalEdits as error:
        check.differing += error.names
        check.unread = f"it cannot be read to its end ({error.__cause__ or error})"
    return check


class Target(Protocol):
    """A place for one dataset. The constructor touches nothing; a target is used by one process at a time."""

    kinds: tuple[str, ...]
    where: str
    gives_values: bool
    """Whether its writer can look up the values of keys in any order."""

    @property
    def partial(self) -> str | None:
        """A folder, not there until it is needed, for files of a pull under way; None where none outlive the process."""
        ...

    def state(self) -> State | None:
        """What is held, or None if nothing was ever pulled here. Finishes what a killed process left half done."""
        ...

    def is_there(self) -> bool:
        """Whether something of what is held is there at all; looks at as little as will do."""
        ...

    def writer(self, opening: Opening) -> AbstractContextManager[Writer]:
        """Begin a step. Raises NotOurs if there is data that headwater did not put there, unless told otherwise."""
        ...

    def remember(self, state: State, was: State) -> None:
        """Store `state` in the place of `was`, if that has still the mark of what is held."""
        ...

    def records(self) -> Iterator[Run]:
        """The exact records of what is there now, read from the data itself."""
        ...

    def check(self) -> Check:
        """Read everything that is there and compare it with what was pulled."""
        ...

    def close(self) -> None:
        """Let go of the target."""
        ...


class FollowerLock(Protocol):
    """Keeps other followers of a target away."""

    def is_there(self) -> bool:
        """Whether it still keeps them away."""
        ...

    def close(self) -> None:
        """Let go."""
        ...


@runtime_checkable
class FollowedTarget(Target, Protocol):
    """A target with nothing beside it that could be locked (`partial` is None), so that it has a lock of its own."""

    def lock_following(self) -> FollowerLock:
        """Keep other followers away, also after the target was closed. Raises TargetError where there is one."""
        ...


class Reading(Protocol):
    """One state of a target, held still while it is read."""

    @property
    def state(self) -> State | None:
        """What is held; None where nothing was pulled yet."""
        ...

    @property
    def lasting(self) -> bool:
        """Whether it can still be read after the target moved on. Else reading raises Moved then."""
        ...

    def get(self, key: bytes) -> bytes | None:
        """The exact value under a key, or None; of a table, the schema's too."""
        ...

    def runs(self, lower: bytes = b"", upper: bytes | None = None) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """The exact records whose keys are in [lower, upper), in key order, a bounded number at a time."""
        ...


@runtime_checkable
class ReadableTarget(Target, Protocol):
    """A target that programs can read by key, from any number of threads, also while another process or thread pulls."""

    def reading(self) -> AbstractContextManager[Reading]:
        """Hold a state still: the newest that is complete. What it takes up is let go at the end."""
        ...
