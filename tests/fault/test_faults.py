"""Every step of a publish and of a pull fails once: never a wrong state, and the next run mends it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from publisher.publish import Options, publish
from publisher.sources import open_source
from puller.errors import HeadwaterError
from puller.fetch import FolderFetcher
from puller.pull import Options as PullOptions
from puller.pull import pull
from puller.stores.folder import FolderStore
from puller.targets import open_target
from tests.conftest import tree


class Fault(OSError):
    """The failure that is injected."""


class FaultyStore(FolderStore):
    """Fails at the n-th writing step, before or after it took effect."""

    def __init__(self, root: str, at: int, after: bool) -> None:
        super().__init__(root)
        self.left = at
        self.after = after
        self.steps = 0

    def _step(self, act):
        with self._lock:
            self.steps += 1
            self.left -= 1
            fails = self.left == 0
        if fails and not self.after:
            raise HeadwaterError("injected before")
        result = act()
        if fails:
            raise HeadwaterError("injected after")
        return result

    def put(self, path, data):
        return self._step(lambda: super(FaultyStore, self).put(path, data))

    def create(self, path, data):
        return self._step(lambda: super(FaultyStore, self).create(path, data))

    def flush(self):
        return self._step(super().flush)

    def swap_head(self, expected, data, time):
        return self._step(lambda: super(FaultyStore, self).swap_head(expected, data, time))


def run_publish(store, source: Path, **options):
    def find(name, schema):
        return open_source(str(source), None, key=(), tables=(), name=name, schema=schema, strict=False)

    return publish(store, find, "data", Options(allow_shrink=True, **options))


def run_pull(dest: Path, copy: Path, **options):
    target = open_target(str(copy), "files", "folder")
    try:
        return pull(str(dest), FolderFetcher(str(dest)), lambda head: target, PullOptions(**options))
    finally:
        target.close()


def fill(source: Path, version: int) -> dict:
    source.mkdir(exist_ok=True)
    (source / "a").write_text(f"a {version}")
    (source / "sub").mkdir(exist_ok=True)
    (source / "sub" / str(version)).write_bytes(bytes([version]) * 2_000_000)
    (source / "link").unlink(missing_ok=True)
    (source / "link").symlink_to(str(version))
    if version > 1:
        (source / "sub" / str(version - 1)).unlink()
    return tree(source)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("version", [1, 2])
def test_publish_fails_at_every_step(tmp_path, version, after):
    source, clean = tmp_path / "s", tmp_path / "clean"
    states = [{}, fill(source, 1)]
    if version == 2:
        run_publish(FolderStore(str(clean)), source)
        states.append(fill(source, 2))
    else:
        clean.mkdir()
    probe = FaultyStore(str(tmp_path / "probe"), -1, False)
    shutil.copytree(clean, probe.where)
    run_publish(probe, source)
    assert probe.steps >= 4
    for at in range(1, probe.steps + 1):
        dest, copy = tmp_path / f"d{at}", tmp_path / f"c{at}"
        shutil.copytree(clean, dest)
        with pytest.raises(HeadwaterError, match="injected"):
            run_publish(FaultyStore(str(dest), at, after), source)
        if (dest / "HEAD").exists():
            run_pull(dest, copy)
            assert tree(copy) in states[-2:]
        outcome = run_publish(FolderStore(str(dest)), source)
        assert outcome.head.version == version
        run_pull(dest, copy)
        assert tree(copy) == states[-1]


CALLS = ["open", "write", "rename", "mkdir", "symlink", "utime", "unlink", "rmdir", "replace", "fsync"]


class FaultyCalls:
    """Fails at the n-th of the calls that change files, before or after it took effect, or with every later one too."""

    def __init__(self, monkeypatch, at: int, mode: str) -> None:
        self.left = at
        self.steps = 0
        self.mode = mode
        for name in CALLS:
            monkeypatch.setattr(os, name, self.wrap(name, getattr(os, name)))

    def wrap(self, name, inner):
        def call(*arguments, **options):
            if name == "open" and not arguments[1] & os.O_CREAT:
                return inner(*arguments, **options)
            self.steps += 1
            self.left -= 1
            if self.left == 0 or (self.left < 0 and self.mode == "dead"):
                if self.mode == "after":
                    inner(*arguments, **options)
                raise Fault(5, "injected", "somewhere")
            return inner(*arguments, **options)

        return call


@pytest.mark.parametrize("mode", ["before", "after", "dead"])
@pytest.mark.parametrize("start", ["nothing", "behind", "edited"])
def test_pull_into_a_folder_fails_at_every_step(tmp_path, monkeypatch, start, mode):
    source, dest, behind = tmp_path / "s", tmp_path / "d", tmp_path / "behind"
    old = fill(source, 1)
    run_publish(FolderStore(str(dest)), source)
    if start == "nothing":
        old, new = {}, old
    else:
        run_pull(dest, behind)
        new = fill(source, 2)
        run_publish(FolderStore(str(dest)), source)
    if start == "edited":
        (behind / "a").write_text("mine")
        old = tree(behind)
    at, finished = 0, False
    while not finished:
        at += 1
        copy = tmp_path / f"c{at}"
        if start != "nothing":
            shutil.copytree(behind, copy, symlinks=True)
        with monkeypatch.context() as patch:
            faults = FaultyCalls(patch, at, mode)
            try:
                run_pull(dest, copy, overwrite=start == "edited")
                finished = faults.steps < at
            except (HeadwaterError, Fault):
                pass
        if copy.exists() and (copy / ".headwater").exists():
            target = open_target(str(copy), "files", "folder")
            if target.state() is not None:
                check = target.check()
                assert (check.differing, check.missing) == (
                    ["a"] if tree(copy) == old and start == "edited" else [],
                    [],
                )
            target.close()
            assert tree(copy) in (old, new)
        run_pull(dest, copy, overwrite=start == "edited")
        assert tree(copy) == new
        shutil.rmtree(copy)
    assert at > 8


class FaultyDatabase(sqlite3.Connection):
    """Fails at the n-th statement."""

    left = -1
    steps = 0

    def _step(self):
        type(self).steps += 1
        type(self).left -= 1
        if type(self).left == 0:
            raise sqlite3.OperationalError("disk I/O error (injected)")

    def execute(self, *arguments):
        self._step()
        return super().execute(*arguments)

    def executemany(self, *arguments):
        self._step()
        return super().executemany(*arguments)


@pytest.mark.parametrize("name", ["copy.db", pytest.param("copy", marks=pytest.mark.slow)])
def test_every_statement_of_a_database_fails_once(tmp_path, monkeypatch, name):
    kind = "table" if name.endswith(".db") else "files"
    source, dest = tmp_path / ("s.jsonl" if kind == "table" else "s"), tmp_path / "d"

    def publish_version(version):
        if kind == "files":
            fill(source, version)
        else:
            source.write_text("".join(f'{{"k":{n},"v":{n * version}}}\n' for n in range(version, 40)))
        run_publish_any(dest, source)

    def run_publish_any(dest, source):
        def find(name, schema):
            key = ("k",) if kind == "table" else ()
            return open_source(str(source), None, key=key, tables=(), name=name, schema=schema, strict=False)

        publish(FolderStore(str(dest)), find, "data", Options())

    def pull_once(copy):
        target = open_target(str(copy), kind)
        try:
            return pull(str(dest), FolderFetcher(str(dest)), lambda head: target, PullOptions())
        finally:
            target.close()

    publish_version(1)
    pull_once(tmp_path / "behind" / name) if (tmp_path / "behind").mkdir() is None else None
    publish_version(2)
    connect = sqlite3.connect
    for start in ("nothing", "behind"):
        at, finished = 0, False
        while not finished:
            at += 1
            place = tmp_path / "work"
            shutil.rmtree(place, ignore_errors=True)
            if start == "behind":
                shutil.copytree(tmp_path / "behind", place, symlinks=True)
            else:
                place.mkdir()
            FaultyDatabase.left, FaultyDatabase.steps = at, 0
            with monkeypatch.context() as patch:
                patch.setattr(sqlite3, "connect", lambda *a, **o: connect(*a, factory=FaultyDatabase, **o))
                try:
                    pull_once(place / name)
                    finished = FaultyDatabase.steps < at
                except (HeadwaterError, sqlite3.Error):
                    pass
            target = open_target(str(place / name), kind)
            state = target.state()
            if state is not None:
                check = target.check()
                assert f"{check.checksum:032x}" == state.checksum
            target.close()
            assert pull_once(place / name).after == (1, 2)
        assert at > 10
