"""Copies of parts of a dataset: nothing outside is fetched, changing parts works, and what is held is proven."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

import publisher as publishing
import puller as pulling
from puller.errors import ChecksumMismatch, Distrust, Untrusted, UsageError
from puller.fetch import FolderFetcher
from puller.parts import cut, parse, ranges_of
from puller.plan import Reason, Way
from puller.pull import Options, pull
from puller.ranges import overlaps
from puller.targets.memory import MemoryTarget
from puller.tree import Reader
from puller.wire import nodes
from puller.wire.codec import CHUNKS, DIFFS, path_of
from puller.wire.head import archive_path, format_head, parse_head
from tests.conftest import lines, publisher, puller, tree
from tests.crafted import Writer, craft
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
    assert (done["way"], done["reason"], done["written"], done["parts"]) == ("resync", "parts_changed", 6, ["e5/", "j9/"])
    assert tree(copy) == folder_of(hundred / "4", "e5/", "j9/")
    done = puller("pull", "--json", "--prefix", "j9/", nginx.url, copy).json
    assert (done["written"], done["deleted"]) == (0, 5)
    assert tree(copy) == folder_of(hundred / "4", "j9/")
    asked(nginx)
    assert puller("pull", "--json", "--prefix", "j9/", nginx.url, copy).json["way"] == "nothing"
    assert asked(nginx)[0] == ["HEAD"]
    assert puller("verify", "--json", copy).json["records"] == 5
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
    asked(nginx)
    listed = puller("ls", "-q", "--json", nginx.url, "e5/")
    assert [json.loads(line)["path"] for line in listed.out.splitlines()] == [f"e5/{n}" for n in range(5)]
    assert not meeting(hundred / "4", ["e5/"])[1] & set(asked(nginx)[0])
    assert puller("ls", "-q", nginx.url).out.splitlines() == sorted(key.decode() for key in KEYS)
    assert puller("ls", "-q", "-l", "--version", "1", nginx.url, "a0/0").out.split() == ["file", "16,000", "a0/0"]
