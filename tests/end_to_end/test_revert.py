"""An earlier state comes back as a new version."""

from __future__ import annotations

import random

import pytest

from publisher.revert import revert
from puller.errors import NotFound, UsageError
from puller.stores import open_store
from puller.stores.folder import FolderStore
from tests.conftest import publisher, puller, tree
from tests.plain import publish_records
from tests.states import archived, state_of


def test_each_earlier_state(tmp_path):
    r = random.Random(2)
    dest, state, states = str(tmp_path / "d"), {b"a": b"", b"big": r.randbytes(2_000_000)}, [{}]
    for version in range(1, 12):
        state = dict(state)
        for _ in range(5):
            state[b"%d" % r.randrange(20)] = r.randbytes(r.choice([3, 300]))
        state.pop(b"%d" % r.randrange(20), None)
        if version % 3 == 0:
            state[b"big"] = state[b"big"][:1_500_000] + r.randbytes(100_000)
        publish_records(dest, "bytes", state)
        states.append(state)
    for n, version in enumerate([10, 3, 1, 11], 12):
        outcome = revert(open_store(dest), version, now=lambda: 2000.0)
        assert (outcome.head.version, outcome.changed) == (n, True)
        assert state_of(dest) == states[version]
    assert not revert(open_store(dest), 11).changed
    assert state_of(dest, archived(dest, 13)) == states[3]
    for wrong in (15, 16):
        with pytest.raises(UsageError):
            revert(open_store(dest), wrong)


def test_the_cost_follows_the_change(tmp_path):
    dest, records = str(tmp_path / "d"), {b"%06d" % n: random.Random(n).randbytes(100) for n in range(50_000)}
    publish_records(dest, "bytes", records)
    publish_records(dest, "bytes", records | {b"000007": b"new", b"x": b"y"})
    outcome = revert(open_store(dest), 1)
    assert (outcome.added, outcome.updated, outcome.deleted) == (0, 1, 1)
    assert outcome.written < 2000


def test_pieces_are_put_again(tmp_path):
    """What only the old version needs may be about to be collected."""
    big = random.Random(1).randbytes(2_000_000)
    store = FolderStore(str(tmp_path / "d"))
    publish_records(store.where, "bytes", {b"a": b"1", b"big": big})
    publish_records(store.where, "bytes", {b"a": b"1", b"other": b""})
    put = []
    real = store.put
    store.put = lambda path, data: (put.append(path), real(path, data))
    revert(store, 1)
    pieces = {path for path in put if path.startswith("chunks/")}
    assert sum((tmp_path / "d" / path).stat().st_size for path in pieces) > 1_900_000


def test_the_command(tmp_path):
    source, dest, copy = tmp_path / "s", tmp_path / "d", tmp_path / "c"
    source.mkdir()
    for n in range(3):
        (source / "f").write_text(f"{n}")
        (source / f"only{n}").write_text("")
        publisher("publish", source, dest)
    puller("pull", dest, copy)
    done = publisher("revert", dest, "--to", "1", "--json").json
    assert (done["version"], done["changed"], done["reverted_to"], done["deleted"]) == (4, True, 1, 2)
    puller("pull", dest, copy)
    assert tree(copy) == {"f": ("f", b"0"), "only0": ("f", b"")}
    assert publisher("publish", source, dest, "--json").json["version"] == 5  # nothing remembered hides what changed
    puller("pull", dest, copy)
    assert tree(copy) == tree(source)
    publisher("revert", dest, "--to", "9", check=2)
    (dest / "heads/1-2").unlink()
    assert "not kept" in publisher("revert", dest, "--to", "2", check=1).err
    with pytest.raises(NotFound):
        revert(open_store(str(tmp_path / "none")), 1)


def test_a_signed_and_encrypted_dataset_takes_its_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    source, dest, copy = tmp_path / "s.jsonl", tmp_path / "d", tmp_path / "c.jsonl"
    for n in (1, 2):
        source.write_text(f'{{"k":1,"v":{n}}}\n')
        publisher("publish", source, dest, "--key", "k", "--encrypt")
    before = tree(dest)
    keys = tmp_path / "config/headwater/keys"
    kept = {path: path.read_bytes() for path in keys.iterdir()}
    for path, data in kept.items():
        path.unlink()
        publisher("revert", dest, "--to", "1", check=2 if path.suffix == ".secret" else 3)
        path.write_bytes(data)
    assert len(kept) == 2
    assert tree(dest) == before
    publisher("revert", dest, "--to", "1")
    puller("pull", dest, copy)
    assert copy.read_text() == '{"k":1,"v":1}\n'
    (dest / "trust/1").write_bytes(before["trust/1"][1].replace(b'"threshold":1', b'"threshold":2'))
    assert "trust/1" in publisher("fsck", dest, check=5).err
    (dest / "trust/1").write_bytes(before["trust/1"][1])
    (dest / "heads/1-1").write_bytes((dest / "heads/1-1").read_bytes().replace(b'"interval":30', b'"interval":31'))
    assert "heads/1-1" in publisher("fsck", dest, check=5).err
    publisher("revert", dest, "--to", "1", check=5)
