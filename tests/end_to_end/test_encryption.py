"""Encrypted datasets, end to end: nothing readable is stored, every way of pulling works, other secrets open nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest

import publisher as library
from puller import Replica
from puller.errors import Corrupt, Distrust, HeadwaterError, SecretError, Untrusted
from puller.fetch import FolderFetcher
from puller.partial import Partial
from puller.secret import secret_path, unlock
from puller.tree import Reader
from puller.wire.cipher import Cipher, Secret
from puller.wire.codec import CHUNKS
from puller.wire.head import parse_head
from tests import independent_reader as judge
from tests.conftest import lines, publisher, puller, tree
from tests.states import state_of


@pytest.fixture(autouse=True)
def own_keys(tmp_path, monkeypatch):
    """A keys folder for each test, so that no secret of another one is found."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("HEADWATER_SECRET", raising=False)


@pytest.fixture
def away(monkeypatch):
    """Takes the keys folder away, as on another machine."""
    return lambda: monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")


def secret_of(dest) -> str:
    head = parse_head((Path(dest) / "HEAD").read_bytes())
    return Path(secret_path(head.name, head.encryption)).read_text()


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def rows(n: int, word: str = "row") -> str:
    return "".join(json.dumps({"k": k, "v": f"{word} {k * 7919}"}) + "\n" for k in range(n))


def test_files_through_every_way(tmp_path, away):
    """Bootstrap, patch, diffs, resync after an edit, an older version; the judge reads it, too."""
    r = random.Random(3)
    source, dest, copy = tmp_path / "s", tmp_path / "d", tmp_path / "c"
    source.mkdir()
    (source / "large").write_bytes(r.randbytes(5_000_000))
    for n in range(50):
        (source / f"f{n}").write_text(" ".join(str(r.random()) for _ in range(300)))
    done = publisher("publish", source, dest, "--encrypt", "--json").json
    assert (done["encrypted"], os.stat(done["secret_file"]).st_mode & 0o777) == (True, 0o600)
    secret, ways = secret_of(dest), []
    states = {1: tree(source)}
    for version in range(2, 8):
        (source / f"f{version}").write_text((source / f"f{version}").read_text() + f"{version}")
        if version % 3 == 0:
            data = bytearray((source / "large").read_bytes())
            data[2_000_000:2_000_000] = b"inserted"
            (source / "large").write_bytes(data)
        publisher("publish", source, dest)
        states[version] = tree(source)
        if version in (2, 3, 7):
            ways.append(puller("pull", dest, copy, "--json").json["way"])
            assert tree(copy) == states[version]
    assert ways[:2] == ["bootstrap", "patch"]
    (copy / "f1").write_text("edited")
    puller("verify", copy, "--repair")
    assert tree(copy) == states[7]
    puller("pull", dest, copy, "--version", 6)
    assert tree(copy) == states[6]
    dataset = judge.Dataset(dest, secret=secret)
    for way in ("snapshot", "patches"):
        assert {k.decode(): (v[:1].decode(), v[1:]) for k, v in dataset.records(way).items()} == states[7]
    old = judge.Dataset(dest, "heads/1-5", secret=secret).records()
    assert {k.decode(): (v[:1].decode(), v[1:]) for k, v in old.items()} == states[5]
    file = tmp_path / "secret"
    file.write_text(secret)
    away()
    puller("pull", dest, copy, "--secret", file)
    puller("pull", dest, tmp_path / "c2", env=os.environ | {"HEADWATER_SECRET": secret})
    assert tree(copy) == tree(tmp_path / "c2") == states[7]


def test_tables_and_batches(tmp_path, away):
    dest, secret = str(tmp_path / "d"), None
    with library.open(dest, kind="table", encrypt=True) as dataset:
        with dataset.batch() as batch:
            batch.table("t", key=["k"])
            for n in range(500):
                batch["t", n] = {"v": f"word {n}"}
        for n in range(30):
            with dataset.batch() as batch:
                batch["t", n] = {"v": "changed"}
    secret = secret_of(dest)
    away()
    with pytest.raises(SecretError, match="not at hand"):
        library.open(dest)
    with library.open(dest, secret=secret, encrypt=True) as dataset:
        assert (dataset["t", 3]["v"], dataset["t", 99]["v"], len(dataset)) == ("changed", "word 99", 500)
    with Replica(dest, secret=secret) as replica:
        replica.pull()
        assert (len(replica), replica["t", 3]["v"]) == (500, "changed")
    (tmp_path / "secret").write_text(secret)
    puller("pull", dest, tmp_path / "c.db", "--secret", tmp_path / "secret")
    with sqlite3.connect(tmp_path / "c.db") as db:
        assert db.execute("SELECT count(*) FROM t WHERE v = 'changed'").fetchone() == (30,)
    db.close()
    state = puller("status", tmp_path / "c.db", "--json").json
    assert (state["encrypted"], state["secret_id"]) == (True, secret.split("+")[2])
    judge.Dataset(dest, secret=secret).records("patches")


MARKERS = {
    "path": "folder-that-nobody-may-see",
    "content": random.Random(1).randbytes(24),
    "large": random.Random(2).randbytes(24),
    "table": "table-that-nobody-may-see",
    "column": "column-that-nobody-may-see",
    "text": "text-that-nobody-may-see",
    "link": "link-that-nobody-may-see",
    "files": '"files"',
    "table kind": '"table"',
    "checksum": '"checksum"',
}


def marker(name: str) -> bytes:
    found = MARKERS[name]
    return found if isinstance(found, bytes) else found.encode()


def stored_markers(folders, look_into_frames) -> set[str]:
    """Which markers are in stored files, or, where these are plain, in the content of their frames."""
    found = set()
    for folder in folders:
        for data in files(folder).values():
            raw = data
            if look_into_frames and data[:4] == b"\x28\xb5\x2f\xfd":
                raw += judge.frame(data)
            found |= {name for name in MARKERS if marker(name) in raw}
    return found


def publish_markers(tmp_path, *options) -> list[Path]:
    source, r = tmp_path / f"s{len(options)}", random.Random(4)
    (source / MARKERS["path"]).mkdir(parents=True)
    for n in range(2):
        (source / MARKERS["path"] / "a").write_bytes(r.randbytes(50) + MARKERS["content"] + bytes([n]))
        (source / "large").write_bytes(r.randbytes(1_500_000) + MARKERS["large"] + r.randbytes(1_500_000))
        (source / "l").unlink(missing_ok=True)
        (source / "l").symlink_to(MARKERS["link"])
        publisher("publish", source, tmp_path / f"d{len(options)}", *options)
    path = tmp_path / f"{MARKERS['table']}.jsonl"
    for n in range(2):
        path.write_text(json.dumps({"k": MARKERS["text"], MARKERS["column"]: n}) + "\n")
        publisher("publish", path, tmp_path / f"t{len(options)}", "--key", "k", "--table", MARKERS["table"], *options)
    return [tmp_path / f"d{len(options)}", tmp_path / f"t{len(options)}"]


def test_nothing_readable_is_stored(tmp_path):
    """The search finds every marker in the same datasets unencrypted, some of them without decompressing."""
    plain, encrypted = publish_markers(tmp_path), publish_markers(tmp_path, "--encrypt")
    assert stored_markers(plain, look_into_frames=True) == set(MARKERS)
    assert {"content", "large", "table", "checksum"} <= stored_markers(plain, look_into_frames=False)
    assert stored_markers(encrypted, look_into_frames=True) == set()
    for folder in encrypted:
        assert all(data[:4] != b"\x28\xb5\x2f\xfd" for data in files(folder).values())
        assert not [name for name in files(folder) if "secret" in name]


def test_caches_hold_no_values(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("publisher.hashes.SMALL", 0)
    monkeypatch.setattr("publisher.hashes.READY", 0)
    publish_markers(tmp_path, "--encrypt")
    with library.open(str(tmp_path / "b"), kind="bytes", encrypt=True) as dataset:
        for n in range(5):
            with dataset.batch() as batch:
                batch[b"key %d" % n] = MARKERS["content"] + MARKERS["text"].encode()
    cached = b"".join(files(tmp_path / "cache").values())
    assert b"key 1" in cached  # as the documentation says
    assert not [name for name in ("content", "large", "text", "link") if marker(name) in cached]


def test_secrets_that_do_not_fit(tmp_path, away):
    dest, file = tmp_path / "d", tmp_path / "rows.jsonl"
    file.write_text(rows(20))
    publisher("publish", file, dest, "--key", "k", "--encrypt")
    publisher("publish", file, tmp_path / "other", "--key", "k", "--encrypt")
    (tmp_path / "mine").write_text(secret_of(dest))
    (tmp_path / "other-secret").write_text(secret_of(tmp_path / "other"))
    (tmp_path / "made-up").write_text(Secret("d", bytes(32)).text)
    (tmp_path / "damaged").write_text(secret_of(dest)[:-3])
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    away()
    before = files(dest)
    cases = {
        None: "not at hand",
        "other-secret": "of 'other'",
        "made-up": "the one that was given is",
        "damaged": "this is no secret",
        "binary": "it is no text",
        "absent": "No such file",
    }
    for name, message in cases.items():
        given = None if name is None else str(tmp_path / name)
        with Replica(str(dest), str(tmp_path / "c.db"), secret=given) as replica:
            for attempt in (replica.pull, lambda given=given: library.open(str(dest), secret=given)):
                with pytest.raises(SecretError, match=f"{message}.*nothing was changed"):
                    attempt()
    file.write_text(rows(21))
    for done in (
        puller("pull", dest, tmp_path / "c.db", "--secret", tmp_path / "made-up", check=2),
        publisher("publish", file, dest, "--key", "k", "--secret", tmp_path / "made-up", check=2),
    ):
        assert "nothing was changed" in done.err
    assert not list(tmp_path.glob("c.db*"))
    assert files(dest) == before
    mine = (tmp_path / "mine").read_text()
    told = puller("pull", dest, tmp_path / "c.db", "--secret", mine, check=2)
    assert "name the file" in told.err
    assert mine.split("+", 3)[3].strip() not in told.err
    environment = os.environ | {"HEADWATER_SECRET": (tmp_path / "other-secret").read_text()}
    assert "HEADWATER_SECRET holds" in puller("pull", dest, tmp_path / "c.db", check=2, env=environment).err
    state = publisher("status", dest, "--json").json
    assert (state["encrypted"], state["kind"], state["records"], state["checksum"]) == (True, None, None, None)
    assert "not at hand" in publisher("status", dest).out
    assert publisher("log", dest, "--json").json["kind"] is None
    assert publisher("status", dest, "--secret", tmp_path / "mine", "--json").json["records"] == 20


def test_a_held_copy_never_goes_over_to_a_plain_dataset_or_another_secret(tmp_path, monkeypatch):
    """The host's files are replaced by those of somebody without the secret: refused, whatever version they claim."""
    dest, copy, word = str(tmp_path / "d"), str(tmp_path / "c.db"), {"word": "true"}

    def make(versions: int, **options):
        with library.open(dest, kind="bytes", cache=False, **options) as dataset:
            for n in range(versions):
                with dataset.batch() as batch:
                    batch[b"key"] = b"%s %d" % (word["word"].encode(), n)

    make(2, encrypt=True)
    with Replica(dest, copy) as replica:
        replica.pull()
        secret, held, word["word"] = secret_of(dest), dict(replica), "forged"
        for options in ({}, {"encrypt": True}):
            shutil.rmtree(dest)
            make(4, **options)
            for overwrite in (False, True):
                with pytest.raises(Untrusted, match="Nothing was changed") as caught:
                    replica.pull(overwrite=overwrite)
                assert caught.value.reason == Distrust.OTHER_DATASET
                with Replica(dest, copy, secret=secret) as given, pytest.raises(Untrusted):
                    given.pull(overwrite=overwrite)
            assert dict(replica) == held
    shutil.rmtree(dest)
    make(1)
    with Replica(dest, secret=secret) as fresh, pytest.raises(SecretError, match="is not encrypted"):
        fresh.pull()
    monkeypatch.setenv("HEADWATER_SECRET", secret)
    with Replica(dest) as fresh, pytest.raises(SecretError, match="is not encrypted"):
        fresh.pull()
    monkeypatch.setenv("HEADWATER_SECRET", Secret("another", bytes(32)).text)
    with Replica(dest) as fresh:
        fresh.pull()


def test_creating_with_a_secret_and_asking_for_encryption(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(rows(5))
    secret = Secret("d", os.urandom(32))
    (tmp_path / "secret").write_text(secret.text)
    assert (
        "of 'd'"
        in publisher("publish", file, tmp_path / "e", "--key", "k", "--secret", tmp_path / "secret", check=2).err
    )
    done = publisher("publish", file, tmp_path / "d", "--key", "k", "--secret", tmp_path / "secret", "--json").json
    assert (done["secret_id"], done["secret_file"]) == (secret.id, None)
    assert not list((tmp_path / "config").rglob("*.secret"))
    publisher("publish", file, tmp_path / "plain", "--key", "k")
    assert "not encrypted" in publisher("publish", file, tmp_path / "plain", "--key", "k", "--encrypt", check=2).err
    publisher("publish", file, tmp_path / "dry", "--key", "k", "--encrypt", "--dry-run")
    assert not list((tmp_path / "config").rglob("*.secret"))
    made = publisher("init", tmp_path / "i", "--kind", "bytes", "--encrypt", "--json").json
    assert Path(made["secret_file"]).read_text().startswith("HEADWATER-SECRET+i+")
    (tmp_path / "file").write_text("")
    blocked = os.environ | {"XDG_CONFIG_HOME": str(tmp_path / "file")}
    for more, what in ((), "private key"), (("--unsigned",), "secret"):
        refused = publisher("publish", file, tmp_path / "n", "--key", "k", "--encrypt", *more, check=1, env=blocked)
        assert f"the {what} cannot be kept" in refused.err
    assert not (tmp_path / "n" / "HEAD").exists()


def test_a_validator_can_pull_the_candidate(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(rows(5))
    check = f'{sys.executable} -m puller.cli pull -q "$HEADWATER_CANDIDATE" {tmp_path}/c.jsonl'
    publisher("publish", file, tmp_path / "d", "--key", "k", "--encrypt", "--validate", check)
    assert len(lines(tmp_path / "c.jsonl")) == 5


def test_what_is_kept_of_a_pull_under_way_is_encrypted(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    with library.open(str(tmp_path / "d"), kind="bytes", encrypt=True) as dataset, dataset.batch() as batch:
        batch[b"key"] = MARKERS["content"]
    head, cipher = unlock(parse_head((tmp_path / "d" / "HEAD").read_bytes()), None)
    with ThreadPoolExecutor(1) as pool:
        for _ in range(2):
            reader = Reader(FolderFetcher(str(tmp_path / "d")), pool, Partial(str(tmp_path / "partial")), cipher)
            raw = reader.load(CHUNKS, head.snapshot.ref)
    kept = files(tmp_path / "partial")
    assert list(kept) == [head.snapshot.ref.sha256.hex()]
    assert cipher.decrypt(kept[head.snapshot.ref.sha256.hex()]) != raw
    assert kept[head.snapshot.ref.sha256.hex()] in files(tmp_path / "d").values()


def test_every_flipped_byte(tmp_path):
    """Each byte of a small dataset, HEAD included, one at a time: the right state, or an error; never another state."""
    dest = str(tmp_path / "d")
    with library.open(dest, kind="bytes", encrypt=True, cache=False) as dataset:
        with dataset.batch() as batch:
            batch[b"a"] = b"one"
        with dataset.batch() as batch:
            batch[b"b"] = b"two"
    state, refused = state_of(dest), 0
    for name, data in files(dest).items():
        if name.startswith("heads/"):
            continue
        for at in range(len(data)):
            (tmp_path / "d" / name).write_bytes(data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :])
            with Replica(dest) as replica:
                try:
                    replica.pull()
                except HeadwaterError:
                    refused += 1
                    assert len(replica) == 0
                else:
                    assert dict(replica) == state
        (tmp_path / "d" / name).write_bytes(data)
    assert refused > 500


def test_many_threads_share_a_cipher():
    from concurrent.futures import ThreadPoolExecutor

    cipher = Cipher(Secret("d", bytes(range(32))))
    texts = [random.Random(n).randbytes(n * 37) for n in range(300)]
    alone = list(map(cipher.encrypt, texts))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(cipher.encrypt, texts)) == alone
        assert list(pool.map(cipher.decrypt, alone)) == texts
    with pytest.raises(Corrupt, match="does not have the secret"):
        Cipher(Secret("d", bytes(32))).decrypt(alone[3])


def test_plain_datasets_need_no_cryptography(tmp_path):
    """Neither publishing, pulling nor mirroring one imports it; nor does an unchanged poll of an encrypted one."""
    import subprocess
    import sys

    file = tmp_path / "rows.jsonl"
    file.write_text(rows(5))
    publisher("publish", file, tmp_path / "e", "--key", "k", "--encrypt")
    puller("pull", tmp_path / "e", tmp_path / "e.jsonl")
    script = f"""
import sys
from click.testing import CliRunner
from publisher.cli import main as publisher
from puller.cli import main as puller
run = CliRunner().invoke
base = {str(tmp_path)!r}
for command, *arguments in (
    (publisher, "publish", base + "/rows.jsonl", base + "/d", "--key", "k", "--unsigned"),
    (puller, "pull", base + "/d", base + "/c.jsonl"),
    (puller, "pull", base + "/e", base + "/e.jsonl"),
    (puller, "mirror", base + "/d", base + "/m"),
):
    done = run(command, arguments)
    assert done.exit_code == 0, done
assert "cryptography" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
