"""A reader that shares no code with the product judges what the publisher writes, and the test vectors."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests import independent_reader as judge
from tests import signed_note
from tests.conftest import publisher, tree
from tests.crafted import SNAPSHOT, VERSIONS, craft
from tests.vectors import generate

HERE = Path(generate.__file__).parent
VECTORS = json.loads((HERE / "vectors.json").read_text()) | json.loads((HERE / "frames.json").read_text())


def blob(text):
    return None if text is None else bytes.fromhex(text)


def bounds(v):
    return {"lower": blob(v.get("lower") or ""), "upper": blob(v.get("upper"))}


def row(v, data):
    judge.row(data, judge.schema(blob(VECTORS["row"]["schema"]))["t"])


def key(v, data):
    table, values = judge.key(data)
    judge.need(values, "no table has a key without values (9.1)")
    assert (table, list(map(generate.tagged, values))) == (v["table"], v["key"])


def frame(v, data):
    assert judge.frame(data, v["raw"], blob(v.get("dictionary"))) == blob(v["content"])


def patch(v, data):
    names = [b"a", b"b", b"c"]
    olds = {k: blob(x) for k, x in zip(names, v["old"], strict=True) if x is not None}
    found = judge.patch_leaf(data, olds)
    assert v["values"] in (None, [x.hex() if type(x) is bytes else x for x in map(found.get, names)])


def trusted(v, data):
    """Whether HEAD is to be believed (7.5): a verifier from the C2SP text, and the rules of key sets."""
    try:
        name, head = judge.parse_head(data)
        sets = {int(n): blob(text) for n, text in v["sets"].items()}
        signed_note.believe(data, name, head, sets, blob(v["pinned"]), v["given"])
    except signed_note.BadNote as error:
        raise judge.Refused from error


def key_set(v, data):
    try:
        assert signed_note.read_set(data)["number"] == v["number"]
    except signed_note.BadNote as error:
        raise judge.Refused from error


def encrypted(v, data):
    frame, links = judge.Secret(VECTORS["encrypted"]["secret"]).file(data)
    assert frame == blob(v["frame"])
    found = [[area, sha256.hex(), size] for area in links for sha256, size in sorted(links[area])]
    assert found == v["links"]


def sealed(v, data):
    secret = judge.Secret(VECTORS["sealed"]["secret"])
    name, head = judge.parse_head(data)
    judge.need((name, head.get("encryption", {}).get("key")) == (secret.name, secret.id), "another secret's")
    opened = secret.head(head)
    assert all(opened[part] == v[part] for part in ("kind", "checksum", "records", "version"))


READERS = {
    "key_set": key_set,
    "trust": trusted,
    "leaf": lambda v, data: judge.leaf(data, deletions=v.get("deletions", False), **bounds(v)),
    "index": lambda v, data: judge.index(data, v["level"], **bounds(v)),
    "log": lambda v, data: judge.log(data),
    "head": lambda v, data: judge.parse_head(data),
    "key": key,
    "row": row,
    "schema": lambda v, data: judge.schema(data),
    "path": lambda v, data: judge.path(data),
    "file_value": lambda v, data: judge.file_value(data),
    "frame": frame,
    "patch": patch,
    "secret": lambda v, data: judge.Secret(data.decode()),
    "encrypted": encrypted,
    "sealed": sealed,
}
CASES = [(part, kind, v) for part in READERS for kind in ("good", "bad") for v in VECTORS[part][kind]]


@pytest.mark.parametrize(("part", "kind", "v"), CASES, ids=[f"{p}-{k}-{v['name'][:50]}" for p, k, v in CASES])
def test_vector(part, kind, v):
    if kind == "good":
        READERS[part](v, blob(v["data"]))
    else:
        with pytest.raises(judge.Refused):
            READERS[part](v, blob(v["data"]))


def test_record_hashes():
    for v in VECTORS["record_hash"]:
        assert judge.record_hash(blob(v["key"]), blob(v["value"])).hex() == v["hash"]


def test_it_is_small_and_shares_nothing():
    text = Path(judge.__file__).read_text()
    assert len(text.splitlines()) <= 345
    assert "puller" not in text
    assert "publisher" not in text


@pytest.mark.slow
def test_published_files(tmp_path):
    r = random.Random(9)
    source, dest = tmp_path / "s", tmp_path / "d"
    source.mkdir()
    (source / "large").write_bytes(r.randbytes(9_000_000))
    (source / "run").write_text("#!/bin/sh\n")
    (source / "run").chmod(0o755)
    (source / "empty").mkdir()
    (source / "link").symlink_to("run")
    for n in range(400):
        (source / f"f{n}").write_text(" ".join(str(r.random()) for _ in range(r.randint(1, 300))))
    publisher("publish", source, dest)
    states = {1: judge.Dataset(dest).records()}
    for version in range(2, 40):
        for n in r.sample(range(400), 3):
            (source / f"f{n}").write_text((source / f"f{n}").read_text() + f"{version}")
        if version == 20:
            data = bytearray((source / "large").read_bytes())
            data[4_000_000:4_000_000] = b"inserted"
            (source / "large").write_bytes(data)
        publisher("publish", source, dest)
        if version % 7 == 0:
            states[version] = judge.Dataset(dest).records()
    dataset = judge.Dataset(dest)
    newest = dataset.records()
    found = {k.decode(): (v[:1].decode(), v[1:]) for k, v in newest.items()}
    assert found == tree(source)
    for version, state in states.items():
        for patches in (False, True):
            assert dataset.apply(dict(state), version, patches) == newest
    assert any(len(diff) == 4 for diff in dataset.head["diffs"])


def test_published_tables(tmp_path):
    r = random.Random(10)
    rows = [{"k": n, "f": r.random(), "j": {"x": [n, 1.0]}, "big": 2**70 if n % 9 else None} for n in range(3000)]
    path = tmp_path / "r.jsonl"
    for version in range(12):
        r.shuffle(rows)
        rows = rows[5:]
        rows[0][f"new{version % 3}"] = "added"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        publisher("publish", path, tmp_path / "d", "--key", "k")
    records = judge.Dataset(tmp_path / "d").records()
    schema = judge.schema(records.pop(b""))
    names = [name for name, _ in schema["d"][1]]
    found = {}
    for k, value in records.items():
        cells = dict(zip(names[1:], judge.row(value, schema["d"]), strict=True))
        found[judge.key(k)[1][0]] = {
            n: json.loads(c.data) if hasattr(c, "data") else c for n, c in cells.items() if c is not None
        }
    assert found == {row["k"]: {n: c for n, c in row.items() if c is not None and n != "k"} for row in rows}


def test_the_crafted_dataset(tmp_path):
    states = craft(tmp_path)
    dataset = judge.Dataset(tmp_path)
    assert dataset.records() == states[VERSIONS]
    for version in range(SNAPSHOT, VERSIONS):
        for patches in (False, True):
            assert dataset.apply(dict(states[version]), version, patches) == states[VERSIONS]
