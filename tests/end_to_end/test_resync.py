"""Repair, other versions and other epochs: only what differs is fetched, and only what differs is written."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3

import msgspec
import pytest

from publisher import open as dataset
from puller.apply import Step
from puller.errors import Moved
from puller.plan import Way
from puller.replica import Replica
from puller.wire.head import format_head, parse_head
from tests.conftest import lines, publisher, puller, tree

ROWS = 40_000


def write_rows(path, seed, changed=()):
    r = random.Random(seed)
    rows = [{"k": n, "name": f"{r.random()} {'x' * 110}", "n": n / 4} for n in range(ROWS)]
    for n in changed:
        rows[n]["name"] = f"changed {n}"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """40,000 rows in several chunks, three versions of them, and copies of the newest."""
    base = tmp_path_factory.mktemp("table")
    for changed in ((), (20_000,), range(0, ROWS, 500)):
        write_rows(base / "s.jsonl", 1, changed)
        publisher("publish", base / "s.jsonl", base / "d", "--key", "k")
    for name in ("c.db", "c.jsonl"):
        puller("pull", base / "d", base / name)
    status = publisher("status", "--json", base / "d").json
    assert status["snapshot_version"] == 1
    assert status["snapshot_files"] > 4
    return base, status["snapshot_bytes"]


def test_a_database_is_repaired_row_by_row(table, tmp_path):
    base, whole = table
    copy = tmp_path / "c.db"
    shutil.copy(base / "c.db", copy)
    with sqlite3.connect(copy) as db:
        db.execute("UPDATE d SET name = 'mine' WHERE k = 30000")
        db.execute("DELETE FROM d WHERE k = 30001")
        db.execute("INSERT INTO d VALUES (-5, 'more', 0.5)")
        db.execute("CREATE TABLE mine AS SELECT 1")
    done = puller("verify", "--json", copy, check=6).json
    assert done["repaired"] is None
    done = puller("verify", "--repair", "--json", copy, check=0).json
    repaired = done["repaired"]
    assert not done["ok"]
    assert (repaired["way"], repaired["reason"]) == ("resync", "overwrite")
    assert (repaired["written"], repaired["deleted"]) == (2, 1)
    assert repaired["overwritten"] == ["d -5", "d 30000", "d 30001"]
    assert repaired["received"] < whole / 2
    assert puller("verify", copy).status == 0
    with sqlite3.connect(copy) as db:
        assert db.execute("SELECT * FROM mine").fetchall() == [(1,)]
    assert puller("pull", "--json", base / "d", copy).json["way"] == "nothing"


def test_an_edit_where_diffs_touched_is_found_too(table, tmp_path):
    base, whole = table
    copy = tmp_path / "c.db"
    shutil.copy(base / "c.db", copy)
    with sqlite3.connect(copy) as db:
        db.execute("UPDATE d SET name = 'mine' WHERE k IN (20000, 20001)")
    repaired = puller("verify", "--repair", "--json", copy).json["repaired"]
    assert (repaired["way"], repaired["written"], repaired["notes"]) == ("resync", 2, [])
    assert repaired["received"] < whole / 2
    assert puller("verify", copy).status == 0


def test_a_repair_of_lines_and_of_what_cannot_be_read(table, tmp_path):
    base, _ = table
    copy = tmp_path / "c.jsonl"
    shutil.copy(base / "c.jsonl", copy)
    shutil.copy(base / "c.jsonl.headwater", f"{copy}.headwater")
    text = copy.read_text().splitlines()
    text[100] = text[100].replace("x", "y", 1)
    copy.write_text("\n".join(text) + "\n")
    repaired = puller("verify", "--repair", "--json", copy).json["repaired"]
    assert (repaired["way"], repaired["written"]) == ("resync", 1)
    text.reverse()
    copy.write_text("\n".join(text) + "\n")
    repaired = puller("verify", "--repair", "--json", copy).json["repaired"]
    assert (repaired["way"], repaired["reason"]) == ("bootstrap", "resync_failed")
    assert lines(copy) == lines(base / "c.jsonl")


def test_a_folder_is_repaired_file_by_file(tmp_path):
    r = random.Random(2)
    source, dest, copy = tmp_path / "s", tmp_path / "d", tmp_path / "c"
    (source / "sub").mkdir(parents=True)
    for n in range(60):
        (source / f"sub/{n:03}").write_bytes(r.randbytes(100_000))
    publisher("publish", source, dest)
    puller("pull", dest, copy)
    whole = publisher("status", "--json", dest).json["snapshot_bytes"]
    stat = (copy / "sub/030").stat()
    (copy / "sub/030").write_bytes(r.randbytes(100_000))
    os.utime(copy / "sub/030", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    (copy / "sub/031").unlink()
    (copy / "sub/032").chmod(0o755)
    (copy / "mine").write_text("mine")
    done = puller("verify", "--json", copy, check=6).json
    assert (done["differing"], done["missing"]) == (["sub/030", "sub/032"], ["sub/031"])
    repaired = puller("verify", "--repair", "--json", copy).json["repaired"]
    assert (repaired["way"], repaired["written"], repaired["deleted"]) == ("resync", 3, 0)
    assert repaired["overwritten"] == ["sub/030", "sub/032"]
    assert repaired["received"] < whole / 3
    (copy / "mine").unlink()
    assert tree(copy) == tree(source)


@pytest.mark.parametrize("name", ["c", "c.db", "c.jsonl"])
def test_edits_are_looked_for_when_asked(tmp_path, name):
    if name == "c":
        (tmp_path / "s").mkdir()
        (tmp_path / "s/a").write_text("a")
        publisher("publish", tmp_path / "s", tmp_path / "d")
    else:
        (tmp_path / "s.jsonl").write_text('{"k": 1, "v": "a"}\n')
        publisher("publish", tmp_path / "s.jsonl", tmp_path / "d", "--key", "k")
    copy = tmp_path / name
    puller("pull", "--check", tmp_path / "d", copy)
    assert puller("pull", "--check", "--json", tmp_path / "d", copy).json["way"] == "nothing"
    if name == "c.db":
        with sqlite3.connect(copy) as db:
            db.execute("UPDATE d SET v = 'mine'")
    else:
        path = copy / "a" if name == "c" else copy
        path.write_text(path.read_text().replace("a", "b") if name == "c" else '{"k": 1, "v": "b"}\n')
    assert puller("pull", "--json", tmp_path / "d", copy).json["way"] == "nothing"
    refused = puller("pull", "--check", "--json", tmp_path / "d", copy, check=3).json
    assert refused["error"] == "LocalEdits"
    assert refused["names"] == {"c": ["a"], "c.db": [], "c.jsonl": [str(copy)]}[name]
    puller("verify", "--repair", copy)
    puller("pull", "--check", tmp_path / "d", copy)


def test_a_repair_brings_back_the_version_that_is_held(tmp_path):
    source, dest, copy = tmp_path / "s", tmp_path / "d", tmp_path / "c"
    source.mkdir()
    (source / "a").write_text("1")
    (source / "b").write_text("1")
    publisher("publish", source, dest)
    puller("pull", dest, copy)
    first = tree(copy)
    (source / "a").write_text("2")
    publisher("publish", source, dest)
    (copy / "b").write_text("mine")
    text = puller("verify", "--repair", copy)
    assert "brought back to d version 1" in text.out
    assert "overwrote b" in text.err
    assert tree(copy) == first
    (copy / "b").write_text("mine again")
    shutil.rmtree(dest / "heads")
    refused = puller("verify", "--repair", copy, check=1)
    assert "version 1 is not kept" in refused.err
    assert (copy / "b").read_text() == "mine again"


@pytest.mark.parametrize("name", ["c", *(pytest.param(n, marks=pytest.mark.slow) for n in ("c.db", "c.jsonl"))])
def test_back_to_a_version_and_forward_again(tmp_path, name):
    source, dest, copy = tmp_path / ("s.jsonl" if "." in name else "s"), tmp_path / "d", tmp_path / name
    for version in range(1, 5):
        if "." in name:
            rows = [{"k": n, "v": version * (n % version == 0)} for n in range(50)] + [{"k": 1000 + version}]
            source.write_text("".join(json.dumps(row) + "\n" for row in rows))
            publisher("publish", source, dest, "--key", "k")
        else:
            shutil.rmtree(source, ignore_errors=True)
            source.mkdir()
            for n in range(20):
                (source / str(n)).write_text(f"{version * (n % version == 0)}")
            (source / f"only {version}").write_text("x")
            publisher("publish", source, dest)
        puller("pull", dest, tmp_path / f"at{version}{name[1:]}")

    def content(path):
        return tree(path) if name == "c" else lines(path) if name == "c.jsonl" else rows_of(path)

    puller("pull", dest, copy)
    back = puller("pull", "--json", "--version", 2, dest, copy).json
    assert (back["way"], back["reason"], back["to"]["version"]) == ("resync", "older_version", 2)
    assert content(copy) == content(tmp_path / f"at2{name[1:]}")
    assert puller("verify", copy).status == 0
    assert puller("pull", "--json", "--version", 2, dest, copy).json["way"] == "nothing"
    assert puller("status", "--json", copy).json["version"] == 2
    forward = puller("pull", "--json", "--version", 3, dest, copy).json
    assert forward["way"] in ("diffs", "patch")
    assert content(copy) == content(tmp_path / f"at3{name[1:]}")
    newest = puller("pull", "--json", dest, copy).json
    assert (newest["way"] in ("diffs", "patch"), newest["to"]["version"]) == (True, 4)
    assert content(copy) == content(tmp_path / f"at4{name[1:]}")
    assert "the newest is 4" in puller("pull", "--version", 5, dest, copy, check=2).err
    (dest / "heads/1-1").unlink()
    assert "is not kept" in puller("pull", "--version", 1, dest, copy, check=1).err
    fresh = tmp_path / f"fresh{name[1:]}"
    assert puller("pull", "--json", "--version", 3, dest, fresh).json["way"] == "bootstrap"
    assert content(fresh) == content(tmp_path / f"at3{name[1:]}")


def rows_of(path):
    with sqlite3.connect(path) as db:
        return db.execute("SELECT * FROM d ORDER BY k").fetchall()


def restart(dest, **changes):
    """Restart a dataset's history in a new epoch, as a publisher that lost it would."""
    head = parse_head((dest / "HEAD").read_bytes())
    (dest / "HEAD").write_bytes(format_head(msgspec.structs.replace(head, time=head.time + 1, **changes)))


@pytest.mark.parametrize("name", ["c.db", pytest.param("c.jsonl", marks=pytest.mark.slow)])
def test_a_new_epoch_is_reconciled_chunk_by_chunk(tmp_path, name):
    write_rows(tmp_path / "s.jsonl", 1)
    publisher("publish", "--unsigned", tmp_path / "s.jsonl", tmp_path / "d", "--key", "k")
    puller("pull", tmp_path / "d", tmp_path / name)
    write_rows(tmp_path / "s.jsonl", 1, range(100, 110))
    publisher("publish", "--unsigned", tmp_path / "s.jsonl", tmp_path / "new/d", "--key", "k")
    restart(tmp_path / "new/d", epoch=2)
    whole = publisher("status", "--json", tmp_path / "new/d").json["snapshot_bytes"]
    plan = puller("pull", "--dry-run", tmp_path / "new/d", tmp_path / name).out
    assert "by resync (history was restarted), fetching at most" in plan
    assert "diffs      no: history was restarted" in plan
    done = puller("pull", "--json", tmp_path / "new/d", tmp_path / name).json
    assert (done["way"], done["reason"], done["written"], done["deleted"]) == ("resync", "new_epoch", 10, 0)
    assert done["received"] < whole / 3
    puller("pull", tmp_path / "new/d", tmp_path / "fresh.jsonl")
    puller("verify", tmp_path / name)
    if name == "c.jsonl":
        assert lines(tmp_path / name) == lines(tmp_path / "fresh.jsonl")


def test_local_edits_are_refused_by_a_resync(tmp_path):
    write_rows(tmp_path / "s.jsonl", 1)
    publisher("publish", "--unsigned", tmp_path / "s.jsonl", tmp_path / "d", "--key", "k")
    puller("pull", tmp_path / "d", tmp_path / "c.db")
    with sqlite3.connect(tmp_path / "c.db") as db:
        db.execute("UPDATE d SET name = 'mine' WHERE k = 30000")
    restart(tmp_path / "d", epoch=2)
    refused = puller("pull", tmp_path / "d", tmp_path / "c.db", check=3)
    assert "it was changed here" in refused.err
    with sqlite3.connect(tmp_path / "c.db") as db:
        assert db.execute("SELECT name FROM d WHERE k = 30000").fetchall() == [("mine",)]
    assert puller("status", "--json", tmp_path / "c.db").json["epoch"] == 1
    done = puller("pull", "--json", "--overwrite", tmp_path / "d", tmp_path / "c.db").json
    assert (done["way"], done["written"], done["to"]["epoch"]) == ("resync", 1, 2)


def test_a_puller_that_no_diff_reaches_takes_only_what_differs(tmp_path):
    write_rows(tmp_path / "s.jsonl", 1)
    publisher("publish", "--unsigned", tmp_path / "s.jsonl", tmp_path / "d", "--key", "k")
    puller("pull", tmp_path / "d", tmp_path / "c.db")
    write_rows(tmp_path / "s.jsonl", 1, range(50))
    publisher("publish", "--unsigned", tmp_path / "s.jsonl", tmp_path / "d", "--key", "k")
    publisher("publish", "--unsigned", tmp_path / "s.jsonl", tmp_path / "other", "--key", "k", "--name", "d")
    snapshot = parse_head((tmp_path / "other/HEAD").read_bytes()).snapshot
    shutil.copytree(tmp_path / "other/chunks", tmp_path / "d/chunks", dirs_exist_ok=True)
    restart(tmp_path / "d", snapshot=snapshot, snapshot_version=2, diffs=[], log=None)
    done = puller("pull", "--json", tmp_path / "d", tmp_path / "c.db").json
    assert (done["way"], done["reason"], done["written"]) == ("resync", "no_diffs", 50)
    assert done["received"] < snapshot.bytes / 3
    assert puller("verify", tmp_path / "c.db").status == 0


@pytest.mark.parametrize("name", ["c", "c.jsonl", "c.db"])
def test_a_new_epoch_with_another_schema_or_shape(tmp_path, name):
    for n, dest in ((1, tmp_path / "d"), (2, tmp_path / "new/d")):
        if name == "c":
            source = tmp_path / f"s{n}"
            source.mkdir()
            if n == 1:
                (source / "a").write_text("file")
                (source / "b").mkdir()
                (source / "b/c").write_text("below")
            else:
                (source / "a").mkdir()
                (source / "a/x").write_text("below")
                (source / "b").write_text("file")
            publisher("publish", "--unsigned", source, dest)
        else:
            rows = [{"k": k, "v": 1} | ({"w": [k]} if n == 2 else {}) for k in range(5)]
            rows[0]["v"] = "text" if n == 2 else 1
            source = tmp_path / "s.jsonl"
            source.write_text("".join(json.dumps(row) + "\n" for row in rows))
            publisher("publish", "--unsigned", source, dest, "--key", "k")
    puller("pull", tmp_path / "d", tmp_path / name)
    restart(tmp_path / "new/d", epoch=2)
    done = puller("pull", "--json", tmp_path / "new/d", tmp_path / name).json
    assert done["way"] == ("bootstrap" if name == "c.db" else "resync")
    assert puller("verify", tmp_path / name).status == 0
    puller("pull", tmp_path / "new/d", tmp_path / f"fresh{name[1:]}")
    if name == "c":
        assert tree(tmp_path / name) == tree(tmp_path / "fresh")
    elif name == "c.jsonl":
        assert lines(tmp_path / name) == lines(tmp_path / "fresh.jsonl")


def test_the_ways_are_explained(table, tmp_path):
    base, _ = table
    out = puller("pull", "--dry-run", base / "d", tmp_path / "new.db").out
    assert "patch      no: nothing was held yet" in out
    assert "resync     no: nothing was held yet" in out
    ways = puller("pull", "--dry-run", "--json", "--version", 1, base / "d", base / "c.db").json["ways"]
    assert [(way["way"], way["closed"]) for way in ways] == [
        ("patch", "older_version"),
        ("diffs", "older_version"),
        ("resync", None),
        ("bootstrap", None),
    ]
    assert puller("status", "--json", base / "c.db").json["version"] == 3


@pytest.mark.slow
def test_a_damaged_diff_is_gone_round(tmp_path):
    source, dest, copy = tmp_path / "s", tmp_path / "d", tmp_path / "c"
    source.mkdir()
    r = random.Random(4)
    for n in range(30):
        (source / f"f{n}").write_bytes(r.randbytes(50_000))
    for n in range(17):
        (source / f"changing {n % 5}").write_text(f"{n}" * 50)
        publisher("publish", source, dest)
        if n == 7:
            puller("pull", dest, copy)
    head = parse_head((dest / "HEAD").read_bytes())
    wide = next(d for d in head.diffs if d.b - d.a > 1 and d.b == 16)
    name = wide.tree.ref.sha256.hex()
    path = dest / f"diffs/{name[:2]}/{name}.zst"
    path.write_bytes(b"damaged" + path.read_bytes()[7:])
    done = puller("pull", "--json", dest, copy).json
    assert done["way"] == "diffs"
    assert "damaged" in done["notes"][0]
    assert tree(copy) == tree(source)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Two versions of a table with a text key, and copies of the newest."""
    base = tmp_path_factory.mktemp("small")
    for n in (1, 2):
        rows = [{"k": f"k{i:02}", "n": i * n, "t": "x"} for i in range(20)]
        (base / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        publisher("publish", base / "s.jsonl", base / "d", "--key", "k")
    for name in ("c.db", "c.jsonl"):
        puller("pull", base / "d", base / name)
    return base


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        ("ALTER TABLE d DROP COLUMN n", "missing: d.n"),
        ("ALTER TABLE d RENAME COLUMN n TO m", "missing: d.n"),
        ("CREATE TABLE e AS SELECT * FROM d; DROP TABLE d; ALTER TABLE e RENAME TO d", "missing: d's primary key"),
        ("UPDATE d SET t = CAST(x'ff' AS TEXT) WHERE k = 'k03'", "differs: "),
        ("UPDATE d SET k = CAST(x'ff' AS TEXT) WHERE k = 'k03'", "differs: "),
        ("UPDATE d SET k = printf('%.5000c', 'x') WHERE k = 'k03'", "differs: d"),
    ],
)
def test_what_no_step_can_work_on_is_found_refused_and_repaired(small, tmp_path, edit, named):
    copy = tmp_path / "c.db"
    shutil.copy(small / "c.db", copy)
    with sqlite3.connect(copy) as db:
        db.executescript(edit)
    found = puller("verify", copy, check=6)
    assert named in found.err
    puller("pull", "--version", "1", small / "d", copy, check=3)
    puller("verify", "--repair", copy)
    assert puller("verify", copy).status == 0
    puller("pull", "--version", "1", small / "d", copy)
    assert puller("verify", copy).status == 0


@pytest.mark.parametrize(
    "edit",
    [
        "ALTER TABLE d ADD COLUMN mine",
        """CREATE TABLE e (n INTEGER, t TEXT, k TEXT PRIMARY KEY); INSERT INTO e SELECT n, t, k FROM d;
        DROP TABLE d; ALTER TABLE e RENAME TO d""",
    ],
)
def test_columns_that_were_added_or_moved_are_no_hindrance(small, tmp_path, edit):
    copy = tmp_path / "c.db"
    shutil.copy(small / "c.db", copy)
    with sqlite3.connect(copy) as db:
        db.executescript(edit)
    puller("pull", "--version", "1", small / "d", copy)
    assert puller("verify", copy).status == 0
    with sqlite3.connect(copy) as db:
        assert db.execute("SELECT k, n, t FROM d WHERE k = 'k03'").fetchall() == [("k03", 3, "x")]


def test_records_of_bytes_that_are_none_any_more(tmp_path):
    with dataset(str(tmp_path / "d"), kind="bytes", cache=False) as data, data.batch() as batch:
        batch[b"a"] = b"1"
    puller("pull", tmp_path / "d", tmp_path / "c.db")
    with sqlite3.connect(tmp_path / "c.db") as db:
        db.execute("INSERT INTO records VALUES ('text', 'text')")
    puller("verify", tmp_path / "c.db", check=6)
    puller("verify", "--repair", tmp_path / "c.db")
    assert puller("verify", tmp_path / "c.db").status == 0


def test_a_line_with_too_long_a_key_is_an_edit(small, tmp_path):
    for name in ("c.jsonl", "c.jsonl.headwater"):
        shutil.copy(small / name, tmp_path / name)
    with (tmp_path / "c.jsonl").open("a") as file:
        file.write(json.dumps({"k": "x" * 5000, "n": 1, "t": "x"}) + "\n")
    puller("verify", tmp_path / "c.jsonl", check=6)
    puller("verify", "--repair", tmp_path / "c.jsonl")
    assert puller("verify", tmp_path / "c.jsonl").status == 0


def test_what_was_made_by_hand_as_the_next_version_has_it_is_held(tmp_path):
    source, dest, copy = tmp_path / "s", tmp_path / "d", tmp_path / "c"
    source.mkdir()
    for name in ("changes", "goes", "stays", "mode"):
        (source / name).write_text(name)
    publisher("publish", source, dest)
    puller("pull", dest, copy)
    (source / "changes").write_text("changed")
    (source / "goes").unlink()
    (source / "mode").chmod(0o755)
    publisher("publish", source, dest)
    (copy / "changes").write_text("changed")
    (copy / "goes").unlink()
    (copy / "mode").chmod(0o755)
    done = puller("pull", "--overwrite", "--json", dest, copy).json
    assert (done["way"], done["written"], done["overwritten"]) == ("resync", 0, [])
    assert puller("verify", copy).status == 0
    (copy / "changes").write_text("mine")
    assert puller("verify", copy, check=6).err == "warning: differs: changes\n"
    puller("pull", "--version", "1", dest, copy, check=3)
    puller("pull", "--version", "1", "--overwrite", dest, copy)
    assert puller("verify", copy).status == 0
    assert (copy / "goes").read_text() == "goes"


def test_a_pipe_in_place_of_the_lines_is_an_edit(small, tmp_path):
    shutil.copy(small / "c.jsonl.headwater", tmp_path)
    os.mkfifo(tmp_path / "c.jsonl")
    puller("verify", tmp_path / "c.jsonl", check=6)
    puller("verify", "--repair", tmp_path / "c.jsonl")
    assert puller("verify", tmp_path / "c.jsonl").status == 0


def test_lines_in_other_bytes_are_found_as_the_next_step_would(small, tmp_path):
    for name in ("c.jsonl", "c.jsonl.headwater"):
        shutil.copy(small / name, tmp_path / name)
    copy = tmp_path / "c.jsonl"
    copy.write_text("".join(reversed(copy.read_text().splitlines(keepends=True))))
    puller("pull", "--version", "1", small / "d", copy, check=3)
    puller("verify", copy, check=6)
    puller("verify", "--repair", copy)
    assert puller("verify", copy).status == 0
    puller("pull", "--version", "1", small / "d", copy)


@pytest.mark.parametrize("name", ["c.db", "c.jsonl"])
def test_that_edits_are_overwritten_on_the_way_to_another_version_is_told(small, tmp_path, name):
    copy = tmp_path / name
    for path in small.glob(f"{name}*"):
        shutil.copy(path, tmp_path)
    assert puller("pull", "--overwrite", "--version", "1", small / "d", copy).err == ""
    if name == "c.db":
        with sqlite3.connect(copy) as db:
            db.execute("UPDATE d SET t = 'mine' WHERE k = 'k03'")
    else:
        copy.write_text(copy.read_text().replace("x", "y", 1))
    assert "was changed here since it was pulled" in puller("pull", "--overwrite", small / "d", copy).err
    assert puller("verify", copy).status == 0


def test_that_edits_are_overwritten_is_told_once_however_often_it_is_tried(small, tmp_path, monkeypatch):
    copy = tmp_path / "c.db"
    shutil.copy(small / "c.db", copy)
    puller("pull", "--version", "1", small / "d", copy)
    with sqlite3.connect(copy) as db:
        db.execute("UPDATE d SET t = 'mine' WHERE k = 'k03'")
    tried, check = [], Step._check_sums

    def moved_at_first(step, *arguments):
        tried.append(step.chosen.way)
        if len(tried) == 1:
            raise Moved("another puller was here")
        return check(step, *arguments)

    monkeypatch.setattr(Step, "_check_sums", moved_at_first)
    with Replica(str(small / "d"), str(copy)) as replica:
        outcome = replica.pull(overwrite=True)
    assert (tried, [note for note in outcome.notes if "was changed here" in note]) == ([Way.RESYNC] * 2, outcome.notes)
    assert len(outcome.notes) == 1


def test_damaged_checksums_of_ranges_are_none(small, tmp_path):
    copy = tmp_path / "c.jsonl"
    shutil.copy(small / "c.jsonl", copy)
    side = json.loads((small / "c.jsonl.headwater").read_text())
    side[0]["state"]["ranges"] = "AAAA"
    (tmp_path / "c.jsonl.headwater").write_text(json.dumps(side))
    puller("pull", "--version", "1", small / "d", copy)
    assert puller("verify", copy).status == 0


@pytest.mark.parametrize("names", [("a", "a/inner"), ("a/inner", "a")])
def test_what_was_deleted_and_becomes_a_folder_or_a_file_is_no_obstacle(tmp_path, names):
    source, dest, copy = tmp_path / "s", tmp_path / "d", tmp_path / "c"
    for name in names:
        shutil.rmtree(source, ignore_errors=True)
        (source / name).parent.mkdir(parents=True)
        (source / name).write_text(name)
        (source / "b").write_text("y")
        publisher("publish", source, dest)
        if name == names[0]:
            puller("pull", dest, copy)
    (copy / names[0]).unlink()
    puller("pull", "--overwrite", dest, copy)
    assert tree(copy) == tree(source)
    puller("verify", copy)
