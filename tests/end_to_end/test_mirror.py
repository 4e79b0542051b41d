"""Mirrors: whole, verified copies of a dataset's files that serve pullers as the origin does, plain and encrypted."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from publisher.build import make_pool
from publisher.gc import collect
from puller.errors import Conflict, Corrupt, Invalid, NotFound, NotOurs, Refused, Unavailable
from puller.fetch import FolderFetcher
from puller.mirror import MARK, Options, mirror
from puller.stores.folder import FolderStore
from puller.wire.codec import path_of
from puller.wire.head import parse_head
from tests.clocked import ClockedFolder
from tests.conftest import lines, publisher, puller, tree
from tests.crafted import SNAPSHOT, VERSIONS, craft
from tests.plain import publish_records
from tests.states import state_of


def files(folder) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def copy(origin, folder, fetcher=None, store=None, **options):
    fetcher = fetcher or FolderFetcher(str(origin))
    return mirror(str(origin), fetcher, store or FolderStore(str(folder)), Options(**options))


def publish(origin, seed: int, versions: int = 1, size: int = 200, first: int = 1000):
    """Versions of a dataset of kind bytes with a large value, some records of which change each time."""
    r = random.Random(seed)
    records = {b"%03d" % n: r.randbytes(20) for n in range(size)} | {b"large": r.randbytes(2_500_000)}
    for n in range(versions):
        for key in r.sample(sorted(records), 5):
            if key != b"large":
                records[key] = r.randbytes(20)
        if n % 4 == 3:
            records[b"large"] = records[b"large"][:900_000] + r.randbytes(9) + records[b"large"][900_000:]
        publish_records(origin, "bytes", records, first + seed * 1000 + n)
    return records


class Failing(FolderFetcher):
    """Answers so many requests, then none."""

    def __init__(self, root, answers: int):
        super().__init__(str(root))
        self.answers = answers
        self.fetched = 0

    def fetch(self, path, size, check=None):
        if self.requests >= self.answers:
            raise Unavailable("the host went away")
        self.fetched += path.endswith(".zst")
        return super().fetch(path, size, check)


@pytest.mark.slow
@pytest.mark.parametrize("options", [pytest.param([], id="plain"), pytest.param(["--encrypt"], id="encrypted")])
def test_a_mirror_serves_in_the_origin_s_place(tmp_path, nginx, options, monkeypatch):
    """Over HTTP, of a folder with large files; mirrored again from the mirror; pullers change over, and fetch nothing twice."""
    r, source, origin = random.Random(5), tmp_path / "s", nginx.root / "origin"
    source.mkdir()
    (source / "large").write_bytes(r.randbytes(6_000_000))
    for n in range(30):
        (source / f"f{n}").write_text(" ".join(str(r.random()) for _ in range(200)))
    publisher("publish", source, origin, *options)
    keys = os.environ["XDG_CONFIG_HOME"]
    first, second = nginx.root / "first", nginx.root / "second"

    def spread():
        monkeypatch.setenv("XDG_CONFIG_HOME", "/nonexistent")  # mirrors have no secret
        done = puller("mirror", f"{nginx.url}/origin", first, "--json").json
        puller("mirror", f"{nginx.url}/first", second)
        monkeypatch.setenv("XDG_CONFIG_HOME", keys)
        return done

    assert spread()["files"] == len(files(origin)) - 2  # HEAD and the key set are not counted
    assert files(first) == files(second) == files(origin)
    puller("pull", f"{nginx.url}/second", tmp_path / "c")
    for version in range(2, 8):
        (source / f"f{version}").write_text(f"version {version}")
        if version % 3 == 0:
            (source / "large").write_bytes((source / "large").read_bytes() + r.randbytes(70_000))
        publisher("publish", source, origin)
        if version in (2, 7):
            nginx.requests()
            before, done = set(files(first)) | {"HEAD"}, spread()
            asked = [path.partition("/origin/")[2] for path, status, _ in nginx.requests() if "/origin/" in path]
            assert len(asked) == len(set(asked))
            assert not (set(asked) - {"HEAD"}) & before - {f"heads/1-{v}" for v in range(version)}
            assert done["changed"]
            assert files(second) == files(first)
            held = {name for name in files(first) if not name.startswith("heads/")}
            assert held <= set(files(origin))
            for name in ("first", "origin", "second"):
                puller("pull", f"{nginx.url}/{name}", tmp_path / "c", check=None)
                assert tree(tmp_path / "c") == tree(source)
            served = [path for path, _, _ in nginx.requests() if ".zst" in path and "/origin/" in path]
            assert len(served) == len(set(served))
    puller("mirror", f"{nginx.url}/origin", first, "--exit-code", check=10)
    assert len(nginx.requests()) == 1
    assert int((first / "HEAD").stat().st_mtime) == parse_head((first / "HEAD").read_bytes()).time


@pytest.mark.parametrize("encrypt", [False, True])
def test_interrupted_runs_go_on(tmp_path, monkeypatch, encrypt):
    """The host goes away after any number of answers: HEAD is the old one, whole; the next run fetches only the rest."""
    origin, target = tmp_path / "o", tmp_path / "m"
    monkeypatch.setattr("puller.tree.MOST", 1)  # files that are fetched ahead, and with an interruption in vain
    if encrypt:
        publish_encrypted(origin)
    else:
        publish(origin, 1, 9)
    whole = copy(origin, tmp_path / "whole")
    runs, fetched = 0, 0
    while not (target / "HEAD").exists():
        fetcher, before = Failing(origin, 14), set(files(target))
        try:
            copy(origin, target, fetcher)
        except Unavailable:
            assert not (target / "HEAD").exists()
        assert set(files(target)) - before
        assert not (target / MARK).exists()
        runs, fetched = runs + 1, fetched + fetcher.fetched
    copy(origin, target)
    assert files(target) == files(tmp_path / "whole")
    assert runs > 1
    assert fetched <= whole.files + 5 * runs  # what lies above what is missing is fetched again


def publish_encrypted(origin):
    import publisher as library

    r = random.Random(2)
    with library.open(str(origin), kind="bytes", encrypt=True, cache=False) as dataset:
        for n in range(9):
            with dataset.batch() as batch:
                batch[b"large"] = r.randbytes(2_000_000)
                batch[b"%d" % n] = r.randbytes(30)


def test_a_power_cut_is_got_over(tmp_path):
    """A run that did not end leaves its mark: then files are read, not believed; and --check reads them in any case."""
    origin, target = tmp_path / "o", tmp_path / "m"
    publish(origin, 1, 6)
    copy(origin, target)
    zst = sorted(p for p in target.rglob("*.zst"))
    for path in zst[::2]:
        path.write_bytes(bytes(path.stat().st_size))
    zst[1].unlink()
    assert not copy(origin, target).changed  # nothing says that something happened
    (target / MARK).touch()
    outcome = copy(origin, target)
    assert (outcome.changed, outcome.before == outcome.after) == (True, True)
    assert files(target) == files(origin)
    zst[0].write_bytes(b"damaged")
    assert copy(origin, target, check=True).files == 1
    assert files(target) == files(origin)


@pytest.mark.slow
def test_killed_again_and_again(tmp_path):
    """SIGKILL at random moments: at each, what HEAD names is there and whole; in the end the copy is the origin."""
    origin, target, r = tmp_path / "o", tmp_path / "m", random.Random(7)
    for round_ in range(6):
        publish(origin, round_ + 1, 4)
        for _ in range(3):
            process = subprocess.Popen(
                [sys.executable, "-m", "puller.cli", "mirror", "-q", str(origin), str(target)],
                stderr=subprocess.DEVNULL,
            )
            time.sleep(r.uniform(0.1, 0.35))
            process.send_signal(signal.SIGKILL)
            process.wait()
            if (target / "HEAD").exists():
                check = copy(target, tmp_path / "check")
                assert check.after == parse_head((target / "HEAD").read_bytes()).order
    puller("mirror", origin, target, "--keep-versions", 100)
    whole = {name: data for name, data in files(target).items() if ".tmp-" not in name}  # what was just being written
    assert whole == {name: data for name, data in files(origin).items() if name in whole}
    assert parse_head((target / "HEAD").read_bytes()) == parse_head((origin / "HEAD").read_bytes())


def test_the_order_rule(tmp_path):
    origin, target = tmp_path / "o", tmp_path / "m"
    publish(origin, 1, 3)
    old = files(origin)
    publish(origin, 2, 1, first=9000)
    copy(origin, target)
    held = files(target)
    lagging = tmp_path / "lagging"
    for name, data in old.items():
        (lagging / name).parent.mkdir(parents=True, exist_ok=True)
        (lagging / name).write_bytes(data)
    outcome = copy(lagging, target)
    assert (outcome.changed, outcome.head.version) == (False, 4)
    assert "older than version 4" in outcome.notes[0]
    assert files(target) == held


@pytest.mark.parametrize("lag", [0, 1])
def test_forks_and_other_datasets_are_refused(tmp_path, lag):
    origin, fork, target = tmp_path / "o", tmp_path / "f", tmp_path / "m"
    publish(origin, 1, 3)
    copy(origin, target)
    held = files(target)
    publish(fork, 2, 3 + lag)
    with pytest.raises(Invalid, match="forked"):
        copy(fork, target)
    publish_records(tmp_path / "t", "files", {b"a": b"fcontent"}, 1)
    with pytest.raises(Invalid, match="another one"):
        copy(tmp_path / "t", target)
    publish_encrypted(tmp_path / "e")
    with pytest.raises(Invalid, match="another one"):
        copy(tmp_path / "e", target)
    assert files(target) == held


def test_a_folder_with_something_else_is_refused(tmp_path):
    origin = tmp_path / "o"
    publish(origin, 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(NotOurs, match=r"notes.txt"):
        copy(origin, tmp_path / "mine")
    assert list(files(tmp_path / "mine")) == ["notes.txt"]
    with pytest.raises(NotFound, match="there is no dataset"):
        copy(tmp_path / "nowhere", tmp_path / "m")
    assert not (tmp_path / "m").exists()
    refused = puller("mirror", origin, tmp_path / "mine", "--json", check=3)
    assert refused.json["error"] == "NotOurs"


@pytest.mark.parametrize("encrypt", [False, True])
def test_damaged_and_missing_files_at_the_origin(tmp_path, encrypt):
    """Any one file of the origin damaged, or gone: an error that names it, HEAD as it was."""
    origin, target = tmp_path / "o", tmp_path / "m"
    if encrypt:
        publish_encrypted(origin)
    else:
        publish(origin, 1, 6)
    copy(origin, target)
    needed = {name: data for name, data in files(target).items() if name.endswith(".zst")}
    for name, data in list(needed.items())[::2]:
        shutil.rmtree(target)
        (origin / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(Corrupt, match="is damaged"):
            copy(origin, target)
        (origin / name).unlink()
        with pytest.raises(NotFound, match="names this file"):
            copy(origin, target)
        assert not (target / "HEAD").exists()
        (origin / name).write_bytes(data)
    copy(origin, target)
    assert needed.items() <= files(target).items()


def test_the_crafted_dataset(tmp_path):
    """Every feature of the format: all files are found that a pull may need, from any version on."""
    states = craft(tmp_path / "o")
    copy(tmp_path / "o", tmp_path / "m")
    missing = set(files(tmp_path / "o")) - set(files(tmp_path / "m"))
    from tests import independent_reader as judge

    dataset = judge.Dataset(tmp_path / "m")
    assert dataset.records() == states[VERSIONS]
    for version in range(SNAPSHOT, VERSIONS):
        for patches in (False, True):
            assert dataset.apply(dict(states[version]), version, patches) == states[VERSIONS]
    assert {name.split("/")[0] for name in missing} <= {"heads", "chunks", "diffs"}


def test_older_versions_are_kept(tmp_path):
    """With --keep-versions, as many superseded versions can be pulled from the copy; without, those whose files are there."""
    origin, few, many = tmp_path / "o", tmp_path / "few", tmp_path / "many"
    states = []
    for n in range(25):
        path = tmp_path / "rows.jsonl"
        path.write_text(
            "".join(json.dumps({"k": k, "v": k * 7919 * (n + 1 if k % 20 == n % 20 else 1)}) + "\n" for k in range(400))
        )
        publisher("publish", path, origin, "--key", "k") if n == 0 else publish_rows(path, origin, 2_000_000_000 + n)
        states.append(lines(path))
        if n in (0, 3, 24):
            copy(origin, few)
    copy(origin, many, keep_versions=24)
    for folder, versions in ((many, range(1, 26)), (few, None)):
        archived = {int(name.rpartition("-")[2]) for name in files(folder) if name.startswith("heads/")}
        assert versions is None or archived == set(versions) - {25}
        assert archived
        for version in {min(archived), max(archived)}:
            puller("pull", folder, tmp_path / "c.jsonl", "--version", version)
            assert sorted(lines(tmp_path / "c.jsonl"), key=lambda row: row["k"]) == states[version - 1]


def publish_rows(path, origin, now):
    from publisher.publish import Options as PublishOptions
    from publisher.publish import publish as publish_source
    from publisher.sources import open_source

    def find(name, schema):
        return open_source(
            str(path), None, key=("k",), tables=(), name=name, schema=schema, strict=True, cached_for=None
        )

    publish_source(FolderStore(str(origin)), find, "o", PublishOptions(), now=lambda: float(now))


def test_two_runs_at_once(tmp_path):
    """Whoever comes second finds the other's HEAD, and starts again."""
    origin, target = tmp_path / "o", tmp_path / "m"
    publish(origin, 1, 3)

    class Meddled(FolderStore):
        rounds = 0

        def swap_head(self, expected, data, time):
            self.rounds += 1
            if self.rounds == 1:
                copy(origin, target)
            return super().swap_head(expected, data, time)

    store = Meddled(str(target))
    assert copy(origin, target, store=store).files == 0
    assert store.rounds == 1
    assert files(target) == files(origin)

    class Always(FolderStore):
        def swap_head(self, expected, data, time):
            raise Conflict("somebody else wrote")

    with pytest.raises(Conflict):
        copy(origin, tmp_path / "other", store=Always(str(tmp_path / "other")))


def test_the_origin_moves_on_meanwhile(tmp_path):
    """A file vanishes because HEAD moved: the run starts again from the newer HEAD."""
    origin, target = tmp_path / "o", tmp_path / "m"
    publish(origin, 1, 3)

    class Moving(FolderFetcher):
        moved = False

        def fetch(self, path, size, check=None):
            if not self.moved and path.startswith("chunks"):
                self.moved = True
                publish(origin, 5, 1)
                raise NotFound("collected")
            return super().fetch(path, size, check)

    outcome = copy(origin, target, Moving(str(origin)))
    assert outcome.head.version == 4
    names = files(target)
    assert names["HEAD"] == files(origin)["HEAD"]


def test_key_sets_come_before_head(tmp_path):
    """trust/1 to trust/<trust> are copied, each once; one that is missing keeps HEAD where it is."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a").write_text("one")
    origin, target = tmp_path / "o", tmp_path / "m"
    publisher("publish", tmp_path / "s", origin)
    said = puller("mirror", origin, target)
    key = publisher("key", "show", "-q", origin).out.strip()
    assert f"trusts from now on the key that it met first: {key}" in said.out
    for _ in range(2):
        publisher("key", "rotate", origin)
    held = files(target)
    (origin / "trust/2").rename(tmp_path / "away")
    assert "[key-set-skipped]" in puller("mirror", origin, target, check=5).err
    assert files(target) == held
    assert "[key-set-skipped]" in puller("mirror", origin, tmp_path / "new", check=5).err
    assert not (tmp_path / "new/HEAD").exists()
    (tmp_path / "away").rename(origin / "trust/2")
    done = puller("mirror", "--trust", key, "--json", origin, target).json
    assert (done["key_set"], done["first_contact"]) == (3, False)
    assert files(target) == files(origin)
    puller("pull", "--trust", key, target, tmp_path / "copy")


def test_a_chain_of_files_without_end_is_refused(tmp_path):
    """Encrypted files whose links go deeper than any dataset's."""
    import hashlib

    from puller.wire.cipher import Cipher, Secret, sealed
    from puller.wire.codec import CHUNKS, Ref, path_of
    from puller.wire.head import Head, format_head
    from puller.wire.links import Link
    from puller.wire.nodes import Tree

    cipher, links = Cipher(Secret("d", bytes(32))), []
    for n in range(40):
        data = cipher.encrypt(b"%d" % n, links)
        ref = Ref(hashlib.sha256(data).digest(), len(data), 1)
        links = [Link(CHUNKS, ref.sha256, ref.stored)]
        path = tmp_path / "o" / path_of(CHUNKS, ref.sha256)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    tree_ = Tree(ref, 0, 1, ref.stored)
    head = Head("d", 1, 1, 5, "bytes", 0, 0, 1, tree_, [], None, 30, "ab" * 16)
    (tmp_path / "o" / "HEAD").write_bytes(format_head(sealed(head, cipher)))
    with pytest.raises(Invalid, match="32 deep"):
        copy(tmp_path / "o", tmp_path / "m")


def test_a_mirror_is_collected_and_looks_at_its_files_again_then(tmp_path):
    """What comes back after a part of it was collected is copied anew, whatever is left of it."""
    origin, copy = tmp_path / "o", tmp_path / "m"
    r = random.Random(8)
    states = [{b"%d" % n: r.randbytes(100) for n in range(3000)} for _ in range(3)]
    first = states[0]
    first[b"big"] = r.randbytes(3_000_000)
    for version, state in enumerate(states, 1):
        publish_records(origin, "bytes", state, time=1000.0 + version)
        puller("mirror", origin, copy)
    later = ClockedFolder(str(copy), now=time.time() + 30 * 86400)
    later._times = Real()
    later.put(MARK, b"this mirror is being written\n")
    with make_pool() as pool:
        with pytest.raises(Refused, match="being written"):
            collect(later, pool)
        later.delete(MARK)
        before = {path for path in tree(copy) if path.startswith(("chunks", "diffs"))}
        done = collect(later, pool, keep_versions=0)
    gone = before - set(tree(copy))
    assert done.files_removed == len(gone) > 3
    publish_records(origin, "bytes", first, time=2000.0)
    root = path_of("chunks", parse_head((origin / "HEAD").read_bytes()).snapshot.ref.sha256)
    assert root in gone
    shutil.copy(origin / root, copy / root)  # as if only the pieces that it names had been old enough
    shutil.copytree(origin / "diffs", copy / "diffs", dirs_exist_ok=True)
    puller("mirror", origin, copy)
    assert state_of(str(copy)) == first
    assert not (copy / MARK).exists()
    assert publisher("fsck", copy).status == 0


class Real(dict):
    """Files that a test's clock knows nothing of are as old as the world."""

    def __missing__(self, _inode):
        return 0.0
