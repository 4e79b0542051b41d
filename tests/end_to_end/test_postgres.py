"""PostgreSQL in and out, on a real server; pg_dump's text of the source and of the copy is the judge."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager, suppress
from itertools import count

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from publisher.publish import Options as PublishOptions
from publisher.publish import publish
from publisher.sources import open_source
from publisher.sources.postgres import PostgresSource
from puller.errors import (
    HeadwaterError,
    Invalid,
    LocalEdits,
    NotOurs,
    SourceError,
    TargetError,
    Unavailable,
    UsageError,
)
from puller.fetch import open_fetcher
from puller.passwords import masked
from puller.postgresql import TextRows, connect
from puller.pull import Options, pull
from puller.replica import Replica
from puller.stores import open_store
from puller.targets import open_target
from puller.targets.base import Opening
from puller.wire.keys import encode_key
from puller.wire.rows import Column, Index, Json, Table, encode_rows, encode_schema
from tests.conftest import publisher, puller
from tests.contract.test_targets import t
from tests.end_to_end.test_databases import read
from tests.end_to_end.test_large import run as measured
from tests.plain import publish_records

EVERYTHING = """
CREATE TABLE "odd % name" (
    k1 integer, "k 2" text, small smallint, big bigint, r real, d double precision, n numeric, b boolean, raw bytea,
    t text, c char(5), v varchar(20), ts timestamp, tz timestamptz, day date, span interval, u uuid, j json, jb jsonb,
    a integer[], texts text[], mood text, at point,
    twice bigint GENERATED ALWAYS AS (small * 2) STORED,
    PRIMARY KEY ("k 2", k1));
INSERT INTO "odd % name" VALUES
    (1, 'a', -32768, 9223372036854775807, 0.1, 'NaN', 1.500, true, '\\x00ff5c',
     E'tab\\t"q" \\\\N nl\\n\\x01\\x0b\\r\\b\\f é', 'ab',
     'null', '2024-01-02 03:04:05.678901', '2024-01-02 03:04:05+02', '0044-03-15 BC', '1 mon -2 days',
     'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11', ' {"a" : [1, 1.0, 1e400]}', '{"b": 1.10, "a": null}', '{1,NULL,3}',
     ARRAY['x"y', '\\', NULL], '', '(1,2)'),
    (-1, 'a', NULL, NULL, NULL, '-0', 'NaN', false, '', '\\N', '', NULL, 'infinity', NULL, NULL, NULL, NULL, 'null', NULL,
     NULL, NULL, NULL, NULL),
    (2, 'Z', 0, -9223372036854775808, 'Infinity', '-Infinity', 123456789012345678901234567890.12, NULL, NULL, NULL, NULL,
     NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
    (5, 'é', NULL, NULL, NULL, NULL, NULL, NULL, NULL, E'a\n],["1"\n],[\n', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL,
     NULL, NULL, NULL, NULL, NULL),
    (0, 'é', 1, 1, 1e-45, 5e-324, 0.00, true, 'x', '', 'abc', 'x', NULL, NULL, NULL, NULL, NULL, '"\\ud800"', NULL, '{}', '{}',
     'x', NULL);
CREATE INDEX plain ON "odd % name" (t, day);
CREATE INDEX partly ON "odd % name" (t) WHERE b;
CREATE INDEX made ON "odd % name" (lower(t));
CREATE UNIQUE INDEX hashed ON "odd % name" (u);
"""
ROWS = "CREATE TABLE rows (id integer PRIMARY KEY, name text, x double precision)"


def plain(rows: dict) -> dict[str, str]:
    """Rows so that NaN and JSON can be compared."""
    return {repr(k): repr([c.data if isinstance(c, Json) else c for c in row]) for k, row in rows.items()}


def publish_to(dest, database, *tables: str, **options):
    """Publish a database's tables, in this process."""

    def find(name, schema):
        given = {"key": (), "tables": tables, "name": name, "schema": schema, "strict": False} | options
        return open_source(database.url, None, **given)

    return publish(open_store(str(dest)), find, "data", PublishOptions(allow_shrink=True))


def pull_to(root, address: str, **options):
    """Pull a dataset, in this process."""
    opened = []

    def find(head):
        opened.append(open_target(address, None if head is None else head.kind))
        return opened[-1]

    try:
        return pull(str(root), open_fetcher(str(root)), find, Options(**options))
    finally:
        for target in opened:
            target.close()


def inserts(database, *options) -> list[str]:
    """pg_dump's rows of a database's tables, in order; bookkeeping is left out."""
    return sorted(database.dump("--data-only", "-T", "*._headwater", *options).splitlines())


def test_everything_goes_there_and_back(database, new_database, tmp_path):
    database.run(
        EVERYTHING, "CREATE TABLE second (id bigint PRIMARY KEY, flag boolean)", "INSERT INTO second VALUES (1, true)"
    )
    out = publisher("publish", database.url, tmp_path / "d", "--unsigned")
    for left_out in (
        ".twice: it is generated",
        ".partly: it is an index of some rows",
        ".made: it is an index over more",
    ):
        assert left_out in out.err
    copy = new_database()
    puller("pull", tmp_path / "d", copy.url)
    assert "equal" in puller("verify", copy.url).out
    columns = 'k1, "k 2", small, big, r::float8, d::text, n::text, b, raw, t, v'
    columns += ", ts::text, tz::text, day::text, span::text, u::text"
    query = f'SELECT {columns}, j::text, jb::text, a::text, texts::text, mood, at::text FROM "odd % name" ORDER BY k1'
    assert copy.rows(query) == database.rows(query)
    assert copy.rows('SELECT c FROM "odd % name" WHERE k1 = 1') == [("ab   ",)]
    assert plain(read(source(copy))[1]) == plain(read(source(database))[1])
    types = copy.rows(
        "SELECT attname, format_type(atttypid, -1) FROM pg_attribute WHERE attrelid = to_regclass('\"odd % name\"')"
    )
    found = {"big": "bigint", "r": "double precision", "n": "text", "raw": "bytea", "j": "json", "b": "boolean"}
    assert found.items() <= dict(types).items()
    assert "twice" not in dict(types)
    made = copy.rows("SELECT indexdef FROM pg_indexes WHERE tablename = 'odd % name' AND indexname LIKE 'idx%'")
    assert sorted(definition.partition("btree ")[2] for (definition,) in made) == ["(t, day)", "(u)"]


def test_the_dump_of_a_copy_is_that_of_its_source(database, new_database, tmp_path):
    database.run(
        ROWS,
        'CREATE TABLE b (k bytea, t text COLLATE "C", v numeric(20, 5), at timestamptz, j json, ok boolean, PRIMARY KEY (t, k))',
        "INSERT INTO rows SELECT n, 'name ' || n, n / 7.0 FROM generate_series(-500, 500) n",
        "INSERT INTO b SELECT decode(md5(n::text), 'hex'), n % 7, n / 3.0, timestamptz '2024-01-01' + n * interval '1 h',"
        " json_build_object('n', n), n % 2 = 0 FROM generate_series(1, 500) n",
    )
    publish_to(tmp_path / "d", database)
    copy = new_database()
    pull_to(tmp_path / "d", copy.url)
    assert inserts(copy) == inserts(database)
    database.run(
        "UPDATE rows SET x = -x, name = NULL WHERE id % 10 = 0",
        "DELETE FROM rows WHERE id % 11 = 0",
        "INSERT INTO rows VALUES (1000, 'new', 'NaN')",
        "UPDATE b SET v = v + 1 WHERE t = '3'",
        "ALTER TABLE rows ADD COLUMN more text",
        "UPDATE rows SET more = 'x' WHERE id > 400",
        "CREATE INDEX ON rows (name)",
        "CREATE TABLE third (id integer PRIMARY KEY)",
        "INSERT INTO third VALUES (3)",
    )
    publish_to(tmp_path / "d", database)
    outcome = pull_to(tmp_path / "d", copy.url)
    assert outcome.plan.way == "patch"
    assert inserts(copy) == inserts(database)
    assert copy.rows(
        "SELECT count(*) FROM pg_indexes WHERE tablename = 'rows' AND indexname LIKE 'idx%' AND schemaname = current_schema()"
    ) == [(1,)]
    before = copy.rows("SELECT oid, relfilenode FROM pg_class WHERE oid = 'rows'::regclass")
    database.run(f"DROP INDEX {database.schema}.rows_name_idx", "DROP TABLE third", "ALTER TABLE b DROP COLUMN ok")
    publish_to(tmp_path / "d", database)
    pull_to(tmp_path / "d", copy.url)
    assert inserts(copy) == inserts(database)
    assert copy.rows(
        "SELECT count(*) FROM pg_indexes WHERE tablename = 'rows' AND indexname LIKE 'idx%' AND schemaname = current_schema()"
    ) == [(0,)]
    assert copy.rows("SELECT to_regclass('third')") == [(None,)]
    assert before == copy.rows("SELECT oid, relfilenode FROM pg_class WHERE oid = 'rows'::regclass")


def test_queries_and_tables_without_keys(database, tmp_path):
    database.run(
        "CREATE TABLE heap (a integer, b text)",
        "INSERT INTO heap VALUES (2, 'x'), (1, 'y'), (1, NULL)",
        "CREATE TABLE unique_one (a integer NOT NULL, b text NOT NULL, UNIQUE (b))",
        "INSERT INTO unique_one VALUES (1, 'k')",
        "CREATE VIEW seen AS SELECT 1 AS one",
    )
    with pytest.raises(SourceError, match=r"'heap' has no primary key.*--query 'SELECT \* FROM \"heap\"' --key COLUMN"):
        publish_to(tmp_path / "d", database)
    with pytest.raises(SourceError, match="'seen' cannot be published: it is a view; name its key: --query"):
        publish_to(tmp_path / "d", database, "seen")
    with pytest.raises(SourceError, match="has none of that name"):
        publish_to(tmp_path / "d", database, "gone")
    with pytest.raises(SourceError, match="syntax error"):
        publish_to(tmp_path / "d", database, query="SELEC 1", key=("a",))
    with pytest.raises(SourceError, match="no column 'c'"):
        publish_to(tmp_path / "d", database, query="SELECT * FROM heap", key=("c",))
    with pytest.raises(SourceError, match="two columns of the name 'a'"):
        publish_to(tmp_path / "d", database, query="SELECT a, a FROM heap", key=("a",))
    with pytest.raises(UsageError, match="--key"):
        publish_to(tmp_path / "d", database, query="SELECT * FROM heap")
    with pytest.raises(SourceError, match=r"two rows with the key \[1\]"):
        publish_to(tmp_path / "d", database, query="SELECT * FROM heap", key=("a",))
    database.run("CREATE SEQUENCE x")
    with pytest.raises(SourceError, match="read-only transaction"):
        publish_to(tmp_path / "d", database, query="SELECT nextval('x') AS a", key=("a",))
    assert not (tmp_path / "d/HEAD").exists()
    schema, rows = read(
        source(database, query="SELECT a, b, now() > 'epoch' AS c FROM heap; ", key=("a", "b"), name="q")
    )
    assert list(rows) == [("q", 1, None), ("q", 1, "y"), ("q", 2, "x")]
    assert schema == [Table("q", [Column("a", "int64"), Column("b", "text"), Column("c", "bool")], [0, 1])]
    schema, rows = read(source(database, "unique_one"))
    assert schema[0].key == [1]
    assert schema[0].indexes == [Index("unique_one_b_key", True, [1])]


def source(database, *tables, key=(), **options):
    return PostgresSource(database.url, tables, key, [], **options)


def test_the_order_of_keys_is_not_the_servers(database):
    database.run(
        "CREATE TABLE c (k char(4) PRIMARY KEY)",
        "INSERT INTO c VALUES ('a'), (E'a\\x01'), ('a!')",
        "CREATE TABLE ts (k timestamp PRIMARY KEY)",
        "INSERT INTO ts VALUES ('2024-01-01'), ('0001-01-01 BC'), ('12024-01-01'), ('infinity')",
        "CREATE TABLE n (k numeric PRIMARY KEY)",
        "INSERT INTO n VALUES (10), (9), (-1), (1.50)",
        "CREATE TABLE f (k real PRIMARY KEY)",
        "INSERT INTO f VALUES ('NaN')",
    )
    with pytest.raises(SourceError, match="table 'f': NaN cannot be part of a key"):
        read(source(database))
    database.run("DROP TABLE f")
    _, rows = read(source(database))
    assert [row for row in rows if row[0] == "n"] == [("n", "-1"), ("n", "1.50"), ("n", "10"), ("n", "9")]
    assert [row[1] for row in rows if row[0] == "c"] == ["a\1  ", "a   ", "a!  "]
    assert len(rows) == 11


CELLS = {
    "int64": ("bigint", st.integers(-(2**63), 2**63 - 1)),
    "float64": ("double precision", st.floats()),
    "text": ("text", st.text(st.characters(codec="utf-8", exclude_characters="\0"))),
    "blob": ("bytea", st.binary(max_size=40)),
    "bool": ("boolean", st.booleans()),
    "json": ("json", st.sampled_from([b"null", b"[1, 1.0]", b'{"a":"\\u0000"}', b" 1e999", b'"\\ud83d"'])),
}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_values_of_any_types(database, data):
    """Rows written by psycopg's own parameters are read as they were given, in the order of their keys."""
    types = data.draw(st.lists(st.sampled_from(sorted(CELLS)), max_size=4))
    key = data.draw(st.sampled_from(["int64", "float64", "text", "blob", "bool"]))
    keys = CELLS[key][1].filter(lambda k: k == k)
    rows = data.draw(
        st.lists(
            st.tuples(keys, *(st.none() | CELLS[type_][1] for type_ in types)), max_size=8, unique_by=lambda row: row[0]
        )
    )
    with database.connect() as db:
        db.execute("DROP TABLE IF EXISTS t")
        columns = [f"k {CELLS[key][0]} PRIMARY KEY", *(f"c{n} {CELLS[type_][0]}" for n, type_ in enumerate(types))]
        db.execute(f"CREATE TABLE t ({', '.join(columns)})")
        for row in rows:
            given = [
                cell.decode() if type_ == "json" and cell else cell
                for cell, type_ in zip(row, [key, *types], strict=True)
            ]
            db.execute(f"INSERT INTO t VALUES ({', '.join(['%s'] * len(row))})", given)
    schema, found = read(source(database, "t"))
    assert [column.type for column in schema[0].columns] == [key, *types]

    expected = {("t", row[0]): row for row in rows}
    if key == "float64":  # whose keys have no negative zero
        expected = {("t", row[0] + 0.0): (row[0] + 0.0, *row[1:]) for row in rows}
    assert plain(found) == plain(expected)


def test_one_moment_while_others_write(database, tmp_path):
    """Two tables whose sums are always equal, changed all the time: every version that is published has equal sums."""
    database.run(
        "CREATE TABLE a (id integer PRIMARY KEY, v integer)",
        "CREATE TABLE b (id integer PRIMARY KEY, v integer)",
        "INSERT INTO a SELECT n, 0 FROM generate_series(1, 300) n",
        "INSERT INTO b SELECT n, 0 FROM generate_series(1, 300) n",
    )
    done = threading.Event()

    def write():
        r = random.Random(1)
        with database.connect() as db:
            while not done.is_set():
                with db.transaction():
                    n = r.randint(1, 300)
                    db.execute("UPDATE b SET v = v + 1 WHERE id = %s", (n,))
                    db.execute("UPDATE a SET v = v + 1 WHERE id = %s", (301 - n,))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(4):
            publish_to(tmp_path / "d", database)
            with Replica(str(tmp_path / "d")) as replica:
                replica.pull()
                sums = [sum(replica[table, n]["v"] for n in range(1, 301)) for table in ("a", "b")]
            assert sums[0] == sums[1] > 0
    finally:
        done.set()
        writer.join()


def test_passwords_are_nowhere(database, tmp_path, monkeypatch):
    secret = "gehe1m"
    monkeypatch.setenv("HOME", str(tmp_path))
    url = database.url.replace("postgres@", f"postgres:{secret}@") + f"&password={secret}"
    database.run(ROWS, "INSERT INTO rows VALUES (1, 'a', 1)")
    assert masked(url) == f"{database.url}&password=…".replace("postgres@", "postgres:gehe1m@").replace(
        f":{secret}", ""
    )
    assert secret not in masked(f"postgresql://me:a@{secret}@127.0.0.1/x?sslpassword={secret}#")
    told = [
        publisher("publish", url, tmp_path / "d", "--unsigned", "--verbose"),
        publisher("publish", url.replace("host=", "host=/nowhere,"), tmp_path / "d", check=None),
        publisher("publish", f"postgresql://me:{secret}@127.0.0.1:1/x", tmp_path / "d", check=4),
        publisher("publish", f"postgresql://me:{secret}@x:y@127.0.0.1/x", tmp_path / "d", check=2),
        publisher("publish", f"postgresql://me:{secret}@127.0.0.1/x?nonsense=1", tmp_path / "d", check=2),
        puller("pull", tmp_path / "d", f"postgresql://me:{secret}@127.0.0.1:1/x", check=4),
        puller("pull", tmp_path / "d", url, "--json", check=3),
        puller("status", url, check=1),
    ]
    assert [one for one in told if secret in one.out + one.err] == []
    assert told[2].err.count("\n") == 1
    assert "127.0.0.1" in told[2].err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert [path for path in files if secret.encode() in path.read_bytes()] == []


def test_edits_are_found_and_kept_until_told(database, new_database, tmp_path):
    database.run(ROWS, "INSERT INTO rows SELECT n, n, n FROM generate_series(1, 100) n")
    publish_to(tmp_path / "d", database)
    copy = new_database()
    pull_to(tmp_path / "d", copy.url)
    copy.run("GRANT SELECT ON rows TO PUBLIC", "UPDATE rows SET name = 'mine' WHERE id = 50")
    assert puller("verify", copy.url, check=6)
    database.run("UPDATE rows SET name = 'theirs' WHERE id = 50")
    publish_to(tmp_path / "d", database)
    with pytest.raises(LocalEdits):
        pull_to(tmp_path / "d", copy.url, check=True)
    assert copy.rows("SELECT name FROM rows WHERE id = 50") == [("mine",)]
    pull_to(tmp_path / "d", copy.url, overwrite=True)
    assert inserts(copy) == inserts(database)
    copy.run("ALTER TABLE rows DROP COLUMN x")
    database.run("DELETE FROM rows WHERE id = 3")
    publish_to(tmp_path / "d", database)
    with pytest.raises(LocalEdits, match=r"rows\.x"):
        pull_to(tmp_path / "d", copy.url)
    pull_to(tmp_path / "d", copy.url, overwrite=True)
    assert inserts(copy) == inserts(database)
    assert copy.rows("SELECT has_table_privilege('pg_monitor', 'rows', 'SELECT')") == [(True,)]
    copy.run("DROP TABLE rows")
    pull_to(tmp_path / "d", copy.url)
    assert inserts(copy) == inserts(database)


@pytest.mark.slow
def test_triggers_do_not_change_what_is_written(database, new_database, tmp_path):
    database.run(
        ROWS,
        "INSERT INTO rows SELECT n, n, n FROM generate_series(1, 50) n",
        "CREATE TABLE other AS SELECT 1 AS id",
        "ALTER TABLE other ADD PRIMARY KEY (id)",
    )
    publish_to(tmp_path / "d", database)
    copy = new_database()
    pull_to(tmp_path / "d", copy.url)

    def trigger(body):
        copy.run(
            f"CREATE OR REPLACE FUNCTION {copy.schema}.t() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {body} RETURN NEW; END'",
            "CREATE OR REPLACE TRIGGER t BEFORE INSERT OR UPDATE ON rows FOR EACH ROW EXECUTE FUNCTION t()",
        )

    database.run("UPDATE rows SET name = 'theirs' WHERE id = 7")
    publish_to(tmp_path / "d", database)
    for body in ("NEW.name = upper(NEW.name);", "IF NEW.id = 7 THEN RETURN NULL; END IF;"):
        trigger(body)
        for options in ({}, {"overwrite": True}):
            with pytest.raises(TargetError, match="triggers change what is written to table 'rows'"):
                pull_to(tmp_path / "d", copy.url, **options)
    trigger("")
    assert pull_to(tmp_path / "d", copy.url).after == (1, 2)
    assert inserts(copy) == inserts(database)
    database.run("ALTER TABLE other ALTER id TYPE text")  # which takes all of the state
    publish_to(tmp_path / "d", database)
    trigger("NEW.name = upper(NEW.name);")
    with pytest.raises(TargetError, match="triggers change what is written to table 'rows'"):
        pull_to(tmp_path / "d", copy.url)
    copy.run("ALTER TABLE rows DISABLE TRIGGER t")
    assert pull_to(tmp_path / "d", copy.url).plan.way == "bootstrap"
    assert inserts(copy) == inserts(database)


def test_rows_that_triggers_keep_or_write_into_other_tables_are_seen(database, new_database, tmp_path):
    for name in ("a", "b"):
        database.run(
            f"CREATE TABLE {name} (id integer PRIMARY KEY, v text)",
            f"INSERT INTO {name} SELECT n, 'old' FROM generate_series(1, 5) n",
        )
    publish_to(tmp_path / "d", database)
    copy = new_database()
    pull_to(tmp_path / "d", copy.url)
    held = inserts(copy)
    database.run("DELETE FROM a WHERE id = 1", "UPDATE b SET v = 'new' WHERE id = 2", "DELETE FROM b WHERE id = 3")
    publish_to(tmp_path / "d", database)

    def refused(table, kind, body, more=""):
        copy.run(
            f"CREATE FUNCTION {copy.schema}.f() RETURNS trigger LANGUAGE plpgsql SET search_path = {copy.schema} AS "
            f"'BEGIN {body} END'",
            f"CREATE {kind} ON {table} {more} FOR EACH ROW EXECUTE FUNCTION f()",
        )
        with pytest.raises(TargetError, match=r"triggers change what is written to table '[ab]', or keep rows"):
            pull_to(tmp_path / "d", copy.url)
        assert inserts(copy) == held
        copy.run("DROP FUNCTION f CASCADE")

    refused("a", "TRIGGER t BEFORE DELETE", "RETURN NULL;")
    refused("b", "TRIGGER t AFTER UPDATE", "INSERT INTO a VALUES (1, ''back''); RETURN NULL;")
    late = "DEFERRABLE INITIALLY DEFERRED"
    refused("a", "CONSTRAINT TRIGGER t AFTER DELETE", "UPDATE b SET v = ''mine'' WHERE id = 2; RETURN NULL;", late)
    assert pull_to(tmp_path / "d", copy.url).after == (1, 2)
    assert inserts(copy) == inserts(database)


def test_other_parts_leave_those_that_stay_as_they_are(database, new_database, tmp_path):
    for name in ("prices", "stock", "other"):
        database.run(
            f"CREATE TABLE {name} (shop text, n integer, v text, PRIMARY KEY (shop, n))",
            f"INSERT INTO {name} SELECT shop, n, '{name} ' || n FROM generate_series(1, 30) n, unnest(ARRAY['eu', 'uk']) shop",
        )
    publish_to(tmp_path / "d", database)
    copy = new_database()

    def rows(name, where="true"):
        return database.rows(f"SELECT * FROM {name} WHERE {where} ORDER BY shop, n")

    def held(name):
        return copy.rows(f"SELECT * FROM {name} ORDER BY shop, n")

    def change(*parts):
        """Hold other parts; the way, and which tables there are then."""
        outcome = pull_to(tmp_path / "d", copy.url, parts=parts)
        target = open_target(copy.url, "table")
        assert target.check().equals(target.state())
        target.close()
        names = copy.rows(
            "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace AND relkind = 'r'"
        )
        return str(outcome.plan.way), {name for (name,) in names} - {"_headwater"}

    assert change(("prices",), ("stock", "eu")) == ("bootstrap", {"prices", "stock"})
    kept = copy.rows("SELECT oid, relfilenode FROM pg_class WHERE oid = 'stock'::regclass")
    assert change(("stock",), ("other", "uk")) == ("resync", {"stock", "other"})
    assert (held("stock"), held("other")) == (rows("stock"), rows("other", "shop = 'uk'"))
    database.run(
        "UPDATE stock SET v = 'new' WHERE n < 5", "ALTER TABLE prices ADD COLUMN w integer", "DELETE FROM other"
    )
    publish_to(tmp_path / "d", database)
    assert change(("stock", "uk"), ("prices",)) == ("resync", {"stock", "prices"})
    assert (held("stock"), held("prices")) == (rows("stock", "shop = 'uk'"), rows("prices"))
    assert kept == copy.rows("SELECT oid, relfilenode FROM pg_class WHERE oid = 'stock'::regclass")
    copy.run("ALTER TABLE prices ADD COLUMN mine text")
    with pytest.raises(LocalEdits, match=r"prices\.mine"):
        change(("stock",))
    copy.run("ALTER TABLE prices DROP COLUMN mine", "CREATE TABLE other (mine integer)")
    with pytest.raises(NotOurs, match="has a table other that headwater did not make"):
        change()
    assert (held("stock"), held("prices")) == (rows("stock", "shop = 'uk'"), rows("prices"))
    copy.run("DROP TABLE other", "UPDATE prices SET v = 'mine' WHERE n = 1")
    with pytest.raises(LocalEdits):
        change()
    pull_to(tmp_path / "d", copy.url, parts=(), overwrite=True)
    assert [held(name) for name in ("prices", "stock", "other")] == [
        rows(name) for name in ("prices", "stock", "other")
    ]


def test_what_postgresql_cannot_hold_is_refused_by_name(database, tmp_path):
    wide = Table("t", [Column("id", "int64"), Column("x", "text"), Column("j", "json")], [0])

    def refuse(table, *records, match):
        dest = tmp_path / str(next(numbers))
        publish_records(dest, "table", {b"": encode_schema([table]), **dict(records)})
        with pytest.raises(TargetError, match=match):
            pull_to(dest, database.url)
        assert database.rows(
            f"SELECT count(*) FROM pg_class WHERE relnamespace = '{database.schema}'::regnamespace"
        ) == [(0,)]

    numbers = count()
    refuse(wide, t(1, "a\0b"), match=r"column 'x' of table 't' holds a text with a zero character, 'a\\x00b'")
    refuse(wide, t(1, "a", Json(1, b"{no")), match=r"invalid input syntax for type json.*column j.*\{no")
    refuse(Table("t" * 64, wide.columns, wide.key), match="names have 1 to 63 bytes")
    refuse(Table("t", [Column("id", "any")], [0]), match="column 'id' of the primary key")
    refuse(Table("t", [Column("id", "int64"), Column("ctid", "text")], [0]), match="ctid")
    refuse(
        Table("t", [Column("id", "text")], [0]), (encode_key("t", [None]), b"\x90"), match="without a value in its key"
    )
    anything = Table("t", [Column("id", "int64"), Column("x", "any")], [0])
    refuse(anything, t(1, Json(1, b" 1")), match="column 'x' of table 't' holds JSON that PostgreSQL cannot give back")


def test_two_datasets_lie_in_two_schemas(database, new_database, tmp_path):
    database.run(ROWS)
    publish_to(tmp_path / "d", database)
    publish_records(tmp_path / "e", "bytes", {b"k": b"v"})
    one, two = new_database(), new_database()
    pull_to(tmp_path / "d", one.url)
    pull_to(tmp_path / "e", two.url)
    assert two.rows("SELECT key, value FROM records") == [(b"k", b"v")]
    with pytest.raises(HeadwaterError, match="holds the dataset"):
        pull_to(tmp_path / "e", one.url)
    with Replica(str(tmp_path / "d"), one.url.replace("postgres@", "postgres:gehe1m@")) as replica:
        assert dict(replica) == {}
        database.run("INSERT INTO rows VALUES (7, 'x', 0.5)")
        publish_to(tmp_path / "d", database)
        told = []
        replica.pull(told.append)
        assert dict(replica) == {("rows", 7): {"id": 7, "name": "x", "x": 0.5}}
        assert [change.key for change in told] == [("rows", 7)]
        assert "gehe1m" not in repr(replica)
    three = new_database()
    three.run("CREATE TABLE rows (mine integer)")
    with pytest.raises(NotOurs, match="has a table rows that headwater did not make"):
        pull_to(tmp_path / "d", three.url, adopt=True)


def test_readers_go_on_while_a_step_is_staged(database, new_database, tmp_path):
    """Each state that a reader sees, also across an added column, is one version's; no reading waits for the staging."""
    database.run(ROWS, "INSERT INTO rows SELECT n, '1', 1 FROM generate_series(1, 500) n")
    publish_to(tmp_path / "d", database)
    copy = new_database()
    pull_to(tmp_path / "d", copy.url)
    database.run("UPDATE rows SET name = '2'", "ALTER TABLE rows ADD COLUMN more integer")
    publish_to(tmp_path / "d", database)
    target = open_target(copy.url, "table")
    with target.reading() as reading:
        state = reading.state
    held = list(target.records())
    target.close()
    assert sum(len(keys) for keys, _ in held) == state.records
    with copy.connect() as reader:
        reader.execute("SET lock_timeout = '5s'")
        with reader.transaction():
            reader.execute("SELECT count(*) FROM rows")
            thread = threading.Thread(target=pull_to, args=(tmp_path / "d", copy.url))
            thread.start()
            time.sleep(0.7)
            with copy.connect() as other:
                other.execute("SET lock_timeout = '2s'")
                assert other.execute("SELECT DISTINCT name FROM rows").fetchall() == [("1",)]
        thread.join()
    assert copy.rows("SELECT DISTINCT name, more FROM rows") == [("2", None)]


def test_another_puller_waits_its_turn(database, new_database, tmp_path):
    database.run(ROWS, "INSERT INTO rows VALUES (1, 'a', 1)")
    publish_to(tmp_path / "d", database)
    copy = new_database()
    threads = [threading.Thread(target=pull_to, args=(tmp_path / "d", copy.url)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert inserts(copy) == inserts(database)
    assert puller("verify", copy.url)


def test_a_connection_that_breaks_while_rows_are_written(database, new_database):
    """Rows go to the server from another thread; what happens there is told, and nothing is left of them."""
    copy = new_database()
    target = open_target(copy.url, "table")
    table = Table("t", [Column("k", "int64"), Column("v", "text")], [0])
    opening = Opening("table", replace=True, time=1, large=lambda key, value: iter(()))
    with (
        pytest.raises(Unavailable, match=r"the connection .* broke: .*; what was there was kept"),
        target.writer(opening) as writer,
    ):
        writer.put([b""], [encode_schema([table])], [None])
        for n in range(1, 1000):
            keys = [encode_key("t", [n * 10_000 + i]) for i in range(5000)]
            writer.put(keys, [encode_rows([["x" * 200]], 1)[0]] * 5000, [None] * 5000)
            if n == 3:
                database.rows(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'headwater'"
                )
    target.close()
    assert copy.rows("SELECT to_regclass('t'), to_regclass('_headwater')") == [(None, None)]


@contextmanager
def stalling(database):
    """The database's address by TCP, and an event that is set to have nothing pass on any more."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stalled, ends = threading.Event(), [listener]

    def pump(source, sink):
        with suppress(OSError):
            while not stalled.is_set() and (data := source.recv(65536)):
                sink.sendall(data)

    def accept():
        with suppress(OSError):
            while True:
                here, there = listener.accept()[0], socket.socket(socket.AF_UNIX)
                there.connect(f"{database.host}/.s.PGSQL.5432")
                ends.extend([here, there])
                for ways in ((here, there), (there, here)):
                    threading.Thread(target=pump, args=ways, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    port = listener.getsockname()[1]
    try:
        yield f"postgresql://postgres@127.0.0.1:{port}/postgres?options=-csearch_path%3D{database.schema}", stalled
    finally:
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def test_a_step_ends_at_once_though_the_connection_swallows_all(new_database):
    copy = new_database()
    table = Table("t", [Column("k", "int64"), Column("v", "text")], [0])
    opening = Opening("table", replace=True, time=1, large=lambda key, value: iter(()))
    written, ended = threading.Event(), []

    def step(address, stalled):
        target = open_target(address, "table")
        try:
            with target.writer(opening) as writer:
                writer.put([b""], [encode_schema([table])], [None])
                writer.put([encode_key("t", [1])], encode_rows([["x"]], 1), [None])
                stalled.set()
                rows = encode_rows([[random.randbytes(100_000).hex()]], 1) * 17
                writer.put([encode_key("t", [n]) for n in range(2, 19)], rows, [None] * 17)  # some that may wait
                written.set()
                raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            ended.append(error)
        target.close()

    with stalling(copy) as (address, stalled):
        thread = threading.Thread(target=step, args=(address, stalled), daemon=True)
        thread.start()
        assert written.wait(30)
        thread.join(20)  # for ever, while a write that is under way is waited for
        assert ended
    assert copy.rows("SELECT to_regclass('t'), to_regclass('_headwater')") == [(None, None)]


@pytest.mark.parametrize(("given", "expected"), [("", 300_000), ("&tcp_user_timeout=7000", 7000)])
def test_a_server_that_is_gone_is_noticed_by_its_silence(new_database, given, expected):
    with stalling(new_database()) as (address, _), closing(connect(address + given)) as db:
        with closing(socket.socket(fileno=os.dup(db.pgconn.socket))) as end:
            found = [end.getsockopt(socket.IPPROTO_TCP, at) for at in (socket.TCP_USER_TIMEOUT, socket.TCP_KEEPIDLE)]
        assert found == [expected, 60]


@pytest.mark.slow
def test_a_connection_that_breaks_is_told_in_one_line(database, new_database, tmp_path):
    database.run(ROWS, "INSERT INTO rows SELECT n, repeat(md5(n::text), 8), n FROM generate_series(1, 200000) n")
    publish_to(tmp_path / "d", database)
    copy = new_database()
    command = [sys.executable, "-m", "puller.cli", "pull", str(tmp_path / "d"), copy.url]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not copy.rows(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'headwater' AND "
        f"state = 'active' AND query LIKE 'COPY \"{copy.schema}\"%'"
    ):
        assert process.poll() is None
    _, told = process.communicate()
    assert (process.returncode, told.count("\n"), told[:26]) == (4, 1, "error: the connection to p")
    assert copy.rows("SELECT to_regclass('rows'), to_regclass('_headwater')") == [(None, None)]


@pytest.mark.slow
def test_who_may_write_the_tables_of_a_copy_need_not_be_allowed_to_make_any(database, new_database, tmp_path):
    database.run(ROWS, "INSERT INTO rows VALUES (1, 'a', 1)")
    publish_to(tmp_path / "d", database)
    copy = new_database()
    role = f"role_{copy.schema}"
    url = copy.url.replace("postgres@", f"{role}@")
    with copy.connect() as db:
        db.execute(f"CREATE ROLE {role} LOGIN")
        try:
            assert "give the user USAGE and CREATE" in puller("pull", tmp_path / "d", url, check=1).err
            pull_to(tmp_path / "d", copy.url)
            db.execute(f"GRANT USAGE ON SCHEMA {copy.schema} TO {role}")
            assert "permission denied for table _headwater" in puller("status", url, check=1).err
            db.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA {copy.schema} TO {role}")
            database.run("UPDATE rows SET name = 'b'")
            publish_to(tmp_path / "d", database)
            puller("pull", tmp_path / "d", url)
            assert inserts(copy) == inserts(database)
            database.run("ALTER TABLE rows ADD COLUMN more text", "UPDATE rows SET more = 'x'")
            publish_to(tmp_path / "d", database)
            assert "must be owner of table rows" in puller("pull", tmp_path / "d", url, check=1).err
        finally:
            db.execute(f"DROP OWNED BY {role}")
            db.execute(f"DROP ROLE {role}")


@pytest.mark.slow
def test_killed_again_and_again(database, new_database, tmp_path):
    r = random.Random(3)
    database.run(
        ROWS, "INSERT INTO rows SELECT n, n, n FROM generate_series(1, 30000) n", "CREATE INDEX ON rows (name)"
    )
    publish_to(tmp_path / "d", database)
    copy = new_database()
    versions = {}
    for attempt in range(12):
        versions[attempt + 1] = inserts(database)
        command = [sys.executable, "-m", "puller.cli", "pull", str(tmp_path / "d"), copy.url]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(r.uniform(0.2, 1.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        while copy.rows("SELECT FROM pg_stat_activity WHERE application_name = 'headwater'"):
            time.sleep(0.05)  # what the server was told before it meets the broken connection, it still does
        target = open_target(copy.url, "table")
        state = target.state()
        if state is None:
            assert copy.rows("SELECT to_regclass('rows'), to_regclass('_headwater')") == [(None, None)]
        else:
            assert inserts(copy) == versions[state.version]
            assert target.check().equals(state)
        target.close()
        database.run(
            f"UPDATE rows SET name = 'v{attempt}' WHERE id % 12 = {attempt}", f"DELETE FROM rows WHERE id = {attempt}"
        )
        publish_to(tmp_path / "d", database)
    puller("pull", tmp_path / "d", copy.url)
    assert inserts(copy) == inserts(database)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_table(database, new_database, tmp_path):
    copy = new_database()
    database.run(
        "CREATE TABLE rows (id bigint PRIMARY KEY, name text, note text)",
        "INSERT INTO rows SELECT n, 'name ' || n, repeat(md5(n::text), 4) FROM generate_series(1, 1000000) n",
        "CREATE INDEX ON rows (name)",
    )
    peaks = []
    for _ in range(2):
        peaks.append(measured("publisher.cli", "publish", database.url, tmp_path / "d", "--unsigned"))
        peaks.append(measured("puller.cli", "pull", tmp_path / "d", copy.url))
        peaks.append(measured("puller.cli", "verify", copy.url))
        database.run("UPDATE rows SET note = 'changed' WHERE id % 100 = 7")
    assert max(peaks) < 300, peaks
    assert copy.rows("SELECT count(*) FROM rows WHERE note = 'changed'") == [(10_000,)]


def test_text_that_is_no_utf8_is_named():
    with pytest.raises(Invalid, match="not UTF-8"):
        TextRows(["text"]).rows(b'"\xff"\n')
