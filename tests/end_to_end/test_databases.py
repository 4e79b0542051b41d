"""SQLite databases, published and pulled by the real commands; the sqlite3 command's dump is the judge."""

from __future__ import annotations

import math
import os
import re
import sqlite3
import string
import subprocess
import sys
import threading
from contextlib import closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from publisher.sources import apart, open_source, statcache
from publisher.sources.sqlite import SQLiteSource
from puller.errors import SourceError, UsageError
from puller.wire import rows as wire
from puller.wire.keys import decode_key
from tests.conftest import publisher, puller
from tests.end_to_end.test_large import run as measured
from tests.plain import publish_source, runs_of


def database(path, script: str):
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script)
    return path


def read(source) -> tuple[wire.Schema, dict[tuple, tuple]]:
    """The schema, and the rows by table and key, all columns in order."""
    runs = runs_of(source)
    schema = wire.decode_schema(source.lead()[1][0])
    keys = [key for run in runs for key in run[0]]
    assert keys == sorted(set(keys))
    values = [v if isinstance(v, bytes) else v.open().read() for run in runs for v in run[1]]
    found = {}
    for table, part, rest in wire.by_table(schema, keys, values):
        for key, row in zip(part, wire.full_rows(table, part, rest), strict=True):
            found[table.name, *decode_key(key)[1]] = row
    return schema, found


def types(table: wire.Table) -> dict[str, str]:
    return {column.name: column.type for column in table.columns}


def inserts(path) -> dict[str, list[str]]:
    """What the sqlite3 command dumps as rows, by table."""
    dump = subprocess.run(["sqlite3", str(path), ".dump"], capture_output=True, check=True).stdout.decode()
    found: dict[str, list[str]] = {}
    for line in re.findall(r"^INSERT INTO .*?\);$", dump, re.MULTILINE | re.DOTALL):
        name = re.match(r"INSERT INTO (\"(?:[^\"]|\"\")*\"|\S+?)(?: VALUES|\()", line)[1]
        if not name.startswith(("_headwater", "sqlite_")):
            found.setdefault(name.strip('"'), []).append(re.sub(r"^INSERT INTO \S+ ", "", line))
    return {name: sorted(lines) for name, lines in found.items()}


SHOP = """
CREATE TABLE item(id INTEGER PRIMARY KEY, sku TEXT NOT NULL, price REAL, stock INT, seen DATETIME, raw BLOB);
CREATE UNIQUE INDEX item_sku ON item(sku);
CREATE INDEX "by price" ON item(price DESC, stock);
CREATE INDEX some ON item(stock) WHERE stock > 0;
CREATE INDEX lower_sku ON item(lower(sku));
INSERT INTO item VALUES(1,'a',1.5,3,'2024-01-01',x'00ff'), (-5,'b',1e300,NULL,NULL,NULL), (9223372036854775807,'ü',2.0,0,'x',x'');
CREATE TABLE "pair ""of"" Ünits"("a b" TEXT, n INT, v, UNIQUE(v, n), PRIMARY KEY(n, "a b")) WITHOUT ROWID;
INSERT INTO "pair ""of"" Ünits" VALUES('x',2,1.0),('y',1,1),('x',1,'1'),('',-3,x'31');
CREATE TABLE log(message, level INTEGER);
INSERT INTO log(rowid, message, level) VALUES(7,'late',1),(3,'early','high'),(-2,NULL,2);
CREATE TABLE calc(a INTEGER PRIMARY KEY, b INT, c INT AS (a+b), d INT AS (a*2) STORED, e TEXT);
INSERT INTO calc(a,b,e) VALUES(1,2,'z');
CREATE TABLE empty(k VARCHAR(10) PRIMARY KEY, n);
CREATE VIEW cheap AS SELECT * FROM item WHERE price < 2;
CREATE VIRTUAL TABLE words USING fts5(body);
INSERT INTO words VALUES('some text');
CREATE TABLE auto(id INTEGER PRIMARY KEY AUTOINCREMENT, x);
INSERT INTO auto(x) VALUES(1);
"""


def test_a_database_becomes_tables_with_keys_types_and_indexes(tmp_path):
    path = database(tmp_path / "shop.db", SHOP)
    source = SQLiteSource(str(path), [], [], [])
    schema, rows = read(source)
    tables = {table.name: table for table in schema}
    pair = 'pair "of" Ünits'
    assert list(tables) == ["item", pair, "log", "calc", "empty", "auto"]
    assert types(tables["item"]) == {
        "id": "int64", "sku": "text", "price": "float64", "stock": "int64", "seen": "text", "raw": "blob",
    }  # fmt: skip
    assert [(i.name, i.unique, i.columns) for i in tables["item"].indexes] == [
        ("item_sku", True, [1]), ('by price', False, [2, 3]),
    ]  # fmt: skip
    assert types(tables[pair]) == {"a b": "text", "n": "int64", "v": "any"}
    assert tables[pair].key == [1, 0]
    assert [(i.name, i.unique, i.columns) for i in tables[pair].indexes] == [("", True, [2, 1])]
    assert types(tables["log"]) == {"rowid": "int64", "message": "any", "level": "any"}
    assert types(tables["calc"]) == {"a": "int64", "b": "int64", "e": "text"}
    assert types(tables["empty"]) == {"k": "text", "n": "any"}
    assert rows["item", 9223372036854775807] == (9223372036854775807, "ü", 2.0, 0, "x", b"")
    assert rows["log", 3] == (3, "early", "high")
    assert rows[pair, 1, "x"] == ("x", 1, "1")
    assert {name: why.split(";")[0] for name, why in source.report.skipped} == {
        "item.some": "it is an index of some rows only",
        "item.lower_sku": "it is an index over more than plain columns",
        "calc.c": "it is generated from other columns",
        "calc.d": "it is generated from other columns",
        "cheap": "it is a view",
        "words": "it is a virtual table",
    }


def test_the_dump_of_a_copy_has_the_same_rows_and_the_copy_is_sound(tmp_path):
    """What differs: declared types and constraints, generated columns, rowids as a column; views and triggers are left out."""
    path = database(tmp_path / "shop.db", SHOP + "DROP TABLE words; DROP TABLE calc; DROP TABLE log;")
    for script in ("", "UPDATE item SET price = -price; DELETE FROM auto; INSERT INTO empty VALUES('k', x'00');"):
        database(path, script)
        publish_source(path, tmp_path / "dest")
        puller("pull", "-q", tmp_path / "dest", tmp_path / "copy.db")
        assert inserts(tmp_path / "copy.db") == inserts(path)
        with closing(sqlite3.connect(tmp_path / "copy.db")) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    assert not publish_source(path, tmp_path / "dest", cache=False).changed


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6).filter(
    lambda name: not name.lower().startswith(("sqlite_", "_headwater"))
)
CELLS = st.one_of(
    st.none(),
    st.integers(-(2**63), 2**63 - 1),
    st.integers(-300, 300),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -0.0, 1.0, 5e-324, 2.0**63, -math.inf]),
    st.text(st.characters(codec="utf-8"), max_size=8),
    st.binary(max_size=8),
)
DECLARED = st.sampled_from(
    ["", "INTEGER", "INT", "TEXT", "VARCHAR(3)", "BLOB", "REAL", "DOUBLE", "NUMERIC", "DECIMAL(9,2)", "DATE", "ANY"]
)


def exact(cell):
    """A value with its class and its bits."""
    return type(cell).__name__, math.copysign(1, cell) if cell == 0 else cell, repr(cell)


def in_key(cell):
    """SPEC 9.2: -0.0 in a key is written as 0.0."""
    return 0.0 if isinstance(cell, float) and cell == 0 else cell


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_every_value_is_exact_whatever_its_column_says(tmp_path_factory, data):
    names = data.draw(st.lists(NAMES, min_size=2, max_size=5, unique_by=str.lower))
    columns = names[1:]
    declared = [data.draw(DECLARED) for _ in columns]
    parts = data.draw(st.integers(0, len(columns)))
    collate = data.draw(st.sampled_from(["", "COLLATE NOCASE", "COLLATE RTRIM"]))
    quoted = ['"' + name.replace('"', '""') + '"' for name in names]
    body = ", ".join(f"{name} {kind} {collate}" for name, kind in zip(quoted[1:], declared, strict=True))
    key = f", PRIMARY KEY ({', '.join(quoted[1 : parts + 1])})" if parts else ""
    encoding = data.draw(st.sampled_from(["UTF-8", "UTF-16le", "UTF-16be"]))
    path = tmp_path_factory.mktemp("any") / "a.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA encoding = '{encoding}'")
        form = data.draw(st.sampled_from(["", "WITHOUT ROWID"])) if parts else ""
        db.execute(f"CREATE TABLE {quoted[0]} ({body}{key}) {form}")
        rows = data.draw(st.lists(st.tuples(*(CELLS for _ in columns)), max_size=12))
        marks = ", ".join("?" * len(columns))
        for row in rows:
            if parts and None in row[:parts]:
                continue  # SQLite lets several rows have the key NULL: a test of its own
            try:
                db.execute(f"INSERT OR IGNORE INTO {quoted[0]} VALUES ({marks})", row)
            except sqlite3.IntegrityError:
                continue  # a text as INTEGER PRIMARY KEY
        stored = db.execute(f"SELECT * FROM {quoted[0]}").fetchall()
    schema, found = read(SQLiteSource(str(path), [], [], [], memory=1))
    assert [table.name for table in schema] == [names[0]]
    width = len(columns)
    assert sorted([tuple(map(exact, row[-width:])) for row in found.values()]) == sorted(
        [tuple(map(exact, [*map(in_key, row[:parts]), *row[parts:]])) for row in stored]
    )
    again, _ = read(SQLiteSource(str(path), [], [], schema))
    assert again == schema


def test_types_stay_when_the_value_that_widened_them_is_gone(tmp_path):
    path = database(
        tmp_path / "a.db", "CREATE TABLE t(k INTEGER PRIMARY KEY, n INT, d DATE); INSERT INTO t VALUES(1,'x',5);"
    )
    first, _ = read(SQLiteSource(str(path), [], [], []))
    assert types(first[0]) == {"k": "int64", "n": "any", "d": "int64"}
    database(path, "UPDATE t SET n = 1, d = NULL")
    second, _ = read(SQLiteSource(str(path), [], [], first))
    assert second == first
    database(path, "DELETE FROM t; ALTER TABLE t DROP COLUMN n; ALTER TABLE t ADD COLUMN more REAL")
    third, _ = read(SQLiteSource(str(path), [], [], second))
    assert types(third[0]) == {"k": "int64", "d": "int64", "more": "float64"}


def test_keys_that_sqlite_orders_otherwise_are_sorted(tmp_path):
    path = database(
        tmp_path / "a.db",
        """
        CREATE TABLE mixed(k PRIMARY KEY, v) WITHOUT ROWID;
        INSERT INTO mixed VALUES(1,0),(1.5,0),(2,0),('b',0),('A',0),(x'00',0),(2.5,0),(-1e9,0);
        CREATE TABLE nocase(k TEXT COLLATE NOCASE PRIMARY KEY, v);
        INSERT INTO nocase VALUES('a',0),('B',0),('c',0);
        CREATE TABLE down(a INT, b TEXT, PRIMARY KEY(a DESC, b)) WITHOUT ROWID;
        INSERT INTO down VALUES(1,'x'),(2,'a'),(2,'b');
        CREATE TABLE late(k TEXT PRIMARY KEY, v) WITHOUT ROWID;
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 2000)
        INSERT INTO late SELECT printf('%06d', i), i FROM n;
        CREATE TABLE tail(k PRIMARY KEY, v);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 2000)
        INSERT INTO tail SELECT i, i FROM n;
        INSERT INTO tail VALUES(-1, 0);
        """,
    )
    _, rows = read(SQLiteSource(str(path), [], [], [], memory=1))
    assert len(rows) == 8 + 3 + 3 + 2000 + 2001


def test_rows_that_share_a_null_key_are_refused_and_another_key_can_be_named(tmp_path):
    path = database(
        tmp_path / "a.db", "CREATE TABLE t(k TEXT PRIMARY KEY, v INT); INSERT INTO t VALUES(NULL,1),('a',3);"
    )
    assert ("t", None) in read(SQLiteSource(str(path), [], [], []))[1]
    database(path, "INSERT INTO t VALUES(NULL,2)")
    with pytest.raises(SourceError, match=r"table 't' has two rows with the key \[None\]; nothing was published"):
        publish_source(path, tmp_path / "dest")
    assert not (tmp_path / "dest/HEAD").exists()
    publisher("publish", path, tmp_path / "dest", "--key", "v")
    puller("pull", tmp_path / "dest", tmp_path / "copy.jsonl")
    assert (tmp_path / "copy.jsonl").read_text().count("\n") == 3


@pytest.mark.parametrize(("script", "said"), [
    ("CREATE TABLE t(k INTEGER PRIMARY KEY, v TEXT); INSERT INTO t VALUES(7, CAST(x'61ff' AS TEXT))",
     "table 't', column 'v' of the row with the key [7]: this text is not UTF-8; nothing was published"),
    ("CREATE TABLE t(rowid INT, _rowid_ INT, oid INT)", "columns that hide its rowid"),
    (f"CREATE TABLE t(k TEXT PRIMARY KEY); INSERT INTO t VALUES('{'x' * 5000}')", "a key of more than 4,096 bytes"),
])  # fmt: skip
def test_what_no_dataset_can_hold_is_refused(tmp_path, script, said):
    with pytest.raises(SourceError, match=re.escape(said)):
        read(SQLiteSource(str(database(tmp_path / "a.db", script)), [], [], []))


def test_tables_are_chosen_and_strict_refuses_what_would_be_left_out(tmp_path):
    path = database(tmp_path / "shop.db", SHOP)
    publisher("publish", path, tmp_path / "dest", "--table", "auto", "--table", "item")
    puller("pull", tmp_path / "dest", tmp_path / "copy.db")
    assert set(inserts(tmp_path / "copy.db")) == {"auto", "item"}
    for name, why in (
        ("cheap", "it is a view"),
        ("words_data", "it belongs to a virtual table"),
        ("none", "there is none"),
    ):
        with pytest.raises(SourceError, match=why):
            read(SQLiteSource(str(path), [name], [], []))
    with pytest.raises(SourceError, match="cannot be published"):
        read(SQLiteSource(str(path), [], [], [], strict=True))
    assert "skipped cheap: it is a view" in publisher("publish", path, tmp_path / "other").err
    with pytest.raises(SourceError, match="--key is for one table"):
        read(SQLiteSource(str(path), [], ["id"], []))


@pytest.mark.parametrize("content", [b"SQLite format 3\0" + b"\xff" * 4096, b"no database at all"])
def test_a_file_that_is_no_database_is_refused(tmp_path, content):
    (tmp_path / "a.db").write_bytes(content)
    with pytest.raises(SourceError, match="no SQLite database, or a damaged one"):
        publish_source(tmp_path / "a.db", tmp_path / "dest")


WRITER = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
n = 0
while True:
    n += 1
    db.execute("BEGIN IMMEDIATE")
    db.execute("UPDATE a SET v = ?", (n,))
    db.execute("UPDATE z SET v = ?", (n,))
    db.execute("COMMIT")
    print(n, flush=True)
"""


@pytest.mark.parametrize("mode", ["wal", "delete"])
def test_what_is_published_is_one_state_while_another_process_writes(tmp_path, mode):
    path = tmp_path / "a.db"
    script = f"""
        PRAGMA journal_mode={mode};
        CREATE TABLE a(k INTEGER PRIMARY KEY, v INT);
        CREATE TABLE z(k INTEGER PRIMARY KEY, v INT);
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 4000) INSERT INTO a SELECT i, 0 FROM n;
        INSERT INTO z SELECT * FROM a;
    """
    database(path, script)
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    try:
        writer.stdout.readline()
        drain = threading.Thread(target=writer.stdout.read)
        drain.start()
        versions = set()
        for _ in range(4):
            _, rows = read(SQLiteSource(str(path), [], [], []))
            values = {row[1] for row in rows.values()}
            assert len(rows) == 8000
            assert len(values) == 1
            versions |= values
        assert len(versions) > 1
    finally:
        writer.kill()
        writer.wait(10)
        drain.join()
        writer.stdout.close()


def test_a_database_in_wal_mode_is_left_as_it_was(tmp_path):
    path = database(
        tmp_path / "a.db", "PRAGMA journal_mode=wal; CREATE TABLE t(k INTEGER PRIMARY KEY); INSERT INTO t VALUES(1)"
    )
    before = path.stat().st_mtime_ns
    publisher("publish", path, tmp_path / "dest")
    assert sorted(os.listdir(tmp_path)) == ["a.db", "dest"]
    assert path.stat().st_mtime_ns == before
    with closing(sqlite3.connect(path)) as db:  # a log that others still need stays
        db.execute("INSERT INTO t VALUES(2)")
        db.commit()
        size = os.path.getsize(f"{path}-wal")
        assert publisher("publish", path, tmp_path / "dest", "--json").json["added"] == 1
        assert os.path.getsize(f"{path}-wal") == size > 0
    assert path.stat().st_mtime_ns != before


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another user")
def test_a_folder_that_cannot_be_written_to_is_no_hindrance(tmp_path):
    path = database(
        tmp_path / "a.db", "PRAGMA journal_mode=wal; CREATE TABLE t(k INTEGER PRIMARY KEY); INSERT INTO t VALUES(1)"
    )
    for folder in (tmp_path, *tmp_path.parents[:-2]):
        os.chmod(folder, 0o755)
    path.chmod(0o444)
    tmp_path.chmod(0o555)
    os.seteuid(65534)
    try:
        assert list(read(SQLiteSource(str(path), [], [], []))[1]) == [("t", 1)]
    finally:
        os.seteuid(0)
    assert os.listdir(tmp_path) == ["a.db"]


def test_locks_of_the_process_survive_a_publish(tmp_path):
    """Closing any descriptor of a database drops the locks that SQLite holds on it for the whole process."""
    path = database(tmp_path / "a.db", "CREATE TABLE t(k INTEGER PRIMARY KEY); INSERT INTO t VALUES(1)")
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        read(SQLiteSource(str(path), [], [], []))
        probe = f"import sqlite3; sqlite3.connect({str(path)!r}, timeout=0).execute('BEGIN IMMEDIATE')"
        done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=False)
        assert "locked" in done.stderr
        db.execute("ROLLBACK")


def test_an_unchanged_database_is_not_read_again(tmp_path, monkeypatch):
    path = database(
        tmp_path / "a.db", "PRAGMA journal_mode=wal; CREATE TABLE t(k INTEGER PRIMARY KEY); INSERT INTO t VALUES(1)"
    )
    monkeypatch.setattr(statcache, "MARGIN", -(10**11))  # as if it had been there for long
    publish_source(path, tmp_path / "dest")
    with monkeypatch.context() as patched:
        patched.delattr(SQLiteSource, "runs")
        assert not publish_source(path, tmp_path / "dest").changed
    with closing(sqlite3.connect(path)) as db:
        db.execute("INSERT INTO t VALUES(2)")
        db.commit()
        assert publish_source(path, tmp_path / "dest").added == 1


def test_a_large_database_is_read_by_a_process_that_ends_with_the_publish(tmp_path, monkeypatch):
    path = database(tmp_path / "a.db", SHOP + f"INSERT INTO item(id, sku) VALUES(2, '{string.ascii_letters * 50_000}')")
    plain = read(SQLiteSource(str(path), [], [], []))
    monkeypatch.setattr(apart, "LARGE", 0)
    started = []

    class Noted(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(apart.subprocess, "Popen", Noted)

    def open_it():
        return open_source(str(path), None, key=(), tables=(), name="x", schema=[], strict=False)

    source = open_it()
    assert isinstance(source, apart.Apart)
    assert read(source) == plain
    assert [name for name, _ in source.report.skipped][:1] == ["item.some"]
    runs = open_it().runs()
    next(runs)
    runs.close()
    assert len(started) == 2
    assert None not in [child.returncode for child in started]
    database(path, "INSERT INTO item(id, sku) VALUES(3, CAST(x'ff' AS TEXT))")
    with pytest.raises(SourceError, match="of the row with the key"):
        read(open_it())


def test_a_source_is_known_by_what_it_is_and_as_overrides(tmp_path):
    path = database(tmp_path / "odd.name", "CREATE TABLE t(k INTEGER PRIMARY KEY); INSERT INTO t VALUES(1)")
    assert publisher("publish", path, tmp_path / "one", "--json").json["kind"] == "table"
    (tmp_path / "rows.txt").write_text("k,v\n1,2\n")
    publisher("publish", tmp_path / "rows.txt", tmp_path / "two", "--as", "csv", "--key", "k")
    (tmp_path / "gone.db").symlink_to(tmp_path / "nothing")

    def opened(name, form=None, tables=(), *, detect=False):
        how = {"key": ("k",), "name": "x", "schema": [], "strict": False}
        return open_source(str(tmp_path / name), form, tables=tables, detect=detect, **how)

    with pytest.raises(UsageError, match="cannot tell what this is"):
        opened("rows.txt")
    with pytest.raises(SourceError, match="there is no"):
        opened("gone.db")
    with pytest.raises(UsageError, match="--detect-types is for CSV"):
        opened("odd.name", detect=True)
    with pytest.raises(UsageError, match="--table names it"):
        opened("rows.txt", "csv", ("a", "b"))


def test_a_table_that_comes_with_a_patch(tmp_path):
    path, copy = tmp_path / "a.db", tmp_path / "copy.db"
    rows = "INSERT INTO rows SELECT value, 'name ' || value || hex(randomblob(20)) FROM generate_series(1, 500)"
    subprocess.run(["sqlite3", path, f"CREATE TABLE rows (id INTEGER PRIMARY KEY, t); {rows}"], check=True)
    publish_source(path, tmp_path / "d")
    puller("pull", tmp_path / "d", copy)
    database(
        path, "UPDATE rows SET t = t || 'x'; CREATE TABLE more (id INTEGER PRIMARY KEY); INSERT INTO more VALUES (3);"
    )
    publish_source(path, tmp_path / "d")
    assert "by patch" in puller("pull", tmp_path / "d", copy).out
    assert inserts(copy) == inserts(path)


@pytest.mark.slow
def test_memory_does_not_grow_with_what_one_publish_adds(tmp_path):
    """The rows that are added are more than any chunk or diff has room for, and all of them follow one row."""
    source = database(tmp_path / "a.db", "CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, note TEXT)")
    add = """
    INSERT INTO t WITH RECURSIVE c(n) AS (SELECT {} UNION ALL SELECT n + 1 FROM c WHERE n < {})
    SELECT n, 'product number ' || n, lower(hex(randomblob(40))) FROM c
    """
    peaks = []
    for first, last in ((1, 1000), (1001, 800_000)):
        database(source, add.format(first, last))
        for words in (
            ("publisher.cli", "publish", source, tmp_path / "d", "--unsigned"),
            ("puller.cli", "pull", tmp_path / "d", tmp_path / "copy.db"),
        ):
            peaks.append(measured(*words))
    assert max(peaks) < 300, peaks
    with closing(sqlite3.connect(tmp_path / "copy.db")) as db:
        assert db.execute("SELECT count(*) FROM t").fetchone() == (800_000,)
