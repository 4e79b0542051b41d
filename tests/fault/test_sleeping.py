"""Machines that sleep in the worst moment: nobody deletes or publishes by what was true before."""

from __future__ import annotations

import time

import pytest

from puller.stores.base import StoreError
from puller.stores.s3 import HOLD, S3Store

PATHS = [f"chunks/aa/{n}.zst" for n in range(24)]
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
    return S3Store(f"{bucket.url}/data", connections=16)


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


def test_a_collector_that_deletes_one_by_one_stops_once_it_slept(bucket, store, machine):
    def fate(request):
        if request.method == "DELETE":
            machine.sleep(HOLD)
        return "unknown" if request.method == "POST" else "pass"

    bucket.proxy.fate = fate
    with pytest.raises(StoreError, match="took too long"):
        store.collect(PATHS, LATER)
    assert 1 <= bucket.proxy.count("DELETE") <= S3Store.threads
