"""Publishers, pullers and a collector at work beside each other, as processes, some of them killed: nothing that is needed goes.

A second counts as four hours, so that versions expire while the test runs.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time

import pytest

import publisher
import publisher.commit
import publisher.gc
from publisher.build import make_pool
from publisher.gc import collect
from puller.errors import Conflict, HeadwaterError
from puller.fetch import FolderFetcher
from puller.pull import Options, pull
from puller.stores.folder import FolderStore
from puller.targets import open_target
from tests.states import archived, read_head, state_of

SECONDS = 25
GRACE = 6.0


def shorten():
    """The real times, scaled down: a grace of six seconds, of which a publisher may take half."""
    publisher.commit.GRACE = publisher.gc.GRACE = GRACE
    publisher.commit.LONGEST = GRACE / 2


def publish(dest, seed, until):
    shorten()
    r = random.Random(seed)
    with publisher.open(dest, cache=False) as dataset:
        while time.time() < until:
            try:
                with dataset.batch(allow_shrink=True) as batch:
                    for _ in range(r.randint(1, 20)):
                        batch[b"%d" % r.randrange(200)] = b"%d" % r.randrange(2) * 50  # often a value of before
            except Conflict:
                continue
            except HeadwaterError as error:
                if "hours" not in str(error):
                    raise
            time.sleep(r.uniform(0, 0.05))


def gather(dest, until):
    shorten()
    while time.time() < until:
        with make_pool() as pool:
            assert collect(FolderStore(dest), pool, keep=GRACE).missing == []


def copy(dest, target, seed, until):
    r = random.Random(seed)
    while time.time() < until:
        pull(dest, FolderFetcher(dest), lambda head: open_target(target, head and head.kind), Options())
        time.sleep(r.uniform(0, 2))


@pytest.mark.slow
def test_nothing_that_is_needed_goes(tmp_path):
    dest, r = str(tmp_path / "d"), random.Random(5)
    publisher.open(dest, name="data", kind="bytes", cache=False).close()
    context = multiprocessing.get_context("spawn")
    until = time.time() + SECONDS
    work = [
        *((publish, (dest, seed, until)) for seed in range(2)),
        (gather, (dest, until)),
        *((copy, (dest, str(tmp_path / f"c{n}.db"), n, until)) for n in range(2)),
    ]
    processes = [context.Process(target=target, args=arguments) for target, arguments in work]
    for process in processes:
        process.start()
    while time.time() < until - 3:
        time.sleep(r.uniform(0.5, 3))
        n = r.choice([0, 2])
        os.kill(processes[n].pid, signal.SIGKILL)
        processes[n].join()
        processes[n] = context.Process(target=work[n][0], args=work[n][1])
        processes[n].start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    head = read_head(dest)
    left = os.listdir(tmp_path / "d/heads")
    assert len(left) < head.version - 1  # some expired
    newest = state_of(dest)
    for name in left:
        if not name.startswith(".tmp-"):
            state_of(dest, archived(dest, int(name.partition("-")[2])))
    for n in range(2):
        target = str(tmp_path / f"c{n}.db")
        outcome = pull(
            dest, FolderFetcher(dest), lambda head, at=target: open_target(at, head and head.kind), Options(check=True)
        )
        assert outcome.records == len(newest)
