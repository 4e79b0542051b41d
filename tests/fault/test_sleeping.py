"""Machines that sleep in the worst moment: nobody deletes or publishes by what was true before."""

from __future__ import annotations

import time

import pytest

from publisher import epochs
from publisher.commit import LONGEST
from publisher.dataset import Dataset
from publisher.keys import Keyring
from publisher.publish import Options, create, publish
from puller.errors import HeadwaterError
from puller.stores.base import StoreError, Unclear
from puller.stores.folder import FolderStore
from puller.stores.s3 import HOLD, S3Store
from tests.plain import PlainSource

PATHS = [f"chunks/aa/{n}.zst" for n in range(5)]
LATER = 2e10


class Machine:
    """Its clocks. One of them stands still while it sleeps."""

    def __init__(self, monkeypatch):
        clock = time.clock_gettime
        self.slept = 0.0
        monkeypatch.setattr(
            time, "clock_gettime", lambda which: clock(which) + (self.slept if which == time.CLOCK_BOOTTIME else 0.0)
        )

    def sleep(self, seconds):
        self.slept += seconds


@pytest.fixture
def machine(monkeypatch):
    return Machine(monkeypatch)


@pytest.fixture
def store(bucket):
    for path in PATHS:
        bucket.client.put_object(Bucket=bucket.name, Key=f"data/{path}", Body=b"old")
    return S3Store(f"{bucket.url}/data", connections=4)


def test_a_collector_that_slept_after_it_listed_removes_nothing(bucket, store, machine, monkeypatch):
    listed = S3Store._written_before

    def asleep(*arguments):
        found = listed(*arguments)
        machine.sleep(HOLD)
        return found

    monkeypatch.setattr(S3Store, "_written_before", asleep)
    with pytest.raises(StoreError, match="took too long"):
        store.collect(PATHS, LATER)
    assert bucket.proxy.count("POST") == 0
    assert len(list(store.list("chunks/"))) == len(PATHS)


def test_a_collector_that_deletes_one_by_one_stops_once_it_slept(bucket, store, machine, monkeypatch):
    monkeypatch.setattr(S3Store, "threads", 2)

    def fate(request):
        if request.method == "DELETE":
            machine.sleep(HOLD)
        return "unknown" if request.method == "POST" else "pass"

    bucket.proxy.fate = fate
    with pytest.raises(StoreError, match="took too long"):
        store.collect(PATHS, LATER)
    assert 1 <= bucket.proxy.count("DELETE") <= 2


class Sleepy(FolderStore):
    """Its machine sleeps in `flush`, or once a swap was sent whose answer is lost, which does not arrive."""

    def __init__(self, root, machine, within):
        super().__init__(root)
        self.machine, self.within, self.swaps = machine, within, 0

    def flush(self):
        super().flush()
        if self.within == "flush":
            self.machine.sleep(LONGEST + 1)

    def swap_head(self, expected, data, time):
        self.swaps += 1
        if self.within == "swap":
            self.machine.sleep(LONGEST + 1)
            raise Unclear("the answer got lost")
        return super().swap_head(expected, data, time)


def batch(store):
    with Dataset(store, None) as dataset, dataset.batch() as changes:
        changes[b"key"] = b"value"


@pytest.mark.parametrize(
    ("write", "existing"),
    [
        (batch, True),
        (lambda store: epochs.refresh(store, Keyring(None)), True),
        (lambda store: create(store, "data", "bytes"), False),
        (lambda store: publish(store, lambda *_: PlainSource("bytes", {b"k": b"v"}), "data", Options()), False),
    ],
    ids=["version", "refresh", "creation", "first version"],
)
def test_a_publisher_that_slept_swaps_nothing(tmp_path, machine, write, existing):
    root = str(tmp_path / "d")
    if existing:
        create(FolderStore(root), "data", "bytes")
    before = list(FolderStore(root).list("HEAD")) and FolderStore(root).read_head()
    store = Sleepy(root, machine, "flush")
    with pytest.raises(HeadwaterError, match=r"12 hours.* nothing was published"):
        write(store)
    assert store.swaps == 0
    store = Sleepy(root, machine, "swap")
    with pytest.raises(Unclear, match="is not known"):
        write(store)
    assert store.swaps == 1
    assert (list(FolderStore(root).list("HEAD")) and FolderStore(root).read_head()) == before
    write(FolderStore(root))
