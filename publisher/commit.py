"""One version after another, whoever made the changes: levels of diffs, snapshot, log, and the swap of HEAD."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from publisher.build import Sink
from publisher.published import Published, uptime
from publisher.stores.base import Store
from puller.errors import ChecksumMismatch, Conflict, HeadwaterError, Invalid, NotFound, UsageError
from puller.wire import nodes
from puller.wire.codec import CHUNKS, DIFFS, Ref
from puller.wire.head import Head, archive_path, format_head, is_name, parse_head
from puller.wire.nodes import Diff, Log, Tree

INTERVAL = 30
GRACE = 24 * 3600
"""Seconds for which garbage collection keeps a file that nothing names: above every cache's lifetime."""
LONGEST = GRACE // 2
"""Seconds after which a publish gives up: what it put first may be collected soon."""


@dataclass(frozen=True)
class Next:
    """A version that is ready: all that its HEAD names was put. `diffs` are those made for it, the narrowest first."""

    head: Head
    log: Log
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
    from publisher.retain import retained
    from publisher.snapshots import carry, is_due

    head, store, pool = was.head, was.store, was.reader.pool
    chunks, diffs = Sink(store, CHUNKS), Sink(store, DIFFS)
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
    new = [diff, *widen(diff.b, diff, snapshot[1].bytes, was.nearby, was.reader, diffs, pool)]
    log = grow(retained(was, [] if carried else was.chain, now()), new, lambda part: diffs.put(nodes.encode_log(part)))
    listed = choose_listed(log.diffs)
    ref = diffs.put(nodes.encode_log(log)) if len(log.diffs) > len(listed) or log.segments else None
    made = _next_head(head, checksum, records, snapshot, listed, ref, (interval, keep), now)
    return Next(made, log, new, carried)


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
    made = _next_head(was.head, checksum, records, at, [], None, (interval, keep), now)
    return Next(made, Log([], []), [], carried=True)


def swap(was: Published, new: Next) -> Published:
    """Archive HEAD and replace it durably by that of the next version, which is returned as what is published now.

    Raises Conflict, and changes nothing, if HEAD is not what it was any more, and HeadwaterError if it was set back to an
    earlier version, or if it was read too long ago.
    """
    head, store = was.head, was.store
    check_in_time(store, was.began)
    _check_newest(was)
    store.flush()
    path = archive_path(head.epoch, head.version)
    if not store.create(path, was.data):
        archived = parse_head(store.get(path))
        if archived.publish_id != head.publish_id:
            raise HeadwaterError(
                f"{path} in {store.where} is not the HEAD that stands there; nothing was published. "
                "Two histories were mixed in this folder"
            )
    data = format_head(new.head)
    token = store.swap_head(was.token, data, new.head.time)
    return was.succeeded(new.head, data, token, new.log, new.diffs)


def check_in_time(store: Store, began: float) -> None:
    """Raise HeadwaterError if what was put since `began`, by `uptime`, may be collected before HEAD names it."""
    if uptime() - began > LONGEST:
        raise HeadwaterError(
            f"publishing to {store.where} took more than {LONGEST // 3600} hours, so files that were written first may be "
            "collected as garbage; nothing was published. Publish again"
        )


def _check_newest(was: Published) -> None:
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
        f"published. Copy {archive_path(epoch, newest)} to HEAD, and publish again"
    )


def first_head(
    name: str, kind: str, tree: Tree, checksum: int, records: int, interval: int, now: int, keep: int | None = None
) -> Head:
    """The HEAD of version 1."""
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
        publish_id=os.urandom(16).hex(),
        keep=keep,
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
    head: Head,
    checksum: int,
    records: int,
    snapshot: tuple[int, Tree],
    diffs: list[Diff],
    log: Ref | None,
    settings: tuple[int | None, int | None],
    now: Callable[[], float],
) -> Head:
    from publisher.diffs import fit

    return fit(
        msgspec.structs.replace(
            head,
            version=head.version + 1,
            time=max(int(now()), head.time + 1),
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
    )
