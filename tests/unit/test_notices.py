"""By what signs a source may have changed, with clocks that are handed in."""

from __future__ import annotations

import os

import pytest

from publisher.watch.events import FolderEvents
from publisher.watch.notices import FilePolls, FolderPolls, Lost, SourceNotices
from tests.watching import until


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_a_polled_folder_is_held_against_what_it_was_from_the_beginning(tmp_path):
    clock = Clock()
    (tmp_path / "a").write_text("1")
    polls = FolderPolls(str(tmp_path), 10.0, clock)
    (tmp_path / "b").write_text("2")
    (tmp_path / "a").unlink()
    assert polls.look() is None  # it is not time yet
    clock.now = 10.0
    assert polls.look() == (10.0, {b"a", b"b"})
    os.utime(tmp_path / "b", ns=(10**18, 10**18))
    clock.now = 20.0
    assert polls.look() == (20.0, {b"b"})
    clock.now = 30.0
    assert polls.look() is None
    os.rmdir(os.rename(tmp_path, f"{tmp_path}-away") or os.mkdir(tmp_path) or tmp_path)
    clock.now = 40.0
    with pytest.raises(Lost):
        polls.look()


def test_a_file_that_was_just_written_is_noticed_once_more(tmp_path):
    """A second write in the same tick of the kernel's clock may leave no trace."""
    path, clock, now = tmp_path / "rows.jsonl", Clock(), Clock()
    path.write_text("1")
    os.utime(path, ns=(0, 1_000_000_500_000_000))
    status = os.stat(path)
    now.now = max(status.st_mtime_ns, status.st_ctime_ns) / 1e9 + 0.05
    polls = FilePolls(str(path), clock, now=now)
    assert polls.look() is None
    now.now += 0.1
    assert polls.look() == (0.0, None)
    assert polls.look() is None
    (tmp_path / "rows.jsonl-wal").write_text("the log of a database")
    assert polls.look() == (0.0, None)
    os.chmod(tmp_path / "rows.jsonl-wal", 0o600)
    now.now += 10
    polls.look()
    os.chmod(tmp_path / "rows.jsonl-wal", 0o640)  # as SQLite sets its owner, for root
    assert polls.look() is None


def test_more_events_than_are_held_mean_everything(tmp_path, monkeypatch):
    monkeypatch.setattr("publisher.watch.events.MOST", 10)
    events = FolderEvents(str(tmp_path), Clock())
    try:
        (tmp_path / "a").write_text("1")
        seen = set()
        until(lambda: (found := events.look()) and not seen.update(found.paths) and b"a" in seen)
        for n in range(20):
            (tmp_path / f"f{n}").write_text("1")
        until(lambda: (found := events.look()) and found.paths is None)
    finally:
        events.close()


def test_a_folder_without_events_is_polled_and_that_is_said_once(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr("watchdog.observers.inotify_c.InotifyFD.add_callback", fail)
    said = []
    notices = SourceNotices(str(tmp_path), None, said.append)
    try:
        assert notices.look().paths is None
        assert isinstance(notices._inner, FolderPolls)
        assert len(said) == 1
        assert "inotify watch limit reached (fs.inotify.max_user_watches may be too low)" in said[0]
        notices._begin(notices._what)
        assert len(said) == 1
    finally:
        notices.close()
