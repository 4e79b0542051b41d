"""Patches: small changes in larger values travel as patches, and never where they would not fit."""

from __future__ import annotations

import os
import random
import shutil

import pytest

from tests.conftest import publisher, puller, tree


@pytest.fixture
def texts(tmp_path):
    """A folder of incompressible texts, published, with a copy that is one version behind, and the change published."""
    r = random.Random(4)
    source = tmp_path / "s"
    source.mkdir()
    for n in range(20):
        (source / f"f{n}").write_bytes(r.randbytes(20_000).hex().encode())
    publisher("publish", source, tmp_path / "d")
    puller("pull", tmp_path / "d", tmp_path / "c")
    change(source, 1)
    publisher("publish", source, tmp_path / "d")
    return tmp_path


def change(source, version):
    for n in range(3):
        path = source / f"f{n}"
        data = bytearray(path.read_bytes())
        data[version * 100 : version * 100 + 3] = b"NEW"
        path.write_bytes(data)
    os.rename(source / f"f{version + 10}", source / f"renamed{version}")


def test_a_small_change_and_a_renamed_file_travel_as_a_patch(texts):
    done = puller("pull", "--json", texts / "d", texts / "c").json
    assert (done["way"], done["reason"], done["requests"]) == ("patch", "patch_cheapest", 2)
    assert done["received"] < 2500
    assert tree(texts / "c") == tree(texts / "s")
    assert puller("verify", texts / "c").status == 0


def test_patches_follow_each_other(texts):
    for version in (2, 3, 4):
        change(texts / "s", version)
        publisher("publish", texts / "s", texts / "d")
    done = puller("pull", "--json", texts / "d", texts / "c").json
    assert done["way"] == "patch"
    assert done["received"] < 6000
    assert tree(texts / "c") == tree(texts / "s")


def test_a_copy_that_was_edited_takes_the_diff(texts):
    (texts / "c/f0").unlink()
    done = puller("pull", "--json", texts / "d", texts / "c").json
    assert done["way"] == "diffs"
    assert tree(texts / "c") == tree(texts / "s")


def test_edits_are_still_refused(texts):
    (texts / "c/f1").write_text("mine")
    refused = puller("pull", "--json", texts / "d", texts / "c", check=3).json
    assert refused["names"] == ["f1"]
    assert (texts / "c/f1").read_text() == "mine"


def test_rows_and_targets_without_values(tmp_path):
    r = random.Random(5)
    rows = [f'{{"k":{n},"v":"{r.randbytes(300).hex()}","n":0}}\n' for n in range(2000)]
    (tmp_path / "r.jsonl").write_text("".join(rows))
    publisher("publish", tmp_path / "r.jsonl", tmp_path / "d", "--key", "k")
    for name in ("c.db", "c.jsonl"):
        puller("pull", tmp_path / "d", tmp_path / name)
    rows[5:50] = [row.replace('"n":0', '"n":1') for row in rows[5:50]]
    (tmp_path / "r.jsonl").write_text("".join(rows))
    publisher("publish", tmp_path / "r.jsonl", tmp_path / "d")
    ways = [puller("pull", "--json", tmp_path / "d", tmp_path / name).json for name in ("c.db", "c.jsonl")]
    assert [way["way"] for way in ways] == ["patch", "diffs"]
    assert ways[0]["received"] < ways[1]["received"] / 4
    for name in ("c.db", "c.jsonl"):
        assert puller("verify", tmp_path / name).status == 0


def test_a_damaged_patch_is_told_and_changes_nothing(texts):
    before = tree(texts / "c")
    for path in (texts / "d/diffs").rglob("*.zst"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    refused = puller("pull", texts / "d", texts / "c", check=5)
    assert "is damaged" in refused.err
    assert tree(texts / "c") == before
    shutil.rmtree(texts / "d/diffs")
    assert "although the dataset names this file" in puller("pull", texts / "d", texts / "c", check=1).err
