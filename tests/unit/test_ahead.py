"""Puts ahead of the publisher: bounded, all of them durable after a flush, and no error forgotten."""

from __future__ import annotations

import hashlib
import threading
import time

import pytest

from puller.errors import NotFound, Unavailable
from puller.stores.ahead import Ahead
from puller.stores.dry import DryStore
from puller.stores.folder import FolderStore


class Slow(FolderStore):
    """Puts wait until they are let go; counts what is under way."""

    def __init__(self, root):
        super().__init__(root)
        self.go = threading.Event()
        self.lock = threading.Lock()
        self.now = self.most = self.gets = 0
        self.fails = None

    def put(self, path, data):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        assert self.go.wait(10)
        with self.lock:
            self.now -= 1
        if self.fails:
            raise self.fails
        super().put(path, data)

    def get(self, path):
        self.gets += 1
        return super().get(path)


@pytest.fixture
def slow(tmp_path):
    return Slow(str(tmp_path))


def until(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError


def test_puts_return_at_once_and_flush_waits(slow, tmp_path):
    store = Ahead(slow, 4)
    for n in range(10):
        store.put(f"chunks/{n}", b"%d" % n)
    until(lambda: slow.now == 4)
    assert store.get("chunks/9") == b"9"
    assert not (tmp_path / "chunks").exists()
    flushed = threading.Thread(target=store.flush)
    flushed.start()
    time.sleep(0.05)
    assert flushed.is_alive()
    slow.go.set()
    flushed.join(10)
    assert len(list((tmp_path / "chunks").iterdir())) == 10
    assert (slow.most, store.written) == (4, 10)


def test_what_is_under_way_is_bounded_in_bytes(slow):
    store = Ahead(slow, 4, budget=1000)
    store.put("chunks/first", bytes(600))
    second = threading.Thread(target=lambda: store.put("chunks/second", bytes(600)))
    second.start()
    time.sleep(0.05)
    assert second.is_alive()
    slow.go.set()
    second.join(10)
    store.put("chunks/large", bytes(5000))  # more than the budget goes alone
    store.flush()


def test_an_error_is_raised_until_head_is_read_again(slow, tmp_path):
    store = Ahead(slow, 1)
    (tmp_path / "HEAD").write_bytes(b"head")
    slow.fails = Unavailable("down")
    store.put("chunks/a", b"a")
    store.put("chunks/b", b"b")
    slow.go.set()
    for _ in range(2):
        with pytest.raises(Unavailable):
            store.flush()
        with pytest.raises(Unavailable):
            store.put("chunks/c", b"c")
    slow.fails = None
    store.read_head()
    until(lambda: slow.now == 0)
    store.put("chunks/a", b"a")
    store.flush()
    assert (tmp_path / "chunks/a").read_bytes() == b"a"
    assert not (tmp_path / "chunks/b").exists()


def test_head_is_read_again_once_nothing_of_before_is_under_way(tmp_path):
    """The store below forgets then what was put: a file that was still under way would be taken for put since."""

    class Failing(Slow):
        def put(self, path, data):
            if path == "chunks/bad":
                raise Unavailable("down")
            super().put(path, data)

        def read_head(self):
            assert self.now == 0
            return super().read_head()

    inner = Failing(str(tmp_path))
    (tmp_path / "HEAD").write_bytes(b"head")
    store = Ahead(inner, 2)
    store.put("chunks/slow", b"a")
    until(lambda: inner.now == 1)
    store.put("chunks/bad", b"b")
    with pytest.raises(Unavailable):
        store.flush()
    threading.Timer(0.05, inner.go.set).start()
    store.read_head()
    store.put("chunks/slow", b"a")
    store.flush()


def test_diffs_are_not_got_twice_unless_they_are_damaged(slow, tmp_path):
    slow.go.set()
    store = Ahead(slow, 2)
    good, bad = (f"diffs/ab/{hashlib.sha256(data).hexdigest()}.zst" for data in (b"good", b"bad"))
    slow.put(good, b"good")
    slow.put(bad, b"damaged")
    for path in (good, bad):
        store.get(path)
        store.get(path)
    assert slow.gets == 3
    with pytest.raises(NotFound):
        store.get("diffs/none")


def test_threads_end_when_there_is_nothing_to_do(slow, monkeypatch):
    monkeypatch.setattr("puller.stores.ahead.IDLE", 0.05)
    before = threading.active_count()
    slow.go.set()
    store = Ahead(slow, 8)
    for n in range(20):
        store.put(f"chunks/{n}", b"x")
    store.flush()
    until(lambda: threading.active_count() == before)
    store.put("chunks/more", b"x")
    store.flush()


def test_a_dry_run_of_it_writes_nothing(slow, tmp_path):
    store = DryStore(Ahead(slow, 2))
    store.put("chunks/a", b"a")
    store.flush()
    store.probe()
    assert list(tmp_path.iterdir()) == []
