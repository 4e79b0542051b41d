"""Copies of parts, held to the filtered dict: random publishes, pulls, parts that change, versions, edits, epochs, lost heads."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from publisher import build, snapshots
from publisher.epochs import Wanted, restart
from publisher.keys import Keyring
from puller.errors import LocalEdits
from puller.fetch import FolderFetcher
from puller.plan import Way
from puller.pull import Options, pull
from puller.stores import open_store
from puller.targets.folder import FolderTarget
from puller.targets.memory import Held, MemoryTarget
from puller.targets.sqlite import SQLiteTarget
from puller.wire.keys import encode_key
from puller.wire.rows import Column, Table, encode_row, encode_schema
from tests.plain import publish_records

NAMES = [(letter, n) for letter in "abcd" for n in range(20)]
PARTS = st.lists(st.sampled_from([("a",), ("b",), ("c",), ("d",), ("d", 5), ("b", 1), ("x",)]), max_size=3)
COPIES = 2
N = st.integers(0, COPIES - 1)
SEED = st.integers(0, 2**32)
STEP = st.one_of(
    st.tuples(st.just("publish"), SEED),
    st.tuples(st.just("publish"), SEED),
    st.tuples(st.just("pull"), N),
    st.tuples(st.just("pull"), N),
    st.tuples(st.just("parts"), N, PARTS),
    st.tuples(st.just("version"), N, SEED),
    st.tuples(st.just("edit"), N),
    st.tuples(st.just("lose heads")),
    st.tuples(st.just("restart")),
)


class Files:
    kind = "files"
    lead: dict[bytes, bytes] = {}

    def key(self, letter, n):
        return b"%b/%02d" % (letter.encode(), n)

    def value(self, n):
        return b"f" + b"%d" % n * 10

    def part(self, part):
        return f"{part[0]}/" if len(part) == 1 else f"{part[0]}/{part[1]:02}"

    def target(self, base):
        return FolderTarget(f"{base}/copy")

    def edit(self, target):
        path = next(
            (os.path.join(d, f) for d, _, fs in os.walk(target.where) for f in fs if ".headwater" not in d), None
        )
        if path is not None:
            Path(path).write_bytes(b"mine")
        return path is not None


class Rows(Files):
    kind = "table"
    lead = {
        b"": encode_schema(
            [Table(name, [Column("n", "int64"), Column("v", "int64")], [0]) for name in ("a", "b", "c", "d")]
        )
    }

    def key(self, letter, n):
        return encode_key(letter, (n,))

    def value(self, n):
        return encode_row([n])

    def part(self, part):
        return ("d" if part == ("x",) else part[0], *part[1:])

    def target(self, base):
        return SQLiteTarget(f"{base}/copy.db")

    def edit(self, target):
        if target.state() is None:
            return False
        with sqlite3.connect(target.where) as db:
            tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")} & set(
                "abcd"
            )
            changed = [db.execute(f"UPDATE {table} SET v = -1 WHERE n = 5").rowcount for table in tables]
        db.close()
        return bool(sum(changed))


class Memory(Files):
    kind = "bytes"

    def target(self, base):
        return MemoryTarget()

    def edit(self, target):
        found = held(target)
        if found:
            blocks = type(target.held.blocks)([(sorted(found), [b"mine"] * len(found))])
            target.held = Held(target.held.state, blocks)
        return bool(found)


def held(target):
    return {k: v for keys, values in target.records() for k, v in zip(keys, values, strict=True)}


class World:
    def __init__(self, base, form, first):
        self.base, self.form = base, form
        self.dest = f"{base}/data"
        self.names = dict.fromkeys(NAMES, 0)
        self.states: list[dict[tuple[str, int], int]] = []
        self.copies = []
        for n, parts in enumerate(first):
            os.mkdir(f"{base}/{n}")
            self.copies.append(form.target(f"{base}/{n}"))
            self.parts = [*getattr(self, "parts", []), parts]
        self.clock = 1_000_000

    def records(self, state, parts=()):
        kept = {k: v for k, v in state.items() if not parts or any(k[: len(p)] == p for p in parts)}
        return self.form.lead | {self.form.key(*k): self.form.value(v) for k, v in kept.items()}

    def publish(self, seed):
        r = random.Random(seed)
        for name in r.sample(NAMES, r.choice([1, 3, 30])):
            if r.random() < 0.3:
                self.names.pop(name, None)
            else:
                self.names[name] = r.randrange(10**6)
        self.clock += 10
        if publish_records(self.dest, self.form.kind, self.records(self.names), self.clock).changed:
            self.states.append(dict(self.names))

    def pull(self, n, **options):
        parts = [("d",) if part == ("x",) and self.form.kind == "table" else part for part in self.parts[n]]
        wanted = Options(parts=list(map(self.form.part, parts)), **options)
        target = self.copies[n]
        outcome = pull(self.dest, FolderFetcher(self.dest), lambda head: target, wanted)
        version = options.get("version") or len(self.states)
        expected = self.records(self.states[version - 1], parts)
        assert held(target) == expected
        state = target.state()
        assert state.version == version
        assert target.check().equals(state)
        assert not [note for note in outcome.notes if "was changed here" not in note]
        target.close()
        return outcome

    def step(self, what, *arguments):
        match what, *arguments:
            case ("publish", seed):
                self.publish(seed)
            case ("pull", n):
                self.pull(n)
            case ("parts", n, wanted):
                self.parts[n] = wanted
                self.pull(n)
            case ("version", n, at):
                self.go_to(n, 1 + at % len(self.states))
            case ("edit", n) if self.form.edit(self.copies[n]):
                target = self.copies[n]
                with pytest.raises(LocalEdits):
                    pull(self.dest, FolderFetcher(self.dest), lambda head: target, Options(check=True))
                self.pull(n, overwrite=True)
            case ("lose heads",):
                shutil.rmtree(f"{self.dest}/heads", ignore_errors=True)
            case ("restart",):
                self.clock += 10
                restart(open_store(self.dest), Keyring(), wanted=Wanted(), now=lambda: float(self.clock))
                self.states = [dict(self.names)]

    def go_to(self, n, version):
        if version == len(self.states) or os.path.exists(f"{self.dest}/heads/{self.epoch()}-{version}"):
            self.pull(n, version=version)

    def epoch(self):
        from tests.states import read_head

        return read_head(self.dest).epoch


@pytest.mark.parametrize(
    ("form", "examples"),
    [
        (Memory, 6),
        (Rows, 2),
        (Files, 1),
        *(pytest.param(form, 150, marks=pytest.mark.slow) for form in (Memory, Rows, Files)),
    ],
)
def test_parts(monkeypatch, form, examples):
    for module in (build, snapshots):
        monkeypatch.setattr(module, "CHUNK_SIZE", 200)
    monkeypatch.setattr(snapshots, "SHARE", 0.8)

    @settings(max_examples=examples, deadline=None)
    @given(st.lists(STEP, min_size=12, max_size=30), st.lists(PARTS, min_size=COPIES, max_size=COPIES))
    def run(steps, first):
        with tempfile.TemporaryDirectory() as base:
            world = World(base, form(), first)
            world.publish(1)
            for step in steps:
                world.step(*step)
            for n in range(COPIES):
                world.pull(n)
                assert world.pull(n).plan.way is Way.NOTHING

    run()
