"""A folder looked at in part, where events tell what changed, against one looked at as a whole."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from publisher.sources import scan as scan_module
from publisher.sources.folder import FolderSource
from publisher.sources.kept import Kept
from publisher.sources.scan import Scan
from puller.errors import SourceError


def whole(root):
    scan = Scan(str(root))
    scan.all()
    return scan.looks


class Tree:
    """A folder in which things happen, and the paths that events would tell of."""

    def __init__(self, root, seed):
        self.root = root
        self.random = random.Random(seed)
        self.told: set[bytes] = set()
        root.mkdir()

    def some_path(self):
        return self.root.joinpath(*self.random.choices("abc", k=self.random.randint(1, 4)))

    def tell(self, path):
        self.told.add(os.fsencode(path.relative_to(self.root)))

    def clear(self, path):
        """Remove what lies there, and what lies in its way; a folder's own removal is all that is told."""
        for place in [*reversed(path.parents), path]:
            in_the_way = place == path or not place.is_dir() or place.is_symlink()
            if self.root in place.parents and os.path.lexists(place) and in_the_way:
                self.tell(place)
                shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
        for place in reversed(path.parents):
            if self.root in place.parents and not place.exists():
                place.mkdir()
                self.tell(place)

    def step(self):
        path, act = self.some_path(), self.random.randrange(6)
        if act == 0:
            if os.path.lexists(path) and not any(map(Path.is_symlink, path.parents)):
                self.tell(path)
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            return
        self.clear(path)
        self.tell(path)
        if act == 1:
            path.mkdir()
        elif act == 2:
            path.symlink_to(self.random.choice(["a", "..", "/etc", "b/c"]))
        elif act == 3:
            os.mkfifo(path)
        else:
            path.write_bytes(b"x" * self.random.randrange(100))


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 40))])
def test_looking_at_what_was_told_finds_what_looking_at_everything_does(tmp_path, seed):
    tree = Tree(tmp_path / "s", seed)
    scan = Scan(str(tree.root))
    scan.all()
    known, folders = scan.looks, scan.folders
    for _ in range(40):
        for _ in range(tree.random.randint(1, 6)):
            tree.step()
        part = Scan(str(tree.root), known)
        part.some(tree.told, known, folders)
        tree.told.clear()
        assert not part.gone & part.looks.keys()
        known = {key: seen for key, seen in (known | part.looks).items() if key not in part.gone}
        folders |= part.folders
        assert known == whole(tree.root)


def test_looking_in_part_costs_what_changed(tmp_path, monkeypatch):
    root = tmp_path / "s"
    for n in range(20):
        (root / f"d{n}").mkdir(parents=True)
        for m in range(20):
            (root / f"d{n}/f{m}").write_text("x")
    kept = Kept()
    source = FolderSource(str(root), cache=kept)
    list(source.runs())
    source.remember(b"1")
    calls = []
    for name in ("lstat", "scandir", "stat"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, real=real, **k: calls.append(a) or real(*a, **k))
    (root / "d3/f5").write_text("other")
    (root / "d4/f5").unlink()
    kept.paths = {b"d3/f5", b"d4/f5"}
    source = FolderSource(str(root), cache=kept)
    assert source.recall(b"1") == [b"d3/f5", b"d4/f5"]
    assert [keys for keys, _ in source.runs()] == [[b"d3/f5"]]
    assert 0 < len(calls) <= 12
    kept.paths = set()
    assert FolderSource(str(root), cache=kept).recall(b"another state") is None


def test_what_was_published_is_known_from_then_on(tmp_path, monkeypatch):
    monkeypatch.setattr(scan_module, "racy_since", lambda _: 1 << 70)  # as if all had been written long ago
    root, kept = tmp_path / "s", Kept()
    for name in ("a", "b", "c/d"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("1")
    source = FolderSource(str(root), cache=kept)
    list(source.runs())
    source.remember(b"1")
    (root / "a").write_text("22")
    (root / "c/d").unlink()
    kept.paths = {b"a", b"c/d"}
    source = FolderSource(str(root), cache=kept)
    assert source.recall(b"1") == [b"a", b"c", b"c/d"]
    source.remember(b"2")
    kept.paths = None
    assert FolderSource(str(root), cache=kept).recall(b"2") == []


def test_who_just_writes_a_file_gets_a_moment(tmp_path, monkeypatch):
    root = tmp_path / "s"
    root.mkdir()
    (root / "a").write_text("")
    monkeypatch.setattr("publisher.sources.folder.time.sleep", lambda _: (root / "a").write_text("whole"))
    monkeypatch.setattr("publisher.sources.folder.time.time_ns", lambda: os.stat(root / "a").st_mtime_ns)
    assert list(FolderSource(str(root), cache=Kept()).runs()) == [([b"a"], [b"fwhole"])]


def test_what_still_changes_is_looked_at_again(tmp_path, monkeypatch):
    """A file that is written between two looks is published as it is at the second."""
    root = tmp_path / "s"
    root.mkdir()
    (root / "a").write_text("1")
    kept = Kept()
    source = FolderSource(str(root), cache=kept)
    list(source.runs())
    source.remember(b"1")
    (root / "a").write_text("")
    writes = iter(["half", "whole"])
    real = Scan.some

    def some(self, *arguments):
        real(self, *arguments)
        text = next(writes, None)
        if text is not None:
            (root / "a").write_text(text)

    monkeypatch.setattr(Scan, "some", some)
    kept.paths = {b"a"}
    source = FolderSource(str(root), cache=kept)
    assert source.recall(b"1") == [b"a"]
    assert list(source.runs()) == [([b"a"], [b"fwhole"])]
    assert next(writes, None) is None


def test_a_folder_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(SourceError, match="cannot be read"):
        whole(tmp_path / "s")
