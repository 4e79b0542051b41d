"""The planner: named reasons, cheapest ways."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puller.errors import Invalid
from puller.plan import REQUEST_COST, Reason, Way, is_good, plan, route
from puller.wire.codec import Ref
from puller.wire.head import Head
from puller.wire.nodes import Diff, Tree


def tree(size: int, files: int = 1, level: int = 0) -> Tree:
    return Tree(Ref(bytes(32), 1, 1), level, files, size)


def diff(a: int, b: int, size: int = 10) -> Diff:
    return Diff(a, b, tree(size))


def head(version: int, snapshot: int, diffs: list[Diff], size: int = 10**9, log: bool = False, epoch: int = 1) -> Head:
    ref = Ref(bytes(32), 1, 1) if log else None
    return Head("d", epoch, version, 0, "files", 0, 0, snapshot, tree(size), diffs, ref, 30, "")


SINGLES = [diff(n, n + 1) for n in range(1, 9)]


PATCHED = [*SINGLES[:-1], Diff(8, 9, tree(10), tree(5))]
LARGE = [*SINGLES[:-1], Diff(8, 9, tree(10**8), tree(10**7 * 5, level=1))]
LARGE_VALUES = [*SINGLES[:-1], Diff(8, 9, tree(10**8), tree(10**7 * 5))]
TOLD = dict.fromkeys((Way.NOTHING, Way.PATCH, Way.DIFFS), Reason.OVERWRITE)
MISSING = dict.fromkeys((Way.NOTHING, Way.PATCH, Way.DIFFS, Way.RESYNC), Reason.DATA_MISSING)


@pytest.mark.parametrize(
    ("position", "given_head", "options", "way", "reason", "diffs"),
    [
        ((1, 9), head(9, 1, SINGLES), {}, Way.NOTHING, Reason.CURRENT, 0),
        ((1, 5), head(9, 1, SINGLES), {}, Way.DIFFS, Reason.DIFFS_CHEAPEST, 4),
        (None, head(9, 1, SINGLES), {}, Way.BOOTSTRAP, Reason.NEW_TARGET, 8),
        (None, head(9, 9, []), {}, Way.BOOTSTRAP, Reason.NEW_TARGET, 0),
        ((1, 3), head(9, 7, SINGLES[4:]), {}, Way.RESYNC, Reason.NO_DIFFS, 2),
        ((2, 8), head(9, 1, SINGLES, epoch=3), {}, Way.RESYNC, Reason.NEW_EPOCH, 8),
        ((1, 2), head(9, 8, SINGLES, size=11), {}, Way.RESYNC, Reason.SNAPSHOT_CHEAPER, 1),
        ((1, 9), head(7, 1, SINGLES), {}, Way.RESYNC, Reason.OLDER_VERSION, 6),
        ((1, 9), head(9, 1, SINGLES), {"closed": TOLD}, Way.RESYNC, Reason.OVERWRITE, 8),
        ((1, 9), head(9, 1, SINGLES), {"closed": MISSING}, Way.BOOTSTRAP, Reason.DATA_MISSING, 8),
        ((1, 8), head(9, 1, PATCHED), {}, Way.PATCH, Reason.PATCH_CHEAPEST, 1),
        ((1, 8), head(9, 1, PATCHED), {"closed": {Way.PATCH: Reason.NO_VALUES}}, Way.DIFFS, Reason.DIFFS_CHEAPEST, 1),
        ((1, 8), head(9, 1, LARGE), {}, Way.DIFFS, Reason.DIFFS_CHEAPEST, 1),
        ((1, 8), head(9, 1, LARGE_VALUES), {}, Way.PATCH, Reason.PATCH_CHEAPEST, 1),
    ],
)
def test_ways_and_reasons(position, given_head, options, way, reason, diffs):
    chosen = plan(position, given_head, given_head.diffs, **options)
    assert (chosen.way, chosen.reason, len(chosen.steps)) == (way, reason, diffs)
    trees = [s.tree for s in chosen.steps] + ([given_head.snapshot] if way in (Way.RESYNC, Way.BOOTSTRAP) else [])
    assert chosen.bytes == sum(t.bytes for t in trees)
    assert chosen.files == sum(t.files for t in trees)


def test_every_way_is_explained():
    chosen = plan((1, 8), head(9, 1, PATCHED), PATCHED, closed={Way.PATCH: Reason.PATCH_FAILED})
    assert [(c.way, c.closed) for c in chosen.candidates] == [
        (Way.PATCH, Reason.PATCH_FAILED),
        (Way.DIFFS, None),
        (Way.RESYNC, None),
        (Way.BOOTSTRAP, None),
    ]
    patch, diffs, resync, bootstrap = chosen.candidates
    assert (
        resync.cost(REQUEST_COST) == bootstrap.cost(REQUEST_COST) > diffs.cost(REQUEST_COST) > patch.cost(REQUEST_COST)
    )


def test_no_way_at_all_is_an_error():
    with pytest.raises(Invalid):
        plan(None, head(9, 1, SINGLES[3:]), SINGLES[3:])


def test_the_log_is_asked_for_only_where_head_is_too_short():
    short = head(9, 1, SINGLES[4:], log=True)
    assert not is_good((1, 2), short, short.diffs)
    assert not is_good(None, short, short.diffs)
    assert is_good((1, 2), short, SINGLES)
    assert is_good((1, 6), short, short.diffs)
    assert is_good((2, 6), head(9, 7, SINGLES[4:], log=True), SINGLES[6:])


def test_the_log_is_asked_for_where_the_snapshot_may_be_cheaper():
    dear = [diff(n, n + 1, 10**6) for n in range(5, 9)]
    assert is_good((1, 6), head(9, 1, dear, log=True), dear)
    assert not is_good((1, 6), head(9, 1, dear, size=10**5, log=True), dear)


def test_the_log_is_asked_for_where_head_has_only_a_wide_diff_for_a_narrow_way():
    for size, good in ((REQUEST_COST, True), (4 * REQUEST_COST, False)):
        wide = [diff(0, 8, size), diff(8, 9)]
        assert is_good((1, 6), head(9, 1, wide, log=True), wide) == good


@given(st.integers(0, 10**6))
def test_route_is_the_cheapest(seed):
    r = random.Random(seed)
    end = r.randint(1, 9)
    diffs = [
        Diff(a, b, tree(r.randint(1, 10**6), r.randint(1, 3)))
        for a in range(end)
        for b in range(a + 1, end + 1)
        if r.random() < 0.4
    ]
    cost = dict.fromkeys(range(end + 1))
    cost[end] = 0
    for v in range(end - 1, -1, -1):
        steps = [
            d.tree.bytes + d.tree.files * REQUEST_COST + cost[d.b]
            for d in diffs
            if d.a <= v < d.b and cost[d.b] is not None
        ]
        cost[v] = min(steps, default=None)
    way = route(0, end, diffs)
    if way is None:
        assert cost[0] is None
        return
    assert sum(d.tree.bytes + d.tree.files * REQUEST_COST for d in way) == cost[0]
    at = 0
    for step in way:
        assert step.a <= at < step.b
        at = step.b
    assert at == end
