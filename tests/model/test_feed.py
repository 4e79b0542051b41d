"""Feeds of each kind against plain dicts: whatever is told, applied in order, is the dataset; restarts and lags included."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puller import UNKNOWN, Feed, Replica
from puller.wire.head import format_head, parse_head
from tests.model.test_replica import Bytes, Files, Model, Tables, exact


def normal(state: dict) -> dict:
    """A column that is None is the same as none: an added one changes no row."""
    return {
        key: exact({n: v for n, v in value.items() if v is not None} if isinstance(value, dict) else value)
        for key, value in state.items()
    }


class Consumer:
    """Keeps a dict by what it is told. It may lose the dict's changes since it last acknowledged, or keep them."""

    def __init__(self, how, model, published):
        self.how, self.model, self.published = how, model, published
        self.mirror, self.saved = {}, {}
        self.clean = self.committed = None
        self.open()

    def open(self):
        data, state = str(self.model.base / "data"), str(self.model.base / f"{self.how}.state")
        self.replica = None
        if self.how == "host":
            self.feed = Feed(data, state=state, follow=False)
        else:
            self.replica = Replica(
                data, None if self.how == "memory" else str(self.model.base / f"feed-{self.model.name}")
            )
            self.feed = self.replica.feed(state, follow=False)
        self.begun = self.last = None

    def take(self, most):
        for _ in range(most):
            event = next(self.feed, None)
            if event is None:
                return
            getattr(self, f"on_{event.type}")(event)

    def on_reset(self, event):
        self.mirror.clear()
        self.clean, self.begun, self.last = None, event.position, None
        assert event.since is None

    def on_change(self, event):
        if self.begun != event.position:
            assert event.since is not None
            assert self.committed is None or event.since == self.committed
            self.begun, self.last = event.position, None
        bound = self.model.form().encode_bound(event.key)
        assert self.last is None or self.last < bound
        self.last = bound
        if event.old is not UNKNOWN and (event.since is None or self.clean == event.since):
            assert exact(self.mirror.get(event.key)) == exact(event.old)
        if event.new is None:
            self.mirror.pop(event.key, None)
        else:
            self.mirror[event.key] = event.new

    def on_commit(self, event):
        assert self.committed is None or event.position > self.committed
        assert normal(self.mirror) == normal(self.published[event.position])
        self.clean = self.committed = event.position

    def ack(self):
        if self.committed is not None and self.committed == self.begun:
            self.feed.ack(self.committed)
            self.saved = dict(self.mirror)

    def restart(self, lose):
        acknowledged = self.feed.position
        self.feed.close()
        if self.replica is not None:
            self.replica.close()
        if lose:
            self.mirror = dict(self.saved)
        self.clean, self.committed = acknowledged if lose else None, None
        self.open()
        assert self.feed.position == acknowledged


class Run:
    def __init__(self, model: type[Model], data):
        self.model = model()
        self.published: dict = {}
        while not self.published:
            self.publish(data)
        self.consumers = [Consumer(how, self.model, self.published) for how in ("host", "memory", "disk")]

    def head(self):
        return parse_head((self.model.base / "data/HEAD").read_bytes())

    def publish(self, data):
        self.model.publish(data)
        if self.model.state:  # an empty state is not published
            head = self.head()
            self.published[head.epoch, head.version] = self.model.seen()

    def take(self, data):
        data.draw(st.sampled_from(self.consumers)).take(data.draw(st.integers(1, 8)))

    def take_all(self, data):
        data.draw(st.sampled_from(self.consumers)).take(10_000)

    def ack(self, data):
        data.draw(st.sampled_from(self.consumers)).ack()

    def restart(self, data):
        data.draw(st.sampled_from(self.consumers)).restart(data.draw(st.booleans()))

    def pull_by_another(self, data):
        with Replica(str(self.model.base / "data"), str(self.model.base / f"feed-{self.model.name}")) as replica:
            replica.pull()

    def new_epoch(self, data):
        head = self.head()
        new = msgspec.structs.replace(head, epoch=head.epoch + 1, time=head.time + 1)
        (self.model.base / "data/HEAD").write_bytes(format_head(new))
        self.model.clock += 2
        self.published[new.epoch, new.version] = self.published[head.epoch, head.version]

    def add_a_column(self, data):
        if isinstance(self.model, Tables):
            self.model.add_a_column(data)

    def close(self):
        for consumer in self.consumers:
            consumer.feed.close()
            if consumer.replica is not None:
                consumer.replica.close()
        self.model.teardown()


ACTIONS = [
    *["publish"] * 3,
    *["take"] * 4,
    *["take_all", "ack"] * 2,
    *["restart", "pull_by_another", "new_epoch", "add_a_column"],
]


def follow(model, data, actions):
    run = Run(model, data)
    try:
        for action in actions:
            getattr(run, action)(data)
        for consumer in run.consumers:
            consumer.take(10_000)  # ends with what was there when it was polled for
            consumer.take(10_000)
            assert normal(consumer.mirror) == normal(list(run.published.values())[-1])
    finally:
        run.close()


def runs(longest):
    return given(st.data(), st.lists(st.sampled_from(ACTIONS), min_size=10, max_size=longest))


@settings(max_examples=2, deadline=None)
@runs(12)
def test_what_is_told_is_the_dataset(data, actions):
    follow(Tables, data, actions)


@pytest.mark.slow
@pytest.mark.parametrize("model", [Bytes, Files, Tables])
@settings(max_examples=60, deadline=None)
@runs(30)
def test_what_is_told_is_the_dataset_in_many_runs(model, data, actions):
    follow(model, data, actions)
