"""What happens to users every day: lost files, wrong arguments, changed keys, restarted datasets."""

from __future__ import annotations

import random
import shutil
import sqlite3

import pytest

from tests.conftest import lines, publisher, puller, tree

ROWS = b"".join(b'{"id":%d,"name":"n%d"}\n' % (n, n) for n in range(10))


@pytest.fixture
def table(tmp_path):
    """A table published to `d`, pulled into `c.db` and `c.jsonl`."""
    publisher("publish", "-", tmp_path / "d", "--key", "id", stdin=ROWS)
    for name in ("c.db", "c.jsonl"):
        puller("pull", tmp_path / "d", tmp_path / name)
    return tmp_path


@pytest.fixture
def folder(tmp_path):
    """A folder `s` published to `d`, pulled into `c`."""
    (tmp_path / "s/sub").mkdir(parents=True)
    (tmp_path / "s/a").write_text("a")
    (tmp_path / "s/sub/b").write_text("b")
    publisher("publish", tmp_path / "s", tmp_path / "d")
    puller("pull", tmp_path / "d", tmp_path / "c")
    return tmp_path


@pytest.mark.parametrize("name", ["c.db", "c.jsonl"])
def test_overwrite_repairs_a_table_at_the_same_version(table, name):
    if name == "c.db":
        with sqlite3.connect(table / name) as db:
            db.execute("UPDATE d SET name = 'mine' WHERE id = 3")
    else:
        (table / name).write_text("mine\n")
    assert "--repair" in puller("verify", table / name, check=6).out
    done = puller("pull", "--json", "--overwrite", table / "d", table / name).json
    assert (done["way"], done["reason"]) == (
        ("resync", "overwrite") if name == "c.db" else ("bootstrap", "resync_failed")
    )
    assert puller("verify", table / name).status == 0


def test_overwrite_repairs_a_folder_at_the_same_version(folder):
    (folder / "c/a").write_text("mine")
    (folder / "c/sub/b").unlink()
    puller("verify", folder / "c", check=6)
    puller("pull", "--overwrite", folder / "d", folder / "c")
    assert tree(folder / "c") == tree(folder / "s")


def test_a_folder_that_was_emptied_is_filled_again(folder):
    shutil.rmtree(folder / "c/sub")
    (folder / "c/a").unlink()
    done = puller("pull", "--json", folder / "d", folder / "c").json
    assert (done["way"], done["reason"]) == ("bootstrap", "data_missing")
    assert tree(folder / "c") == tree(folder / "s")


def test_dropped_tables_and_deleted_files_are_filled_again(table):
    (table / "c.jsonl").unlink()
    assert puller("pull", "--json", table / "d", table / "c.jsonl").json["reason"] == "data_missing"
    assert len(lines(table / "c.jsonl")) == 10
    with sqlite3.connect(table / "c.db") as db:
        db.execute("DROP TABLE d")
    assert puller("verify", "--json", table / "c.db", check=6).json["missing"] == ["d"]
    assert puller("pull", "--json", table / "d", table / "c.db").json["reason"] == "data_missing"
    assert puller("verify", table / "c.db").status == 0


def test_a_changed_key_needs_a_flag_and_reaches_every_target(table):
    refused = publisher("publish", "-", table / "d", "--key", "name", stdin=ROWS, check=3)
    assert "right source, key and table" in refused.err
    publisher("publish", "-", table / "d", "--key", "name", "--allow-shrink", stdin=ROWS)
    for name in ("c.db", "c.jsonl"):
        puller("pull", table / "d", table / name)
        assert puller("verify", table / name).status == 0
    with sqlite3.connect(table / "c.db") as db:
        assert db.execute("SELECT name FROM pragma_table_info('d') WHERE pk = 1").fetchall() == [("name",)]


def test_another_table_needs_a_flag_and_reaches_every_target(table):
    publisher("publish", "-", table / "d", "--table", "other", "--key", "id", stdin=ROWS, check=3)
    publisher("publish", "-", table / "d", "--table", "other", "--key", "id", "--allow-shrink", stdin=ROWS)
    done = puller("pull", "--json", table / "d", table / "c.db").json
    assert done["reason"] == "schema_changed"
    puller("pull", table / "d", table / "c.jsonl")
    for name in ("c.db", "c.jsonl"):
        assert puller("verify", table / name).status == 0
    with sqlite3.connect(table / "c.db") as db:
        names = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert names == {"other", "_headwater"}


def test_edits_are_not_lost_when_tables_are_written_anew(table):
    with sqlite3.connect(table / "c.db") as db:
        db.execute("UPDATE d SET name = 'mine' WHERE id = 3")
    publisher("publish", "-", table / "d", "--key", "name", "--allow-shrink", stdin=ROWS)
    refused = puller("pull", table / "d", table / "c.db", check=3)
    assert "--overwrite" in refused.err
    with sqlite3.connect(table / "c.db") as db:
        assert db.execute("SELECT name FROM d WHERE id = 3").fetchone() == ("mine",)
    puller("pull", "--overwrite", table / "d", table / "c.db")
    assert puller("verify", table / "c.db").status == 0


def test_odd_field_names(tmp_path):
    data = b'{"id":1,"a\\"b":2}\n{"id":2,"n\\nl":[1],"":"empty","\\\\":1.5}\n{"id":3,"later":null,"x":true}\n'
    publisher("publish", "-", tmp_path / "d", "--key", "id", stdin=data)
    for name in ("c.db", "c.jsonl"):
        puller("pull", tmp_path / "d", tmp_path / name)
        assert puller("verify", tmp_path / name).status == 0
    assert lines(tmp_path / "c.jsonl")[1] == {"id": 2, "n\nl": [1], "": "empty", "\\": 1.5}
    publisher("publish", tmp_path / "c.jsonl", tmp_path / "x/d", "--key", "id")
    sums = [publisher("status", "--json", tmp_path / d).json["checksum"] for d in ("d", "x/d")]
    assert sums[0] == sums[1]


def test_a_lost_head_does_not_fork_history(table):
    publisher("publish", "-", table / "d", stdin=ROWS.replace(b"n3", b"new"))
    publisher("publish", "-", table / "d", stdin=ROWS.replace(b"n3", b"newer"))
    (table / "d/HEAD").unlink()
    refused = publisher("publish", "-", table / "d", "--key", "id", stdin=ROWS, check=3)
    assert "heads/1-2" in refused.err
    shutil.copy(table / "d/heads/1-2", table / "d/HEAD")
    assert publisher("publish", "--json", "-", table / "d", stdin=ROWS).json["version"] == 3


def test_a_dataset_that_was_set_back_is_taken_when_told(folder):
    """One that is not signed: a signed one says so itself, by a new epoch."""
    shutil.rmtree(folder / "d")
    publisher("publish", "--unsigned", folder / "s", folder / "d")
    old = (folder / "d/HEAD").read_bytes()
    (folder / "s/a").write_text("newer")
    publisher("publish", folder / "s", folder / "d")
    puller("pull", folder / "d", folder / "other")
    (folder / "d/HEAD").write_bytes(old)
    assert "really set back" in puller("pull", folder / "d", folder / "other").err
    puller("pull", "--overwrite", folder / "d", folder / "other")
    assert (folder / "other/a").read_text() == "a"
    assert puller("status", "--json", folder / "other").json["version"] == 1


def test_passwords_stay_secret(nginx, folder):
    url = nginx.url.replace("http://", "http://user:s3cret@")
    publisher("publish", folder / "s", nginx.root / "x")
    done = puller("pull", "-v", f"{url}/x", folder / "c2")
    status = puller("status", "--json", folder / "c2")
    failed = puller("pull", "http://user:s3cret@127.0.0.1:9/x", folder / "c3", check=4)
    missing = puller("pull", f"{url}/nothing", folder / "c3", check=1)
    for text in (done.out, done.err, status.out, failed.err, missing.err):
        assert "s3cret" not in text
    assert "connection was refused; nothing was written" in failed.err
    assert "check the address" in missing.err


def test_dry_runs_tell_what_is_new(table):
    assert puller("pull", "--dry-run", "--exit-code", table / "d", table / "c.db", check=10).status == 10
    publisher("publish", "-", table / "d", stdin=ROWS.replace(b"n3", b"new"))
    done = puller("pull", "--dry-run", "--exit-code", "--json", table / "d", table / "c.db").json
    assert (done["would_change"], done["changed"]) == (True, False)


def test_a_damaged_store_is_told_to_its_publisher(folder):
    for path in (folder / "d/chunks").rglob("*.zst"):
        path.unlink()
    (folder / "s/a").write_text("changed")
    refused = publisher("publish", folder / "s", folder / "d", check=5)
    assert "Restore that file" in refused.err


def test_targets_that_do_not_fit_the_kind(folder):
    for name in ("x.jsonl", "x.db"):
        assert "--as folder" in puller("pull", folder / "d", folder / name, check=2).err
    puller("pull", folder / "d", folder / "y.db", "--as", "folder")
    assert puller("pull", folder / "d", "-", check=2).err


def test_swapped_arguments(folder):
    (folder / "file.db").write_text("x")
    for arguments in ([folder / "file.db", folder / "d"], [folder / "c", folder / "d"]):
        assert "swapped" in puller("pull", *arguments, check=2).err
    assert "not a source" in publisher("publish", folder / "d", folder / "g", check=2).err
    assert "http://" in puller("pull", "127.0.0.1:8000/x", folder / "h", check=1).err


def test_counts_are_those_of_rows(table):
    assert puller("status", "--json", table / "c.db").json["records"] == 10
    assert publisher("status", "--json", table / "d").json["records"] == 10
    done = publisher("publish", "--json", "-", table / "d", stdin=ROWS + b'{"id":11,"more":1}\n').json
    assert (done["added"], done["updated"], done["records"], done["schema_changed"]) == (1, 0, 11, True)
    done = puller("pull", "--json", table / "d", table / "c.jsonl").json
    assert (done["written"], done["records"]) == (1, 11)
    assert "10 rows" in puller("verify", table / "c.db").out


def test_an_empty_table_can_be_pulled(tmp_path):
    publisher("init", tmp_path / "d", "--kind", "table")
    for name in ("c.db", "c.jsonl"):
        puller("pull", tmp_path / "d", tmp_path / name)
        assert puller("verify", tmp_path / name).status == 0
    publisher("publish", "-", tmp_path / "d", "--key", "id", stdin=ROWS)
    for name in ("c.db", "c.jsonl"):
        puller("pull", tmp_path / "d", tmp_path / name)
        assert puller("verify", "--json", tmp_path / name).json["records"] == 10


def test_private_files_are_mentioned_and_names_are_harmless(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/secret").write_text("x")
    (tmp_path / "s/secret").chmod(0o600)
    (tmp_path / "s/\x1b[31mred").write_text("x")
    done = publisher("publish", "-q", tmp_path / "s", tmp_path / "d")
    assert "1 file that not everybody may read" in done.err
    assert "\x1b" not in done.err


def test_the_interval_can_be_changed(folder):
    (folder / "s/a").write_text("b")
    publisher("publish", folder / "s", folder / "d", "--interval", "60")
    assert b'"interval":60' in (folder / "d/HEAD").read_bytes()
    (folder / "s/a").write_text("c")
    publisher("publish", folder / "s", folder / "d")
    assert b'"interval":60' in (folder / "d/HEAD").read_bytes()


def test_damaged_diffs_are_got_over(folder):
    for n in range(3):
        (folder / "s/many").write_bytes(random.Random(n).randbytes(600_000))
        publisher("publish", folder / "s", folder / "d")
    status = publisher("status", "--json", folder / "d").json
    assert status["snapshot_version"] == status["version"]
    for path in (folder / "d/diffs").rglob("*.zst"):
        path.write_bytes(b"damaged" + path.read_bytes()[7:])
    done = puller("pull", "--json", folder / "d", folder / "c").json
    assert done["way"] == "resync"
    assert tree(folder / "c") == tree(folder / "s")


def test_usage_errors_are_json_too():
    done = puller("pull", "--json", "--nonsense", check=2)
    assert done.json["error"] == "UsageError"


def test_parents_of_targets_are_made(table):
    for name in ("new/deep/c.db", "new/deeper/c.jsonl"):
        puller("pull", table / "d", table / name)
        assert puller("verify", table / name).status == 0
