"""Processes killed at any moment, and every byte of a small dataset flipped: never a wrong state."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from puller.errors import HeadwaterError
from puller.fetch import FolderFetcher
from puller.pull import Options, pull
from puller.targets import open_target
from tests.conftest import publisher, puller, tree


def start(name, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", f"{name}.cli", *map(str, arguments)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_after(process, seconds):
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()


def fill(folder, seed):
    r = random.Random(seed)
    folder.mkdir(exist_ok=True)
    for n in range(400):
        if r.random() < 0.5:
            (folder / f"f{n}").write_bytes(r.randbytes(r.randint(0, 20_000)))
        elif (folder / f"f{n}").exists():
            (folder / f"f{n}").unlink()
    return folder


@pytest.mark.slow
def test_killed_publishers_and_pullers_of_folders(tmp_path):
    r = random.Random(7)
    source, dest, copy = tmp_path / "s", tmp_path / "d", tmp_path / "c"
    published = []
    fill(source, 0)
    publisher("publish", source, dest)
    published.append(tree(source))
    for attempt in range(1, 13):
        fill(source, attempt)
        published.append(tree(source))
        kill_after(start("publisher", "publish", source, dest, "--allow-shrink"), r.uniform(0.08, 0.3))
        kill_after(start("puller", "pull", dest, copy), r.uniform(0.1, 0.35))
        if copy.exists():
            status = puller("status", "--json", copy, check=None)
            if status.status == 0:
                assert puller("verify", copy, check=None).status == 0
                assert tree(copy) in published
    publisher("publish", source, dest, "--allow-shrink")
    puller("pull", dest, copy)
    assert tree(copy) == tree(source)
    puller("pull", dest, tmp_path / "fresh")
    assert tree(tmp_path / "fresh") == tree(source)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["c.db", "c.jsonl", "c.csv", "c.parquet"])
def test_killed_pullers_of_tables(tmp_path, name):
    r = random.Random(8)
    source, dest, copy = tmp_path / "s.jsonl", tmp_path / "d", tmp_path / name
    for attempt in range(6):
        rows = [f'{{"k":{n},"v":"{r.random()} {attempt}"}}\n' for n in range(20_000) if r.random() < 0.9]
        source.write_text("".join(rows))
        publisher("publish", source, dest, "--key", "k")
        for _ in range(2):
            kill_after(start("puller", "pull", dest, copy), r.uniform(0.1, 0.5))
            if puller("status", "--json", copy, check=None).status == 0:
                assert puller("verify", copy, check=None).status == 0
        puller("pull", dest, copy)
        assert puller("verify", "--json", copy).json["version"] == attempt + 1


def small_dataset(tmp_path):
    source, dest = tmp_path / "s", tmp_path / "d"
    source.mkdir()
    (source / "a").write_text("content of a")
    (source / "run").write_text("x")
    (source / "run").chmod(0o755)
    publisher("publish", source, dest)
    old = tree(source)
    puller("pull", dest, tmp_path / "behind")
    (source / "a").write_text("changed content of a")
    (source / "b").symlink_to("a")
    publisher("publish", source, dest)
    return dest, old, tree(source)


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("start_at", ["nothing", "behind"])
def test_every_byte_flipped_gives_the_right_state_or_none(tmp_path, start_at, every):
    dest, old, new = small_dataset(tmp_path)
    served = tmp_path / "served"
    shutil.copytree(dest, served)
    files = [path for path in served.rglob("*") if path.is_file()]
    refused = right = 0
    for path in files:
        good = path.read_bytes()
        for at in range(0, len(good), every):
            flipped = bytearray(good)
            flipped[at] ^= 1 << (at % 8)
            path.write_bytes(bytes(flipped))
            copy = tmp_path / "copy"
            shutil.rmtree(copy, ignore_errors=True)
            if start_at == "behind":
                shutil.copytree(tmp_path / "behind", copy, symlinks=True)
            target = open_target(str(copy), "files", "folder")
            try:
                pull(str(served), FolderFetcher(str(served)), lambda head, t=target: t, Options())
            except HeadwaterError:
                refused += 1
                expected = old if start_at == "behind" else {}
            else:
                right += 1
                expected = new
            finally:
                target.close()
            found = tree(copy)
            assert found in (expected, new if start_at == "nothing" else old), (path, at)
            if start_at == "nothing" and expected == {}:
                assert not os.path.lexists(copy)
        path.write_bytes(good)
    assert refused > 300 / every
    assert right > 10
