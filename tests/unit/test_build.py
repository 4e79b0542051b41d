"""Trees: what is built is read back; a snapshot that is carried forward keeps the chunks that nothing touched."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from publisher import build, snapshots
from publisher.build import Sink, TreeBuilder, cut_stably, separator
from publisher.published import StoreFetcher
from publisher.snapshots import carry, split
from puller.errors import NotFound
from puller.tree import Reader
from puller.wire import nodes
from puller.wire.checksum import run_sum
from puller.wire.codec import CHUNKS, DIFFS, encode


class Memory:
    """As much of a store as trees need."""

    where = "memory"

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.written = 0

    def put(self, path, data):
        self.files[path] = data
        self.written += len(data)

    def get(self, path):
        try:
            return self.files[path]
        except KeyError as error:
            raise NotFound(path) from error


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def small_indexes(monkeypatch):
    monkeypatch.setattr(build, "INDEX_LEAST", 2)
    monkeypatch.setattr(build, "INDEX_MOST", 6)
    monkeypatch.setattr(build, "INDEX_MASK", 3)


def built(store, pool, records, leaf_size=200, area=CHUNKS, lead=None, batch=7):
    builder = TreeBuilder(Sink(store, area, None), pool, leaf_size)
    keys = sorted(records)
    for n in range(0, len(keys), batch):
        part = keys[n : n + batch]
        builder.add(part, [records[k] for k in part])
    tree = builder.finish(lead)
    return tree, builder


def read(store, pool, tree, area=CHUNKS):
    runs = list(Reader(StoreFetcher(store), pool).runs(area, tree))
    keys = [k for run in runs for k in run[0]]
    assert keys == sorted(keys)
    return {k: v for run in runs for k, v in zip(*run, strict=True)}


@settings(deadline=None, max_examples=60)
@given(st.dictionaries(st.binary(max_size=8), st.binary(max_size=120), max_size=120), st.integers(1, 30), st.booleans())
def test_trees_come_back(records, batch, lead_first):
    with ThreadPoolExecutor(2) as pool:
        store = Memory()
        records.pop(b"", None)
        lead = ([b""], [b"lead"]) if lead_first else None
        tree, builder = built(store, pool, records, batch=batch, lead=lead)
        expected = records | ({b"": b"lead"} if lead_first else {})
        assert read(store, pool, tree) == expected
        assert builder.checksum == run_sum(sorted(expected), [expected[k] for k in sorted(expected)])
        assert (tree.files, tree.bytes) == (len(store.files), sum(map(len, store.files.values()))) or tree.files > len(
            store.files
        )


def test_deep_indexes_and_deletions(pool, small_indexes):
    r = random.Random(1)
    records = {b"key%05d" % n: None if n % 7 == 0 else r.randbytes(50) for n in range(2000)}
    store = Memory()
    tree, _ = built(store, pool, records, area=DIFFS)
    assert tree.level >= 3
    assert read(store, pool, tree, DIFFS) == records
    leaves = list(Reader(StoreFetcher(store), pool).leaves(DIFFS, tree))
    assert leaves[0].lower == b""
    assert leaves[-1].upper is None
    assert all(a.upper == b.lower for a, b in pairwise(leaves))


def test_index_entries_add_up(pool, small_indexes):
    records = {b"%05d" % n: b"v" * (n % 50) for n in range(500)}
    store = Memory()
    tree, builder = built(store, pool, records)
    reader = Reader(StoreFetcher(store), pool)
    root = nodes.decode_index(reader.load(CHUNKS, tree.ref), level=tree.level)
    assert sum(e.records for e in root) == len(records)
    assert sum(int.from_bytes(e.checksum, "big") for e in root) % (1 << 128) == builder.checksum


@given(st.binary(max_size=6), st.binary(min_size=1, max_size=6))
def test_separators_lie_between(a, b):
    low, high = sorted((a, b))
    if low < high:
        bound = separator(low, high)
        assert low < bound <= high
        assert len(bound) <= len(high)


def test_cuts_stay_put():
    r = random.Random(2)
    items = [r.randbytes(8) for _ in range(5000)]
    before = {tuple(group) for group in cut_stably(items, lambda i: i, 20, 500, 63)}
    items.insert(2000, b"inserted")
    after = {tuple(group) for group in cut_stably(items, lambda i: i, 20, 500, 63)}
    assert len(before - after) <= 3


@pytest.mark.parametrize("kind", ["few", "insert", "grow", "shrink", "first", "all"])
def test_a_snapshot_carried_forward(pool, monkeypatch, kind):
    monkeypatch.setattr(snapshots, "CHUNK_SIZE", 2000)
    monkeypatch.setattr(build, "CHUNK_SIZE", 2000)
    r = random.Random(3)
    state = {b"key%06d" % (n * 10): r.randbytes(60) for n in range(3000)}
    store = Memory()
    tree, _ = built(store, pool, state, leaf_size=2000, batch=100)
    reader = Reader(StoreFetcher(store), pool)
    for step in range(4):
        keys = sorted(state)
        changes: dict = {
            "few": lambda keys=keys: {k: r.randbytes(60) for k in r.sample(keys, 5)},
            "insert": lambda: {b"key%06d" % r.randrange(30_000): r.randbytes(60) for _ in range(50)},
            "grow": lambda step=step: {b"key005000-%d-%04d" % (step, n): r.randbytes(60) for n in range(400)},
            "shrink": lambda keys=keys: dict.fromkeys(keys[len(keys) // 4 : len(keys) // 4 + 500]),
            "first": lambda keys=keys: dict.fromkeys(keys[:100]),
            "all": lambda keys=keys: {k: r.randbytes(60) for k in keys},
        }[kind]()
        diff, _ = built(store, pool, changes, area=DIFFS, leaf_size=5000)
        state = {k: v for k, v in (state | changes).items() if v is not None}
        old = {leaf.ref for leaf in reader.leaves(CHUNKS, tree)}
        tree, _ = carry(reader, tree, [nodes.Diff(step, step + 1, diff)], Sink(store, CHUNKS, None), pool)
        assert read(store, pool, tree) == state
        leaves = list(reader.leaves(CHUNKS, tree))
        sizes = [leaf.ref.raw for leaf in leaves]
        assert max(sizes) <= 4500
        assert sorted(sizes)[len(sizes) // 20] >= 400
        kept = len(old & {leaf.ref for leaf in leaves})
        if kind == "few":
            assert len(old) - kept <= 5
        if kind in ("grow", "shrink"):
            assert kept >= len(old) - 25


def test_large_values_in_chunks_that_stay_are_counted(pool):
    def large_value(n: int) -> nodes.Large:
        pieces = [nodes.Piece(bytes([n]) * 32, 500_000, 1 << 20, bytes(16), [])] * 2
        return nodes.Large(2 << 20, bytes([n]) * 16, bytes(32), 0, msgspec.Raw(encode(pieces)))

    state = {b"%04d" % n: large_value(n // 100) if n % 100 == 0 else bytes(50) for n in range(1000)}
    store = Memory()
    tree, _ = built(store, pool, state, leaf_size=500)
    assert tree.bytes > 10 * 500_000
    diff, _ = built(store, pool, {b"0350": bytes(60)}, area=DIFFS)
    carried, _ = carry(
        Reader(StoreFetcher(store), pool), tree, [nodes.Diff(1, 2, diff)], Sink(store, CHUNKS, None), pool
    )
    assert abs(carried.bytes - tree.bytes) < 0.15 * tree.bytes


def test_splitting_is_even():
    run = ([b"%04d" % n for n in range(1000)], [bytes(5000)] * 1000)
    parts = list(split([run]))
    assert [k for part in parts for k in part[0]] == run[0]
    sizes = [sum(map(len, values)) for _, values in parts]
    assert max(sizes) - min(sizes) < 0.4 * build.CHUNK_SIZE


def test_what_grew_is_split_as_it_comes():
    taken = 0

    def runs():
        nonlocal taken
        for n in range(200):
            taken += 1
            yield [b"%08d" % (100 * n + i) for i in range(100)], [bytes(5000)] * 100

    keys: list[bytes] = []
    for part in split(runs()):
        keys += part[0]
        assert 500_000 * taken - 5000 * len(keys) < snapshots.MOST + build.CHUNK_SIZE
        assert 0.5 * build.CHUNK_SIZE < 5000 * len(part[0]) <= 2 * build.CHUNK_SIZE
    assert keys == [b"%08d" % n for n in range(20_000)]
