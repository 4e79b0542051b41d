"""One pull: read HEAD, plan, fetch, check, apply in one step. This is where the parts meet."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from puller.errors import (
    ChecksumMismatch,
    Corrupt,
    Distrust,
    FetchError,
    HeadwaterError,
    Invalid,
    LocalEdits,
    Missing,
    Moved,
    NotFound,
    Refused,
    SchemaChanged,
    SecretError,
    Stale,
    Unavailable,
    Untrusted,
    UsageError,
    Withheld,
)
from puller.fetch import CONNECTIONS, THREADS, Answer, Fetcher, Patience, shown, where
from puller.mirrors import Health
from puller.partial import Partial
from puller.plan import Plan, Reason, Way, is_good, plan, route, starts
from puller.progress import Progress, silent
from puller.ranges import Ranges
from puller.runs import bounded, live
from puller.secret import unlock
from puller.targets.base import Changes, Opening, State, Target, Writer
from puller.tree import Reader
from puller.trust import GetFile, Keeper, Pins, Staleness, identity, staleness
from puller.wire.checksum import Hash, record_hashes
from puller.wire.codec import CHUNKS, DIFFS
from puller.wire.head import MAX_HEAD, Head, archive_path, parse_head
from puller.wire.keyset import MAX_KEY_SET, check_key_set
from puller.wire.nodes import Diff, PatchedLarge, Run, Value, has_large
from puller.wire.note import Key

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
    to go to, of HEAD's epoch (None: the newest), which has to be `epoch` if that is given; `secret`: of
    an encrypted dataset, as a text or the file that it is in (None: where it is otherwise found, see
    `puller.secret.unlock`).

    `trust`: public keys, one of which the dataset's key sets must go back to; `repin`: forget whom the target trusts and
    what it saw, and begin with these keys; `allow_expired`: take an expired HEAD at first contact; `max_staleness`: how
    old the newest HEAD may be, in seconds, before the outcome says that it is stale.
    """

    overwrite: bool = False
    adopt: bool = False
    check: bool = False
    dry_run: bool = False
    version: int | None = None
    epoch: int | None = None
    trust: Sequence[Key] = ()
    repin: bool = False
    allow_expired: bool = False
    max_staleness: int | None = None
    secret: str | None = field(default=None, repr=False)


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

    @property
    def changed(self) -> bool:
        """Whether the target moved."""
        return self.before != self.after


Found = tuple[Head | None, Answer]
"""A HEAD that a host gave (None: not modified since it came with the tag that was sent), and the host's answer."""


def read_heads(address: str, fetcher: Fetcher, etag: str | None) -> list[Found]:
    """HEAD; several where the dataset has mirrors that differ, the newest first. Raises Invalid, FetchError."""
    try:
        answer = fetcher.fetch_head(etag)
    except (NotFound, Withheld) as error:
        what = "there is no dataset at" if isinstance(error, NotFound) else "no dataset can be read at"
        raise type(error)(f"{what} {shown(address)} ({error}); check the address") from error
    found: list[Found] = []
    first: Invalid | None = None
    for one in (answer, *answer.others):
        try:
            found.append((None if one.data is None else parse_head(one.data), one))
        except Invalid as error:
            first = first or error
    if not found and first is not None:
        raise type(first)(f"{shown(address)}: {first}") from first
    return found


def pull(
    address: str,
    fetcher: Fetcher,
    find_target: Callable[[Head | None], Target],
    options: Options,
    *,
    progress: Progress = silent,
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
    fresh = state is None or _must_read(state, options, current) or bool(closed)
    try:
        found = read_heads(address, fetcher, None if fresh or state is None else state.etag)
        if state is None:
            target = find_target(_met_first(found, fetcher, options, patience))
            state = target.state()
        partial = None if target.partial is None else Partial(target.partial)
        with ThreadPoolExecutor(THREADS if fetcher.is_local else CONNECTIONS) as pool:
            try:
                keeping = None if options.dry_run or fetcher.is_local else partial
                puller = _Pull(address, Reader(fetcher, pool, keeping), target, state, options, progress, now)
                puller.closed |= closed
                puller.watch = watch
                puller.patience = patience
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


def _met_first(found: list[Found], fetcher: Fetcher, options: Options, patience: Callable[[], Patience]) -> Head | None:
    """The HEAD by which a target is made, opened: of several the first that is right. Raises Untrusted, SecretError."""
    first: HeadwaterError | None = None
    for head, answer in found:
        try:
            assert head is not None
            assert answer.data is not None
            opened, _ = unlock(head, options.secret)
            if len(found) > 1:
                Keeper(_key_sets(fetcher, patience), None, options.trust).accept(opened, answer.data)
        except (Invalid, SecretError) as error:
            first = first or error
        else:
            return opened
    assert first is not None
    raise first


def _key_sets(fetcher: Fetcher, patience: Callable[[], Patience]) -> GetFile:
    """Gets key sets: one that is missing is waited for, and one that is damaged is asked for again, or elsewhere."""

    def get(path: str) -> bytes:
        def ask() -> bytes:
            return fetcher.fetch(path, MAX_KEY_SET, check_key_set)

        try:
            return ask() if fetcher.is_local else patience().until_there(ask)
        except Corrupt as error:
            raise Untrusted(Distrust.KEY_SET_FORGED, f"{path}: {error}") from error

    return get


def _must_read(state: State, options: Options, now: int) -> bool:
    """Whether HEAD itself is needed, not only whether it changed."""
    unknown = bool(options.trust) and not state.pins.key_set
    return bool(options.version) or options.repin or unknown or not 0 <= now - state.read <= READ_AGAIN


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
        self, keys: list[bytes], hashes: Sequence[Hash | None], before: Sequence[Hash | None], *, anew: bool = False
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
        self.accepted: dict[str, Any] = {}
        """What the state is to remember of the newest HEAD, once it was verified."""
        self.met = False

    def run(self, found: list[Found], fresh: bool) -> Outcome:
        try:
            return self._to_newest(found, fresh)
        except BaseException:
            self._remember_seen()
            raise

    def _to_newest(self, found: list[Found], fresh: bool) -> Outcome:
        """Go to the newest HEAD that is right, or to one that has taken its place where files of it are gone."""
        missing: FetchError | None = None
        head: Head | None = None
        for attempt in range(MOST_ATTEMPTS):
            last = attempt + 1 == MOST_ATTEMPTS
            try:
                head, answer, early = self._choose(found)
                if head is None:
                    return self._not_modified()
                return early or self._by_some_way(head, answer.etag, fresh)
            except Untrusted:
                raise
            except Invalid as error:
                raise missing or error from error
            except Moved:
                if last:
                    raise
                self.state = self.target.state()
            except (Missing, Withheld) as error:
                missing = error
                newer = read_heads(self.address, self.reader.fetcher, None)
                if not last and head is not None and any(new and new.order > head.order for new, _ in newer):
                    found = newer
                elif last or not self._go_on_without(error):
                    raise
        raise AssertionError("unreachable")

    def _choose(self, found: list[Found]) -> tuple[Head | None, Answer, Outcome | None]:
        """The first HEAD that is right, opened, and with it an outcome if it is to be passed over.

        There are several where a dataset has mirrors: one that lies makes room for the next. None: it was not modified.
        """
        first: HeadwaterError | None = None
        for head, answer in found:
            if head is None:
                return None, answer, None
            try:
                if self.state is not None:
                    self._check_same(self.state, head)  # before the secret of something else is asked for
                opened, self.reader.cipher = unlock(head, self.options.secret)
                early = self._accept(opened, answer)
            except (Invalid, SecretError) as error:
                first = first or error
            else:
                if first is not None:
                    self.notes.append(str(first))
                return opened, answer, early
        assert first is not None
        raise first

    def _go_on_without(self, error: FetchError) -> bool:
        """A file is missing, and HEAD is no newer: wait for it, then look for another way; say whether there is any."""
        if self.way is not Way.PATCH and self.reader.patience is None and not self.reader.fetcher.is_local:
            self.reader.patience = self.patience()
            return True
        if self.state is None or not self._close(error):
            return False
        self.notes.append(str(error))
        return True

    def _not_modified(self) -> Outcome:
        """Nothing new: HEAD is the one that was verified before."""
        state = self.state
        assert state is not None
        pins = self._keeper(state).proven(state.pins) if self.options.trust else state.pins
        if not self.options.dry_run and (pins is not state.pins or state.behind is not None):
            state = self._replace(state, pins=pins, behind=None)
        return self._unchanged(state, Reason.CURRENT)

    def _replace(self, state: State, **changes: Any) -> State:
        """Change what the target remembers, unless another puller did that meanwhile."""
        self.state = msgspec.structs.replace(state, **changes)
        self.target.remember(self.state, state)
        return self.state

    def _keeper(self, state: State | None) -> Keeper:
        pins = None if state is None or self.options.repin else state.pins
        return Keeper(_key_sets(self.reader.fetcher, self.patience), pins, self.options.trust)

    def _accept(self, head: Head, answer: Answer) -> Outcome | None:
        """Verify the newest HEAD, and note what is to be remembered of it; an outcome if it is to be passed over.

        Raises Untrusted. What is remembered is stored with the next state, or where that fails, by itself.
        """
        state, options = self.state, self.options
        assert answer.data is not None
        verified = hashlib.sha256(answer.data).hexdigest()
        if state is not None:
            self._check_same(state, head)
            if self._is_older(state, head):
                return self._older(state, head, answer.data)
        if state is not None and state.verified == verified and not (options.trust or options.repin):
            pins = state.pins
        else:
            pins = self._keeper(state).accept(head, answer.data)
        if state is not None:
            self._check_seen(state, head)
        if (state is None or options.repin) and not options.allow_expired and self._is_past(head.expires):
            raise Untrusted(
                Distrust.EXPIRED,
                f"HEAD of {head.name!r} is expired: whoever serves it may hold back newer ones. Take it with --allow-expired",
            )
        self.met = state is None or options.repin or bool(pins.key_set and not state.pins.key_set)
        self.accepted = {
            "pins": pins,
            "seen": head.order,
            "seen_as": identity(head),
            "verified": verified,
            "expires": head.expires,
            "behind": None,
        }
        return None

    def _is_past(self, expires: int | None) -> bool:
        return expires is not None and int(self.now()) > expires

    def _may_go_back(self, state: State) -> bool:
        """Whether the user said that history may be another one. A signed one can tell that itself, by a new epoch."""
        return self.options.repin or (self.options.overwrite and not state.pins.key_set)

    def _is_older(self, state: State, head: Head) -> bool:
        """Whether HEAD is older than the one that was seen, and not refused for being unsigned anyway."""
        unsigned = bool(state.pins.key_set) and not head.trust
        return head.order < state.seen and not self._may_go_back(state) and not unsigned

    def _older(self, state: State, head: Head, data: bytes) -> Outcome:
        """Pass over a HEAD that is older than one seen before: a cache lags behind, or somebody plays old ones back."""
        pins, keeper = state.pins, self._keeper(state)
        if self.options.trust and not pins.key_set:
            keeper.accept(head, data)
        elif self.options.trust:
            pins = keeper.proven(pins)
        really = "run `publisher restart`" if state.pins.key_set else "pull with --overwrite"
        self.notes.append(
            f"the host serves version {head.version} of epoch {head.epoch}, older than version {state.seen[1]} of epoch "
            f"{state.seen[0]} that was seen before; kept what is held. A cache may lag behind; if the dataset was "
            f"really set back, {really}"
        )
        current = int(self.now())
        behind = current if state.behind is None else min(state.behind, current)  # the clock may have been wrong
        if (state.behind != behind or pins is not state.pins) and not self.options.dry_run:
            state = self._replace(state, behind=behind, pins=pins)
        return self._unchanged(state, Reason.OLDER_HEAD)

    def _remember_seen(self) -> None:
        """Remember the newest HEAD though it could not be applied: nobody is to take the copy back before it."""
        was = self.state
        if was is None or not self.accepted or self.options.dry_run or self.accepted["verified"] == was.verified:
            return
        with contextlib.suppress(HeadwaterError, OSError):
            state = self.target.state()
            if state is not None and (state.mark == was.mark or state.seen < self.accepted["seen"]):
                self._replace(state, **self.accepted, etag=None)

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
        version, epoch = self.options.version, self.options.epoch
        if epoch not in (None, newest.epoch):
            raise Refused(
                f"history was restarted: version {version} of epoch {epoch} is not to be had any more, the host is at version "
                f"{newest.version} of epoch {newest.epoch}; nothing was changed. Pull with --overwrite to go there"
            )
        if version is None or version == newest.version:
            return newest
        if version > newest.version:
            raise UsageError(f"there is no version {version} yet; the newest is {newest.version}; nothing was changed")
        path = archive_path(newest.epoch, version)
        try:
            data = self.reader.fetcher.fetch(path, MAX_HEAD)
            wanted = parse_head(data)
        except (NotFound, Withheld) as error:
            raise NotFound(f"version {version} is not kept on the host any more ({error})") from error
        wanted, _ = unlock(wanted, self.options.secret)
        found = (wanted.name, wanted.kind, wanted.encryption, wanted.epoch, wanted.version)
        if found != (newest.name, newest.kind, newest.encryption, newest.epoch, version):
            raise Invalid(f"{path} on the host is not the HEAD of version {version}; nothing was changed")
        self._keeper(self.state).archived(wanted, data, self.accepted["pins"])
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
            self._check_fork(state, head)
            if state.position == (head.epoch, head.version) and Way.NOTHING not in self.closed:
                tag = etag if head is newest else None
                if not self.options.dry_run and (
                    state.etag != tag or fresh or self.accepted["verified"] != state.verified
                ):
                    state = self._remember(state, tag, fresh)
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

    def _check_same(self, state: State, head: Head) -> None:
        """Refuse another dataset; its kind is known once it was opened."""
        if state.dataset != head.name or head.kind not in ("", state.kind):
            raise Untrusted(
                Distrust.OTHER_DATASET,
                f"{self.target.where} holds the dataset {state.dataset!r} of kind {state.kind}, the host serves "
                f"{head.name!r} of kind {head.kind or 'unknown'}; use another target",
            )
        if state.encryption != (head.encryption or ""):
            held, served = (f"encrypted with {id_}" if id_ else "plain" for id_ in (state.encryption, head.encryption))
            raise Untrusted(
                Distrust.OTHER_DATASET,
                f"{self.target.where} holds {head.name!r} as it was published {held}; what the host serves is {served}. Nothing "
                "was changed. Ask the publisher; if that is meant, pull into another target",
            )

    def _check_seen(self, state: State, head: Head) -> None:
        """Refuse another HEAD for the version that was seen, though perhaps never held (SPEC 7.4)."""
        same = state.seen[:2] == head.order[:2] and state.seen_as not in ("", identity(head))
        if same and not self._may_go_back(state):
            raise self._fork(state, head)

    def _check_fork(self, state: State, head: Head) -> None:
        """Refuse another HEAD for the version that is held (SPEC 7.4)."""
        same = state.position == (head.epoch, head.version)
        known = (state.publish_id, state.checksum, state.records, state.snapshot)
        served = (head.publish_id, f"{head.checksum:032x}", head.records, head.snapshot.ref.sha256.hex())
        if same and known != served:
            if not self._may_go_back(state):
                raise self._fork(state, head)
            self.closed |= dict.fromkeys((Way.NOTHING, Way.PATCH, Way.DIFFS), Reason.OVERWRITE)

    def _fork(self, state: State, head: Head) -> Untrusted:
        word = (
            "pull with --repin --trust KEY" if state.pins.key_set else "to take the host's word, pull with --overwrite"
        )
        return Untrusted(
            Distrust.FORK,
            f"the host serves another version {head.version} of {head.name!r} than the one seen before: history was "
            f"forked. Ask the publisher; {word}",
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
            seen=None if state is None else state.seen,
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
            ranges.change([b""], [bytes.fromhex(state.checksum)])
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
            **self.accepted,
            etag=etag if head is newest else None,
            read=now,
            pulled=now,
            interval=head.interval,
            snapshot=head.snapshot.ref.sha256.hex(),
            ranges=ranges.dump(),
            encryption=head.encryption or "",
        )

    def _remember(self, state: State, etag: str | None, fresh: bool) -> State:
        read = int(self.now()) if fresh else state.read
        return self._replace(state, **self.accepted, etag=etag, read=read)

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
            pins=state.pins,
            met=self.met,
            stale=self._stale(state.seen[2], state.expires, state.behind, state.interval),
        )

    def _stale(self, time: int, expires: int | None, behind: int | None, interval: int) -> Staleness | None:
        most = self.options.max_staleness
        return staleness(int(self.now()), time, expires=expires, behind=behind, interval=interval, most=most)

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
            pins=self.accepted["pins"],
            met=self.met,
            stale=self._stale(self.accepted["seen"][2], self.accepted["expires"], None, head.interval),
        )
