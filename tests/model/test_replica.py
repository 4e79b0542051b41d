"""Replicas for programs, of each kind and in each place, against plain dicts: contents, ranges, and told changes."""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puller import File, Replica
from puller.forms import TableForm, form_of
from puller.wire.rows import SCHEMA_KEY, Column, Table, encode_schema
from tests.plain import publish_records


def memory() -> str | None:
    """A folder in memory, where there is room: no model cuts the power, so none has to wait for disks."""
    place = "/dev/shm"
    return place if os.path.isdir(place) and shutil.disk_usage(place).free > 1 << 28 else None


def exact(value):
    """What two values have in common only if they are the same, types included (1 is not 1.0); cheap for large ones."""
    return value if isinstance(value, (bytes, File)) else repr(value)


class Model:
    """One dataset of a kind; replicas in memory and on disk that lag behind as they like."""

    kind: str
    name: str
    keys: st.SearchStrategy
    values: st.SearchStrategy
    prefixes: st.SearchStrategy

    def __init__(self):
        self.base = Path(tempfile.mkdtemp(dir=memory()))
        self.state: dict = {}
        self.published: list[dict] = []
        self.replicas = {name: self.open(name) for name in (None, self.name)}
        self.mirrors: dict = {name: {} for name in self.replicas}
        self.clock = 1000

    def open(self, name):
        return Replica(str(self.base / "data"), None if name is None else str(self.base / name))

    def teardown(self):
        for replica in self.replicas.values():
            replica.close()
        shutil.rmtree(self.base)

    def form(self):
        return form_of(self.kind)

    def records(self):
        form = self.form()
        return {form.encode_key(key): form.encode_value(key, value) for key, value in self.state.items()}

    def seen(self):
        """The state as programs see it."""
        return dict(self.state)

    def publish(self, data):
        for _ in range(data.draw(st.integers(1, 5))):
            if self.state and data.draw(st.booleans()):
                self.state.pop(data.draw(st.sampled_from(sorted(self.state, key=repr))))
            else:
                self.state[data.draw(self.keys)] = data.draw(self.values)
        self.clock += 1
        if self.state and publish_records(self.base / "data", self.kind, self.records(), self.clock).changed:
            self.published.append(self.seen())

    def pull(self, data):
        if not self.published:
            return
        name = data.draw(st.sampled_from([None, self.name]))
        replica, mirror, told = self.replicas[name], self.mirrors[name], []
        outcome = replica.pull(told.append, overwrite=data.draw(st.sampled_from([False, False, False, True])))
        assert outcome.after[1] == replica.version == len(self.published)
        bounds = [self.form().encode_bound(change.key) for change in told]
        assert bounds == sorted(set(bounds))
        for key, old, new in told:
            assert exact(mirror.get(key)) == exact(old)
            assert exact(old) != exact(new)
            if new is None:
                del mirror[key]
            else:
                mirror[key] = new
        assert same(mirror, self.published[-1])

    def reopen(self, data):
        self.replicas[self.name].close()
        self.replicas[self.name] = self.open(self.name)

    def ranges(self, data):
        bound = self.form().encode_bound
        for name, replica in self.replicas.items():
            mirror = self.mirrors[name]
            prefix, start, stop = data.draw(st.tuples(st.none() | self.prefixes, *2 * [st.none() | self.prefixes]))
            size = 0 if prefix is None else len(prefix)
            expected = {
                key: value
                for key, value in mirror.items()
                if (prefix is None or key[:size] == prefix)
                and (start is None or bound(key) >= bound(start))
                and (stop is None or bound(key) < bound(stop))
            }
            items = replica.items(prefix, start=start, stop=stop)
            assert same(dict(items), expected)
            assert len(items) == len(expected)
            assert list(replica.keys(prefix, start=start, stop=stop)) == sorted(expected, key=bound)
            assert list(map(exact, replica.values(prefix, start=start, stop=stop))) == [
                exact(expected[key]) for key in sorted(expected, key=bound)
            ]
            key = data.draw(self.keys)
            assert (key in replica.keys(prefix, start=start, stop=stop)) == (key in expected)

    def replicas_equal_their_mirrors(self):
        for name, replica in self.replicas.items():
            mirror = self.mirrors[name]
            assert len(replica) == len(mirror)
            assert list(replica) == sorted(mirror, key=self.form().encode_bound)
            for key, value in mirror.items():
                assert exact(replica[key]) == exact(value)
            assert replica.get("no such key") is None


def same(found: dict, expected: dict) -> bool:
    return {key: exact(value) for key, value in found.items()} == {key: exact(value) for key, value in expected.items()}


class Bytes(Model):
    kind, name = "bytes", "copy.db"
    keys = st.binary(max_size=2)
    values = st.one_of(st.binary(max_size=3), st.integers(0, 9).map(lambda n: random.Random(n).randbytes(1_200_000)))
    prefixes = st.binary(max_size=2)


class Files(Model):
    kind, name = "files", "copy"
    keys = st.sampled_from([f"{a}/{b}{c}" for a in "aä" for b in ("", "x", "x/") for c in "01"])
    values = st.one_of(
        st.binary(max_size=3).map(File),
        st.binary(max_size=3).map(lambda content: File(content, "executable")),
        st.sampled_from([File(b"../x", "symlink"), File(b"", "folder")]),
        st.integers(0, 3).map(lambda n: File(random.Random(n).randbytes(1_200_000))),
    )
    prefixes = st.sampled_from(["", "a", "a/", "a/x", "a/x/", "ä", "ä/x/1", "b"])


class Tables(Model):
    kind, name = "table", "copy.db"
    keys = st.one_of(
        st.tuples(st.just("t"), st.integers(-300, 300)),
        st.tuples(st.just('t "'), st.none() | st.text(alphabet="a\0ä", max_size=2), st.none() | st.booleans()),
    )
    values = st.fixed_dictionaries(
        {
            "x": st.one_of(
                st.none(), st.integers(0, 1), st.sampled_from([0.0, -0.0, 1.0, True, "1", b"1", 2**70, [1, {}]])
            )
        }
    )
    prefixes = st.one_of(
        st.just(()),
        st.sampled_from([("t",), ('t "',), ("u",), ("t", 1), ("t", 1.5), ("t", None), ("t", "text"), ('t "', "a")]),
        st.tuples(st.just('t "'), st.none() | st.text(alphabet="a\0", max_size=2)),
        keys,
    )

    def __init__(self):
        super().__init__()
        self.columns = {"t": [Column("id", "int64"), Column("x", "any")]}
        self.columns['t "'] = [Column("b", "bool"), Column("x", "any"), Column("a", "text")]
        self.state[("t", 0)] = {"x": None}

    def schema(self):
        return [Table("t", self.columns["t"], [0]), Table('t "', self.columns['t "'], [2, 0])]

    def form(self):
        return TableForm(self.schema())

    def records(self):
        return super().records() | {SCHEMA_KEY: encode_schema(self.schema())}

    def seen(self):
        found = {}
        for key, row in self.state.items():
            whole = row | ({"id": key[1]} if key[0] == "t" else {"a": key[1], "b": key[2]})
            found[key] = {column.name: whole.get(column.name) for column in self.columns[key[0]]}
        return found

    def add_a_column(self, data):
        columns = self.columns[data.draw(st.sampled_from(["t", 't "']))]
        if len(columns) < 5:
            columns.append(Column(f"new{len(columns)}", "json"))


ACTIONS = ["publish", "publish", "pull", "pull", "pull", "ranges", "reopen"]


def follow(model: type[Model], actions: list[str], data) -> None:
    run = model()
    try:
        for action in ["publish", "pull", "pull", *actions]:
            getattr(run, action)(data)
            run.replicas_equal_their_mirrors()
    finally:
        run.teardown()


@pytest.mark.parametrize("model", [Bytes, Files])
@settings(max_examples=6, deadline=None)
@given(st.data(), st.lists(st.sampled_from(ACTIONS), min_size=5, max_size=15))
def test_replicas_follow(model, data, actions):
    follow(model, actions, data)


@settings(max_examples=15, deadline=None)
@given(st.data(), st.lists(st.sampled_from([*ACTIONS, "add_a_column"]), min_size=5, max_size=15))
def test_replicas_of_tables_follow(data, actions):
    follow(Tables, actions, data)
