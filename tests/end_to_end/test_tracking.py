"""Tracked databases: a publish that looks at noted keys only gives the state that one of everything gives."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
from contextlib import closing

import pytest

from publisher.keys import Keyring
from publisher.sources import tracking
from publisher.sources.sqlite import SQLiteSource
from puller.errors import NoKey, SourceError
from tests.conftest import publisher, puller, tree
from tests.plain import publish_source

TABLES = """
CREATE TABLE item(id INTEGER PRIMARY KEY, sku TEXT COLLATE NOCASE, price REAL, UNIQUE(sku));
CREATE TABLE word(k TEXT COLLATE NOCASE PRIMARY KEY, n INT);
CREATE TABLE pair(a REAL, "b ""c" BLOB, v, PRIMARY KEY(a, "b ""c")) WITHOUT ROWID;
CREATE TABLE log(line TEXT, d NUMERIC);
CREATE UNIQUE INDEX two ON log(line, d);
CREATE TABLE child(id INTEGER PRIMARY KEY, item INT REFERENCES item(id) ON DELETE CASCADE ON UPDATE CASCADE);
"""


def run(path, *statements):
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA foreign_keys=ON")
        for statement in statements:
            db.execute(*statement) if isinstance(statement, tuple) else db.executescript(statement)
        db.commit()


@pytest.fixture
def read_everything(monkeypatch):
    """How often a source was read as a whole."""
    calls = []
    plain = SQLiteSource._records

    def records(self, db, stored):
        calls.append(stored.name)
        return plain(self, db, stored)

    monkeypatch.setattr(SQLiteSource, "_records", records)
    return calls


def published(path, dest, **options):
    return publish_source(path, dest, allow_shrink=True, **options)


def is_published(path, dest) -> bool:
    """Whether the state that is published is the one that is read as a whole, triggers or not."""
    return not published(path, dest, cache=False).changed


def change(rng: random.Random) -> tuple[str, tuple]:
    n, m, word = rng.randrange(12), rng.randrange(12), rng.choice(["a", "A", "b", "B", "ü", ""])
    verb = rng.choice(["INSERT", "INSERT OR REPLACE", "INSERT OR IGNORE"])
    update = rng.choice(["UPDATE OR REPLACE", "UPDATE OR IGNORE"])
    return rng.choice([
        (f"{verb} INTO item VALUES(?, ?, ?)", (n, word, float(m))),
        (f"{verb} INTO item(sku) VALUES(?)", (word,)),
        (f"{update} item SET id = ?, sku = ? WHERE id = ?", (n, word, m)),
        ("DELETE FROM item WHERE id = ?", (n,)),
        (f"{verb} INTO word VALUES(?, ?)", (word, n)),
        (f"{verb} INTO word(rowid, k) VALUES(?, ?)", (n, word)),
        (f"{update} word SET k = ? WHERE k = ?", (word, rng.choice("abAB"))),
        ("DELETE FROM word WHERE n = ?", (n,)),
        (f"{verb} INTO pair VALUES(?, ?, ?)", (n, bytes([m % 3]), rng.choice([None, 1, 1.5, "x", b"y"]))),
        (f"{update} pair SET a = a + 0.5 WHERE a < ?", (n,)),
        ("DELETE FROM pair WHERE a > ?", (n,)),
        (f"{verb} INTO log VALUES(?, ?)", (word, n % 3)),
        (f"{update} log SET line = ? WHERE rowid = ?", (word, n)),
        ("DELETE FROM log WHERE d = ?", (n % 3,)),
        ("INSERT OR REPLACE INTO child VALUES(?, (SELECT max(id) FROM item))", (n,)),
    ])  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 12))])
def test_what_is_noted_is_what_changed(tmp_path, read_everything, seed):
    rng = random.Random(seed)
    path, dest = tmp_path / "a.db", tmp_path / "dest"
    run(path, TABLES, "INSERT INTO item VALUES(0, 'z', 0); INSERT INTO word VALUES('w', 1); INSERT INTO pair VALUES(0, x'', 0);"
        "INSERT INTO log VALUES('l', 1); INSERT INTO child VALUES(0, 0);")  # fmt: skip
    published(path, dest)
    assert tracking.track(str(path)) == (["item", "word", "pair", "log", "child"], [])
    published(path, dest)
    for _ in range(25):
        with closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA foreign_keys=ON")
            for _ in range(rng.randrange(1, 5)):
                try:
                    db.execute(*change(rng))
                except sqlite3.IntegrityError:
                    continue
            db.commit()
        read_everything.clear()
        outcome = published(path, dest)
        if not outcome.schema_changed:
            assert read_everything == []
        assert outcome.report.warnings == []
        assert is_published(path, dest)
    if seed == 0:
        puller("pull", dest, tmp_path / "copy.db")
        puller("verify", tmp_path / "copy.db")


def numbered(path, rows=500):
    run(path, "CREATE TABLE t(k INTEGER PRIMARY KEY, v TEXT)")
    with closing(sqlite3.connect(path)) as db:
        db.executemany("INSERT INTO t VALUES(?, ?)", [(n, f"value {n}") for n in range(rows)])
        db.commit()
    tracking.track(str(path))
    return path


def test_another_state_schema_or_backup_is_noticed(tmp_path, read_everything):
    path, dest = numbered(tmp_path / "a.db"), tmp_path / "dest"
    published(path, dest)
    shutil.copy(path, tmp_path / "backup.db")
    for n, statements in enumerate(
        [
            ["UPDATE t SET v = 'x' WHERE k = 3", "VACUUM"],
            ["ALTER TABLE t ADD COLUMN more INT DEFAULT 7"],
            ["CREATE INDEX by_v ON t(v)"],
        ]
    ):
        run(path, *statements)
        read_everything.clear()
        assert published(path, dest).changed
        assert read_everything == ["t"], n
        run(path, f"UPDATE t SET v = 'y' WHERE k = {n}")
        read_everything.clear()
        assert published(path, dest).updated == 1
        assert read_everything == []
    shutil.copy(tmp_path / "backup.db", path)
    published(path, dest)
    assert is_published(path, dest)
    assert read_everything
    run(path, "UPDATE t SET v = 'z' WHERE k = 1")
    with closing(sqlite3.connect(tmp_path / "backup.db")) as backup, closing(sqlite3.connect(path)) as db:
        backup.backup(db)
    published(path, dest)
    assert is_published(path, dest)


def test_tables_that_came_later_are_read_and_it_is_said(tmp_path, read_everything):
    path, dest = numbered(tmp_path / "a.db"), tmp_path / "dest"
    published(path, dest)
    run(path, "CREATE TABLE new(k INTEGER PRIMARY KEY)")
    published(path, dest)
    run(path, "INSERT INTO new VALUES(1)")
    outcome = published(path, dest)
    assert outcome.added == 1
    assert "table 'new': it came or was altered later; run `publisher track` again" in outcome.report.warnings[0]
    run(path, "ALTER TABLE t RENAME TO u; INSERT INTO u VALUES(-1, '')")
    published(path, dest)
    assert is_published(path, dest)
    tracking.track(str(path))
    published(path, dest)
    run(path, "DELETE FROM u WHERE k < 0; INSERT INTO new VALUES(2)")
    read_everything.clear()
    outcome = published(path, dest)
    assert (outcome.added, outcome.deleted, read_everything, outcome.report.warnings) == (1, 1, [], [])


def test_a_check_now_and_then_finds_what_was_missed(tmp_path, monkeypatch, read_everything):
    monkeypatch.setattr(tracking, "EVERY", 3)
    path, dest = numbered(tmp_path / "a.db"), tmp_path / "dest"
    published(path, dest)
    warnings = []
    for n in range(8):
        run(path, f"UPDATE t SET v = 'x' WHERE k = {n}")
        if n == 4:
            run(path, f"DELETE FROM {tracking.CHANGES}")
        read_everything.clear()
        outcome = published(path, dest)
        warnings += [(n, bool(read_everything), len(outcome.report.warnings))]
    assert [w for w in warnings if w[1]] == [(3, True, 0), (7, True, 1)]
    published(path, dest)
    assert is_published(path, dest)


def test_several_datasets_each_stand_where_they_are_and_changes_are_forgotten(tmp_path, read_everything):
    path = numbered(tmp_path / "a.db")
    published(path, tmp_path / "one")
    published(path, tmp_path / "two")
    for n in range(5):
        run(path, f"UPDATE t SET v = 'x' WHERE k = {n}")
        published(path, tmp_path / "one")
    read_everything.clear()
    assert published(path, tmp_path / "two").updated == 5
    assert read_everything == []
    assert not published(path, tmp_path / "one").changed
    with closing(sqlite3.connect(path)) as db:
        assert db.execute(f"SELECT count(*) FROM {tracking.CHANGES}").fetchone() == (1,)
    before = path.read_bytes()
    assert not published(path, tmp_path / "two").changed
    assert path.read_bytes() == before


def test_a_foreign_version_in_between_makes_everything_be_read(tmp_path, read_everything):
    path, dest = numbered(tmp_path / "a.db"), tmp_path / "dest"
    published(path, dest)
    shutil.copy(path, tmp_path / "copy.db")
    run(tmp_path / "copy.db", "UPDATE t SET v = 'other' WHERE k = 9")
    published(tmp_path / "copy.db", dest)
    run(path, "UPDATE t SET v = 'mine' WHERE k = 8")
    read_everything.clear()
    assert published(path, dest).updated == 2
    assert read_everything == ["t"]


def test_untrack_leaves_no_trace(tmp_path):
    path = tmp_path / "a.db"
    run(path, TABLES, "INSERT INTO item VALUES(1, 'a', 1.5)")
    before = subprocess.run(["sqlite3", path, ".dump"], capture_output=True, check=True).stdout
    assert publisher("track", path, "--json").json["tables"] == ["item", "word", "pair", "log", "child"]
    run(path, "UPDATE item SET price = 2")
    published(path, tmp_path / "dest")
    run(path, "UPDATE item SET price = 1.5")
    assert publisher("untrack", path, "--json").json["changed"]
    assert subprocess.run(["sqlite3", path, ".dump"], capture_output=True, check=True).stdout == before
    assert not tracking.untrack(str(path))
    assert published(path, tmp_path / "dest").updated == 1


def test_a_table_whose_triggers_could_miss_something_is_not_tracked(tmp_path):
    path = tmp_path / "a.db"
    run(
        path,
        "CREATE TABLE t(k INTEGER PRIMARY KEY, v TEXT); CREATE UNIQUE INDEX low ON t(lower(v)); INSERT INTO t VALUES(1,'a')",
    )
    assert "t: its unique index 'low' is over some rows or expressions only" in publisher("track", path).err
    published(path, tmp_path / "dest")
    run(path, "INSERT OR REPLACE INTO t VALUES(2, 'A')")
    done = publisher("publish", path, tmp_path / "dest", "--json", "--allow-shrink")
    assert (done.json["added"], done.json["deleted"]) == (1, 1)
    assert "not all changes are tracked, so everything was read" in done.err


def test_only_databases_are_tracked(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    assert "no SQLite database" in publisher("track", tmp_path / "a.jsonl", check=2).err
    with pytest.raises(SourceError, match="unable to open"):
        tracking.track(str(tmp_path / "none.db"))
    assert not (tmp_path / "none.db").exists()


def rows_of(path) -> list[tuple]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute("SELECT * FROM t ORDER BY k").fetchall()


def test_what_is_tracked_is_encrypted_and_signed_or_not_published(tmp_path, monkeypatch, read_everything):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path, dest = numbered(tmp_path / "a.db"), tmp_path / "dest"
    (root,) = published(path, dest, keyring=Keyring(), encrypt=True).signing.keys.roots
    run(path, "UPDATE t SET v = 'other' WHERE k = 3", ("INSERT INTO t VALUES(-1, ?)", ("long " * 300_000,)))
    read_everything.clear()
    outcome = published(path, dest)
    assert (outcome.added, outcome.updated, outcome.head.trust, read_everything) == (1, 1, 1, [])
    frames = [path for path in dest.rglob("*.zst") if path.read_bytes().startswith(b"\x28\xb5\x2f\xfd")]
    assert frames == []
    puller("pull", "--trust", root, dest, tmp_path / "copy.db")
    assert rows_of(tmp_path / "copy.db") == rows_of(path)

    os.unlink(Keyring().path(root))
    before = tree(dest)
    run(path, "UPDATE t SET v = 'more' WHERE k = 3")
    with pytest.raises(NoKey):
        published(path, dest)
    assert tree(dest) == before


def test_what_is_tracked_is_published_to_a_bucket_with_few_requests(tmp_path, bucket, read_everything):
    path, dest = numbered(tmp_path / "a.db"), f"{bucket.url}/data"
    published(path, dest)
    for n in range(3):
        run(path, f"UPDATE t SET v = 'changed' WHERE k = {n}")
        read_everything.clear()
        bucket.proxy.requests.clear()
        outcome = published(path, dest)
        assert (outcome.updated, read_everything) == (1, [])
    assert len(bucket.proxy.requests) <= 9
    puller("pull", dest, tmp_path / "copy.db")
    assert rows_of(tmp_path / "copy.db") == rows_of(path)


def test_where_it_cannot_be_noted_what_was_published_it_is_said(tmp_path, monkeypatch, read_everything):
    monkeypatch.setattr(tracking, "_PATIENCE", 0)
    path, dest = numbered(tmp_path / "a.db"), tmp_path / "dest"
    published(path, dest)
    run(path, "UPDATE t SET v = 'x' WHERE k = 1")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        outcome = published(path, dest)
        other.execute("ROLLBACK")
    assert outcome.updated == 1
    assert "the next publish reads everything" in outcome.report.warnings[0]
    read_everything.clear()
    outcome = published(path, dest)
    assert (outcome.changed, outcome.report.warnings, read_everything) == (False, [], ["t"])
