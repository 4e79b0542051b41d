"""Files that did not change are not read again, and nothing that did is ever missed."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from publisher.publish import Options, publish
from publisher.sources import open_source, statcache
from puller.errors import Refused
from puller.stores import open_store
from tests.conftest import publisher, puller, tree


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/headwater/sources"


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled the moment they are written."""
    monkeypatch.setattr(statcache, "MARGIN", -3600 * 10**9)


@pytest.fixture
def source(tmp_path) -> Path:
    path = tmp_path / "source"
    for n in range(40):
        file = path / f"{n % 4}" / f"{n:03}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(random.Random(n).randbytes(1000 + n))
    os.symlink("000.txt", path / "0/link")
    (path / "empty").mkdir()
    return path


class Counted:
    """A store that counts what is read from it."""

    def __init__(self, inner):
        self._inner = inner
        self.gets: list[str] = []

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def get(self, path):
        self.gets.append(path)
        return self._inner.get(path)


def run(source, dest, *, cached=True, strict=False, **options):
    """Publish in this process; return the outcome, the bytes read from the source, and the files read from the store."""
    store = Counted(open_store(str(dest)))
    asked = {"key": (), "tables": (), "strict": strict} | options

    def find(name, schema):
        return open_source(
            str(source), None, name=name, schema=schema, cached_for=str(dest) if cached else None, **asked
        )

    outcome = publish(store, find, "data", Options())
    return outcome, outcome.report.bytes_read, store.gets


def fresh(source, tmp_path) -> int:
    """The checksum of a publish that knows nothing."""
    place = tmp_path / "fresh"
    shutil.rmtree(place, ignore_errors=True)
    return run(source, place, cached=False)[0].head.checksum


def rewrite(path: Path, *, rename: bool) -> None:
    """Other content of the same size, with the same mtime."""
    before = path.stat()
    data = path.read_bytes()
    data = data.replace(b'"1"', b'"3"') if path.suffix == ".jsonl" else bytes(byte ^ 1 for byte in data)
    if rename:
        other = path.with_suffix(".new")
        other.write_bytes(data)
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.replace(other, path)
    else:
        path.write_bytes(data)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)


def test_an_unchanged_folder_is_not_read_and_neither_is_the_store(source, tmp_path, settled):
    dest = tmp_path / "dest"
    assert run(source, dest)[1] > 40_000
    outcome, read, gets = run(source, dest)
    assert (outcome.changed, read, gets) == (False, 0, [])


def test_only_changed_files_are_read(source, tmp_path, settled):
    dest = tmp_path / "dest"
    run(source, dest)
    (source / "1/001.txt").write_bytes(b"changed")
    (source / "1/005.txt").unlink()
    (source / "1/new.txt").write_bytes(b"new")
    os.chmod(source / "2/002.txt", 0o755)
    os.unlink(source / "0/link")
    os.symlink("elsewhere", source / "0/link")
    (source / "empty/inside").write_bytes(b"")
    outcome, read, _ = run(source, dest)
    assert (outcome.added, outcome.updated, outcome.deleted) == (2, 3, 2)
    assert read == len(b"fchanged" + b"fnew" + b"lelsewhere" + b"f") + 1 + (source / "2/002.txt").stat().st_size
    assert outcome.head.checksum == fresh(source, tmp_path)
    puller("pull", dest, tmp_path / "copy")
    assert tree(tmp_path / "copy") == tree(source)
    assert run(source, dest)[1:] == (0, [])


def test_only_chunks_that_changes_lie_in_are_read(tmp_path, settled):
    source, dest = tmp_path / "source", tmp_path / "dest"
    source.mkdir()
    for n in range(40):
        (source / f"{n:02}").write_bytes(random.Random(n).randbytes(300_000))
    run(source, dest)
    chunks = [path for path in dest.rglob("*.zst") if "chunks" in path.parts]
    (source / "17").write_bytes(b"changed")
    gets = [path for path in run(source, dest)[2] if path.startswith("chunks/")]
    assert len(chunks) > 8
    assert len(set(gets)) <= 3


def test_a_file_that_was_just_written_is_read_again(source, tmp_path, monkeypatch):
    dest = tmp_path / "dest"
    everything = run(source, dest)[1] - len(b"d")
    assert run(source, dest)[1] == everything
    monkeypatch.setattr(statcache, "MARGIN", -3600 * 10**9)
    assert run(source, dest)[1] == everything, "what was not settled then is read once more"
    assert run(source, dest)[1] == 0


@pytest.mark.parametrize("rename", [False, True])
def test_other_content_of_the_same_size_and_mtime_is_found(source, tmp_path, settled, rename):
    dest = tmp_path / "dest"
    run(source, dest)
    rewrite(source / "3/003.txt", rename=rename)
    outcome, read, _ = run(source, dest)
    assert (outcome.updated, read) == (1, 1004)
    assert outcome.head.checksum == fresh(source, tmp_path)


@pytest.mark.parametrize("how", ["deleted", "empty", "cut", "flipped", "foreign", "folder"])
def test_a_cache_that_is_lost_or_damaged_is_none(source, tmp_path, settled, cache, how):
    dest = tmp_path / "dest"
    everything = run(source, dest)[1]
    (path,) = cache.iterdir()
    data = path.read_bytes()
    (source / "3/003.txt").write_bytes(b"changed")
    path.unlink()
    damaged = {
        "empty": b"",
        "cut": data[:-1],
        "flipped": data[:500] + b"?" + data[501:],
        "foreign": bytes(16) + b"\x90",
    }
    if how == "folder":
        path.mkdir()
    elif how != "deleted":
        path.write_bytes(damaged[how])
    outcome, read, _ = run(source, dest)
    assert (outcome.updated, outcome.added, outcome.deleted) == (1, 0, 0)
    assert read == everything - 1004 + 8


def test_a_cache_that_cannot_be_written_is_none(source, tmp_path, settled, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    everything = run(source, tmp_path / "dest")[1]
    assert run(source, tmp_path / "dest")[1] == everything


def test_a_cache_is_of_no_use_for_another_state(source, tmp_path, settled):
    """HEAD restored from a copy, and a history of its own at the same version."""
    dest = tmp_path / "dest"
    run(source, dest)
    shutil.copytree(dest, tmp_path / "copy")
    (source / "3/003.txt").write_bytes(b"changed")
    assert run(source, dest)[0].head.version == 2
    shutil.rmtree(dest)
    shutil.copytree(tmp_path / "copy", dest)
    outcome, read, _ = run(source, dest)
    assert (outcome.head.version, outcome.updated) == (2, 1)
    assert read > 39_000
    assert outcome.head.checksum == fresh(source, tmp_path)


def test_two_sources_and_two_stores_do_not_mix(source, tmp_path, settled):
    other = tmp_path / "other"
    shutil.copytree(source, other, symlinks=True)
    (other / "3/003.txt").write_bytes(b"of the other")
    dest, second = tmp_path / "dest", tmp_path / "second"
    run(source, dest)
    run(source, second)
    for place, here in [(dest, other), (dest, source), (dest, other), (second, source), (dest, source)]:
        outcome, _, _ = run(here, place)
        assert outcome.head.checksum == fresh(here, tmp_path)
    assert run(source, second)[1:] == (0, [])


def test_what_another_machine_published_is_not_forgotten(source, tmp_path, settled, monkeypatch):
    dest, there = tmp_path / "dest", tmp_path / "there"
    run(source, dest)
    shutil.copytree(source, there, symlinks=True)
    (there / "3/003.txt").write_bytes(b"from there")
    with monkeypatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache of the other machine"))
        run(there, dest)
    outcome, _, _ = run(source, dest)
    assert (outcome.changed, outcome.updated) == (True, 1)
    assert outcome.head.checksum == fresh(source, tmp_path)


def test_what_is_left_out_is_said_each_time(source, tmp_path, settled):
    dest = tmp_path / "dest"
    (source / "bad\nname").write_text("x")
    os.mkfifo(source / "pipe")
    os.chmod(source / "1/001.txt", 0o600)
    first, again = run(source, dest)[0].report, run(source, dest)[0].report
    assert len(again.skipped) == 2
    assert sorted(again.skipped) == sorted(first.skipped)
    assert (again.private, first.private) == (1, 1)
    with pytest.raises(Refused):
        run(source, dest, strict=True)


def test_random_edits_give_what_a_fresh_publish_gives(source, tmp_path, settled):
    r = random.Random(7)
    dest = tmp_path / "dest"
    run(source, dest)
    for _ in range(25):
        for _ in range(r.randrange(4)):
            edit(source, r)
        assert run(source, dest)[0].head.checksum == fresh(source, tmp_path)


def edit(source: Path, r: random.Random) -> None:
    names = sorted(path for path in source.rglob("*") if path.is_file() and not path.is_symlink())
    path = r.choice(names)
    match r.randrange(8):
        case 0:
            rewrite(path, rename=True)
        case 1:
            rewrite(path, rename=False)
        case 2:
            path.unlink()
        case 3:
            path.unlink()
            os.symlink("target", path)
        case 4:
            path.unlink()
            path.mkdir()
        case 5:
            os.replace(path, source / f"moved{r.randrange(5)}")
        case 6:
            shutil.rmtree(path.parent) if path.parent != source else path.write_bytes(b"")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(r.randbytes(9))
        case _:
            path.write_bytes(r.randbytes(2_000_000))


def test_no_cache_reads_everything(source, tmp_path, monkeypatch, cache):
    dest = tmp_path / "dest"
    publisher("publish", source, dest, "--no-cache")
    assert not cache.exists()
    publisher("publish", source, dest)
    assert len(list(cache.iterdir())) == 1
    publisher("publish", source, tmp_path / "dry", "--dry-run")
    assert len(list(cache.iterdir())) == 1


def test_an_unchanged_file_of_rows_is_not_read(tmp_path, settled):
    source, dest = tmp_path / "rows.jsonl", tmp_path / "dest"
    rows = [f'{{"id": {n}, "k": {n % 7000}, "v": "{n % 2}"}}\n' for n in range(5000)]
    source.write_text("".join(rows))
    first = run(source, dest, key=("id",))
    assert first[1] == source.stat().st_size
    outcome, read, gets = run(source, dest, key=("id",))
    assert (outcome.changed, read) == (False, 0)
    assert len(gets) <= 2, "HEAD and the schema's chunk"
    outcome, read, _ = run(source, dest, key=("k",))
    assert read == source.stat().st_size
    rewrite(source, rename=False)
    outcome, read, _ = run(source, dest, key=("k",))
    assert (outcome.changed, read) == (True, source.stat().st_size)
    source.write_text("".join(rows[1:]))
    outcome, read, _ = run(source, dest, key=("k",))
    assert (outcome.deleted, read) == (1, source.stat().st_size)


def test_rows_that_were_just_written_are_read_again(tmp_path):
    source, dest = tmp_path / "rows.jsonl", tmp_path / "dest"
    source.write_text('{"k": "a", "v": 1}\n')
    run(source, dest, key=("k",))
    assert run(source, dest, key=("k",))[1] == source.stat().st_size
    assert run(source, dest, key=("k",))[1] == source.stat().st_size


@pytest.mark.parametrize(
    ("base", "home", "found"),
    [
        ("/c", "/h", "/c/headwater"),
        ("", "/h", "/h/.cache/headwater"),
        ("c", "/h", "/h/.cache/headwater"),
        ("", "~", None),
        ("c", "h", None),
    ],
)
def test_caches_lie_in_the_users_folder_or_nowhere(monkeypatch, base, home, found):
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    monkeypatch.setenv("HOME", home)
    assert statcache.cache_folder() == found
