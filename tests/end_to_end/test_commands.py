"""The commands as a user meets them: messages, exit codes, JSON, refusals, interruption."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from tests.conftest import publisher, puller, tree


@pytest.fixture
def data(tmp_path):
    """A source folder `s`, published to `d`."""
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a").write_text("a")
    (tmp_path / "s/b").write_text("b")
    publisher("publish", tmp_path / "s", tmp_path / "d")
    return tmp_path


@pytest.mark.parametrize("name", ["publisher", "puller"])
def test_help_has_examples_for_every_command(name):
    top = (publisher if name == "publisher" else puller)("--help").out
    commands = re.findall(r"^  (\w+)  ", top.partition("Commands:")[2], re.M)
    assert len(commands) >= 3
    call = publisher if name == "publisher" else puller
    for group in list(commands):
        inner = re.findall(r"^  (\w+)  ", call(group, "--help").out.partition("\nCommands:")[2], re.M)
        if inner:
            commands.remove(group)
            commands += [f"{group} {command}" for command in inner]
    for command in commands:
        text = call(*command.split(), "--help").out
        assert "Example" in text
        assert f"{name} {command}" in text
        assert "Exit codes" in text
        for option in ("--log-format" if "--log-format" in text else "--json", "--quiet", "--verbose"):  # services log
            assert option in text


def test_json_on_every_command(data):
    for arguments in (["publish", data / "s", data / "d"], ["status", data / "d"], ["log", data / "d"]):
        assert publisher(*arguments, "--json").json["name"] == "d"
    assert publisher("init", data / "x", "--kind", "table", "--json").json["version"] == 1
    for arguments in (["pull", data / "d", data / "c"], ["status", data / "c"], ["verify", data / "c"]):
        assert puller(*arguments, "--json").json["dataset"] == "d"
    failed = puller("pull", "--json", data / "nothing", data / "c2", check=1)
    assert failed.json["error"] == "NotFound"
    assert failed.err.startswith("error: ")


def test_quiet_and_verbose(data):
    assert puller("pull", "-q", data / "d", data / "c").out == ""
    assert "1 request" in puller("pull", "-v", data / "d", data / "c").err
    quiet = puller("pull", "-q", data / "nothing", data / "c2", check=1)
    assert "error:" in quiet.err


def test_exit_code_tells_changed_from_unchanged(data):
    puller("pull", "--exit-code", data / "d", data / "c", check=0)
    puller("pull", "--exit-code", data / "d", data / "c", check=10)
    puller("pull", data / "d", data / "c", check=0)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["pull"], 2),
        (["pull", "ftp://x/y", "t"], 2),
        (["pull", "{d}", "t.xlsx"], 0),
        (["pull", "{d}", "t.db", "--as", "sqlite"], 2),
        (["pull", "--as", "nonsense", "{d}", "t"], 2),
        (["pull", "http://127.0.0.1:9/x", "t"], 4),
        (["pull", "{s}", "t"], 1),
        (["status", "nowhere"], 1),
        (["verify", "nowhere"], 1),
        (["nonsense"], 2),
    ],
)
def test_exit_codes_of_puller(data, arguments, status):
    arguments = [a.format(d=data / "d", s=data / "s") for a in arguments]
    done = puller(*arguments, check=status, cwd=data)
    assert status == 0 or done.err


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["publish", "{s}", "{s}/inside"], 2, "one in the other"),
        (["publish", "{d}/nothing", "{x}"], 1, "there is no"),
        (["publish", "{s}", "ftp://host/x"], 2, "local folder"),
        (["publish", "{s}", "{x}", "--name", "bad name"], 2, "--name"),
        (["publish", "{s}", "{d}", "--name", "other"], 2, "holds the dataset"),
        (["publish", "{s}", "{x}", "--key", "k"], 2, "--key"),
        (["init", "{d}", "--kind", "files"], 3, "already"),
        (["init", "{x}"], 2, "--kind"),
        (["publish", "{x}.jsonl", "{d}", "--key", "k"], 2, "kind"),
        (["status", "{x}"], 1, "no dataset"),
        (["log", "{x}"], 1, "no dataset"),
        (["serve", "{x}"], 1, "no dataset"),
        (["publish", "{d}", "{x}.jsonl"], 2, "is a file, not the folder of a dataset; are the arguments swapped?"),
        (["serve", "{x}.jsonl"], 2, "is a file, not the folder"),
        (["doctor", "{x}.jsonl"], 2, "is a file, not the folder"),
        *(
            (words, 5, "dam: HEAD is damaged (HEAD is cut off, or no signed note); nothing was published. Put it back")
            for words in (["publish", "{s}", "{dam}"], ["status", "{dam}"])
        ),
        (["publish", "{s}", "{git}"], 5, "git: HEAD is damaged, or another program's"),
        (["publish", "{s}", "{full}"], 3, "not empty"),
    ],
)
def test_exit_codes_of_publisher(data, arguments, status, says):
    (data / "x.jsonl").write_text('{"k":1}\n')
    (data / "full").mkdir()
    (data / "full/thesis.tex").write_text("mine")
    for name, head in (("dam", (data / "d/HEAD").read_bytes()[:40]), ("git", b"ref: refs/heads/main\n")):
        (data / name).mkdir()
        (data / name / "HEAD").write_bytes(head)
    places = {
        "dam": data / "dam",
        "git": data / "git",
        "s": data / "s",
        "d": data / "d",
        "x": data / "x",
        "full": data / "full",
    }
    before = tree(data)
    done = publisher(*(a.format(**places) for a in arguments), check=status)
    assert says in done.err
    assert tree(data) == before


def test_dry_runs_change_nothing(data):
    before = tree(data)
    done = publisher("publish", "--dry-run", "--json", data / "s", data / "new").json
    assert (done["added"], done["dry_run"]) == (2, True)
    assert done["written"] > 0
    (data / "s/c").write_text("c")
    done = publisher("publish", "--dry-run", data / "s", data / "d")
    assert "would publish version 2: 1 added" in done.out
    done = puller("pull", "--dry-run", "--json", data / "d", data / "c").json
    assert (done["way"], done["reason"], done["planned_files"], done["changed"]) == (
        "bootstrap",
        "new_target",
        1,
        False,
    )
    assert done["planned_bytes"] > 0
    assert "would go from nothing" in puller("pull", "--dry-run", data / "d", data / "c").out
    (data / "s/c").unlink()
    assert tree(data) == before


def test_init_then_publish_then_pull(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a").write_text("a")
    publisher("init", tmp_path / "d", "--name", "mine", "--kind", "files", "--interval", "7")
    puller("pull", tmp_path / "d", tmp_path / "c")
    assert tree(tmp_path / "c") == {}
    assert "created" not in publisher("publish", tmp_path / "s", tmp_path / "d").out
    puller("pull", tmp_path / "d", tmp_path / "c")
    assert tree(tmp_path / "c") == tree(tmp_path / "s")
    assert puller("status", "--json", tmp_path / "c").json["dataset"] == "mine"


def test_creating_is_announced_and_never_follows_a_failed_read(data):
    assert "created the dataset n" in publisher("publish", data / "s", data / "n").out
    (data / "d/HEAD").unlink()
    (data / "d/HEAD").mkdir()
    done = publisher("publish", data / "s", data / "d", check=4)
    assert "cannot be read" in done.err
    os.rmdir(data / "d/HEAD")
    (data / "d/HEAD").write_text("<html>not found</html>")
    done = publisher("publish", data / "s", data / "d", check=5)
    assert (data / "d/HEAD").read_text() == "<html>not found</html>"


def test_shrinking_is_refused_unless_meant(data):
    for name in "ab":
        (data / "s" / name).unlink()
    done = publisher("publish", data / "s", data / "d", check=3)
    assert "--allow-shrink" in done.err
    assert publisher("status", "--json", data / "d").json["version"] == 1
    publisher("publish", "--allow-shrink", data / "s", data / "d")
    puller("pull", data / "d", data / "c")
    assert tree(data / "c") == {}


def test_local_edits_are_reported_and_kept(data):
    puller("pull", data / "d", data / "c")
    (data / "c/a").write_text("mine")
    (data / "c/extra").write_text("extra")
    assert puller("pull", data / "d", data / "c").status == 0
    check = puller("verify", "--json", data / "c", check=6).json
    assert (check["differing"], check["missing"], check["ok"]) == (["a"], [], False)
    (data / "s/a").write_text("theirs")
    (data / "s/b").unlink()
    publisher("publish", data / "s", data / "d")
    refused = puller("pull", "--json", data / "d", data / "c", check=3)
    assert refused.json["names"] == ["a"]
    assert tree(data / "c") == {"a": ("f", b"mine"), "b": ("f", b"b"), "extra": ("f", b"extra")}
    named = puller("pull", "--dry-run", "--overwrite", "--json", data / "d", data / "c").json
    assert named["overwritten"] == ["a"]
    assert (data / "c/a").read_text() == "mine"
    done = puller("pull", "--overwrite", data / "d", data / "c")
    assert "overwrote a" in done.err
    assert tree(data / "c") == {"a": ("f", b"theirs"), "extra": ("f", b"extra")}
    assert puller("verify", data / "c").status == 0


def test_edited_rows_are_reported_and_kept(tmp_path):
    import sqlite3

    rows = "".join(f'{{"k":{n},"v":"v{n}"}}\n' for n in range(10))
    publisher("publish", "-", tmp_path / "d", "--key", "k", stdin=rows.encode())
    puller("pull", tmp_path / "d", tmp_path / "c.db")
    with sqlite3.connect(tmp_path / "c.db") as db:
        db.execute("UPDATE d SET v = 'mine' WHERE k = 3")
        db.execute("CREATE TABLE mine (x)")
    assert "content differs" in puller("verify", tmp_path / "c.db", check=6).out
    publisher("publish", "-", tmp_path / "d", stdin=rows.replace("v3", "theirs").encode())
    refused = puller("pull", tmp_path / "d", tmp_path / "c.db", check=3)
    assert "--overwrite" in refused.err
    with sqlite3.connect(tmp_path / "c.db") as db:
        assert db.execute("SELECT v FROM d WHERE k = 3").fetchone() == ("mine",)
    puller("pull", "--overwrite", tmp_path / "d", tmp_path / "c.db")
    with sqlite3.connect(tmp_path / "c.db") as db:
        assert db.execute("SELECT v FROM d WHERE k = 3").fetchone() == ("theirs",)
        assert db.execute("SELECT count(*) FROM mine").fetchone() == (0,)
    assert puller("verify", tmp_path / "c.db").status == 0


def test_adoption_names_what_it_would_overwrite(data):
    (data / "c").mkdir()
    (data / "c/a").write_text("mine")
    (data / "c/b").write_text("b")
    (data / "c/other").write_text("other")
    before = tree(data / "c")
    refused = puller("pull", data / "d", data / "c", check=3)
    assert "--adopt" in refused.err
    assert tree(data / "c") == before
    named = puller("pull", "--adopt", "--dry-run", "--json", data / "d", data / "c").json
    assert named["overwritten"] == ["a"]
    assert tree(data / "c") == before
    assert not (data / "c/.headwater").exists()
    done = puller("pull", "--adopt", data / "d", data / "c")
    assert "overwrote a" in done.err
    assert tree(data / "c") == tree(data / "s") | {"other": ("f", b"other")}


def test_paths_taken_by_others_are_refused(data):
    puller("pull", data / "d", data / "c")
    (data / "c/new").write_text("mine")
    (data / "c/link").symlink_to("/tmp")
    (data / "s/new").write_text("theirs")
    (data / "s/link").mkdir()
    (data / "s/link/below").write_text("theirs")
    publisher("publish", data / "s", data / "d")
    refused = puller("pull", data / "d", data / "c", check=3)
    assert "new" in refused.err
    assert "link" in refused.err
    assert (data / "c/new").read_text() == "mine"
    assert not os.path.lexists("/tmp/below")
    puller("pull", "--adopt", data / "d", data / "c")
    assert tree(data / "c") == tree(data / "s")


def test_another_dataset_is_refused(data):
    puller("pull", data / "d", data / "c")
    publisher("publish", data / "s", data / "other")
    refused = puller("pull", data / "other", data / "c", check=5)
    assert "holds the dataset 'd'" in refused.err


def test_an_older_head_is_passed_over(data):
    old = (data / "d/HEAD").read_bytes()
    (data / "s/a").write_text("newer")
    publisher("publish", data / "s", data / "d")
    puller("pull", data / "d", data / "c")
    (data / "d/HEAD").write_bytes(old)
    done = puller("pull", "--json", data / "d", data / "c")
    assert (done.json["reason"], done.json["to"]["version"]) == ("older_head", 2)
    assert "older than version 2" in done.err
    assert (data / "c/a").read_text() == "newer"


@pytest.mark.parametrize("name", ["publish_id", "checksum", "tree"])
def test_a_forked_history_is_refused(data, name):
    puller("pull", data / "d", data / "c")
    head = (data / "d/HEAD").read_text()
    forked = re.sub(rf'("{name}":\[?)"....', r'\1"0000', head)
    assert forked != head
    (data / "d/HEAD").write_text(forked)
    refused = puller("pull", data / "d", data / "c", check=5)
    assert "forked" in refused.err


def test_serve(data):
    process = subprocess.Popen(
        [sys.executable, "-m", "publisher.cli", "serve", data / "d", "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        url = re.search(r"http://\S+", process.stdout.readline())[0]
        puller("pull", url, data / "c")
        assert tree(data / "c") == tree(data / "s")
        with urllib.request.urlopen(f"{url}/HEAD") as answer:
            assert "max-age=5" in answer.headers["Cache-Control"]
        assert puller("pull", "--json", url, data / "c").json["received"] == 0
    finally:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=10)
    assert process.returncode == 0
    assert "Traceback" not in err


def test_interruption_is_clean(tmp_path):
    (tmp_path / "s").mkdir()
    for n in range(200):
        (tmp_path / "s" / str(n)).write_bytes(os.urandom(100_000))
    process = subprocess.Popen(
        [sys.executable, "-m", "publisher.cli", "publish", tmp_path / "s", tmp_path / "d"], stderr=subprocess.PIPE
    )
    while not (tmp_path / "d/chunks").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    if process.returncode != 0:
        assert process.returncode == 130
        assert b"Traceback" not in err
        assert not (tmp_path / "d/HEAD").exists()
    publisher("publish", tmp_path / "s", tmp_path / "d")
    puller("pull", tmp_path / "d", tmp_path / "c")
    assert tree(tmp_path / "c") == tree(tmp_path / "s")


INTERRUPTED = """
import os, runpy, signal, sys
command, importing = sys.argv[1:]
class Interrupting:
    def find_spec(self, name, *_):
        if name == importing:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupting())
sys.argv[1:] = ["status", "nowhere"]
runpy.run_module(command, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("name", "importing", "status"),
    [
        ("puller", "click", -signal.SIGINT),
        ("publisher", "click", -signal.SIGINT),
        ("puller", "puller.targets", 130),
        ("publisher", "publisher.published", 130),
    ],
)
def test_an_interrupted_start_is_quiet(name, importing, status):
    arguments = [sys.executable, "-c", INTERRUPTED, name, importing]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.strip() == ("" if status < 0 else "interrupted; what was there was kept")


def test_an_interrupted_pull_keeps_the_old_state(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s/a").write_text("old")
    publisher("publish", tmp_path / "s", tmp_path / "d")
    puller("pull", tmp_path / "d", tmp_path / "c")
    old = tree(tmp_path / "c")
    for n in range(3000):
        (tmp_path / "s" / str(n)).write_bytes(os.urandom(3000))
    publisher("publish", tmp_path / "s", tmp_path / "d")
    process = subprocess.Popen(
        [sys.executable, "-m", "puller.cli", "pull", tmp_path / "d", tmp_path / "c"], stderr=subprocess.PIPE
    )
    while process.poll() is None and not (tmp_path / "c/.headwater/staging").exists():
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert b"Traceback" not in err
    new = tree(tmp_path / "s")
    if process.returncode == 130:
        assert puller("verify", tmp_path / "c").status == 0
        assert tree(tmp_path / "c") in (old, new)
    else:  # the signal came when all was done, perhaps while the process was already ending
        assert process.returncode in (0, -signal.SIGINT)
        assert tree(tmp_path / "c") == new
    puller("pull", tmp_path / "d", tmp_path / "c")
    assert tree(tmp_path / "c") == new


def test_progress_on_a_terminal_only(data):
    (data / "s/big").write_bytes(os.urandom(30_000_000))
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "publisher.cli", "publish", data / "s", data / "d"],
        stderr=slave,
        stdout=subprocess.PIPE,
        env=os.environ | {"TERM": "xterm"},
    )
    os.close(slave)
    drawn = b""
    try:
        while part := os.read(master, 65536):
            drawn += part
    except OSError:
        pass
    out, _ = process.communicate(timeout=20)
    os.close(master)
    assert b"read" in drawn or b"starting" in drawn
    assert out.decode().startswith(f"{data / 'd'}: published version 2")
    assert publisher("publish", data / "s", data / "d").err == ""


def test_log_in_json_is_an_object_a_line(data):
    (data / "s/a").write_text("2")
    publisher("publish", data / "s", data / "d")
    found = [json.loads(line)["version"] for line in publisher("log", "--json", data / "d").out.splitlines()]
    assert found == [2, 1]


PASSWORD = "s3cr3t"


@pytest.mark.parametrize(
    "arguments",
    [
        ("puller", "pull", "ftp://u:s3cr3t@h/x", "copy"),
        ("puller", "pull", "http://u:s3cr3t@[::1/", "copy"),
        ("puller", "pull", "http://u:s3cr3t@h:port/", "copy"),
        ("puller", "pull", "d", "POSTGRESQL://u:s3cr3t@h/x"),
        ("puller", "mirror", "d", "postgresql://u:s3cr3t@h/x"),
        ("publisher", "publish", "s", "postgresql://u@h/x?password=s3cr3t"),
        ("publisher", "track", "postgresql://u:s3cr3t@h/x"),
        ("puller", "doctor", "--json", "http://u:s3cr3t@[::1/"),
    ],
    ids=str,
)
def test_no_message_has_a_password(tmp_path, arguments):
    (tmp_path / "s").mkdir()
    program, *rest = arguments
    done = {"publisher": publisher, "puller": puller}[program](*rest, check=None, cwd=tmp_path)
    assert done.status in (1, 2)
    assert PASSWORD not in done.out + done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]
