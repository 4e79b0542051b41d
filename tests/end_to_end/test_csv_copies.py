"""CSV and TSV copies, read by others: SQLite's command, DuckDB and Python's csv module are the judges."""

from __future__ import annotations

import csv
import sqlite3
import subprocess

import duckdb
import pytest

from publisher.sources import open_source, statcache
from puller.fetch import FolderFetcher
from puller.pull import Options, pull
from puller.targets import delimited, open_target
from puller.wire import rows as wire
from tests.conftest import publisher, puller
from tests.plain import publish_records

TABLE = wire.Table("t", [wire.Column(name, type_) for name, type_ in (
    ("id", "int64"), ("a text", "text"), ("f", "float64"), ("ok", "bool"), ("b", "blob"),
)], [0])  # fmt: skip
ROWS = [
    (1, "plain", 0.1, True, b"\0\xff"),
    (2, "", -1e300, False, b""),
    (3, None, None, None, None),
    (4, 'say "hi", or\nnot\r\n', 1.0, True, b"x"),
    (5, "\ttab; | é", 5e-324, False, b"\\x"),
    (-6, "NULL", -0.0, None, None),
]


@pytest.fixture(params=["csv", "tsv"])
def copy(request, tmp_path):
    """A copy of ROWS."""
    publish_records(tmp_path / "d", "table", {b"": wire.encode_schema([TABLE])} | dict(zip(*records(), strict=True)))
    path = tmp_path / f"copy.{request.param}"
    pull(str(tmp_path / "d"), FolderFetcher(str(tmp_path / "d")), lambda _: open_target(str(path), "table"), Options())
    return path


def records():
    return wire.records_of(TABLE, ROWS)


def delimiter(path):
    return "," if path.suffix == ".csv" else "\t"


def test_the_csv_module_reads_it(copy):
    with copy.open(newline="", encoding="utf-8") as file:
        found = list(csv.reader(file, delimiter=delimiter(copy), strict=True))
    assert found[0] == ["id", "a text", "f", "ok", "b"]
    assert found[1] == ["-6", "NULL", "-0.0", "", ""]
    assert found[2] == ["1", "plain", "0.1", "true", "\\x00ff"]
    assert [row[1] for row in found[2:]] == [row[1] or "" for row in ROWS[:5]]


def test_duckdb_reads_it_with_its_types_and_nulls(copy):
    types = "{'id': 'BIGINT', 'a text': 'VARCHAR', 'f': 'DOUBLE', 'ok': 'BOOLEAN', 'b': 'VARCHAR'}"
    found = duckdb.sql(
        f"SELECT id, \"a text\", f, ok, unhex(b[3:]) FROM read_csv('{copy}', header = true, columns = {types}, "
        f"delim = '{delimiter(copy)}', quote = '\"', escape = '\"', allow_quoted_nulls = false, strict_mode = true) ORDER BY id"
    ).fetchall()
    assert list(map(repr, found)) == list(map(repr, sorted(ROWS)))


def test_sqlite_imports_it(copy, tmp_path):
    mode = ".mode csv" if copy.suffix == ".csv" else '.mode csv\n.separator "\\t"'
    script = f"{mode}\n.import '{copy}' t\n"
    subprocess.run(["sqlite3", tmp_path / "new.db"], input=script, text=True, check=True)
    with sqlite3.connect(tmp_path / "new.db") as db:
        found = db.execute('SELECT CAST(id AS INT), "a text", CAST(f AS REAL), ok FROM t ORDER BY 1').fetchall()
    words = {True: "true", False: "false", None: ""}
    assert found == [(row[0], row[1] or "", row[2] or 0.0, words[row[3]]) for row in sorted(ROWS)]


@pytest.mark.parametrize("block", [1, 20, 1 << 20])
def test_records_may_be_cut_anywhere_while_they_are_read(copy, monkeypatch, block):
    monkeypatch.setattr(delimited, "_BLOCK", block)
    found = [run for run in open_target(str(copy)).records() if run[0] != [b""]]
    keys, values = ([part for run in found for part in run[n]] for n in range(2))
    assert dict(zip(keys, values, strict=True)) == dict(zip(*records(), strict=True))
    assert (len(found) > 1) == (block < 1 << 20)


def test_copies_follow_and_are_checked(tmp_path):
    rows = "".join(f"k{n:04},{n}\n" for n in range(2000))
    (tmp_path / "s.csv").write_text(f"k,v\n{rows}")
    publisher("publish", tmp_path / "s.csv", tmp_path / "d", "--key", "k")
    puller("pull", tmp_path / "d", tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_text() == f"k,v\n{rows}"
    (tmp_path / "s.csv").write_text(f"k,v\n{rows}".replace("k0007,7\n", "k0007,seven\n").replace("k0009,9\n", ""))
    publisher("publish", tmp_path / "s.csv", tmp_path / "d")
    assert "k0007" not in puller("pull", tmp_path / "d", tmp_path / "copy.csv").out
    assert (tmp_path / "copy.csv").read_text() == (tmp_path / "s.csv").read_text()
    (tmp_path / "copy.csv").write_text((tmp_path / "s.csv").read_text().replace("seven", "eight"))
    puller("verify", tmp_path / "copy.csv", check=6)
    puller("verify", "--repair", tmp_path / "copy.csv")
    assert (tmp_path / "copy.csv").read_text() == (tmp_path / "s.csv").read_text()


def test_a_folder_of_files_is_a_table_each(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "orders.csv").write_text("id,sku\n2,a\n1,b\n")
    (folder / "stock.CSV").write_text("sku;n\na;1\n")
    (folder / "readme.txt").touch()
    publish = ("publish", folder, tmp_path / "d", "--as", "csv")
    assert "--key orders.FIELD" in publisher(*publish, "--key", "stock.sku", check=2).err
    first = publisher(*publish, "--key", "id", "--key", "stock.sku", "--detect-types")
    assert "skipped readme.txt: it is no file *.csv" in first.err
    puller("pull", tmp_path / "d", tmp_path / "copy.db")
    with sqlite3.connect(tmp_path / "copy.db") as db:
        assert db.execute(
            "SELECT id, orders.sku, n FROM orders LEFT JOIN stock USING (sku) ORDER BY id"
        ).fetchall() == [
            (1, "b", None),
            (2, "a", 1),
        ]
    assert "pull into SQLite" in puller("pull", tmp_path / "d", tmp_path / "copy.csv", check=2).err
    assert not (tmp_path / "copy.csv").exists()
    assert not publisher(*publish, "--detect-types", "--json").json["changed"]
    (folder / "stock.CSV").unlink()
    assert publisher(*publish, "--detect-types", check=3).status == 3
    gone = publisher(*publish, "--detect-types", "--allow-shrink", "--json").json
    assert (gone["changed"], gone["deleted"]) == (True, 1)
    (folder / "more.csv").write_text("id\n1\n")
    one = publisher(*publish, "--table", "orders", "--detect-types", "--json")
    assert not one.json["changed"]
    assert "no file for table 'none'" in publisher(*publish, "--table", "none", check=1).err


@pytest.mark.parametrize("name", ["a", "b"])
@pytest.mark.parametrize("gone", [False, True])
def test_a_folder_is_read_again_when_any_of_its_files_changed(tmp_path, monkeypatch, name, gone):
    monkeypatch.setattr(statcache, "MARGIN", -(10**11))  # as if the files had been there for long
    folder = tmp_path / "shop"
    folder.mkdir()
    for table in ("a", "b"):
        (folder / f"{table}.csv").write_text("id,v\n1,x\n")

    def opened():
        options = {"key": ("id",), "tables": (), "name": "d", "schema": [], "strict": False}
        return open_source(str(folder), "csv", cached_for="/dest", **options)

    first = opened()
    assert first.recall(b"state") is None
    assert [len(keys) for keys, _ in first.runs()] == [1, 1]
    first.remember(b"state")
    assert opened().recall(b"state") == []
    assert opened().recall(b"another") is None
    if gone:
        (folder / f"{name}.csv").unlink()
    else:
        (folder / f"{name}.csv").write_text("id,v\n1,y\n")
    assert opened().recall(b"state") is None


def test_a_folder_of_json_lines_is_a_table_each(tmp_path):
    folder = tmp_path / "shop"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"id": 1}\n')
    (folder / "b.ndjson").write_text('{"id": "x", "v": [1]}\n')
    publisher("publish", folder, tmp_path / "d", "--as", "jsonl", "--key", "id")
    puller("pull", tmp_path / "d", tmp_path / "copy.db")
    with sqlite3.connect(tmp_path / "copy.db") as db:
        assert db.execute("SELECT * FROM b").fetchall() == [("x", "[1]")]


def test_a_copy_that_cannot_be_read_is_not_said_to_hold_fewer_rows(copy):
    copy.write_bytes(copy.read_bytes() + b'7,"cut sho')
    told = puller("verify", copy, check=6)
    assert "it cannot be read to its end (a line is not a row of table 't'" in told.out
    assert " belong" not in told.out
    copy.unlink()
    told = puller("verify", copy, check=6)
    assert "version 1: not all of it is there." in told.out
