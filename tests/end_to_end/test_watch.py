"""`publisher watch`: what changes is published, whatever happens to the source and to the store."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing

import pytest

from publisher.sources.folder import FolderSource
from publisher.watch import schedule
from publisher.watch import watcher as watcher_module
from publisher.watch.events import FolderEvents
from tests.conftest import publisher, puller, tree
from tests.states import read_head, state_of
from tests.watching import Watching, until, watching_process

QUICK = "--settle", "0.05"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    """What is away is away for a moment only."""
    monkeypatch.setattr(schedule, "FIRST_PAUSE", 0.1)


@pytest.fixture
def folder(tmp_path):
    """A source with a few files."""
    source = tmp_path / "s"
    source.mkdir()
    for n in range(8):
        (source / f"f{n}").write_text(f"content {n}")
    return source


@pytest.fixture
def dest(tmp_path):
    return tmp_path / "d"


def state(dest):
    """The files that are published, by path."""
    return {key.decode(): value[1:].decode() for key, value in state_of(str(dest)).items()}


def test_a_process_publishes_what_changes_and_stops_when_told(folder, dest, tmp_path):
    metrics = tmp_path / "watch.prom"
    with watching_process(
        folder, dest, "--settle", "0.2", "--metrics-file", metrics, "--log-format", "json"
    ) as process:
        lines = map(json.loads, process.stderr)
        assert next(lines)["event"] == "published"
        (folder / "new").mkdir()
        (folder / "new/file").write_text("x")
        (folder / "f1").unlink()
        second = next(lines)
        assert (second["event"], second["version"], second["added"], second["deleted"]) == ("published", 2, 1, 1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert next(lines)["message"] == "stopped"
    assert 'headwater_publishes_total{job="' in metrics.read_text()
    assert state(dest)["new/file"] == "x"
    puller("pull", dest, tmp_path / "copy")
    assert tree(tmp_path / "copy") == tree(folder)
    cold = publisher("publish", "--json", folder, dest).json
    assert not cold["changed"]


def test_only_what_changed_is_looked_at(folder, dest, monkeypatch):
    walks = []
    with Watching(folder, dest, *QUICK) as watching:
        watching.published(1)
        watching.rested()
        from publisher.sources.scan import Scan

        monkeypatch.setattr(Scan, "all", lambda self, _real=Scan.all: walks.append(1) or _real(self))
        for n in range(2, 6):
            (folder / f"f{n}").write_text("changed")
            watching.published(n)
        (folder / "f6").chmod(0o755)
        watching.published(6)
        (folder / "f7").rename(folder / "moved")
        watching.published(7)
    assert walks == []
    assert state(dest)["moved"] == "content 7"
    assert watching.metric("failures_total") == 0


@pytest.mark.parametrize("mode", [pytest.param("delete", marks=pytest.mark.slow), "wal"])
def test_a_database_is_published_when_somebody_commits(tmp_path, dest, mode):
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode={mode}")
        db.execute("CREATE TABLE stock(sku TEXT PRIMARY KEY, n INT)")
        db.execute("INSERT INTO stock VALUES('a1', 3), ('b2', 7)")
        with Watching(path, dest, *QUICK) as watching:
            watching.published(1)
            db.execute("UPDATE stock SET n = 4 WHERE sku = 'a1'")
            watching.published(2)
            publisher("track", path)
            watching.rested()
            before = watching.version
            db.execute("INSERT INTO stock VALUES('c3', 1)")
            until(lambda: watching.version > before)
            watching.still()  # what it notes in the database itself, and SQLite beside it, does not keep it busy
            db.execute("DELETE FROM stock WHERE sku = 'b2'")
            db.execute("VACUUM INTO ?", (str(tmp_path / "other.db"),))
            db.execute("INSERT INTO stock VALUES('d4', 1)")
            watching.still()
            db.close()
            watching.still()
            assert not os.path.exists(f"{path}-wal")  # no log of it stays because it is watched
            before = watching.version
            os.replace(tmp_path / "other.db", path)
            until(lambda: watching.version > before)
            watching.still()
    assert puller("pull", dest, tmp_path / "c.jsonl").status == 0
    assert [json.loads(line)["sku"] for line in (tmp_path / "c.jsonl").read_text().splitlines()] == ["a1", "c3"]


def test_rows_of_a_file_that_an_editor_replaces(tmp_path, dest):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"k":1}\n{"k":2}\n')
    with Watching(path, dest, "--key", "k", *QUICK) as watching:
        watching.published(1)
        with path.open("a") as file:
            file.write('{"k":3}\n')
        watching.published(2)
        (tmp_path / "temporary").write_text('{"k":1,"v":"new"}\n{"k":2}\n{"k":3}\n')
        os.replace(tmp_path / "temporary", path)
        watching.published(3)
    assert read_head(str(dest)).records == 4


def test_a_source_that_is_replaced(folder, dest, tmp_path):
    """Moved away and back, deleted and made again, and behind a link that is switched."""
    link = tmp_path / "current"
    link.symlink_to(folder)
    with Watching(link, dest, *QUICK, jitter=lambda: 0.0) as watching:
        watching.published(1)
        shutil.copytree(folder, tmp_path / "next")
        (tmp_path / "next/f0").write_text("next")
        (tmp_path / "link").symlink_to(tmp_path / "next")
        os.replace(tmp_path / "link", link)
        watching.published(2)
        folder = tmp_path / "next"
        (folder / "f1").write_text("noticed in the new place")
        watching.published(3)
        folder.rename(tmp_path / "away")
        until(lambda: watching.metric("failures_total"))
        shutil.copytree(tmp_path / "away", folder)
        (folder / "f2").write_text("made again")
        watching.published(4)
        kept = tree(folder)
        shutil.rmtree(folder)
        folder.mkdir()
        for path, (_, content) in kept.items():
            (folder / path).write_bytes(content)
        (folder / "f3").write_text("made in its place")
        watching.published(5)
        (folder / "f4").write_text("noticed as before")
        watching.published(6)
    assert watching.log.count("there is no") <= 3
    assert tree(folder) == {name: ("f", text.encode()) for name, text in state(dest).items()}


def test_a_source_that_appears_later(tmp_path, dest):
    with Watching(tmp_path / "s", dest, *QUICK, jitter=lambda: 0.0) as watching:
        until(lambda: watching.metric("failures_total") >= 2)
        (tmp_path / "s").mkdir()
        (tmp_path / "s/a").write_text("1")
        watching.published(1)
    told = [line for line in watching.log.splitlines() if "warning" in line]
    assert len(told) == 1  # reported once
    assert "there is no" in told[0]


def test_a_source_that_shrank_is_refused_and_tried_again_when_it_changes(folder, dest):
    with Watching(folder, dest, *QUICK) as watching:
        watching.published(1)
        for n in range(6):
            (folder / f"f{n}").unlink()
        until(lambda: watching.metric("failures_total"))
        assert "lacks 6 of the 8 records" in "".join(watching.watcher.job.problems())
        time.sleep(0.6)
        assert watching.metric("attempts_total") <= 3
        for n in range(3):
            (folder / f"f{n}").write_text("back")
        watching.published(2)
        assert watching.watcher.job.problems() == []
    assert watching.log.count("warning: ") == 1


def test_a_store_that_is_away_loses_nothing(folder, dest, tmp_path):
    """Also where an empty folder lies in its place, as when nothing is mounted: no second history begins."""
    with Watching(folder, dest, *QUICK, jitter=lambda: 0.0) as watching:
        watching.published(1)
        dest.rename(tmp_path / "away")
        dest.mkdir()
        (folder / "f1").write_text("while it is away")
        until(lambda: watching.metric("failures_total") >= 2)
        (folder / "f2").write_text("and later")
        assert list(dest.iterdir()) == []
        assert watching.log.count("warning: ") == 1
        dest.rmdir()
        (tmp_path / "away").rename(dest)
        watching.published(2)
        assert watching.watcher.job.failure is None
    assert (state(dest)["f1"], state(dest)["f2"]) == ("while it is away", "and later")


@pytest.mark.slow
def test_a_bucket_that_is_away_loses_nothing(folder, bucket):
    with Watching(folder, bucket.url + "/x", *QUICK, jitter=lambda: 0.0) as watching:
        until(lambda: watching.version == 1)
        bucket.proxy.fate = lambda request: "refuse" if request.method == "PUT" else "drop"
        (folder / "f1").write_text("while it is away")
        until(lambda: watching.metric("failures_total"))
        bucket.proxy.fate = lambda request: "pass"
        until(lambda: watching.version == 2)
        assert watching.metric("publishes_total") == 2


def test_events_that_were_lost_are_survived(folder, dest, monkeypatch):
    """The kernel says that its queue was full: everything is looked at, and folders are watched that nothing told of."""
    from watchdog.observers.inotify_c import InotifyConstants, InotifyEvent

    with Watching(folder, dest, *QUICK) as watching:
        watching.published(1)
        watching.rested()
        with monkeypatch.context() as patch:
            patch.setattr(FolderEvents, "_changed", lambda *_: None)
            (folder / "unheard").mkdir()
            (folder / "unheard/file").write_text("1")
            time.sleep(0.3)
            assert watching.version == 1
        events = watching.notices._inner
        events._observer._descriptor.handle_event(InotifyEvent(-1, InotifyConstants.IN_Q_OVERFLOW, 0, b""))
        watching.published(2)
        (folder / "unheard/file").write_text("2, and this is heard")
        watching.published(3)
    assert state(dest)["unheard/file"] == "2, and this is heard"


@pytest.mark.parametrize("how", [pytest.param(("--rescan", "1s"), marks=pytest.mark.slow), ("--every", "0.3")])
def test_what_nothing_told_of_is_found_by_looking_at_everything(folder, dest, monkeypatch, how):
    monkeypatch.setattr(FolderEvents, "_changed", lambda *_: None)
    with Watching(folder, dest, *QUICK, *how) as watching:
        watching.published(1)
        (folder / "f1").write_text("unheard")
        watching.published(2)
    assert state(dest)["f1"] == "unheard"


def test_polling_where_there_are_no_events(folder, dest, monkeypatch):
    monkeypatch.setattr(FolderEvents, "__init__", None)
    with Watching(folder, dest, *QUICK, "--poll", "0.1") as watching:
        watching.published(1)
        (folder / "f1").write_text("seen")
        watching.published(2)
        (folder / "f2").unlink()
        (folder / "deep/er").mkdir(parents=True)
        watching.published(3)
    assert "f2" not in state(dest)
    assert state(dest)["deep/er"] == ""


def test_head_is_signed_again_before_it_expires(folder, dest):
    publisher("publish", folder, dest)
    publisher("refresh", dest, "--expires-in", "1h")
    first = read_head(str(dest))
    ahead = [0.0]
    with Watching(folder, dest, *QUICK, now=lambda: time.time() + ahead[0]) as watching:
        watching.rested()
        time.sleep(0.2)
        assert read_head(str(dest)) == first
        ahead[0] = 2000.0
        until(lambda: read_head(str(dest)).expires > first.expires)
    second = read_head(str(dest))
    assert (second.version, second.expires - second.time) == (1, 3600)
    assert watching.metric("refreshes_total") == 1


def test_garbage_is_collected_whatever_comes_of_it(folder, dest, monkeypatch):
    monkeypatch.setattr(watcher_module, "COLLECT_EVERY", 0.2)
    with Watching(folder, dest, *QUICK, "--keep", "2d") as watching:
        watching.published(1)
        until(lambda: watching.metric("collections_total") >= 2)
        monkeypatch.setattr("publisher.gc.collect", lambda *_, **__: 1 / 0)
        (folder / "f1").write_text("changed")
        watching.published(2)
        until(lambda: watching.metric("collections_failed_total"))
        (folder / "f2").write_text("changed")
        watching.published(3)
        assert watching.watcher.job.problems() == []


def test_a_fault_of_ours_stops_nobody(folder, dest, monkeypatch):
    with Watching(folder, dest, *QUICK, jitter=lambda: 0.0) as watching:
        watching.published(1)
        with monkeypatch.context() as patch:
            patch.setattr(watcher_module, "publish", lambda *_, **__: 1 / 0)
            (folder / "f1").write_text("changed")
            until(lambda: watching.metric("failures_total"))
        watching.published(2)
    assert "ZeroDivisionError" in watching.log


def test_stopping_while_a_source_is_read(folder, dest, monkeypatch):
    """Nothing was published, and nothing is."""
    with Watching(folder, dest, *QUICK) as watching:
        watching.published(1)
        head = (dest / "HEAD").read_bytes()
        read, job = FolderSource._file, watching.watcher.job
        monkeypatch.setattr(FolderSource, "_file", lambda self, path: job.stop() or read(self, path))
        (folder / "f1").write_text("changed")
        until(lambda: not watching._thread.is_alive())
    assert (dest / "HEAD").read_bytes() == head


def test_several_sources_one_of_which_fails(folder, tmp_path):
    config = tmp_path / "watch.toml"
    config.write_text(
        f'settle = 0.05\n[[watch]]\nsource = "{folder}"\ndest = "{tmp_path}/d1"\n'
        f'[[watch]]\nsource = "{tmp_path}/rows.txt"\ndest = "{tmp_path}/d2"\nkey = "k"\n'
    )
    (tmp_path / "rows.txt").write_text('{"k": 1}\n')
    with watching_process("--config", config, "--log-format", "json") as process:
        lines = [json.loads(process.stderr.readline()) for _ in range(2)]
        assert {line["event"] for line in lines} == {"published", "gave up"}
        assert "cannot tell what this is" in next(line["message"] for line in lines if line["event"] == "gave up")
        (folder / "f1").write_text("goes on")
        assert json.loads(process.stderr.readline())["version"] == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 2


def test_what_cannot_work_is_said_at_once(folder, tmp_path):
    config = tmp_path / "watch.toml"
    config.write_text(f'[[watch]]\nsource = "{folder}"\ndest = "{tmp_path}/d"\nsettel = 1\n')
    assert "'settel' is no setting here; did you mean settle?" in publisher("watch", "--config", config, check=2).err
    assert "SOURCE and DEST" in publisher("watch", check=2).err
    assert "standard input" in publisher("watch", "-", tmp_path / "d", check=2).err
    assert "exclude each other" in publisher("watch", folder, tmp_path / "d", "--every", 1, "--poll", 1, check=2).err
    assert "say how often" in publisher("watch", "postgresql://db/shop", tmp_path / "d", check=2).err
    assert "lie one in the other" in publisher("watch", folder, folder / "d", check=2).err
    (tmp_path / "rows.jsonl").write_text('{"k": 1}\n')
    assert "--key" in publisher("watch", tmp_path / "rows.jsonl", tmp_path / "d", check=2).err


@pytest.mark.parametrize("count", [800, pytest.param(100_000, marks=pytest.mark.slow)])
def test_many_files_at_once_are_published_once_each(tmp_path, dest, count):
    source = tmp_path / "s"
    source.mkdir()
    (source / "first").write_text("first")
    with Watching(source, dest, "--settle", "0.2") as watching:
        watching.published(1)
        for n in range(count):
            if n % 100 == 0:
                (source / f"d{n}").mkdir()
            (source / f"d{n - n % 100}/{n}").write_text(str(n))
        until(lambda: watching.metric("changes_total") >= count + 1, 120)
        watching.still(patience=120)
        assert watching.metric("changes_total") == count + 1  # none twice
    assert len(tree(source)) == count + 1
    assert state(dest) == {name: content.decode() for name, (_, content) in tree(source).items()}
