"""A dataset that a program owns: open it, read it, publish batches of changes."""

from __future__ import annotations

import io
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from publisher.batch import Batch
from publisher.build import Sink, TreeBuilder, make_pool
from publisher.commit import INTERVAL, damaged, follow, swap
from publisher.copies import copies_of
from publisher.encrypt import check_encrypted
from publisher.hashes import Changes, Hashes, cache_of
from publisher.keys import Keyring, read_key
from publisher.large import put_stream
from publisher.publish import create
from publisher.published import Published, read_head
from publisher.tables import PendingBytes, PendingRows
from puller.clock import uptime
from puller.errors import ChecksumMismatch, Conflict, Corrupt, Invalid, NotFound, Refused, Shrunk, UsageError
from puller.forms import Form, form_of
from puller.lookup import Finder
from puller.secret import unlock
from puller.stores import open_store
from puller.stores.base import Store
from puller.wire.checksum import MODULUS
from puller.wire.codec import CHUNKS, DIFFS, MAX_INLINE
from puller.wire.nodes import Diff, Value
from puller.wire.rows import SCHEMA_KEY, Schema, decode_schema

ATTEMPTS = 60
"""How often a batch is applied again because somebody else published first."""
LONGEST_PAUSE = 0.5
"""Seconds."""


def open_dataset(
    dest: str,
    *,
    name: str | None = None,
    kind: str | None = None,
    interval: int | None = None,
    cache: bool = True,
    signing_key: str | None = None,
    unsigned: bool = False,
    secret: str | None = None,
    encrypt: bool = False,
    single_writer: bool = False,
) -> Dataset:
    """See `publisher.open`."""
    if kind not in (None, "bytes", "table"):
        raise _no_batches(kind)
    store = open_store(dest, single_writer=single_writer, kept=copies_of(dest) if cache else None)
    keyring = None if unsigned else Keyring(None if signing_key is None else read_key(signing_key))
    head = read_head(store)[0]
    if head is None:
        if kind is None:
            raise NotFound(f"there is no dataset at {store.where}; to create an empty one, say of which kind")
        default = os.path.basename(os.path.abspath(dest.removeprefix("file://")))
        try:
            how: dict[str, Any] = {"interval": interval or INTERVAL, "secret": secret, "encrypt": encrypt}
            head = create(store, name or default, kind, keyring=keyring, **how).head
        except Refused:
            head = read_head(store)[0]
            if head is None:
                raise
    check_encrypted(head, store.where, encrypt=encrypt)
    head, _ = unlock(head, secret)
    if name not in (None, head.name):
        raise UsageError(f"{store.where} holds the dataset {head.name!r}, not {name!r}")
    if kind not in (None, head.kind):
        raise UsageError(f"{store.where} holds a dataset of kind {head.kind}, not {kind}")
    if head.kind == "files":
        raise _no_batches(head.kind)
    return Dataset(store, cache_of(store.where, head.name) if cache else None, interval, keyring, secret)


def _no_batches(kind: str | None) -> UsageError:
    if kind == "files":
        return UsageError(
            "a dataset of kind files is published from a folder, with `publisher publish`, not in batches"
        )
    return UsageError(f"{kind!r} is no kind of dataset that takes batches: use 'bytes' or 'table'")


class Dataset:
    """A published dataset, as a mapping from keys to values, and the way to change it.

    What is read is one version: the newest when the dataset was opened, or when it last published or was refreshed.
    Keys and values are bytes (kind `bytes`), or tuples of a table's name and a primary key, and dicts (kind `table`).

    Several threads may use one; several processes may each open their own. Reading raises FetchError or Invalid where
    the dataset's files cannot be read.
    """

    def __init__(
        self,
        store: Store,
        folder: str | None,
        interval: int | None = None,
        keyring: Keyring | None = None,
        secret: str | None = None,
    ) -> None:
        """Read HEAD. `folder` is for the cache of record hashes; None: there is to be none. `keyring` has private keys.

        `secret`: see `publisher.open`.
        """
        self._keyring = keyring
        self._store = store
        self._interval = interval
        self._secret = secret
        self._lock = threading.RLock()
        self._finder = Finder()
        self._hashes = Hashes(folder, self._finder)
        self._pool: ThreadPoolExecutor = make_pool(store.threads)
        self._schema: tuple[str, Schema] = ("", [])
        self._closed = False
        self._was = self._read()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the dataset; what was published is durable already."""
        with self._lock:
            self._closed = True
            self._hashes.close()
            self._pool.shutdown()

    @contextmanager
    def _using(self) -> Iterator[None]:
        """The dataset for one thread. Raises UsageError if it was closed."""
        with self._lock:
            if self._closed:
                raise UsageError("the dataset was closed")
            yield

    @property
    def name(self) -> str:
        """The dataset's name."""
        return self._was.head.name

    @property
    def kind(self) -> str:
        """What its records mean: `bytes` or `table`."""
        return self._was.head.kind

    @property
    def version(self) -> int:
        """The version that is read."""
        return self._was.head.version

    def __len__(self) -> int:
        """The number of records; the schema of tables is none."""
        head = self._was.head
        return head.records - int(head.kind == "table" and head.records > 0)

    def __getitem__(self, key: Any) -> Any:
        """The value under a key: reads the one leaf of each tree that can hold it. Raises KeyError if there is none."""
        with self._using():
            form = self._form()
            wire = form.encode_key(key)
            found = self._finder.find(self._was, [wire])
            if wire not in found:
                raise KeyError(key)
            return form.decode_values([wire], [self._was.reader.whole(wire, found[wire])])[0]

    def get(self, key: Any, default: Any = None) -> Any:
        """The value under a key, or `default`."""
        try:
            return self[key]
        except KeyError:
            return default

    def __contains__(self, key: object) -> bool:
        with self._using():
            wire = self._form().encode_key(key)
            try:
                return bool(self._hashes.old(self._was, [wire]))
            except Conflict:
                return bool(self._finder.find(self._was, [wire]))

    def __iter__(self) -> Iterator[Any]:
        """All keys of the version that is read, in key order."""
        return (key for key, _ in self.items())

    def items(self) -> Iterator[tuple[Any, Any]]:
        """All records of the version that is read, in key order, as a stream over the whole dataset."""
        with self._using():
            was, form = self._was, self._form()
        for keys, values in was.records():
            if was.head.kind == "table" and keys[0] == SCHEMA_KEY:
                keys, values = keys[1:], values[1:]
            whole = list(map(was.reader.whole, keys, values))
            yield from zip(form.decode_keys(keys), form.decode_values(keys, whole), strict=True)

    def refresh(self) -> bool:
        """Read HEAD again; say whether there is another version now."""
        with self._using():
            before, self._was = self._was, self._read()
            return self._was is not before

    def batch(self, *, allow_shrink: bool = False) -> Batch:
        """Begin a batch of changes: use it in a `with` block.

        When the block ends, the changes are published as one version; if it raises, or if they change nothing, nothing
        is. If somebody else published in the meantime, the changes are applied to the newest version.

        Then raises NoKey where the private key that signs is not at hand; Shrunk for a batch that deletes over half of the
        records, unless `allow_shrink` is given; Conflict if others kept coming first; a HeadwaterError where the dataset
        cannot be read or written. HEAD is as it was then. Where the store fell silent in the middle of the swap, it is Unclear
        (puller.stores.base), whose message says so.
        """
        pending = PendingRows() if self.kind == "table" else PendingBytes()
        return Batch(self, pending, allow_shrink=allow_shrink)

    def publish(self, batch: Batch) -> None:
        """Publish the changes of a batch. Batches call this at their end."""
        with self._using():
            for attempt in range(ATTEMPTS):
                if attempt:
                    time.sleep(random.uniform(0, min(LONGEST_PAUSE, 0.01 * 2**attempt)))  # noqa: S311
                try:
                    self._was = self._read()
                    self._checked(batch)
                    return
                except Conflict:
                    continue
                except (Corrupt, NotFound) as error:
                    raise damaged(self._store, error) from error
        raise Conflict(f"others kept publishing first to {self._store.where}; the batch was not published. Try again")

    def _checked(self, batch: Batch) -> None:
        """Publish; where a snapshot shows that record hashes were wrong, forget the cache they came from and try again."""
        try:
            self._publish(batch)
        except ChecksumMismatch:
            self._hashes.forget(for_good=True)
            self._publish(batch)

    def _publish(self, batch: Batch) -> None:
        was, head = self._was, self._was.head
        changes = Changes(batch.pending.records(self._tables(), was.is_empty), self._hashes, was)
        if not changes.keys:
            return
        before = len(self)
        if changes.deleted * 2 > before and not batch.allow_shrink:
            raise Shrunk(
                f"the batch deletes {changes.deleted:,} of the {before:,} records that are published; nothing was published. "
                "If that is meant: batch(allow_shrink=True)"
            )
        _ = was.signing  # raises where the version could not be signed, before anything is written
        builder = TreeBuilder(was.sink(DIFFS), self._pool)
        chunks = was.sink(CHUNKS)
        builder.add(changes.keys, [self._put(key, changes.records[key], chunks) for key in changes.keys])
        diff = Diff(head.version, head.version + 1, builder.finish())
        checksum = (head.checksum + changes.sum) % MODULUS
        ready = follow(was, diff, checksum, head.records + changes.grown, interval=self._interval)
        self._was = swap(was, ready)
        self._hashes.committed(was, self._was, changes.marks)

    def _put(self, key: bytes, value: bytes | None, chunks: Sink) -> Value:
        if value is None or len(value) <= MAX_INLINE:
            return value
        return put_stream(key, b"", io.BytesIO(value), chunks, self._pool).value

    def _read(self) -> Published:
        """What is published now."""
        was: Published | None = getattr(self, "_was", None)
        head, data, token = read_head(self._store)
        if head is None:
            raise NotFound(f"there is no dataset at {self._store.where} any more")
        if was is not None and token == was.token:
            was.began = uptime()
            return was
        head, cipher = unlock(head, self._secret)
        if was is None:
            return Published(self._store, self._pool, head, data, token, cipher, self._keyring)
        if (head.name, head.kind, head.encryption) != (was.head.name, was.head.kind, was.head.encryption):
            raise Invalid(f"{self._store.where} holds another dataset now: {head.name!r}, of kind {head.kind}")
        now = Published(self._store, self._pool, head, data, token, cipher, self._keyring)
        now.sizes = was.sizes
        return now

    def _form(self) -> Form:
        return form_of(self.kind, self._tables())

    def _tables(self) -> Schema:
        """The schema of the version that is read."""
        head = self._was.head
        if head.kind == "table" and self._schema[0] != head.publish_id:
            found = self._finder.find(self._was, [SCHEMA_KEY])
            whole = self._was.reader.whole(SCHEMA_KEY, found[SCHEMA_KEY]) if found else None
            self._schema = head.publish_id, [] if whole is None else decode_schema(whole)
        return self._schema[1]
