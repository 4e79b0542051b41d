"""Publishing an old state again, as a new version; the cost follows what changed since."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from publisher.build import TreeBuilder, make_pool
from publisher.changes import Changed, compare
from publisher.commit import damaged, follow, swap
from publisher.patches import PatchBuilder
from publisher.publish import ATTEMPTS, Outcome
from publisher.published import Published, read_head
from puller.errors import Conflict, Corrupt, Invalid, NotFound, UsageError
from puller.secret import unlock
from puller.stores.base import Store
from puller.tree import walk
from puller.trust import check_head, read_key_set
from puller.wire.codec import DIFFS
from puller.wire.graph import Graph, Node
from puller.wire.head import archive_path, parse_head
from puller.wire.nodes import Diff, Large, Run, Value

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from publisher.keys import Keyring


def revert(
    store: Store,
    version: int,
    *,
    secret: str | None = None,
    keyring: Keyring | None = None,
    now: Callable[[], float] = time.time,
) -> Outcome:
    """Publish the state of an earlier version of HEAD's epoch as the next version, if it differs from HEAD's.

    `secret` is that of an encrypted dataset, `keyring` has the private key of a signed one (None: the user's own keys).
    Raises UsageError for a version that is not below HEAD's; NoKey and SecretError; NotFound if it is not kept any more;
    Invalid where the dataset is damaged; Conflict if others kept publishing first. HEAD is as it was then.
    """
    for _ in range(ATTEMPTS):
        with make_pool(store.threads) as pool:
            try:
                return _revert(store, version, pool, secret, keyring, now)
            except Conflict:
                continue
            except Corrupt as error:
                raise damaged(store, error) from error
    raise Conflict(f"other publishers kept coming first to {store.where}; nothing was published. Try again")


def _revert(
    store: Store,
    version: int,
    pool: ThreadPoolExecutor,
    secret: str | None,
    keyring: Keyring | None,
    now: Callable[[], float],
) -> Outcome:
    head, data, token = read_head(store)
    if head is None:
        raise NotFound(f"there is no dataset at {store.where}")
    if not 0 < version < head.version:
        raise UsageError(f"there is no version {version} before the newest, {head.version}; nothing was published")
    head, cipher = unlock(head, secret)
    was = Published(store, pool, head, data, token, cipher, keyring)
    then = _earlier(was, version)
    outcome = Outcome(head, changed=False)
    if (then.head.checksum, then.head.records) == (head.checksum, head.records):
        return outcome
    _ = was.signing  # raises where the version could not be signed, before anything is written
    builder, patch = TreeBuilder(was.sink(DIFFS), pool), PatchBuilder(store, pool, cipher)
    for changed in compare(*_states(was, then), _same):
        _put_again(was, changed.values)
        builder.add(changed.keys, changed.values)
        patch.change(changed)
        _count(outcome, changed)
    tree = builder.finish()
    diff = Diff(head.version, head.version + 1, tree, patch.beside(tree, None))
    ready = follow(was, diff, then.head.checksum, then.head.records, now=now)
    outcome.head = swap(was, ready).head
    outcome.changed, outcome.snapshot, outcome.written = True, ready.carried, store.written
    return outcome


def _earlier(was: Published, version: int) -> Published:
    """An earlier version, read by its archived HEAD."""
    path = archive_path(was.head.epoch, version)
    try:
        data = was.store.get(path)
    except NotFound as error:
        raise NotFound(f"version {version} is not kept any more ({error}); nothing was published") from error
    head = parse_head(data)
    head = head if was.cipher is None else was.cipher.unseal(head)
    if (head.name, head.kind, head.epoch, head.version) != (was.head.name, was.head.kind, was.head.epoch, version):
        raise Invalid(f"{path} in {was.store.where} is not the HEAD of version {version}; nothing was published")
    if head.trust:
        check_head(head, data, read_key_set(was.store.get, head.trust, head.name).keys)
    return Published(was.store, was.reader.pool, head, data, "", was.cipher)


def _states(was: Published, then: Published) -> tuple[Iterable[Run], Iterable[Run]]:
    """The records of both versions: those that changed between them, as far as diffs tell, or else all."""
    way = was.way(then.head.version, was.head.version)
    if way is None:
        return was.records(), then.records()
    keys = [key for run in was.reader.merged([(DIFFS, diff.tree) for diff in way]) for key in run[0]]
    return was.records_of(keys), then.records_of(keys)


def _same(_key: bytes, value: object, before: Value) -> Value:
    """The value, or the one before it, if that has the same content in other pieces."""
    assert value is None or isinstance(value, Large)
    same = isinstance(value, Large) and isinstance(before, Large) and value.sha256 == before.sha256
    return before if same else value


def _put_again(was: Published, values: Iterable[Value]) -> None:
    """Put the pieces of large values again: HEAD may not reach them, so that they may be about to be collected."""
    found = (node for value in values if isinstance(value, Large) for node in Graph(was.cipher).value(value))
    seen: set[bytes] = set()

    def is_fresh(node: Node) -> bool:
        fresh = node.ref.sha256 not in seen
        seen.add(node.ref.sha256)
        return fresh

    def put(node: Node) -> list[Node]:
        data = was.reader.stored(node.area, node.ref)
        was.store.put(node.path, data)
        return [] if node.below is None else list(node.below(data))

    for _ in walk(was.reader.pool, found, put, is_fresh):
        pass


def _count(outcome: Outcome, changed: Changed) -> None:
    for value, before in zip(changed.values, changed.before, strict=True):
        outcome.added += before is None
        outcome.deleted += value is None
        outcome.updated += before is not None and value is not None
