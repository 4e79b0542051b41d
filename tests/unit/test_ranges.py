"""Checksums of ranges, held to a plain dict."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puller import ranges as module
from puller.errors import Invalid
from puller.ranges import Ranges, overlaps
from puller.wire.checksum import MODULUS, record_hash, record_hashes, run_sum, sum_hashes


def runs(state, r):
    keys = sorted(state)
    at = 0
    while at < len(keys):
        part = keys[at : at + r.randrange(1, 6)]
        at += len(part)
        yield part, [state[key] for key in part]


def built(state, r):
    ranges = Ranges()
    for keys, values in runs(state, r):
        ranges.extend(keys, record_hashes(keys, values))
    return ranges


def total(state):
    return run_sum(list(state), list(state.values()))


@given(st.integers(0, 2**32))
def test_an_edit_lies_in_a_range_that_differs(seed):
    r = random.Random(seed)
    state = {b"%02d" % r.randrange(100): b"%d" % n for n in range(r.randrange(60))}
    ranges = built(state, r)
    assert ranges.checksum == total(state)
    for _ in range(3):
        changed = sorted({b"%02d" % r.randrange(100) for _ in range(r.randrange(8))})
        after = [r.choice([None, b"%d" % r.randrange(100)]) for _ in changed]
        before = [state.get(key) for key in changed]
        ranges.change(changed, record_hashes(changed, after), record_hashes(changed, before))
        state |= dict(zip(changed, after, strict=True))
        state = {key: value for key, value in state.items() if value is not None}
        assert ranges.checksum == total(state)
    ranges = Ranges.load(ranges.dump())
    edited = dict(state)
    keys = {b"%02d" % r.randrange(100) for _ in range(r.randrange(3))}
    for key in keys:
        if r.random() < 0.5:
            edited.pop(key, None)
        else:
            edited[key] = b"edited"
    held = ranges.empty()
    for part, values in runs(edited, r):
        held.change(part, record_hashes(part, values))
    suspects = ranges.differing(held) if state or edited else []
    really = {key for key in keys if state.get(key) != edited.get(key)}
    if state:
        assert all(overlaps(suspects, key, key + b"\0") for key in really)
        assert bool(suspects) == bool(really)


@given(st.lists(st.none() | st.binary(min_size=16, max_size=16) | st.just(b"\xff" * 16), max_size=70))
def test_sums_are_those_of_the_numbers(hashes):
    numbers = [int.from_bytes(digest, "big") for digest in hashes if digest is not None]
    assert sum_hashes(hashes) == sum(numbers) % MODULUS


def test_ranges_stay_few(monkeypatch):
    monkeypatch.setattr(module, "MOST", 8)
    state = {b"%04d" % n: b"x" for n in range(1000)}
    ranges = Ranges()
    for key, value in state.items():
        ranges.extend([key], [record_hash(key, value)])
    assert 8 <= len(ranges._bounds) < 16
    assert ranges.checksum == total(state)
    held = ranges.empty()
    state[b"0500"] = b"edited"
    keys = sorted(state)
    held.change(keys, record_hashes(keys, [state[key] for key in keys]))
    ((first, end),) = ranges.differing(held)
    assert first <= b"0500" < end
    assert int(end) - int(first) <= 200


def test_what_is_no_dump_is_refused():
    assert Ranges.load(b"").checksum == 0
    with pytest.raises(Invalid):
        Ranges.load(b"nonsense")
