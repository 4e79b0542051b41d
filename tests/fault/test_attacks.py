"""What an attacker, an unlucky user or a race did to a target once: it stays exact, or says so and keeps what is there."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import threading

import pytest

from puller.errors import HeadwaterError, Invalid, Moved, TargetError
from puller.fetch import FolderFetcher
from puller.pull import Options, pull
from puller.targets import onefile, open_target
from puller.targets.base import Opening, State
from puller.wire.checksum import record_hashes, run_sum
from puller.wire.keys import encode_key
from puller.wire.rows import Column, Index, Table, encode_row, encode_schema
from tests.conftest import publisher, puller, tree

KINDS = ["file", "exe", "link", "empty", "folder", "nothing"]


def make(path, kind):
    if os.path.islink(path) or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
    if kind in ("file", "exe"):
        path.write_text(kind)
        path.chmod(0o755 if kind == "exe" else 0o644)
    elif kind == "link":
        path.symlink_to("nowhere")
    elif kind in ("empty", "folder"):
        path.mkdir()
        if kind == "folder":
            (path / "sub").mkdir()
            (path / "sub/inner").write_text("inner")


def test_every_kind_of_entry_becomes_every_other(tmp_path):
    source, dest = tmp_path / "s", tmp_path / "d"
    (source / "deep").mkdir(parents=True)
    (source / "stays").write_text("stays")
    names = {(a, b): source / f"deep/{a}-{b}" for a in KINDS for b in KINDS}
    for (a, _), path in names.items():
        make(path, a)
    publisher("publish", source, dest)
    for copy in ("c", "c2"):
        puller("pull", dest, tmp_path / copy)
    for (_, b), path in names.items():
        make(path, b)
    publisher("publish", source, dest)
    puller("pull", dest, tmp_path / "c")
    puller("pull", "--overwrite", dest, tmp_path / "c2")
    for copy in ("c", "c2"):
        assert tree(tmp_path / copy) == tree(source)
        assert puller("verify", tmp_path / copy).status == 0


@pytest.fixture
def folder(tmp_path):
    source = tmp_path / "s"
    (source / "dir").mkdir(parents=True)
    for name in ("dir/a", "dir/b", "dir/c", "k"):
        (source / name).write_text(name)
    publisher("publish", source, tmp_path / "d")
    puller("pull", tmp_path / "d", tmp_path / "c")
    return tmp_path


@pytest.mark.parametrize("changed", [True, False])
def test_a_folder_replaced_by_a_link_is_never_looked_through(folder, changed):
    shutil.move(folder / "c/dir", folder / "outside")
    (folder / "c/dir").symlink_to(folder / "outside")
    before = tree(folder / "outside")
    assert sorted(puller("verify", "--json", folder / "c", check=6).json["missing"]) == ["dir/a", "dir/b", "dir/c"]
    (folder / "s/k").write_text("k changed")
    if changed:
        (folder / "s/dir/b").write_text("b changed")
        (folder / "s/dir/c").unlink()
    publisher("publish", folder / "s", folder / "d")
    if changed:
        assert puller("pull", "--json", folder / "d", folder / "c", check=3).json["names"] == ["dir"]
        puller("pull", "--adopt", folder / "d", folder / "c", check=3)
    puller("pull", "--overwrite", folder / "d", folder / "c")
    assert tree(folder / "c") == tree(folder / "s")
    assert tree(folder / "outside") == before


@pytest.mark.parametrize("what", ["folder", "link", "file"])
def test_something_of_the_users_in_a_folder_that_becomes_a_file(folder, what):
    mine = folder / "c/dir/mine"
    if what == "folder":
        mine.mkdir()
    elif what == "link":
        mine.symlink_to("/etc")
    else:
        mine.write_text("mine")
    before = tree(folder / "c")
    shutil.rmtree(folder / "s/dir")
    (folder / "s/dir").write_text("a file now")
    publisher("publish", "--allow-shrink", folder / "s", folder / "d")
    puller("pull", folder / "d", folder / "c", check=3)
    assert tree(folder / "c") == before
    shutil.rmtree(mine) if what == "folder" else mine.unlink()
    puller("pull", folder / "d", folder / "c")
    assert tree(folder / "c") == tree(folder / "s")


def test_file_folder_file_over_several_versions(folder):
    for step in (1, 2):
        make(folder / "s/k", "folder" if step == 1 else "file")
        publisher("publish", folder / "s", folder / "d")
    puller("pull", folder / "d", folder / "c")
    assert tree(folder / "c") == tree(folder / "s")


def test_a_pipe_in_place_of_a_file_does_not_hang(folder):
    (folder / "c/k").unlink()
    os.mkfifo(folder / "c/k")
    assert puller("verify", "--json", folder / "c", check=6).json["differing"] == ["k"]
    puller("pull", "--overwrite", folder / "d", folder / "c")
    assert tree(folder / "c") == tree(folder / "s")


def test_files_that_appear_while_a_new_folder_is_filled(folder):
    target = open_target(str(folder / "new"), "files")
    with pytest.raises(HeadwaterError), target.writer(opening("files")) as writer:
        values = [b"ftheirs"]
        writer.put([b"a"], values, record_hashes([b"a"], values))
        (folder / "new/a").write_text("mine")
        writer.commit(state({b"a": b"ftheirs"}, "files"))
    target.close()
    assert (folder / "new/a").read_text() == "mine"


def opening(kind, **options):
    return Opening(**{"kind": kind, "replace": True, "time": 5, "large": lambda key, value: iter(())} | options)


def state(records, kind, version=1):
    keys = sorted(records)
    checksum = f"{run_sum(keys, [records[k] for k in keys]):032x}"
    return State("d", kind, "u", 1, version, checksum, len(records), 5, "ab", (1, version, 5), None, 0, 0)


@pytest.mark.parametrize("name", ["c", *(pytest.param(n, marks=pytest.mark.slow) for n in ("c.db", "c.jsonl"))])
def test_pullers_at_once_leave_one_right_state(tmp_path, name):
    source, dest = tmp_path / "s", tmp_path / "d"
    source.mkdir()

    def version(n):
        if name == "c":
            for i in range(30):
                (source / f"f{i}").write_text(f"{i} {n}")
            publisher("publish", source, dest)
        else:
            rows = "".join(json.dumps({"k": i, "v": i * n}) + "\n" for i in range(2000))
            publisher("publish", "-", dest, "--key", "k", stdin=rows.encode())

    version(1)
    puller("pull", dest, tmp_path / name)
    for n in range(2, 6):
        version(n)
        done = []
        threads = [
            threading.Thread(target=lambda done=done: done.append(puller("pull", dest, tmp_path / name, check=None)))
            for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert any(d.status == 0 for d in done), [(d.status, d.err) for d in done]
        assert {d.status for d in done} <= {0, 1}, [d.err for d in done]
        assert "changed here" not in "".join(d.err for d in done)
        assert puller("verify", "--json", tmp_path / name).json["version"] == n


@pytest.mark.parametrize("name", ["c", "c.db", "c.jsonl", "c.parquet"])
def test_a_slow_puller_does_not_set_the_bookkeeping_back(tmp_path, name):
    kind = "files" if name == "c" else "table"
    (tmp_path / "s").mkdir()

    def version(n):
        if kind == "files":
            (tmp_path / "s/a").write_text(str(n))
            publisher("publish", tmp_path / "s", tmp_path / "d")
        else:
            publisher("publish", "-", tmp_path / "d", "--key", "k", stdin=b'{"k":1,"v":%d}\n' % n)

    version(1)
    puller("pull", tmp_path / "d", tmp_path / name)
    slow = open_target(str(tmp_path / name), kind)
    held = slow.state()
    slow.close()
    version(2)
    puller("pull", tmp_path / "d", tmp_path / name)
    slow.remember(held, held)
    with pytest.raises(Moved), slow.writer(opening(kind, expected=held.position)):
        pass
    slow.close()
    assert puller("verify", "--json", tmp_path / name).json["version"] == 2


def test_json_lines_killed_between_bookkeeping_and_data(tmp_path, monkeypatch):
    publisher("publish", "-", tmp_path / "d", "--key", "k", stdin=b'{"k":1}\n')
    copy = tmp_path / "c.jsonl"

    class Killed(BaseException):
        pass

    def rename(source, to):
        if str(to) == str(copy):
            raise Killed
        real(source, to)

    real = os.rename
    for start in ("nothing", "foreign"):
        if start == "foreign":
            copy.write_text("foreign\n")
        target = open_target(str(copy), "table")
        with monkeypatch.context() as patch:
            patch.setattr(onefile.os, "rename", rename)
            patch.setattr(onefile.os, "unlink", lambda path: None)
            with pytest.raises(Killed):
                pull(
                    str(tmp_path / "d"),
                    FolderFetcher(str(tmp_path / "d")),
                    lambda head, t=target: t,
                    Options(adopt=True),
                )
        target.close()
        assert "nothing was pulled" in puller("status", copy, check=1).err
        puller("pull", "--adopt", tmp_path / "d", copy)
        assert copy.read_text() == '{"k":1}\n'
        for path in (copy, copy.with_name("c.jsonl.headwater")):
            path.unlink()


def test_json_lines_through_a_link_and_emptied(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "c.jsonl").symlink_to(tmp_path / "real/c.jsonl")
    publisher("publish", "-", tmp_path / "d", "--key", "k", stdin=b'{"k":1}\n{"k":2}\n')
    puller("pull", tmp_path / "d", tmp_path / "c.jsonl")
    assert (tmp_path / "c.jsonl").is_symlink()
    publisher("publish", "--allow-shrink", "-", tmp_path / "d", stdin=b"")
    puller("pull", tmp_path / "d", tmp_path / "c.jsonl")
    assert (tmp_path / "real/c.jsonl").read_text() == ""
    publisher("publish", "-", tmp_path / "d", stdin=b'{"k":3}\n')
    puller("pull", tmp_path / "d", tmp_path / "c.jsonl")
    assert (tmp_path / "real/c.jsonl").read_text() == '{"k":3}\n'
    assert sorted(p.name for p in (tmp_path / "real").iterdir()) == ["c.jsonl", "c.jsonl.headwater"]


def test_a_first_publish_killed_at_head_can_go_on(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a").write_text("a")
    (tmp_path / "d").mkdir()
    (tmp_path / "d/.tmp-HEAD-1-2").write_text("half")
    publisher("publish", tmp_path / "s", tmp_path / "d")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (json.dumps({"k": 1} | {f"f{n}": n for n in range(4100)}), "4,096 columns"),
        ('{"k":1,"v":' + "9" * 4001 + "}", "4,000 digits"),
        ('{"k":1,"v":' + "[" * 600 + "]" * 600 + "}", "512 deep"),
        ('{"k":1,"v":' + "[" * 5000 + "]" * 5000 + "}", "line 1"),
    ],
)
def test_what_no_reader_takes_is_not_published(tmp_path, data, says):
    done = publisher("publish", "-", tmp_path / "d", "--key", "k", stdin=data.encode() + b"\n", check=1)
    assert says in done.err
    assert not (tmp_path / "d/HEAD").exists()


class Database:
    """A SQLite target that takes crafted states."""

    def __init__(self, path):
        self.target = open_target(str(path), "table")
        self.path = path
        self.held: dict[bytes, bytes] = {}
        self.version = 0

    def step(self, changes, replace=False, batch=2):
        new = {} if replace else dict(self.held)
        for key, value in changes.items():
            if value is None:
                new.pop(key)
            else:
                new[key] = value
        expected = None if self.version == 0 else (1, self.version)
        before = []
        keys = sorted(changes)
        with self.target.writer(opening("table", replace=replace, expected=expected)) as writer:
            for n in range(0, len(keys), batch):
                part = keys[n : n + batch]
                values = [changes[k] for k in part]
                before += writer.put(part, values, record_hashes(part, values))
            if not replace:
                assert before == record_hashes(keys, [self.held.get(k) for k in keys])
            writer.commit(state(new, "table", self.version + 1))
        self.held, self.version = new, self.version + 1
        found = {k: v for run in self.target.records() for k, v in zip(*run, strict=True)}
        assert found == new


def table(name, *columns, key=(0,), indexes=()):
    return Table(name, [Column(*c.split(":")) for c in columns], list(key), list(indexes))


def r(name, key, *values):
    return encode_key(name, [key]), encode_row(values)


@pytest.fixture
def database(tmp_path):
    database = Database(tmp_path / "c.db")
    yield database
    database.target.close()


def test_schema_changes_over_many_leaves(database):
    t = table("t", "id:int64", "a:text", "b:int64")
    rows = dict(r("t", n, f"a{n}", n) for n in range(40))
    database.step({b"": encode_schema([t])} | rows, replace=True)
    database.step({b"": encode_schema([table("t", "id:int64", "a:text", "b:int64", "c:text")])})
    wide = [table("t", "id:int64", "a:text", "b:any", "c:text"), table("u", "k:text", "v:int64")]
    new = dict(r("u", f"k{n}", n) for n in range(10))
    database.step({b"": encode_schema(wide)} | new | dict([r("t", 3, "x", 1.5)]))
    swapped = [table("t", "id:int64", "a:int64", "b:text", "c:text"), wide[1]]
    changed = dict(r("t", n, n, f"text {n}") for n in range(40))
    database.step({b"": encode_schema(swapped)} | changed)
    dropped = [table("t", "id:int64", "b:text"), wide[1]]
    database.step({b"": encode_schema(dropped)} | dict(r("t", n, f"text {n}") for n in range(40)))
    indexed = [table("t", "id:int64", "b:text", indexes=[Index("i", True, [1]), Index("i", False, [1])]), wide[1]]
    database.step({b"": encode_schema(indexed)})
    database.step(dict([r("t", 1, "text 2"), r("t", 2, "text 1")]), batch=1)
    with sqlite3.connect(database.path) as db:
        assert db.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE 'idx_t_%'").fetchone() == (2,)


@pytest.mark.parametrize("change", ["narrow", "drop a column"])
def test_rows_that_do_not_fit_their_schema_are_refused(database, change):
    rows = dict(r("t", n, f"a{n}", n) for n in range(10))
    database.step({b"": encode_schema([table("t", "id:int64", "a:text", "b:int64")])} | rows, replace=True)
    new = table("t", "id:int64", "a:int64", "b:int64") if change == "narrow" else table("t", "id:int64", "a:text")
    with pytest.raises(Invalid):
        database.step({b"": encode_schema([new])})
    assert {k: v for run in database.target.records() for k, v in zip(*run, strict=True)} == database.held


def test_nulls_in_keys(database):
    t = Table("t", [Column("a", "int64"), Column("b", "int64"), Column("v", "text")], [0, 1])
    rows = {encode_key("t", [1, None]): encode_row(["x"]), encode_key("t", [None, 2]): encode_row(["y"])}
    database.step({b"": encode_schema([t])} | rows, replace=True)
    database.step({encode_key("t", [1, None]): encode_row(["changed"])})
    database.step({encode_key("t", [None, 2]): None})


def test_a_null_as_the_only_key_is_refused(database):
    with pytest.raises(TargetError, match="JSON Lines"):
        database.step({b"": encode_schema([table("t", "id:int64")])} | dict([r("t", None)]), replace=True)


def test_a_users_column_is_not_lost(tmp_path):
    rows = b'{"k":1,"v":"a"}\n'
    publisher("publish", "-", tmp_path / "d", "--key", "k", stdin=rows)
    puller("pull", tmp_path / "d", tmp_path / "c.db")
    with sqlite3.connect(tmp_path / "c.db") as db:
        db.execute("ALTER TABLE d ADD COLUMN mine TEXT")
    publisher("publish", "--allow-shrink", "-", tmp_path / "d", "--key", "v", stdin=rows)
    assert puller("pull", "--json", tmp_path / "d", tmp_path / "c.db", check=3).json["names"] == ["d.mine"]
    with sqlite3.connect(tmp_path / "c.db") as db:
        assert db.execute("SELECT mine FROM d").fetchall() == [(None,)]


@pytest.mark.slow
def test_a_full_disk_of_bookkeeping_is_told(folder, monkeypatch):
    target = open_target(str(folder / "c"), "files")
    target.state()
    with sqlite3.connect(folder / "c/.headwater/state.db", isolation_level=None) as db:
        db.execute("BEGIN EXCLUSIVE")
        done = puller("pull", "--overwrite", folder / "d", folder / "c", check=1)
        assert "locked" in done.err
        assert "delete" not in done.err
    target.close()


CONFLICTS = [{b"a": b"fx", b"a/b": b"fy"}, {b"a": b"d", b"a/b": b"fy"}, {b"a": b"lx", b"a/b/c": b"fy"}]


@pytest.mark.parametrize("records", CONFLICTS, ids=["file", "empty folder", "link"])
@pytest.mark.parametrize("start", ["new", "all", "below", "above"])
def test_paths_below_what_is_no_folder_are_refused(tmp_path, records, start):
    """SPEC 8.1, for a new folder, a whole state over an old one, and changes that meet what is held."""
    target = open_target(str(tmp_path / "c"), "files")
    keys = sorted(records)
    held = {b"z": b"fz"} | ({k: records[k] for k in keys[:1]} if start == "below" else {})
    held |= {k: records[k] for k in keys[1:]} if start == "above" else {}

    def step(changes, version, **options):
        names = sorted(changes)
        with target.writer(opening("files", **options)) as writer:
            values = [changes[k] for k in names]
            writer.put(names, values, record_hashes(names, values))
            writer.commit(state(changes, "files", version))

    if start != "new":
        step(held, 1)
    changes = {k: v for k, v in records.items() if k not in held}
    with pytest.raises(Invalid, match="below it"):
        step(changes, 2, replace=start in ("new", "all"), expected=None if start == "new" else (1, 1))
    target.close()
    if start != "new":
        assert puller("verify", tmp_path / "c").status == 0


def test_rows_without_a_schema_and_a_deleted_schema_are_refused(database):
    with pytest.raises(Invalid):
        database.step(dict([r("t", 1, "x")]), replace=True)
    database.step({b"": encode_schema([table("t", "id:int64", "a:text")])} | dict([r("t", 1, "x")]), replace=True)
    with pytest.raises(Invalid):
        database.step({b"": None})


def test_an_archived_head_of_another_version_is_refused(folder):
    (folder / "s/k").write_text("2")
    publisher("publish", folder / "s", folder / "d")
    shutil.copy(folder / "d/HEAD", folder / "d/heads/1-1")
    assert "another version" in publisher("log", folder / "d", check=5).err
