"""Many versions: diffs in levels, a log, snapshots; from every version a short way leads to HEAD, and it is right."""

from __future__ import annotations

import math
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from publisher.publish import Options, publish
from publisher.published import Published, read_head
from puller.plan import plan
from puller.runs import merge
from puller.stores import open_store
from puller.wire.checksum import run_sum
from tests.benchmarks import behind

VERSIONS = 150


class DictSource:
    """A dict as source, kind bytes."""

    kind = "bytes"

    def __init__(self, state):
        from publisher.sources.base import Report

        self.state = state
        self.report = Report()

    def runs(self):
        keys = sorted(self.state)
        yield keys, [self.state[k] for k in keys]

    def lead(self):
        return [], []


@pytest.fixture(scope="module")
def history(tmp_path_factory):
    """A dataset with many versions, and its states."""
    r = random.Random(5)
    store = open_store(str(tmp_path_factory.mktemp("levels") / "data"))
    state = {b"%06d" % r.randrange(10**6): r.randbytes(100) for _ in range(4000)}
    states = [{}]
    for _ in range(VERSIONS):
        for key in r.sample(sorted(state), 20):
            if r.random() < 0.2:
                del state[key]
            else:
                state[key] = r.randbytes(100)
        state[b"%06d" % r.randrange(10**6)] = r.randbytes(100)
        publish(store, lambda name, schema: DictSource(state), "data", Options())
        states.append(dict(state))
    return store, states


@pytest.fixture
def published(history):
    with ThreadPoolExecutor(2) as pool:
        yield Published(history[0], pool, *read_head(history[0]))


def apply(state, runs):
    state = dict(state)
    for keys, values in runs:
        for key, value in zip(keys, values, strict=True):
            if value is None:
                state.pop(key, None)
            else:
                state[key] = value
    return state


def test_every_version_reaches_head_by_a_short_way(history, published):
    states = history[1]
    head, reader = published.head, published.reader
    assert head.version == VERSIONS
    for version in range(1, VERSIONS):
        before = reader.fetcher.requests
        way = published.way(version, VERSIONS)
        assert way is not None
        log = reader.fetcher.requests - before
        assert 1 + log + sum(diff.tree.files for diff in way) <= 3 + 7 * math.log(VERSIONS - version, 8)
        assert apply(states[version], merge([reader.diff(d) for d in way])) == states[VERSIONS]


@pytest.mark.parametrize(("name", "median"), [("mixed", 1.2), pytest.param("inserts", 1.1, marks=pytest.mark.slow)])
def test_pullers_far_behind_fetch_little_more_than_one_absolute_diff_would_be(name, median):
    """Bars for random distances from random HEADs; `tests.benchmarks.behind` measures them over thousands of versions."""
    r = random.Random(2)
    with ThreadPoolExecutor(2) as pool:
        history = behind.build(behind.WORKLOADS[name](random.Random(1), 256), pool)
        pulled = [behind.pull(history, *way, pool) for way in behind.samples(r, 256, 60)]
    ratios = sorted(p.ratio for p in pulled)
    assert ratios[30] <= median
    assert ratios[54] <= 1.45
    assert ratios[-1] <= 2
    assert max(p.requests / p.allowed for p in pulled) <= 1
    assert history.wider <= 3 * history.narrow


def touched(states, a, b):
    found = set()
    for v in range(a + 1, b + 1):
        old, new = states[v - 1], states[v]
        found |= {k for k in old.keys() | new.keys() if old.get(k) != new.get(k)}
    return found


def test_wide_diffs_hold_exactly_the_keys_that_were_touched(history, published):
    wide = [d for d in published.reader.listed(published.log, 0, VERSIONS, least=1) if d.b - d.a > 1]
    assert {(d.a, d.b) for d in wide} >= {(1, 4), (4, 8), (1, 16), (16, 32), (64, 128)}
    for diff in wide:
        held = {k for keys, _ in published.reader.diff(diff) for k in keys}
        assert held == touched(history[1], diff.a, diff.b)


def test_head_lists_every_level_and_fits(published):
    head = published.head
    assert len(published.data) <= 4096
    widths = {d.b - d.a for d in head.diffs}
    assert widths >= {1, 4, 16, 64}
    assert sum(d.b - d.a == 1 for d in head.diffs) == 8


def test_the_snapshot_is_never_far_behind(history, published):
    head = published.head
    assert head.snapshot_version > 1
    runs = list(published.records())
    keys = [k for run in runs for k in run[0]]
    values = [v for run in runs for v in run[1]]
    assert dict(zip(keys, values, strict=True)) == history[1][VERSIONS]
    assert run_sum(keys, values) == head.checksum
    assert plan(None, head, [*head.diffs, *published.log.diffs]).bytes < 1.5 * head.snapshot.bytes
