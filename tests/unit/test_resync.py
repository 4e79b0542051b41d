"""Resync, held to plain dicts: from anything that may be held to a snapshot and the diffs after it."""

from __future__ import annotations

import random
import tempfile
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from publisher.build import Sink, TreeBuilder
from puller.errors import LocalEdits
from puller.fetch import FolderFetcher
from puller.resync import Resync, differences
from puller.stores.folder import FolderStore
from puller.tree import Reader
from puller.wire.checksum import record_hash, record_hashes
from puller.wire.codec import CHUNKS

KEYS = [b"%03d" % n for n in range(60)]


def sorted_run(state):
    keys = sorted(state)
    return keys, [state[key] for key in keys]


def held_of(state, step=7, lead=0):
    keys, values = sorted_run(state)
    hashes = record_hashes(keys, values)
    cuts = sorted({0, lead, *range(lead, len(keys), step), len(keys)})
    for start, end in pairwise(cuts):
        yield keys[start:end], hashes[start:end]


def edit(r, state, share):
    state = dict(state)
    for key in KEYS:
        if r.random() < share:
            if r.random() < 0.3:
                state.pop(key, None)
            else:
                state[key] = b"%d" % r.randrange(10**6)
    return state


def changes_between(states):
    """The keys that any step touches, with their values at the end."""
    touched = {key for old, new in pairwise(states) for key in old.keys() ^ new.keys()}
    touched |= {key for old, new in pairwise(states) for key in old.keys() & new.keys() if old[key] != new[key]}
    keys = sorted(touched)
    return keys, [states[-1].get(key) for key in keys]


class Snapshot:
    """A snapshot with many small leaves, and the leaves that are fetched."""

    def __init__(self, base, pool, state):
        builder = TreeBuilder(Sink(FolderStore(base), CHUNKS, None), pool, leaf_size=80)
        builder.add(*sorted_run(state))
        self.tree = builder.finish()
        self.fetcher = FolderFetcher(base)
        self.reader = Reader(self.fetcher, pool)

    def resync(self, held, changes, *, suspects, is_table=False):
        """The state that comes out, the runs, and the walk."""
        resync = Resync(self.reader, self.tree, is_table=is_table, suspects=suspects)
        runs = list(resync.runs(held_of(held, lead=int(is_table)), [changes]))
        state = dict(held)
        last = None
        for keys, values in runs:
            assert last is None or keys[0] > last
            assert keys == sorted(set(keys))
            last = keys[-1]
            for key, value in zip(keys, values, strict=True):
                assert (record_hash(key, state[key]) if key in state else None) != (
                    None if value is None else record_hash(key, value)
                )
                if value is None:
                    del state[key]
                else:
                    state[key] = value
        return state, runs


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(2) as threads:
        yield threads


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32), table=st.booleans())
def test_whatever_is_held_becomes_the_newest_state(pool, seed, table):
    r = random.Random(seed)
    states = [edit(r, {}, 0.8)]
    for _ in range(r.randrange(4)):
        states.append(edit(r, states[-1], r.choice([0.02, 0.3])))
    if table:
        for n, state in enumerate(states):
            state[b""] = b"schema %d" % (n * r.randrange(2))
    held = edit(r, r.choice([{}, states[0], states[-1]]), r.choice([0, 0.05, 0.9]))
    if table:
        held[b""] = r.choice([b"schema 0", b"another"])
    with tempfile.TemporaryDirectory() as base:
        snapshot = Snapshot(base, pool, states[0])
        state, _ = snapshot.resync(held, changes_between(states), suspects=None, is_table=table)
    assert state == states[-1]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_mixture_of_later_versions_needs_no_chunk_that_was_not_edited(pool, seed):
    r = random.Random(seed)
    states = [edit(r, {}, 0.8)]
    for _ in range(r.randrange(1, 4)):
        states.append(edit(r, states[-1], 0.05))
    mixed = {}
    for key in KEYS:
        state = r.choice(states)
        if key in state:
            mixed[key] = state[key]
    with tempfile.TemporaryDirectory() as base:
        snapshot = Snapshot(base, pool, states[0])
        indexes = snapshot.tree.level
        state, runs = snapshot.resync(mixed, changes_between(states), suspects=[])
        assert state == states[-1]
        assert snapshot.fetcher.requests <= max(indexes, 1)
        exact, runs = snapshot.resync(states[-1], changes_between(states), suspects=[])
        assert (exact, runs) == (states[-1], [])


def test_only_chunks_that_differ_are_fetched(pool, tmp_path):
    state = {b"%04d" % n: b"x" * 20 for n in range(500)}
    snapshot = Snapshot(str(tmp_path), pool, state)
    held = dict(state)
    held[b"0250"] = b"edited"
    del held[b"0400"]
    held[b"0450a"] = b"more"
    before, runs = snapshot.resync(held, ([], []), suspects=None)
    assert before == state
    assert [keys for keys, _ in runs] == [[b"0250"], [b"0400"], [b"0450a"]]
    assert snapshot.fetcher.requests == 3 + snapshot.tree.level


def test_suspects_are_the_only_chunks_that_are_fetched(pool, tmp_path):
    first = {b"%04d" % n: b"x" * 20 for n in range(500)}
    newest = first | {b"%04d" % n: b"changed" for n in range(0, 500, 5)}
    snapshot = Snapshot(str(tmp_path), pool, first)
    held = newest | {b"0252": b"edited"}
    state, runs = snapshot.resync(held, changes_between([first, newest]), suspects=[(b"0240", b"0260")])
    assert state == newest
    assert runs == [([b"0252"], [b"x" * 20])]
    assert snapshot.fetcher.requests <= snapshot.tree.level + 8


def test_what_is_out_of_order_is_refused(pool, tmp_path):
    snapshot = Snapshot(str(tmp_path), pool, {b"a": b"1", b"b": b"2"})
    for held in ([([b"b", b"a"], [1, 2])], [([b"b"], [1]), ([b"a"], [2])], [([b"a"], [1]), ([b"a"], [2])]):
        resync = Resync(snapshot.reader, snapshot.tree, is_table=False, suspects=None)
        with pytest.raises(LocalEdits):
            list(resync.runs(iter(held), []))


def test_no_row_is_read_before_the_schema_was_taken(pool, tmp_path):
    snapshot = Snapshot(str(tmp_path), pool, {b"": b"schema", b"a": b"1"})
    read = []

    def held():
        yield [b""], [record_hash(b"", b"old schema")]
        read.append("rows")
        yield [b"a"], [record_hash(b"a", b"1")]

    runs = Resync(snapshot.reader, snapshot.tree, is_table=True, suspects=None).runs(held(), [])
    assert next(runs) == ([b""], [b"schema"])
    assert read == []
    assert list(runs) == []
    assert read == ["rows"]


def test_differences():
    held = ([b"a", b"b", b"c"], [record_hash(k, b"1") for k in (b"a", b"b", b"c")])
    wanted = ([b"a", b"b", b"d"], [b"1", b"2", b"3"])
    assert differences(held, wanted, whole=False) == ([b"b", b"d"], [b"2", b"3"])
    assert differences(held, wanted, whole=True) == ([b"b", b"c", b"d"], [b"2", None, b"3"])
    assert differences(held, ([b"b", b"x"], [None, None]), whole=False) == ([b"b"], [None])
