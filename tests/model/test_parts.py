"""Copies of parts, held to the filtered dict: random publishes, pulls, versions, parts that change, edits, epochs."""

from __future__ import annotations

import random
import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st

from publisher import build, snapshots
from puller.fetch import FolderFetcher
from puller.parts import cut, parse, ranges_of
from puller.plan import Way
from puller.pull import Options, pull
from puller.targets.memory import MemoryTarget
from tests.plain import publish_records

KEYS = [b"%c/%02d" % (letter, n) for letter in b"abcd" for n in range(20)]
PARTS = st.lists(st.sampled_from(["a/", "b/1", "c", "d/0", "d/05", "b/", "x/"]), max_size=3)


def kept(state, parts):
    if not parts:
        return state
    keys = sorted(state)
    keys, values = cut(keys, [state[key] for key in keys], ranges_of("bytes", parse("bytes", parts)))
    return dict(zip(keys, values, strict=True))


def held(target):
    return {k: v for keys, values in target.records() for k, v in zip(keys, values, strict=True)}


STEP = st.one_of(
    st.tuples(st.just("publish"), st.integers(0, 2**32)),
    st.tuples(st.just("pull"), st.integers(0, 2)),
    st.tuples(st.just("parts"), st.integers(0, 2), PARTS),
    st.tuples(st.just("version"), st.integers(0, 2), st.integers(0, 10**6)),
    st.tuples(st.just("edit"), st.integers(0, 2), st.integers(0, 2**32)),
)


def test_parts(monkeypatch):
    monkeypatch.setattr(build, "CHUNK_SIZE", 200)
    monkeypatch.setattr(snapshots, "CHUNK_SIZE", 200)
    monkeypatch.setattr(snapshots, "SHARE", 0.8)

    @settings(max_examples=60, deadline=None)
    @given(st.lists(STEP, min_size=12, max_size=30), st.lists(PARTS, min_size=3, max_size=3))
    def run(steps, first):
        with tempfile.TemporaryDirectory() as base:
            go(base, steps, first)

    run()


def go(base, steps, first):
    states = []
    targets = [MemoryTarget() for _ in first]
    parts = list(first)
    state = dict.fromkeys(KEYS, b"0")

    def publish(seed):
        r = random.Random(seed)
        for key in r.sample(KEYS, r.choice([1, 3, 30])):
            if r.random() < 0.3:
                state.pop(key, None)
            else:
                state[key] = b"%d" % r.randrange(10**6) * 10
        if publish_records(base, "bytes", dict(state), 1000.0 + len(states)).changed:
            states.append(dict(state))

    def fetch(n, **options):
        outcome = pull(base, FolderFetcher(base), lambda head: targets[n], Options(parts=parts[n], **options))
        version = options.get("version") or len(states)
        assert held(targets[n]) == kept(states[version - 1], parts[n])
        check = targets[n].check()
        assert check.equals(targets[n].state())
        return outcome

    publish(1)
    for step in steps:
        match step:
            case ("publish", seed):
                publish(seed)
            case ("pull", n):
                fetch(n)
            case ("parts", n, wanted):
                parts[n] = wanted
                fetch(n)
            case ("version", n, at):
                fetch(n, version=1 + at % len(states))
    for n in range(3):
        fetch(n)
        assert fetch(n).plan.way is Way.NOTHING
