"""Every damaged or missing file is named."""

from __future__ import annotations

import random

import pytest

from publisher.build import make_pool
from publisher.fsck import check
from puller.errors import NotFound
from puller.stores.folder import FolderStore
from puller.wire.head import format_head, parse_head
from tests.conftest import publisher
from tests.plain import publish_records


@pytest.fixture(scope="module")
def dest(tmp_path_factory):
    """All forms of files: indexes, pieces with bases, patches, a log, wide diffs."""
    root, r = tmp_path_factory.mktemp("fsck") / "d", random.Random(4)
    big = r.randbytes(2_500_000)
    state = {b"%06d" % n: r.randbytes(200) for n in range(15_000)}
    for version in range(20):
        state[b"%06d" % version] = b"x%d" % version
        if version % 6 == 0:
            big = big[:1_000_000] + r.randbytes(50_000) + big[1_000_000:]
        publish_records(root, "bytes", state | {b"big": big})
    return root


def fsck(root):
    with make_pool() as pool:
        return check(FolderStore(str(root)), pool)


def test_each_file_is_missed_and_looked_into(dest):
    whole = fsck(dest)
    files = sorted(path for area in ("chunks", "diffs", "heads") for path in (dest / area).rglob("*") if path.is_file())
    assert whole.bad == {}
    assert whole.versions == 20
    needed = 0
    r = random.Random(1)
    for path in [*r.sample(files, 16), dest / "heads/1-1", dest / "heads/1-19"]:
        name, data = str(path.relative_to(dest)), path.read_bytes()
        path.unlink()
        gone = fsck(dest).bad
        at = r.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        damaged = fsck(dest).bad
        path.write_bytes(data)
        if name == "heads/1-1":  # the oldest may have been collected
            assert gone == {}
        elif name.startswith("heads/"):
            assert set(gone) == {name}
        else:
            assert gone.keys() == damaged.keys()
            assert not gone or name in gone
            needed += name in gone
    assert needed > 8
    assert fsck(dest) == whole


def test_a_wrong_state_is_noticed(dest):
    store = FolderStore(str(dest))
    data, _ = store.read_head()
    head = parse_head(data)
    (dest / "HEAD").write_bytes(
        format_head(head.__class__(**{n: getattr(head, n) for n in head.__struct_fields__} | {"checksum": 1}))
    )
    assert list(fsck(dest).bad) == ["HEAD"]
    (dest / "HEAD").write_bytes(b"headwater/1 x\n")
    assert list(fsck(dest).bad) == ["HEAD"]
    (dest / "HEAD").write_bytes(data)


def test_the_command(dest, tmp_path):
    assert publisher("fsck", dest, "--json").json["bad"] == []
    path = next((dest / "chunks").rglob("*.zst"))
    data = path.read_bytes()
    path.write_bytes(data[:-1])
    done = publisher("fsck", dest, check=5)
    assert str(path.relative_to(dest)) in done.err
    path.write_bytes(data)
    publisher("fsck", tmp_path / "none", check=1)
    with pytest.raises(NotFound):
        fsck(tmp_path / "none")
