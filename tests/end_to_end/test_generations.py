"""Folders that are switched as a whole: what is shared, what stays for readers, ways in and out, and local edits."""

from __future__ import annotations

import errno
import os
import re

import pytest

from puller import Replica
from puller.targets import generations
from tests.conftest import publisher, puller, tree
from tests.plain import publish_records

V1 = {b"a": b"fone", b"dir/b": b"xstays", b"dir/link": b"lb", b"empty": b"d"}
V2 = V1 | {b"a": b"ftwo"}


@pytest.fixture
def data(tmp_path):
    publish_records(tmp_path / "data", "files", V1)
    return tmp_path / "data"


def advance(data, records, time):
    publish_records(data, "files", records, time)


def folders(target):
    home = target.parent / f".{target.name}.headwater"
    return sorted(name for name in os.listdir(home) if name != "lock") if home.exists() else []


def test_only_what_changes_is_written_and_the_link_moves_at_once(data, tmp_path):
    target = tmp_path / "site"
    puller("pull", "--atomic", data, target)
    assert os.readlink(target) == ".site.headwater/000001-v1"
    before = os.open(target, os.O_RDONLY)  # a program that reads several files of one version does so
    stays = (target / "dir/b").stat()
    advance(data, V2, 2000)
    puller("pull", data, target)  # it stays what it is
    assert os.readlink(target) == ".site.headwater/000002-v2"
    assert (target / "a").read_text() == "two"
    assert (target / "dir/b").stat().st_ino == stays.st_ino
    assert (target / "dir/b").stat().st_nlink == 2
    with open(os.open("a", os.O_RDONLY, dir_fd=before)) as file:
        assert file.read() == "one"
    os.close(before)
    assert tree(target) == {
        "a": ("f", b"two"),
        "dir/b": ("x", b"stays"),
        "dir/link": ("l", b"b"),
        "empty": ("d", b""),
    }
    assert puller("status", "--json", target).json["version"] == 2
    puller("verify", target)


@pytest.mark.slow
def test_a_number_of_old_generations_is_kept(data, tmp_path):
    target = tmp_path / "site"
    for version in range(1, 6):
        advance(data, V1 | {b"a": b"f%d" % version}, 1000 + version)
        puller("pull", "--atomic", data, target)
    assert folders(target) == ["000003-v4", "000004-v5", "000005-v6"]
    puller("pull", "--version", 4, "--keep-generations", 0, data, target)
    assert folders(target) == ["000006-v4"]
    assert (target / "a").read_text() == "3"
    assert puller("pull", "--json", data, target).json["to"]["version"] == 6


def test_a_view_keeps_its_generation(data, tmp_path):
    target = tmp_path / "site"
    puller("pull", "--atomic", data, target)
    with Replica(str(data), str(target)) as replica:
        with replica.view() as view:
            for version in (2, 3):
                advance(data, V1 | {b"a": b"f%d" % version}, 1000 + version)
                puller("pull", "--keep-generations", 0, data, target)
            assert view["a"].content == b"one"
            assert replica["a"].content == b"3"
        advance(data, V1 | {b"a": b"f4"}, 2000)
        told = []
        replica.pull(told.append)
        assert [(change.key, change.old.content, change.new.content) for change in told] == [("a", b"3", b"4")]
    puller("pull", "--keep-generations", 0, "--overwrite", data, target)
    assert len(folders(target)) <= 3


def test_an_edit_in_place_is_found_and_repaired_in_a_new_generation(data, tmp_path):
    target = tmp_path / "site"
    puller("pull", "--atomic", data, target)
    advance(data, V2, 2000)
    puller("pull", data, target)
    shared = target / "dir/b"
    assert shared.stat().st_mode & 0o777 == 0o555 & ~umask()
    shared.chmod(0o755)
    with shared.open("r+b") as file:
        file.write(b"EDIT")
    found = puller("verify", "--json", target, check=6).json
    assert found["differing"] == ["dir/b"]
    old = target.parent / ".site.headwater/000001-v1/dir/b"
    assert old.read_bytes() == b"EDITs"  # it is the same file: this is why they are read-only
    repaired = puller("verify", "--repair", "--json", target).json
    assert repaired["repaired"]["written"] == 1
    assert shared.read_bytes() == b"stays"
    puller("verify", target)


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_plain_folder_becomes_one_and_back(data, tmp_path):
    target = tmp_path / "site"
    puller("pull", data, target)
    (target / "mine").write_text("mine")
    inode = target.stat().st_ino
    puller("pull", "--dry-run", "--atomic", data, target)
    assert not target.is_symlink()
    puller("pull", "--atomic", data, target)  # nothing new, yet it is switched as a whole from now on
    assert os.readlink(target) == ".site.headwater/000001-v1"
    assert target.stat().st_ino == inode
    advance(data, V2, 2000)
    puller("pull", data, target)
    assert folders(target) == ["000001-v1", "000002-v2"]
    assert (target / "mine").read_text() == "mine"
    assert puller("pull", "--no-atomic", "--json", data, target).json["changed"] is False
    assert not target.is_symlink()
    assert folders(target) == []
    assert (target / "mine").read_text() == "mine"
    puller("verify", target)
    advance(data, V1, 3000)
    puller("pull", data, target)
    assert (target / "a").read_text() == "one"
    assert not target.is_symlink()


@pytest.mark.slow
def test_folders_of_others_are_refused_or_taken_over_as_a_whole(data, tmp_path):
    target, other = tmp_path / "site", tmp_path / "other"
    target.mkdir()
    puller("pull", "--atomic", data, target)  # an empty one is no obstacle
    assert target.is_symlink()
    other.mkdir()
    (other / "a").write_text("theirs")
    (other / "mine").write_text("mine")
    assert "--adopt" in puller("pull", "--atomic", data, other, check=3).err
    assert not other.is_symlink()
    assert folders(other) == []
    puller("pull", "--atomic", "--adopt", data, other)
    assert (other / "a").read_text() == "one"
    assert (other / "mine").read_text() == "mine"
    assert folders(other) == ["000001-v1"]


def test_where_no_link_can_be_made_the_folder_is_updated_in_place(data, tmp_path, monkeypatch):
    theirs = tmp_path / "theirs"
    (tmp_path / "real").mkdir()
    theirs.symlink_to("real")
    done = puller("pull", "--atomic", data, theirs)
    assert "in place, file by file: it is a symbolic link of somebody else's" in done.err
    assert (tmp_path / "real/a").read_text() == "one"
    assert generations.why_not(str(tmp_path / "new")) is None
    assert "mounted" in generations.why_not("/proc")

    def refuse(*_):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "symlink", refuse)
    assert re.search("no symbolic link can be made in .*: Operation", generations.why_not(str(tmp_path / "new")))


@pytest.mark.slow
def test_what_cannot_be_linked_is_copied(data, tmp_path, monkeypatch):
    target = tmp_path / "site"
    puller("pull", "--atomic", data, target)
    advance(data, V2, 2000)

    def refuse(*_, **options):
        raise OSError(errno.EMLINK, "Too many links")

    monkeypatch.setattr(os, "link", refuse)
    with Replica(str(data), str(target)) as replica:
        replica.pull()
    monkeypatch.undo()
    assert (target / "dir/b").stat().st_nlink == 1
    puller("verify", target)
    assert tree(target)["dir/b"] == ("x", b"stays")


@pytest.mark.slow
def test_a_link_that_was_moved_stays_what_it_is(data, tmp_path):
    target, moved = tmp_path / "site", tmp_path / "moved"
    puller("pull", "--atomic", data, target)
    target.rename(moved)
    advance(data, V2, 2000)
    puller("pull", data, moved)
    assert os.readlink(moved) == ".site.headwater/000002-v2"
    puller("pull", "--atomic", "--keep-generations", 0, data, target)  # another one beside it leaves it its folder
    puller("verify", moved)
    puller("verify", target)


def test_atomic_is_for_folders(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"k": 1}\n')
    publisher("publish", rows, tmp_path / "rows", "--key", "k")
    assert "--atomic is for folders" in puller("pull", "--atomic", tmp_path / "rows", tmp_path / "x.db", check=2).err
