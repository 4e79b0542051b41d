"""Copies of parts of a dataset: nothing outside is fetched, changing parts works, and what is held is proven."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import msgspec
import pytest

import publisher as publishing
import puller as pulling
from puller.blocks import Blocks
from puller.errors import ChecksumMismatch, Distrust, Unavailable, Untrusted, UsageError
from puller.fetch import FolderFetcher, open_fetcher
from puller.parts import cut, parse, ranges_of
from puller.plan import Reason, Way, plan
from puller.pull import Options, pull
from puller.ranges import overlaps
from puller.targets.folder import FolderTarget
from puller.targets.memory import Held, MemoryTarget
from puller.tree import Reader
from puller.ways import read_diffs
from puller.wire import nodes
from puller.wire.checksum import run_sum
from puller.wire.codec import CHUNKS, DIFFS, path_of
from puller.wire.head import archive_path, format_head, parse_head
from tests.conftest import lines, publisher, puller, tree
from tests.crafted import Writer, craft
from tests.hostile_host import Reply, hostile
from tests.plain import publish_records
from tests.states import read_head, state_of

FOLDERS = [f"{a}{b}" for a in "abcdefghij" for b in range(10)]
KEYS = [f"{folder}/{n}".encode() for folder in FOLDERS for n in range(5)]


@pytest.fixture(scope="module")
def hundred(tmp_path_factory):
    """A dataset of 100 folders with 80 kB each, of which a file is changed, in a folder of its own for each version."""
    base = tmp_path_factory.mktemp("hundred")
    noise = random.Random(1)
    state = {key: b"f" + noise.randbytes(16_000) for key in KEYS}
    publish_records(base / "1", "files", state)
    assert read_head(str(base / "1")).snapshot.files > 5
    for version, paths in ((2, ["e5/0", "a0/0"]), (3, ["j9/0"]), (4, ["e5/1", "b0/0"])):
        shutil.copytree(base / f"{version - 1}", base / f"{version}")
        state |= {path.encode(): b"f" + noise.randbytes(100) for path in paths}
        publish_records(base / f"{version}", "files", state, 1000.0 + version)
    return base


def serve(nginx, dataset):
    shutil.rmtree(nginx.root)
    shutil.copytree(dataset, nginx.root)


def meeting(dataset, parts):
    """The paths of all leaves of a version's snapshot and diffs that have keys in some parts, and of all others."""
    head = read_head(str(dataset))
    within = ranges_of(head.kind, parse(head.kind, parts))
    found: tuple[set[str], set[str]] = (set(), set())
    with ThreadPoolExecutor(1) as pool:
        reader = Reader(FolderFetcher(str(dataset)), pool)
        for area, one in [(CHUNKS, head.snapshot), *((DIFFS, diff.tree) for diff in head.diffs)]:
            for leaf in reader.leaves(area, one):
                path = path_of(area, leaf.ref.sha256)
                found[not overlaps(within, leaf.lower, leaf.upper)].add(path)
    return found


def asked(nginx):
    """What was asked for since the last look, below the dataset's address, and how many bytes came."""
    requests = nginx.requests()
    assert {status for _, status, _ in requests} <= {200, 304}
    return [path.split("/", 2)[2] for path, _, _ in requests], sum(size for _, _, size in requests)


def folder_of(dataset, *prefixes):
    found = {key.decode(): ("f", value[1:]) for key, value in state_of(str(dataset)).items()}
    return {path: value for path, value in found.items() if path.startswith(prefixes)}


def test_nothing_outside_the_parts_is_fetched(nginx, hundred, tmp_path):
    copy, head = tmp_path / "copy", read_head(str(hundred / "1"))
    serve(nginx, hundred / "1")
    dry = puller("pull", "--dry-run", "--json", "--prefix", "e5/", nginx.url, copy).json
    assert dry["planned_bytes"] < head.snapshot.bytes / 3
    asked(nginx)
    done = puller("pull", "--json", "--prefix", "e5/", nginx.url, copy).json
    paths, received = asked(nginx)
    inside, outside = meeting(hundred / "1", ["e5/"])
    assert inside
    assert outside
    assert inside <= set(paths)
    assert not outside & set(paths)
    assert len(paths) == len(set(paths)) == 2 + len(inside)  # HEAD, the index
    assert received <= done["planned_bytes"] + 20_000
    assert dry["planned_bytes"] == done["planned_bytes"]
    assert (done["way"], done["records"], done["parts"]) == ("bootstrap", 5, ["e5/"])
    assert tree(copy) == folder_of(hundred / "1", "e5/")
    assert "parts      e5/" in puller("status", copy).out

    serve(nginx, hundred / "2")
    done = puller("pull", "--json", nginx.url, copy).json
    paths, received = asked(nginx)
    assert (done["way"], done["written"], done["reason"]) == ("diffs", 1, "diffs_cheapest")
    assert "heads/1-1" in paths
    assert received < 20_000
    assert tree(copy) == folder_of(hundred / "2", "e5/")

    serve(nginx, hundred / "4")
    done = puller("pull", "--json", "--prefix", "e5/", "--prefix", "j9/", nginx.url, copy).json
    paths, _ = asked(nginx)
    inside, outside = meeting(hundred / "4", ["e5/", "j9/"])
    assert not outside & set(paths)
    assert (done["way"], done["reason"], done["written"], done["parts"]) == (
        "resync",
        "parts_changed",
        6,
        ["e5/", "j9/"],
    )
    assert tree(copy) == folder_of(hundred / "4", "e5/", "j9/")
    done = puller("pull", "--json", "--prefix", "j9/", nginx.url, copy).json
    assert (done["written"], done["deleted"]) == (0, 5)
    assert tree(copy) == folder_of(hundred / "4", "j9/")
    asked(nginx)
    assert puller("pull", "--json", "--prefix", "j9/", nginx.url, copy).json["way"] == "nothing"
    assert asked(nginx)[0] == ["HEAD"]
    assert puller("verify", "--json", copy).json["records"] == 5


@pytest.mark.slow
def test_a_copy_of_parts_is_repaired_and_goes_back(nginx, hundred, tmp_path):
    copy = tmp_path / "copy"
    serve(nginx, hundred / "4")
    puller("pull", "--prefix", "j9/", nginx.url, copy)
    (copy / "j9/1").write_bytes(b"mine")
    refused = puller("pull", "--prefix", "a0/", nginx.url, copy, check=3)
    assert "changed here" in refused.err
    assert puller("verify", "--json", copy, check=6).json["differing"] == ["j9/1"]
    assert puller("verify", "--repair", copy).status == 0
    assert tree(copy) == folder_of(hundred / "4", "j9/")
    done = puller("pull", "--json", "--version", "2", nginx.url, copy).json
    assert (done["to"]["version"], done["parts"]) == (2, ["j9/"])
    assert tree(copy) == folder_of(hundred / "2", "j9/")
    done = puller("pull", "--json", "--all", nginx.url, copy).json
    assert (done["parts"], done["records"]) == ([], len(KEYS))
    assert tree(copy) == folder_of(hundred / "4", "")


def test_records_are_read_from_the_host(nginx, hundred, tmp_path):
    serve(nginx, hundred / "4")
    head, expected = read_head(str(hundred / "4")), state_of(str(hundred / "4"))
    trees = 1 + len(head.diffs)
    for path in ("e5/1", "c3/2", "b0/0"):
        got = puller("get", nginx.url, path, "-o", tmp_path / "out")
        assert "not signed" in got.err
        paths, _ = asked(nginx)
        assert (tmp_path / "out").read_bytes() == expected[path.encode()][1:]
        assert len(paths) == len(set(paths)) <= 1 + 1 + trees, paths  # HEAD, the snapshot's index, a leaf of each tree
        assert not meeting(hundred / "4", [path])[1] & set(paths)
    missing = puller("get", "-q", nginx.url, "e5/nothing", check=1)
    assert missing.err == f"error: e5/nothing is not in {head.name!r} version 4\n"
    assert missing.out == ""
    assert puller("get", "-v", nginx.url, "e5/1", "-o", tmp_path / "out").err.split("\n")[-2].startswith("2 requests, ")
    asked(nginx)
    listed = puller("ls", "-q", "--json", nginx.url, "e5/")
    assert [json.loads(line)["path"] for line in listed.out.splitlines()] == [f"e5/{n}" for n in range(5)]
    assert not meeting(hundred / "4", ["e5/"])[1] & set(asked(nginx)[0])
    assert puller("ls", "-q", nginx.url).out.splitlines() == sorted(key.decode() for key in KEYS)
    assert puller("ls", "-q", "-l", "--version", "1", nginx.url, "a0/0").out.split() == ["file", "16,000", "a0/0"]


def shop(path, *, extra="", tables=("prices", "stock", "other")):
    """A database with several tables; `extra` is SQL to run in it."""
    with sqlite3.connect(path) as db:
        for table in tables:
            db.execute(f"CREATE TABLE IF NOT EXISTS {table} (shop TEXT, n INTEGER, value, PRIMARY KEY (shop, n))")
            rows = [(shop, n, f"{table} {n}") for shop in ("eu", "uk") for n in range(30)]
            db.executemany(f"INSERT OR IGNORE INTO {table} VALUES (?, ?, ?)", rows)
        db.executescript(extra)
    db.close()


def rows(path, table):
    with sqlite3.connect(path) as db:
        return sorted(db.execute(f"SELECT * FROM {table}").fetchall())


def tables(path):
    with sqlite3.connect(path) as db:
        return {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")} - {"_headwater"}


def test_some_tables_of_a_database(tmp_path):
    source, dest, copy = tmp_path / "s.db", tmp_path / "d", tmp_path / "c.db"
    shop(source)
    publisher("publish", "--unsigned", source, dest)
    wrong = puller("pull", "--table", "price", dest, copy, check=2)
    assert "no table 'price'; it has prices, stock, other" in wrong.err
    assert not copy.exists()
    assert "has no tables" not in wrong.err
    planned = puller("pull", "--dry-run", "--table", "price", dest, copy, check=2)
    assert planned.err == wrong.err
    puller("pull", "--dry-run", "--table", "prices", dest, copy)
    none = puller("pull", "--prefix", '["stock", "nowhere"]', dest, copy)
    assert 'no record has this prefix (["stock","nowhere"]); the copy is empty' in none.out
    assert tables(copy) == {"stock"}
    puller("pull", "--table", "prices", "--prefix", '["stock", "eu"]', dest, copy)
    assert tables(copy) == {"prices", "stock"}
    assert rows(copy, "prices") == rows(source, "prices")
    assert rows(copy, "stock") == [row for row in rows(source, "stock") if row[0] == "eu"]
    assert puller("status", "--json", copy).json["parts"] == ["prices", '["stock","eu"]']
    shop(
        source,
        extra="ALTER TABLE prices ADD COLUMN more; UPDATE prices SET more = n WHERE n < 3; DELETE FROM stock WHERE n = 4;"
        "DROP TABLE other; CREATE TABLE new (n INTEGER PRIMARY KEY); INSERT INTO new VALUES (1)",
        tables=(),
    )
    publisher("publish", "--allow-shrink", source, dest)
    assert puller("pull", "--json", dest, copy).json["way"] in ("diffs", "resync")
    assert tables(copy) == {"prices", "stock"}
    assert rows(copy, "prices") == rows(source, "prices")
    assert rows(copy, "stock") == [row for row in rows(source, "stock") if row[0] == "eu"]
    puller("verify", copy)
    done = puller("pull", "--json", "--table", "new", "--table", "stock", dest, copy).json
    assert (done["way"], done["deleted"], done["written"]) == ("resync", 60, 30)
    assert tables(copy) == {"new", "stock"}
    assert rows(copy, "stock") == rows(source, "stock")
    puller("verify", copy)
    with sqlite3.connect(copy) as db:
        db.execute("DELETE FROM stock WHERE n < 10")
    puller("verify", copy, check=6)
    puller("verify", "--repair", copy)
    puller("pull", "--all", dest, copy)
    assert tables(copy) == {"new", "stock", "prices"}
    assert all(rows(copy, table) == rows(source, table) for table in tables(copy))
    puller("verify", copy)


def test_a_table_as_json_lines(tmp_path):
    source, dest, copy = tmp_path / "s.db", tmp_path / "d", tmp_path / "c.jsonl"
    shop(source)
    publisher("publish", "--unsigned", source, dest)
    assert "choose one with --table" in puller("pull", dest, copy, check=2).err
    puller("pull", "--table", "prices", dest, copy)
    assert [row["value"] for row in lines(copy)] == [value for _, _, value in rows(source, "prices")]
    puller("pull", "--table", "stock", dest, copy)
    assert [row["value"] for row in lines(copy)] == [value for _, _, value in rows(source, "stock")]
    puller("verify", copy)
    got = puller("cat", "-q", "--table", "stock", dest)
    assert got.out == copy.read_text()
    assert "several tables: choose one" in puller("cat", dest, check=2).err
    assert len(puller("cat", "-q", "--prefix", '["stock","uk"]', dest).out.splitlines()) == 30
    assert json.loads(puller("get", "-q", dest, "stock", "uk", 7).out) == {"shop": "uk", "n": 7, "value": "stock 7"}
    assert puller("get", "--json", dest, "stock", "uk", 7).json["row"]["value"] == "stock 7"
    assert "stock uk 99 is not in 'd' version 1" in puller("get", dest, "stock", "uk", 99, check=1).err
    assert "is no int64" in puller("get", dest, "stock", "uk", "x", check=2).err
    assert "put -- before URL" in puller("get", dest, "stock", "uk", -7, check=2).err
    assert "stock uk -7 is not in" in puller("get", "--", dest, "stock", "uk", -7, check=1).err
    assert "named by: stock shop n" in puller("get", dest, "stock", "uk", check=2).err
    assert puller("ls", "-q", dest, '["prices","uk"]').out.splitlines()[:2] == ["prices\tuk\t0", "prices\tuk\t1"]
    assert puller("ls", dest, "price", check=2).err.endswith("no table 'price'; it has prices, stock, other\n")


def fetch(dest, target, **options):
    return pull(str(dest), FolderFetcher(str(dest)), lambda head: target, Options(**options))


def held(target):
    return {key: value for keys, values in target.records() for key, value in zip(keys, values, strict=True)}


def kept(state, parts):
    keys = sorted(state)
    return dict(zip(*cut(keys, [state[key] for key in keys], ranges_of("files", parse("files", parts))), strict=True))


@pytest.mark.parametrize("parts", [["d1/"], ["d0/f0", "d2/f1"], ["big"], ["d"], ["b", "e"], ["none"]])
def test_every_feature_of_the_format(tmp_path, parts):
    root = tmp_path / "data"
    root.mkdir()
    state = craft(root)[-1]
    target = MemoryTarget()
    outcome = fetch(root, target, parts=parts)
    assert outcome.plan.way is Way.BOOTSTRAP
    assert held(target) == kept(state, parts)
    assert (outcome.records, outcome.checksum) == (target.state().records, target.state().checksum)


def test_a_program_holds_parts(tmp_path):
    with publishing.open(str(tmp_path / "d"), kind="table") as dataset, dataset.batch() as batch:
        for table in ("prices", "stock"):
            batch.table(table, key=["sku", "n"])
            for sku in ("a", "b"):
                batch[table, sku, 1] = {"price": 1.5}
    with pulling.Replica(str(tmp_path / "d"), parts=["prices", ("stock", "b")]) as replica:
        replica.pull()
        assert list(replica) == [("prices", "a", 1), ("prices", "b", 1), ("stock", "b", 1)]
        assert ("stock", "a", 1) not in replica
        with publishing.open(str(tmp_path / "d")) as dataset, dataset.batch() as batch:
            batch["stock", "b", 1] = {"price": 2.5}
            batch["stock", "a", 1] = {"price": 3.5}
        told = []
        assert replica.pull(on_change=told.append).changed
        assert [(change.key, change.new["price"]) for change in told] == [(("stock", "b", 1), 2.5)]
    with (
        pytest.raises(UsageError, match="has no table 'stok'"),
        pulling.Replica(str(tmp_path / "d"), parts=["stok"]) as one,
    ):
        one.pull()


def changed(dest, to, **changes):
    """A copy of a dataset whose newest HEAD says something else."""
    shutil.copytree(dest, to)
    head = parse_head((to / "HEAD").read_bytes())
    (to / "HEAD").write_bytes(format_head(msgspec.structs.replace(head, **changes)))
    return to


def test_forked_history_is_noticed_without_a_checksum(hundred, tmp_path):
    target = MemoryTarget()
    fetch(hundred / "2", target, parts=["c3/"])
    fork = tmp_path / "fork"
    shutil.copytree(hundred / "3", fork)
    path = fork / archive_path(1, 2)
    head = parse_head(path.read_bytes())
    path.write_bytes(format_head(msgspec.structs.replace(head, publish_id="f" * 32)))
    with pytest.raises(Untrusted) as caught:
        fetch(fork, target)
    assert caught.value.reason is Distrust.FORK
    assert target.state().version == 2
    path.unlink()
    outcome = fetch(fork, target)  # nobody can tell: everything is compared with the snapshot
    assert (outcome.plan.way, outcome.plan.reason) == (Way.RESYNC, Reason.HISTORY_UNKNOWN)
    assert target.state().version == 3
    assert held(target) == kept(state_of(str(hundred / "3")), ["c3/"])


def with_false_index(dataset, to):
    """A copy whose newest snapshot says of each chunk that it holds another checksum, and a record more."""
    shutil.copytree(dataset, to)
    head = parse_head((to / "HEAD").read_bytes())
    with ThreadPoolExecutor(1) as pool:
        reader = Reader(FolderFetcher(str(to)), pool)
        entries = reader.index(CHUNKS, head.snapshot.ref, head.snapshot.level, b"", None, None)
    wrong = [msgspec.structs.replace(entry, checksum=bytes(16)) for entry in entries]
    ref = Writer(to).put(CHUNKS, nodes.encode_index(wrong))
    snapshot = msgspec.structs.replace(head.snapshot, ref=ref)
    (to / "HEAD").write_bytes(format_head(msgspec.structs.replace(head, snapshot=snapshot)))
    return to


def test_parts_are_held_against_the_snapshots_index(hundred, tmp_path):
    """Bounds of chunks lie in the middle of folders: `c` to `g` hold some whole."""
    false = with_false_index(hundred / "1", tmp_path / "false")
    target = MemoryTarget()
    with pytest.raises(ChecksumMismatch, match="the snapshot's index promises"):
        fetch(false, target, parts=list("cdefg"))
    assert target.state() is None


@pytest.fixture(params=[10, pytest.param(17, marks=pytest.mark.slow)])
def snapshot_at(request, tmp_path, monkeypatch):
    """A copy of some keys at version 9, and the dataset at version 17, of which the only later snapshot is of 10, or 17."""
    noise, target = random.Random(1), MemoryTarget()
    state = {b"%d" % n: b"f" + noise.randbytes(9000) for n in range(250)}
    for version in range(1, 18):
        monkeypatch.setattr("publisher.snapshots.is_due", lambda *_, version=version: version == request.param)
        state |= {b"%d" % (version * 3): b"f" + b"new" * 300, b"1": b"f%d" % version}
        publish_records(tmp_path / "data", "files", state, 1000.0 + version)
        if version == 9:
            fetch(tmp_path / "data", target, parts=["1", "3"])
    newest = read_head(str(tmp_path / "data"))
    assert newest.snapshot_version == request.param
    with ThreadPoolExecutor(1) as pool:
        reader = Reader(FolderFetcher(str(tmp_path / "data")), pool)
        way = plan((1, 9), newest, read_diffs(reader, newest, (1, 9))).steps
    assert any(step.diff.a < 10 < step.diff.b for step in way)  # the cheapest leads past version 10
    return tmp_path / "data", target, kept(state, ["1", "3"])


def test_fewer_parts_are_dropped_and_proven_without_fetching(hundred):
    target = MemoryTarget()
    fetch(hundred / "1", target, parts=["e5/", "g"])
    outcome = fetch(hundred / "1", target, parts=["e5/0", "g3/"])
    assert (outcome.plan.way, outcome.notes) == (Way.RESYNC, [])
    assert held(target) == kept(state_of(str(hundred / "1")), ["e5/0", "g3/"])
    assert outcome.requests <= 2 + 4  # HEAD, the index, and for the proof the chunks at the ends of the parts


def test_diffs_are_compared_with_a_newer_snapshot_on_the_way(snapshot_at):
    dataset, target, expected = snapshot_at
    snapshot = target.state().snapshot
    outcome = fetch(dataset, target)
    assert (outcome.plan.way, outcome.notes) == (Way.DIFFS, [])
    assert target.state().snapshot != snapshot
    assert held(target) == expected


def test_what_an_earlier_diff_got_wrong_shows_at_the_next_snapshot(snapshot_at):
    dataset, target, expected = snapshot_at
    found = held(target) | {b"10": b"fwrong"}
    keys, values = sorted(found), [found[key] for key in sorted(found)]
    state = msgspec.structs.replace(target.state(), checksum=f"{run_sum(keys, values):032x}", ranges=b"")
    target.held = Held(state, Blocks([(keys, values)]))
    assert target.check().equals(target.state())  # nothing here can tell
    outcome = fetch(dataset, target)
    assert outcome.plan.way is Way.RESYNC
    assert "does not give the checksum that the snapshot's index promises" in outcome.notes[0]
    assert held(target) == expected


def test_a_pull_of_parts_that_was_cut_short_goes_on(hundred, tmp_path):
    inside, outside = meeting(hundred / "1", ["c", "g5/"])
    last = max(inside)
    away = Reply(503, headers={"Retry-After": "100"})
    with hostile(hundred / "1", lambda request, right: away if request.path == last else None) as host:

        def run():
            target = FolderTarget(str(tmp_path / "copy"))
            with closing(target), closing(open_fetcher(host.url)) as fetcher:
                pull(host.url, fetcher, lambda head: target, Options(parts=["c", "g5/"]))

        with pytest.raises(Unavailable, match="nothing was written"):
            run()
        first = set(host.paths())
        host.rules.clear()
        run()
        second = set(host.paths())
    assert first & second <= {"HEAD", last}
    assert inside <= first | second
    assert not outside & (first | second)
    assert tree(tmp_path / "copy") == folder_of(hundred / "1", "c", "g5/")


def test_large_and_encrypted_files(tmp_path):
    noise = random.Random(1).randbytes(3_000_000)
    source, dest = tmp_path / "source", tmp_path / "d"
    (source / "eu").mkdir(parents=True)
    (source / "eu/large").write_bytes(noise)
    (source / "eu/large").chmod(0o755)
    (source / "eu/link").symlink_to("large")
    (source / "eu/empty").mkdir()
    (source / "uk").write_bytes(b"small")
    publisher("publish", "--encrypt", source, dest)
    puller("pull", "--prefix", "eu/", dest, tmp_path / "copy")
    assert tree(tmp_path / "copy") == {path: found for path, found in tree(source).items() if path != "uk"}
    key = json.loads(publisher("key", "show", "--json", dest).out)["roots"][0]
    got = puller("get", "--json", "--trust", key, "-o", tmp_path / "large", dest, "eu/large")
    assert (got.err, got.json["type"]) == ("", "executable")
    assert (tmp_path / "large").read_bytes() == noise
    assert os.access(tmp_path / "large", os.X_OK)
    assert puller("cat", "-q", dest, "uk", "uk").out == "smallsmall"
    assert [json.loads(line) for line in puller("cat", "-q", "--json", dest, "uk").out.splitlines()] == [
        {"path": "uk", "type": "file", "content": "c21hbGw="}
    ]
    assert "larger than 1 MiB" in puller("get", "--json", dest, "eu/large", check=2).err
    assert "symbolic link to large" in puller("get", dest, "eu/link", check=2).err
    assert "an empty folder" in puller("cat", dest, "eu/empty", check=2).err
    assert puller("get", "-q", dest, "eu/nothing", "-o", tmp_path / "none", check=1).err.endswith("version 1\n")
    listed = [line.split() for line in puller("ls", "-q", "-l", dest).out.splitlines()]
    assert [line[0::2] for line in listed] == [
        ["folder", "eu/empty"],
        ["large", "eu/large"],
        ["symlink", "eu/link"],
        ["file", "uk"],
    ]
    for path in (dest / "chunks").rglob("*.zst"):
        if path.stat().st_size > 100_000:
            path.write_bytes(b"x" * path.stat().st_size)
            break
    assert "damaged" in puller("get", dest, "eu/large", "-o", tmp_path / "none", check=5).err
    assert {path.name for path in tmp_path.iterdir()} == {"source", "d", "copy", "large"}
