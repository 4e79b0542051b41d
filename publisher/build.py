"""Building trees: records in key order are cut into leaves, compressed and put in parallel, and indexed."""

from __future__ import annotations

import hashlib
import os
import warnings
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from operator import add
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import msgspec
import xxhash

from puller.errors import SourceError
from puller.wire import nodes
from puller.wire.checksum import MODULUS, run_totals
from puller.wire.codec import DIFFS, Ref, check_ref, compress, path_of
from puller.wire.links import Link, of_index, of_values
from puller.wire.nodes import Entry, Large, Tree, Value

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from puller.wire.cipher import Cipher

CHUNK_SIZE = 1 << 20
DIFF_LEAF_SIZE = 8 << 20
IN_FLIGHT = 64 << 20
INDEX_LEAST, INDEX_MOST, INDEX_MASK = 256, 4096, 511


def make_pool(least: int = 0) -> ThreadPoolExecutor:
    """Threads for compressing, reading and writing; zstandard, hashlib and the system calls release the GIL.

    There are at least as many as are given, for a store where each request waits (`Store.threads`).
    """
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(max(2, os.cpu_count() or 1, least))


def separator(before: bytes, first: bytes) -> bytes:
    """The shortest key above `before` and not above `first`: a bound that stays put when records come and go."""
    common = len(os.path.commonprefix((before, first)))  # noqa: RUF071 - characters are meant
    return first[: common + 1]


class Files(Protocol):
    """What takes files: a store, or what keeps them for one."""

    def put(self, path: str, data: bytes, /) -> None: ...


class Kept:
    """Holds files back until it is known that they are wanted: their paths and stored bytes."""

    def __init__(self) -> None:
        self.files: list[tuple[str, bytes]] = []

    def put(self, path: str, data: bytes) -> None:
        self.files.append((path, data))


class Sink:
    """Puts immutable files into an area of a store, from several threads; counts nothing, remembers nothing.

    `cipher` encrypts them, where the dataset is encrypted; what a file refers to (`links`) is looked at only then.
    """

    def __init__(self, store: Files, area: str, cipher: Cipher | None, level: int = 3) -> None:
        self.store = store
        self.area = area
        self.cipher = cipher
        self.level = level

    def put(self, raw: bytes, links: Iterable[Link] = ()) -> Ref:
        """Compress `raw` and put it; return its reference."""
        return self.put_frame(compress(raw, self.level), len(raw), links)

    def put_frame(self, frame: bytes, raw: int, links: Iterable[Link] = ()) -> Ref:
        """Put a frame whose content has `raw` bytes; return its reference."""
        stored = frame if self.cipher is None else self.cipher.encrypt(frame, links)
        ref = check_ref(Ref(hashlib.sha256(stored).digest(), len(stored), raw))
        self.store.put(path_of(self.area, ref.sha256), stored)
        return ref


class Puts(Protocol):
    """What takes the raw bytes of files, and gives references."""

    area: str

    def put(self, raw: bytes, links: Iterable[Link] = ...) -> Ref: ...


Costs = Mapping[bytes, tuple[int, int]]
"""Files to fetch for large values, and their stored bytes, by record hash."""


class TreeBuilder:
    """Builds one tree from runs that come in key order.

    Memory is bounded by the leaves in flight, and one entry a leaf. The first leaf waits until `finish`, so
    that records known only at the end (`lead`, below all other keys) can still join it. `costs` says what the
    tree's readers have to fetch for large values, where that is known; elsewhere it is taken from their pieces.
    """

    def __init__(
        self, sink: Puts, pool: ThreadPoolExecutor, leaf_size: int | None = None, costs: Costs | None = None
    ) -> None:
        self._sink = sink
        self._pool = pool
        self._costs: Costs = {} if costs is None else costs
        self._leaf_size = leaf_size or (DIFF_LEAF_SIZE if sink.area == DIFFS else CHUNK_SIZE)
        self._keys: list[bytes] = []
        self._values: list[Value] = []
        self._size = 0
        self._first: tuple[list[bytes], list[Value]] | None = None
        self._last_key = b""
        self._bound = b""
        self._done: list[Entry] = []
        self._waiting: deque[tuple[int, Future[Entry]]] = deque()
        self._in_flight = 0
        self._extra_files = 0
        self._extra_bytes = 0
        self.checksum = 0
        """The sum of the hashes of all records; only after `finish`."""

    @property
    def empty(self) -> bool:
        """Whether nothing was added yet."""
        return not (self._keys or self._first or self._done or self._waiting)

    def add(self, keys: Sequence[bytes], values: Sequence[Value]) -> None:
        """Add records above all that were added before."""
        sizes = self._sizes(keys, values)
        if self._size + (total := sum(sizes)) < self._leaf_size:
            self._keys += keys
            self._values += values
            self._size += total
            return
        ends = list(accumulate(sizes))
        start = 0
        while start < len(keys):
            base = ends[start - 1] if start else 0
            stop = bisect_left(ends, base + self._leaf_size - self._size, start)
            stop = min(stop + 1, len(keys))
            self._keys += keys[start:stop]
            self._values += values[start:stop]
            self._size += ends[stop - 1] - base
            start = stop
            if self._size >= self._leaf_size:
                self.cut()

    def cut(self) -> None:
        """End the leaf at hand."""
        if not self._keys:
            return
        keys, values = self._keys, self._values
        self._keys, self._values, self._size = [], [], 0
        if self._first is None and not self._done and not self._waiting:
            self._first = keys, values
        else:
            bound = self._bound or separator(self._last_key, keys[0])
            self._submit(bound, keys, values)
        self._last_key = keys[-1]
        self._bound = b""

    def start(self, bound: bytes) -> None:
        """Begin a leaf at a given bound (above all keys so far)."""
        self.cut()
        self._bound = bound

    def keep(self, entry: Entry) -> None:
        """Take over a leaf as it is, with its bound (or the lowest, if nothing is left below it)."""
        from concurrent.futures import Future

        self.cut()
        if self._first is None and not self._done and not self._waiting:
            entry = msgspec.structs.replace(entry, bound=b"")
        done: Future[Entry] = Future()
        done.set_result(entry)
        self._waiting.append((0, done))
        self._last_key = entry.bound
        self._bound = b""

    @property
    def size(self) -> int:
        """Raw bytes of the leaf at hand."""
        return self._size

    def finish(self, lead: tuple[list[bytes], list[Value]] | None = None) -> Tree:
        """Write what is left, the first leaf with `lead` before it, and the indexes; return the root."""
        lead_keys, lead_values = lead or ([], [])
        if self._first is None and not self._waiting and not self._done:
            self._first, self._keys, self._values = (self._keys, self._values), [], []
        self.cut()
        if self._first is not None:
            keys, values = lead_keys + self._first[0], lead_values + self._first[1]
            first = self._pool.submit(self._leaf, b"", keys, values)
            self._waiting.appendleft((0, first))
            entries = [first.result(), *self._done]
            self._waiting.popleft()
        else:
            entries = self._done
        while self._waiting:
            entries.append(self._waiting.popleft()[1].result())
        self.checksum = sum(int.from_bytes(entry.checksum, "big") for entry in entries) % MODULUS
        return self._index(entries)

    def _sizes(self, keys: Sequence[bytes], values: Sequence[Value]) -> list[int]:
        """About the raw bytes of each record; counts the files of large values."""
        with suppress(TypeError):  # not all values are bytes
            return list(map(add, map(len, keys), map(len, values)))  # type: ignore[arg-type]
        for value in values:
            if isinstance(value, Large):
                self._count(value)
        return list(map(add, map(len, keys), map(weight, values)))

    def _submit(self, bound: bytes, keys: list[bytes], values: list[Value]) -> None:
        size = self._leaf_size
        while self._waiting and (self._in_flight + size > IN_FLIGHT or self._waiting[0][1].done()):
            used, future = self._waiting.popleft()
            self._in_flight -= used
            self._done.append(future.result())
        self._waiting.append((size, self._pool.submit(self._leaf, bound, keys, values)))
        self._in_flight += size

    def _leaf(self, bound: bytes, keys: list[bytes], values: list[Value]) -> Entry:
        ref = self._sink.put(nodes.encode_leaf(keys, values), of_values(values))
        checksum, large = run_totals(keys, values)
        return Entry(bound, ref, 0, len(keys), large, checksum.to_bytes(16, "big"))

    def _count(self, value: Large) -> None:
        known = self._costs.get(value.record_hash)
        if known is not None:
            files, size = known
        elif value.depth:
            files, size = len(value.lists()) + value.size // CHUNK_SIZE, value.size
        else:
            refs = {ref for piece in value.pieces() for ref in piece.files()}
            files, size = len(refs), sum(ref.stored for ref in refs)
        self._extra_files += files
        self._extra_bytes += size

    def _index(self, entries: list[Entry]) -> Tree:
        files = len(entries) + self._extra_files
        size = sum(entry.ref.stored for entry in entries) + self._extra_bytes
        level = 0
        while len(entries) > 1:
            level += 1
            entries = list(self._pool.map(lambda group, at=level: self._node(group, at), groups(entries)))
            files += len(entries)
            size += sum(entry.ref.stored for entry in entries)
        return Tree(entries[0].ref, level, files, size)

    def _node(self, group: list[Entry], level: int) -> Entry:
        ref = self._sink.put(nodes.encode_index(group), of_index(self._sink.area, group))
        checksum = sum(int.from_bytes(entry.checksum, "big") for entry in group) % MODULUS
        return Entry(
            group[0].bound,
            ref,
            level,
            sum(entry.records for entry in group),
            sum(entry.large for entry in group),
            checksum.to_bytes(16, "big"),
        )


def weight(value: Value) -> int:
    """About the raw bytes of a value in a leaf."""
    if isinstance(value, bytes):
        return len(value) + 10
    return 10 if value is None else 100 + len(bytes(value.entries))


T = TypeVar("T")


def cut_stably(items: list[T], name: Callable[[T], bytes], least: int, most: int, mask: int) -> list[list[T]]:
    """Cut a list at places that depend on the names of the items alone, so that cuts stay put when items come and go."""
    found: list[list[T]] = [[]]
    for item in items:
        group = found[-1]
        at_cut = len(group) >= least and xxhash.xxh3_64_intdigest(name(item)) & mask == 0
        if at_cut or len(group) >= most:
            group = []
            found.append(group)
        group.append(item)
    return found


def cutter(average: int, least: int, most: int) -> Any:
    """Cuts bytes where their content says so. Raises SourceError where the fast cutter is missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            import pyfastcdc.cy as fast
        except (ImportError, Warning) as error:
            raise SourceError(
                "the compiled part of pyfastcdc is missing on this platform, and its Python part is too slow to use; "
                f"reinstall pyfastcdc with a C compiler at hand ({error})"
            ) from error
    return fast.FastCDC(average, min_size=least, max_size=most)


def groups(entries: list[Entry]) -> list[list[Entry]]:
    """The entries of one level, cut into index files."""
    return cut_stably(entries, lambda entry: entry.bound, INDEX_LEAST, INDEX_MOST, INDEX_MASK)
