"""What is published in a store now, read back as a puller would read it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

from publisher.stores.base import ABSENT, Store, Token
from puller.errors import Invalid, NotFound
from puller.fetch import Answer
from puller.plan import route
from puller.runs import live, merge
from puller.tree import Reader
from puller.wire.codec import CHUNKS, DIFFS
from puller.wire.head import Head, archive_path, parse_head
from puller.wire.nodes import Diff, Log, Run, Value
from puller.wire.rows import SCHEMA_KEY, Schema, decode_schema


class StoreFetcher:
    """Gives a store's files to a reader."""

    is_local = False

    def __init__(self, store: Store) -> None:
        self._store = store
        self.requests = 0
        self.received = 0

    def fetch(self, path: str, size: int) -> bytes:
        data = self._store.get(path)
        self.requests += 1
        self.received += len(data)
        return data

    def fetch_head(self, etag: str | None) -> Answer:
        data, token = self._store.read_head()
        return Answer(None if token == etag else data, token)

    def close(self) -> None:
        pass


class Published:
    """A dataset's newest version. `data` are the bytes of HEAD, and `token` stands for them in the store."""

    def __init__(self, store: Store, pool: ThreadPoolExecutor, head: Head, data: bytes, token: Token) -> None:
        self.store = store
        self.head = head
        self.data = data
        self.token = token
        self.reader = Reader(StoreFetcher(store), pool)

    @cached_property
    def log(self) -> Log:
        """The newest file of the log; where HEAD names none, its own list."""
        return Log(list(self.head.diffs), []) if self.head.log is None else self.reader.log(self.head.log)

    @cached_property
    def chain(self) -> list[Diff]:
        """The diffs that lead from the snapshot to HEAD's version. Raises Invalid if there are none."""
        way = self.way(self.head.snapshot_version, self.head.version)
        if way is None:
            raise Invalid(f"HEAD in {self.store.where} and its log do not lead from the snapshot to HEAD's version")
        return way

    def way(self, start: int, end: int) -> list[Diff] | None:
        """The cheapest diffs from one version to another, or None; as little of the log is read as will do."""
        diffs = list(self.head.diffs)
        if (way := route(start, end, diffs)) is not None:
            return way
        return route(start, end, self.reader.search(self.log, start, end, diffs))

    def nearby(self, start: int, end: int) -> list[Diff]:
        """The diffs between two versions close to HEAD's that HEAD or the log lists."""
        return [*self.head.diffs, *self.reader.listed(self.log, start, end)]

    def records(self) -> Iterator[Run]:
        """All records of the newest version."""
        streams = [self.reader.snapshot(self.head.snapshot), *map(self.reader.diff, self.chain)]
        return live(merge(streams))

    def schema(self) -> Schema:
        """The schema of a table's newest version; no tables if there is none. Reads the first leaf of each tree only."""
        found: Value = None
        for area, tree in [(CHUNKS, self.head.snapshot), *((DIFFS, diff.tree) for diff in self.chain)]:
            keys, values = self.reader.leaf(area, next(self.reader.leaves(area, tree)))
            if keys and keys[0] == SCHEMA_KEY:
                found = values[0]
        return [] if found is None else decode_schema(self.reader.whole(SCHEMA_KEY, found))


def read_head(store: Store) -> tuple[Head | None, bytes, Token]:
    """The store's HEAD and its bytes, or None where there is provably none. Raises Invalid if it is no HEAD."""
    try:
        data, token = store.read_head()
    except NotFound:
        return None, b"", ABSENT
    return parse_head(data), data, token


def versions(store: Store, limit: int) -> Iterator[Head]:
    """The newest HEAD and up to `limit` - 1 archived ones, newest first. Raises NotFound without a dataset."""
    head, _, _ = read_head(store)
    if head is None:
        raise NotFound(f"there is no dataset at {store.where}")
    yield head
    for version in range(head.version - 1, max(0, head.version - limit), -1):
        path = archive_path(head.epoch, version)
        try:
            archived = parse_head(store.get(path))
        except NotFound:
            return
        if (archived.epoch, archived.version) != (head.epoch, version):
            raise Invalid(f"{path} in {store.where} is the HEAD of another version")
        yield archived
