"""One suite for sources: what publisher/sources/base.py promises, for files in order, out of order, and beyond memory."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from publisher.sources import apart, jsonl, open_source, sorting, statcache
from publisher.sources.folder import FolderSource
from publisher.sources.jsonl import JsonLinesSource
from publisher.sources.sorting import Duplicate, Sorter
from puller.errors import SourceError
from puller.wire.keys import encode_key
from puller.wire.nodes import is_ascending
from puller.wire.rows import decode_schema, encode_row, encode_schema
from tests.conftest import publisher
from tests.plain import runs_of

ROWS = 3000
SMALL = 64 << 10


@pytest.fixture
def small(monkeypatch):
    """Small blocks and batches, so that few rows take every way."""
    monkeypatch.setattr(jsonl, "_BLOCK", 4 << 10)
    monkeypatch.setattr(sorting, "BATCH", 2 << 10)
    monkeypatch.setattr(sorting, "FAN", 4)


@pytest.fixture
def spills(monkeypatch, tmp_path):
    """Temporary files lie in a folder of their own; what was opened is noted."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(sorting.tempfile, "tempdir", str(folder))
    opened = []
    make = sorting.tempfile.TemporaryFile

    def noted(*arguments, **options):
        opened.append(make(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(sorting.tempfile, "TemporaryFile", noted)
    yield opened
    assert os.listdir(folder) == []
    for file in opened:
        file.close()


def numbered(count=ROWS):
    return [{"k": f"key{n:06}", "n": n, "text": "x" * (n % 50)} for n in range(count)]


def write(path: Path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(source) -> dict[bytes, object]:
    """All records; keys ascend over the runs."""
    runs = runs_of(source)
    keys = [key for run in runs for key in run[0]]
    assert is_ascending(keys)
    lead = source.lead()
    return dict(zip(lead[0] + keys, lead[1] + [v for run in runs for v in run[1]], strict=True))


@pytest.mark.parametrize(
    ("order", "memory", "spilled"),
    [
        ("sorted", SMALL, False),
        ("shuffled", sorting.MEMORY, False),
        ("shuffled", SMALL, True),
        ("backwards", SMALL, True),
        ("shuffled", 1, True),
    ],
)
@pytest.mark.parametrize("standard_input", [False, True])
def test_rows_in_any_order(small, spills, tmp_path, monkeypatch, order, memory, spilled, standard_input):
    rows = numbered()
    given = {"sorted": rows, "shuffled": random.Random(1).sample(rows, len(rows)), "backwards": rows[::-1]}[order]
    path = write(tmp_path / "rows.jsonl", given)
    if standard_input:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(Path(path).read_bytes())))
        path = "-"
    source = JsonLinesSource(path, ["k"], "t", [], memory=memory)
    found = read(source)
    expected = {encode_key("t", (row["k"],)): encode_row((row["n"], row["text"])) for row in rows}
    assert [column.name for column in decode_schema(found.pop(b""))[0].columns] == ["k", "n", "text"]
    assert found == expected
    assert (len(spills) - standard_input > 0) == spilled
    assert all(file.closed for file in spills[standard_input:])


def test_many_runs_are_merged_in_levels(small, spills):
    with Sorter(1) as sorter:
        for n in random.Random(2).sample(range(200), 200):
            sorter.add([b"%03d" % n], [b"v%d" % n])
        assert sum(map(len, sorter._levels)) < 3 * 4
        found = [pair for run in sorter.runs() for pair in zip(*run, strict=True)]
    assert found == [(b"%03d" % n, b"v%d" % n) for n in range(200)]


def test_columns_that_come_late_and_rows_over_a_mebibyte_survive_spilling(small, spills, tmp_path):
    rows = numbered(400)
    rows[17]["big"] = "y" * 1_500_000
    rows[30]["nested"] = {"a": [1.0, 2]}
    given = random.Random(3).sample(rows, len(rows))
    found = read(JsonLinesSource(write(tmp_path / "rows.jsonl", given), ["k"], "t", [], memory=SMALL))
    assert spills
    row = found[encode_key("t", ("key000017",))]
    assert row.open().read().count(b"y") == 1_500_000
    columns = {column.name: column.type for column in decode_schema(found[b""])[0].columns}
    assert columns == {"k": "text", "n": "int64", "text": "text", "big": "text", "nested": "json"}


@pytest.mark.parametrize("memory", [1, SMALL, sorting.MEMORY])
@pytest.mark.parametrize(("first", "second"), [(5, 2990), (100, 101), (1, 2)])
def test_duplicates_are_named_by_their_lines(small, spills, tmp_path, memory, first, second):
    rows = random.Random(4).sample(numbered(), ROWS)
    rows[second - 1] = rows[first - 1] | {"n": -1}
    path = tmp_path / "rows.jsonl"
    write(path, rows)
    path.write_text("\n" + path.read_text().replace("\n", "\n\n", 1))
    a, b = first + 1 + (first > 1), second + 2
    with pytest.raises(SourceError, match=rf"lines {a} and {b} have the same key \['{rows[first - 1]['k']}'\]"):
        read(JsonLinesSource(str(path), ["k"], "t", [], memory=memory))
    assert all(file.closed for file in spills)


def test_a_key_that_is_in_runs_of_different_levels_is_a_duplicate(small, spills):
    with Sorter(1) as sorter:
        for n in range(9):
            sorter.add([b"%d" % n], [b""])
        sorter.add([b"0"], [b""])
        with pytest.raises(Duplicate) as caught:
            list(sorter.runs())
    assert caught.value.key == b"0"


def test_no_room_for_temporary_files_is_said_and_nothing_published(tmp_path):
    path = write(tmp_path / "rows.jsonl", random.Random(5).sample(numbered(), ROWS))
    script = textwrap.dedent(
        f"""
        import resource, sys
        from publisher.sources import sorting
        from publisher.sources.jsonl import JsonLinesSource
        from publisher.sources.base import Unsorted
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))
        source = JsonLinesSource({path!r}, ["k"], "t", [], memory={SMALL})
        try:
            list(source.runs())
        except Unsorted:
            list(source.runs())
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n{script}"],
        capture_output=True,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        check=False,
    )
    assert f"SourceError: the rows cannot be sorted in {tmp_path}" in done.stderr.replace("puller.errors.", "")
    assert sorted(os.listdir(tmp_path)) == ["rows.jsonl"]


def test_nothing_is_left_of_a_killed_sort(tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    script = textwrap.dedent(
        """
        import sys, time
        from publisher.sources.sorting import Sorter
        sorter = Sorter(1000)
        for n in range(100):
            sorter.add([b"%d" % n], [bytes(1000)])
        print("spilled", flush=True)
        time.sleep(60)
        """
    )
    env = os.environ | {"TMPDIR": str(folder)}
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env)
    assert process.stdout.readline() == b"spilled\n"
    held = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")]
    assert any(name.startswith(str(folder)) for name in held)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    assert os.listdir(folder) == []


def test_a_folder_is_read_in_key_order(tmp_path):
    for name in ("b/x", "b-c", "a"):
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "tree/empty").mkdir()
    os.symlink("a", tmp_path / "tree/link")
    source = FolderSource(str(tmp_path / "tree"))
    runs = list(source.runs())
    assert [k for run in runs for k in run[0]] == [b"a", b"b-c", b"b/x", b"empty", b"link"]
    assert [v for run in runs for v in run[1]] == [b"fa", b"fb-c", b"fb/x", b"d", b"la"]


def rewrite(form: str, tmp_path: Path, rows) -> str:
    """The same rows as a source of some form, in the order given."""
    if form == "folder":
        shutil.rmtree(tmp_path / "tree", ignore_errors=True)
        (tmp_path / "tree").mkdir()
        for row in rows:
            (tmp_path / "tree" / row["k"]).write_text(row["text"])
        return str(tmp_path / "tree")
    if form == "jsonl":
        return write(tmp_path / "rows.jsonl", rows)
    if form in ("parquet", "parquet-folder"):
        path = tmp_path / "rows.parquet"
        if form == "parquet-folder":
            (tmp_path / "rows").mkdir(exist_ok=True)
            path = tmp_path / "rows/2.parquet"
            write_parquet(tmp_path / "rows/1.parquet", rows[: len(rows) // 2])
            rows = rows[len(rows) // 2 :]
        write_parquet(path, rows)
        return str(path if form == "parquet" else path.parent)
    if form in ("csv", "tsv"):
        with (tmp_path / f"rows.{form}").open("w", newline="") as file:
            writer = csv.DictWriter(file, ["k", "n", "text"], dialect="excel-tab" if form == "tsv" else "excel")
            writer.writeheader()
            writer.writerows(rows)
        return str(tmp_path / f"rows.{form}")
    with contextlib.closing(sqlite3.connect(tmp_path / "rows.db")) as db:
        db.execute("DROP TABLE IF EXISTS t")
        db.execute("CREATE TABLE t(k TEXT PRIMARY KEY, n INT, text TEXT)")
        db.executemany("INSERT INTO t VALUES(:k, :n, :text)", rows)
        db.commit()
    return str(tmp_path / "rows.db")


def write_parquet(path: Path, rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=100)


def opened(path: str, form: str, **options):
    key = () if form == "folder" else ("k",)
    tables = () if form == "folder" else ("t",)
    schema = options.pop("schema", [])
    form = "parquet" if form == "parquet-folder" else None
    return open_source(path, form, key=key, tables=tables, name="t", schema=schema, strict=True, **options)


APART = ("csv", "parquet", "sqlite")


@pytest.fixture(
    params=[
        "folder",
        "jsonl",
        "csv",
        "tsv",
        "parquet",
        "parquet-folder",
        "sqlite",
        *(f"{form} apart" for form in APART),
    ]
)
def form(request, monkeypatch):
    """A form of source; where it can be read by another process, that way too."""
    if request.param.endswith(" apart"):
        monkeypatch.setattr(apart, "LARGE", 0)
    return request.param.split()[0]


@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_every_source_gives_its_records_in_key_order_and_again(form, tmp_path, order):
    rows = numbered(500)
    path = rewrite(form, tmp_path, random.Random(1).sample(rows, len(rows)) if order == "shuffled" else rows)
    source = opened(path, form)
    found = read(source)
    if form == "folder":
        assert found == {row["k"].encode(): b"f" + row["text"].encode() for row in rows}
    else:
        numbers = str if form in ("csv", "tsv") else int
        (table,) = decode_schema(found.pop(b""))
        assert [column.name for column in table.columns] == ["k", "n", "text"]
        expected = {encode_key("t", (row["k"],)): encode_row((numbers(row["n"]), row["text"])) for row in rows}
        assert found == expected
        found[b""] = encode_schema([table])
    assert read(source) == found
    assert source.report.bytes_read > 0
    assert source.report.skipped == []


def test_every_source_tells_that_it_did_not_change_and_only_of_the_state_that_was_read(form, tmp_path, monkeypatch):
    monkeypatch.setattr(statcache, "MARGIN", -(10**11))  # as if the files had been there for long
    rows = numbered(20)
    path = rewrite(form, tmp_path, rows)
    first = opened(path, form, cached_for="/dest")
    assert first.recall(b"state 1") is None
    records = read(first)
    first.remember(b"state 1")
    same = opened(path, form, cached_for="/dest")
    assert same.recall(b"state 1") == []
    assert opened(path, form, cached_for="/dest").recall(b"state 2") is None
    assert opened(path, form, cached_for="/other").recall(b"state 1") is None
    assert opened(path, form).recall(b"state 1") is None
    rewrite(form, tmp_path, [rows[0] | {"text": "y"}, *rows[1:]])
    changed = opened(path, form, cached_for="/dest")
    assert changed.recall(b"state 1") != []
    assert form == "folder" or read(changed) != records


PUBLISH = """
import sys
from pathlib import Path
from publisher.publish import Options, publish
from publisher.sources.jsonl import JsonLinesSource
from puller.stores import open_store
path, dest = sys.argv[1:]
publish(open_store(dest), lambda _, old: JsonLinesSource(path, ["key"], "t", old, memory=8 << 20), "data", Options())
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.slow
def test_memory_is_bounded_for_a_million_rows_out_of_order(tmp_path):
    """130 MB of records; both publishes stay far below what they take in memory."""
    count = 1_000_000
    path, after = tmp_path / "rows.jsonl", tmp_path / "after.jsonl"
    with path.open("w") as file, after.open("w") as changed:
        for n in range(count):
            key = n * 7_368_787 % count
            line = f'{{"key":"user/{key:08d}","value":"{key:0100d}","updated":{key * 31}}}\n'
            file.write(line)
            changed.write(line.replace("user/", "user/new/") if key % 1000 == 0 else line)
    for source in (path, after):
        done = subprocess.run(
            [sys.executable, "-c", PUBLISH, str(source), str(tmp_path / "dest")],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | {"TMPDIR": str(tmp_path)},
        )
        assert int(done.stdout) * 1024 < 150e6, (
            source
        )  # not ru_maxrss: that is also of the process that started this one
    status = publisher("status", "--json", tmp_path / "dest").json
    assert (status["version"], status["records"]) == (2, count)
