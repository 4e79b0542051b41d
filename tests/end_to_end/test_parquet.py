"""Parquet files of many origins as sources, and as copies that others read: pyarrow and DuckDB are the judges."""

from __future__ import annotations

import datetime
import decimal
import io
import json
import math
import re
import struct
import subprocess
import sys
import uuid

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import assume, given, settings

from publisher.sources.parquet import ParquetSource
from puller.arrow import arrow_schema, table_of, to_array, to_cells
from puller.errors import SourceError, UsageError
from puller.fetch import FolderFetcher
from puller.pull import Options, pull
from puller.targets import open_target, parquet
from puller.wire import rows as wire
from puller.wire.rows import Json
from tests.conftest import publisher
from tests.plain import publish_records, publish_source, read_table
from tests.unit.test_csvtext import tables


def read(path, key=("id",), schema=(), **options):
    """Types by column, and the rows in key order."""
    return read_table(ParquetSource(str(path), key, "t", schema, name="t", **options))


def pull_into(dest, copy) -> None:
    pull(str(dest), FolderFetcher(str(dest)), lambda head: open_target(str(copy), "table"), Options())


def js(text: str) -> Json:
    return Json(1, text.encode())


DAY = datetime.date(2024, 2, 29)
NOON = datetime.datetime(2024, 2, 29, 12, 0, 0, 5)
UUID = uuid.UUID(int=5)


@pytest.mark.parametrize(
    ("type_", "given", "kind", "cells"),
    [
        (pa.bool_(), [True, None], "bool", [True, None]),
        (pa.int8(), [-128, 127], "int64", [-128, 127]),
        (pa.uint32(), [2**32 - 1], "int64", [2**32 - 1]),
        (pa.uint64(), [1, 2**63 - 1], "int64", [1, 2**63 - 1]),
        (pa.uint64(), [1, 2**64 - 1], "any", [1, js("18446744073709551615")]),
        (pa.float32(), [0.1, -0.0], "float64", [struct.unpack("f", struct.pack("f", 0.1))[0], -0.0]),
        (pa.float64(), [1e300, math.inf], "float64", [1e300, math.inf]),
        (pa.string(), ["é\0", ""], "text", ["é\0", ""]),
        (pa.large_string(), ["x"], "text", ["x"]),
        (pa.dictionary(pa.int8(), pa.string()), ["x", None, "x"], "text", ["x", None, "x"]),
        (pa.binary(), [b"\0\xff", b""], "blob", [b"\0\xff", b""]),
        (pa.binary(2), [b"ab"], "blob", [b"ab"]),
        (pa.decimal128(12, 10), [decimal.Decimal("1E-10"), decimal.Decimal("12.5")], "text", ["0.0000000001", "12.5000000000"]),
        (pa.decimal256(50, 2), [decimal.Decimal("-1.10")], "text", ["-1.10"]),
        (pa.date32(), [DAY], "text", ["2024-02-29"]),
        (pa.time64("us"), [datetime.time(1, 2, 3)], "text", ["01:02:03.000000"]),
        (pa.timestamp("us"), [NOON], "text", ["2024-02-29 12:00:00.000005"]),
        (pa.timestamp("ns"), [1709208000000000005], "text", ["2024-02-29 12:00:00.000000005"]),
        (pa.timestamp("ms", "Europe/Berlin"), [0], "text", ["1970-01-01 00:00:00.000Z"]),
        (pa.duration("ms"), [datetime.timedelta(seconds=1)], "int64", [1000]),
        (pa.null(), [None], "text", [None]),
        (pa.uuid(), [UUID.bytes], "text", [str(UUID)]),
        (pa.json_(), ['{ "b": 1, "a": 1.0 }', None], "json", [js('{"b":1,"a":1.0}'), None]),
        (pa.json_(), ['"x"', "[ ]"], "any", ["x", js("[]")]),
        (pa.list_(pa.int64()), [[1, None], [], None], "json", [js("[1,null]"), js("[]"), None]),
        (pa.list_(pa.float64()), [[1.0, math.nan, -math.inf]], "json", [js('[1.0,"NaN","-Infinity"]')]),
        (pa.struct([("a", pa.binary()), ("d", pa.date32())]), [{"a": b"x", "d": DAY}], "json",
         [js('{"a":"eA==","d":"2024-02-29"}')]),
        (pa.map_(pa.string(), pa.uint64()), [[("k", 2**64 - 1)]], "json", [js('{"k":18446744073709551615}')]),
        (pa.list_(pa.struct([("t", pa.timestamp("us", "Europe/Berlin")), ("n", pa.decimal128(10, 10))])),
         [[{"t": 5, "n": decimal.Decimal("1E-10")}]], "json", [js('[{"t":"1970-01-01 00:00:00.000005Z","n":"0.0000000001"}]')]),
        (pa.list_(pa.dictionary(pa.int8(), pa.string())), [["x", "x"]], "json", [js('["x","x"]')]),
    ],
    ids=lambda part: str(part) if isinstance(part, pa.DataType | str) else "",
)  # fmt: skip
def test_every_type_becomes_what_the_table_says(tmp_path, type_, given, kind, cells):
    column = pa.array(given, type_)
    pq.write_table(pa.table({"id": list(range(len(given))), "v": column}), tmp_path / "a.parquet")
    types, rows = read(tmp_path / "a.parquet")
    assert types == {"id": "int64", "v": kind}
    assert [wire.encode_row(row[1:]) for row in rows] == [wire.encode_row([cell]) for cell in cells]


def test_every_nan_is_the_canonical_one(tmp_path):
    odd = struct.unpack(">d", bytes.fromhex("fff8000000000001"))[0]
    pq.write_table(pa.table({"id": [1, 2], "v": [odd, None]}), tmp_path / "a.parquet")
    publish_source(tmp_path / "a.parquet", tmp_path / "d", key=("id",))  # a pull refuses any other
    pull_into(tmp_path / "d", tmp_path / "copy.parquet")
    found = pq.read_table(tmp_path / "copy.parquet").column("v").to_pylist()
    assert struct.pack(">d", found[0]).hex() == "7ff8000000000000"


@pytest.mark.parametrize(("table", "said"), [
    ({"x": [1]}, "there is no column 'id' for the key, but 'x'"),
    ({"id": [1, None]}, "row 2 has no value in 'id', its key"),
    ({"id": [1, 2, 1], "v": [1, 2, 3]}, "row 1 of {path} and row 3 of {path} have the same key [1]"),
    ({"id": [[1]]}, "a nested value"),
    ({"id": [math.nan]}, "NaN cannot be part of a key"),
    ({"id": ["k" * 5000]}, "a key is longer than 4096 bytes"),
    ({"id": [1], "v": pa.array([b"\xff"]).view(pa.string())}, "column 'v', near row 1: a text is not UTF-8"),
    ({"id": [1], "v": pa.array([2**63 - 1], pa.timestamp("us"))}, "column 'v', near row 1: a date or time has no text"),
])  # fmt: skip
def test_what_is_wrong_is_named_by_its_place(tmp_path, table, said):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(table), path)
    with pytest.raises(SourceError, match=re.escape(said.format(path=path)) + ".*; nothing was published"):
        publish_source(path, tmp_path / "d", key=("id",))
    assert not (tmp_path / "d/HEAD").exists()


def test_what_is_no_parquet_file_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_text("no")
    with pytest.raises(SourceError, match=r"a.parquet cannot be read: .*; nothing was published"):
        publish_source(tmp_path / "a.parquet", tmp_path / "d", key=("id",))


def test_rows_out_of_order_and_large_ones(tmp_path):
    rows = [{"id": n * 7 % 1000, "v": "x" * (2_000_000 if n == 5 else 10)} for n in range(1000)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=300)
    _, found = read(tmp_path / "a.parquet", memory=1)
    assert [(row[0], len(row[1])) for row in found] == sorted((row["id"], len(row["v"])) for row in rows)


def test_a_folder_is_one_table_with_its_partitions_as_columns(tmp_path):
    root = tmp_path / "lake"
    for day, ids in (("2024-01-02", [3, 4]), ("2024-01-01", [1, 2]), ("__HIVE_DEFAULT_PARTITION__", [5])):
        (root / f"day={day}/tag=a%20b").mkdir(parents=True)
        pq.write_table(pa.table({"id": ids, "v": ["x"] * len(ids)}), root / f"day={day}/tag=a%20b/part-0.parquet")
    (root / "_SUCCESS").touch()
    (root / "notes.txt").touch()
    types, rows = read(root)
    assert types == {"id": "int64", "v": "text", "day": "text", "tag": "text"}
    days = ["2024-01-01"] * 2 + ["2024-01-02"] * 2 + [None]
    assert rows == [(n + 1, "x", day, "a b") for n, day in enumerate(days)]
    expected = duckdb.sql(
        f"SELECT id, v, day::VARCHAR, tag FROM read_parquet('{root}/*/*/*.parquet') ORDER BY id"
    ).fetchall()
    assert rows == expected
    done = publisher("publish", root, tmp_path / "d", "--as", "parquet", "--key", "id")
    assert "skipped notes.txt: it is no Parquet file" in done.err
    assert "nothing new" in publisher("publish", root, tmp_path / "d", "--as", "parquet").out
    with pytest.raises(SourceError, match=r"notes.txt cannot be published"):
        read(root, strict=True)


@pytest.mark.parametrize(("second", "said"), [
    ({"id": [2], "w": ["x"]}, "2.parquet: column 'w' is not in the files before"),
    ({"id": [2]}, "2.parquet: column 'v' is missing"),
    ({"id": [2], "v": [1]}, "2.parquet: column 'v' is int64, and another type in the files before"),
    ({"id": [1], "v": ["x"]}, "1.parquet and row 1 of {path} have the same key [1]"),
])  # fmt: skip
def test_files_of_a_folder_that_do_not_fit_are_named(tmp_path, second, said):
    (tmp_path / "t").mkdir()
    pq.write_table(pa.table({"id": [1], "v": ["x"]}), tmp_path / "t/1.parquet")
    pq.write_table(pa.table(second), tmp_path / "t/2.parquet")
    with pytest.raises(SourceError, match=re.escape(said.format(path=tmp_path / "t/2.parquet"))):
        read(tmp_path / "t")


def test_columns_in_another_order_are_the_same(tmp_path):
    (tmp_path / "t").mkdir()
    pq.write_table(pa.table({"id": [1], "v": ["x"]}), tmp_path / "t/1.parquet")
    pq.write_table(pa.table({"v": ["y"], "id": [2]}), tmp_path / "t/2.parquet")
    assert read(tmp_path / "t")[1] == [(1, "x"), (2, "y")]


def test_a_column_that_comes_later_rewrites_nothing_else(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1, 2], "v": ["x", "y"]}), path)
    publish_source(path, tmp_path / "d", key=("id",))
    pq.write_table(pa.table({"new": [None, 1.5], "id": [1, 2], "v": ["x", "y"]}), path)
    outcome = publish_source(path, tmp_path / "d")
    assert (outcome.updated, outcome.schema_changed) == (1, True)


def test_a_key_must_be_given_once(tmp_path):
    pq.write_table(pa.table({"id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UsageError, match="--key"):
        publish_source(tmp_path / "a.parquet", tmp_path / "d")


def test_standard_input(tmp_path):
    pq.write_table(pa.table({"id": [2, 1]}), tmp_path / "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    publisher("publish", "-", tmp_path / "d", "--as", "parquet", "--key", "id", stdin=data)
    assert not publish_source(tmp_path / "a.parquet", tmp_path / "d").changed


def numbered(table, rows):
    """A table with a key of numbers before its columns, and all columns of its rows; NaN is canonical."""
    assume("id" not in [column.name for column in table.columns])
    cells = [[math.nan if isinstance(c, float) and c != c else c for c in row] for row in rows]
    return wire.Table("t", [wire.Column("id", "int64"), *table.columns], [0]), [
        range(len(rows)),
        *zip(*cells, strict=True),
    ]


@given(tables())
@settings(max_examples=40, deadline=None)
def test_parquet_gives_back_every_value(given_):
    """Any values of any types, and names of columns: the file itself says what it holds."""
    table, columns = numbered(*given_)
    arrays = [to_array(column.type, cells) for column, cells in zip(table.columns, columns, strict=True)]
    file = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(arrays, schema=arrow_schema(table)), file)
    (batch,) = pq.ParquetFile(file).iter_batches()
    assert table_of(pq.ParquetFile(file).schema_arrow) == table
    found = [to_cells(column.type, array) for column, array in zip(table.columns, batch.columns, strict=True)]
    assert wire.column_records(table, found) == wire.column_records(table, columns)


@given(tables())
@settings(max_examples=5, deadline=None)
def test_copies_are_sources_of_the_same_data(tmp_path_factory, given_):
    root = tmp_path_factory.mktemp("parquet")
    table, columns = numbered(*given_)
    keys, values = wire.column_records(table, columns)
    records = {b"": wire.encode_schema([table])} | dict(zip(keys, values, strict=True))
    publish_records(root / "d", "table", records)
    pull_into(root / "d", root / "copy.parquet")
    found = {k: v for run in open_target(str(root / "copy.parquet")).records() for k, v in zip(*run, strict=True)}
    assert found == records
    publish_source(root / "copy.parquet", root / "again")
    heads = [json.loads((root / name / "HEAD").read_text().splitlines()[1]) for name in ("d", "again")]
    assert heads[0]["checksum"] == heads[1]["checksum"]


def test_what_others_made_of_a_copy_is_taken_for_what_it_is(tmp_path):
    """pyarrow keeps the metadata of a file that it changes."""
    table = wire.Table("t", [wire.Column("id", "int64"), wire.Column("f", "float64"), wire.Column("x", "any")], [0])
    keys, values = wire.records_of(table, [(1, 1.0, 1.0), (2, 2.0, "x")])
    publish_records(tmp_path / "d", "table", {b"": wire.encode_schema([table])} | dict(zip(keys, values, strict=True)))
    copy, path = tmp_path / "copy.parquet", tmp_path / "a.parquet"
    pull_into(tmp_path / "d", copy)
    odd = pa.array([struct.unpack(">d", bytes.fromhex("fff8000000000001"))[0]] * 2)
    pq.write_table(pq.read_table(copy).set_column(1, "f", odd), path)
    types, rows = read(path, key=())
    assert types == {"id": "int64", "f": "float64", "x": "any"}
    assert [wire.encode_row(row) for row in rows] == [
        wire.encode_row(row) for row in [(1, math.nan, 1.0), (2, math.nan, "x")]
    ]
    pq.write_table(pq.read_table(copy).append_column("more", pa.array(["a", "b"])), path)
    with pytest.raises(UsageError, match="--key"):
        read(path, key=())
    assert read(path)[0] == {"id": "int64", "f": "float64", "x": "json", "more": "text"}
    schema = pq.read_table(copy).schema
    members = [
        pa.array([None, 1.5 if field.name == "float64" else None], field.type) for field in schema.field("x").type
    ]
    members[1] = odd
    wrong = pa.StructArray.from_arrays(members, fields=list(schema.field("x").type))
    pq.write_table(pa.Table.from_arrays([pa.array([1, 2]), pa.array([1.0, 2.0]), wrong], schema=schema), path)
    with pytest.raises(SourceError, match=r"column 'x', near row 1: .*not canonical"):
        read(path, key=())


def test_duckdb_reads_a_copy_as_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "GROUP_ROWS", 100)
    table = wire.Table("t", [wire.Column(n, t) for n, t in (
        ("id", "int64"), ("f", "float64"), ("s", "text"), ("b", "blob"), ("ok", "bool"), ("j", "json"), ("x", "any"),
    )], [0])  # fmt: skip
    rows = [(n, n / 3, f"é{n}" * 400 if n % 3 else None, bytes([n % 256]), n % 2 == 0, js(f'{{"n":{n}}}'),
             [n, f"{n}", None][n % 3]) for n in range(1000)]  # fmt: skip
    keys, values = wire.records_of(table, rows)
    publish_records(tmp_path / "d", "table", {b"": wire.encode_schema([table])} | dict(zip(keys, values, strict=True)))
    copy = tmp_path / "copy.parquet"
    pull_into(tmp_path / "d", copy)
    types = {name: type_ for name, type_, *_ in duckdb.sql(f"DESCRIBE FROM '{copy}'").fetchall()}
    assert types == {
        "id": "BIGINT", "f": "DOUBLE", "s": "VARCHAR", "b": "BLOB", "ok": "BOOLEAN", "j": "JSON",
        "x": 'STRUCT(int64 BIGINT, float64 DOUBLE, "text" VARCHAR, blob BLOB, bool BOOLEAN, "json" VARCHAR)',
    }  # fmt: skip
    found = duckdb.sql(
        f"SELECT id, f, s, b, ok, j, x.\"int64\", x.text, x IS NULL FROM '{copy}' ORDER BY file_row_number"
    )

    def cell(x):
        return (x if type(x) is int else None, x if type(x) is str else None, x is None)

    assert found.fetchall() == [(*row[:5], row[5].data.decode(), *cell(row[6])) for row in rows]
    assert pq.ParquetFile(copy).metadata.num_row_groups > 1


def test_without_pyarrow_the_extra_is_named(tmp_path):
    pq.write_table(pa.table({"id": [1]}), tmp_path / "a.parquet")
    publish_source(tmp_path / "a.parquet", tmp_path / "d", key=("id",))
    without = "import sys; sys.modules['pyarrow'] = None; from {0}.cli import entry; sys.argv[0] = '{0}'; entry()"
    for command in (
        ["publisher", "publish", tmp_path / "a.parquet", tmp_path / "e", "--key", "id"],
        ["puller", "pull", tmp_path / "d", tmp_path / "copy.parquet"],
    ):
        script = without.format(command[0])
        done = subprocess.run([sys.executable, "-c", script, *command[1:]], capture_output=True, text=True, check=False)
        assert done.returncode == 1
        assert "pip install 'headwater[parquet]'" in done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.parquet", "d"]


MEASURED = """
import resource, sys
from pathlib import Path
from {command}.cli import main
main(sys.argv[1:], standalone_mode=False)
own = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(max(int(own), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
"""
"""Its last line is the peak, in KiB, of this process and of those that it started."""


def peak(command: str, *arguments: object) -> int:
    script = [sys.executable, "-c", MEASURED.format(command=command), *map(str, arguments)]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    return int(done.stdout.splitlines()[-1]) * 1024


@pytest.mark.slow
def test_memory_is_bounded_by_row_groups(tmp_path):
    """A million rows out of order, 120 MB of values; three million take as much."""
    file = tmp_path / "rows.parquet"
    duckdb.sql(
        f"""COPY (SELECT 'user/' || lpad((range * 7368787 % 1000000)::VARCHAR, 8, '0') AS key, md5(range::VARCHAR) || md5(
        (range + 1)::VARCHAR) AS value, range / 7.0 AS f, range * 31 AS n FROM range(1000000)) TO '{file}'"""
    )
    assert peak("publisher", "publish", file, tmp_path / "d", "--key", "key", "--unsigned") < 290e6
    assert peak("puller", "pull", tmp_path / "d", tmp_path / "copy.parquet") < 290e6
    assert peak("puller", "pull", tmp_path / "d", tmp_path / "copy.csv") < 180e6
    assert peak("puller", "verify", tmp_path / "copy.parquet") < 250e6
    assert peak("publisher", "publish", tmp_path / "copy.parquet", tmp_path / "d", "--unsigned", "--no-cache") < 250e6
    a, b = (f"SELECT key, value, f, n FROM '{path}'" for path in (file, tmp_path / "copy.parquet"))
    assert duckdb.sql(f"SELECT count(*) FROM (({a} EXCEPT ALL {b}) UNION ALL ({b} EXCEPT ALL {a}))").fetchall() == [
        (0,)
    ]
