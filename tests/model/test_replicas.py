"""A state machine: random edits, publishes, and pulls of several pullers at random lags, against plain dicts."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import publisher
import puller
from publisher.publish import Options as PublishOptions
from publisher.publish import publish
from publisher.sources import open_source
from puller.fetch import FolderFetcher
from puller.mirror import Options as MirrorOptions
from puller.mirror import mirror
from puller.plan import Way
from puller.pull import Options, pull
from puller.stores import open_store
from puller.targets import open_target
from tests.conftest import lines, tree

NAMES = st.sampled_from([f"{a}{b}" for a in "abcd" for b in "0123"])


class Replicas(RuleBasedStateMachine):
    """One source, one dataset, three pullers that lag behind as they like."""

    encrypt = False
    targets: tuple[str, ...]
    apart: tuple[str, ...] = ()
    """Those that can neither be edited nor go back."""

    def __init__(self):
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        self.dest = str(self.base / "data")
        self.state: dict[str, object] = {}
        self.published: list[dict[str, object]] = []
        self.held: dict[str, int] = {}
        self.clock = 1_000_000

    def now(self):
        self.clock += 1
        return float(self.clock)

    def teardown(self):
        shutil.rmtree(self.base)

    @rule()
    def publish(self):
        if not self.state:
            return
        outcome = publish(
            open_store(self.dest),
            lambda name, schema: open_source(
                self.source(),
                None,
                key=self.key,
                tables=(),
                name=name,
                schema=schema,
                strict=True,
                cached_for=self.dest,
            ),
            "data",
            PublishOptions(allow_shrink=True, encrypt=self.encrypt),
            now=self.now,
        )
        changed = not self.published or self.state != self.published[-1]
        assert outcome.changed == changed
        if changed:
            self.published.append(dict(self.state))
        assert outcome.head.version == len(self.published)

    @rule(data=st.data())
    def pull(self, data):
        if not self.published:
            return
        name = data.draw(st.sampled_from(self.targets))
        outcome = self.run(name, Options())
        if self.held.get(name) == len(self.published):
            assert outcome.plan.way is Way.NOTHING
        self.held[name] = len(self.published)

    @rule(data=st.data(), keep=st.integers(0, 3))
    def pull_from_a_mirror(self, data, keep):
        """A mirror that lags behind as it likes is brought up to date, and serves a puller of the origin."""
        if not self.published:
            return
        copy = str(self.base / "mirror")
        mirror(self.dest, FolderFetcher(self.dest), open_store(copy), MirrorOptions(keep_versions=keep))
        assert (Path(copy) / "HEAD").read_bytes() == (Path(self.dest) / "HEAD").read_bytes()
        assert (b'"sealed"' in (Path(copy) / "HEAD").read_bytes()) == self.encrypt
        kept = [len(self.published) - n for n in range(keep + 1) if n < len(self.published)]
        name = data.draw(st.sampled_from([n for n in self.targets if n not in self.apart]))
        version = data.draw(st.sampled_from(kept))
        self.run(name, Options(version=version), copy)
        self.held[name] = version

    @rule()
    def lose_the_cache(self):
        shutil.rmtree(os.path.join(os.environ["XDG_CACHE_HOME"], "headwater"), ignore_errors=True)

    @rule(data=st.data())
    def go_to_a_version(self, data):
        if not self.published:
            return
        name = data.draw(st.sampled_from([n for n in self.targets if n not in self.apart]))
        version = data.draw(st.integers(1, len(self.published)))
        outcome = self.run(name, Options(version=version))
        if self.held.get(name, 0) > version:
            assert outcome.plan.way in (Way.RESYNC, Way.BOOTSTRAP)
        self.held[name] = version

    @rule(data=st.data(), seed=st.integers(0, 10**6))
    def edit_and_repair(self, data, seed):
        name = data.draw(st.sampled_from([n for n in self.targets if n not in self.apart]))
        if not self.held.get(name) or not self.published[self.held[name] - 1]:
            return
        self.damage(self.base / name, random.Random(seed))
        version = data.draw(st.sampled_from([None, self.held[name]]))
        self.run(name, Options(overwrite=True, version=version))
        self.held[name] = version or len(self.published)

    def run(self, name, options, address=None):
        address = address or self.dest
        opened = []

        def find(head):
            opened.append(open_target(str(self.base / name), None if head is None else head.kind))
            return opened[-1]

        try:
            outcome = pull(address, FolderFetcher(address), find, options, now=self.now)
        finally:
            for target in opened:
                target.close()
        target = open_target(str(self.base / name), outcome.kind)
        check = target.check()
        assert f"{check.checksum:032x}" == outcome.checksum
        target.close()
        return outcome

    @invariant()
    def replicas_hold_what_was_published(self):
        for name, version in self.held.items():
            assert self.read(self.base / name) == self.published[version - 1]


class Files(Replicas):
    """Kind files: names are files, or folders with files in them."""

    targets = ("copy", "other", "third")
    key = ()

    def source(self):
        folder = self.base / "source"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, (kind, content) in self.state.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "l":
                path.symlink_to(content.decode())
            else:
                path.write_bytes(content)
                path.chmod(0o755 if kind == "x" else 0o644)
        return str(folder)

    @rule(name=NAMES, inside=st.booleans(), kind=st.sampled_from("fxl"), seed=st.integers(0, 10**6))
    def write(self, name, inside, kind, seed):
        r = random.Random(seed)
        for other in [n for n in self.state if n == name or n.startswith(name + "/")]:
            if not inside or other == name:
                del self.state[other]
        size = r.choice([1, 20, 3000, 3000, 1_200_000]) if kind != "l" else 10
        self.state[f"{name}/{r.randrange(3)}" if inside else name] = (kind, r.randbytes(size).hex().encode()[:size])

    @rule(name=NAMES)
    def delete(self, name):
        for other in [n for n in self.state if n.partition("/")[0] == name]:
            del self.state[other]

    def damage(self, path, r):
        name = r.choice(sorted(tree(path)))
        (path / name).unlink()
        if r.random() < 0.7:
            (path / name).write_bytes(r.randbytes(20))

    def read(self, path):
        return tree(path)


class Tables(Replicas):
    """Kind table: rows with fields that come and go."""

    targets = ("copy.db", "copy.jsonl", "other.jsonl")
    key = ("k",)

    def source(self):
        rows = list(self.state.values())
        random.Random(len(self.published)).shuffle(rows)
        path = self.base / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    @initialize()
    def first(self):
        self.state["first"] = {"k": "first"}

    @rule(
        name=NAMES,
        fields=st.dictionaries(
            st.sampled_from(["a", "b", "c", "A"]),
            st.one_of(st.integers(-3, 3), st.sampled_from([0.5, -0.0, True, "text", [1, {"x": None}], 2**70])),
        ),
    )
    def write(self, name, fields):
        self.state[name] = {"k": name} | fields

    @rule(name=NAMES)
    def delete(self, name):
        self.state.pop(name, None)

    def damage(self, path, r):
        if path.suffix == ".db":
            with sqlite3.connect(path) as db:
                keys = [key for (key,) in db.execute("SELECT k FROM data")]
                change = r.choice(["DELETE FROM data WHERE k = ?", "UPDATE data SET k = k || 'x' WHERE k = ?"])
                db.execute(change, (r.choice(keys),))
            db.close()
        elif r.random() < 0.3:
            path.write_text("no lines\n")
        else:
            text = path.read_text().splitlines()
            text.pop(r.randrange(len(text)))
            path.write_text("".join(line + "\n" for line in text))

    def read(self, path):
        if path.suffix == ".db":
            target = open_target(str(path), "table")
            schema_keys = sum(len(keys) for keys, _ in target.records()) - 1
            target.close()
            return (
                self.published[self.held[path.name] - 1]
                if schema_keys == len(self.published[self.held[path.name] - 1])
                else None
            )
        return {row["k"]: row for row in lines(path)}


class Bytes(Replicas):
    """Kind bytes: a program publishes in batches, one of the pullers is a program, too."""

    targets = ("copy.db", "other.db", "memory")
    apart = ("memory",)

    def __init__(self):
        super().__init__()
        self.dataset = publisher.open(self.dest, kind="bytes", encrypt=self.encrypt)
        self.published.append({})
        self.memory = puller.Replica(self.dest)

    def teardown(self):
        self.memory.close()
        self.dataset.close()
        super().teardown()

    @rule()
    def publish(self):
        with self.dataset.batch(allow_shrink=True) as batch:
            for key in self.dataset:
                if key not in self.state:
                    del batch[key]
            for key, value in self.state.items():
                batch[key] = value
        if self.state != self.published[-1]:
            self.published.append(dict(self.state))
        assert self.dataset.version == len(self.published)

    @rule()
    def restart(self):
        self.dataset.close()
        self.dataset = publisher.open(self.dest)

    @rule(key=NAMES.map(str.encode) | st.binary(max_size=3), size=st.sampled_from([0, 10, 3000, 1_200_000]))
    def write(self, key, size):
        self.state[key] = random.Random(size + len(self.published)).randbytes(size)

    @rule(data=st.data())
    def delete(self, data):
        if self.state:
            del self.state[data.draw(st.sampled_from(sorted(self.state)))]

    def run(self, name, options, address=None):
        if name != "memory":
            return super().run(name, options, address)
        told = []
        before = dict(self.memory)
        outcome = self.memory.pull(on_change=told.append)
        for change in told:
            assert before.get(change.key) == change.old
            before[change.key] = change.new
        assert {key: value for key, value in before.items() if value is not None} == dict(self.memory)
        return outcome

    def damage(self, path, r):
        if path.suffix == ".db":
            with sqlite3.connect(path) as db:
                keys = [key for (key,) in db.execute("SELECT key FROM records")]
                change = r.choice(
                    ["DELETE FROM records WHERE key = ?", "UPDATE records SET value = x'00' WHERE key = ?"]
                )
                db.execute(change, (r.choice(keys),))
            db.close()

    def read(self, path):
        if path.name == "memory":
            return dict(self.memory)
        with sqlite3.connect(path) as db:
            found = dict(db.execute("SELECT key, value FROM records"))
        db.close()
        return found


class EncryptedFiles(Files):
    encrypt = True


class EncryptedTables(Tables):
    encrypt = True


class EncryptedBytes(Bytes):
    encrypt = True


TestFiles = Files.TestCase
TestTables = Tables.TestCase
TestBytes = Bytes.TestCase
TestFiles.settings = TestTables.settings = TestBytes.settings = settings(
    max_examples=50, stateful_step_count=25, deadline=None
)


class More:
    settings = settings(max_examples=300, stateful_step_count=25, deadline=None)


@pytest.mark.slow
class TestMoreFiles(More, Files.TestCase):
    pass


@pytest.mark.slow
class TestMoreTables(More, Tables.TestCase):
    pass


@pytest.mark.slow
class TestMoreBytes(More, Bytes.TestCase):
    pass


TestEncryptedFiles, TestEncryptedTables = EncryptedFiles.TestCase, EncryptedTables.TestCase
TestEncryptedBytes = EncryptedBytes.TestCase
TestEncryptedFiles.settings = TestEncryptedTables.settings = TestEncryptedBytes.settings = settings(
    max_examples=10, stateful_step_count=25, deadline=None
)
