"""Mirrors: the files of a dataset as they are, to serve onward; encrypted ones without their secret (SPEC 11.4).

A copy trusts the key set that its own HEAD names (SPEC 7.5): nobody can make it take what pullers would refuse.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from puller.errors import Conflict, Corrupt, FetchError, Invalid, NotFound, NotOurs, Unavailable, Untrusted
from puller.fetch import THREADS, Fetcher, shown
from puller.plan import route
from puller.progress import Progress, silent
from puller.stores.base import COLLECTED, MARK, read_mark
from puller.tree import ahead
from puller.trust import Keeper, Pins, check_step, load, read_key_set
from puller.wire.codec import CHUNKS, DIFFS, Ref, check_ref, check_stored, path_of
from puller.wire.graph import Graph, Node
from puller.wire.head import MAX_HEAD, Head, archive_path, key_set_path, parse_head
from puller.wire.keyset import MAX_KEY_SET
from puller.wire.note import Key

GRAPH = Graph()
ATTEMPTS = 3
MAX_NESTING = 32
"""Files below files: logs, indexes, a leaf, lists and a piece are at most 30 (SPEC 5)."""
MOST_ARCHIVED = 4096
"""Superseded HEADs that one run copies."""


class Destination(Protocol):
    """Where a mirror writes: the part of a store (`puller.stores`) that it needs."""

    where: str

    def get(self, path: str) -> bytes: ...
    def size_of(self, path: str) -> int | None: ...
    def put(self, path: str, data: bytes) -> None: ...
    def create(self, path: str, data: bytes) -> bool: ...
    def flush(self) -> None: ...
    def read_head(self) -> tuple[bytes, str]: ...
    def swap_head(self, expected: str, data: bytes, time: int) -> str: ...
    def delete(self, path: str) -> None: ...
    def foreign(self) -> str | None: ...


@dataclass(frozen=True)
class Options:
    """How to mirror.

    `keep_versions`: how many versions before the newest are to be pullable from the copy, where the origin still has
    them; `check`: every file of the copy is read again, and fetched again where it is damaged; `trust`: public keys, one
    of which the dataset's key sets must go back to (none: the key met first is trusted from then on).
    """

    keep_versions: int = 0
    check: bool = False
    trust: Sequence[Key] = ()


@dataclass
class Outcome:
    """What a run did: positions as (epoch, version, time), files and their stored bytes that were copied."""

    head: Head
    before: tuple[int, int, int] | None
    after: tuple[int, int, int]
    files: int = 0
    bytes: int = 0
    archived: int = 0
    requests: int = 0
    received: int = 0
    notes: list[str] = field(default_factory=list)
    pins: Pins = field(default_factory=Pins)
    """Whom the copy trusts now; no key set where the dataset is not signed."""
    met: bool = False
    """Whether this was the first contact, or the first with a signed HEAD."""

    @property
    def changed(self) -> bool:
        """Whether the copy has another HEAD now, or files that it lacked."""
        return self.before != self.after or bool(self.files or self.archived)


def mirror(
    address: str,
    fetcher: Fetcher,
    destination: Destination,
    options: Options,
    *,
    progress: Progress = silent,
) -> Outcome:
    """Bring a copy of a dataset's files to the newest HEAD: new files first, durably, HEAD last, and never an older one.

    Nothing is deleted: files that no HEAD names any more are for garbage collection. Raises NotOurs where something else
    lies there; Invalid for another dataset, a forked one, or damaged files, Untrusted for one that is not signed as the
    copy's own HEAD was; FetchError where the origin, another
    HeadwaterError where the destination cannot be used. HEAD of the copy is then as it was, and what was copied stays for
    the next run.
    """
    foreign = destination.foreign()
    if foreign is not None:
        raise NotOurs(
            f"{destination.where} holds something that is no part of a dataset ({foreign}); nothing was written. Mirror into "
            "a folder of its own"
        )
    for attempt in range(ATTEMPTS):
        try:
            with ThreadPoolExecutor(THREADS) as pool:
                try:
                    return _Mirror(address, fetcher, destination, options, pool, progress).run()
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
        except (NotFound, Conflict) as error:
            if attempt + 1 == ATTEMPTS or isinstance(error, _NoDataset):
                raise
    raise AssertionError("unreachable")


class _NoDataset(NotFound):
    """There is no HEAD at the address."""


class _Mirror:
    def __init__(
        self,
        address: str,
        fetcher: Fetcher,
        destination: Destination,
        options: Options,
        pool: ThreadPoolExecutor,
        progress: Progress,
    ) -> None:
        self.address = address
        self.fetcher = fetcher
        self.destination = destination
        self.options = options
        self.pool = pool
        self.progress = progress
        self.trusting = True
        """Whether all that a file needs is there if the file is."""
        self.whole = False
        """Whether files are whole if they are there, at least."""
        self.seen: set[tuple[str, bytes]] = set()
        self.heads: dict[int, tuple[bytes, Head] | None] = {}
        self.key_sets: dict[str, bytes] = {}
        self.pins = Pins()
        self.files = 0
        self.bytes = 0
        self.lock = threading.Lock()

    def run(self) -> Outcome:
        data, head = self._newest()
        held, token, known = self._held()
        outcome = Outcome(head, None if held is None else held.order, head.order)
        mark = read_mark(self.destination.get)
        unfinished = mark is not None
        if held is not None:
            if held.trust:
                self.pins = Pins(self.destination.get(key_set_path(held.trust)))
            self._check_name(held, head)
            if head.order < held.order:
                outcome.head, outcome.after = held, held.order
                outcome.notes.append(
                    f"the host serves version {head.version} of epoch {head.epoch}, older than version {held.version} of "
                    f"epoch {held.epoch} that is held; kept what is held. A cache may lag behind"
                )
                return self._told(outcome)
        if data != known or self.options.trust:
            self._verify(head, data)
        outcome.met = held is None or bool(self.pins.key_set and not held.trust)
        if held is not None:
            self._check_fork(held, head)
            if held.order == head.order and not (unfinished or self.options.check or self._lacks_versions(head)):
                return self._told(outcome)
        self.trusting = not (unfinished or self.options.check)
        self.whole = mark == COLLECTED and not self.options.check
        self.destination.put(MARK, b"this mirror is being written\n")
        self.destination.flush()
        try:
            self._copy(head, data, token, outcome)
        except (FetchError, Invalid, Conflict):  # each file came after those that it needs, and none is half written
            self.pool.shutdown(cancel_futures=True)
            self._end()
            raise
        self._end()
        return self._told(outcome)

    def _end(self) -> None:
        self.destination.flush()
        self.destination.delete(MARK)

    def _copy(self, head: Head, data: bytes, token: str, outcome: Outcome) -> None:
        self._complete(GRAPH.roots(head))
        self._copy_key_sets()
        found = self._archived(head)
        self.destination.flush()
        for path, archived in reversed(found):  # oldest first: a run looks no further than the newest that is there
            outcome.archived += self.destination.create(path, archived)
        if outcome.before != outcome.after:
            self.destination.swap_head(token, data, head.time)

    def _told(self, outcome: Outcome) -> Outcome:
        outcome.files, outcome.bytes = self.files, self.bytes
        outcome.pins = self.pins
        outcome.requests, outcome.received = self.fetcher.requests, self.fetcher.received
        return outcome

    def _newest(self) -> tuple[bytes, Head]:
        try:
            data = self.fetcher.fetch_head(None).data
            assert data is not None
            return data, parse_head(data)
        except NotFound as error:
            raise _NoDataset(f"there is no dataset at {shown(self.address)} ({error}); check the address") from error
        except Invalid as error:
            raise type(error)(f"{shown(self.address)}: {error}") from error

    def _held(self) -> tuple[Head | None, str, bytes]:
        """HEAD of the copy, its token and its bytes."""
        try:
            data, token = self.destination.read_head()
        except NotFound:
            return None, "", b""
        return parse_head(data), token, data

    def _verify(self, head: Head, data: bytes) -> None:
        """Verify HEAD by the key set that the copy's own names, or the keys that were given (SPEC 7.5). Raises Untrusted."""
        try:
            self.pins = Keeper(self._key_set, self.pins, self.options.trust).accept(head, data)
        except Untrusted as error:
            error.args = (f"{error}; {self._stays()}",)
            raise

    def _key_set(self, path: str) -> bytes:
        """A key set, of the copy if it has it."""
        if path not in self.key_sets:
            try:
                self.key_sets[path] = self.destination.get(path)
            except NotFound:
                self.key_sets[path] = self.fetcher.fetch(path, MAX_KEY_SET)
        return self.key_sets[path]

    def _copy_key_sets(self) -> None:
        """Copy the key set that is trusted and those before it, each of which is named by the one after it."""
        if not self.pins.key_set:
            return
        signed = load(self.pins.key_set, "the trusted key set")
        while True:
            self.destination.create(key_set_path(signed.keys.number), signed.data)
            if signed.keys.number == 1:
                return
            before = read_key_set(self._key_set, signed.keys.number - 1, signed.keys.name)
            check_step(before, signed)
            signed = before

    def _check_name(self, held: Head, head: Head) -> None:
        """Refuse another dataset (SPEC 7.4, 11)."""
        where = self.destination.where
        if (held.name, held.encryption) != (head.name, head.encryption) or held.kind != head.kind:
            raise Invalid(
                f"{where} mirrors the dataset {held.name!r}, the host serves another one, {head.name!r}; nothing was changed. "
                "Mirror it to another place"
            )

    def _check_fork(self, held: Head, head: Head) -> None:
        """Refuse another history of the dataset (SPEC 7.4)."""
        where = self.destination.where
        then: Head | None = head
        if held.epoch == head.epoch and held.version < head.version:
            older = self._older(head, held.version)
            then = None if older is None else older[1]
        elif (held.epoch, held.version) != (head.epoch, head.version):
            then = None
        if then is not None and _identity(held) != _identity(then):
            raise Invalid(
                f"the host serves another version {held.version} of {held.name!r} than the one in {where}: history was forked. "
                "Nothing was changed. Ask the publisher"
            )

    def _older(self, head: Head, version: int) -> tuple[bytes, Head] | None:
        """The HEAD of an earlier version of the same epoch, and its bytes, if the origin still has it."""
        if version not in self.heads:
            path = archive_path(head.epoch, version)
            self.heads[version] = None
            try:
                data = self.fetcher.fetch(path, MAX_HEAD)
            except Unavailable:
                raise
            except FetchError:  # some hosts deny what is missing
                return None
            found = parse_head(data)
            wanted = (head.name, head.encryption, head.epoch, version)
            if (found.name, found.encryption, found.epoch, found.version) != wanted:
                raise Invalid(f"{path} on the host is not the HEAD of version {version}; {self._stays()}")
            try:
                Keeper(self._key_set, self.pins, ()).archived(found, data, self.pins)
            except Untrusted:  # of before the dataset was signed, or forged: pullers would refuse it
                return None
            self.heads[version] = data, found
        return self.heads[version]

    def _lacks_versions(self, head: Head) -> bool:
        """Whether superseded HEADs that are to be kept are not there."""
        oldest = max(head.version - self.options.keep_versions, 1)
        paths = (archive_path(head.epoch, version) for version in range(oldest, head.version))
        return any(self.destination.size_of(path) is None for path in paths)

    def _archived(self, head: Head) -> list[tuple[str, bytes]]:
        """Superseded HEADs that the copy lacks, the newest first, down to the first that it has, or has not all files of.

        The files of as many versions as are to be kept are copied for it.
        """
        found: list[tuple[str, bytes]] = []
        oldest = max(head.version - MOST_ARCHIVED, 1)
        for version in range(head.version - 1, oldest - 1, -1):
            path = archive_path(head.epoch, version)
            keep = version >= head.version - self.options.keep_versions
            if self.destination.size_of(path) is not None:
                if keep:
                    continue
                break
            older = self._older(head, version)
            if older is not None and keep:
                self._complete_way(older[1])
            if older is None or not self._has_way(older[1]):
                break
            found.append((path, older[0]))
        return found

    def _complete_way(self, head: Head) -> None:
        """Copy what the origin still has of a version's snapshot, diffs and log."""
        for node in GRAPH.roots(head):
            with contextlib.suppress(NotFound):
                self._complete([node])

    def _has_way(self, head: Head) -> bool:
        """Whether the copy has a version's snapshot, and diffs that lead from there to it: all that it names, or listed ones."""
        if not self._has(CHUNKS, head.snapshot.ref):
            return False
        diffs = [diff for diff in head.diffs if self._has(DIFFS, diff.tree.ref)]
        if len(diffs) == len(head.diffs) and head.log is not None and self._has(DIFFS, head.log):
            return True
        return route(head.snapshot_version, head.version, diffs) is not None

    def _has(self, area: str, ref: Ref) -> bool:
        return self.destination.size_of(path_of(area, ref.sha256)) == ref.stored

    def _complete(self, wanted: Iterable[Node], nesting: int = 0) -> None:
        """Copy files that are missing, each after all that it refers to: so what is there is complete.

        Files are fetched ahead, within the budget of `puller.tree.ahead`, on each level of a tree.
        """
        if nesting > MAX_NESTING:
            raise Invalid(f"files refer to each other more than {MAX_NESTING} deep; {self._stays()}")
        for node, found in ahead(self.pool, iter(wanted), self._look, lambda node: node.ref.stored):
            if found is not None:
                data, below, there = found
                self._complete(below, nesting + 1)
                if not there:
                    self._put(node, data)
                self.progress("mirror", self.bytes, 0)

    def _look(self, node: Node) -> tuple[bytes, Sequence[Node], bool] | None:
        """A file that refers to others: its bytes, these files, and whether it is there; others are copied at once."""
        check_ref(node.ref)
        data = None
        if self.trusting:
            if self._has(node.area, node.ref):
                return None
        else:
            if (node.form, node.ref.sha256) in self.seen:
                return None
            self.seen.add((node.form, node.ref.sha256))
            if self.whole and not node.leads and self._has(node.area, node.ref):
                return None
            data = self._kept(node)
        there = data is not None
        if data is None:
            data = self._fetched(node)
        try:
            below = list(node.below(data)) if node.below is not None and node.leads else []
        except Invalid as error:
            raise type(error)(f"{node.path} breaks the format: {error}; {self._stays()}") from error
        if below:
            return data, below, there
        if not there:
            self._put(node, data)
        return None

    def _kept(self, node: Node) -> bytes | None:
        try:
            return check_stored(node.ref, self.destination.get(node.path))
        except (NotFound, Corrupt):
            return None

    def _fetched(self, node: Node) -> bytes:
        try:
            return check_stored(node.ref, self.fetcher.fetch(node.path, node.ref.stored))
        except Corrupt as error:
            raise Corrupt(f"{node.path} is damaged ({error}); {self._stays()}") from error
        except NotFound as error:
            raise NotFound(f"{error}, although the dataset names this file; {self._stays()}") from error

    def _stays(self) -> str:
        return f"HEAD in {self.destination.where} stays as it was"

    def _put(self, node: Node, data: bytes) -> None:
        self.destination.put(node.path, data)
        with self.lock:
            self.files += 1
            self.bytes += len(data)


def _identity(head: Head) -> tuple[str, int, int, bytes, bytes]:
    """What all HEADs of one version have in common (SPEC 7.4)."""
    return head.publish_id, head.checksum, head.records, head.snapshot.ref.sha256, head.sealed
