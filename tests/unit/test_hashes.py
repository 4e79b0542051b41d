"""The local cache of record hashes: when it is made, that it never lies, and what happens when it does."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

import publisher
from publisher import cache
from publisher.cache import Cache, Place, Unusable, mark
from publisher.dataset import Dataset
from puller.errors import Invalid
from puller.stores.folder import FolderStore
from tests.states import read_head, state_of

RECORDS = {b"key%05d" % n: b"value %d" % n * 5 for n in range(2000)}


@pytest.fixture
def small(monkeypatch):
    """Limits at which everything is due at once."""
    monkeypatch.setattr("publisher.hashes.SMALL", 0)
    monkeypatch.setattr("publisher.hashes.READY", 0.5)
    monkeypatch.setattr("publisher.hashes.HELD", 100)
    monkeypatch.setattr("puller.lookup.KEPT", 0)
    monkeypatch.setattr("publisher.build.CHUNK_SIZE", 4000)
    monkeypatch.setattr("publisher.snapshots.CHUNK_SIZE", 4000)


@pytest.fixture
def dest(tmp_path, small):
    folder = str(tmp_path / "data")
    with publisher.open(folder, kind="bytes", cache=False) as dataset:
        put(dataset, RECORDS)
    return folder


def put(dataset, changes):
    with dataset.batch(allow_shrink=True) as batch:
        for key, value in changes.items():
            if value is None:
                batch.discard(key)
            else:
                batch[key] = value


def some(n: int, seed: int = 1, value: bytes = b"new") -> dict:
    return {key: value + key for key in random.Random(seed).sample(sorted(RECORDS), n)}


def opened(dest: str, folder: Path | None) -> Dataset:
    return Dataset(FolderStore(dest), None if folder is None else str(folder))


def caches(folder: Path) -> list[str]:
    return [name for name in os.listdir(folder) if name.endswith(".db")] if folder.exists() else []


def test_a_few_keys_do_not_build_a_cache_and_many_do(dest, tmp_path):
    folder = tmp_path / "c"
    with opened(dest, folder) as dataset:
        put(dataset, some(3))
        assert caches(folder) == []
        put(dataset, some(300))
        assert len(caches(folder)) == 1
    assert state_of(dest) == RECORDS | some(3) | some(300)


def test_few_keys_often_build_one_in_the_end(dest, tmp_path):
    folder = tmp_path / "c"
    with opened(dest, folder) as dataset:
        for seed in range(40):
            put(dataset, some(3, seed))
        assert len(caches(folder)) == 1


def test_a_cache_is_found_again_and_brought_up_to_date(dest, tmp_path, monkeypatch):
    folder = tmp_path / "c"
    with opened(dest, folder) as dataset:
        put(dataset, some(300))
    name = caches(folder)
    with opened(dest, None) as other:
        for seed in range(5):
            put(other, some(60, seed, b"%d" % seed))
    monkeypatch.setattr(cache, "build", None)
    with opened(dest, folder) as dataset:
        put(dataset, some(30, 9, b"x"))
        state = state_of(dest)
        found = Cache(str(folder / name[0]))
        place, held = found.look(sorted(state))
        assert place.version >= read_head(dest).version - 2
        since = dataset._hashes._since
        assert {k: since.get(k, held.get(k)) for k in held | since} == {k: mark(k, v) for k, v in state.items()}
        found.close()
    assert caches(folder) == name


def test_one_that_another_process_moved_beyond_what_is_read_is_not_believed(dest, tmp_path):
    folder = tmp_path / "c"
    with opened(dest, folder) as behind, opened(dest, folder) as ahead:
        put(behind, some(300))
        put(ahead, some(300, 2))
        behind.refresh()
        assert b"key00000" in behind
        put(ahead, dict.fromkeys(sorted(RECORDS)[:300]))
        ahead._hashes.flush()
        assert b"key00000" not in ahead
        assert b"key00000" in behind
        behind.refresh()
        assert b"key00000" not in behind


def test_the_cache_of_another_history_is_forgotten(dest, tmp_path):
    folder = tmp_path / "c"
    with opened(dest, folder) as dataset:
        put(dataset, some(300))
    old = caches(folder)
    shutil.rmtree(dest)
    publisher.open(dest, kind="bytes", cache=False).close()
    with opened(dest, folder) as dataset:
        put(dataset, dict(sorted(RECORDS.items())[:500]))
        put(dataset, some(300, 3))
    assert caches(folder) != old
    assert state_of(dest) == dict(sorted(RECORDS.items())[:500]) | some(300, 3)


def test_the_cache_of_another_history_that_was_shorter(dest, tmp_path, monkeypatch):
    folder = tmp_path / "c"
    with opened(dest, folder) as dataset:
        put(dataset, some(300))
    shutil.rmtree(dest)
    expected = dict.fromkeys(RECORDS, b"other")
    with publisher.open(dest, kind="bytes", cache=False) as dataset:
        put(dataset, expected)
        for n in range(4):
            put(dataset, {b"key00000": b"%d" % n})
    monkeypatch.setattr("publisher.snapshots.is_due", lambda *arguments: False)  # a carried snapshot would find it out
    with opened(dest, folder) as dataset:
        put(dataset, some(300, 3))
    assert state_of(dest) == expected | {b"key00000": b"3"} | some(300, 3)


def test_catching_up_holds_little_in_memory(dest, tmp_path, monkeypatch):
    folder = tmp_path / "c"
    with opened(dest, folder) as dataset:
        put(dataset, some(300))
    with opened(dest, None) as other:
        for seed in range(4):
            put(other, some(60, seed, b"%d" % seed))
    monkeypatch.setattr(cache, "build", None)
    with opened(dest, folder) as dataset:
        for n in range(20):
            assert b"key%05d" % n in dataset
        assert 0 < len(dataset._hashes._since) <= 120


def test_history_that_is_replaced_while_a_dataset_is_open(dest, tmp_path):
    folder = tmp_path / "c"
    with opened(dest, folder) as dataset:
        put(dataset, some(300))
        shutil.rmtree(dest)
        with publisher.open(dest, kind="bytes", name="data", cache=False) as other:
            for n in range(4):
                put(other, {b"%d" % n: b"", b"key00000": b"%d" % n})
        put(dataset, {b"key00000": b"mine", b"key00001": b"mine"})
        assert state_of(dest) == {
            b"0": b"",
            b"1": b"",
            b"2": b"",
            b"3": b"",
            b"key00000": b"mine",
            b"key00001": b"mine",
        }


def lie(folder: Path, key: bytes) -> None:
    (name,) = caches(folder)
    with sqlite3.connect(folder / name) as db:
        assert db.execute("UPDATE record SET mark = ? WHERE key = ?", (bytes(32), key)).rowcount == 1
    db.close()


def test_a_lie_is_found_before_a_snapshot_is_published(dest, tmp_path):
    folder = tmp_path / "c"
    with opened(dest, folder) as dataset:
        put(dataset, some(300))
    lie(folder, b"key00700")
    with opened(dest, folder) as dataset:
        put(dataset, dict.fromkeys(RECORDS, b"all"))
        assert dataset._was.head.snapshot_version == dataset.version
    assert state_of(dest) == dict.fromkeys(RECORDS, b"all")


def test_a_dataset_whose_checksum_is_wrong_already_is_refused(dest, tmp_path, monkeypatch):
    with opened(dest, None) as dataset, monkeypatch.context() as patch:
        patch.setattr("publisher.hashes.hash_sum", lambda found: 7 * len(found) ** 2)
        put(dataset, some(3) | {b"more": b""})
    before = Path(dest, "HEAD").read_bytes()
    with opened(dest, None) as dataset, pytest.raises(Invalid, match="nothing was published"):
        put(dataset, {key: b"all %d" % n * 900 for n, key in enumerate(RECORDS)})
    assert Path(dest, "HEAD").read_bytes() == before


@pytest.mark.parametrize("damage", ["garbage", "cut", "empty", "other", "schema", "folder"])
def test_a_damaged_cache_is_done_without(dest, tmp_path, damage):
    folder = tmp_path / "c"
    with opened(dest, folder) as dataset:
        put(dataset, some(300))
    path = folder / caches(folder)[0]
    data = path.read_bytes()
    path.unlink()
    if damage == "folder":
        folder.rmdir()
        folder.write_bytes(b"")
    elif damage == "schema":
        with sqlite3.connect(path) as db:
            db.execute(f"PRAGMA user_version={cache.FORMAT}")
            db.execute("CREATE TABLE place (epoch)")
    else:
        changed = data[:20_000] + bytes(5000) + data[25_000:]
        path.write_bytes({"garbage": b"x" * 5000, "cut": data[:9000], "empty": b"", "other": changed}[damage])
    with opened(dest, folder) as dataset:
        for seed in range(3, 7):
            put(dataset, some(200, seed))
    expected = RECORDS | some(300)
    for seed in range(3, 7):
        expected |= some(200, seed)
    assert state_of(dest) == expected


def test_advancing_needs_the_version_that_is_expected(tmp_path):
    one, two, three = (Place(1, n, "a") for n in (1, 2, 3))
    total = sum(int.from_bytes(mark(k, v)[:16], "big") for k, v in RECORDS.items()) % (1 << 128)
    with pytest.raises(Invalid, match="checksum"):
        cache.build(str(tmp_path), one, total + 1, [(list(RECORDS), list(RECORDS.values()))])
    assert os.listdir(tmp_path) == []
    found = cache.build(str(tmp_path), one, total, [(list(RECORDS), list(RECORDS.values()))])
    new = mark(b"key00001", b"x")
    assert not found.advance(two, three, {b"key00001": None})
    assert found.advance(one, two, {b"key00001": new, b"key00002": None})
    assert found.look([b"key00001", b"key00002", b"no"]) == (two, {b"key00001": new})
    found.close()
    with pytest.raises(Unusable):
        found.look([b"a"])


def test_marks_tell_values_apart_that_the_record_hash_does_not():
    assert mark(b"k", b"a")[16:] != mark(b"k", b"b")[16:]
    assert len(mark(b"k", b"a")) == 32
    assert mark(b"k", None) is None
