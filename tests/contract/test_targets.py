"""One suite for every target: what puller/targets/base.py promises, looked at from behind where it can be."""

from __future__ import annotations

import json
import math
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from msgspec import structs

from puller.errors import Invalid, Moved, NotOurs, Refused, TargetError
from puller.fetch import FolderFetcher
from puller.pull import Options as PullOptions
from puller.pull import pull
from puller.targets import open_target
from puller.targets.base import Opening, ReadableTarget, State, Target
from puller.targets.memory import MemoryTarget
from puller.wire.checksum import MODULUS, record_hashes, run_sum
from puller.wire.keys import encode_key
from puller.wire.rows import Column, Index, Json, Table, encode_row, encode_schema
from tests.plain import publish_records, publish_source

NAN, NEGATIVE_ZERO = math.nan, -0.0
T = Table("t", [Column("id", "int64"), Column("x", "any"), Column("f", "float64"), Column("b", "bool")], [0])
U = Table(
    "u\0 'q\"",
    [Column("v", "blob"), Column("a", "text"), Column("n", "int64")],
    [1, 2],
    [Index("by v", False, [0])],
)


def t(n: int, *values: object) -> tuple[bytes, bytes]:
    return encode_key("t", [n]), encode_row(values)


def u(a: str, n: int, *values: object) -> tuple[bytes, bytes]:
    return encode_key(U.name, [a, n]), encode_row(values)


TABLES = dict(
    [
        (b"", encode_schema([T, Table("u", U.columns, U.key, U.indexes)])),
        t(1, "text", 1.5, True),
        t(2, None, NAN, False),
        t(3, True, NEGATIVE_ZERO),
        t(4, Json(1, b'{"a":[1]}'), math.inf),
        t(-5, 1, 2.0, None),
        t(2**63 - 1, 1.0),
        t(7, b"blob"),
        t(8, NAN),
        t(9, NEGATIVE_ZERO),
        (encode_key("u", ["", 0]), encode_row([])),
        (encode_key("u", ["\0z", -1]), encode_row([b"\0\xff"])),
    ]
)
ONE_TABLE = dict(
    [
        (b"", encode_schema([Table("t", [Column("id", "int64"), Column("x", "any"), Column("f", "float64")], [0])])),
        t(1, "text", 1.5),
        t(2, None, NEGATIVE_ZERO),
        t(3, True, 1e300),
        t(4, Json(1, b'{"a":[1,1.0]}')),
        t(5, 1),
        t(6, 1.0),
        t(7, "1"),
        t(8, Json(1, b"123456789012345678901234567890")),
    ]
)
FILES = {
    b"a": b"fcontent",
    b"dir/run": b"x#!/bin/sh\n",
    b"dir/link": b"l../a",
    b"empty": b"d",
    b"dir/sub/zero": b"f",
    "ünï\\".encode(): b"f\0\xff",
}
BYTES = {b"": b"", b"\0": b"zero", b"k" * 4096: b"v" * 5000, b"\xff": b"\0"}

NO_ZEROS = {key: value for key, value in TABLES.items() if key != encode_key("u", ["\0z", -1])}
"""What PostgreSQL can hold of it: all but the text with a zero character."""
NO_ZEROS[encode_key("u", ["\\z\"\t,\n'\v\x01é", -1])] = encode_row([b"\0\xff"])

FORMS = {
    "folder": ("files", "copy", FILES, (b"a", b"fchanged"), b"dir/run"),
    "generations": ("files", "copy", FILES, (b"a", b"fchanged"), b"dir/run"),
    "sqlite-tables": ("table", "copy.db", TABLES, t(1, "changed", 0.0), t(4)[0]),
    "sqlite-one": ("table", "copy.db", ONE_TABLE, t(1, False), t(3)[0]),
    "sqlite-bytes": ("bytes", "copy.db", BYTES, (b"\0", b"changed"), b"\xff"),
    "jsonl": ("table", "copy.jsonl", ONE_TABLE, t(1, [1][0]), t(3)[0]),
    "csv": ("table", "copy.csv", ONE_TABLE, t(1, 'edit, "or"', 2.5), t(3)[0]),
    "tsv": ("table", "copy.tsv", ONE_TABLE, t(1, "\t"), t(3)[0]),
    "parquet": ("table", "copy.parquet", ONE_TABLE, t(1, b""), t(3)[0]),
    "postgres-tables": ("table", "postgresql", NO_ZEROS, t(1, "changed", 0.0), t(4)[0]),
    "postgres-one": ("table", "postgresql", ONE_TABLE, t(1, False), t(3)[0]),
    "postgres-bytes": ("bytes", "postgresql", BYTES, (b"\0", b"changed"), b"\xff"),
    "memory-files": ("files", None, FILES, (b"a", b"fchanged"), b"dir/run"),
    "memory-tables": ("table", None, TABLES, t(1, "changed", 0.0), t(4)[0]),
    "memory-bytes": ("bytes", None, BYTES, (b"\0", b"changed"), b"\xff"),
}


class Case:
    """A target in a fresh place, and records that it can hold."""

    def __init__(self, form: str, folder: Path, database=None) -> None:
        self.form = form
        self.kind, name, self.records, self.change, self.gone = FORMS[form]
        self.path = folder / (name or "nothing")
        self.database = database
        self.target = MemoryTarget() if name is None else self.open()

    @property
    def address(self) -> str:
        """What the command would be given."""
        return str(self.path) if self.database is None else self.database.url

    def open(self):
        return open_target(self.address, self.kind, atomic=self.form == "generations")

    def state(self, records: dict[bytes, bytes], version: int) -> State:
        checksum = f"{run_sum(list(records), list(records.values())):032x}"
        seen = (1, version, 1000 + version)
        return State(
            "name", self.kind, "url", 1, version, checksum, len(records), 1000 + version, "ab", seen, "tag", 5, 6
        )

    def opening(self, **options) -> Opening:
        def no_large(key, value):
            raise AssertionError

        held = self.target.state()
        expected = None if held is None else held.position
        given = {"kind": self.kind, "replace": True, "time": 1234, "large": no_large, "expected": expected}
        return Opening(**given | options)

    def fill(self, records: dict[bytes, bytes | None], version: int = 1, commit: bool = True, **options):
        """Put records, a few at a time; return what the writer said was there before, and the commit's changes."""
        before, keys = [], sorted(records)
        with self.target.writer(self.opening(**options)) as writer:
            for n in range(0, len(keys), 3):
                part = keys[n : n + 3]
                values = [records[key] for key in part]
                before += writer.put(part, values, record_hashes(part, values))
            return before, writer.commit(self.state(self.records, version)) if commit else None

    def read(self) -> dict[bytes, bytes]:
        return {key: value for keys, values in self.target.records() for key, value in zip(keys, values, strict=True)}

    def disk(self) -> dict[str, bytes]:
        if self.database is not None:
            return {"dump": self.database.dump().encode()}
        found = {}
        for folder, _, names in os.walk(self.path.parent):
            for name in names:
                path = Path(folder, name)
                if ".headwater" not in path.parts:
                    found[str(path)] = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        return found

    def sql(self, *statements: str) -> bool:
        """Run statements where the target is a database, as somebody else would; say whether it is one."""
        if self.database is not None:
            self.database.run(*statements)
        elif self.path.suffix == ".db":
            with sqlite3.connect(self.path) as db:
                for statement in statements:
                    db.execute(statement)
        else:
            return False
        return True

    def add_mine(self) -> None:
        """Put something in place of the target, or beside it, that is not headwater's."""
        if self.sql("CREATE TABLE mine (x integer)", "INSERT INTO mine VALUES (1)"):
            return
        if self.path.suffix:
            self.path.write_text("mine\n")
        else:
            self.path.mkdir()
            (self.path / "mine").write_text("mine")

    def mine_is_there(self) -> bool:
        """Whether that was left alone; a file that is replaced as a whole cannot be."""
        if self.database is not None:
            return self.database.rows("SELECT * FROM mine") == [(1,)]
        if self.path.suffix == ".db":
            with sqlite3.connect(self.path) as db:
                return db.execute("SELECT * FROM mine").fetchall() == [(1,)]
        return bool(self.path.suffix) or (self.path / "mine").read_text() == "mine"

    def edit(self) -> None:
        """Change a value, as somebody else would."""
        zero = "'\\x00'" if self.database is not None else "x'00'"
        bytes_edit = f"UPDATE records SET value = {zero} WHERE key = {zero}"
        if self.sql(bytes_edit if self.kind == "bytes" else "UPDATE t SET f = 7.25 WHERE id = 2"):
            return
        if self.path.suffix == ".parquet":
            pq.write_table(pq.read_table(self.path).slice(1), self.path)
        elif self.path.suffix:
            self.path.write_bytes(self.path.read_bytes().replace(b'"text"', b'"edit"'))
        else:
            (self.path / "dir/run").chmod(0o755)  # files of generations are read-only
            (self.path / "dir/run").write_text("edited")

    def garble(self) -> None:
        """Put something in place of the target that can be none."""
        if self.database is not None:
            self.database.run(
                "CREATE TABLE _headwater (name text PRIMARY KEY, value bytea)",
                "INSERT INTO _headwater VALUES ('state', 'garbage')",
            )
        elif self.path.suffix == "":
            self.path.write_text("a file")
        elif self.path.suffix == ".db":
            self.path.write_text("no database, but a text of some length")
        else:
            self.path.mkdir()

    def lose(self) -> None:
        """Delete some of the data, as somebody else would."""
        if self.sql(f"DROP TABLE {'records' if self.kind == 'bytes' else 't'}"):
            return
        if self.path.suffix:
            self.path.unlink()
            return
        for name in ("dir/run", "dir/link", "dir/sub/zero", "a", "ünï\\"):
            (self.path / name).unlink()
        for name in ("dir/sub", "dir", "empty"):
            (self.path / name).rmdir()


MORE = {"postgres-one", "postgres-bytes"}
"""Forms that run with the slow suite only: others cover most of them."""


def marked(forms) -> list:
    """Forms as parameters of a fixture."""
    return [pytest.param(form, marks=[pytest.mark.slow] if form in MORE else []) for form in forms]


def a_case(request, tmp_path):
    """A case for a fixture's parameter, closed in the end."""
    needs = request.param.startswith("postgres")
    case = Case(request.param, tmp_path, request.getfixturevalue("database") if needs else None)
    yield case
    case.target.close()


@pytest.fixture(params=marked(FORMS))
def case(request, tmp_path):
    yield from a_case(request, tmp_path)


@pytest.fixture(params=marked(form for form, (_, name, *_) in FORMS.items() if name))
def stored(request, tmp_path):
    """A target whose data somebody else can get at."""
    yield from a_case(request, tmp_path)


def test_gives_back_exact_records(case):
    assert case.target.state() is None
    before, changes = case.fill(case.records)
    assert before == [None] * len(case.records)
    assert changes.written == len(case.records) - (case.kind == "table")
    assert case.read() == case.records
    assert case.target.state().version == 1
    check = case.target.check()
    assert check.checksum == run_sum(list(case.records), list(case.records.values())) % MODULUS
    assert (check.records, check.differing, check.missing) == (len(case.records), [], [])


def test_changes_say_what_was_there(case):
    case.fill(case.records)
    changed = {case.change[0]: case.change[1], case.gone: None}
    before, changes = case.fill(changed, 2, replace=False)
    keys = sorted(changed)
    assert before == record_hashes(keys, [case.records[key] for key in keys])
    assert (changes.written, changes.deleted) == (1, 1)
    expected = case.records | {case.change[0]: case.change[1]}
    del expected[case.gone]
    assert case.read() == expected
    back, _ = case.fill({case.gone: case.records[case.gone]}, 3, replace=False)
    assert back == [None]
    assert case.read() == expected | {case.gone: case.records[case.gone]}


def test_without_commit_nothing_happens(case):
    case.fill(case.records)
    case.target.close()
    before = case.disk()
    for replace in (True, False):
        case.fill({case.change[0]: case.change[1], case.gone: None} if not replace else {}, 2, False, replace=replace)
        case.target.close()
        assert case.disk() == before
        assert case.target.state().version == 1
        assert case.read() == case.records


def test_without_commit_a_new_target_leaves_no_trace(case):
    before = sorted(case.path.parent.rglob("*")), case.disk()
    case.fill(case.records, commit=False)
    case.target.close()
    assert (sorted(case.path.parent.rglob("*")), case.disk()) == before


def test_an_error_while_writing_changes_nothing(case):
    case.fill(case.records)
    with pytest.raises(ZeroDivisionError), case.target.writer(case.opening()) as writer:
        writer.put([case.change[0]], [case.change[1]], record_hashes([case.change[0]], [case.change[1]])) if (
            case.kind != "table"
        ) else None
        raise ZeroDivisionError
    assert case.read() == case.records


def test_replacing_drops_what_is_not_named(case):
    case.fill(case.records)
    fewer = dict(case.records)
    del fewer[case.gone]
    case.fill(fewer, 2)
    assert case.read() == fewer
    assert case.target.state().version == 2


def test_state_survives_reopening_and_can_be_replaced(case):
    case.fill(case.records)
    case.target.close()
    state = case.target.state()
    assert state == case.state(case.records, 1)
    case.target.remember(structs.replace(state, etag="another"), state)
    case.target.close()
    assert case.target.state().etag == "another"
    other = case.state(case.records, 9)
    case.target.remember(other, other)
    assert case.target.state().version == 1
    case.target.remember(structs.replace(state, etag="a third"), structs.replace(state, seen=(1, 8, 8)))
    assert case.target.state().etag == "another"
    assert case.read() == case.records


def test_foreign_data_is_refused_unless_adopted(stored):
    stored.add_mine()
    before = stored.disk()
    with pytest.raises(NotOurs, match="--adopt"):
        stored.fill(stored.records)
    stored.target.close()
    assert stored.disk() == before
    assert stored.target.state() is None
    stored.fill(stored.records, adopt=True)
    assert stored.read() == stored.records
    assert stored.mine_is_there()


def test_check_notices_local_edits(stored):
    stored.fill(stored.records)
    stored.target.close()
    stored.edit()
    check = stored.target.check()
    assert check.checksum != run_sum(list(stored.records), list(stored.records.values()))


def test_garbage_in_place_of_the_target_is_a_clear_error(stored):
    stored.garble()
    with pytest.raises((TargetError, Refused)):
        stored.fill(stored.records)


def test_a_step_from_another_version_is_refused(case):
    case.fill(case.records)
    with pytest.raises(Moved):
        case.fill(case.records, 2, expected=(1, 5))
    assert case.target.state().version == 1
    assert case.read() == case.records


def test_the_data_is_there_or_not(stored):
    assert stored.target.is_there()
    stored.fill(stored.records)
    assert stored.target.is_there()
    stored.target.close()
    stored.lose()
    assert not stored.target.is_there()


READABLE = [form for form in FORMS if form not in ("jsonl", "csv", "tsv", "parquet")]


@pytest.fixture(params=marked(READABLE))
def readable(request, tmp_path):
    for case in a_case(request, tmp_path):
        assert isinstance(case.target, ReadableTarget)
        yield case


def ranges(records):
    """Bounds around every key, and between."""
    bounds = sorted({b"", *records, *(key + b"\0" for key in records), *(key[:-1] for key in records), b"\xff" * 5})
    return [(low, high) for low in bounds for high in [*bounds[:: len(bounds) // 5 + 1], None]]


def test_reading_gives_exact_records_and_ranges_of_them(readable):
    with readable.target.reading() as reading:
        assert reading.state is None
        assert reading.get(next(iter(readable.records))) is None
        assert list(reading.runs()) == []
    readable.fill(readable.records)
    records = readable.records
    with readable.target.reading() as reading:
        assert reading.state.version == 1
        for key, value in records.items():
            assert reading.get(key) == value
            assert reading.get(key + b"\0") == records.get(key + b"\0")
            assert reading.get(key[:-1]) == records.get(key[:-1])
        for low, high in ranges(records):
            found = [pair for run in reading.runs(low, high) for pair in zip(*run, strict=True)]
            assert found == sorted((k, v) for k, v in records.items() if low <= k and (high is None or k < high))


def test_a_reading_holds_its_state_while_the_target_moves(readable):
    readable.fill(readable.records)
    with readable.target.reading() as reading:
        before = list(reading.runs())
        readable.fill({readable.change[0]: readable.change[1], readable.gone: None}, 2, replace=False)
        if reading.lasting:
            assert list(reading.runs()) == before
            assert reading.get(readable.gone) == readable.records[readable.gone]
        else:
            with pytest.raises(Moved):
                reading.get(readable.gone)
    with readable.target.reading() as reading:
        assert reading.state.version == 2
        assert reading.get(readable.gone) is None
        assert reading.get(readable.change[0]) == readable.change[1]
    readable.target.close()
    assert len(readable.read()) == len(readable.records) - 1


def test_reading_from_other_threads(readable):
    readable.fill(readable.records)
    with ThreadPoolExecutor(4) as pool:

        def read(_):
            with readable.target.reading() as reading:
                return [reading.get(key) for key in readable.records]

        assert all(found == list(readable.records.values()) for found in pool.map(read, range(20)))


def test_a_file_that_is_not_ours_is_not_changed_by_looking(tmp_path):
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    target = open_target(str(path), "table")
    with target.reading() as reading:
        assert reading.state is None
    target.close()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["theirs.db"]


def test_memory_refuses_what_is_no_state(tmp_path):
    case = Case("memory-files", tmp_path)
    for records in ({b"a/b": b"f", b"a": b"f"}, {b"../x": b"f"}, {b"a": b"?"}):
        with pytest.raises(Invalid):
            case.fill(records)
    case.fill({b"a": b"f", b"b/c": b"f"})
    for change in ({b"a/x": b"f"}, {b"b": b"f"}):
        with pytest.raises(Invalid):
            case.fill(change, 2, replace=False)
    case.fill({b"a": None, b"a/x": b"f"}, 2, replace=False)
    table = Case("memory-tables", tmp_path)
    with pytest.raises(Invalid):
        table.fill(dict([t(1)]))


def checksum(dest: Path) -> str:
    return json.loads(dest.joinpath("HEAD").read_text().splitlines()[1])["checksum"]


def pull_into(dest: Path, path: object, kind: str) -> Target:
    target = open_target(str(path), kind)
    pull(str(dest), FolderFetcher(str(dest)), lambda head: target, PullOptions())
    return target


def test_what_is_published_from_a_copys_records_is_what_was_pulled(stored, tmp_path):
    publish_records(tmp_path / "first", stored.kind, stored.records)
    stored.target.close()
    stored.target = pull_into(tmp_path / "first", stored.address, stored.kind)
    publish_records(tmp_path / "again", stored.kind, stored.read())
    assert checksum(tmp_path / "again") == checksum(tmp_path / "first")


def typed(*types: str):
    """A table of these types, and rows with values that are easily lost."""
    hard = {
        "int64": [0, -1, 2**63 - 1],
        "float64": [1.0, -0.0, 1e300],
        "text": ["", "1", 'a,"b"\n\r\t\0 é'],
        "blob": [b"", b"\xff\0", b"x"],
        "bool": [True, False, True],
        "json": [Json(1, b"[]"), Json(1, b'{"a":1.0}'), Json(1, b'["\\n"]')],
        "any": [1, 1.0, "1"],
    }
    columns = [Column("id", "text"), *(Column(f"{name} column", name) for name in types)]
    table = Table("data", columns, [0], [Index("by", False, [1])] if "any" in types else [])
    rows = [(encode_key("data", [f"k{n}"]), encode_row([hard[name][n] for name in types])) for n in range(3)]
    return dict([(b"", encode_schema([table])), *rows])


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("copy.db", ("int64", "text", "blob")),
        ("copy.jsonl", ("int64", "float64", "text", "bool", "json")),
        ("copy.csv", ("text",)),
        ("copy.tsv", ("text",)),
        ("copy.parquet", ("int64", "float64", "text", "blob", "bool", "json", "any")),
    ],
)
def test_a_copy_is_a_source_of_the_same_data(tmp_path, name, types):
    """What a form has no type for, a source cannot tell by the file alone."""
    publish_records(tmp_path / "first", "table", typed(*types))
    pull_into(tmp_path / "first", tmp_path / name, "table").close()
    key = () if name == "copy.parquet" else ("id",)
    publish_source(tmp_path / name, tmp_path / "again", key=() if name == "copy.db" else key)
    assert checksum(tmp_path / "again") == checksum(tmp_path / "first")


@pytest.mark.parametrize("form", ["sqlite-one", "jsonl", "csv", "tsv", "parquet"])
def test_a_table_may_have_no_rows_and_a_dataset_no_table(tmp_path, form):
    case = Case(form, tmp_path)
    case.fill({})
    assert case.read() == {}
    schema = {b"": ONE_TABLE[b""]}
    case.fill(schema, 2, replace=False)
    assert case.read() == schema
    case.fill({case.change[0]: case.change[1]}, 3, replace=False)
    assert case.read() == schema | {case.change[0]: case.change[1]}
    case.fill({case.change[0]: None}, 4, replace=False)
    assert case.read() == schema
    case.target.close()
