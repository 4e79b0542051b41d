"""Reading trees: from a reference to its records, fetched in parallel, in key order, within a memory budget."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from puller.errors import Corrupt, FetchError, Invalid, Missing, NotFound, Stale, Withheld
from puller.partial import Partial
from puller.parts import contains, cut
from puller.ranges import Bounds, overlaps
from puller.runs import merge
from puller.wire import nodes
from puller.wire.checksum import MODULUS, RecordHasher, check_large, run_sum
from puller.wire.codec import CHUNKS, DIFFS, MAX_STORED, Ref, check_ref, check_stored, decompress, path_of
from puller.wire.nodes import (
    AnyPiece,
    Diff,
    Entry,
    Held,
    Large,
    Log,
    Old,
    PatchedLarge,
    Piece,
    Run,
    Segment,
    Sublist,
    Tree,
    Value,
)

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

    from puller.fetch import Fetcher, Patience
    from puller.wire.cipher import Cipher
    from puller.wire.graph import Node

BUDGET = 32 * 1024 * 1024
"""Bytes of files that a stream may have under way at once: stored ones while they are fetched, raw ones after that."""

MOST = 64
"""Files that a stream may have under way at once: more than there are connections, so that none has to wait for work."""

DECODERS = 2
"""Threads that decode a stream's files: more would only wait for each other."""

NEAR = 4
"""How many times the width of a diff from the ends of a way such a diff is looked for."""
FINEST = 64
"""At the start of a way, diffs are not looked for that are narrower than this part of it."""

T = TypeVar("T")
S = TypeVar("S")


def ahead(
    pool: ThreadPoolExecutor,
    items: Iterator[S],
    work: Callable[[S], T],
    size: Callable[[S], int],
    budget: int = BUDGET,
    *,
    eager: bool = False,
) -> Generator[tuple[S, T]]:
    """Run `work` over `items` in the pool, in order, as many at once as the budget allows (at least one).

    `eager`: what is done is given at once, before further items are asked for, which may take long to come.
    """
    queue: deque[tuple[S, Future[T]]] = deque()
    used = 0
    try:
        for item in items:
            queue.append((item, pool.submit(work, item)))
            used += size(item)
            while queue and (used > budget or len(queue) > MOST or (eager and queue[0][1].done())):
                done, future = queue.popleft()
                used -= size(done)
                yield done, future.result()
        while queue:
            done, future = queue.popleft()
            yield done, future.result()
    finally:
        for _, future in queue:
            future.cancel()


def walk(
    pool: ThreadPoolExecutor,
    found: Iterable[Node],
    read: Callable[[Node], list[Node] | T],
    wanted: Callable[[Node], bool],
) -> Iterator[tuple[Node, list[Node] | T]]:
    """Files and all that they name, as far as they are `wanted`, each before those that it names.

    `read` is run in the pool; it gives the files that one names, or anything else where it does not go on from there.
    """
    for node, below in ahead(pool, filter(wanted, found), read, lambda node: node.ref.stored):
        yield node, below
        if isinstance(below, list):
            yield from walk(pool, below, read, wanted)


class Leaf:
    """A leaf's place in its tree: its entry's reference and the range [lower, upper) that it covers."""

    __slots__ = ("entry", "lower", "ref", "upper")

    def __init__(self, ref: Ref, lower: bytes, upper: bytes | None, entry: Entry | None) -> None:
        self.ref = ref
        self.lower = lower
        self.upper = upper
        self.entry = entry


class Reader:
    """Reads the immutable files of one dataset, verified. `done` counts the stored bytes of what was read.

    `cipher` decrypts them, where the dataset is encrypted.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        pool: ThreadPoolExecutor,
        partial: Partial | None = None,
        cipher: Cipher | None = None,
    ) -> None:
        self.fetcher = fetcher
        self.pool = pool
        self.partial = partial
        self.cipher = cipher
        self.patience: Patience | None = None
        """Whether, and how long, files that are missing are waited for."""
        self.done = 0
        self.cuts: dict[bytes, tuple[int, int]] = {}
        """Of chunks that lie only in part within the ranges that are read: number and checksum of the records there."""
        self._segments: dict[Segment, Log] = {}
        self._indexes: dict[bytes, bytes] = {}
        """Indexes that `narrow` read: they are needed again."""
        self._lock = threading.Lock()
        self._under_way: dict[bytes, Future[bytes]] = {}

    def stored(self, area: str, ref: Ref) -> bytes:
        """The stored bytes of a file, checked against its name. Raises Corrupt, or a FetchError."""
        check_ref(ref)
        data = self._once(ref, lambda: self._kept(ref) or self._fetched(area, ref))
        with self._lock:
            self.done += len(data)
        return data

    def _once(self, ref: Ref, fetch: Callable[[], bytes]) -> bytes:
        """What `fetch` gives; a thread that wants a file that another one is fetching waits for that."""
        from concurrent.futures import Future

        with self._lock:
            future = self._under_way.get(ref.sha256)
            mine = future is None
            if future is None:
                future = self._under_way[ref.sha256] = Future()
        if mine:
            try:
                future.set_result(fetch())
            except BaseException as error:
                future.set_exception(error)
                raise
            finally:
                with self._lock:
                    del self._under_way[ref.sha256]
        return future.result()

    def _kept(self, ref: Ref) -> bytes | None:
        return None if self.partial is None else self.partial.get(ref)

    def _fetched(self, area: str, ref: Ref) -> bytes:
        path = path_of(area, ref.sha256)

        def ask() -> bytes:
            return self.fetcher.fetch(path, min(ref.stored, MAX_STORED), lambda data: check_stored(ref, data))

        try:
            data = ask() if self.patience is None else self.patience.until_there(ask)
        except Corrupt as error:
            raise Corrupt(f"{path} is damaged ({error}); nothing of it was used") from error
        except (NotFound, Withheld) as error:
            kind = Missing if isinstance(error, NotFound) else Withheld
            raise kind(f"{error}, although the dataset names this file") from error
        if self.partial is not None:
            self.partial.keep(ref, data)
        return data

    def frame(self, area: str, ref: Ref, stored: bytes | None = None) -> bytes:
        """The frame in a file (SPEC 4.1), decrypted where the dataset is encrypted (SPEC 11.3).

        `stored` are its stored bytes, as `stored` gives them, where they are at hand.
        """
        stored = self.stored(area, ref) if stored is None else stored
        if self.cipher is None:
            return stored
        try:
            return self.cipher.decrypt(stored)
        except Corrupt as error:
            raise Corrupt(f"{path_of(area, ref.sha256)}: {error}; nothing of it was used") from error

    def load(self, area: str, ref: Ref, stored: bytes | None = None) -> bytes:
        """The raw bytes of a file."""
        return decompress(self.frame(area, ref, stored), ref.raw)

    def leaves(self, area: str, tree: Tree, within: Sequence[Bounds] | None = None) -> Iterator[Leaf]:
        """The leaves of a tree in key order; its indexes are read on the way. None without keys `within` some ranges."""
        return self._descend(area, Leaf(tree.ref, b"", None, None), tree.level, within)

    def _descend(self, area: str, node: Leaf, level: int, within: Sequence[Bounds] | None) -> Iterator[Leaf]:
        if level == 0:
            yield node
            return
        for below in self._below_node(area, node, level):
            if within is None or overlaps(within, below.lower, below.upper):
                assert below.entry is not None
                yield from self._descend(area, below, below.entry.level, within)

    def _below_node(self, area: str, node: Leaf, level: int) -> Iterator[Leaf]:
        """What an index names, with the range of each."""
        entries = self.index(area, node.ref, level, node.lower, node.upper, node.entry)
        for here, after in zip(entries, [*entries[1:], None], strict=True):
            yield Leaf(here.ref, here.bound, node.upper if after is None else after.bound, here)

    def index(
        self, area: str, ref: Ref, level: int, lower: bytes, upper: bytes | None, entry: Entry | None
    ) -> list[Entry]:
        """The entries of an index that covers [lower, upper); `entry` is what names it, where that is not the tree."""
        raw = self._indexes.get(ref.sha256) or self.load(area, ref)
        entries = nodes.decode_index(raw, level=level, lower=lower, upper=upper)
        if entry is not None and entry.records != sum(here.records for here in entries):
            raise Corrupt("an index holds another number of records than the one above it says")
        return entries

    def narrow(self, area: str, tree: Tree, within: Sequence[Bounds]) -> Tree:
        """The tree with the number and stored bytes of those of its files only that hold keys within some ranges.

        Reads the indexes that lead there, which are not fetched again. Large values count with the size of their
        contents, as far as all of the tree costs no less; those in a tree of one leaf count whole.
        """
        if tree.level == 0:
            return tree
        files, size = self._narrowed(area, Leaf(tree.ref, b"", None, None), tree.level, within)
        return Tree(tree.ref, tree.level, min(files, tree.files), min(size, tree.bytes))

    def _narrowed(self, area: str, node: Leaf, level: int, within: Sequence[Bounds]) -> tuple[int, int]:
        files, size = 1, node.ref.stored
        if level == 0:
            return files, size + (0 if node.entry is None else node.entry.large)
        if node.ref.sha256 not in self._indexes:
            self._indexes[node.ref.sha256] = self.load(area, node.ref)
        for one in self._below_node(area, node, level):
            if overlaps(within, one.lower, one.upper):
                assert one.entry is not None
                inner = self._narrowed(area, one, one.entry.level, within)
                files, size = files + inner[0], size + inner[1]
        return files, size

    def proof(self, tree: Tree, within: Sequence[Bounds], known: dict[bytes, tuple[int, int]]) -> tuple[int, int]:
        """Number and checksum of the records of a snapshot within some ranges, by its indexes (SPEC 5.2).

        Chunks that lie there only in part are read for it, unless `known` has what they hold there; `cuts` has that
        afterwards.
        """
        cuts, self.cuts = {**known, **self.cuts}, {}
        records = checksum = 0
        for here in self._proven(Leaf(tree.ref, b"", None, None), tree.level, within):
            if here.entry is not None and contains(within, here.lower, here.upper):
                records += here.entry.records
                checksum += int.from_bytes(here.entry.checksum, "big")
                continue
            name = here.ref.sha256
            if name in cuts:
                self.cuts[name] = cuts[name]
            else:
                self.cut_leaf(CHUNKS, here, within)
            records, checksum = records + self.cuts[name][0], checksum + self.cuts[name][1]
        return records, checksum % MODULUS

    def _proven(self, node: Leaf, level: int, within: Sequence[Bounds]) -> Iterator[Leaf]:
        """The largest parts of a snapshot that lie within ranges, and the leaves that lie there only in part."""
        if level == 0 or (node.entry is not None and contains(within, node.lower, node.upper)):
            yield node
            return
        for below in self._below_node(CHUNKS, node, level):
            if overlaps(within, below.lower, below.upper):
                assert below.entry is not None
                yield from self._proven(below, below.entry.level, within)

    def cut_leaf(self, area: str, leaf: Leaf, within: Sequence[Bounds] | None, stored: bytes | None = None) -> Run:
        """The records of one leaf within some ranges. Of a chunk that is cut, `cuts` has then what they come to."""
        run = self.leaf(area, leaf, stored)
        if within is None:
            return run
        run = cut(*run, within)
        if area == CHUNKS and not (leaf.entry is not None and contains(within, leaf.lower, leaf.upper)):
            self.cuts[leaf.ref.sha256] = len(run[0]), run_sum(*run)
        return run

    def leaf(self, area: str, leaf: Leaf, stored: bytes | None = None) -> Run:
        """The records of one leaf."""
        deletions = area == DIFFS
        run = nodes.decode_leaf(
            self.load(area, leaf.ref, stored), lower=leaf.lower, upper=leaf.upper, deletions=deletions
        )
        if leaf.entry is not None and leaf.entry.records != len(run[0]):
            raise Corrupt("a leaf holds another number of records than its index says")
        return run

    def staged(
        self, area: str, leaves: Iterator[Leaf], decode: Callable[[Leaf, bytes], T], budget: int = BUDGET
    ) -> Iterator[tuple[Leaf, T]]:
        """What `decode` makes of leaves and their stored bytes, in order.

        Fetching goes on while they are decoded and used: it waits for the network, and only stored bytes lie waiting.
        """
        from concurrent.futures import ThreadPoolExecutor

        fetched = ahead(
            self.pool, leaves, lambda leaf: self.stored(area, leaf.ref), lambda leaf: leaf.ref.stored, budget
        )
        with contextlib.closing(fetched), ThreadPoolExecutor(DECODERS) as decoders:
            for (leaf, _), result in ahead(
                decoders, fetched, lambda item: decode(*item), lambda item: item[0].ref.raw, budget, eager=True
            ):
                yield leaf, result

    def runs(
        self, area: str, tree: Tree, budget: int = BUDGET, within: Sequence[Bounds] | None = None
    ) -> Iterator[Run]:
        """The records of a tree, all or those within some ranges.

        Raises Corrupt, or a FetchError, which names the tree if it is a diff's.
        """
        leaves = self.leaves(area, tree, within)
        try:
            for _, run in self.staged(
                area, leaves, lambda leaf, stored: self.cut_leaf(area, leaf, within, stored), budget
            ):
                if run[0]:
                    yield run
        except (Corrupt, FetchError) as error:
            error.diff = tree.ref.sha256 if area == DIFFS else None
            raise

    def snapshot(self, tree: Tree) -> Iterator[Run]:
        """The records of a snapshot."""
        return self.runs(CHUNKS, tree)

    def diff(self, diff: Diff) -> Iterator[Run]:
        """The records of a diff, deletions as None."""
        return self.runs(DIFFS, diff.tree)

    def merged(self, trees: Sequence[tuple[str, Tree]], within: Sequence[Bounds] | None = None) -> Iterator[Run]:
        """The newest value of each key in several trees, each newer than the one before; they share one budget."""
        if not trees:
            return iter(())
        return merge([self.runs(area, tree, BUDGET // len(trees), within) for area, tree in trees])

    def patch(self, tree: Tree, values: Callable[[list[bytes]], list[Value]]) -> Iterator[Run]:
        """The records of a patch, deletions as None; `values` gives those of keys at the version it was made for.

        Raises Stale where they are not those.
        """

        def decode(leaf: Leaf, stored: bytes) -> nodes.PatchLeaf:
            return nodes.decode_patch(self.load(DIFFS, leaf.ref, stored), lower=leaf.lower, upper=leaf.upper)

        for _, leaf in self.staged(DIFFS, self.leaves(DIFFS, tree), decode):
            dictionary = nodes.patch_dictionary(values(leaf.keys))
            found = leaf.values(dictionary) if len(dictionary) <= nodes.MAX_PATCH else None
            if found is None:
                raise Stale("the values that are held are not those that the patch was made for")
            yield leaf.keys, found

    def log(self, ref: Ref, within: Segment | None = None) -> Log:
        """A log file; `within` is the segment that names it, where it is not HEAD that does."""
        return nodes.decode_log(self.load(DIFFS, ref), within)

    def listed(self, log: Log, start: int, end: int, *, least: int | None = None) -> list[Diff]:
        """The diffs that a log and its segments list and that may lead from version `start` towards `end`.

        Diffs are wanted narrow near the ends and wide between, and at the start none that are narrow for the whole way:
        a wider one over a little more costs less than to find out. So segments that lie far from both ends for the width
        of their diffs are not read, unless these are at least `least` wide.
        """
        found: list[Diff] = []
        seen: set[bytes] = set()
        level = [log]

        def is_wanted(s: Segment) -> bool:
            near = s.a <= start + NEAR * s.widest and s.widest * FINEST >= end - start
            return near or s.b > end - NEAR * s.widest or (least is not None and s.widest >= least)

        for _ in range(nodes.MAX_LOG_NESTING + 1):
            found += (diff for part in level for diff in part.diffs if start < diff.b <= end)
            segments = [s for part in level for s in part.segments if start < s.b and s.a < end]
            wanted = [s for s in segments if s.ref.sha256 not in seen and is_wanted(s)]
            if not wanted:
                return found
            seen.update(s.ref.sha256 for s in wanted)
            level = [part for _, part in ahead(self.pool, iter(wanted), self._segment, lambda s: s.ref.raw)]
        raise Invalid("the segments of a log are nested more than eight deep")

    def search(
        self, log: Log, start: int, end: int, known: Iterable[Diff], without: Collection[bytes] = ()
    ) -> list[Diff]:
        """`known` and as many diffs of a log as it takes to have a way from version `start` to `end`, if there is one.

        What the first look leaves open is looked for among the widest diffs first. `without` names the roots of diffs
        that are of no use.
        """
        from puller.plan import gaps

        def sound(diffs: list[Diff]) -> list[Diff]:
            return [diff for diff in diffs if diff.tree.ref.sha256 not in without]

        found = [*known, *sound(self.listed(log, start, end))]
        for least in sorted({segment.widest for segment in log.segments}, reverse=True):
            for a, b in gaps(start, end, found):
                found += sound(self.listed(log, a, b, least=least))
        return found

    def _segment(self, segment: Segment) -> Log:
        if segment not in self._segments:
            self._segments[segment] = self.log(segment.ref, segment)
        return self._segments[segment]

    def large(self, key: bytes, value: Large, held: Held | None = None, old: Old | None = None) -> Iterator[bytes]:
        """The bytes of a large value, piece by piece; what `held` gives for a piece or a base is not fetched.

        `old` gives bytes of the key's value at the version that the value's patch was made for. Raises Corrupt at the end
        if the bytes are not what the value declares (Stale with `held` or `old`, whose contents may be at fault): use
        nothing before that.
        """
        hasher = RecordHasher(key)
        sha256 = hashlib.sha256()
        size = 0
        trusting = held is not None or old is not None
        pieces = self.pieces(value) if old is None else self._patched(value)
        for _, part in ahead(self.pool, pieces, lambda piece: self.piece(piece, held, old), _work):
            size += len(part)
            hasher.update(part)
            if trusting:
                sha256.update(part)
            yield part
        right = check_large(value, hasher, size)
        if trusting and not (right and sha256.digest() == value.sha256):
            raise Stale(f"{key.decode(errors='replace')}: pieces that are held do not give what the value declares")
        if not right:
            raise Corrupt(f"{key.decode(errors='replace')}: the pieces of the value do not give what was declared")

    def whole(self, key: bytes, value: Value) -> bytes:
        """The bytes of a value that is not deleted, assembled where it is large."""
        assert value is not None
        return value if isinstance(value, bytes) else b"".join(self.large(key, value))

    def pieces(self, value: Large) -> Iterator[Piece]:
        """The pieces of a large value; its lists are read on the way."""
        if value.depth == 0:
            yield from value.pieces()
        else:
            for item in value.lists():
                yield from self._below(item, value.depth - 1)

    def _patched(self, value: Large) -> Iterator[AnyPiece]:
        """The pieces of a large value, for a reader that holds the version that its patch was made for (SPEC 5.7)."""
        left = dict(value.instead) if isinstance(value, PatchedLarge) else {}
        for number, piece in enumerate(self.pieces(value)):
            found = left.pop(number, piece)
            if (found.raw, found.check) != (piece.raw, piece.check):
                raise Invalid("a piece of a patch has another content than the one it stands for")
            yield found
        if left:
            raise Invalid("a patch has more pieces for a value than that has")

    def _below(self, item: Sublist, depth: int) -> Iterator[Piece]:
        raw = self.load(CHUNKS, item.ref)
        if len(raw) > nodes.MAX_NODE:
            raise Invalid("a list of pieces is larger than 4 MiB")
        if depth == 0:
            yield from nodes.decode_pieces(raw, item.size)
        else:
            for below in nodes.decode_sublists(raw, item.size):
                yield from self._below(below, depth - 1)

    def piece(self, piece: AnyPiece, held: Held | None = None, old: Old | None = None) -> bytes:
        """The content of a piece; what `held` gives of it and of its bases is not fetched, and `old` gives ranges."""
        return nodes.build_piece(piece, lambda ref: self.frame(CHUNKS, ref), held, old)


def _work(piece: AnyPiece) -> int:
    """Bytes that it takes to build a piece: its content, its bases, and the dictionary made of them."""
    return piece.raw + 2 * sum(base.raw for base in piece.bases)
