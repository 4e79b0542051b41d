"""Replicas as programs use them: readers beside pulls, listeners, what is refused, and what it costs."""

from __future__ import annotations

import errno
import io
import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import tracemalloc
from contextlib import closing, redirect_stderr, redirect_stdout

import pytest

import puller
from publisher import open as dataset
from puller import Change, File, HeadwaterError, Replica
from puller.cli import entry
from puller.errors import Invalid, LocalEdits, Moved, TargetError, UsageError
from puller.events import Watch
from puller.targets.base import Opening
from puller.wire.checksum import MODULUS, record_hashes, run_sum
from tests.conftest import ROOT, publisher
from tests.conftest import puller as puller_command
from tests.plain import publish_records


def state(version: int, size: int = 120) -> dict[bytes, bytes]:
    """Every value says its version; keys come and go."""
    return {b"%05d" % n: b"%d" % version for n in range(size) if (n + version) % 7}


PLACES = {"memory": ("bytes", None), "database": ("bytes", "copy.db"), "folder": ("files", "copy")}


@pytest.fixture(params=PLACES)
def place(request, tmp_path):
    """The kind, and a path for the copy."""
    kind, name = PLACES[request.param]
    return kind, name and str(tmp_path / name)


def wire(kind: str, records: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return records if kind == "bytes" else {key: b"f" + value for key, value in records.items()}


def content(value) -> bytes:
    return value.content if isinstance(value, File) else value


def test_readers_see_one_version_during_pulls(place, tmp_path):
    """Threads that iterate, and look up in a view, never meet two versions in one state."""
    kind, path = place
    published = [wire(kind, state(version)) for version in range(1, 9)]
    sums = [f"{run_sum(list(s), list(s.values())) % MODULUS:032x}" for s in published]
    seen: set[int] = set()
    failures: list[BaseException] = []
    done = threading.Event()
    publish_records(tmp_path / "data", kind, published[0], 1000)

    def read() -> None:
        while not done.is_set():
            try:
                with replica.view() as view:
                    items = list(view.items())
                    some = {content(view[key]) for key, _ in items[::20]}
                iterated = {content(value) for _, value in replica.items()}
            except Moved:
                assert kind == "files"
                continue
            keys = [key.encode() if isinstance(key, str) else key for key, _ in items]
            values = [b"f" + value.content if isinstance(value, File) else value for _, value in items]
            found = f"{run_sum(keys, values) % MODULUS:032x}"
            assert found == view.checksum == sums[view.version - 1], view.version
            assert some == {b"%d" % view.version}
            assert len(iterated) == 1
            seen.add(view.version)
            time.sleep(0.002)

    def guarded() -> None:
        try:
            read()
        except BaseException as error:
            failures.append(error)

    with Replica(str(tmp_path / "data"), path) as replica:
        replica.pull()
        threads = [threading.Thread(target=guarded) for _ in range(2)]
        for thread in threads:
            thread.start()
        try:
            for version in range(2, len(published) + 1):
                publish_records(tmp_path / "data", kind, published[version - 1], 1000 + version)
                replica.pull(overwrite=version % 4 == 0)
        finally:
            done.set()
            for thread in threads:
                thread.join()
        assert not failures, failures
        assert len(seen) > 1
        assert {content(value) for value in replica.values()} == {b"%d" % len(published)}


def test_an_iteration_that_was_begun_goes_on_over_its_own_state(place, tmp_path):
    kind, path = place
    publish_records(tmp_path / "data", kind, wire(kind, state(1, 400)))
    with Replica(str(tmp_path / "data"), path) as replica:
        replica.pull()
        begun = iter(replica.items())
        next(begun)
        publish_records(tmp_path / "data", kind, wire(kind, state(2, 400)), 1001)
        outcome = replica.pull()
        assert (outcome.before, outcome.after, outcome.changed) == ((1, 1), (1, 2), True)
        if kind == "files":
            with pytest.raises(Moved, match="read it again"):
                list(begun)
        else:
            rest = list(begun)
            assert len(rest) == len(state(1, 400)) - 1
            assert {value for _, value in rest} == {b"1"}


def test_a_listener_that_raises_harms_nothing(place, tmp_path):
    kind, path = place
    publish_records(tmp_path / "data", kind, wire(kind, state(1)))
    told: list[Change] = []

    def listen(change: Change) -> None:
        told.append(change)
        if len(told) == 5:
            raise ZeroDivisionError

    with Replica(str(tmp_path / "data"), path) as replica:
        with pytest.raises(ZeroDivisionError) as raised:
            replica.pull(listen)
        assert "at version 1" in raised.value.__notes__[0]
        assert len(told) == 5
        assert replica.version == 1
        assert len(replica) == len(state(1))
        assert replica.pull(listen).plan.way == "nothing"
        publish_records(tmp_path / "data", kind, wire(kind, state(2)), 1001)
        assert replica.pull(told.append).after == (1, 2)
        assert {content(change.new) for change in told[5:] if change.new is not None} == {b"2"}
        assert {content(change.old) for change in told[5:] if change.old is not None} == {b"1"}


def test_a_listener_sees_the_new_state_and_must_not_pull(tmp_path):
    publish_records(tmp_path / "data", "bytes", {b"a": b"1"})
    with Replica(str(tmp_path / "data")) as replica:

        def listen(change: Change) -> None:
            assert replica[change.key] == change.new
            for forbidden in (replica.pull, replica.close):
                with pytest.raises(UsageError, match="on_change must not"):
                    forbidden()

        assert replica.pull(listen).changes.written == 1
        assert dict(replica) == {b"a": b"1"}


def test_a_failed_pull_leaves_the_replica_as_it_was(place, tmp_path):
    kind, path = place
    publish_records(tmp_path / "data", kind, wire(kind, state(1)))
    with Replica(str(tmp_path / "data"), path) as replica:
        replica.pull()
        before = dict(replica)
        publish_records(tmp_path / "data", kind, wire(kind, state(2)), 1001)
        for name in ("chunks", "diffs"):
            for file in (tmp_path / "data" / name).rglob("*.zst"):
                file.write_bytes(b"damaged")
        told: list[Change] = []
        with pytest.raises(Invalid):
            replica.pull(told.append)
        assert not told
        assert dict(replica) == before
        assert replica.version == 1


def test_what_was_pulled_before_can_be_read_at_once(place, tmp_path):
    kind, path = place
    if path is None:
        return
    publish_records(tmp_path / "data", kind, wire(kind, state(3)))
    puller_command("pull", tmp_path / "data", path)
    with Replica("http://127.0.0.1:9/nothing", path) as replica:
        assert replica.version == 1
        assert len(dict(replica)) == len(state(3))
        with pytest.raises(HeadwaterError):
            replica.pull()
        assert replica.version == 1
    assert puller_command("verify", path).status == 0


def test_another_process_pulls_and_the_replica_follows(place, tmp_path):
    kind, path = place
    if path is None:
        return
    publish_records(tmp_path / "data", kind, wire(kind, state(1)))
    with Replica(str(tmp_path / "data"), path) as replica:
        replica.pull()
        publish_records(tmp_path / "data", kind, wire(kind, state(2)), 1001)
        puller_command("pull", tmp_path / "data", path)
        assert replica.version == 2
        assert {content(value) for value in replica.values()} == {b"2"}


def test_another_process_comes_first(place, tmp_path):
    kind, path = place
    if path is None:
        return
    publish_records(tmp_path / "data", kind, wire(kind, state(1)))
    with Replica(str(tmp_path / "data"), path) as replica:
        assert len(replica) == 0
        puller_command("pull", tmp_path / "data", path)
        assert len(replica) == len(state(1))
        told: list[Change] = []
        publish_records(tmp_path / "data", kind, wire(kind, state(2)), 1001)
        replica.pull(told.append)
        assert {change.old is not None and content(change.old) for change in told} == {b"1", False}
        shutil.rmtree(path) if kind == "files" else [file.unlink() for file in tmp_path.glob("copy.db*")]
        assert (len(replica), replica.version) == (0, 0)
        assert replica.pull().after == (1, 2)
        assert len(replica) == len(state(2))


def test_local_edits_are_refused_and_told_over(tmp_path):
    publish_records(tmp_path / "data", "files", {b"a": b"f1", b"b": b"f1"})
    with Replica(str(tmp_path / "data"), str(tmp_path / "copy")) as replica:
        replica.pull()
        (tmp_path / "copy/a").write_text("mine")
        publish_records(tmp_path / "data", "files", {b"a": b"f2", b"b": b"f1"}, 1001)
        with pytest.raises(LocalEdits):
            replica.pull()
        assert replica["a"] == File(b"mine")
        told: list[Change] = []
        assert replica.pull(told.append, overwrite=True).changes.overwritten == ["a"]
        assert told == [("a", File(b"mine"), File(b"2"))]


def test_empty_closed_and_unfit_replicas(tmp_path):
    replica = Replica(str(tmp_path / "nothing"))
    assert (len(replica), list(replica), replica.version, replica.dataset, replica.kind) == (0, [], 0, None, None)
    assert (list(replica.items(prefix=b"x")), b"x" in replica, replica.get(b"x", 7)) == ([], False, 7)
    with pytest.raises(HeadwaterError):
        replica.pull()
    replica.close()
    replica.close()
    with pytest.raises(UsageError, match="closed"):
        len(replica)
    with pytest.raises(UsageError, match="programs read from"):
        Replica(str(tmp_path / "nothing"), str(tmp_path / "x.jsonl"))
    publish_records(tmp_path / "data", "bytes", {b"a": b"1"})
    with Replica(str(tmp_path / "data"), str(tmp_path / "folder")) as replica, pytest.raises(UsageError):
        replica.pull()
    with Replica(str(tmp_path / "data"), str(tmp_path / "odd.name"), form="sqlite") as replica:
        replica.pull()
        assert replica[b"a"] == b"1"
        with pytest.raises(KeyError):
            replica["a"]
        with pytest.raises(UsageError):
            replica.items(prefix="a").__iter__().__next__()
        with pytest.raises(TypeError):
            replica[b"a"] = b"2"
    with pytest.raises(TargetError):
        (tmp_path / "bad.db").write_bytes(b"SQLite format 3\0" + bytes(500))
        Replica(str(tmp_path / "data"), str(tmp_path / "bad.db")).pull()


def test_many_changes_do_not_take_much_memory(tmp_path):
    """30 MB of new values are noted and told within some megabytes."""
    publish_records(tmp_path / "data", "bytes", {b"a": b"1"})
    with Replica(str(tmp_path / "data")) as replica, Watch(replica._reading) as watch:
        replica.pull()
        watch.begin(Opening("bytes", replace=False, time=1, large=lambda key, value: iter(()), expected=(1, 1)))
        tracemalloc.start()
        try:
            for n in range(100):
                keys = [b"%06d" % (100 * n + i) for i in range(30)]
                values = [b"%d" % n + bytes(10_000) for _ in keys]
                watch.note(keys, values, [None] * 30, record_hashes(keys, values))
            watch.end()
            assert sum(len(change.new) for change in watch.changes((1, 1))) > 30_000_000
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()


def test_a_small_pull_shares_the_rest_of_memory(tmp_path):
    publish_records(tmp_path / "data", "bytes", {b"%06d" % n: b"v%d" % n for n in range(60_000)})
    with Replica(str(tmp_path / "data")) as replica:
        replica.pull()
        before = {id(keys) for keys, _ in replica._memory.held.blocks.blocks}
        publish_records(
            tmp_path / "data", "bytes", {b"%06d" % n: b"v%d" % n for n in range(60_000) if n != 30_000}, 1001
        )
        assert replica.pull().received < 2000
        blocks = replica._memory.held.blocks.blocks
        assert len([keys for keys, _ in blocks if id(keys) not in before]) == 1
        assert len(blocks) > 5


def test_rows_from_json_lines(tmp_path):
    rows = b'{"sku":"a1","price":9.5,"tags":["new",{"n":1}]}\n{"sku":"b2","price":12,"big":123456789012345678901234567890}\n'
    publisher("publish", "-", tmp_path / "d", "--key", "sku", stdin=rows)
    for path in (None, str(tmp_path / "copy.db")):
        with Replica(str(tmp_path / "d"), path) as replica:
            told: list[Change] = []
            replica.pull(told.append)
            assert replica["d", "a1"] == {"sku": "a1", "price": 9.5, "tags": ["new", {"n": 1}], "big": None}
            assert replica["d", "b2"]["big"] == 123456789012345678901234567890
            assert [change.key for change in told] == [("d", "a1"), ("d", "b2")] == list(replica)
            assert (replica.dataset, replica.kind, len(replica)) == ("d", "table", 2)


def test_a_new_column_changes_every_row(tmp_path):
    """Though the rows' bytes stay as they are, and only one of them is in the diff."""
    for extra in (b"", b',"new":[1]'):
        rows = b"".join(b'{"id":%d,"x":%d%b}\n' % (n, n, extra if n == 7 else b"") for n in range(3000))
        publisher("publish", "-", tmp_path / "d", "--key", "id", stdin=rows)
        if not extra:
            replicas = [Replica(str(tmp_path / "d"), path) for path in (None, str(tmp_path / "copy.db"))]
            for replica in replicas:
                replica.pull()
    for replica in replicas:
        told: list[Change] = []
        with replica:
            outcome = replica.pull(told.append)
            assert outcome.plan.way in ("diffs", "patch")
            assert (outcome.changes.written, len(told)) == (1, 3000)
            assert told[7] == (("d", 7), {"id": 7, "x": 7}, {"id": 7, "x": 7, "new": [1]})
            assert told[8].new == replica["d", 8] == {"id": 8, "x": 8, "new": None}


def test_names_are_loaded_when_they_are_used():
    script = "import sys, puller; assert not [m for m in sys.modules if m.startswith('puller.')]; puller.Replica"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
    assert set(puller.__all__) <= set(dir(puller))
    with pytest.raises(AttributeError):
        puller.nothing  # noqa: B018


def test_no_room_for_what_changes_leaves_the_replica_as_it_was(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    dest = str(tmp_path / "d")
    seen: list[Change] = []
    with dataset(dest, kind="bytes", cache=False) as data, Replica(dest) as replica:
        with data.batch() as batch:
            batch[b"k"] = b"1"
        replica.pull()
        with data.batch() as batch:
            batch[b"k"] = b"2"
        with monkeypatch.context() as patch:
            patch.setattr(tempfile.SpooledTemporaryFile, "write", full)
            with pytest.raises(TargetError, match=r"No space left.*TMPDIR"):
                replica.pull(seen.append)
        assert replica[b"k"] == b"1"
        replica.pull(seen.append)
        assert seen == [Change(b"k", b"1", b"2")]


@pytest.mark.parametrize("form", [None, "sqlite"])
def test_another_process_leaves_the_log_that_a_replica_reads_from(tmp_path, form):
    """Closing a file drops all of a process's locks on it: nothing but SQLite may open a database that is read."""
    dest, copy = str(tmp_path / "d"), tmp_path / ("copy" if form else "copy.db")
    with dataset(dest, kind="bytes", cache=False) as data, Replica(dest, str(copy), form=form) as replica:
        for n in range(3):
            with data.batch() as batch:
                batch[b"%d" % n] = b"x"
            replica.pull()
            assert len(replica) == n + 1
            log = os.stat(f"{copy}-wal").st_ino
            replica.pull()
            puller_command("status", copy, *(["--as", form] if form else []))
            assert os.stat(f"{copy}-wal").st_ino == log
            with data.batch() as batch:
                batch[b"%d" % n] = b"y"
            puller_command("pull", dest, copy, *(["--as", form] if form else []))
            assert replica[b"%d" % n] == b"y"
    puller_command("verify", copy, *(["--as", form] if form else []))


def as_nobody(*arguments):
    """The status of `puller` and what it says, where it is run by a user who may write nothing here."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def run() -> None:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        there.send(said(*arguments))

    process = context.Process(target=run)
    process.start()
    there.close()
    try:
        return here.recv()
    finally:
        process.join()


def said(*arguments):
    """The status of `puller`, run in this process, and what it says."""
    text = io.StringIO()
    with redirect_stdout(text), redirect_stderr(text), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["puller", *arguments])
        with pytest.raises(SystemExit) as ended:
            entry()
    return ended.value.code or 0, text.getvalue()


def test_a_copy_in_wal_mode_is_looked_at_by_those_who_may_not_write(tmp_path):
    with tempfile.TemporaryDirectory() as base:  # tmp_path is for its owner only
        os.chmod(base, 0o755)
        publish_records(tmp_path / "data", "bytes", state(1), 1000)
        path = os.path.join(base, "c.db")
        with Replica(str(tmp_path / "data"), path) as replica:
            replica.pull()
            assert len(replica)
        os.chmod(path, 0o644)
        os.chmod(base, 0o555)
        try:
            with closing(sqlite3.connect(path)) as db:
                assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
            for command in ("status", "verify"):  # what is imported late is there afterwards for whoever cannot read it
                assert said(command, path)[0] == as_nobody(command, path)[0] == 0
            with closing(sqlite3.connect(path, isolation_level=None)) as db:
                os.chmod(base, 0o755)
                db.execute("CREATE TABLE mine(x)")
                for file in (f"{path}-shm", f"{path}-wal"):
                    os.chmod(file, 0o600)
                os.chmod(base, 0o555)
                for command in ("status", "verify"):
                    assert "is in WAL mode, and its folder is not writable for you" in as_nobody(command, path)[1]
        finally:
            os.chmod(base, 0o755)
