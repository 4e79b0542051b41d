"""Large files that change a little: a publish writes the changes, a pull fetches them, and the rest is taken from disk."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from publisher.publish import Options, publish
from publisher.sources.folder import FolderSource
from puller.stores.folder import FolderStore
from puller.wire.head import parse_head
from tests.conftest import publisher, puller, tree
from tests.fault.test_kills_and_flips import kill_after, start
from tests.unit.test_large import overwritten, text

SIZE = 7_000_000


@pytest.fixture(scope="module")
def contents() -> list[bytes]:
    """A large file and three later versions of it, each with changes in every piece."""
    found = [text(1, SIZE)]
    for seed in range(3):
        found.append(overwritten(found[-1], seed, 300))
    return found


@pytest.fixture(scope="module")
def published(contents, tmp_path_factory) -> tuple[Path, list[Path], list[int]]:
    """The dataset with all versions; a copy at each of the first three; and what each publish wrote."""
    base = tmp_path_factory.mktemp("large")
    source, dest = base / "s", base / "d"
    source.mkdir()
    (source / "small").write_text("small")
    copies, written = [], []
    for version, content in enumerate(contents):
        (source / "big").write_bytes(content)
        written.append(publisher("publish", "--json", source, dest).json["written"])
        if version < 3:
            copies.append(base / f"copy{version}")
            puller("pull", dest, copies[-1])
    return dest, copies, written


@pytest.fixture
def copy(published, tmp_path, request) -> Path:
    """A copy at the version before the newest."""
    shutil.copytree(published[1][getattr(request, "param", 2)], tmp_path / "copy")
    return tmp_path / "copy"


def is_newest(copy: Path, contents: list[bytes]) -> bool:
    return tree(copy) == {"big": ("f", contents[-1]), "small": ("f", b"small")}


def test_a_publish_writes_what_changed(published):
    _, _, (first, *later) = published
    assert first > 2_000_000
    assert max(later) < 45_000


@pytest.mark.parametrize(("copy", "behind"), [(2, 1), (0, 3)], indirect=["copy"])
def test_a_pull_fetches_what_changed(published, copy, behind, contents, nginx):
    dest, _, written = published
    shutil.copytree(dest, nginx.root / "d")
    nginx.requests()
    done = puller("pull", "--json", f"{nginx.url}/d", copy).json
    assert done["way"] == "diffs"
    requests = nginx.requests()
    paths = [path for path, _, _ in requests]
    assert len(paths) == len(set(paths)) <= 10 * behind + 3
    assert sum(size for _, _, size in requests) <= sum(written[-behind:]) + 5000
    assert is_newest(copy, contents)


def test_a_fresh_copy_fetches_little_more_than_the_plain_file(published, contents, nginx, tmp_path):
    dest, _, written = published
    shutil.copytree(dest, nginx.root / "d")
    nginx.requests()
    puller("pull", f"{nginx.url}/d", tmp_path / "fresh")
    requests = nginx.requests()
    assert len({path for path, _, _ in requests}) == len(requests)
    assert sum(size for _, _, size in requests) < 1.1 * written[0]
    assert is_newest(tmp_path / "fresh", contents)


def test_an_edit_that_went_unnoticed_is_not_taken_for_a_piece(published, copy, contents):
    dest, _, written = published
    stat = (copy / "big").stat()
    with (copy / "big").open("r+b") as file:
        file.seek(4_000_000)
        file.write(b"edited")
    os.utime(copy / "big", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    done = puller("pull", "--json", dest, copy).json
    assert written[-1] < done["received"] < written[0] / 2
    assert is_newest(copy, contents)
    puller("verify", copy)


def test_an_edited_file_is_kept_or_overwritten(published, copy, contents):
    dest, _, written = published
    edited = b"edited" + contents[2]
    (copy / "big").write_bytes(edited)
    assert "--overwrite" in puller("pull", dest, copy, check=3).err
    assert (copy / "big").read_bytes() == edited
    puller("pull", "--overwrite", dest, copy)
    assert is_newest(copy, contents)
    (copy / "small").write_text("edited")
    again = puller("pull", "--json", "--overwrite", dest, copy).json
    assert again["received"] < written[-1]
    assert is_newest(copy, contents)


@pytest.mark.parametrize("kind", ["missing", "cut off", "a folder", "a link", "no bookkeeping"])
def test_what_is_not_there_any_more_is_fetched(published, copy, contents, kind):
    dest, _, written = published
    flags = ["--overwrite"] if kind in ("cut off", "a link") else []
    if kind == "no bookkeeping":
        with sqlite3.connect(copy / ".headwater/state.db") as db:
            db.execute("DROP TABLE pieces")
        db.close()
    elif kind == "cut off":
        os.truncate(copy / "big", 100)
    else:
        (copy / "big").rename(copy.parent / "elsewhere")
        if kind == "a folder":
            (copy / "big").mkdir()
        elif kind == "a link":
            (copy / "big").symlink_to(copy.parent / "elsewhere")
    done = puller("pull", "--json", dest, copy, *flags).json
    assert done["received"] > written[0] / 2
    assert is_newest(copy, contents)


def test_a_copied_or_renamed_file_is_not_fetched(tmp_path, contents, nginx):
    source, copy = tmp_path / "s", tmp_path / "c"
    source.mkdir()
    (source / "one").write_bytes(contents[0])
    publisher("publish", source, nginx.root / "d")
    puller("pull", f"{nginx.url}/d", copy)
    (source / "one").rename(source / "two")
    (source / "three").write_bytes(contents[0])
    publisher("publish", "--allow-shrink", source, nginx.root / "d")
    nginx.requests()
    done = puller("pull", "--json", f"{nginx.url}/d", copy).json
    assert sum(size for _, _, size in nginx.requests()) < 5000
    assert (done["written"], done["deleted"]) == (2, 1)
    assert tree(copy) == tree(source)
    with sqlite3.connect(copy / ".headwater/state.db") as db:
        assert {path for (path,) in db.execute("SELECT path FROM pieces")} == {b"two", b"three"}
    db.close()


def test_killed_pulls_of_a_changed_file(published, tmp_path, contents):
    r = random.Random(3)
    dest, copies, _ = published
    for attempt in range(4):
        copy = tmp_path / f"copy{attempt}"
        shutil.copytree(copies[attempt % 3], copy)
        kill_after(start("puller", "pull", dest, copy), r.uniform(0.1, 0.35))
        found = (copy / "big").read_bytes()
        assert found in (contents[attempt % 3], contents[-1])
        done = puller("pull", "--json", dest, copy).json
        assert done["received"] < 200_000
        assert is_newest(copy, contents)


def test_diffs_over_many_versions_are_worth_taking(tmp_path):
    """Each of them names all pieces, but a reader that holds an earlier version needs few of their files."""
    source, dest, copy = tmp_path / "s", tmp_path / "d", tmp_path / "c"
    source.mkdir()
    content = text(4, 2_000_000)
    for version in range(9):
        (source / "big").write_bytes(content)
        publish(FolderStore(str(dest)), lambda name, schema: FolderSource(str(source)), "d", Options())
        if version == 2:
            puller("pull", dest, copy)
        content = overwritten(content, version, 40)
    head = parse_head((dest / "HEAD").read_bytes())
    wide = [diff for diff in head.diffs if diff.b - diff.a > 1]
    assert wide
    for diff in wide:
        narrow = [d for d in head.diffs if d.b - d.a == 1 and diff.a <= d.a and d.b <= diff.b]
        assert diff.tree.bytes <= sum(d.tree.bytes for d in narrow) < head.snapshot.bytes / 4
    assert puller("pull", "--json", dest, copy).json["way"] in ("diffs", "patch")
    assert (copy / "big").read_bytes() == (source / "big").read_bytes()


MEASURED = """
import resource, subprocess, sys
status = subprocess.run([sys.executable, "-m", *sys.argv[1:]], stdout=subprocess.DEVNULL).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024)
sys.exit(status)
"""


def run(*arguments: object) -> int:
    """Run a command; return its peak memory in MB. A process of its own starts it: what starts a process counts as its peak."""
    done = subprocess.run([sys.executable, "-c", MEASURED, *map(str, arguments)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
def test_memory_is_bounded_by_pieces(tmp_path):
    source, dest, copy = tmp_path / "s", tmp_path / "d", tmp_path / "c"
    source.mkdir()
    content = text(1, 1_000_000) * 12
    with (source / "big").open("wb") as file:
        for n in range(32):
            file.write(overwritten(content, n, 20_000))
    for version in range(3):
        assert run("publisher.cli", "publish", source, dest) < 220
        assert run("puller.cli", "pull", dest, copy) < 220
        assert run("puller.cli", "pull", dest, tmp_path / f"fresh{version}") < 220
        with (source / "big").open("r+b") as file:
            for n in range(0, 384_000_000, 500_000):
                file.seek(n + 1000 * version)
                file.write(b"version %d" % version)
    shutil.rmtree(tmp_path)
