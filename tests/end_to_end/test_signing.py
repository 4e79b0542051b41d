"""Signed by default, end to end: keys, flags, exit codes, judges that are not ours, and commands that are killed."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

import publisher as publishing
import puller as pulling
from puller.errors import NoKey, Untrusted, UsageError
from tests.conftest import publisher, puller, tree
from tests.signed_note import BadNote, open_note, read_vkey


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A published folder `d` of `s`, its keys in `config`."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a").write_text("one")
    publisher("publish", tmp_path / "s", tmp_path / "d")
    return tmp_path


def change(data, word="two", *more):
    (data / "s/a").write_text(word)
    return publisher("publish", data / "s", data / "d", *more)


def shown(data):
    return publisher("key", "show", "--json", data / "d").json


def folder(data):
    return {str(path.relative_to(data)): path.read_bytes() for path in (data / "d").rglob("*") if path.is_file()}


def test_creating_makes_the_key_and_says_so(data):
    made = publisher("publish", "--json", data / "s", data / "other").json
    private = Path(made["private_key"])
    assert private.parent == data / "config/headwater/keys"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert stat.S_IMODE(private.parent.stat().st_mode) == 0o700
    assert private.read_text().startswith("PRIVATE+KEY+other+")
    said = publisher("init", data / "table", "--kind", "table").out
    (key,) = publisher("key", "show", "--json", data / "table").json["roots"]
    assert f"--trust {key}" in said
    assert str(data / "config/headwater/keys" / key[: len("table+12345678")]) in said
    assert not [path for path in (data / "d").rglob("*") if path.is_file() and b"PRIVATE" in path.read_bytes()]


@pytest.mark.parametrize("known", [True, False])
def test_an_unsigned_head_in_the_place_of_a_signed_one_is_not_built_upon(data, monkeypatch, known):
    """What tells is that this machine published signed versions there, or that it was given a key to sign with."""
    (private,) = (data / "config/headwater/keys").iterdir()
    head = data / "d/HEAD"
    text = head.read_text().partition("\n\n")[0].replace('"trust":1', '"trust":0')
    head.write_text(f"{text}\n\n")
    if not known:
        monkeypatch.setenv("XDG_CACHE_HOME", str(data / "another machine"))
    before = folder(data)
    (data / "s/a").write_text("two")
    key = () if known else ("--signing-key", private)
    refused = publisher("publish", data / "s", data / "d", *key, check=5)
    assert "is not signed, although" in refused.err
    assert "--unsigned" in refused.err
    assert folder(data) == before
    assert publisher("publish", "--json", data / "s", data / "d", "--unsigned").json["version"] == 2
    assert puller("pull", "-q", data / "d", data / "copy").status == 0
    (data / "s/a").write_text("three")
    assert publisher("publish", "--json", data / "s", data / "d").json["version"] == 3  # it was meant, once and for all


def test_openssl_verifies_head_and_key_set(data, tmp_path):
    change(data)
    (vkey,) = shown(data)["keys"]
    name, key_id, public = read_vkey(vkey)
    der = bytes.fromhex("302a300506032b6570032100") + public  # SubjectPublicKeyInfo of an Ed25519 key (RFC 8410)
    (tmp_path / "key.der").write_bytes(der)
    for note in ("d/HEAD", "d/trust/1", "d/heads/1-1"):
        text, _, line = (data / note).read_bytes().decode().rpartition("\n\n")
        dash, signer, encoded = line.rstrip("\n").split(" ")
        blob = base64.b64decode(encoded)
        assert (dash, signer, blob[:4]) == ("\u2014", name, key_id)
        (tmp_path / "text").write_text(f"{text}\n")
        (tmp_path / "signature").write_bytes(blob[4:])
        command = [
            "openssl",
            "pkeyutl",
            "-verify",
            "-pubin",
            "-keyform",
            "DER",
            "-inkey",
            tmp_path / "key.der",
            "-rawin",
        ]
        command += ["-in", tmp_path / "text", "-sigfile", tmp_path / "signature"]
        assert b"Verified Successfully" in subprocess.run(command, check=True, capture_output=True).stdout
        (tmp_path / "text").write_text(f"{text}\n".replace("1", "2", 1))
        assert subprocess.run(command, check=False, capture_output=True).returncode != 0


def test_a_verifier_from_the_c2sp_text_agrees(data):
    change(data)
    publisher("key", "rotate", data / "d")
    for note, keys in (("HEAD", "trust/2"), ("heads/1-1", "trust/1"), ("trust/2", "trust/1"), ("trust/2", "trust/2")):
        fields = json.loads((data / "d" / keys).read_text().split("\n")[1])
        _, signed = open_note((data / "d" / note).read_bytes(), fields["roots"])
        assert signed == fields["roots"]
        with pytest.raises(BadNote):
            open_note((data / "d" / note).read_bytes().replace(b"1", b"2", 1), fields["roots"])


def test_first_contact_is_said_and_pinned(data):
    (key,) = shown(data)["roots"]
    said = puller("pull", data / "d", data / "c").out
    assert f"trusts from now on the key that it met first: {key}" in said
    assert "met first" not in puller("pull", data / "d", data / "c").out
    status = puller("status", "--json", data / "c").json
    assert (status["signed"], status["key_set"], status["roots"], status["given"]) == (True, 1, [key], False)
    assert f"key set 1, met first; root {key}" in puller("status", data / "c").out
    given = puller("pull", "--json", "--trust", key, data / "d", data / "c2").json
    assert (given["first_contact"], given["given"], given["signed"]) == (True, True, True)
    quiet = publisher("key", "show", "-q", data / "d").out.strip()
    assert puller("verify", "--trust", quiet, data / "c2").status == 0
    (data / "key").write_text(f"# {quiet[:4]}\n{quiet}\n")
    puller("pull", "--trust", data / "key", data / "d", data / "c3")
    publisher("publish", "--unsigned", data / "s", data / "plain")
    assert "not signed" in puller("pull", data / "plain", data / "c4").out
    assert "signed     no" in puller("status", data / "c4").out
    assert "signed     no" in publisher("status", data / "plain").out


def test_refusals_name_their_reason(data, tmp_path):
    publisher("key", "new", data / "root", "--name", "root")
    stranger = publisher("key", "new", "--json", data / "stranger", "--name", "d").json["public_key"]
    puller("pull", data / "d", data / "c")
    refused = puller("pull", "--json", "--trust", stranger, data / "d", data / "new", check=5)
    assert (refused.json["error"], refused.json["reason"]) == ("Untrusted", "unknown-key")
    assert "[unknown-key]" in refused.err
    assert not (data / "new").exists()
    assert (
        puller("pull", "--json", "--trust", stranger, data / "d", data / "c", check=5).json["reason"] == "unknown-key"
    )
    assert puller("verify", "--json", "--trust", stranger, data / "c", check=5).json["reason"] == "unknown-key"
    signing = shown(data)["keys"][0]
    publisher("key", "rotate", data / "d", "--root", data / "root")
    signing, root = shown(data)["keys"][0], shown(data)["roots"][0]
    refused = puller("pull", "--trust", signing, data / "d", data / "new", check=5)
    assert f"give the root's, {root}" in refused.err
    text = (data / "d/HEAD").read_text()
    (data / "d/HEAD").write_text(re.sub('"trust":2', '"trust":0', text.split("\n\n")[0]) + "\n\n")
    for target in ("c", "c"):
        assert puller("pull", "--json", data / "d", data / target, check=5).json["reason"] == "unsigned"
    assert puller("pull", "--trust", root, "--json", data / "d", data / "new", check=5).json["reason"] == "unsigned"
    assert puller("pull", "--repin", data / "d", data / "c", check=2).err.startswith("error: --repin needs --trust")
    assert "holds a private key" in puller("pull", "--trust", data / "root", data / "d", data / "c", check=2).err
    assert "is no public key" in puller("pull", "--trust", "nonsense", data / "d", data / "c", check=2).err
    assert tree(data / "c") == tree(data / "s")


def test_repin(data):
    puller("pull", data / "d", data / "c")
    shutil.rmtree(data / "d")
    publisher("publish", data / "s", data / "d")
    (key,) = shown(data)["roots"]
    change(data)
    assert puller("pull", "--json", data / "d", data / "c", check=5).json["reason"] == "unknown-key"
    done = puller("pull", "--json", "--repin", "--trust", key, data / "d", data / "c").json
    assert (done["first_contact"], done["given"]) == (True, True)
    assert tree(data / "c") == tree(data / "s")


def test_publishing_needs_the_private_key(data, monkeypatch):
    key = shown(data)
    (private,) = set(key["private_keys"].values())
    text = Path(private).read_text()
    os.unlink(private)
    before = folder(data)
    (data / "s/a").write_text("two")
    refused = publisher("publish", "--json", data / "s", data / "d", check=3)
    assert refused.json["error"] == "NoKey"
    assert private in refused.json["message"]
    assert "nothing was published" in refused.err
    assert publisher("publish", "--dry-run", "--json", data / "s", data / "d").json["changed"]
    with publishing.open(str(data / "d2"), kind="bytes", signing_key=None) as dataset:
        assert dataset.version == 1
    assert folder(data) == before
    assert publisher("key", "show", data / "d").out.count("not here") == 1
    for command in (["key", "rotate"], ["refresh"], ["restart"]):
        assert publisher(*command, "--json", data / "d", check=3).json["error"] == "NoKey"
    assert folder(data) == before
    (data / "key").write_text(text)
    publisher("publish", data / "s", data / "d", "--signing-key", data / "key")
    monkeypatch.setenv("HEADWATER_SIGNING_KEY", text.strip())
    change(data, "three")
    change(data, "four")
    monkeypatch.setenv("HEADWATER_SIGNING_KEY", text.strip()[:-4])
    failed = publisher("publish", data / "s", data / "d", check=2)
    assert text.strip()[-20:-4] not in failed.err
    monkeypatch.delenv("HEADWATER_SIGNING_KEY")
    publisher("key", "new", data / "build", "--name", "build")
    made = publisher("publish", data / "s", data / "built", "--signing-key", data / "build", "--json").json
    assert made["private_key"] is None
    assert made["public_keys"][0].startswith("build+")
    assert publisher("key", "new", data / "build", "--name", "build", check=2).err.endswith("nothing was written\n")
    copied = puller("pull", "--trust", made["public_keys"][0], data / "built", data / "c", "--json").json
    assert copied["given"]


def test_a_publisher_does_not_build_on_a_head_that_is_not_signed(data):
    text = (data / "d/HEAD").read_text()
    (data / "d/HEAD").write_text(text.replace('"interval":30', '"interval":31'))
    (data / "s/a").write_text("two")
    before = folder(data)
    assert publisher("publish", "--json", data / "s", data / "d", check=5).json["reason"] == "bad-signature"
    assert publisher("key", "rotate", "--json", data / "d", check=5).json["reason"] == "bad-signature"
    assert folder(data) == before


def test_batches_are_signed(data, monkeypatch):
    with publishing.open(str(data / "b"), kind="bytes") as dataset:
        with dataset.batch() as batch:
            batch[b"k"] = b"v"
        publisher("key", "rotate", data / "b")
        with dataset.batch() as batch:
            batch[b"k"] = b"w"
    (key,) = publisher("key", "show", "--json", data / "b").json["roots"]
    with pulling.Replica(str(data / "b"), trust=key) as replica:
        replica.pull()
        assert replica[b"k"] == b"w"
    shutil.rmtree(data / "config")
    with publishing.open(str(data / "b")) as dataset:
        assert dataset[b"k"] == b"w"
        before = sorted((data / "b").rglob("*"))
        with pytest.raises(NoKey), dataset.batch() as batch:
            batch[b"k"] = b"x"
        assert sorted((data / "b").rglob("*")) == before
    stranger = publisher("key", "new", "--json", data / "stranger", "--name", "b").json["public_key"]
    with pulling.Replica(str(data / "b"), trust=[stranger]) as replica, pytest.raises(Untrusted):
        replica.pull()
    with publishing.open(str(data / "plain"), kind="bytes", unsigned=True) as dataset:
        assert dataset.version == 1
    assert publisher("status", "--json", data / "plain").json["trust"] == 0


def test_an_offline_root_and_a_threshold(data):
    roots = []
    for n in range(3):
        roots.append(publisher("key", "new", "--json", data / f"r{n}", "--name", f"root{n}").json["public_key"])
    puller("pull", data / "d", data / "c")
    given = [word for n in range(3) for word in ("--root", data / f"r{n}")]
    publisher("key", "rotate", data / "d", *given, "--threshold", 2)
    assert (shown(data)["roots"], shown(data)["threshold"]) == (roots, 2)
    assert set(shown(data)["roots"]).isdisjoint(shown(data)["keys"])
    puller("pull", data / "d", data / "c")
    refused = publisher("key", "rotate", data / "d", "--root", data / "r0", check=3)
    assert "must be signed by 2 of the roots" in refused.err
    stolen = shown(data)["keys"][0]
    change(data, "two")
    puller("pull", "--trust", roots[1], data / "d", data / "c2")
    done = publisher("key", "revoke", data / "d", stolen, "--root", data / "r0", "--root", data / "r2", "--json").json
    assert (done["epoch"], done["version"], done["trust"]) == (2, 1, 3)
    assert (shown(data)["roots"], shown(data)["threshold"]) == (roots, 2)
    assert stolen not in shown(data)["keys"]
    assert "has no key" in publisher("key", "revoke", data / "d", "00000000", check=2).err
    for target in ("c", "c2"):
        assert puller("pull", "--json", data / "d", data / target).json["key_set"] == 3
        assert tree(data / target) == tree(data / "s")
    publisher("restart", data / "d", check=3)
    publisher("restart", data / "d", "--root", data / "r1", "--root", data / "r2")
    assert puller("pull", "--json", data / "d", data / "c").json["to"] == {"epoch": 3, "version": 1}
    change(data, "three")
    puller("pull", data / "d", data / "c")
    assert tree(data / "c") == tree(data / "s")


@pytest.mark.slow
def test_refresh_expiry_and_staleness(data):
    before = json.loads((data / "d/HEAD").read_text().split("\n")[1])
    publisher("refresh", data / "d", "--expires-in", "1s")
    after = json.loads((data / "d/HEAD").read_text().split("\n")[1])
    assert after["expires"] == after["time"] + 1
    assert {name for name in after if after[name] != before.get(name)} == {"time", "expires"}
    expired = after["expires"]
    time.sleep(max(0, expired + 1.1 - time.time()))
    assert puller("pull", "--json", data / "d", data / "c", check=5).json["reason"] == "expired"
    assert not (data / "c").exists()
    done = puller("pull", "--json", "--allow-expired", data / "d", data / "c", check=6)
    assert (done.json["stale"], done.json["way"]) == ("expired", "bootstrap")
    assert "is stale since 20" in done.err
    assert puller("pull", "--exit-code", "--json", data / "d", data / "c", check=6).json["stale"] == "expired"
    assert puller("status", "--json", data / "c", check=6).json["stale"] == "expired"
    assert puller("verify", "--json", data / "c").json["ok"]
    publisher("refresh", data / "d", "--expires-in", "2h")
    assert "expires" in publisher("status", data / "d").out
    change(data)
    head = json.loads((data / "d/HEAD").read_text().split("\n")[1])
    assert head["expires"] == head["time"] + 7200
    assert puller("pull", "--json", data / "d", data / "c", "--max-staleness", "1h").json["stale"] is None
    publisher("refresh", data / "d", "--no-expires")
    assert "expires" not in (data / "d/HEAD").read_text()
    puller("pull", data / "d", data / "c")
    head = json.loads((data / "d/HEAD").read_text().split("\n")[1])
    time.sleep(max(0, head["time"] + 2.1 - time.time()))  # HEADs are a second apart, so the newest may be ahead
    for command in (["pull", data / "d", data / "c"], ["status", data / "c"], ["verify", data / "c"]):
        assert puller(*command, "--json", "--max-staleness", "1s", check=6).json["stale"] == "stale"
        assert puller(*command, "--json", "--max-staleness", "1d").json["stale"] is None
    assert "no span of time" in puller("status", data / "c", "--max-staleness", "soon", check=2).err


def test_signing_may_begin_later(data):
    publisher("publish", "--unsigned", data / "s", data / "plain")
    puller("pull", data / "plain", data / "c")
    publisher("key", "rotate", data / "plain")
    done = puller("pull", "--json", data / "plain", data / "c").json
    assert (done["way"], done["first_contact"], done["key_set"]) == ("nothing", True, 1)
    (data / "s/a").write_text("two")
    publisher("publish", data / "s", data / "plain")
    puller("pull", data / "plain", data / "c")
    assert puller("pull", "--version", 1, "--json", data / "plain", data / "c").json["to"]["version"] == 1


def test_a_store_set_back_from_a_backup(data):
    publisher("publish", "--unsigned", data / "s", data / "plain")
    for name in ("d", "plain"):
        shutil.copytree(data / name, data / f"{name}-backup")
        (data / "s/a").write_text(f"lost {name}")
        publisher("publish", data / "s", data / name)
        puller("pull", data / name, data / f"{name}-copy")
        shutil.rmtree(data / name)
        shutil.copytree(data / f"{name}-backup", data / name)
        assert puller("pull", "--json", data / name, data / f"{name}-copy").json["reason"] == "older_head"
        publisher("restart", data / name)
        (data / "s/a").write_text(f"after {name}")
        publisher("publish", data / "s", data / name)
        done = puller("pull", "--json", data / name, data / f"{name}-copy").json
        assert (done["to"], done["way"]) == ({"epoch": 2, "version": 2}, "resync")
        assert tree(data / f"{name}-copy") == tree(data / "s")
        assert "must be higher" in publisher("restart", data / name, "--epoch", 2, check=2).err
        publisher("restart", data / name, "--epoch", 9)
        assert puller("pull", "--json", data / name, data / f"{name}-copy").json["to"] == {"epoch": 9, "version": 1}


def test_a_validator_sees_a_signed_candidate(data):
    (key,) = shown(data)["roots"]
    check = f'{sys.executable} -m puller.cli pull -q --trust {key} "$HEADWATER_CANDIDATE" {data}/check && cat {data}/check/a'
    (data / "s/a").write_text("two")
    assert "two" in publisher("publish", data / "s", data / "d", "--validate", check).err
    candidate = f'{sys.executable} -m puller.cli pull "$HEADWATER_CANDIDATE" {data}/first >&2; rm -r {data}/first'
    publisher("publish", data / "s", data / "new", "--validate", f"{candidate}; false", check=3)
    passed = publisher("publish", data / "s", data / "new", "--validate", candidate)
    assert "trusts from now on" in passed.err
    assert len(list((data / "config/headwater/keys").glob("new+*"))) == 1


UNCHANGED = """
import sys, time
from puller.cli import main
start = time.process_time()
main(["pull", "-q", *sys.argv[1:]], standalone_mode=False)
print(sorted(name for name in sys.modules if name.split(".")[0] == "cryptography"))
"""


def test_an_unchanged_poll_loads_no_cryptography(data, nginx):
    shutil.copytree(data / "d", nginx.root, dirs_exist_ok=True)
    (key,) = shown(data)["roots"]

    def poll(*more):
        command = [sys.executable, "-c", UNCHANGED, nginx.url, data / "c", *more]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert poll() != "[]"
    nginx.requests()
    assert poll() == "[]"
    assert [status for _, status, _ in nginx.requests()] == [304]
    assert poll("--trust", key, "--max-staleness", "1d") != "[]"  # the key that was given is looked for once
    assert poll("--trust", key, "--max-staleness", "1d") == "[]"
    os.utime(nginx.root / "HEAD", (1, 1))  # the tag changes, the bytes do not
    assert poll() == "[]"
    nginx.requests()


def test_requests_of_a_signed_dataset(data, nginx):
    """A first contact costs one request more than an unsigned one, an update none."""
    (data / "s/b").write_text("b" * 1000)
    publisher("publish", "--unsigned", data / "s", data / "plain", "--name", "d")
    change(data, "one")
    counts = {}
    for name in ("d", "plain"):
        served = nginx.root / name
        shutil.copytree(data / name, served)
        first = puller("pull", "--json", f"{nginx.url}/{name}", data / f"c-{name}").json["requests"]
        (data / "s/a").write_text(f"newer {name}")
        publisher("publish", data / "s", data / name)
        shutil.copytree(data / name, served, dirs_exist_ok=True)
        update = puller("pull", "--json", f"{nginx.url}/{name}", data / f"c-{name}").json
        counts[name] = first, update["requests"]
    assert counts["plain"][1] == counts["d"][1] == 2
    assert counts["d"][0] <= counts["plain"][0] + 2  # the key set, and a diff since version 1
    nginx.requests()


KILL = """
import os, signal, sys
from puller.stores.folder import FolderStore
from publisher import keys
import publisher.epochs, publisher.signing
die = lambda: os.kill(os.getpid(), signal.SIGKILL)
def before(owner, name, matches=lambda *a: True):
    real = getattr(owner, name)
    setattr(owner, name, lambda *a, **k: die() if matches(*a) else real(*a, **k))
def after(owner, name, matches=lambda *a: True):
    real = getattr(owner, name)
    def then(*a, **k):
        result = real(*a, **k)
        return die() if matches(*a) else result
    setattr(owner, name, then)
trust = lambda store, path, data: path.startswith("trust/")
point = sys.argv[1]
if point == "key stored": after(keys, "write_key")
elif point == "before the key set": before(FolderStore, "create", trust)
elif point == "after the key set": after(FolderStore, "create", trust)
elif point == "before HEAD": before(FolderStore, "swap_head")
elif point == "after HEAD": after(FolderStore, "swap_head")
from publisher.cli import main
main(sys.argv[2:], standalone_mode=False)
"""
POINTS = ["key stored", "before the key set", "after the key set", "before HEAD", "after HEAD"]


def killed(point, *command):
    done = subprocess.run([sys.executable, "-c", KILL, point, *map(str, command)], check=False, capture_output=True)
    return done.returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("what", ["rotate", "revoke", "restart"])
def test_killed_at_any_point_and_run_again(data, what):
    change(data, "two")
    for point in POINTS:
        key = shown(data)
        puller("pull", data / "d", data / "c")
        epoch, number = key["epoch"], key["key_set"]
        commands = {
            "rotate": ["key", "rotate", data / "d"],
            "revoke": ["key", "revoke", data / "d", key["keys"][0]],
            "restart": ["restart", data / "d"],
        }
        dies = killed(point, *commands[what])
        assert dies or (what, point) == ("restart", "key stored")
        puller("pull", data / "d", data / "c")  # what a killed command left harms nobody
        named = shown(data)
        if named["key_set"] == number:
            change(data, f"between {point}")  # nor the publisher
            publisher(*commands[what])
        done = shown(data)
        assert done["key_set"] == number + 1, (point, done)
        assert done["epoch"] == epoch + (what != "rotate")
        assert (done["keys"] != key["keys"]) == (what != "restart")
        change(data, f"after {point}")
        copied = puller("pull", "--json", data / "d", data / "c").json
        assert copied["key_set"] == done["key_set"]
        assert tree(data / "c") == tree(data / "s")
        assert puller("verify", data / "c").status == 0


def test_nothing_is_repaired_from_another_epoch(data):
    """The versions of a new epoch are others than those of the one before, even where they have the same number."""
    change(data, "two")
    puller("pull", data / "d", data / "c")
    (data / "c/a").write_text("edited")
    publisher("key", "revoke", data / "d", shown(data)["keys"][0])
    for word in ("three", "four"):
        refused = puller("verify", "--repair", data / "c", check=3).err
        assert "version 2 of epoch 1" in refused
        assert (data / "c/a").read_text() == "edited"
        change(data, word)
    assert shown(data)["epoch"] == 2
    puller("pull", "--overwrite", data / "d", data / "c")
    assert tree(data / "c") == tree(data / "s")
    (data / "c/a").write_text("edited again")
    puller("verify", "--repair", data / "c")
    assert tree(data / "c") == tree(data / "s")


def test_an_interrupted_rotation_does_not_keep_a_revocation_from_the_stolen_key(data):
    key = shown(data)
    assert killed("after the key set", "restart", data / "d")
    done = publisher("key", "revoke", data / "d", key["keys"][0], "--json").json
    assert (done["trust"], done["epoch"]) == (3, 3)
    assert key["keys"][0] not in shown(data)["keys"]
    puller("pull", data / "d", data / "c", "--trust", key["roots"][0])


@pytest.mark.slow
def test_an_interrupted_rotation_does_not_keep_the_next_one_from_what_it_was_told(data):
    """Roots, a threshold and a key that are asked for are there afterwards, whatever a killed command left."""
    puller("pull", data / "d", data / "c")
    roots = [
        publisher("key", "new", "--json", data / f"r{n}", "--name", f"root{n}").json["public_key"] for n in range(2)
    ]
    given = ["--root", data / "r0", "--root", data / "r1", "--threshold", 2]
    assert killed("after the key set", "key", "rotate", data / "d")
    publisher("key", "rotate", data / "d", *given)
    assert (shown(data)["key_set"], shown(data)["roots"], shown(data)["threshold"]) == (3, roots, 2)
    key = publisher("key", "new", "--json", data / "k", "--name", "mine").json["public_key"]
    assert killed("after the key set", "key", "rotate", data / "d", *given)
    publisher("key", "rotate", data / "d", *given, "--new-key", data / "k")
    assert (shown(data)["key_set"], shown(data)["keys"]) == (5, [key])
    change(data, "two", "--signing-key", data / "k")
    puller("pull", data / "d", data / "c")
    assert tree(data / "c") == tree(data / "s")


def test_one_of_several_creators_wins(data):
    command = [sys.executable, "-m", "publisher.cli", "init", data / "new", "--kind", "table"]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    ended = [(process.communicate()[1], process.returncode) for process in running]
    assert sorted(status for _, status in ended) == [0, 3, 3, 3], ended
    (key,) = publisher("key", "show", "--json", data / "new").json["roots"]
    assert [path.name for path in (data / "config/headwater/keys").glob("new+*")] == [key[: len("new+12345678")]]
    puller("pull", "--trust", key, data / "new", data / "c.db")


@pytest.mark.parametrize("point", POINTS)
def test_a_creation_killed_at_any_point_can_go_on(data, point):
    assert killed(point, "publish", data / "s", data / "new")
    said = publisher("publish", data / "s", data / "new", "--json").json
    assert said["version"] == 1
    puller("pull", "--trust", publisher("key", "show", "-q", data / "new").out.strip(), data / "new", data / "c")
    assert tree(data / "c") == tree(data / "s")


@pytest.mark.slow
def test_no_message_shows_what_is_secret(data):
    """A private key, or a secret, in the place of a public key or of a file's name: refused, and not shown."""
    publisher("publish", data / "s", data / "e", "--encrypt")
    (key,) = (data / "config/headwater/keys").glob("d+*")
    (secret,) = (data / "config/headwater/keys").glob("e+*.secret")
    texts = [path.read_text().strip() for path in (key, secret)]
    said = []
    for text in texts:
        for word in (text, f" {text}\n"):
            said.append(puller("pull", "--trust", word, data / "d", data / "c", check=2))
            said.append(puller("pull", "--secret", word, data / "e", data / "c", check=2))
            said.append(publisher("publish", "--signing-key", word, data / "s", data / "d", check=2))
            said.append(publisher("key", "rotate", "--new-key", word, data / "d", check=2))
            with pytest.raises(UsageError) as caught:
                pulling.Replica(str(data / "d"), secret=word).pull()
            said.append(caught.value)
        (data / "public").write_text(text)
        said.append(puller("pull", "--json", "--trust", data / "public", data / "d", data / "c", check=2))
    for text in texts:
        assert not [one for one in said if text.rpartition("+")[2][:20] in str(one)]
    assert not (data / "c").exists()


def test_a_key_set_that_somebody_left_is_named(data):
    """One that does not follow keeps the next rotation from going on, which says what to do."""
    key = shown(data)
    for left in (b"junk", (data / "d/trust/1").read_bytes()):
        (data / "d/trust/2").write_bytes(left)
        for command in (("rotate", data / "d"), ("revoke", data / "d", key["keys"][0])):
            assert "HEAD in " in (said := publisher("key", *command, check=5).err)
            assert "does not name trust/2: find out who wrote it, remove it" in said
    (data / "d/trust/2").unlink()
    publisher("key", "rotate", data / "d")
    assert shown(data)["key_set"] == 2


@pytest.mark.slow
def test_programs_tell_staleness_as_well(data):
    publisher("refresh", data / "d", "--expires-in", "1s")
    time.sleep(3.1)
    with pulling.Replica(str(data / "d")) as replica:
        with pytest.raises(Untrusted):
            replica.pull()
        assert replica.pull(allow_expired=True).stale == "expired"
        publisher("refresh", data / "d", "--no-expires")
        assert replica.pull().stale is None
        time.sleep(3.1)
        assert replica.pull(max_staleness=1).stale == "stale"
