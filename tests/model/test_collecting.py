"""Publishes, collections and pullers at random lags: whatever is within the promise can always be pulled."""

from __future__ import annotations

import random
import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from publisher.build import make_pool
from publisher.gc import collect
from publisher.publish import Options, publish
from puller.fetch import FolderFetcher
from puller.pull import Options as PullOptions
from puller.pull import pull
from puller.targets import open_target
from tests.clocked import ClockedFolder
from tests.plain import PlainSource
from tests.states import archived, read_head, state_of

HOUR = 3600
DAY = 24 * HOUR
SIZES = (1, 5, 400, 1_100_000)


class Lagging:
    """A fetcher that serves a HEAD from a cache, and other files from the folder."""

    is_local = True

    def __init__(self, root: str, head: bytes | None) -> None:
        self.inner = FolderFetcher(root)
        self.head = head
        self.requests = self.received = 0

    def fetch(self, path, size, check=None):
        return self.inner.fetch(path, size, check)

    def fetch_head(self, etag):
        answer = self.inner.fetch_head(None)
        if self.head is not None:
            answer, self.head = type(answer)(self.head, None), None
        return answer

    def close(self):
        pass


class World:
    def __init__(self, base: Path, keep: int | None) -> None:
        self.keep = keep
        self.root = str(base / "d")
        self.base = base
        self.store = ClockedFolder(self.root)
        self.state: dict[bytes, bytes] = {}
        self.superseded: dict[int, float] = {}
        self.states: dict[int, dict[bytes, bytes]] = {}
        self.heads: dict[int, bytes] = {}
        self.version = 0

    def publish(self, state):
        options = Options(allow_shrink=True, keep=self.keep)
        source = PlainSource("bytes", state)
        publish(self.store, lambda name, schema: source, "data", options, now=lambda: self.store.now)
        data = self.store.read_head()[0]
        version = read_head(self.root).version
        if version != self.version:
            self.superseded[self.version] = self.store.now
            self.version = version
        self.states[version] = dict(state)
        self.heads[version] = data

    def promised(self, keep):
        return [
            v
            for v in self.states
            if v == self.version or self.superseded[v] > self.store.now - keep or v == self.version - 1
        ]

    def check(self, keep):
        for version in self.promised(keep):
            head = read_head(self.root) if version == self.version else archived(self.root, version)
            assert state_of(self.root, head) == self.states[version]

    def pull(self, name, head=None):
        """Pull into a copy that may be of any age; a HEAD from a cache comes first, where one is given."""
        fetcher = Lagging(self.root, None if head is None else self.heads[head])

        def find(found):
            return open_target(str(self.base / name), None if found is None else found.kind)

        outcome = pull(self.root, fetcher, find, PullOptions())
        assert outcome.after[1] == self.version if head is None else outcome.after[1] >= head


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([DAY, 2 * DAY, 7 * DAY]))
def test_what_is_promised_can_be_pulled(seed, keep):
    r = random.Random(seed)
    base = Path(tempfile.mkdtemp())
    try:
        world = World(base, r.choice([None, keep]))
        earlier: list[dict[bytes, bytes]] = [{b"a": b"1"}]
        world.publish(earlier[0])
        for _ in range(r.randint(5, 40)):
            world.store.now += r.choice([0, 1, HOUR, 5 * HOUR, DAY, 3 * DAY, 10 * DAY])
            what = r.random()
            if what < 0.6:
                state = dict(r.choice(earlier[-3:]))
                for _ in range(r.randint(0, 6)):
                    state[b"k%d" % r.randrange(12)] = r.randbytes(r.choices(SIZES, [5, 5, 5, 1])[0])
                if len(state) > 3:
                    del state[r.choice(list(state))]
                earlier.append(state)
                world.publish(state)
            elif what < 0.8:
                with make_pool() as pool:
                    assert collect(world.store, pool, keep=keep).missing == []
                world.check(keep)
            else:
                cached = [v for v in world.states if v < world.version and world.superseded[v] > world.store.now - HOUR]
                world.pull(
                    f"copy{r.randrange(2)}.db", r.choice([*cached, None]) if r.random() < 0.3 and cached else None
                )
        world.pull("copy0.db")
        world.pull("fresh.db")
        world.check(keep)
    finally:
        shutil.rmtree(base)
