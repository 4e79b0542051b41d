"""kill -9 in a loop at random moments, on both sides, with garbage collection running: no wrong state, ever.

`publisher watch` of a folder and of a database that change all the while, `publisher gc` in a loop, and three `puller follow`
through nginx are all killed and started again. Meanwhile readers look at the copies as any program would. A second counts
as four hours, so that versions expire while the test runs. The moments are those of a seed, which is printed;
KILLS_SEED=N gives the same ones again, as far as processes can be.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import pytest

from puller.errors import HeadwaterError
from puller.targets import open_target
from puller.wire.checksum import run_sum
from puller.wire.head import parse_head
from tests.conftest import publisher, puller, tree
from tests.states import read_head, state_of
from tests.watching import until

GRACE = 6.0
FILES, ROWS = 40, 300
SHORTENED = f"""
import sys, time
import publisher.commit, publisher.gc
from publisher.watch import watcher
publisher.commit.GRACE = publisher.gc.GRACE = {GRACE}
publisher.commit.LONGEST = {GRACE / 2}
watcher.COLLECT_EVERY = 2.0
from publisher.cli import entry
"""
WATCH = f"{SHORTENED}entry()"
COLLECT = f"""{SHORTENED}
dests = sys.argv[1:]
while True:
    for dest in dests:
        sys.argv = ["publisher", "gc", dest, "--keep", "6s", "--keep-versions", "0"]
        try:
            entry()
        except SystemExit as end:
            if end.code:
                raise
    time.sleep(0.1)
"""


class Writer(threading.Thread):
    """Changes a source until it is `over`."""

    def __init__(self, seed: int, longest: float) -> None:
        super().__init__(daemon=True)
        self.random = random.Random(seed)
        self.longest = longest
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(self.random.uniform(0, self.longest)):
            self.change()


class FolderWriter(Writer):
    """Counts in files, each for itself; some turn into links, folders, and back, or go and come again."""

    def __init__(self, folder: Path, seed: int) -> None:
        super().__init__(seed, 0.25)
        self.folder = folder
        self.counts = dict.fromkeys(range(FILES), 0)
        folder.mkdir()
        for n in self.counts:
            self.write(n)

    def change(self) -> None:
        for n in self.random.sample(range(FILES), self.random.choice([1, 1, 20])):
            self.counts[n] += 1
            self.write(n)

    def write(self, n: int) -> None:
        path = self.folder / f"d{n % 7}/f{n}"
        path.parent.mkdir(exist_ok=True)
        beside = self.folder.parent / "beside"
        text = f"{self.counts[n]} "
        form = self.random.choice(
            ["file"] * 6 + ["executable", "large", "link", "folder", "none"] if n % 3 == 0 else ["file"]
        )
        if form == "link":
            beside.symlink_to(text)
        elif form == "folder":
            beside.mkdir()
            (beside / "in").write_text(text)
        elif form != "none":
            beside.write_text(text * (300_000 if form == "large" else self.random.choice([1, 1, 2000])))
            beside.chmod(0o755 if form == "executable" else 0o644)
        if form in ("none", "folder") or (path.is_dir() and not path.is_symlink()):
            with suppress(FileNotFoundError):
                path.rename(self.folder.parent / "gone")
                remove(self.folder.parent / "gone")
        if form != "none":
            beside.rename(path)


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


class DatabaseWriter(Writer):
    """Makes transactions over two tables, and notes each state before it is committed."""

    def __init__(self, path: Path, seed: int) -> None:
        super().__init__(seed, 0.2)
        self.path = path
        self.states: list[dict[int, str]] = [{}]
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("CREATE TABLE serial(id INTEGER PRIMARY KEY, n INT)")
            db.execute("CREATE TABLE item(k INTEGER PRIMARY KEY, v TEXT)")
            db.execute("INSERT INTO serial VALUES(1, 0)")
            self.commit(db, range(ROWS))

    def change(self) -> None:
        with closing(sqlite3.connect(self.path, isolation_level=None, timeout=60)) as db:
            self.commit(db, self.random.sample(range(ROWS), self.random.choice([1, 3, 100])))

    def commit(self, db: sqlite3.Connection, keys) -> None:
        state = dict(self.states[-1])
        db.execute("BEGIN IMMEDIATE")
        for k in keys:
            if state.get(k) is None or self.random.random() < 0.9:
                state[k] = f"{len(self.states)} " * self.random.choice([1, 1, 200])
                db.execute("INSERT OR REPLACE INTO item VALUES(?, ?)", (k, state[k]))
            else:
                del state[k]
                db.execute("DELETE FROM item WHERE k = ?", (k,))
        db.execute("UPDATE serial SET n = ?", (len(self.states),))
        self.states.append(state)
        db.execute("COMMIT")


class Published(threading.Thread):
    """Notes the checksum of each version before it is collected."""

    def __init__(self, dest: Path) -> None:
        super().__init__(daemon=True)
        self.dest = dest
        self.versions: dict[int, str] = {}
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.2):
            self.look()

    def look(self) -> None:
        for name in [*self._archived(), "HEAD"]:
            with suppress(FileNotFoundError):
                head = parse_head((self.dest / name).read_bytes())
                checksum = f"{head.checksum:032x}"
                assert self.versions.setdefault(head.version, checksum) == checksum

    def _archived(self) -> list[str]:
        with suppress(FileNotFoundError):
            names = [name for name in os.listdir(self.dest / "heads") if re.fullmatch(r"1-\d+", name)]
            return [f"heads/{name}" for name in names if int(name[2:]) not in self.versions]
        return []

    def has(self, checksum: str) -> bool:
        if checksum not in self.versions.values():
            self.look()
        return checksum in self.versions.values()


class Reader(threading.Thread):
    """Looks at a copy again and again, as any program would. `wrong` is what it found."""

    def __init__(self, copy: Path) -> None:
        super().__init__(daemon=True)
        self.copy = copy
        self.states: set[object] = set()
        self.wrong: str | None = None
        self.over = threading.Event()

    def run(self) -> None:
        try:
            while not self.over.wait(0.02):
                self.look()
        except BaseException as error:  # whatever it is, the test fails by it
            self.wrong = f"{self.copy.name}: {error!r}"


class FileReader(Reader):
    """Each file is whole, as it once was in the source, and never older than before."""

    def __init__(self, copy: Path, writer: FolderWriter) -> None:
        super().__init__(copy)
        self.writer = writer
        self.seen = dict.fromkeys(range(FILES), 0)

    def look(self) -> None:
        with suppress(OSError):  # something went, or turned into something else, between two calls
            self.check(tree(self.copy))

    def check(self, found: dict[str, tuple[str, bytes]]) -> None:
        for path, (form, content) in found.items():
            if form == "d":
                assert re.fullmatch(r"d\d(/f\d+)?", path), path
                continue
            n = int(re.fullmatch(r"d\d/f(\d+)(/in)?", path)[1])
            count = int(content.split()[0])
            assert content == b"%d " % count * content.count(b" "), path
            assert self.seen[n] <= count <= self.writer.counts[n], path
            self.seen[n] = count
        self.states.add(tuple(self.seen.values()))


class AtomicReader(FileReader):
    """Besides, all of it is one of the versions that were published."""

    def __init__(self, copy: Path, writer: FolderWriter, published: Published) -> None:
        super().__init__(copy, writer)
        self.published = published

    def look(self) -> None:
        if not self.copy.is_symlink():
            return
        generation = self.copy.resolve()
        try:
            found = tree(generation)
        except FileNotFoundError:
            assert self.copy.resolve() != generation  # an old one, which may go
            return
        if self.copy.resolve() == generation:  # else it may have begun to go
            self.check(found)
            if not self.published.has(checksum_of(found)):
                raise AssertionError(f"{generation.name} is none of the published versions")


def checksum_of(found: dict[str, tuple[str, bytes]]) -> str:
    values = [form.encode() + content for form, content in found.values()]
    return f"{run_sum([path.encode() for path in found], values):032x}"


class DatabaseReader(Reader):
    """Both tables are as one transaction of the source left them, and never older than before."""

    def __init__(self, copy: Path, writer: DatabaseWriter) -> None:
        super().__init__(copy)
        self.writer = writer
        self.serial = 0

    def look(self) -> None:
        if not self.copy.exists():
            return
        with closing(sqlite3.connect(f"file:{self.copy}?mode=rw", uri=True, isolation_level=None, timeout=60)) as db:
            db.execute("BEGIN")
            names = {name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
            if not self.serial and not {"item", "serial"} & names:
                return
            ((_, serial),) = db.execute("SELECT * FROM serial")
            assert dict(db.execute("SELECT k, v FROM item")) == self.writer.states[serial], serial
        assert serial >= self.serial
        self.serial = serial
        self.states.add(serial)


class Process:
    """One of the processes; it is killed when its time has come, and started again."""

    def __init__(self, name: str, command: list[object], log: Path) -> None:
        self.name, self.command, self.log = name, list(map(str, command)), log

    def start(self, seconds: float) -> None:
        """Start it; it is due to be killed in so many seconds."""
        self.begun = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.command], stdout=subprocess.DEVNULL, stderr=log, env=os.environ
            )
        self.due = time.monotonic() + seconds

    def said(self) -> str:
        return self.log.read_bytes()[self.begun :].decode()

    def hurry(self) -> None:
        """Let a follower poll now; before it says that it follows, the signal would end it."""
        if "follows" in self.said():
            self.process.send_signal(signal.SIGHUP)

    def kill(self) -> None:
        assert self.process.poll() is None, f"{self.name} ended by itself: {self.said()}"
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(30) == 0, f"{self.name}: {self.said()}"


class Copies:
    """What is followed where, and what has to be true of each copy whenever its follower was killed."""

    def __init__(self, base: Path, url: str, published: dict[str, Published]) -> None:
        self.base, self.published = base, published
        self.told = base / "told"
        self.paths = {"plain": base / "plain", "atomic": base / "atomic", "database": base / "copy.db"}
        self.dataset = {"plain": "files", "atomic": "files", "database": "shop"}
        options: dict[str, list[object]] = {
            "plain": [],
            "atomic": ["--atomic"],
            "database": ["--exec", f"echo $HEADWATER_VERSION >> {self.told}"],
        }
        self.followers = [
            Process(
                name,
                ["-m", "puller.cli", "follow", "--interval", "1s", *options[name], f"{url}/{self.dataset[name]}", path],
                base / f"{name}.log",
            )
            for name, path in self.paths.items()
        ]

    def check(self, name: str) -> None:
        """What a killed follower left is a published version, once it was opened, and whole."""
        if not os.path.lexists(self.paths[name]):
            return
        target = open_target(str(self.paths[name]), atomic=name == "atomic")
        try:
            state = target.state()
            if state is not None:
                assert self.published[self.dataset[name]].has(state.checksum), name
                assert target.check().equals(state), name
        finally:
            target.close()


def whole(dest: Path) -> None:
    """HEAD names nothing that is missing or damaged."""
    while True:
        head = read_head(str(dest))
        try:
            state_of(str(dest), head)
            return
        except HeadwaterError:
            if read_head(str(dest)) == head:
                raise


def rows_of(path: Path) -> tuple[list, list] | None:
    """What both tables hold; None where they are not there yet."""
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=60)) as db:
            return db.execute("SELECT * FROM serial").fetchall(), db.execute("SELECT * FROM item ORDER BY k").fetchall()
    except sqlite3.OperationalError:
        return None


@pytest.mark.parametrize("seconds", [1, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_any_moment_nobody_ever_sees_a_wrong_state(tmp_path, nginx, seconds):
    seed = int(os.environ.get("KILLS_SEED") or random.SystemRandom().randrange(10**6))
    print(f"KILLS_SEED={seed}")
    r = random.Random(seed)

    def life() -> float:
        return r.uniform(0.2, min(6.0, seconds + 1))

    folder, shop = FolderWriter(tmp_path / "s", seed), DatabaseWriter(tmp_path / "shop.db", seed)
    publisher("track", shop.path)
    published = {name: Published(nginx.root / name) for name in ("files", "shop")}
    dests = [one.dest for one in published.values()]
    (tmp_path / "watch.toml").write_text(
        'settle = 0.05\nrescan = "2s"\nkeep = "6s"\n'
        f'[[watch]]\nsource = "{folder.folder}"\ndest = "{dests[0]}"\n'
        f'[[watch]]\nsource = "{shop.path}"\ndest = "{dests[1]}"\n'
    )
    copies = Copies(tmp_path, nginx.url, published)
    readers = [
        FileReader(copies.paths["plain"], folder),
        AtomicReader(copies.paths["atomic"], folder, published["files"]),
        DatabaseReader(copies.paths["database"], shop),
    ]
    watcher = Process("watcher", ["-c", WATCH, "watch", "--config", tmp_path / "watch.toml"], tmp_path / "watch.log")
    collector = Process("collector", ["-c", COLLECT, *dests], tmp_path / "gc.log")
    processes = [watcher, collector, *copies.followers]
    threads = [folder, shop, *published.values(), *readers]
    kills: Counter[str] = Counter()
    for thread in threads:
        thread.start()
    try:
        watcher.start(life())
        until(lambda: all((dest / "HEAD").exists() for dest in dests))
        for process in processes[1:]:
            process.start(life())
        end = time.monotonic() + seconds
        while time.monotonic() < end or len(kills) < len(processes):
            victim = min(processes, key=lambda process: process.due)
            while time.monotonic() < victim.due:
                time.sleep(0.1)
                r.choice(copies.followers).hurry()
            if victim in copies.followers:
                victim.hurry()
                time.sleep(r.uniform(0, 0.2))
            victim.kill()
            kills[victim.name] += 1
            if victim in copies.followers and r.random() < 0.5:
                copies.check(victim.name)
            elif r.random() < 0.5:
                whole(r.choice(dests))
            victim.start(life())
            assert [reader.wrong for reader in readers if reader.wrong] == []
        for thread in (folder, shop):
            thread.over.set()
            thread.join()
        left, rows = tree(folder.folder), rows_of(shop.path)
        assert rows is not None
        for name in ("plain", "atomic"):
            until(lambda name=name: follows(copies.paths[name], left), 60)
        until(lambda: rows_of(copies.paths["database"]) == rows, 60)
        until(lambda: copies.told.exists() and copies.told.read_text().split()[-1:] == [newest(dests[1])], 60)
        for process in [watcher, *copies.followers]:
            process.stop()
    finally:
        for thread in threads:
            thread.over.set()
        for process in processes:
            with suppress(AttributeError):
                process.process.kill()
                process.process.wait()
    for thread in threads:
        thread.join()
    assert [reader.wrong for reader in readers if reader.wrong] == []
    for dest in dests:
        assert publisher("fsck", dest).status == 0
    for path in copies.paths.values():
        assert puller("verify", path).status == 0
    versions = list(map(int, copies.told.read_text().split()))
    assert versions == sorted(versions)
    for process in processes:
        assert "Traceback" not in process.log.read_text()
    print(kills, [len(reader.states) for reader in readers])
    if seconds > 30:
        for one in published.values():
            assert sorted(one.versions) == list(range(1, max(one.versions) + 1))  # none escaped us
            assert len(list((one.dest / "heads").iterdir())) < max(one.versions) - 1  # some expired
        assert min(len(reader.states) for reader in readers) > 5


def newest(dest: Path) -> str:
    return str(read_head(str(dest)).version)


def follows(copy: Path, left: dict[str, tuple[str, bytes]]) -> bool:
    with suppress(OSError):
        return tree(copy.resolve()) == left
    return False
