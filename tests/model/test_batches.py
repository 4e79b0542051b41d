"""A state machine: batches through several open datasets, conflicts, caches that vanish, against plain dicts."""

from __future__ import annotations

import os
import shutil
import tempfile
from unittest.mock import patch

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

import publisher
from publisher.dataset import Dataset
from puller.stores.folder import FolderStore
from tests.states import read_head, state_of

KEYS = st.binary(max_size=2) | st.sampled_from([b"a", b"b", b"ab", bytes(3), b"\xff\xff"])
BIG = bytes(range(256)) * 4100
VALUES = st.binary(max_size=40) | st.sampled_from([b"", b"same", b"x" * 900]) | st.sampled_from([0, 1])
CHANGES = st.lists(st.tuples(KEYS, VALUES | st.none()), max_size=12)


def given(changes):
    """The changes drawn, numbers replaced by large values (which Hypothesis is not to print)."""
    return [(key, BIG[value:] if isinstance(value, int) else value) for key, value in changes]


SMALL = {
    "publisher.hashes.SMALL": 0,
    "publisher.hashes.READY": 0.1,
    "publisher.hashes.HELD": 15,
    "publisher.hashes.GIVEN_UP": 60,
    "publisher.hashes.WIDEST": 3000,
    "puller.lookup.KEPT": 3000,
    "publisher.snapshots.CHUNK_SIZE": 1500,
    "publisher.build.CHUNK_SIZE": 1500,
    "publisher.build.DIFF_LEAF_SIZE": 1000,
    "publisher.dataset.LONGEST_PAUSE": 0,
}
"""Limits so small that caches are built and flushed, snapshots carried and leaves cut all the time."""


class Meddled(FolderStore):
    """Lets something else happen just before HEAD is swapped."""

    meddle = None

    def swap_head(self, expected, data, time):
        act, self.meddle = self.meddle, None
        if act is not None:
            act()
        return super().swap_head(expected, data, time)


class Batches(RuleBasedStateMachine):
    encrypt = False

    def __init__(self):
        super().__init__()
        self.patches = [patch(name, value) for name, value in SMALL.items()]
        for one in self.patches:
            one.start()
        self.base = tempfile.mkdtemp()
        self.dest, self.cache = os.path.join(self.base, "data"), os.path.join(self.base, "cache")
        publisher.open(self.dest, kind="bytes", cache=False, encrypt=self.encrypt).close()
        self.states: list[dict[bytes, bytes]] = [{}, {}]
        self.open = [self.opened(), self.opened(), Dataset(Meddled(self.dest), None)]

    def opened(self):
        return Dataset(Meddled(self.dest), self.cache)

    def teardown(self):
        for dataset in self.open:
            dataset.close()
        for one in self.patches:
            one.stop()
        shutil.rmtree(self.base)

    def commit(self, which, changes):
        """Publish a batch; note the state that it must give."""
        changes = given(changes)
        with self.open[which].batch(allow_shrink=True) as batch:
            state = dict(self.open_state(which))
            for key, value in changes:
                assert batch.get(key) == state.get(key)
                if value is None and key in state:
                    del batch[key]
                elif value is None:
                    batch.discard(key)
                else:
                    batch[key] = value
                state[key] = value
                state = {k: v for k, v in state.items() if v is not None}
        self.note(changes)

    def open_state(self, which):
        return self.states[self.open[which].version]

    def note(self, changes):
        after = self.states[-1] | dict(changes)
        after = {key: value for key, value in after.items() if value is not None}
        if after != self.states[-1]:
            self.states.append(after)

    @rule(which=st.integers(0, 2), changes=CHANGES)
    def batch(self, which, changes):
        self.commit(which, changes)
        assert self.open[which].version == len(self.states) - 1

    @rule(which=st.integers(0, 2), by=st.integers(1, 2), changes=CHANGES, meddling=CHANGES)
    def conflict(self, which, by, changes, meddling):
        self.open[which]._store.meddle = lambda: self.commit((which + by) % 3, meddling)
        self.commit(which, changes)
        self.open[which]._store.meddle = None

    @rule(which=st.integers(0, 2), changes=CHANGES)
    def failing(self, which, changes):
        try:
            with self.open[which].batch() as batch:
                for key, value in given(changes):
                    batch[key] = value or b""
                raise RuntimeError
        except RuntimeError:
            pass

    @rule(which=st.integers(0, 1))
    def reopen(self, which):
        self.open[which].close()
        self.open[which] = self.opened()

    @rule(which=st.integers(0, 1))
    def crash(self, which):
        """What was not written into the cache is lost."""
        if self.open[which]._hashes._cache is not None:
            self.open[which]._hashes._cache.close()
        self.open[which] = self.opened()

    @rule()
    def lose_the_cache(self):
        shutil.rmtree(self.cache, ignore_errors=True)

    @rule(which=st.integers(0, 2))
    def refresh(self, which):
        changed = self.open[which].version != len(self.states) - 1
        assert self.open[which].refresh() == changed

    @invariant()
    def what_is_published_is_right(self):
        head = read_head(self.dest)
        assert head.version == len(self.states) - 1
        assert state_of(self.dest, head) == self.states[-1]

    @rule(which=st.integers(0, 2), keys=st.lists(KEYS, max_size=3))
    def look(self, which, keys):
        dataset, state = self.open[which], self.open_state(which)
        assert len(dataset) == len(state)
        for key in keys:
            assert dataset.get(key) == state.get(key)
            assert (key in dataset) == (key in state)

    @rule(which=st.integers(0, 2))
    def read(self, which):
        assert dict(self.open[which].items()) == self.open_state(which)
        assert list(self.open[which]) == sorted(self.open_state(which))


class Encrypted(Batches):
    encrypt = True


TestBatches = Batches.TestCase
TestBatches.settings = settings(max_examples=6, stateful_step_count=40, deadline=None)


@pytest.mark.slow
class TestMoreBatches(Batches.TestCase):
    settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


TestEncrypted = Encrypted.TestCase
TestEncrypted.settings = settings(max_examples=3, stateful_step_count=40, deadline=None)
