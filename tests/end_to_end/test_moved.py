"""A database file whose rows move to new pages: an update fetches what changed, and takes the moved rows from the old file."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from puller.wire.head import parse_head
from tests import independent_reader as judge
from tests.conftest import publisher, puller, tree
from tests.end_to_end.test_large import run
from tests.unit.test_large import WORDS

ROWS = 100_000


def words(r: random.Random, number: int) -> str:
    return b"".join(r.choices(WORDS, k=number)).decode()


def grow(path: Path, seed: int) -> None:
    """Let rows here and there grow, so that their pages are split and half of each is appended."""
    r = random.Random(seed)
    with sqlite3.connect(path) as db:
        for key in r.sample(range(ROWS), 700):
            db.execute("UPDATE t SET v = v || ? WHERE k = ?", (words(r, 90), key))
    db.close()


@pytest.fixture(scope="module")
def versions(tmp_path_factory) -> list[bytes]:
    """A database of about 20 MB, and two later versions of it."""
    path = tmp_path_factory.mktemp("moved") / "big.db"
    r = random.Random(1)
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (k INTEGER PRIMARY KEY, v TEXT)")
        db.executemany("INSERT INTO t VALUES (?, ?)", ((key, words(r, 26)) for key in range(ROWS)))
    db.close()
    found = [path.read_bytes()]
    for seed in (1, 2):
        grow(path, seed)
        found.append(path.read_bytes())
    return found


@pytest.fixture(scope="module")
def published(versions, tmp_path_factory) -> tuple[Path, Path, list[Path]]:
    """The dataset at its second version, with a copy at the first; and at its third, with copies at the first two."""
    base = tmp_path_factory.mktemp("published")
    source, second, third = base / "s", base / "second", base / "third"
    source.mkdir()
    (source / "small").write_text("small")
    for version, content in enumerate(versions):
        (source / "big.db").write_bytes(content)
        publisher("publish", source, third)
        if version == 1:
            shutil.copytree(third, second)
        if version < 2:
            puller("pull", third, base / f"copy{version}")
    return second, third, [base / "copy0", base / "copy1"]


@pytest.fixture
def copy(published, tmp_path, request) -> Path:
    shutil.copytree(published[2][getattr(request, "param", 0)], tmp_path / "copy")
    return tmp_path / "copy"


def check(copy: Path, content: bytes) -> None:
    assert tree(copy) == {"big.db": ("f", content), "small": ("f", b"small")}
    puller("verify", copy)


def test_what_moved_is_not_fetched(published, copy, versions, nginx):
    second = published[0]
    shutil.copytree(second, nginx.root / "d")
    (diff,) = parse_head((second / "HEAD").read_bytes()).diffs
    nginx.requests()
    done = puller("pull", "--json", f"{nginx.url}/d", copy).json
    assert (done["way"], done["reason"]) == ("patch", "patch_cheapest")
    fetched = sum(size for _, _, size in nginx.requests())
    assert diff.tree.bytes > 400_000
    assert fetched < 0.45 * diff.tree.bytes
    assert abs(fetched - done["planned_bytes"]) < 5000
    check(copy, versions[1])


def test_the_diff_is_there_for_everybody_else(published, versions, tmp_path):
    puller("pull", published[0], tmp_path / "fresh")
    check(tmp_path / "fresh", versions[1])


@pytest.mark.parametrize("copy", [0, 1], indirect=True)
def test_two_patches_in_a_row(published, copy, versions):
    done = puller("pull", "--json", published[1], copy).json
    assert done["way"] == "patch"
    narrow = [d for d in parse_head((published[1] / "HEAD").read_bytes()).diffs if d.b - d.a == 1]
    assert done["received"] < sum(diff.tree.bytes for diff in narrow) + 100_000  # nothing is fetched in vain
    check(copy, versions[2])


@pytest.mark.parametrize("kind", ["edited", "missing", "cut off", "executable", "a link"])
def test_a_file_that_is_not_as_it_was_pulled_is_done_without(published, copy, versions, kind):
    path = copy / "big.db"
    flags = ["--overwrite"] if kind in ("cut off", "executable", "a link") else []
    if kind == "edited":
        stat = path.stat()
        with path.open("r+b") as file:
            for at in range(0, stat.st_size, 1000):
                file.seek(at)
                file.write(b"edited")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif kind == "cut off":
        os.truncate(path, 5000)
    elif kind == "executable":
        path.chmod(0o755)
    else:
        path.rename(copy.parent / "elsewhere")
        if kind == "a link":
            path.symlink_to(copy.parent / "elsewhere")
    puller("pull", published[0], copy, *flags)
    check(copy, versions[1])


def test_an_edit_at_one_place_costs_little(published, copy, versions):
    """Where a range was edited, the value's own piece is used; other pieces are still taken from the file."""
    stat = (copy / "big.db").stat()
    with (copy / "big.db").open("r+b") as file:
        for at in range(10_000_000, 10_400_000, 1000):
            file.seek(at)
            file.write(b"edited")
    os.utime(copy / "big.db", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    whole = parse_head((published[0] / "HEAD").read_bytes()).snapshot.bytes
    done = puller("pull", "--json", published[0], copy).json
    assert done["received"] < 0.4 * whole
    check(copy, versions[1])


def test_another_reader_uses_the_ranges(published, versions, monkeypatch):
    dataset = judge.Dataset(published[0])
    before = {b"big.db": b"f" + versions[0], b"small": b"fsmall"}
    after = before | {b"big.db": b"f" + versions[1]}
    read = []
    real = judge.Dataset.read
    monkeypatch.setattr(
        judge.Dataset, "read", lambda self, area, ref, *more: read.append(ref[1]) or real(self, area, ref, *more)
    )
    costs = []
    for patches in (False, True):
        read.clear()
        assert dataset.apply(dict(before), 1, patches) == after
        costs.append(sum(read))
    assert costs[1] < costs[0] - 300_000


@pytest.mark.slow
def test_memory_is_bounded(tmp_path):
    source, dest, copy = tmp_path / "s", tmp_path / "d", tmp_path / "c"
    source.mkdir()
    r = random.Random(3)
    with (source / "big").open("wb") as file:
        for _ in range(300):
            file.write(r.randbytes(500_000).hex().encode())
    run("publisher.cli", "publish", source, dest)
    run("puller.cli", "pull", dest, copy)
    with (source / "big").open("r+b") as file:
        end = file.seek(0, 2)
        for _ in range(30_000):
            file.seek(r.randrange(end - 2000))
            row = file.read(1700)
            file.seek(0, 2)
            file.write(row)
    assert run("publisher.cli", "publish", source, dest) < 300
    assert run("puller.cli", "pull", dest, copy) < 220
    assert (copy / "big").read_bytes() == (source / "big").read_bytes()
    shutil.rmtree(tmp_path)
