"""Publishers to a bucket behind a network that loses requests and answers: no version is lost, and none published twice."""

from __future__ import annotations

import collections
import contextlib
import os
import random
import subprocess
import sys

import pytest

import publisher
from publisher.build import make_pool
from publisher.dataset import Dataset
from publisher.publish import create
from publisher.published import Published, read_head
from puller.errors import Conflict, HeadwaterError, Refused
from puller.stores import open_store
from puller.stores.base import ABSENT, StoreError, Unclear
from puller.stores.folder import FolderStore
from puller.stores.s3 import COLLECTING, S3Store
from tests.conftest import ROOT

FATES = ["refuse", "fail", "drop", "lose", "stall", "truncate", "corrupt"]

PUBLISHER = """
import sys
import publisher, puller.s3
from puller.errors import Corrupt, Unavailable
puller.s3.TIMEOUT = 0.6
address, number, intents = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with publisher.open(address, cache=False) as dataset:
    for n in range(intents):
        while True:
            try:
                with dataset.batch() as batch:
                    batch[b"last"] = b"%d of %d" % (n, number)
                    batch[b"%d of %d" % (n, number)] = b"done"
                break
            except Unavailable:
                continue  # nothing was sent to HEAD, or it would be told as unclear
"""


def published(address):
    """What each version changed, read from its own diff."""
    store = open_store(address)
    head, data, token = read_head(store)
    changes = []
    with make_pool() as pool:
        was = Published(store, pool, head, data, token)
        for version in range(2, head.version + 1):
            found = [
                d
                for d in was.reader.search(was.log, version - 1, version, head.diffs)
                if (d.a, d.b) == (version - 1, version)
            ]
            assert found, version
            changes.append(
                dict(pair for keys, values in was.reader.diff(found[0]) for pair in zip(keys, values, strict=True))
            )
    return head, changes


def check_history(address, intents):
    """Each intent was published once, by a version that changed nothing else."""
    head, changes = published(address)
    told = [change[b"last"] for change in changes]
    assert collections.Counter(told) == collections.Counter(intents)
    assert all(change == {b"last": last, last: b"done"} for change, last in zip(changes, told, strict=True))
    assert head.records == len(intents) + 1


def run_publishers(bucket, publishers, intents, often):
    publisher.open(f"{bucket.url}/data", kind="bytes", cache=False).close()
    r = random.Random(1)
    seen = collections.Counter()

    def fate(request):
        chosen = r.choice(FATES) if r.random() < (often if request.is_conditional else often / 4) else "pass"
        if chosen == "corrupt" and (request.method != "GET" or ".zst" not in request.path):
            chosen = "lose"  # a note that is damaged on the way is refused by its signature, and not asked for again
        seen[chosen, request.is_conditional] += 1
        return chosen

    bucket.proxy.fate = fate
    arguments = [f"{bucket.url}/data"]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PUBLISHER, *arguments, str(n), str(intents)],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stderr=subprocess.PIPE,
        )
        for n in range(publishers)
    ]
    errors = [process.communicate(timeout=200)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * publishers, errors
    bucket.proxy.fate = lambda _request: "pass"
    check_history(f"{bucket.url}/data", [b"%d of %d" % (n, p) for p in range(publishers) for n in range(intents)])
    return seen


def test_two_publishers_behind_a_bad_network(bucket):
    seen = run_publishers(bucket, 2, 4, 0.5)
    assert sum(count for (what, conditional), count in seen.items() if conditional and what != "pass") > 0


@pytest.mark.slow
def test_six_publishers_with_120_intents_behind_a_bad_network(bucket):
    run_publishers(bucket, 6, 20, 0.3)


@pytest.mark.parametrize("fate", ["drop", "lose"])
def test_any_one_request_of_a_batch_may_fail(bucket, fate, monkeypatch):
    """Before it took effect, and after: each batch is one version all the same."""
    monkeypatch.setattr("puller.fetch.again.__defaults__", (4, lambda _pause: None, lambda: 0.5))
    address = f"{bucket.url}/data"
    intents = []
    with publisher.open(address, kind="bytes", cache=False) as dataset:
        while True:
            intents.append(b"%d" % len(intents))
            start = len(bucket.proxy.requests)
            at = start + len(intents)

            def strike(request, at=at):
                return fate if len(bucket.proxy.requests) == at else "pass"

            bucket.proxy.fate = strike
            with dataset.batch() as batch:
                batch[b"last"] = intents[-1]
                batch[intents[-1]] = b"done"
            bucket.proxy.fate = lambda _request: "pass"
            if len(bucket.proxy.requests) < at:
                break  # the batch took fewer requests than that
    assert len(intents) >= 5
    check_history(address, intents)


def test_what_a_collector_says_may_have_arrived_though_the_answer_got_lost(bucket):
    """What is sent again meets its own first attempt then; where it meets another's, nothing is removed."""
    path, said = "chunks/aa/old.zst", []

    def lose(request):
        if request.method == "PUT" and request.path.endswith(COLLECTING):
            said.append(request)
            return "lose" if len(said) % 2 else "pass"
        return "pass"

    store = S3Store(f"{bucket.url}/data", connections=4)
    store.put(path, b"x")
    bucket.proxy.fate = lose
    assert store.collect([path], 2e10) == {path}
    assert [request.status for request in said] == [200, 412] * 2

    def overtake(request):
        if request.method == "PUT" and request.path.endswith(COLLECTING) and len(said) < 5:
            said.append(request)
            bucket.client.put_object(Bucket=bucket.name, Key=f"data/{COLLECTING}", Body=b"running another\n")
        return "pass"

    store.put(path, b"x")
    bucket.proxy.fate = overtake
    with pytest.raises(StoreError, match="412"):
        store.collect([path], 2e10)
    assert store.get(path) == b"x"


class Lossy(FolderStore):
    """A store whose swaps are told as unclear: `before` and `after` run around the swap, which `arrives` or not."""

    def __init__(self, root, arrives=True, before=None, after=None):
        super().__init__(root)
        self.arrives, self.before, self.after = arrives, before, after
        self.swaps = 0

    def swap_head(self, expected, data, time):
        self.swaps += 1
        before, after, arrives = self.before, self.after, self.arrives
        self.before = self.after = None
        self.arrives = True
        if before:
            before()
        token = ABSENT
        if arrives:
            with contextlib.suppress(Conflict):
                token = super().swap_head(expected, data, time)
        if after:
            after()
        if self.swaps == 1:
            raise Unclear("the answer got lost")
        if token == ABSENT:
            raise Unclear("the condition did not hold, or the answer got lost")
        return token


@pytest.fixture
def dest(tmp_path):
    with publisher.open(str(tmp_path / "d"), kind="bytes", cache=False) as dataset:
        put(dataset, b"first")
    return str(tmp_path / "d")


def put(dataset, value):
    with dataset.batch() as batch:
        batch[b"last"] = value
        batch[value] = b"done"


def others(dest, *values):
    def publish():
        with publisher.open(dest, cache=False) as dataset:
            for value in values:
                put(dataset, value)

    return publish


@pytest.mark.parametrize(
    ("arrives", "before", "after", "swaps", "order"),
    [
        (True, (), (), 1, [b"ours"]),
        (False, (), (), 2, [b"ours"]),
        (True, (), (b"a",), 1, [b"ours", b"a"]),
        (True, (), (b"a", b"b", b"c"), 1, [b"ours", b"a", b"b", b"c"]),
        (True, (b"a",), (), 2, [b"a", b"ours"]),
        (True, (b"a", b"b"), (), 2, [b"a", b"b", b"ours"]),
        (False, (), (b"a", b"b"), 2, [b"a", b"b", b"ours"]),
    ],
)
def test_a_swap_whose_answer_got_lost_is_resolved_by_reading(dest, arrives, before, after, swaps, order):
    store = Lossy(dest, arrives, others(dest, *before), others(dest, *after))
    with Dataset(store, None) as dataset:
        put(dataset, b"ours")
        assert store.swaps == swaps
        put(dataset, b"more")
    check_history(dest, [b"first", *order, b"more"])
    assert [change[b"last"] for change in published(dest)[1]] == [b"first", *order, b"more"]


def test_what_cannot_be_told_is_an_error(dest, tmp_path):
    def hide():
        others(dest, b"a")()
        (tmp_path / "d/heads/1-3").unlink()

    with (
        Dataset(Lossy(dest, after=hide), None) as dataset,
        pytest.raises(HeadwaterError, match="cannot be told whose version 3"),
    ):
        put(dataset, b"ours")


def test_a_store_that_is_silent_after_a_swap_leaves_it_open(dest, tmp_path):
    def vanish():
        (tmp_path / "d/HEAD").rename(tmp_path / "HEAD")
        (tmp_path / "d/HEAD").mkdir()  # reading it is no proof of anything

    with Dataset(Lossy(dest, after=vanish), None) as dataset:
        with pytest.raises(Unclear, match=r"whether version 3 was published to .* is not known .* Publish again"):
            put(dataset, b"ours")
        (tmp_path / "d/HEAD").rmdir()
        (tmp_path / "HEAD").rename(tmp_path / "d/HEAD")
        put(dataset, b"ours")
    check_history(dest, [b"first", b"ours"])


def test_two_that_create_a_dataset_at_once(tmp_path):
    dest = str(tmp_path / "d")
    store = Lossy(dest, arrives=False, before=lambda: publisher.open(dest, kind="bytes", name="theirs").close())
    with pytest.raises(Refused, match="somebody else created"):
        create(store, "ours", "bytes")
    store = Lossy(str(tmp_path / "e"))
    assert create(store, "ours", "bytes").head.publish_id == read_head(store)[0].publish_id
