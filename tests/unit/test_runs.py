"""Merging and comparing, held to plain dicts."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from publisher.changes import compare
from puller.runs import Cursor, live, merge

KEYS = st.binary(max_size=3)
VALUES = st.one_of(st.none(), st.binary(max_size=2))
STATES = st.dictionaries(KEYS, VALUES, max_size=25)


@st.composite
def stream(draw, values=VALUES):
    """A state as a stream of runs, cut anywhere, empty runs included."""
    state = draw(st.dictionaries(KEYS, values, max_size=25))
    keys = sorted(state)
    cuts = sorted(draw(st.lists(st.integers(0, len(keys)), max_size=5)))
    runs = [keys[a:b] for a, b in zip([0, *cuts], [*cuts, len(keys)], strict=True)]
    return state, [(run, [state[k] for k in run]) for run in runs]


def flat(runs):
    keys = [k for run in runs for k in run[0]]
    assert keys == sorted(set(keys))
    return {k: v for run in runs for k, v in zip(*run, strict=True)}


@given(st.lists(stream(), min_size=1, max_size=4))
def test_merge_is_dict_update(streams):
    expected = {}
    for state, _ in streams:
        expected.update(state)
    merged = list(merge([runs for _, runs in streams]))
    assert flat(merged) == expected
    assert flat(list(live(merged))) == {k: v for k, v in expected.items() if v is not None}


@given(stream(st.binary(max_size=2)), stream(st.binary(max_size=2)))
def test_compare_finds_exactly_the_changes(old, new):
    changes = list(compare(old[1], new[1]))
    found = {k: (b, v) for c in changes for k, v, b in zip(c.keys, c.values, c.before, strict=True)}
    keys = old[0].keys() | new[0].keys()
    assert found == {k: (old[0].get(k), new[0].get(k)) for k in keys if old[0].get(k) != new[0].get(k)}
    ordered = [k for c in changes for k in c.keys]
    assert ordered == sorted(ordered)


@given(stream(), st.lists(KEYS, max_size=4))
def test_cursor_takes_below_bounds(given_stream, bounds):
    state, runs = given_stream
    cursor = Cursor(runs)
    start = b""
    for bound in [*sorted(set(bounds)), None]:
        keys, values = cursor.take_below(bound)
        expected = [k for k in sorted(state) if k >= start and (bound is None or k < bound)]
        assert (keys, values) == (expected, [state[k] for k in expected])
        start = bound if bound is not None else start
