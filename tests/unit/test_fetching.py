"""Files are fetched ahead of what is done with them: a slow one keeps no connection idle, and memory stays bounded."""

from __future__ import annotations

import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from publisher.build import Sink, TreeBuilder
from publisher.published import StoreFetcher
from puller.fetch import CONNECTIONS
from puller.tree import MOST, Reader, ahead
from puller.wire.codec import CHUNKS
from tests.benchmarks.behind import MemoryStore

LEAVES = 60


@pytest.fixture(scope="module")
def published():
    """A tree of 60 leaves of 1 MiB that are much smaller when stored."""
    store = MemoryStore()
    with ThreadPoolExecutor(2) as pool:
        builder = TreeBuilder(Sink(store, CHUNKS, None), pool)
        for n in range(2 * LEAVES):
            builder.add([b"%04d" % n], [random.Random(n).randbytes(64) * (1 << 13)])
        return store, builder.finish()


class Stalling(StoreFetcher):
    """The first leaf does not come before `others` have been asked for."""

    def __init__(self, store, first, others):
        super().__init__(store)
        self.first, self.others = first, others
        self.asked = 0
        self.now = self.most = 0
        self.changed = threading.Condition()

    def fetch(self, path, size, check=None):
        with self.changed:
            self.asked += self.first not in path
            self.now += 1
            self.most = max(self.most, self.now)
            self.changed.notify_all()
            if self.first in path:
                assert self.changed.wait_for(lambda: self.asked >= self.others, 10)
            self.now -= 1
        return super().fetch(path, size, check)


def test_a_file_that_is_slow_to_come_does_not_keep_others_from_being_fetched(published):
    store, tree = published
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        leaves = list(Reader(StoreFetcher(store), pool).leaves(CHUNKS, tree))
        assert len(leaves) == LEAVES
        assert sum(leaf.ref.stored for leaf in leaves) < 1 << 20 < sum(leaf.ref.raw for leaf in leaves) // LEAVES
        fetcher = Stalling(store, leaves[0].ref.sha256.hex(), LEAVES - 1)
        records = sum(len(keys) for keys, _ in Reader(fetcher, pool).snapshot(tree))
    assert records == 2 * LEAVES


def test_what_is_fetched_and_not_used_is_bounded(published):
    store, tree = published
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        reader = Reader(fetcher := StoreFetcher(store), pool)
        leaves = list(reader.leaves(CHUNKS, tree))
        stored = max(leaf.ref.stored for leaf in leaves)
        fetcher.requests = 0
        runs = reader.runs(CHUNKS, tree, budget=3 * stored)
        next(runs)
        pool.submit(lambda: None).result()
        assert fetcher.requests <= 1 + 8  # the index; three that are fetched, as many that are decoded, one more each
        runs.close()


def test_what_is_done_is_given_before_more_is_asked_for():
    """An eager stage gives what it has while it would have to wait for its next item."""
    used = []

    def items():
        for n in range(3):
            yield n
            used_by_now = list(used)
            assert used_by_now == list(range(n + 1))

    with ThreadPoolExecutor(1) as pool:

        class Now:
            def submit(self, work, item):
                future = pool.submit(work, item)
                future.result()
                return future

        for item, result in ahead(Now(), items(), lambda n: 2 * n, lambda _n: 1, eager=True):
            assert result == 2 * item
            used.append(item)
    assert used == [0, 1, 2]


def test_no_more_files_than_that_are_under_way():
    asked = []

    def items():
        for n in range(10 * MOST):
            asked.append(n)
            yield n

    with ThreadPoolExecutor(2) as pool:
        found = ahead(pool, items(), lambda n: n, lambda _n: 0)
        next(found)
        assert len(asked) == MOST + 1
        found.close()
