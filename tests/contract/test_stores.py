"""One suite for every store: what puller/stores/base.py promises."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time

import pytest

from puller.errors import Conflict, HeadwaterError, NotFound, Unavailable, UsageError
from puller.stores import open_store
from puller.stores.base import ABSENT, Unclear

NAME = "chunks/ab/" + "ab" * 32 + ".zst"


@pytest.fixture(params=["folder", "s3", "s3 single-writer"])
def place(request, tmp_path):
    """An address, and how to open it; a place in a bucket is one prefix among others."""
    if request.param == "folder":
        return str(tmp_path / "dest"), {}
    if request.param == "s3":
        return f"{request.getfixturevalue('bucket').url}/a/dest", {}
    return f"{request.getfixturevalue('careless_bucket').url}/a/dest", {"single_writer": True}


@pytest.fixture
def store(place):
    return open_store(place[0], **place[1])


def test_files_come_back(store):
    assert store.size_of(NAME) is None
    store.put(NAME, b"data")
    store.put(NAME, b"data")
    assert store.size_of(NAME) == 4
    assert store.get(NAME) == b"data"
    store.flush()
    assert store.get(NAME) == b"data"
    assert store.written == 8
    with pytest.raises(NotFound):
        store.get(NAME + "x")


def test_create_only_once(store):
    assert store.create("heads/1-1", b"first")
    assert not store.create("heads/1-1", b"second")
    assert store.get("heads/1-1") == b"first"


def test_head_is_swapped_only_from_what_was_read(store):
    with pytest.raises(NotFound):
        store.read_head()
    token = store.swap_head(ABSENT, b"one", 1000)
    assert store.read_head() == (b"one", token)
    for wrong in (ABSENT, "something else"):
        with pytest.raises((Conflict, Unclear)):
            store.swap_head(wrong, b"two", 1001)
    assert store.read_head()[0] == b"one"
    assert store.read_head()[1] == token
    store.swap_head(token, b"two", 1001)
    assert store.read_head()[0] == b"two"
    with pytest.raises((Conflict, Unclear)):
        store.swap_head(token, b"three", 1002)
    assert store.read_head()[0] == b"two"


def swapper(address, number, results):
    store = open_store(address)
    won = 0
    while won < 10:
        data, token = store.read_head()
        try:
            store.swap_head(token, b"%d of %d" % (int(data.split()[0]) + 1, number), 1000)
            won += 1
        except (Conflict, Unclear):
            pass  # nothing gets lost on the way here: it did not come through
    results.put(number)


@pytest.mark.parametrize("place", ["folder", "s3"], indirect=True)
def test_no_swap_is_lost_between_processes(store, place):
    store.swap_head(ABSENT, b"0 of 0", 1000)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=swapper, args=(place[0], n, results)) for n in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert store.read_head()[0].split()[0] == b"30"


def test_list_and_delete(store):
    assert list(store.list("chunks/")) == []
    names = [f"chunks/{n:02x}/{n:064x}.zst" for n in range(30)]
    for name in [*names, "diffs/ab/x.zst"]:
        store.put(name, b"x")
    store.flush()
    assert sorted(store.list("chunks/")) == names
    assert sorted(store.list("chunks/0")) == [name for name in names if name.startswith("chunks/0")]
    store.delete(names[0])
    store.delete(names[0])
    assert sorted(store.list("chunks/")) == names[1:]


def test_files_have_sizes_and_times_by_the_stores_clock(store, place):
    store.create("heads/1-2", b"xx")
    before = store.clock()
    store.put(NAME, b"four")
    store.flush()
    store.create("heads/1-1", b"x")
    after = store.clock()
    (file,) = store.files("chunks/")
    assert (file.path, file.size) == (NAME, 4)
    seconds = place[0].startswith("s3://")  # its clock tells whole ones
    assert before <= file.written <= after + seconds
    assert sorted(file[:2] for file in store.files("heads/")) == [("heads/1-1", 1), ("heads/1-2", 2)]
    assert list(store.files("diffs/")) == []


def test_only_what_was_written_long_ago_is_collected(store, place):
    step = 1.05 if place[0].startswith("s3://") else 0.02  # S3's clock tells whole seconds
    store.put(NAME, b"old")
    store.flush()
    time.sleep(step)
    between = store.clock()
    time.sleep(step)
    fresh = NAME.replace("ab", "cd")
    store.put(fresh, b"new")
    store.flush()
    assert store.collect([NAME], between, lambda: True) == set()
    assert store.collect([NAME, fresh, NAME.replace("ab", "ef")], between) == {NAME}
    assert list(store.list("chunks/")) == [fresh]
    assert store.foreign() is None
    store.put(NAME, b"old")
    store.flush()
    assert store.collect([NAME], between) == set()
    assert store.get(NAME) == b"old"


def test_a_file_that_is_put_while_it_is_collected_stays(tmp_path, monkeypatch):
    """In the moment between the look at an old file and its removal, nobody can put it."""
    store = open_store(str(tmp_path))
    store.put(NAME, b"x")
    putting = threading.Thread(target=open_store(str(tmp_path)).put, args=(NAME, b"x"))
    unlink = os.unlink

    def late(path):
        monkeypatch.undo()
        putting.start()
        putting.join(0.2)
        assert putting.is_alive()
        unlink(path)

    monkeypatch.setattr("puller.stores.folder.os.unlink", late)
    assert store.collect([NAME], time.time() + 10) == {NAME}
    putting.join(10)
    assert store.get(NAME) == b"x"


def test_many_threads(store):
    threads = [
        threading.Thread(target=lambda n=n: [store.put(f"chunks/{n:02x}/{i}", b"%d" % i) for i in range(20)])
        for n in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.flush()
    assert len(list(store.list("chunks/"))) == 160
    assert store.get("chunks/07/19") == b"19"


def test_foreign_content_is_noticed(store, place, tmp_path):
    assert store.foreign() is None
    store.put(NAME, b"x")
    store.create("heads/1-1", b"x")
    assert store.foreign() is None
    if place[0].startswith("s3://"):
        store.put("thesis.tex", b"mine")
        store.flush()
    else:
        (tmp_path / "dest/thesis.tex").write_text("mine")
    assert store.foreign() == "thesis.tex"


def test_a_store_knows_whether_it_can_be_used(store):
    store.probe()
    assert store.foreign() is None
    assert list(store.list("")) == []


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    store = open_store(str(tmp_path / "file/folder"))
    with pytest.raises(HeadwaterError):
        store.put(NAME, b"x")
    with pytest.raises(Unavailable):
        store.read_head()


def test_head_gets_a_new_whole_second_each_time(tmp_path):
    store = open_store(str(tmp_path))
    token = store.swap_head(ABSENT, b"one", 5_000_000_000)
    store.swap_head(token, b"two", 5_000_000_001)
    assert (tmp_path / "HEAD").stat().st_mtime == 5_000_000_001


def test_addresses():
    assert open_store("file:///x/y").where == "/x/y"
    assert open_store("s3://bucket/x/").where == "s3://bucket/x"
    for address in ("ftp://host/x", "s3://", "s3:///x", "s3://bucket/x?y=1"):
        with pytest.raises(UsageError):
            open_store(address)
