"""A published version, read from its host record by record; nothing is stored, and no file is fetched that is not needed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

from puller.errors import (
    Distrust,
    HeadwaterError,
    Invalid,
    Missing,
    NotFound,
    SecretError,
    Untrusted,
    UsageError,
    Withheld,
)
from puller.fetch import CONNECTIONS, THREADS, Fetcher, Patience, open_fetcher
from puller.heads import key_sets, read_heads, superseded
from puller.lookup import Finder
from puller.mirrors import Health
from puller.plan import route
from puller.ranges import Bounds
from puller.runs import bounded, live
from puller.secret import unlock
from puller.tree import Reader
from puller.trust import Keeper, Pins
from puller.ways import read_diffs
from puller.wire.codec import CHUNKS, DIFFS
from puller.wire.head import Head
from puller.wire.nodes import Diff, Large, Run, Value
from puller.wire.note import Key
from puller.wire.rows import SCHEMA_KEY, Schema, decode_schema

T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What to read, and whom to believe; as for `puller.pull.Options`, at first contact."""

    version: int | None = None
    trust: Sequence[Key] = ()
    allow_expired: bool = False
    secret: str | None = field(default=None, repr=False)


class Remote:
    """One version of a dataset on its host.

    Every file is verified by its name, and HEAD by whoever is to be trusted; the checksum of the whole is not, as not
    all of it is read. Methods are called from one thread.
    """

    def __init__(self, address: str, fetcher: Fetcher, pool: ThreadPoolExecutor, options: Options) -> None:
        """Reads HEAD. Raises Untrusted, Invalid, UsageError, FetchError."""
        self._address = address
        self._fetcher = fetcher
        self._options = options
        self.reader = Reader(fetcher, pool)
        self.pins = Pins()
        """By whose signature HEAD was verified; no key set where the dataset is not signed."""
        self.chain: list[Diff] = []
        """The diffs that lead from the snapshot to the version."""
        self.head = self._read()

    @property
    def requests(self) -> int:
        """Requests so far."""
        return self._fetcher.requests

    @property
    def received(self) -> int:
        """Bytes received so far."""
        return self._fetcher.received

    def _read(self) -> Head:
        first: HeadwaterError | None = None
        for head, answer in read_heads(self._address, self._fetcher, None):
            assert head is not None
            assert answer.data is not None
            try:
                newest, self.reader.cipher = unlock(head, self._options.secret)
                keeper = Keeper(key_sets(self._fetcher), None, self._options.trust)
                self.pins = keeper.accept(newest, answer.data)
                if newest.expires is not None and time.time() > newest.expires and not self._options.allow_expired:
                    raise Untrusted(
                        Distrust.EXPIRED,
                        f"HEAD of {newest.name!r} is expired: whoever serves it may hold back newer ones. Take it with "
                        "--allow-expired",
                    )
            except (Invalid, SecretError) as error:
                first = first or error
                continue
            return self._begin(self._wanted(newest, keeper))
        assert first is not None
        raise first

    def _wanted(self, newest: Head, keeper: Keeper) -> Head:
        version = self._options.version
        if version is None or version == newest.version:
            return newest
        if version > newest.version:
            raise UsageError(f"there is no version {version} yet; the newest is {newest.version}")
        return superseded(self._fetcher, newest, version, keeper, self.pins, self._options.secret)

    def _begin(self, head: Head) -> Head:
        start = head.epoch, head.snapshot_version
        way = route(head.snapshot_version, head.version, read_diffs(self.reader, head, start))
        if way is None:
            raise Invalid("HEAD and its log name no way from the snapshot to HEAD's version")
        self.chain = way
        self._finder = Finder()
        return head

    def get(self, key: bytes) -> Value:
        """What is under a key, or None: HEAD's files that can hold it are read, and of each tree one leaf at most."""
        return self._again(lambda: self._finder.find(self, [key]).get(key))

    def content(self, key: bytes, value: Value) -> Iterator[bytes]:
        """The bytes of a value, piece by piece; each was verified. Raises Corrupt at the end if they do not fit together."""
        if isinstance(value, Large):
            yield from self.reader.large(key, value)
        elif value is not None:
            yield value

    def runs(self, within: Sequence[Bounds] | None = None) -> Iterator[Run]:
        """The records, all or those within some ranges, in key order; some are read ahead, in bounded memory."""
        trees = [(CHUNKS, self.head.snapshot), *((DIFFS, diff.tree) for diff in self.chain)]

        def begun() -> Iterator[Run]:
            stream = bounded(live(self.reader.merged(trees, within)))
            first = next(stream, None)
            return iter(()) if first is None else chain([first], stream)

        return self._again(begun)

    def schema(self) -> Schema:
        """The tables of a dataset of kind `table`."""
        value = self.get(SCHEMA_KEY)
        return [] if value is None else decode_schema(self.reader.whole(SCHEMA_KEY, value))

    def _again(self, ask: Callable[[], T]) -> T:
        """What `ask` gives; where a file is gone, HEAD is read again once, and then the file is waited for."""
        for wait in (False, True):
            try:
                return ask()
            except (Missing, Withheld):
                if self._fetcher.is_local and wait:
                    raise
                self.head = self._read()
                self.reader.patience = Patience() if wait else None
        return ask()


@contextmanager
def open_remote(address: str, options: Options | None = None, mirrors: Sequence[str] = ()) -> Iterator[Remote]:
    """A version of the dataset at an address, or at others that serve the same one. Raises as `Remote` does."""
    fetcher = open_fetcher(address, mirrors, Health())
    pool = ThreadPoolExecutor(THREADS if fetcher.is_local else CONNECTIONS)
    try:
        yield Remote(address, fetcher, pool, options or Options())
    finally:
        pool.shutdown(cancel_futures=True)
        fetcher.close()


def absent(remote: Remote, name: str) -> NotFound:
    """The error for a record that there is none of."""
    return NotFound(f"{name} is not in {remote.head.name!r} version {remote.head.version}")
