"""Blocks of sorted records: against a plain dict, and what states share."""

from __future__ import annotations

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puller import blocks
from puller.blocks import Blocks, Edit

KEYS = st.integers(0, 60).map(lambda n: b"%02d" % n)
STEPS = st.lists(st.dictionaries(KEYS, st.none() | st.binary(max_size=2), max_size=40), max_size=6)


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "MOST", 8)
    monkeypatch.setattr(blocks, "LEAST", 3)


def records(state: Blocks, lower: bytes = b"", upper: bytes | None = None) -> list[tuple[bytes, bytes]]:
    return [pair for run in state.runs(lower, upper) for pair in zip(*run, strict=True)]


def step(state: Blocks, change: dict, size: int) -> tuple[Blocks, list]:
    edit, keys, before = Edit(state), sorted(change), []
    for n in range(0, len(keys), size):
        part = keys[n : n + size]
        before += edit.put(part, [change[key] for key in part])
    return edit.finish(), before


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.integers(1, 50), KEYS, KEYS)
def test_states_equal_dicts_and_old_ones_stay(steps, size, lower, upper):
    state, plain, old = Blocks(), {}, []
    for change in steps:
        old.append((state, dict(plain)))
        state, before = step(state, change, size)
        assert before == [plain.get(key) for key in sorted(change)]
        plain = {k: v for k, v in (plain | change).items() if v is not None}
        old.append((state, plain))
    for held, expected in old:
        assert records(held) == sorted(expected.items())
        assert held.records == len(expected)
        assert all(held.get(b"%02d" % n) == expected.get(b"%02d" % n) for n in range(61))
        inside = [(k, v) for k, v in sorted(expected.items()) if lower <= k < upper]
        assert records(held, lower, upper) == inside
        assert all(0 < len(keys) <= 8 for keys, _ in held.blocks)


def test_a_small_change_shares_all_other_blocks():
    r = random.Random(1)
    state, _ = step(Blocks(), {b"%05d" % n: b"v" for n in range(0, 20000, 2)}, 1000)
    before = {id(keys) for keys, _ in state.blocks}
    changed, _ = step(state, {b"%05d" % r.randrange(20000): b"w" for _ in range(5)}, 1000)
    assert len([keys for keys, _ in changed.blocks if id(keys) not in before]) <= 10


def test_blocks_do_not_crumble():
    r = random.Random(2)
    state, _ = step(Blocks(), {b"%05d" % n: b"v" for n in range(5000)}, 1000)
    for _ in range(200):
        change = {b"%05d" % r.randrange(5000): r.choice([None, None, b"v"]) for _ in range(50)}
        state, _ = step(state, change, 7)
    assert len(state.blocks) <= 2 * state.records / 3 + 1
