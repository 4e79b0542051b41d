"""One version after another, whoever made the changes: levels of diffs, snapshot, log, and the swap of HEAD."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from publisher.published import Published, read_head
from puller.clock import uptime
from puller.errors import ChecksumMismatch, Conflict, HeadwaterError, Invalid, NotFound, Unavailable, UsageError
from puller.stores.base import SUPERSEDED, Store, Token, Unclear
from puller.wire import nodes
from puller.wire.cipher import Cipher, sealed
from puller.wire.codec import CHUNKS, DIFFS, Ref
from puller.wire.head import Head, archive_path, is_name, parse_head
from puller.wire.links import of_log
from puller.wire.nodes import Diff, Log, Tree
from puller.wire.strict import MAX_TIME

INTERVAL = 30
SWAPS = 8
"""How often a swap of HEAD is sent that did not arrive."""
GRACE = 24 * 3600
"""Seconds for which garbage collection keeps a file that nothing names: above every cache's lifetime."""
LONGEST = GRACE // 2
"""Seconds after which a publish gives up: what it put first may be collected soon."""


@dataclass(frozen=True)
class Next:
    """A version that is ready: all that its HEAD names was put. `diffs` are those made for it, the narrowest first."""

    head: Head
    log: Log
    filed: Log
    """What the file of the log says: HEAD may list diffs beyond it."""
    diffs: list[Diff]
    carried: bool
    """Whether it has a snapshot of its own."""


def follow(
    was: Published,
    diff: Diff,
    checksum: int,
    records: int,
    *,
    interval: int | None = None,
    keep: int | None = None,
    now: Callable[[], float] = time.time,
) -> Next:
    """Make the version that one more diff leads to; `checksum` and `records` are those of its state.

    Raises ChecksumMismatch where a snapshot was due, and what it holds has another checksum.
    """
    from publisher.diffs import choose_listed, widen
    from publisher.history import grow
    from publisher.history import is_due as is_log_due
    from publisher.retain import retained
    from publisher.snapshots import carry, is_due

    head, store, pool = was.head, was.store, was.reader.pool
    chunks, diffs = was.sink(CHUNKS), was.sink(DIFFS)
    chain = [*was.chain, diff]
    snapshot = (head.snapshot_version, head.snapshot)
    carried = is_due(was.reader, head.snapshot, chain, was.sizes)
    if carried:
        tree, found = carry(was.reader, head.snapshot, chain, chunks, pool)
        if found != checksum:
            raise ChecksumMismatch(
                f"the records in {store.where} do not have the checksum that HEAD and the changes give; nothing was "
                "published. Publish the whole state to a new folder"
            )
        snapshot = (diff.b, tree)
    wide = widen(diff, snapshot[1].bytes, [*was.log.diffs, *was.head.diffs], was.reader, diffs, pool)
    new = [diff] if wide is None else [diff, wide]

    def put(part: Log) -> Ref:
        return diffs.put(nodes.encode_log(part), of_log(part))

    log, filed, ref = Log([*was.log.diffs, *new], was.log.segments), was.filed, head.log
    listed = choose_listed(log.diffs)
    made = _next_head(was, checksum, records, snapshot, listed, ref, (interval, keep), now)
    if is_log_due(log, filed, made.diffs, alone=len(new) == 1 and not carried):
        filed = log = grow(retained(log, was, [] if carried else was.chain, now()), put)
        listed, ref = choose_listed(log.diffs), put(log)
        made = _next_head(was, checksum, records, snapshot, listed, ref, (interval, keep), now)
    return Next(made, log, filed, new, carried)


def restart(
    was: Published,
    snapshot: Tree,
    checksum: int,
    records: int,
    *,
    interval: int | None = None,
    keep: int | None = None,
    now: Callable[[], float] = time.time,
) -> Next:
    """Make the version that holds just a snapshot, and that no diff leads to."""
    at = (was.head.version + 1, snapshot)
    made = _next_head(was, checksum, records, at, [], None, (interval, keep), now)
    return Next(made, Log([], []), Log([], []), [], carried=True)


def swap(was: Published, new: Next) -> Published:
    """Archive HEAD and replace it durably by that of the next version, which is returned as what is published now.

    Raises Conflict, and changes nothing, if HEAD is not what it was any more, and HeadwaterError if it was set back to an
    earlier version, or if it was read too long ago.
    """
    head, store = was.head, was.store
    check_in_time(store, was.began)
    store.flush()
    path = archive_path(head.epoch, head.version)
    if not store.create(path, was.data):  # a HEAD that was never superseded has no archived copy, but after a crash
        check_newest(was)
        archived = parse_head(store.get(path))
        if archived.publish_id != head.publish_id:
            raise HeadwaterError(
                f"{path} in {store.where} is not the HEAD that stands there; nothing was published. "
                "Two histories were mixed in this folder"
            )
    data, token = place(store, was.token, new.head, was.sign(new.head), was.began)
    if was.signing is None and was.keyring is None:
        from publisher.signing import note_unsigned

        note_unsigned(store, head.name)
    head = parse_head(data)
    head = head if was.cipher is None else was.cipher.unseal(head)
    return was.succeeded(head, data, token, new)


def check_in_time(store: Store, began: float) -> None:
    """Raise HeadwaterError if what was put since `began`, by `uptime`, may be collected before HEAD names it."""
    if _is_late(began):
        raise HeadwaterError(
            f"publishing to {store.where} took more than {LONGEST // 3600} hours, so files that were written first may be "
            "collected as garbage; nothing was published. Publish again"
        )


def _is_late(began: float) -> bool:
    return uptime() - began > LONGEST


def place(
    store: Store,
    expected: Token,
    head: Head,
    data: bytes,
    began: float,
    *,
    anew: bool = False,
    sleep: Callable[[float], object] = time.sleep,
) -> tuple[bytes, Token]:
    """Make `head`, whose bytes are `data`, the newest HEAD, where `expected` still stands for the one before it.

    An unclear outcome is resolved by reading. Returns the bytes of the HEAD that stands for the version now, which may
    have been signed anew, and their token: SUPERSEDED, if a later version came already. Raises Conflict if another
    publisher came first; Unclear if it could not be found out. Where the version is there already and its HEAD is written
    `anew`, nothing but the very bytes counts as ours. Before each attempt it is looked whether it is still time, as
    `check_in_time` does: the machine may have slept meanwhile.
    """
    check_in_time(store, began)
    for attempt in range(SWAPS):
        try:
            return data, store.swap_head(expected, data, head.time)
        except Unclear as error:
            try:
                found = _resolve(store, expected, head, data, anew=anew)
            except Unavailable as silent:
                raise _unknown(store, head, silent) from error
            if found is not None:
                return found
            last = error
        sleep(0.05 * 2**attempt)
        if _is_late(began):
            break
    raise _unknown(store, head, last) from last


def _resolve(store: Store, expected: Token, head: Head, data: bytes, *, anew: bool) -> tuple[bytes, Token] | None:
    """What became of a swap that `head` was sent with, as in `place`; None if it did not arrive, and may be sent again."""
    newest, read, token = read_head(store)
    if token == expected:
        return None
    if newest is None:
        raise HeadwaterError(f"HEAD in {store.where} is gone; version {head.version} may have been published before")
    at, ours = (newest.epoch, newest.version), (head.epoch, head.version)
    if at <= ours:
        if at == ours and (read == data if anew else newest.publish_id == head.publish_id):
            return read, token
        raise Conflict(f"another publisher wrote to {store.where} in the meantime")
    path = archive_path(*ours)
    try:
        left = store.get(path)
    except NotFound as error:
        raise HeadwaterError(
            f"it cannot be told whose version {head.version} was published to {store.where}: there are later ones, and {path} "
            "is gone. Look at what is published before you publish again"
        ) from error
    if left != data if anew else parse_head(left).publish_id != head.publish_id:
        raise Conflict(f"other publishers wrote to {store.where} in the meantime")
    return data, SUPERSEDED


def _unknown(store: Store, head: Head, error: HeadwaterError) -> Unclear:
    return Unclear(
        f"whether version {head.version} was published to {store.where} is not known ({error}). Publish again: it is found out "
        "then, and nothing is published twice"
    )


def check_newest(was: Published) -> None:
    """Raise HeadwaterError if HEAD is not the newest version that ever was: a second history would begin at it."""
    store, epoch, version = was.store, was.head.epoch, was.head.version
    path = archive_path(epoch, version + 1)
    try:
        store.get(path)
    except NotFound:
        return
    if store.read_head()[1] != was.token:
        raise Conflict(f"somebody else published to {store.where} in the meantime")
    newest = version + 1
    with contextlib.suppress(NotFound):
        while store.get(archive_path(epoch, newest + 1)):
            newest += 1
    raise HeadwaterError(
        f"HEAD in {store.where} was set back to version {version}, but version {newest} was published already; nothing was "
        f"published. Copy {archive_path(epoch, newest)} to HEAD, and publish again; where it names files that are lost, "
        "`publisher restart` begins a new epoch"
    )


def first_head(
    name: str,
    kind: str,
    tree: Tree,
    checksum: int,
    records: int,
    interval: int,
    now: int,
    cipher: Cipher | None,
    keep: int | None = None,
) -> Head:
    """The HEAD of version 1."""
    head = Head(
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
        publish_id=os.urandom(16).hex(),
        keep=keep,
    )
    return sealed(head, cipher)


def lifetime(head: Head) -> int | None:
    """For how many seconds a HEAD was good when it was written; None where it does not expire."""
    return None if head.expires is None else max(1, head.expires - head.time)


def expiry(time: int, seconds: int | None) -> int | None:
    """When a HEAD of `time` expires that is to be good for so many seconds."""
    return None if seconds is None else min(time + seconds, MAX_TIME)


def check_keep(keep: float | None) -> None:
    """Raise UsageError for a time to keep superseded versions that garbage collection cannot keep to."""
    if keep is not None and keep < GRACE:
        raise UsageError(
            f"caches may serve a superseded HEAD for hours, and pullers take their time: keep versions for at least "
            f"{GRACE // 3600} hours"
        )


def check_name(name: str) -> None:
    """Raise UsageError for what cannot name a dataset."""
    if not is_name(name):
        raise UsageError(
            f"{name!r} cannot name a dataset: use up to 64 letters, digits, '.', '_' and '-', beginning with a letter or "
            "digit (--name)"
        )


def damaged(store: Store, error: HeadwaterError) -> Invalid:
    """The error to raise where a file of the dataset is damaged or missing."""
    return Invalid(
        f"the dataset in {store.where} is damaged: {error}; nothing was published. Restore that file from a copy (a "
        "mirror or a backup has it under the same name), or publish to a new folder"
    )


def _next_head(
    was: Published,
    checksum: int,
    records: int,
    snapshot: tuple[int, Tree],
    diffs: list[Diff],
    log: Ref | None,
    settings: tuple[int | None, int | None],
    now: Callable[[], float],
) -> Head:
    from publisher.diffs import fit

    head = was.head
    time = max(int(now()), head.time + 1)
    made = msgspec.structs.replace(
        head,
        version=head.version + 1,
        time=time,
        expires=expiry(time, lifetime(head)),
        checksum=checksum,
        records=records,
        snapshot_version=snapshot[0],
        snapshot=snapshot[1],
        diffs=diffs,
        log=log,
        interval=settings[0] or head.interval,
        keep=settings[1] or head.keep,
        publish_id=os.urandom(16).hex(),
    )
    return fit(sealed(made, was.cipher))
