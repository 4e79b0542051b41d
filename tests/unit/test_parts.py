"""Parts of a dataset: what users name, the ranges that stands for, and how ranges add up; costs and ways with ranges."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from publisher.build import Sink, TreeBuilder
from puller.errors import UsageError
from puller.fetch import FolderFetcher
from puller.partcopy import AtSnapshot, narrowed
from puller.parts import EVERYTHING, contains, cut, named, parse, ranges_of, tables_in, without
from puller.plan import Reason, Way, plan
from puller.ranges import overlaps
from puller.runs import merge
from puller.stores.folder import FolderStore
from puller.tree import Reader
from puller.wire.checksum import record_hash, record_hashes, run_sum
from puller.wire.codec import CHUNKS
from puller.wire.keys import encode_key
from puller.wire.rows import Column, Table
from tests.unit.test_plan import diff, head, tree

KEYS = [b"%02d" % n for n in range(100)]


@pytest.mark.parametrize(
    ("kind", "wanted", "names", "inside", "outside"),
    [
        ("files", ["eu/", "eu/vat/"], ["eu/"], [b"eu/a", b"eu/\xc3\xa9"], [b"eu", b"eu0", b"e"]),
        ("files", ["eu"], ["eu"], [b"eu/a", b"europe"], [b"et", b"ev"]),
        (
            "bytes",
            [b"\xff\xff", "é"],
            ["é", "\\xff\\xff"],
            [b"\xff\xff", b"\xff\xff\xff", "éa".encode()],
            [b"\xff\xfe"],
        ),
        (
            "table",
            ["t"],
            ["t"],
            [b"", encode_key("t", (None,)), encode_key("t", (b"\xff",))],
            [encode_key("t\0", (1,)), encode_key("ta", (1,)), encode_key("s", (1,))],
        ),
        (
            "table",
            [("t", 1), '["u", "a"]', ("t", 1, "x")],
            ['["t",1]', '["u","a"]'],
            [b"", encode_key("t", (1,)), encode_key("t", (1, b"\xff")), encode_key("u", ("a", None))],
            [encode_key("t", (1.0,)), encode_key("t", (256,)), encode_key("u", ("a\0", 1)), encode_key("u", ("ab", 1))],
        ),
        ("table", [("[x",)], ["[x"], [encode_key("[x", (1,))], [encode_key("x", (1,))]),
    ],
)
def test_parts_as_users_name_them(kind, wanted, names, inside, outside):
    parts = parse(kind, wanted)
    assert named(kind, parts) == names
    ranges = ranges_of(kind, parts)
    assert all(overlaps(ranges, key, key + b"\0") for key in inside)
    assert not any(overlaps(ranges, key, key + b"\0") for key in outside)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("files", ("t",)),
        ("files", "/etc"),
        ("files", "a/../b"),
        ("files", ""),
        ("files", b"a"),
        ("files", "\udcff"),
        ("bytes", b""),
        ("bytes", 1),
        ("table", ()),
        ("table", (1,)),
        ("table", "[1]"),
        ("table", "[]"),
        ("table", "[x"),
        ("table", '["t", {}]'),
        ("table", 1),
        ("table", ("t", float("nan"))),
    ],
)
def test_what_no_key_begins_with_is_refused(kind, wanted):
    with pytest.raises(UsageError):
        parse(kind, [wanted])


def test_neighbours_are_one_range():
    assert ranges_of("bytes", parse("bytes", ["a", "c", "b"])) == [(b"a", b"d")]
    assert ranges_of("files", ()) == EVERYTHING


def test_tables_of_parts():
    schema = [Table(name, [Column("k", "int64")], [0]) for name in ("a", "a\0", "b")]
    assert [table.name for table in tables_in(schema, parse("table", [("a\0", 1)]))] == ["a\0"]
    assert [table.name for table in tables_in(schema, parse("table", ["a", "b"]))] == ["a", "b"]
    assert tables_in(schema, ()) == schema


@st.composite
def some_ranges(draw):
    bounds = sorted(draw(st.sets(st.sampled_from([*KEYS, None]), max_size=8)), key=lambda b: (b is None, b or b""))
    return [(a, b) for a, b in zip(bounds[::2], bounds[1::2], strict=False) if a is not None]


def there(ranges):
    return {key for key in KEYS if any(lower <= key and (upper is None or key < upper) for lower, upper in ranges)}


@given(some_ranges(), some_ranges(), st.data())
def test_ranges_add_up(a, b, data):
    assert there(without(a, b)) == there(a) - there(b)
    assert there(without(EVERYTHING, b)) == set(KEYS) - there(b)
    keys = sorted(data.draw(st.sets(st.sampled_from(KEYS))))
    assert cut(keys, [key * 2 for key in keys], a) == (
        kept := [key for key in keys if key in there(a)],
        [key * 2 for key in kept],
    )
    lower = data.draw(st.sampled_from(KEYS))
    upper = data.draw(st.sampled_from([key for key in KEYS if key > lower] or [None]))
    if contains(a, lower, upper):
        assert there([(lower, upper)]) <= there(a)


def test_a_tree_costs_what_meets_the_ranges(tmp_path):
    noise = random.Random(1)
    values = [noise.randbytes(500) for _ in KEYS]
    with ThreadPoolExecutor(1) as pool:
        builder = TreeBuilder(Sink(FolderStore(str(tmp_path)), CHUNKS, None), pool, leaf_size=3000)
        builder.add(KEYS, values)
        whole = builder.finish()
        fetcher = FolderFetcher(str(tmp_path))
        reader = Reader(fetcher, pool)
        leaves = list(reader.leaves(CHUNKS, whole))
        assert len(leaves) > 10
        within = [(b"21", b"43"), (b"90", None)]
        meeting = [leaf.ref.stored for leaf in leaves if overlaps(within, leaf.lower, leaf.upper)]
        before = fetcher.requests
        part = reader.narrow(CHUNKS, whole, within)
        assert fetcher.requests == before + 1
        assert (part.files, part.bytes) == (1 + len(meeting), whole.ref.stored + sum(meeting))
        found = [key for keys, _ in reader.runs(CHUNKS, whole, within=within) for key in keys]
        assert found == [key for key in KEYS if b"21" <= key < b"43" or key >= b"90"]
        assert fetcher.requests == before + 1 + len(meeting)
        assert reader.narrow(CHUNKS, whole, EVERYTHING).bytes == whole.bytes
        expected = len(found), run_sum(found, [values[int(key)] for key in found])
        before = fetcher.requests
        assert reader.proof(whole, within, {}) == expected
        assert fetcher.requests == before  # the chunks that are cut were read, and the index
        reader.cuts.clear()
        assert reader.proof(whole, within, {}) == expected
        assert 1 <= fetcher.requests - before <= 3


def test_diffs_lead_over_the_snapshot():
    singles = [diff(n, n + 1) for n in range(8)]
    newest = head(8, 5, singles)
    assert [(s.diff.a, s.diff.b) for s in plan((1, 2), newest, [*singles, diff(2, 8, 1)]).steps] == [(2, 8)]
    over = plan((1, 2), newest, [*singles, diff(2, 8, 1)], via=5)
    assert over.way is Way.DIFFS
    assert [step.diff.b for step in over.steps] == [3, 4, 5, 8]
    without_way = plan((1, 2), newest, [*singles[5:], diff(2, 8, 1)], via=5)
    assert (without_way.way, without_way.reason) == (Way.RESYNC, Reason.NO_DIFFS)
    for version in (5, 6):
        assert plan((1, version), newest, singles, via=5).steps[0].diff.b == version + 1


class Reading:
    """Says what trees cost some ranges, and which were asked for."""

    def __init__(self):
        self.asked = []

    def narrow(self, area, whole, within):
        self.asked.append(whole.bytes)
        return tree(whole.bytes // 100)


def test_the_plan_of_a_part_is_by_what_it_costs():
    newest = head(9, 1, singles := [diff(n, n + 1, 10**6) for n in range(1, 9)], size=10**7)
    closed = {Way.PATCH: Reason.PARTIAL_COPY}
    first = plan((1, 5), newest, singles, closed=closed)
    assert first.way is Way.DIFFS
    reading = Reading()
    cheaper, diffs = narrowed(reading, newest, singles, first, [(b"a", b"b")], share=0.5)
    assert 10**7 not in reading.asked  # the diffs cost less than that: the snapshot's indexes need not be read
    assert plan((1, 5), cheaper, diffs, closed=closed).way is Way.DIFFS
    cheaper, diffs = narrowed(reading, newest, singles, first, [(b"a", b"b")], share=None)
    assert 10**7 in reading.asked
    chosen = plan(None, cheaper, diffs, closed=closed)
    assert (chosen.way, chosen.bytes) == (Way.BOOTSTRAP, 10**5 + 8 * 10**4)


@given(st.integers(0, 2**32))
def test_what_a_step_passes_through_is_counted(seed):
    r = random.Random(seed)

    def changes():
        keys = sorted(r.sample(KEYS[:30], r.randrange(20)))
        return {key: None if r.random() < 0.3 else r.randbytes(3) for key in keys}

    def runs(records):
        keys = list(records)
        at = 0
        while at < len(keys):
            part = keys[at : at + r.randrange(1, 8)]
            at += len(part)
            yield part, [records[key] for key in part]

    def applied(state, step):
        return {key: value for key, value in (state | step).items() if value is not None}

    state = {key: b"old" for key in KEYS[:30] if r.random() < 0.5}
    until, after = changes(), changes()
    at = AtSnapshot(len(state), run_sum(list(state), list(state.values())))
    for keys, values in at.merged(runs(until), runs(after)):
        before = [record_hash(key, state[key]) if key in state else None for key in keys]
        middle = r.randrange(len(keys) + 1)
        for some in (slice(middle), slice(middle, None)):
            at.take(keys[some], record_hashes(keys[some], values[some]), before[some])
    there = applied(state, until)
    assert at.sums == (len(there), run_sum(list(there), list(there.values())))
    fresh = AtSnapshot()
    for _ in merge([fresh.counted(runs(state)), runs(after)]):
        pass
    assert fresh.sums == (len(state), run_sum(list(state), list(state.values())))
