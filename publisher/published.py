"""What is published in a store now, read back as a puller would read it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from functools import cached_property, partial
from typing import TYPE_CHECKING

from publisher.build import Sink
from puller.clock import uptime
from puller.errors import Invalid, NotFound, Unsupported
from puller.runs import live, merge
from puller.stores.base import ABSENT, Store, Token
from puller.tree import Leaf, Reader, ahead
from puller.wire.codec import CHUNKS, DIFFS
from puller.wire.head import Head, archive_path, format_head, parse_head
from puller.wire.keys import table_range
from puller.wire.nodes import Diff, Log, Run, Tree, Value

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from publisher.commit import Next
    from publisher.keys import Keyring
    from publisher.signing import Signing
    from puller.fetch import Answer, Check
    from puller.wire.cipher import Cipher
    from puller.wire.rows import Schema


class StoreFetcher:
    """Gives a store's files to a reader."""

    is_local = False

    def __init__(self, store: Store) -> None:
        self._store = store
        self.requests = 0
        self.received = 0

    def fetch(self, path: str, size: int, check: Check | None = None) -> bytes:
        data = self._store.get(path)
        self.requests += 1
        self.received += len(data)
        if check is not None:
            check(data)
        return data

    def fetch_head(self, etag: str | None) -> Answer:
        from puller.fetch import Answer

        data, token = self._store.read_head()
        return Answer(None if token == etag else data, token)

    def close(self) -> None:
        pass


class Published:
    """A dataset's newest version. `data` are the bytes of HEAD, and `token` stands for them in the store.

    `head` is opened, and `cipher` reads and writes the files, where the dataset is encrypted.
    """

    def __init__(
        self,
        store: Store,
        pool: ThreadPoolExecutor,
        head: Head,
        data: bytes,
        token: Token,
        cipher: Cipher | None = None,
        keyring: Keyring | None = None,
    ) -> None:
        """`keyring` has the private key with which the next version is signed."""
        self.keyring = keyring
        self.store = store
        self.head = head
        self.data = data
        self.token = token
        self.reader = Reader(StoreFetcher(store), pool, cipher=cipher)
        self.began = uptime()
        """When HEAD was read, or read again and found to be the same."""
        self.sizes: dict[bytes, int] = {}
        """Bytes of trees by the SHA-256 of their roots, for `is_due`: those that were needed before."""
        self._known: list[Diff] = []

    @property
    def cipher(self) -> Cipher | None:
        """What encrypts the files of the next version."""
        return self.reader.cipher

    def sink(self, area: str) -> Sink:
        """Puts files of the next version."""
        return Sink(self.store, area, self.cipher)

    def succeeded(self, head: Head, data: bytes, token: Token, new: Next) -> Published:
        """The version that came next, with what is known of it, so that a further one costs no reading."""
        after = Published(self.store, self.reader.pool, head, data, token, self.cipher, self.keyring)
        if head.trust == self.head.trust:
            after.signing = self.signing
        after.reader = self.reader
        after.log, after.filed = new.log, new.filed
        after._known = [diff for diff in [*self.chain, *new.diffs] if diff.b > head.snapshot_version]
        roots = {tree.ref.sha256 for tree in (head.snapshot, *(diff.tree for diff in after._known))}
        after.sizes = {root: size for root, size in self.sizes.items() if root in roots}
        return after

    @cached_property
    def signing(self) -> Signing | None:
        """How the next version is signed; None where the dataset is not. Raises NoKey or Untrusted.

        Untrusted is also raised where HEAD is not signed and should be, if there is a `keyring`.
        """
        if self.head.trust == 0:
            if self.keyring is not None:
                from publisher.signing import check_unsigned

                check_unsigned(self.store, self.head, self.keyring)
            return None
        from publisher.signing import signing_of

        return signing_of(self.store, self.head, self.data, self.keyring)

    def sign(self, head: Head) -> bytes:
        """The bytes of the next HEAD, signed if the dataset is."""
        return format_head(head) if self.signing is None else self.signing.sign(head)

    @cached_property
    def filed(self) -> Log:
        """The newest file of the log."""
        return Log([], []) if self.head.log is None else self.reader.log(self.head.log)

    @cached_property
    def log(self) -> Log:
        """The log with what HEAD lists beyond its newest file."""
        filed = self.filed
        return Log([*filed.diffs, *(diff for diff in self.head.diffs if diff not in filed.diffs)], filed.segments)

    @cached_property
    def chain(self) -> list[Diff]:
        """The diffs that lead from the snapshot to HEAD's version. Raises Invalid if there are none."""
        way = self.way(self.head.snapshot_version, self.head.version)
        if way is None:
            raise Invalid(f"HEAD in {self.store.where} and its log do not lead from the snapshot to HEAD's version")
        return way

    def way(self, start: int, end: int) -> list[Diff] | None:
        """The cheapest diffs from one version to another, or None; as little of the log is read as will do."""
        from puller.plan import route

        diffs = [*self.head.diffs, *self._known]
        if (way := route(start, end, diffs)) is not None:
            return way
        if (way := route(start, end, [*diffs, *self.log.diffs])) is not None:
            return way
        return route(start, end, self.reader.search(self.log, start, end, diffs))

    @property
    def _trees(self) -> list[tuple[str, Tree]]:
        """The trees that make up the newest version, oldest first."""
        return [(CHUNKS, self.head.snapshot), *((DIFFS, diff.tree) for diff in self.chain)]

    def records(self) -> Iterator[Run]:
        """All records of the newest version."""
        return live(self.reader.merged(self._trees))

    def records_of(self, keys: list[bytes]) -> Iterator[Run]:
        """The records of the newest version that have one of these keys, which ascend; other leaves are not read."""
        return live(merge([self._picked(area, tree, keys) for area, tree in self._trees]))

    def is_empty(self, table: str) -> bool:
        """Whether a table has no rows. Reads leaves that can hold some until one is found."""
        within = [table_range(table)]
        runs = live(merge([self.reader.runs(area, tree, budget=0, within=within) for area, tree in self._trees]))
        return not any(keys for keys, _ in runs)

    def _picked(self, area: str, tree: Tree, keys: list[bytes]) -> Iterator[Run]:
        wanted = set(keys)
        leaves = (leaf for leaf in self.reader.leaves(area, tree) if _covers(leaf, keys))
        for _, run in ahead(self.reader.pool, leaves, partial(self.reader.leaf, area), lambda leaf: leaf.ref.raw):
            found = [n for n, key in enumerate(run[0]) if key in wanted]
            yield [run[0][n] for n in found], [run[1][n] for n in found]

    def schema(self) -> Schema:
        """The schema of a table's newest version; no tables if there is none. Reads the first leaf of each tree only."""
        from puller.wire.rows import SCHEMA_KEY, decode_schema

        found: Value = None
        for area, tree in self._trees:
            keys, values = self.reader.leaf(area, next(self.reader.leaves(area, tree)))
            if keys and keys[0] == SCHEMA_KEY:
                found = values[0]
        return [] if found is None else decode_schema(self.reader.whole(SCHEMA_KEY, found))


def _covers(leaf: Leaf, keys: list[bytes]) -> bool:
    """Whether one of the keys, which ascend, lies in the leaf's range."""
    at = bisect_left(keys, leaf.lower)
    return at < len(keys) and (leaf.upper is None or keys[at] < leaf.upper)


def read_head(store: Store) -> tuple[Head | None, bytes, Token]:
    """The store's HEAD, still sealed if it is, and its bytes, or None where there is provably none.

    Raises Invalid if it is no HEAD, Unsupported if it is of a newer release.
    """
    try:
        data, token = store.read_head()
    except NotFound:
        return None, b"", ABSENT
    try:
        return parse_head(data), data, token
    except Unsupported:
        raise
    except Invalid as error:
        what = "damaged" if data.startswith(b"headwater") else "damaged, or another program's"
        raise Invalid(
            f"{store.where}: HEAD is {what} ({error}); nothing was published. Put it back from a mirror or a backup "
            "(superseded ones are below heads/)"
        ) from error


def versions(store: Store, limit: int) -> Iterator[Head]:
    """The newest HEAD and up to `limit` - 1 archived ones, newest first, still sealed if they are.

    Raises NotFound without a dataset.
    """
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
