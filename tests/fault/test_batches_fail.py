"""Batches that fail at every step, and programs that are killed: never a wrong state, and the next batch works."""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import pytest

import publisher
from publisher.dataset import Dataset
from puller.errors import HeadwaterError
from puller.stores.folder import FolderStore
from tests.conftest import ROOT
from tests.fault.test_faults import FaultyDatabase, FaultyStore
from tests.states import read_head, state_of

BIG = 9
START = {b"key%03d" % n: b"value %d" % n * 20 for n in range(500)}


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    """Everything a commit can do is due: the cache, its flush, a carried snapshot, wide diffs."""
    monkeypatch.setattr("publisher.hashes.SMALL", 0)
    monkeypatch.setattr("publisher.hashes.HELD", 10)
    monkeypatch.setattr("publisher.snapshots.CHUNK_SIZE", 8000)
    monkeypatch.setattr("publisher.build.CHUNK_SIZE", 8000)
    monkeypatch.setattr("publisher.dataset.ATTEMPTS", 2)


def change(store, cache, seed):
    r = random.Random(seed)
    changes = {key: r.randbytes(30) for key in r.sample(sorted(START), 140)}
    if seed == BIG:
        changes[b"big"] = bytes(1_200_000)
    with Dataset(store, str(cache)) as dataset, dataset.batch(allow_shrink=True) as batch:
        for key, value in changes.items():
            batch[key] = value
        for key in r.sample(sorted(START), 20):
            batch.discard(key)
            changes[key] = None
    return changes


def after(state, changes):
    return {key: value for key, value in (state | changes).items() if value is not None}


@pytest.fixture
def clean(tmp_path):
    """A dataset at version 7, whose next version is due for a snapshot and a wide diff; its state and cache."""
    folder, cache = tmp_path / "clean", tmp_path / "cache"
    with publisher.open(str(folder), kind="bytes", name="data", cache=False) as dataset, dataset.batch() as batch:
        for key, value in START.items():
            batch[key] = value
    state = START
    for seed in range(5):
        state = after(state, change(FolderStore(str(folder)), cache, seed))
    assert read_head(str(folder)).version == 7
    return folder, cache, state


@pytest.mark.parametrize("after_it", [False, True])
def test_a_batch_fails_at_every_step_of_the_store(tmp_path, clean, after_it):
    folder, cache, state = clean
    probe = FaultyStore(str(tmp_path / "probe"), -1, False)
    shutil.copytree(folder, probe.where)
    new = after(state, change(probe, tmp_path / "c", 9))
    assert state_of(probe.where) == new
    assert probe.steps >= 8
    assert read_head(probe.where).snapshot_version == 8
    for at in range(1, probe.steps + 1):
        dest, kept = str(tmp_path / f"d{at}"), tmp_path / f"c{at}"
        shutil.copytree(folder, dest)
        shutil.copytree(cache, kept)
        with pytest.raises(HeadwaterError, match="injected"):
            change(FaultyStore(dest, at, after_it), kept, 9)
        assert state_of(dest) in (state, new)
        change(FolderStore(dest), kept, 9)
        assert (state_of(dest), read_head(dest).version) == (new, 8)
        last = change(FolderStore(dest), kept, 10)
        assert state_of(dest) == after(new, last)
        shutil.rmtree(dest)


@pytest.mark.slow
def test_every_statement_of_the_cache_fails_once(tmp_path, clean, monkeypatch):
    """The batch is published all the same."""
    folder, cache, state = clean
    connect, at = sqlite3.connect, 0
    for start in (cache, None):
        at, finished = 0, False
        while not finished:
            at += 1
            dest, kept = str(tmp_path / "work"), tmp_path / "kept"
            shutil.copytree(folder, dest)
            if start is not None:
                shutil.copytree(start, kept)
            FaultyDatabase.left, FaultyDatabase.steps = at, 0
            with monkeypatch.context() as patch:
                patch.setattr(sqlite3, "connect", lambda *a, **o: connect(*a, **(o | {"factory": FaultyDatabase})))
                new = after(state, change(FolderStore(dest), kept, 9))
                finished = FaultyDatabase.steps < at
            assert state_of(dest) == new
            last = change(FolderStore(dest), kept, 10)
            assert state_of(dest) == after(new, last)
            shutil.rmtree(dest)
            shutil.rmtree(kept, ignore_errors=True)
            at += 0 if at < 8 else 24
        assert at > 8


WRITER = """
import random, sys
import publisher
from publisher import hashes
hashes.SMALL, hashes.HELD = 0, 500
with publisher.open(sys.argv[1]) as dataset:
    print("open", flush=True)
    n = int(dataset.get(b"count", b"0"))
    while True:
        n += 1
        with dataset.batch() as batch:
            r = random.Random(n)
            for k in r.sample(range(2000), 200):
                batch[b"%04d" % k] = b"%d" % n
            batch[b"count"] = b"%d" % n
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_a_version_and_the_next_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dest = str(tmp_path / "data")
    publisher.open(dest, kind="bytes").close()
    r, reached = random.Random(1), 0
    for _ in range(8):
        process = subprocess.Popen([sys.executable, "-c", WRITER, dest], cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"open\n"
        time.sleep(r.uniform(0.1, 0.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        state, expected = state_of(dest), {}
        count = int(state.get(b"count", b"0"))
        assert count >= reached
        assert read_head(dest).version == count + 1
        reached = count
        for n in range(1, count + 1):
            for k in random.Random(n).sample(range(2000), 200):
                expected[b"%04d" % k] = b"%d" % n
        assert state == expected | ({b"count": b"%d" % count} if count else {})
    assert reached > 8


def test_a_head_that_was_set_back_begins_no_second_history(tmp_path):
    dest = tmp_path / "d"
    with publisher.open(str(dest), kind="bytes", cache=False) as dataset:
        for n in range(5):
            with dataset.batch() as batch:
                batch[b"%d" % n] = b""
            if n == 1:
                old = (dest / "HEAD").read_bytes()
    (dest / "HEAD").write_bytes(old)
    with publisher.open(str(dest), cache=False) as dataset:
        assert dataset.version == 3
        told = r"set back to version 3, but version 5 .* Copy heads/1-5 to HEAD"
        with pytest.raises(HeadwaterError, match=told), dataset.batch() as batch:
            batch[b"x"] = b""
        (dest / "HEAD").write_bytes((dest / "heads/1-5").read_bytes())
        with dataset.batch() as batch:
            batch[b"x"] = b""
        assert dataset.version == 6
