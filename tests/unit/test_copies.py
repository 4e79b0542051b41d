"""What is kept of a bucket on this machine: whole, bounded, and bound to what it was read with."""

from __future__ import annotations

import hashlib
import os

import pytest

from publisher.copies import Copies
from puller.stores.ahead import Ahead
from puller.stores.folder import FolderStore


def name_of(data: bytes, area: str = "diffs") -> str:
    digest = hashlib.sha256(data).hexdigest()
    return f"{area}/{digest[:2]}/{digest}.zst"


class Counting(FolderStore):
    """Counts what is got."""

    def __init__(self, root):
        super().__init__(root)
        self.got: list[str] = []

    def get(self, path):
        self.got.append(path)
        return super().get(path)


def test_what_was_damaged_here_is_not_given(tmp_path):
    copies = Copies(str(tmp_path / "kept"))
    assert copies.get("diffs/a") is None
    copies.keep("diffs/a", b"content")
    assert Copies(str(tmp_path / "kept")).get("diffs/a") == b"content"
    (file,) = (tmp_path / "kept").iterdir()
    file.write_bytes(file.read_bytes()[:-1])
    assert copies.get("diffs/a") is None


def test_a_folder_that_cannot_be_made_keeps_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    copies = Copies(str(tmp_path / "file/kept"))
    copies.keep("diffs/a", b"content")
    assert copies.get("diffs/a") is None


def test_what_was_used_last_stays(tmp_path, monkeypatch):
    monkeypatch.setattr("publisher.copies.BUDGET", 200)
    monkeypatch.setattr("publisher.copies.LARGEST", 60)
    copies = Copies(str(tmp_path))
    copies.keep("large", bytes(61))
    for n in range(5):
        copies.keep(str(n), bytes(50))
    assert sorted(os.listdir(tmp_path)) == ["0", "1", "2", "3"]  # one process adds no more than the budget
    for n in range(4):
        os.utime(tmp_path / str(n), (n, n))
    Copies(str(tmp_path)).get("0")
    Copies(str(tmp_path)).keep("new", bytes(10))
    assert sorted(os.listdir(tmp_path)) == ["0", "3", "new"]


def test_files_are_got_once_over_all_processes(tmp_path):
    store = Counting(str(tmp_path / "store"))
    names = [name_of(data, area) for data, area in ((b"diff", "diffs"), (b"chunk", "chunks"), (b"put", "diffs"))]
    for name, data in zip(names, (b"diff", b"chunk", b"damaged"), strict=True):
        store.put(name, data)
    first, second = (Ahead(store, 2, kept=Copies(str(tmp_path / "kept"))) for _ in range(2))
    for name in names:
        assert first.get(name) == second.get(name)
    assert store.got == [names[0], names[1], names[2], names[2]]  # the damaged one may be better the next time
    first.put(names[2], b"put")
    first.flush()
    assert Ahead(store, 2, kept=Copies(str(tmp_path / "kept"))).get(names[2]) == b"put"
    assert len(store.got) == 4


def test_key_sets_are_kept_for_the_very_head_that_they_were_read_or_written_with(tmp_path):
    store = Counting(str(tmp_path / "store"))

    def opened() -> Ahead:
        ahead = Ahead(store, 2, kept=Copies(str(tmp_path / "kept")))
        ahead.read_head()
        return ahead

    store.create("trust/1", b"the first")
    store.swap_head("", b"head 1", 1)
    first = opened()
    assert first.get("trust/1") == b"the first"
    first.swap_head(first.read_head()[1], b"head 2", 2)
    store.got.clear()
    assert opened().get("trust/1") == b"the first"
    assert "trust/1" not in store.got

    store.delete("trust/1")
    store.create("trust/1", b"of another dataset")
    store.swap_head(store.read_head()[1], b"head 3", 3)
    assert opened().get("trust/1") == b"of another dataset"


@pytest.mark.parametrize("there", [True, False])
def test_key_sets_that_are_created_are_known(tmp_path, there):
    store = Counting(str(tmp_path / "store"))
    if there:
        store.create("trust/1", b"another one")
    first = Ahead(store, 2, kept=Copies(str(tmp_path / "kept")))
    assert first.create("trust/1", b"the first") is not there
    first.swap_head("", b"head 1", 1)
    after = Ahead(store, 2, kept=Copies(str(tmp_path / "kept")))
    after.read_head()
    assert after.get("trust/1") == (b"another one" if there else b"the first")
    assert ("trust/1" in store.got) is there
