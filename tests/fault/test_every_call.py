"""SIGKILL and EIO at every file call of a publish and of a pull: the old state or the new one, and the next run mends it.

The calls are those of the system, SQLite's among them (`calls.c`). The default suite tries a sample of them.
"""

from __future__ import annotations

import json
import random
import shutil
import sqlite3

import pytest

from tests.conftest import lines, tree
from tests.fault.forks import Forks

MODES = ["kill", "EIO", "EIO from there on"]
SAMPLED = ["kill", "EIO"]
SAMPLE = 2
KEPT = ("was kept", "stays as it was", "nothing was published", "nothing was written")


@pytest.fixture(scope="module")
def forks(tmp_path_factory):
    runner = Forks(tmp_path_factory.mktemp("forks"))
    yield runner
    runner.close()


def done(ended):
    assert ended.status == 0, ended
    return ended


def names(folder, what):
    """What lies below a folder, without what could not be tidied up: temporary files, an empty staging area."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*")}
    if not what.startswith("EIO at") or ": unlink" in what:
        found = {n: p for n, p in found.items() if not p.name.startswith(".tmp-") and not n.endswith(".headwater-tmp")}
    return {name for name, path in found.items() if "/.headwater/staging" not in name or not path.is_dir()}


class Folders:
    """Datasets of kind files: two states, their stores, and copies."""

    copy = "copy"
    key = ()
    first = how = ()

    def __init__(self, base, forks):
        self.source, self.forks = base / "source", forks
        self.states, self.stores = [], []
        for version in (1, 2):
            self.fill(version)
            self.states.append(tree(self.source))
            before = self.stores[-1] if self.stores else None
            self.stores.append(base / f"store{version}")
            if before is not None:
                shutil.copytree(before, self.stores[-1])
            self.publish(self.stores[-1])

    def fill(self, version):
        if version == 1:
            (self.source / "gone").mkdir(parents=True)
            (self.source / "gone/file").write_text("goes")
            (self.source / "a").write_text("a")
            (self.source / "stays").write_text("stays")
        else:
            shutil.rmtree(self.source / "gone")
            (self.source / "a").write_text("changed")
            (self.source / "new/empty").mkdir(parents=True)
            (self.source / "new/link").symlink_to("../a")

    def publish(self, store, **options):
        return self.forks.run("publisher", "publish", "--json", self.source, store, *self.key, **options)

    def state(self, copy):
        """What a copy holds; whatever was decided is finished by the next command."""
        self.forks.run("puller", "status", copy)
        return tree(copy) if copy.exists() else {}


class Generations(Folders):
    """Copies that are switched as a whole."""

    first = how = ("--atomic",)


class Switched(Folders):
    """Copies that were plain folders, and are switched as a whole from the next pull on."""

    how = ("--atomic",)


class SwitchedBack(Folders):
    """The other way round."""

    first, how = ("--atomic",), ("--no-atomic",)


class Databases(Folders):
    """Datasets of kind table, and SQLite copies."""

    copy = "copy.db"
    key = ("--key", "k", "--table", "t")

    def __init__(self, base, forks):
        super().__init__(base, forks)
        self.states = [[{"k": n, "v": f"{v} {n}"} for n in range(v, 60)] for v in (1, 2)]

    def fill(self, version):
        self.source = self.source.with_suffix(".jsonl")
        rows = [{"k": n, "v": f"{version} {n}"} for n in range(version, 60)]
        self.source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def state(self, copy):
        if not copy.exists():
            return []
        with sqlite3.connect(copy) as db:
            db.row_factory = sqlite3.Row
            there = db.execute("SELECT name FROM sqlite_master WHERE name = 't'").fetchone()
            return [dict(row) for row in db.execute("SELECT * FROM t ORDER BY k")] if there else []


class Lines(Databases):
    """JSON Lines copies."""

    copy = "copy.jsonl"

    def state(self, copy):
        return lines(copy) if copy.exists() else []


WAYS = {"switched": Switched, "switched-back": SwitchedBack}
FORMS = {"folder": Folders, "generations": Generations, "sqlite": Databases, "jsonl": Lines}


@pytest.fixture(scope="module")
def forms(tmp_path_factory, forks):
    return {name: form(tmp_path_factory.mktemp(name), forks) for name, form in FORMS.items()}


@pytest.fixture(scope="module")
def ways(tmp_path_factory, forks):
    return {name: form(tmp_path_factory.mktemp(name), forks) for name, form in WAYS.items()}


def check_ended(ended, mode, what, *, moved):
    """A fault ends a command in one of the promised ways, and what it says is true."""
    if mode == "kill":
        assert ended.status == -9, (what, ended)
        return
    assert ended.status in (0, 1), (what, ended)
    if ended.status == 0:
        assert moved, (what, ended)
    else:
        assert ended.err.startswith("error: "), (what, ended)
        assert not (moved and any(text in ended.err for text in KEPT)), (what, ended)


def pull_faults(forks, form, tmp_path, start, mode, chosen):
    """A pull with a fault at each of the chosen calls."""
    behind, place, reference = tmp_path / "behind", tmp_path / "place", tmp_path / "reference"
    behind.mkdir()
    if start == "behind":
        done(forks.run("puller", "pull", *form.first, form.stores[0], behind / form.copy))
    old, new = form.states if start == "behind" else [type(form.states[0])(), form.states[1]]
    shutil.copytree(behind, reference, symlinks=True)
    pull = ("puller", "pull", *form.how, form.stores[1])
    calls = done(forks.run(*pull, reference / form.copy, below=reference)).calls
    assert len(calls) > 8
    for at in chosen(len(calls)):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(behind, place, symlinks=True)
        copy = place / form.copy
        ended = forks.run(*pull, copy, below=place, at=at, mode=mode)
        what = f"{mode} at call {at}: {ended.calls[at - 1] if len(ended.calls) >= at else None}"
        found = form.state(copy)
        assert found in (old, new), what
        check_ended(ended, mode, what, moved=found == new)
        done(forks.run(*pull, copy))
        assert form.state(copy) == new, what
        assert forks.run("puller", "verify", copy).status == 0, what
        assert names(place, what) == names(reference, what), what


def publish_faults(forks, form, tmp_path, version, mode, chosen):
    """A publish with a fault at each of the chosen calls."""
    place, reference, clean = tmp_path / "place", tmp_path / "reference", tmp_path / "clean"
    if version == 2:
        shutil.copytree(form.stores[0], clean)
    else:
        clean.mkdir()
    shutil.copytree(clean, reference)
    calls = done(form.publish(reference, below=reference)).calls
    before = (clean / "HEAD").read_bytes() if version == 2 else None
    for at in chosen(len(calls)):
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(clean, place)
        ended = form.publish(place, below=place, at=at, mode=mode)
        what = f"{mode} at call {at}: {ended.calls[at - 1] if len(ended.calls) >= at else None}"
        head = (place / "HEAD").read_bytes() if (place / "HEAD").exists() else None
        moved = head != before
        check_ended(ended, mode, what, moved=moved)
        if head is not None:
            assert pulled(forks, form, tmp_path, place) == form.states[version - 2 + moved if version == 2 else 1], what
        again = json.loads(done(form.publish(place)).out)
        assert again["version"] == version, what
        assert again["changed"] == (not moved), what
        assert pulled(forks, form, tmp_path, place) == form.states[1], what
        assert names(place, what) == names(reference, what), what


def pulled(forks, form, tmp_path, store):
    """What a fresh puller gets, and one that holds the version before."""
    fresh = tmp_path / "fresh"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    done(forks.run("puller", "pull", store, fresh / form.copy))
    return form.state(fresh / form.copy)


def sampled(mode):
    return lambda calls: sorted(random.Random(f"{mode} {calls}").sample(range(1, calls + 1), SAMPLE))


def every(calls):
    return range(1, calls + 1)


@pytest.mark.parametrize("mode", SAMPLED)
@pytest.mark.parametrize("start", ["nothing", "behind"])
@pytest.mark.parametrize("name", FORMS)
def test_pull_with_a_fault_at_some_calls(forks, forms, tmp_path, name, start, mode):
    pull_faults(forks, forms[name], tmp_path, start, mode, sampled(mode))


@pytest.mark.parametrize("mode", SAMPLED)
@pytest.mark.parametrize("version", [1, 2])
def test_publish_with_a_fault_at_some_calls(forks, forms, tmp_path, version, mode):
    publish_faults(forks, forms["folder"], tmp_path, version, mode, sampled(mode))


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("start", ["nothing", "behind"])
@pytest.mark.parametrize("name", FORMS)
def test_pull_with_a_fault_at_every_call(forks, forms, tmp_path, name, start, mode):
    pull_faults(forks, forms[name], tmp_path, start, mode, every)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", WAYS)
def test_a_folder_that_becomes_a_link_or_no_longer_is_one_with_a_fault_at_every_call(forks, ways, tmp_path, name, mode):
    pull_faults(forks, ways[name], tmp_path, "behind", mode, every)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ["folder", "sqlite"])
def test_publish_with_a_fault_at_every_call(forks, forms, tmp_path, name, version, mode):
    publish_faults(forks, forms[name], tmp_path, version, mode, every)
