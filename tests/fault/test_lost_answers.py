"""Publishers to a bucket behind a network that loses requests and answers: no version is lost, and none published twice."""

from __future__ import annotations

import collections
import os
import random
import subprocess
import sys

import pytest

import publisher
from publisher.build import make_pool
from publisher.commit import place
from publisher.published import Published, read_head
from publisher.stores import open_store
from publisher.stores.base import ABSENT, SUPERSEDED
from puller.errors import Conflict, HeadwaterError, Unavailable
from puller.wire.head import format_head
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
        if chosen == "corrupt" and (request.method != "GET" or "/HEAD" in request.path or "/heads/" in request.path):
            chosen = "lose"  # what no hash names is not signed yet
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
    seen = run_publishers(bucket, 2, 6, 0.4)
    assert seen["lose", True] + seen["fail", True] + seen["stall", True] > 2


@pytest.mark.slow
def test_six_publishers_with_120_intents_behind_a_bad_network(bucket):
    run_publishers(bucket, 6, 20, 0.3)
