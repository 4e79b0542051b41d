"""Reads all that a dataset promises, and finds every damaged or missing file."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from publisher.published import Published, StoreFetcher
from puller.errors import FetchError, HeadwaterError, Invalid, NotFound, Unavailable
from puller.progress import Progress, silent
from puller.secret import unlock
from puller.stores.base import Store
from puller.tree import Reader, walk
from puller.trust import Signed, check_head, check_step, read_key_set
from puller.wire.checksum import MODULUS, run_sum
from puller.wire.codec import CHUNKS, DIFFS
from puller.wire.graph import Graph, Node
from puller.wire.head import HEAD, Head, archive_path, key_set_path, parse_head
from puller.wire.nodes import Large

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor


@dataclass
class Found:
    """What was read, in stored bytes, and what is wrong: a reason for each path."""

    versions: int = 0
    files: int = 0
    bytes: int = 0
    bad: dict[str, str] = field(default_factory=dict)


def check(store: Store, pool: ThreadPoolExecutor, progress: Progress = silent, *, secret: str | None = None) -> Found:
    """Read all that HEAD reaches, and of each archived HEAD its snapshot and one way to its version (SPEC 2).

    Signatures and key sets are checked against each other; whether they are to be trusted is for pullers to say. `secret`
    is that of an encrypted dataset. Raises NotFound without a dataset, SecretError without its secret, Unavailable where
    the store does not answer.
    """
    return _Check(store, pool, progress, secret).run()


class _Check:
    def __init__(self, store: Store, pool: ThreadPoolExecutor, progress: Progress, secret: str | None) -> None:
        self.store = store
        self.pool = pool
        self.secret = secret
        self.reader = Reader(StoreFetcher(store), pool)
        self.graph = Graph()
        self.progress = progress
        self.found = Found()
        self.seen: set[tuple[str, bytes]] = set()
        self.key_sets: dict[int, Signed] = {}

    def run(self) -> Found:
        data, token = self.store.read_head()
        head = self._parsed(HEAD, data)
        if head is None:
            return self.found
        self._check_signature(HEAD, head, data)
        try:
            head, cipher = unlock(head, self.secret)
        except Invalid as error:
            self.found.bad[HEAD] = str(error)
            return self.found
        self.reader.cipher = cipher
        self.graph = Graph(cipher)
        self.found.versions = 1
        self._walk(self.graph.roots(head))
        self._check_state(Published(self.store, self.pool, head, data, token, cipher))
        for path in sorted(self._archived(head)):
            self._check_archived(path, head)
        return self.found

    def _archived(self, head: Head) -> set[str]:
        """The archived HEADs, and those that are missing between them and HEAD."""
        there = {path for path in self.store.list("heads/") if path.removeprefix("heads/").replace("-", "").isdigit()}
        ours = [int(path.partition("-")[2]) for path in there if path.startswith(f"heads/{head.epoch}-")]
        for version in range(min(ours, default=head.version), head.version):
            path = archive_path(head.epoch, version)
            if path not in there:
                self.found.bad[path] = "there is no such file, although older HEADs are archived"
        return there

    def _parsed(self, path: str, data: bytes) -> Head | None:
        try:
            return parse_head(data)
        except Invalid as error:
            self.found.bad[path] = str(error)
            return None

    def _check_archived(self, path: str, newest: Head) -> None:
        try:
            data = self.store.get(path)
        except NotFound:
            return  # it was collected since it was listed
        head = self._parsed(path, data)
        if head is None:
            return
        if (head.name, archive_path(head.epoch, head.version)) != (newest.name, path):
            self.found.bad[path] = "it is the HEAD of another version or dataset"
            return
        before = dict(self.found.bad)
        self._check_signature(path, head, data)
        self.found.versions += 1
        self._walk([self.graph.tree(CHUNKS, head.snapshot)])
        was = Published(self.store, self.pool, head, data, "", self.reader.cipher)
        was.reader = self.reader
        try:
            self._walk([self.graph.tree(DIFFS, diff.tree) for diff in was.chain])
        except Unavailable:
            raise
        except HeadwaterError as error:
            self._blame(path, head, error)
        if path not in set(self.store.list(path)):
            self.found.bad = before

    def _check_signature(self, path: str, head: Head, data: bytes) -> None:
        """Check a signed HEAD by the key set that it names, and that by those before it (SPEC 7.5)."""
        signed: Signed | None = None
        for number in range(1, head.trust + 1):
            if number in self.key_sets:
                signed = self.key_sets[number]
                continue
            try:
                after = read_key_set(self.store.get, number, head.name)
                if signed is not None:
                    check_step(signed, after)
            except Unavailable:
                raise
            except (Invalid, FetchError) as error:
                self.found.bad[key_set_path(number)] = str(error)
                return
            signed = self.key_sets[number] = after
        try:
            if signed is not None:
                check_head(head, data, signed.keys)
        except Invalid as error:
            self.found.bad[path] = str(error)

    def _blame(self, path: str, head: Head, error: HeadwaterError) -> None:
        """Note why no way leads from a version's snapshot to it: its log, or what that says."""
        log = None if head.log is None else self.graph.log(head.log)
        found = None if log is None else self._read(log)
        if log is not None and isinstance(found, HeadwaterError):
            self.found.bad[log.path] = str(found)
        else:
            self.found.bad.setdefault(path, f"no way leads from its snapshot to it: {error}")

    def _walk(self, nodes: Iterable[Node]) -> None:
        """Read files and all that they name, many at once."""
        for node, below in walk(self.pool, nodes, self._read, self._is_fresh):
            if isinstance(below, HeadwaterError):
                self.found.bad.setdefault(node.path, str(below))
            else:
                self.found.files += 1
                self.found.bytes += node.ref.stored
                self.progress("check", self.found.bytes, 0)

    def _is_fresh(self, node: Node) -> bool:
        seen = (node.form, node.ref.sha256) in self.seen
        self.seen.add((node.form, node.ref.sha256))
        return not seen

    def _read(self, node: Node) -> list[Node] | HeadwaterError:
        try:
            data = self.reader.stored(node.area, node.ref)
            return [] if node.below is None else list(node.below(data))
        except Unavailable:
            raise
        except (Invalid, FetchError) as error:
            return error

    def _check_state(self, was: Published) -> None:
        """Put the newest state together as a puller does; where files are bad, these were named already."""
        head = was.head
        if self.found.bad:
            return
        checksum = records = 0
        try:
            for keys, values in was.records():
                checksum += run_sum(keys, values)
                records += len(keys)
                for key, value in zip(keys, values, strict=True):
                    if isinstance(value, Large):
                        for _ in was.reader.large(key, value):
                            pass
        except Unavailable:
            raise
        except HeadwaterError as error:
            self.found.bad[HEAD] = f"its state cannot be put together: {error}"
            return
        if (checksum % MODULUS, records) != (head.checksum, head.records):
            self.found.bad[HEAD] = f"its files hold {records} records with the checksum {checksum % MODULUS:032x}"
