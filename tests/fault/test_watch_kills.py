"""A watcher that publishes and collects garbage, killed at any moment: never a wrong state, and nothing is lost.

A second counts as four hours, so that versions expire while the test runs.
"""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time

import pytest

from puller.fetch import FolderFetcher
from puller.pull import Options, pull
from puller.targets import open_target
from tests.conftest import publisher, puller, tree
from tests.states import read_head
from tests.watching import until

GRACE = 6.0
SCRIPT = f"""
import publisher.commit, publisher.gc
from publisher.watch import watcher
publisher.commit.GRACE = publisher.gc.GRACE = {GRACE}
publisher.commit.LONGEST = {GRACE / 2}
watcher.COLLECT_EVERY = 0.2
from publisher.cli import entry
entry()
"""


class Writer(threading.Thread):
    """Counts in files, each for itself: a state in which a file counts less than before is wrong."""

    def __init__(self, folder, seed):
        super().__init__()
        self.folder = folder
        self.random = random.Random(seed)
        self.counts = dict.fromkeys(range(40), 0)
        self.over = threading.Event()
        folder.mkdir()
        for n in self.counts:
            self.write(n)

    def write(self, n):
        path = self.folder / f"d{n % 7}/f{n}"
        path.parent.mkdir(exist_ok=True)
        beside = self.folder.parent / "beside"
        beside.write_text(f"{self.counts[n]} " * self.random.choice([1, 1, 2000]))
        beside.rename(path)

    def run(self):
        while not self.over.wait(self.random.uniform(0, 0.1)):
            for n in self.random.sample(range(40), self.random.choice([1, 1, 20])):
                self.counts[n] += 1
                self.write(n)


@pytest.mark.parametrize("seconds", [0.5, pytest.param(60, marks=pytest.mark.slow)])
def test_a_watcher_killed_at_any_moment(tmp_path, seconds):
    r = random.Random(seconds)
    source, dest, copy = tmp_path / "s", tmp_path / "d", tmp_path / "c"
    writer = Writer(source, seconds)
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        "watch",
        source,
        dest,
        "--settle",
        "0.05",
        "--rescan",
        "2s",
        "--keep",
        "6s",
    ]
    seen, kills = {}, 0
    writer.start()
    try:
        end = time.monotonic() + seconds
        while time.monotonic() < end or kills < 2:
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            try:
                until((dest / "HEAD").exists)
                time.sleep(r.uniform(0, min(seconds, 1.2)))
            finally:
                process.kill()
                process.wait()
            kills += 1
            catch_up(dest, copy)
            for path, (_, content) in tree(copy).items():
                count = int(content.split()[0])
                assert content == b"%d " % count * content.count(b" ")
                assert seen.get(path, 0) <= count <= writer.counts[int(path.partition("/f")[2])]
                seen[path] = count
            assert publisher("fsck", dest, check=None).status == 0
    finally:
        writer.over.set()
        writer.join()
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        until(lambda: is_caught_up(dest, copy, source))
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.stderr.close()
    assert puller("verify", copy).status == 0
    puller("pull", dest, tmp_path / "fresh")
    assert tree(tmp_path / "fresh") == tree(source)
    if seconds > 10:
        assert len(list((dest / "heads").iterdir())) < read_head(str(dest)).version - 1  # some expired


def catch_up(dest, copy):
    target = open_target(str(copy), "files", "folder")
    try:
        pull(str(dest), FolderFetcher(str(dest)), lambda head: target, Options())
    finally:
        target.close()


def is_caught_up(dest, copy, source):
    catch_up(dest, copy)
    return tree(copy) == tree(source)
