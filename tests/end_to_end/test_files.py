"""The main job on real input, kind files: publish, serve by nginx, pull, change, publish again, catch up."""

from __future__ import annotations

import os
import shutil
import socket
import sysconfig
from pathlib import Path

import pytest

from tests.conftest import publisher, puller, tree


def test_standard_library_over_nginx(nginx, tmp_path):
    source = tmp_path / "lib"
    leave = shutil.ignore_patterns("site-packages", "dist-packages", "__pycache__")
    shutil.copytree(sysconfig.get_paths()["stdlib"], source, symlinks=True, ignore=leave)
    copy = tmp_path / "copy"
    publisher("publish", source, nginx.root / "lib")
    first = puller("pull", "--json", f"{nginx.url}/lib", copy).json
    assert (first["way"], first["reason"]) == ("bootstrap", "new_target")
    assert tree(copy) == tree(source)
    assert len(tree(copy)) > 500

    (source / "abc.py").write_text("# changed\n" + (source / "abc.py").read_text())
    (source / "this.py").unlink()
    (source / "zz_new.py").write_text("new = True\n")
    publisher("publish", source, nginx.root / "lib")
    nginx.requests()
    second = puller("pull", "--json", f"{nginx.url}/lib", copy).json
    requests = nginx.requests()
    assert (second["way"], second["written"], second["deleted"]) == ("patch", 2, 1)
    assert len(requests) <= 3
    assert sum(size for _, _, size in requests) < 6000
    assert tree(copy) == tree(source)

    third = puller("pull", "--json", f"{nginx.url}/lib", copy).json
    assert nginx.requests() == [(f"/{nginx.root.name}/lib/HEAD", 304, 0)]
    assert (third["way"], third["changed"]) == ("nothing", False)
    assert puller("verify", "--json", copy).json["ok"]


def test_kinds_of_entries(tmp_path):
    source, dest, copy = tmp_path / "s", tmp_path / "d", tmp_path / "c"
    (source / "sub/deep").mkdir(parents=True)
    (source / "empty").mkdir()
    (source / "sub/run").write_text("#!/bin/sh\n")
    (source / "sub/run").chmod(0o755)
    (source / "sub/link").symlink_to("../nowhere")
    (source / "sub/deep/up").symlink_to("..")
    (source / "ünï ©ode 'quoted' \\ back").write_bytes(b"")
    (source / "large").write_bytes(os.urandom(3_000_000))
    (source / "large-x").write_bytes(bytes(2_000_000))
    (source / "large-x").chmod(0o711)
    (source / "edge").write_bytes(b"x" * (1024 * 1024 - 1))
    (source / "edge1").write_bytes(b"x" * (1024 * 1024))
    publisher("publish", source, dest)
    puller("pull", dest, copy)
    assert tree(copy) == tree(source)
    (source / "empty/now").write_text("filled")
    (source / "large").write_bytes((source / "large").read_bytes()[:2_500_000] + b"tail")
    (source / "sub/run").chmod(0o644)
    (source / "sub/link").unlink()
    shutil.rmtree(source / "sub/deep")
    (source / "edge").unlink()
    (source / "edge").mkdir()
    (source / "edge/below").write_text("a file became a folder")
    publisher("publish", source, dest)
    assert puller("pull", "--json", dest, copy).json["way"] in ("diffs", "patch")
    assert tree(copy) == tree(source)
    shutil.rmtree(source / "edge")
    (source / "edge").write_text("and a file again")
    publisher("publish", source, dest)
    puller("pull", dest, copy)
    assert tree(copy) == tree(source)
    assert puller("verify", copy).status == 0


def test_modification_time_is_the_publish_time(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a").write_text("a")
    publisher("publish", tmp_path / "s", tmp_path / "d")
    puller("pull", tmp_path / "d", tmp_path / "c")
    assert int((tmp_path / "c/a").stat().st_mtime) == publisher("status", "--json", tmp_path / "d").json["time"]


def test_what_a_dataset_cannot_hold_is_reported_or_refused(tmp_path):
    source = tmp_path / "s"
    source.mkdir()
    (source / "good").write_text("good")
    Path(os.fsdecode(os.fsencode(source) + b"/bad-\xff")).write_text("not UTF-8")
    os.mkfifo(source / "pipe")
    (source / "new\nline").write_text("control character")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(source / "socket"))
    done = publisher("publish", "--json", source, tmp_path / "d")
    assert sorted(item["name"] for item in done.json["skipped"]) == ["bad-\\xff", "new\nline", "pipe", "socket"]
    assert done.err.count("warning: skipped") == 4
    strict = publisher("publish", "--strict", source, tmp_path / "e", check=3)
    assert "--strict" in strict.err
    assert not (tmp_path / "e/HEAD").exists()
    puller("pull", tmp_path / "d", tmp_path / "c")
    assert list(tree(tmp_path / "c")) == ["good"]


def test_bookkeeping_of_a_replica_is_not_published(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a").write_text("a")
    publisher("publish", tmp_path / "s", tmp_path / "d")
    puller("pull", tmp_path / "d", tmp_path / "c")
    publisher("publish", tmp_path / "c", tmp_path / "d2", "--name", "d")
    states = [publisher("status", "--json", tmp_path / d).json["checksum"] for d in ("d", "d2")]
    assert states[0] == states[1]


def test_unchanged_data_writes_nothing(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a").write_text("a")
    (tmp_path / "s/big").write_bytes(os.urandom(1_500_000))
    publisher("publish", tmp_path / "s", tmp_path / "d")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "d").rglob("*")}
    done = publisher("publish", "--json", tmp_path / "s", tmp_path / "d").json
    assert (done["changed"], done["version"], done["written"]) == (False, 1, 0)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "d").rglob("*")} == before
    assert "nothing new" in publisher("publish", tmp_path / "s", tmp_path / "d").out


@pytest.mark.slow
def test_many_versions_and_new_snapshots(tmp_path):
    source, dest, copy, late = (tmp_path / name for name in "sdcl")
    source.mkdir()
    for n in range(300):
        (source / f"f{n:04}").write_text(f"{n} " * (n % 50) * 40)
    publisher("publish", source, dest)
    puller("pull", dest, copy)
    snapshots = set()
    for version in range(2, 21):
        for n in range(version, 300, 19):
            (source / f"f{n:04}").write_text(os.urandom(1500).hex())
        (source / f"f{version:04}").unlink()
        done = publisher("publish", "--json", source, dest).json
        assert done["version"] == version
        snapshots.add(done["snapshot_version"])
        if version % 6 == 0:
            puller("pull", dest, copy)
            assert tree(copy) == tree(source)
    assert len(snapshots) > 2
    puller("pull", dest, copy)
    puller("pull", dest, late)
    assert tree(copy) == tree(late) == tree(source)
    log = publisher("log", dest, "-n", "3", "--json").out.splitlines()
    assert len(log) == 3
    assert '"version":20' in log[0]
