"""Garbage collection: what goes, what stays, and what it says about that."""

from __future__ import annotations

import os
import random
import time
from contextlib import nullcontext

import pytest

from publisher import epochs, published
from publisher.build import make_pool
from publisher.commit import GRACE, LONGEST
from publisher.fsck import check
from publisher.gc import collect, find_archived
from publisher.keys import Keyring
from publisher.publish import Options, publish
from publisher.retain import EVERY
from puller.errors import Conflict, HeadwaterError, Invalid, NotFound, UsageError
from puller.fetch import FolderFetcher
from puller.plan import Way
from puller.pull import Options as PullOptions
from puller.pull import pull
from puller.stores import open_store
from puller.stores.base import Listed
from puller.stores.s3 import S3Store
from puller.targets import open_target
from puller.tree import Reader
from tests.clocked import ClockedFolder
from tests.conftest import lines, publisher, puller, tree
from tests.plain import PlainSource, publish_records
from tests.states import diffs_of, read_head, state_of

DAY = 86400
WEEK = 7 * DAY


class Dataset:
    """A dataset in a folder whose clock is moved by hand."""

    def __init__(self, root):
        self.root = str(root)
        self.store = ClockedFolder(self.root)

    def publish(self, records, days=0.0, keep=None, keyring=None, **options):
        self.store.now += days * DAY
        return publish(
            self.store,
            lambda name, schema: PlainSource("bytes", records),
            "data",
            Options(allow_shrink=True, keep=keep, **options),
            now=lambda: self.store.now,
            keyring=keyring,
        )

    def collect(self, days=0.0, **options):
        self.store.now += days * DAY
        with make_pool() as pool:
            return collect(self.store, pool, **options)

    def pull(self, copy, version=None):
        opened = []

        def find(head):
            opened.append(open_target(str(copy), None if head is None else head.kind))
            return opened[-1]

        try:
            return pull(self.root, FolderFetcher(self.root), find, PullOptions(version=version))
        finally:
            for target in opened:
                target.close()

    def files(self):
        return sorted(path for path in self.store.list("") if path.startswith(("chunks", "diffs")))


@pytest.fixture
def dataset(tmp_path):
    return Dataset(tmp_path / "d")


def test_old_diffs_leave_the_log_and_go(dataset, tmp_path):
    """With a retention setting, what is kept does not grow with history; whoever is far behind resyncs."""
    state = rows(0, 3000)
    counts = []
    for version in range(1, 130):
        state[b"%06d" % version] = b"changed %d" % version
        dataset.publish(state, days=0.5, keep=2 * DAY if version == 1 else None)
        if version == 2:
            dataset.pull(tmp_path / "old.db")
        if version == 120:
            dataset.pull(tmp_path / "newer.db")
        if version % 40 == 0:
            assert dataset.collect().missing == []
            counts.append(len(dataset.files()))
    assert max(counts) < 60
    with make_pool() as pool:
        listed = diffs_of(Reader(FolderFetcher(dataset.root), pool), read_head(dataset.root))
    assert len([diff for diff in listed if diff.b < 129 - 4 - 2 * EVERY]) < 5  # these lead on from the snapshot
    assert read_head(dataset.root).keep == 2 * DAY
    assert dataset.pull(tmp_path / "newer.db").plan.way is Way.DIFFS
    assert dataset.pull(tmp_path / "old.db").after == (1, 129)
    assert state_of(dataset.root) == state


def rows(seed, n=300):
    r = random.Random(seed)
    return {b"%06d" % k: r.randbytes(40) for k in range(n)}


def test_what_only_old_versions_need_goes(dataset):
    for seed in range(6):
        dataset.publish(rows(seed, 3000), days=1)
    before = dataset.files()
    planned = dataset.collect(days=5.5, dry_run=True)
    assert dataset.files() == before
    done = dataset.collect()
    assert (done.oldest, done.heads_kept, done.heads_removed) == (3, 3, 2)
    assert planned.heads_removed == 2
    assert planned.files_removed == done.files_removed > 0
    assert planned.bytes_removed == done.bytes_removed
    after = dataset.files()
    assert len(before) - len(after) == done.files_removed
    assert len(after) == done.files_kept
    assert sorted(dataset.store.list("heads/")) == ["heads/1-3", "heads/1-4", "heads/1-5"]
    assert state_of(dataset.root) == rows(5, 3000)
    assert dataset.collect().files_removed == 0


def test_a_version_is_as_old_as_the_one_after_it(dataset):
    """A HEAD that stood for a year is fresh the second it is superseded."""
    dataset.publish(rows(0))
    dataset.publish(rows(1), days=365)
    assert dataset.collect(keep_versions=0).heads_removed == 0
    assert dataset.collect(days=6.9, keep_versions=0).heads_removed == 0
    assert dataset.collect(days=0.2, keep_versions=0).heads_removed == 1


def test_a_publisher_that_was_killed_after_archiving_makes_no_version_older(dataset):
    dataset.publish(rows(0))
    data, _ = dataset.store.read_head()
    dataset.store.create("heads/1-1", data)
    assert dataset.collect(days=30).heads_removed == 0  # it is HEAD still
    dataset.publish(rows(1))
    assert dataset.collect(days=1, keep_versions=0).heads_removed == 0
    assert dataset.collect(days=7, keep_versions=0).heads_removed == 1


def test_the_newest_superseded_versions_stay_however_old(dataset):
    for seed in range(4):
        dataset.publish(rows(seed))
    done = dataset.collect(days=100, keep_versions=2)
    assert (done.oldest, done.heads_removed) == (2, 1)
    assert dataset.collect(days=100).oldest == 3


def test_what_was_just_written_stays(dataset):
    """A publisher that is at work has put files that nothing names yet."""
    dataset.publish(rows(0))
    stray = "chunks/ab/" + "ab" * 32 + ".zst"
    dataset.store.put(stray, b"x")
    done = dataset.collect(days=0.9)
    assert (done.files_young, done.bytes_young, done.files_removed) == (1, 1, 0)
    dataset.store.put(stray, b"x")
    assert dataset.collect(days=0.9).files_young == 1
    assert dataset.collect(days=0.2).files_removed == 1
    assert stray not in dataset.files()


def test_what_killed_publishers_left_goes_and_what_is_not_ours_stays(dataset, tmp_path):
    dataset.publish(rows(0))
    left = ["chunks/ab/.tmp-x-1-2", "diffs/ab/.tmp-x-1-2", "heads/.tmp-1-1-1-2", ".tmp-HEAD-1-2"]
    other = ["chunks/ab/notes.txt", "trust/1", "chunks/ab/" + "cd" * 32 + ".zst", "heads/readme"]
    for name in left + other:
        dataset.store.put(name, b"")
    assert dataset.collect().unfinished_removed == 0
    assert dataset.collect(days=2).unfinished_removed == 4
    assert not [name for name in left if (tmp_path / "d" / name).exists()]
    assert [name for name in other if (tmp_path / "d" / name).exists()] == other


def test_all_that_head_reaches_can_be_pulled_afterwards(dataset, tmp_path):
    """Large values, patches with pieces of their own, wide diffs and segments of the log."""
    r = random.Random(3)
    big = bytearray(r.randbytes(3_000_000))
    copies = {}
    for version in range(1, 30):
        records = rows(version % 3, 50)
        if version % 4 == 0:
            at = r.randrange(len(big) - 200_000)
            big[at : at + 100] = r.randbytes(100)
            big += big[at : at + 100_000]
        dataset.publish(
            {b"f": b""} | {b"x" + key: value for key, value in records.items()} | {b"big": bytes(big)}, days=0.5
        )
        if version in (3, 18, 26, 28):
            copies[version] = tmp_path / f"copy{version}.db"
            dataset.pull(copies[version])
    done = dataset.collect(keep=3 * DAY)
    assert done.files_removed > 0
    assert done.missing == []
    expected = state_of(dataset.root)
    for copy in [*copies.values(), tmp_path / "fresh.db"]:
        dataset.pull(copy)
        assert puller("verify", copy, check=None).status == 0
    for version in range(done.oldest, 29):
        dataset.pull(tmp_path / f"at{version}.db", version)
    assert expected[b"big"] == bytes(big)
    dataset.publish(rows(9))
    assert state_of(dataset.root) == rows(9)


def test_a_damaged_dataset_is_not_collected(dataset, tmp_path):
    for seed in range(5):
        dataset.publish(rows(seed))
    log = read_head(dataset.root).snapshot.ref.sha256.hex()
    path = tmp_path / f"d/chunks/{log[:2]}/{log}.zst"
    data = path.read_bytes()
    count = len(dataset.files())
    dataset.store.put(str(path.relative_to(tmp_path / "d")), data[:-1] + b"?")
    with pytest.raises(Invalid, match="damaged"):
        dataset.collect(days=100)
    assert len(dataset.files()) == count
    path.unlink()
    with pytest.raises(Invalid, match="damaged"):
        dataset.collect()
    assert len(dataset.files()) == count - 1


def test_no_dataset_and_no_promise(dataset, tmp_path):
    os.makedirs(dataset.root)
    with pytest.raises(NotFound):
        dataset.collect()
    dataset.publish(rows(0))
    with pytest.raises(UsageError):
        dataset.collect(keep=GRACE - 1)


def test_a_publish_that_takes_too_long_gives_up(dataset, monkeypatch):
    dataset.publish(rows(0))
    ticks = iter([0.0, LONGEST + 1.0])
    monkeypatch.setattr("publisher.published.uptime", lambda: next(ticks))
    monkeypatch.setattr("publisher.commit.uptime", lambda: next(ticks))
    with pytest.raises(HeadwaterError, match="12 hours"):
        dataset.publish(rows(1))
    assert read_head(dataset.root).version == 1


def test_publishes_between_two_batches_are_seen(dataset, monkeypatch):
    """While files are removed, versions come that need some of them again: these stay."""
    for seed in (0, 1, 2):
        dataset.publish(rows(seed, 3))
    dataset.store.now += 100 * DAY
    collected = ClockedFolder.collect
    published = []

    def between(store, *arguments):
        if not published:
            published.extend(dataset.publish(rows(seed, 3)).head.version for seed in (0, 1))
        return collected(store, *arguments)

    monkeypatch.setattr(ClockedFolder, "collect", between)
    monkeypatch.setattr("publisher.gc.BATCH", 1)
    assert dataset.collect(keep_versions=0).head.version == 5
    assert published == [4, 5]
    assert state_of(dataset.root) == rows(1, 3)
    assert dataset.pull(dataset.root + ".db", 4).after == (1, 4)


def test_signed_and_encrypted_datasets_need_no_keys_here(dataset, tmp_path, monkeypatch):
    """With the secret and without it, the same files are removed; key sets stay, those before a new epoch, too."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    ring = Keyring(folder=str(tmp_path / "keys"))
    r = random.Random(5)
    large = {b"x": r.randbytes(2_500_000)}
    for n in range(5):
        dataset.publish(
            rows(n, 2000) | (large if n < 2 else {b"x": r.randbytes(1_200_000)}), 1, None, ring, encrypt=True
        )
    secret = (tmp_path / "config").rename(tmp_path / "away") / "headwater/keys"
    planned = dataset.collect(days=6.5, dry_run=True)
    monkeypatch.setenv("HEADWATER_SECRET", next(secret.iterdir()).read_text())
    with_secret = dataset.collect(dry_run=True)
    assert (planned.files_removed, planned.bytes_removed) == (with_secret.files_removed, with_secret.bytes_removed)
    assert (planned.files_kept, planned.heads_removed) == (with_secret.files_kept, 2)
    epochs.rotate(dataset.store, ring, epochs.Wanted(), now=lambda: dataset.store.now)
    epochs.restart(dataset.store, ring, wanted=epochs.Wanted(), now=lambda: dataset.store.now)
    monkeypatch.delenv("HEADWATER_SECRET")
    done = dataset.collect()
    assert done.files_removed == planned.files_removed > 2
    assert (done.head.epoch, done.head.trust) == (2, 3)
    assert sorted(dataset.store.list("trust/")) == ["trust/1", "trust/2", "trust/3"]
    assert sorted(dataset.store.list("heads/")) == ["heads/1-3", "heads/1-4", "heads/1-5"]
    monkeypatch.setenv("HEADWATER_SECRET", next(secret.iterdir()).read_text())
    assert len(state_of(dataset.root)) == 2001
    assert publisher("fsck", dataset.root).status == 0


def test_a_bucket(bucket, monkeypatch):
    """Files go in batches; who publishes meanwhile what was just removed puts it again."""
    monkeypatch.setattr("publisher.gc.GRACE", 0)
    monkeypatch.setattr("publisher.commit.GRACE", 0)
    dest = f"{bucket.url}/data"
    states = [rows(n, 3000) | {b"big": random.Random(n).randbytes(1_500_000)} for n in range(3)]
    for state in states:
        publish_records(dest, "bytes", state)
    time.sleep(1.1)
    store, racing = open_store(dest), open_store(dest)
    collected, met = S3Store.collect, []

    def beside(self, paths, *arguments):
        """A publisher that went as far as to the swap before the files go that it needs: its puts came before."""
        if not met and any(path.startswith("chunks") for path in paths):
            flush = S3Store.flush

            def late(inner):
                monkeypatch.setattr(S3Store, "flush", flush)
                listed = S3Store._written_before(self, set(paths), 2e9)
                met.append(self._place.remove(list(listed)))
                self._note(b"ended", self._note(b"running", self._collection()[2]))
                flush(inner)

            monkeypatch.setattr(S3Store, "flush", late)
            publish(racing, lambda name, schema: PlainSource("bytes", states[0]), "data", Options(allow_shrink=True))
        return collected(self, paths, *arguments)

    monkeypatch.setattr(S3Store, "collect", beside)
    with make_pool(store.threads) as pool:
        assert collect(store, pool, keep=0, keep_versions=0).heads_removed == 2
        assert met == [set()]
        assert published.read_head(store)[0].version == 4
        assert check(store, pool).bad == {}
        time.sleep(1.1)
        before = set(store.list(""))
        bucket.proxy.requests.clear()
        done = collect(store, pool, keep=0, keep_versions=0)
        removing = [request for request in bucket.proxy.requests if request.method == "POST"]
        assert (done.heads_removed, len(removing)) == (1, 2)
        assert len(before - set(store.list(""))) == done.heads_removed + done.files_removed > 1
        assert check(store, pool).bad == {}


@pytest.mark.slow
def test_what_a_killed_collector_had_sent_may_arrive_late(bucket, monkeypatch):
    """A publisher that read HEAD after a collector was killed looks for old files once nobody waits for that any more."""
    monkeypatch.setattr("puller.stores.s3.HOLD", 4)
    monkeypatch.setattr("puller.stores.s3.SKEW", 0)
    dest = f"{bucket.url}/data"
    publish_records(dest, "bytes", rows(1, 10))
    store = S3Store(dest, connections=4)
    store.put("chunks/aa/late.zst", b"x")
    store._note(b"running", store._collection()[2])
    time.sleep(1.5)
    store.read_head()
    for late in (True, False):
        store.put("chunks/aa/late.zst", b"x")
        if late:
            store.delete("chunks/aa/late.zst")
        store.put("chunks/aa/new.zst", b"x")
        with pytest.raises(Conflict) if late else nullcontext():
            store.flush()


def test_ages_of_superseded_heads():
    class At:
        epoch, version = 2, 2

    listed = [Listed(f"heads/{name}", 1, float(n)) for n, name in enumerate(["1-1", "1-2", "2-1", "2-2", "x", "2-01"])]
    found = find_archived(listed, At, 50.0)
    assert [(one.epoch, one.version, one.written, one.superseded) for one in found] == [
        (2, 1, 2.0, 50.0),
        (1, 2, 1.0, 2.0),
        (1, 1, 0.0, 1.0),
    ]


def test_the_command(tmp_path):
    source, dest = tmp_path / "s.jsonl", tmp_path / "d"
    for n in range(3):
        source.write_text("".join(f'{{"k":{k},"v":{k * n}}}\n' for k in range(50)))
        publisher("publish", source, dest, "--key", "k")
    before = tree(dest)
    for arguments in (["--dry-run"], ["--keep", "36h"], ["--keep-versions", "0"]):
        done = publisher("gc", dest, *arguments, "--json").json
        assert (done["versions_kept"], done["oldest_version"], done["files_removed"]) == (3, 1, 0)
    assert tree(dest) == before
    assert publisher("gc", dest, "--keep", "23h", check=2).out == ""
    assert publisher("gc", dest, "--keep", "7 days", check=2).out == ""
    publisher("gc", tmp_path / "none", check=1)
    puller("pull", dest, tmp_path / "c.jsonl")
    assert lines(tmp_path / "c.jsonl") == lines(source)
