"""The main job on real input, kind table: JSON Lines in, SQLite and JSON Lines out."""

from __future__ import annotations

import json
import random
import sqlite3
from pathlib import Path

import pytest

from tests.conftest import lines, publisher, puller

STATUS = Path("/var/lib/dpkg/status")


def debian_status() -> list[dict]:
    """The packages of this machine's dpkg status file; Depends as a nested list, sizes as integers."""
    packages = []
    for block in STATUS.read_text(errors="replace").split("\n\n"):
        fields: dict = {}
        name = ""
        for line in block.splitlines():
            if line[:1] in " \t":
                fields[name] += "\n" + line[1:]
            else:
                name, _, value = line.partition(":")
                fields[name] = value.strip()
        if fields:
            if "Installed-Size" in fields:
                fields["Installed-Size"] = int(fields["Installed-Size"])
            if "Depends" in fields:
                fields["Depends"] = [part.strip().split(" | ") for part in fields["Depends"].split(",")]
            packages.append(fields)
    return packages


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def checksum(dest: Path) -> str:
    return publisher("status", "--json", dest).json["checksum"]


def sqlite_rows(path: Path, table: str) -> list[dict]:
    with sqlite3.connect(path) as db:
        db.row_factory = sqlite3.Row
        return [dict(row) for row in db.execute(f'SELECT * FROM "{table}"')]


def test_debian_status_file_survives_every_round_trip(tmp_path, nginx):
    packages = debian_status()
    assert len(packages) > 300
    random.Random(1).shuffle(packages)
    source = write(tmp_path / "status.jsonl", packages)
    key = ("--key", "Package", "--key", "Architecture")
    publisher("publish", source, nginx.root / "status", *key)
    puller("pull", f"{nginx.url}/status", tmp_path / "copy.db")
    puller("pull", f"{nginx.url}/status", tmp_path / "copy.jsonl")

    rows = lines(tmp_path / "copy.jsonl")
    assert sorted(map(json.dumps, rows)) != []
    by_key = {(row["Package"], row["Architecture"]): row for row in packages}
    assert {(row["Package"], row["Architecture"]): row for row in rows} == by_key

    publisher("publish", tmp_path / "copy.jsonl", tmp_path / "again/status", *key)
    assert checksum(tmp_path / "again/status") == checksum(nginx.root / "status")

    from_sqlite = sqlite_rows(tmp_path / "copy.db", "status")
    for row in from_sqlite:
        if row["Depends"] is not None:
            row["Depends"] = json.loads(row["Depends"])
    write(tmp_path / "from-sqlite.jsonl", from_sqlite)
    publisher("publish", tmp_path / "from-sqlite.jsonl", tmp_path / "third/status", *key)
    assert checksum(tmp_path / "third/status") == checksum(nginx.root / "status")
    for target in ("copy.db", "copy.jsonl"):
        assert puller("verify", "--json", tmp_path / target).json["checksum"] == checksum(nginx.root / "status")


def test_real_columns_and_primary_key(tmp_path):
    rows = [
        {"id": 2, "name": "b", "price": 1.5, "tags": ["x", {"y": 1.0}], "ok": True},
        {"id": 1, "name": None, "price": 2.0, "ok": False, "later": "z"},
    ]
    publisher("publish", write(tmp_path / "r.jsonl", rows), tmp_path / "items", "--key", "id")
    puller("pull", tmp_path / "items", tmp_path / "r.db")
    with sqlite3.connect(tmp_path / "r.db") as db:
        columns = db.execute("SELECT name, type, pk FROM pragma_table_info('items')").fetchall()
        assert columns == [
            ("id", "INTEGER", 1),
            ("name", "TEXT", 0),
            ("price", "REAL", 0),
            ("tags", "TEXT", 0),
            ("ok", "BOOLEAN", 0),
            ("later", "TEXT", 0),
        ]
        assert db.execute("SELECT * FROM items ORDER BY id").fetchall() == [
            (1, None, 2.0, None, 0, "z"),
            (2, "b", 1.5, '["x",{"y":1.0}]', 1, None),
        ]
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


ODD = [
    {"k": "a", "v": 1},
    {"k": "b", "v": 1.0},
    {"k": "c", "v": "1"},
    {"k": "d", "v": True},
    {"k": "e", "v": None},
    {"k": "f", "v": [1, 1.0, None, {"a": "b"}]},
    {"k": "g", "v": 12345678901234567890123},
    {"k": "h", "v": -0.0},
    {"k": "i", "v": "x\0y"},
    {"k": "j", "v": '"quoted"\n\\'},
    {"k": "k\0", "v": 9223372036854775807},
    {"k": "l", "v": 9223372036854775808},
    {"k": "m", "v": "12345678901234567890123"},
    {"k": "n", "v": "[1,2]"},
    {"k": "o", "v": 5e-324},
    {"k": "", "v": 1.7976931348623157e308},
    {"k": "\U0001f600", "v": {"z": 1, "a": 2}},
]


def test_odd_values_keep_their_exact_bytes(tmp_path):
    source = write(tmp_path / "odd.jsonl", ODD)
    publisher("publish", source, tmp_path / "odd", "--key", "k")
    for target in ("odd.db", "odd.jsonl"):
        copy = tmp_path / f"copy-{target}"
        puller("pull", tmp_path / "odd", copy)
        assert puller("verify", "--json", copy).json["checksum"] == checksum(tmp_path / "odd")
    again = lines(tmp_path / "copy-odd.jsonl")
    expected = sorted(map(repr, ({k: v for k, v in row.items() if v is not None} for row in ODD)))
    assert sorted(map(repr, again)) == expected
    publisher("publish", tmp_path / "copy-odd.jsonl", tmp_path / "x/odd", "--key", "k")
    assert checksum(tmp_path / "x/odd") == checksum(tmp_path / "odd")


def test_changes_reach_every_target(tmp_path):
    r = random.Random(2)
    rows = [{"id": n * 2, "name": f"n{n}", "x": r.random()} for n in range(5000)]
    source, dest = tmp_path / "r.jsonl", tmp_path / "rows"
    targets = [tmp_path / "r.db", tmp_path / "r2.jsonl"]
    publisher("publish", write(source, rows), dest, "--key", "id")
    for target in targets:
        puller("pull", dest, target)
    for version in range(4):
        r.shuffle(rows)
        rows = rows[20:]
        for row in rows[:30]:
            row["name"] = f"changed {version}"
        rows += [{"id": n * 2 + 1 + version * 10_000, "name": "new", "x": 0.0} for n in range(25)]
        if version == 1:
            rows[0]["added"] = "column"
        if version == 2:
            rows[1]["x"] = "now a text"
        if version == 3:
            rows[2]["first seen nested"] = {"a": [1]}
            rows[3]["x"] = None
        write(source, rows)
        publisher("publish", source, dest)
        expected = sorted(({k: v for k, v in row.items() if v is not None} for row in rows), key=lambda row: row["id"])
        for target in targets:
            done = puller("pull", "--json", dest, target).json
            assert done["way"] in ("diffs", "patch")
            assert puller("verify", "--json", target).json["checksum"] == checksum(dest)
        assert lines(targets[1]) == expected
        names = {row["id"]: row["name"] for row in sqlite_rows(targets[0], "rows")}
        assert names == {row["id"]: row["name"] for row in rows}


def test_standard_input_and_the_key_of_before(tmp_path):
    data = b'{"a":1,"b":"x"}\n{"a":2,"b":"y"}\n'
    publisher("publish", "-", tmp_path / "d", "--key", "a", stdin=data)
    done = publisher("publish", "--json", "-", tmp_path / "d", stdin=data).json
    assert not done["changed"]
    done = publisher("publish", "--json", "-", tmp_path / "d", stdin=b'{"a":2,"b":"y"}\n{"a":1,"b":"z"}').json
    assert (done["updated"], done["added"], done["deleted"]) == (1, 0, 0)
    assert "--key" in publisher("publish", "-", tmp_path / "e", stdin=data, check=2).err


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b'{"k":1}\n{"k":1}\n', "lines 1 and 2 have the same key"),
        (b'{"k":1}\n{"x":2}\n', "line 2 has no key field 'k'"),
        (b'{"k":1}\n\n{"k":null}\n', "line 3 has no key field 'k'"),
        (b'{"k":1}\n[1]\n', "line 2 is not a JSON object"),
        (b'{"k":1}\n{"k":2\n', "line 2 is not a JSON object"),
        (b'{"k":1}\n{"k":2}{"k":3}\n', "line 2 is not a JSON object"),
        (b'{"k":"\xff"}\n', "line 1 is not a JSON object"),
        (b'{"k":"\\ud800"}\n', "line 1 is not a JSON object"),
        (b'{"k":1,"x":1e999}\n', "line 1 is not a JSON object"),
        (b'{"k":[1]}\n', "cannot be part of a key"),
        (b'{"k":' + b'"' + b"x" * 5000 + b'"}\n', "longer than 4096 bytes"),
        (b"", "is empty"),
    ],
)
def test_bad_lines_are_named_and_nothing_is_published(tmp_path, data, says):
    (tmp_path / "r.jsonl").write_bytes(data)
    done = publisher("publish", tmp_path / "r.jsonl", tmp_path / "d", "--key", "k", check=None)
    assert done.status in (1, 3)
    assert says in done.err
    assert not (tmp_path / "d/HEAD").exists()


def test_a_large_row_travels_in_pieces(tmp_path):
    rows = [{"k": 1, "text": "long " * 500_000}, {"k": 2, "text": "short"}]
    publisher("publish", write(tmp_path / "r.jsonl", rows), tmp_path / "d", "--key", "k")
    for target in ("r.db", "copy.jsonl"):
        puller("pull", tmp_path / "d", tmp_path / target)
        assert puller("verify", tmp_path / target).status == 0
    assert lines(tmp_path / "copy.jsonl") == rows
    rows[1]["text"] = "changed"
    publisher("publish", write(tmp_path / "r.jsonl", rows), tmp_path / "d")
    puller("pull", tmp_path / "d", tmp_path / "r.db")
    assert sqlite_rows(tmp_path / "r.db", "d")[1]["text"] == "changed"


@pytest.mark.parametrize("count", [1, 99, 100, 101, 350])
def test_sqlite_holds_every_row_whatever_their_number(tmp_path, count):
    rows = [{"k": n, "a": f"text {n}", "b": n / 2} for n in range(count)]
    publisher("publish", write(tmp_path / "r.jsonl", rows), tmp_path / "d", "--key", "k")
    puller("pull", tmp_path / "d", tmp_path / "r.db")
    assert sqlite_rows(tmp_path / "r.db", "d") == rows
    changed = [{**row, "a": "changed"} for row in rows] + [{"k": count, "a": "new", "b": 0.5}]
    publisher("publish", write(tmp_path / "r.jsonl", changed), tmp_path / "d")
    puller("pull", tmp_path / "d", tmp_path / "r.db")
    assert sqlite_rows(tmp_path / "r.db", "d") == changed
    assert puller("verify", tmp_path / "r.db").status == 0


def test_columns_that_differ_by_case_only(tmp_path):
    rows = [{"id": 1, "ID": "upper", "Id": 2.5}]
    publisher("publish", write(tmp_path / "r.jsonl", rows), tmp_path / "d", "--key", "id")
    puller("pull", tmp_path / "d", tmp_path / "r.db")
    assert sqlite_rows(tmp_path / "r.db", "d") == [{"id": 1, "ID_2": "upper", "Id_3": 2.5}]
    assert puller("verify", tmp_path / "r.db").status == 0


def test_keys_that_sqlite_would_merge_are_refused(tmp_path):
    rows = [{"k": 1, "v": "a"}, {"k": 1.0, "v": "b"}, {"k": True, "v": "c"}]
    publisher("publish", write(tmp_path / "r.jsonl", rows), tmp_path / "d", "--key", "k")
    refused = puller("pull", tmp_path / "d", tmp_path / "r.db", check=1)
    assert "1, 1.0 and true apart" in refused.err
    assert not (tmp_path / "r.db").exists()
    puller("pull", tmp_path / "d", tmp_path / "copy.jsonl")
    assert sorted(map(repr, lines(tmp_path / "copy.jsonl"))) == sorted(map(repr, rows))
