"""What is said to `publisher` of settings and sources is kept, or refused without a trace: settings, first publishes, jobs."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from puller.follow.hooks import Event, HookFailed, WebHook
from tests.conftest import publisher, puller
from tests.states import read_head
from tests.watching import Watching, until

DAY = 86400


@pytest.fixture
def folder(tmp_path):
    """A source with one file, published to `d`."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a").write_text("a")
    publisher("publish", tmp_path / "s", tmp_path / "d")
    return tmp_path


def test_settings_are_kept_though_nothing_is_new(folder):
    before = read_head(str(folder / "d"))
    puller("pull", folder / "d", folder / "c")
    dry = publisher("publish", "--dry-run", folder / "s", folder / "d", "--keep", "5d")
    assert "would be changed" in dry.out
    assert read_head(str(folder / "d")) == before
    done = publisher("publish", folder / "s", folder / "d", "--keep", "5d", "--interval", "9s")
    assert "stays at version 1; the settings were changed to --interval 9s and --keep 5d" in done.out
    head = read_head(str(folder / "d"))
    assert (head.version, head.publish_id, head.keep, head.interval) == (1, before.publish_id, 5 * DAY, 9)
    data = (folder / "d/HEAD").read_bytes()
    again = publisher("publish", "--json", folder / "s", folder / "d", "--keep", "5d", "--interval", "9s").json
    assert not again["settings_changed"]
    assert (folder / "d/HEAD").read_bytes() == data
    assert puller("pull", folder / "d", folder / "c").status == 0
    assert publisher("fsck", folder / "d").status == 0


def test_settings_of_an_encrypted_dataset_are_kept(folder):
    publisher("publish", folder / "s", folder / "e", "--encrypt")
    publisher("publish", folder / "s", folder / "e", "--keep", "5d")
    assert read_head(str(folder / "e")).keep == 5 * DAY
    puller("pull", folder / "e", folder / "c")
    assert (folder / "c/a").read_text() == "a"


def test_a_watch_keeps_settings_too(folder):
    with Watching(folder / "s", folder / "d", "--settle", "0.05", "--keep", "5d") as watching:
        until(lambda: watching.version == 1)
    assert "settings were changed" in watching.log
    assert read_head(str(folder / "d")).keep == 5 * DAY


def test_a_refused_first_publish_leaves_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "head.csv").write_text("id,name\n")
    with closing(sqlite3.connect(tmp_path / "view.db")) as db:
        db.execute("CREATE VIEW one AS SELECT 1 AS id")
    for source in (["empty"], ["head.csv", "--key", "id"], ["view.db"]):
        done = publisher("publish", tmp_path / source[0], tmp_path / "d", *source[1:], check=3)
        assert "nothing was published" in done.err
        assert not (tmp_path / "d").exists()
    assert "one (it is a view" in done.err
    assert publisher("publish", tmp_path / "head.csv", tmp_path / "d", "--key", "id", "--allow-shrink").status == 0


def test_every_command_has_the_same_bound_for_keep(folder):
    for command in (
        ["publish", folder / "s", folder / "d", "--keep", "23h"],
        ["publish", folder / "s", folder / "new", "--keep", "23h"],
        ["watch", folder / "s", folder / "d", "--keep", "23h"],
        ["gc", folder / "d", "--keep", "23h"],
    ):
        assert "keep versions for at least 24 hours" in publisher(*command, check=2).err
    assert not (folder / "new").exists()


@pytest.mark.parametrize(("one", "other"), [("{0}/d", "file://{0}/x/../d/"), ("s3://b/p", "s3://b//p/")])
def test_two_watches_of_one_destination_are_refused(folder, one, other):
    config = folder / "watch.toml"
    config.write_text(
        "".join(
            f'[[watch]]\nsource = "{folder}/{name}"\ndest = "{dest.format(folder)}"\n'
            for name, dest in (("s", one), ("t", other))
        )
    )
    err = publisher("watch", "--config", config, check=2).err
    assert f"[[watch]] 1 ({folder}/s -> " in err
    assert f"[[watch]] 2 ({folder}/t -> " in err
    assert "the same dest" in err


def test_what_is_left_out_at_the_top_of_a_folder_is_named(folder):
    (folder / "s/.headwater").mkdir()
    (folder / "s/.headwater/notes").write_text("mine")
    done = publisher("publish", folder / "s", folder / "d")
    assert "skipped .headwater: a path lies in .headwater" in done.err
    assert "--strict" in publisher("publish", "--strict", folder / "s", folder / "e", check=3).err


def test_a_watch_that_finds_nothing_new_says_so(folder):
    with Watching(folder / "s", folder / "d", "--settle", "0.05") as watching:
        until(lambda: watching.version == 1)
    assert f"watches {folder}/s, publishes to {folder}/d: nothing new since version 1" in watching.log


def test_messages_say_what_did_not_happen(folder):
    assert "nothing was changed" in publisher("track", folder / "none.db", check=1).err
    (file,) = (folder / "d/chunks").rglob("*.zst")
    file.write_bytes(b"no longer")
    err = publisher("fsck", folder / "d", check=5).err
    assert err.count(f"{file.relative_to(folder / 'd')}") == 1
    event = Event("d", "files", "u", "t", (1, 1), None, None)
    with pytest.raises(HookFailed, match=r"cannot be reached \(connection refused\)"):
        WebHook("http://127.0.0.1:1/").tell(event, lambda: None)
