"""Programs that own their data: what `publisher.open` promises."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import publisher
from publisher.dataset import Dataset
from publisher.diffs import due
from puller.errors import Conflict, HeadwaterError, Invalid, NotFound, Refused, Shrunk, UsageError
from puller.forms import form_of
from puller.stores.folder import FolderStore
from puller.wire.rows import decode_schema
from tests.conftest import ROOT, command, puller
from tests.states import archived, diffs_of, read_head, state_of


@pytest.fixture(autouse=True)
def _cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def dest(tmp_path):
    return str(tmp_path / "data")


def put(dataset, changes):
    with dataset.batch() as batch:
        for key, value in changes.items():
            batch[key] = value


def test_one_batch_is_one_version(dest):
    with publisher.open(dest, kind="bytes", name="mine", interval=7) as dataset:
        assert (dataset.name, dataset.kind, dataset.version, len(dataset)) == ("mine", "bytes", 1, 0)
        with dataset.batch() as batch:
            batch[b"a"] = b"1"
            batch[b"b"] = b"2"
            batch[b"b"] = b"3"
            assert (batch[b"b"], len(batch), b"a" in batch, b"c" in batch) == (b"3", 2, True, False)
            assert b"a" not in dataset
        assert (dataset.version, len(dataset), dataset[b"b"], dataset.get(b"c", 5)) == (2, 2, b"3", 5)
        with dataset.batch() as batch:
            del batch[b"a"]
            assert batch.get(b"a") is None
            assert b"a" not in batch
            with pytest.raises(KeyError):
                del batch[b"a"]
            with pytest.raises(KeyError):
                batch[b"a"]
            batch.discard(b"z")
        assert list(dataset.items()) == [(b"b", b"3")]
        with pytest.raises(KeyError):
            dataset[b"a"]
    assert state_of(dest) == {b"b": b"3"}
    assert read_head(dest).interval == 7
    assert state_of(dest, archived(dest, 2)) == {b"a": b"1", b"b": b"3"}


def test_nothing_is_published_by_an_exception_or_without_a_change(dest):
    with publisher.open(dest, kind="bytes") as dataset:
        put(dataset, {b"a": b"1"})
        with pytest.raises(RuntimeError), dataset.batch() as batch:
            batch[b"b"] = b"2"
            raise RuntimeError
        with dataset.batch() as batch:
            batch[b"a"] = b"1"
            batch.discard(b"b")
        with dataset.batch():
            pass
        assert dataset.version == 2
        with pytest.raises(UsageError, match="once"):
            batch[b"a"] = b"2"
    assert state_of(dest) == {b"a": b"1"}


def test_unchanged_records_are_not_written(dest):
    with publisher.open(dest, kind="bytes") as dataset:
        put(dataset, {b"%d" % n: b"old" for n in range(100)})
        put(dataset, {b"%d" % n: b"new" if n == 7 else b"old" for n in range(100)})
        (diff,) = [d for d in diffs_of(dataset._was.reader, dataset._was.head) if (d.a, d.b) == (2, 3)]
        assert [keys for keys, _ in dataset._was.reader.diff(diff)] == [[b"7"]]


def test_large_values(dest):
    big = random.Random(1).randbytes(5 << 20)
    with publisher.open(dest, kind="bytes") as dataset:
        put(dataset, {b"big": big, b"edge": big[: 1 << 20]})
        assert dataset[b"big"] == big
        put(dataset, {b"big": big})
        assert dataset.version == 2
        put(dataset, {b"big": big[1:]})
    assert state_of(dest) == {b"big": big[1:], b"edge": big[: 1 << 20]}


def test_a_batch_that_deletes_over_half(dest):
    with publisher.open(dest, kind="bytes") as dataset:
        put(dataset, dict.fromkeys([b"a", b"b", b"c", b"d"], b""))
        with pytest.raises(Shrunk, match="allow_shrink=True"), dataset.batch() as batch:
            for key in (b"a", b"b", b"c", b"z"):
                batch.discard(key)
        assert (dataset.version, len(dataset)) == (2, 4)
        with dataset.batch() as batch:
            del batch[b"a"], batch[b"b"]
        assert len(dataset) == 2
        with dataset.batch(allow_shrink=True) as batch:
            del batch[b"c"], batch[b"d"]
        assert len(dataset) == 0
    assert state_of(dest) == {}


def test_what_is_no_dataset_of_ours_is_refused(tmp_path, dest):
    with pytest.raises(NotFound, match="no dataset"):
        publisher.open(dest)
    assert not os.path.exists(dest)
    with pytest.raises(UsageError, match="from a folder"):
        publisher.open(dest, kind="files")
    with pytest.raises(UsageError, match="no kind"):
        publisher.open(dest, kind="rows")
    with pytest.raises(UsageError, match="cannot name"):
        publisher.open(dest, kind="bytes", name="a b")
    publisher.open(dest, kind="bytes").close()
    with pytest.raises(UsageError, match="of kind bytes, not table"):
        publisher.open(dest, kind="table")
    with pytest.raises(UsageError, match="'data', not 'other'"):
        publisher.open(dest, name="other")
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    with pytest.raises(Refused, match=r"letter\.txt"):
        publisher.open(str(foreign), kind="bytes")
    (foreign / "HEAD").write_text("ref: refs/heads/main\n")
    with pytest.raises(Invalid, match="not the HEAD"):
        publisher.open(str(foreign), kind="bytes")
    with pytest.raises(HeadwaterError, match="is a file, not the folder"):
        publisher.open(str(foreign / "letter.txt"), kind="bytes")
    with pytest.raises(UsageError, match="local folder"):
        publisher.open("ftp://host/x", kind="bytes")


def test_values_of_another_type_are_refused_at_once(dest):
    with publisher.open(dest, kind="bytes") as dataset:
        for key, value in [("a", b""), (b"a", "text"), (b"x" * 4097, b""), (b"a", None)]:
            with pytest.raises(UsageError), dataset.batch() as batch:
                batch[key] = value
        with pytest.raises(UsageError, match="no tables"), dataset.batch() as batch:
            batch.table("t", key=["k"])
        assert dataset.version == 1


class Counting(FolderStore):
    def __init__(self, root):
        super().__init__(root)
        self.calls = []

    def get(self, path):
        data = super().get(path)
        self.calls.append(("get", path, len(data)))
        return data

    def put(self, path, data):
        self.calls.append(("put", path, len(data)))
        super().put(path, data)

    def create(self, path, data):
        self.calls.append(("create", path, len(data)))
        return super().create(path, data)


@pytest.mark.parametrize("records", [2000, 40_000])
def test_a_commit_costs_what_changed(dest, tmp_path, monkeypatch, records):
    """Whatever the size of the dataset: HEAD is read, a diff and a log are written, and HEAD's archive."""
    monkeypatch.setattr("publisher.hashes.SMALL", 0)
    r = random.Random(3)
    with publisher.open(dest, kind="bytes", cache=False) as dataset:
        put(dataset, {b"%06d" % n: r.randbytes(100) for n in range(records)})
    store = Counting(dest)
    with Dataset(store, str(tmp_path / "c")) as dataset:
        put(dataset, {b"%06d" % n: b"x" for n in r.sample(range(records), records // 10)})
        costs = []
        for _ in range(20):
            store.calls.clear()
            put(dataset, {b"%06d" % n: r.randbytes(100) for n in r.sample(range(records), 10)})
            wide = due(dataset.version) is not None or dataset._was.head.snapshot_version == dataset.version
            if not wide:
                costs.append(list(store.calls))
    assert len(costs) >= 12
    for calls in costs:
        reads = [path for call, path, _ in calls if call == "get"]
        assert set(reads) == {"HEAD"}
        assert len(reads) <= 2
        assert sorted(call for call, _, _ in calls if call != "get").count("put") <= 3
        assert sum(size for call, _, size in calls if call == "put") < 8000


def test_a_few_keys_read_a_few_files(dest, monkeypatch):
    """Without a cache: one leaf for each key, and the index, which tells whether a snapshot is due, too."""
    monkeypatch.setattr("publisher.build.CHUNK_SIZE", 10_000)
    monkeypatch.setattr("publisher.snapshots.CHUNK_SIZE", 10_000)
    r = random.Random(3)
    with publisher.open(dest, kind="bytes", cache=False) as dataset:
        put(dataset, {b"%06d" % n: r.randbytes(100) for n in range(20_000)})
    assert read_head(dest).snapshot.files > 100
    store = Counting(dest)
    with Dataset(store, None) as dataset:
        put(dataset, {b"000001": b"x", b"010000": b"y", b"010001": b"z"})
    chunks = [path for call, path, _ in store.calls if call == "get" and path.startswith("chunks/")]
    assert len(chunks) <= 4
    assert len(set(chunks)) <= 3


def test_batches_of_tables(dest, tmp_path):
    with publisher.open(dest, kind="table", name="shop") as dataset:
        with dataset.batch() as batch:
            batch.table("prices", key=["sku"])
            batch["prices", "a1"] = {"price": 9.5}
            batch["prices", "b2"] = {"price": 12.0, "tags": ["new"]}
            assert batch["prices", "a1"] == {"price": 9.5}
        assert (dataset.version, len(dataset)) == (2, 2)
        with dataset.batch() as batch:
            batch["prices", "a1"] = {"sku": "a1", "price": "on request", "n": 2**70}
            batch.table("stock", key=["shop", "sku"])
            batch["stock", 7, "a1"] = {"shop": 7, "left": 3}
            batch["stock", 8, "a1"] = {}
        assert dataset["prices", "a1"] == {"sku": "a1", "price": "on request", "tags": None, "n": 2**70}
        assert dataset.get(("stock", 1, "a1")) is None
        assert ("stock", 7, "a1") in dataset
        assert list(dataset) == [("prices", "a1"), ("prices", "b2"), ("stock", 7, "a1"), ("stock", 8, "a1")]
        with dataset.batch() as batch:
            del batch["stock", 7, "a1"]
            batch["prices", "b2"] = {"price": 12.0, "tags": ["new"]}
        assert (dataset.version, len(dataset)) == (4, 3)
        with dataset.batch() as batch:
            batch.table("prices", key=["sku"])
        assert dataset.version == 4
    with publisher.open(dest) as dataset:
        assert dataset["prices", "b2"] == {"sku": "b2", "price": 12.0, "tags": ["new"], "n": None}
        types = {column.name: column.type for table in dataset._tables() for column in table.columns}
        assert types == {"sku": "text", "price": "any", "tags": "json", "n": "json", "shop": "int64", "left": "int64"}
    puller("pull", dest, tmp_path / "copy.db")
    puller("verify", tmp_path / "copy.db")


def test_what_is_bytes_and_what_was_closed(dest):
    class Bytes(bytes):
        pass

    with publisher.open(dest, kind="bytes") as dataset:
        with dataset.batch() as batch:
            batch[Bytes(b"k")] = Bytes(b"v")
        assert dict(dataset.items()) == {b"k": b"v"}
    for use in (lambda: dataset[b"k"], lambda: list(dataset), lambda: b"k" in dataset, dataset.refresh):
        with pytest.raises(UsageError, match="was closed"):
            use()
    batch = dataset.batch()
    with pytest.raises(UsageError, match="was closed"), batch:
        batch[b"k"] = b"w"


def test_the_first_rows_of_a_table_settle_its_types(dest, tmp_path):
    copy = tmp_path / "copy.db"
    with publisher.open(dest, kind="table", name="d") as dataset:
        with dataset.batch() as batch:
            batch.table("t", key=["k"])
            batch.table("u", key=["k"])
            batch["u", "a"] = {}
        puller("pull", dest, copy)
        with dataset.batch() as batch:
            batch["t", 1] = {"v": 1}
        assert [column.type for column in dataset._tables()[0].columns] == ["int64", "int64"]
        assert puller("pull", "--json", dest, copy).json["way"] != "bootstrap"
        puller("verify", copy)
        with dataset.batch() as batch:
            batch["u", 1] = {}
        assert [column.type for column in dataset._tables()[1].columns] == ["any"]


def test_rows_that_no_table_holds_are_refused(dest):
    with publisher.open(dest, kind="table") as dataset:
        with dataset.batch() as batch:
            batch.table("t", key=["k"])
            batch["t", 1] = {"v": 1}
        for key, row, message in [
            (("u", 1), {}, r"batch\.table"),
            (("t", 1, 2), {}, "1 columns, not 2"),
            (("t", 1), {"k": 2}, "not what its key"),
            (("t", 1), {"k": True}, "not what its key"),
            (("t", 1), {"v": {1, 2}}, "cannot be part"),
            (("t", 1), {1: 2}, "name of a column"),
            (("t", 1), [1], "mapping"),
            (("t",), {}, "a key is a tuple"),
            (("t", [1]), {}, "nested"),
        ]:
            with pytest.raises(UsageError, match=message), dataset.batch() as batch:
                batch[key] = row
        with pytest.raises(UsageError, match="has the primary key"), dataset.batch() as batch:
            batch.table("t", key=["v"])
        with pytest.raises(UsageError, match="at least one"), dataset.batch() as batch:
            batch.table("s", key=[])
        assert (dataset.version, len(dataset)) == (2, 1)


def test_columns_of_two_programs_are_merged(dest):
    """A batch is encoded for the schema that there is when it is published."""
    with publisher.open(dest, kind="table") as one, publisher.open(dest) as two:
        with one.batch() as first:
            first.table("t", key=["k"])
            first["t", 1] = {"a": 1}
        two.refresh()
        with one.batch() as first, two.batch() as second:
            first["t", 1] = {"a": 2, "b": "one"}
            second["t", 2] = {"c": 2.5, "a": "text"}
        one.refresh()
        assert one["t", 1] == {"k": 1, "a": 2, "c": None, "b": "one"}
        assert one["t", 2] == {"k": 2, "a": "text", "c": 2.5, "b": None}


HAMMER = """
import random, sys
import publisher
dest, name, batches = sys.argv[1], sys.argv[2], int(sys.argv[3])
with publisher.open(dest) as dataset:
    for n in range(batches):
        with dataset.batch() as batch:
            batch[f"{name}-{n:04d}".encode()] = b"%d" % n
            batch[b"last-" + name.encode()] = b"%d" % n
            if n:
                batch.discard(f"{name}-{n - 1:04d}".encode())
            batch[b"shared"] = name.encode() + b"%d" % n
"""


def test_two_processes_hammer_one_folder(dest):
    publisher.open(dest, kind="bytes").close()
    batches = 30
    processes = [
        subprocess.Popen([sys.executable, "-c", HAMMER, dest, name, str(batches)], cwd=ROOT) for name in ("one", "two")
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    head = read_head(dest)
    assert head.version == 1 + 2 * batches
    state = state_of(dest, head)
    last = b"%d" % (batches - 1)
    assert state.pop(b"shared") in (b"one" + last, b"two" + last)
    assert state == {b"last-one": last, b"last-two": last, b"one-0029": last, b"two-0029": last}
    seen = {"one": -1, "two": -1}
    for version in range(2, head.version + 1, 7):
        held = state_of(dest, head if version == head.version else archived(dest, version))
        for name, before in seen.items():
            now = int(held.get(b"last-" + name.encode(), b"-1"))
            assert now >= before
            seen[name] = now


def test_threads_share_a_dataset(dest):
    with publisher.open(dest, kind="bytes") as dataset:
        start = threading.Barrier(4)

        def work(name):
            start.wait()
            for n in range(10):
                put(dataset, {b"%d-%d" % (name, n): b"x"})
                assert dataset[b"%d-%d" % (name, n)] == b"x"

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert (dataset.version, len(dataset)) == (41, 40)
    assert len(state_of(dest)) == 40


def test_a_batch_gives_up_when_others_keep_coming_first(dest, monkeypatch):
    monkeypatch.setattr("publisher.dataset.ATTEMPTS", 3)
    with publisher.open(dest, kind="bytes") as dataset, publisher.open(dest) as other:

        def first(*arguments):
            put(other, {b"other": os.urandom(8)})
            return FolderStore.swap_head(dataset._store, *arguments)

        monkeypatch.setattr(dataset._store, "swap_head", first)
        with pytest.raises(Conflict, match="was not published"):
            put(dataset, {b"mine": b""})
    assert set(state_of(dest)) == {b"other"}
    assert read_head(dest).version == 4


def test_a_whole_source_and_batches_take_turns(dest, tmp_path):
    from tests.conftest import publisher as run

    rows = tmp_path / "t.jsonl"
    rows.write_text('{"k": 1, "a": "x"}\n{"k": 2, "a": "y"}\n')
    run("publish", rows, dest, "--key", "k", "--table", "t")
    with publisher.open(dest) as dataset, dataset.batch() as batch:
        batch["t", 3] = {"a": "z", "b": True}
    rows.write_text('{"k": 1, "a": "x"}\n{"k": 2, "a": "Y"}\n{"k": 3, "a": "z", "b": true}\n')
    assert run("publish", "--json", rows, dest, "--table", "t").json["updated"] == 1
    with publisher.open(dest) as dataset:
        assert [row["a"] for _, row in dataset.items()] == ["x", "Y", "z"]
    schema = decode_schema(state_of(dest)[b""])
    assert form_of("table", schema).encode_key(("t", 3)) in state_of(dest)


def test_publishing_one_of_several_tables_is_refused(dest, tmp_path):
    with publisher.open(dest, kind="table") as dataset, dataset.batch() as batch:
        for name in ("one", "two"):
            batch.table(name, key=["k"])
            for n in range(10 if name == "one" else 1):
                batch[name, n] = {"v": n}
    (tmp_path / "s.jsonl").write_text("".join(f'{{"k": {n}, "v": {n}}}\n' for n in range(10)))
    refused = command("publisher", "publish", tmp_path / "s.jsonl", dest, "--table", "one", check=3)
    assert "no table 'two', which is published" in refused.err
    with publisher.open(dest) as dataset:
        assert dataset["two", 0] == {"k": 0, "v": 0}
    command("publisher", "publish", tmp_path / "s.jsonl", dest, "--table", "one", "--allow-shrink")
    with publisher.open(dest) as dataset:
        assert dataset.get(("two", 0)) is None
