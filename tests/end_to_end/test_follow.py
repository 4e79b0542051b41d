"""`puller follow`: changes arrive, hooks are told, old data stays, and services behave like services."""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from puller.console import moment
from puller.errors import TargetError
from puller.follow.following import Follow, Following
from puller.follow.hooks import Command, WebHook
from puller.follow.meters import Meters
from puller.follow.record import read
from puller.pull import Options
from puller.service.process import Service
from puller.service.settings import Settings
from puller.wire.head import parse_head
from tests.buckets import free_port
from tests.conftest import publisher, puller, tree
from tests.hostile_host import Reply, files, head, hostile
from tests.plain import publish_records


class Clock:
    def __init__(self) -> None:
        self.time = time.time()

    def __call__(self) -> float:
        return self.time


@contextmanager
def following(url, target, *hooks, clock: Clock | None = None, **settings) -> Iterator[Following]:
    """A follower that was begun and polls when it is told to."""
    service = Service("test", Settings(level="error"))
    clock = clock or Clock()
    follow = Follow(str(url), str(target), hooks=hooks, **settings)
    one = Following(follow, service, Meters(service.registry), now=clock, clock=clock, random_=random.Random(1).random)
    one.registry = service.registry
    one.begin()
    try:
        yield one
    finally:
        one.close()


def metric(one: Following, name: str, **labels: str) -> float:
    found = [line for line in one.registry.text().splitlines() if line.startswith(f"{name}{{")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found if all(f'{k}="{v}"' in line for k, v in labels.items()))


@pytest.fixture
def source(tmp_path):
    source = tmp_path / "s"
    source.mkdir()
    for name in "abc":
        (source / name).write_text(name)
    publisher("publish", source, tmp_path / "d")
    return source


def change(source: Path, **files: str | None) -> None:
    for name, content in files.items():
        (source / name).unlink() if content is None else (source / name).write_text(content)
    publisher("publish", source, source.parent / "d")


HOOK = (
    'echo "# $HEADWATER_NAME,$HEADWATER_EPOCH,$HEADWATER_VERSION,$HEADWATER_PREVIOUS_EPOCH,$HEADWATER_PREVIOUS_VERSION,'
    '$HEADWATER_CHANGES,$HEADWATER_TARGET,$HEADWATER_URL" >> told; cat >> told'
)


def told(path: Path) -> list[tuple[list[str], list[dict]]]:
    """What the command was told, each time: its variables, and its standard input."""
    found: list[tuple[list[str], list[dict]]] = []
    for line in (path / "told").read_text().splitlines() if (path / "told").exists() else []:
        if line.startswith("# "):
            found.append((line[2:].split(","), []))
        else:
            found[-1][1].append(json.loads(line))
    return found


def test_changes_arrive_and_the_command_is_told_which(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with following("d", "copy", Command(HOOK)) as one:
        one.poll()
        one.tell_hooks()
        assert tree(tmp_path / "copy") == tree(source)
        change(source, a="new", b=None, z="z")
        one.poll()
        change(source, z="zz", c="cc")
        one.poll()
        one.tell_hooks()
        one.poll()
        one.tell_hooks()
        assert tree(tmp_path / "copy") == tree(source)
    first, second = told(tmp_path)
    assert first == (["d", "1", "1", "", "", "unknown", "copy", "d"], [])
    assert second[0] == ["d", "1", "3", "1", "1", "4", "copy", "d"]
    assert [(entry["path"], entry["change"]) for entry in second[1]] == [
        ("a", "changed"),
        ("b", "deleted"),
        ("c", "changed"),
        ("z", "added"),
    ]
    assert metric(one, "headwater_polls_total", result="changed") == 3
    assert metric(one, "headwater_polls_total", result="unchanged") == 1


def test_a_command_that_fails_is_run_again_later_and_also_by_the_next_process(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clock = Clock()
    command = f"test -e allowed || exit 3; {HOOK}"
    with following("d", "copy", Command(command), clock=clock) as one:
        one.poll()
        one.tell_hooks()
        assert one.job.problems() == [f"the command {command!r} ended with 3; it will be run again"]
        assert tree(tmp_path / "copy") == tree(source)
        (tmp_path / "allowed").touch()
        one.tell_hooks()  # not yet: it backs off
        assert told(tmp_path) == []
        clock.time += 2
        one.tell_hooks()
        assert one.job.problems() == []
        assert len(told(tmp_path)) == 1
        (tmp_path / "allowed").unlink()
        change(source, a="2")
        one.poll()
        one.tell_hooks()
    (tmp_path / "allowed").touch()
    with following("d", "copy", Command(command), clock=clock) as one:
        one.tell_hooks()  # before any poll: what is held was never told
        one.tell_hooks()
    assert [entry[0][2:6] for entry in told(tmp_path)] == [["1", "", "", "unknown"], ["2", "1", "1", "unknown"]]
    with following("d", "copy", Command(command), clock=clock) as one:
        one.poll()
        one.tell_hooks()
        assert len(told(tmp_path)) == 2  # it knows
    change(source, a="3")
    puller("pull", "d", "copy", cwd=tmp_path)
    with following("d", "copy", Command(command), clock=clock) as one:
        one.tell_hooks()
    assert told(tmp_path)[2][0][2:6] == ["3", "1", "2", "unknown"]


def test_a_command_that_hangs_is_killed_with_what_it_started(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with following("d", "copy", Command("sleep 300 & echo $! > child; wait", timeout=1.0)) as one:
        one.poll()
        one.tell_hooks()
        assert "did not end within 1 s" in one.job.problems()[0]
    state = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")
    until(lambda: not state.exists() or state.read_text().rsplit(")", 1)[1].split()[0] == "Z")


def test_a_target_that_is_taken_away_is_pulled_again_and_hooks_are_told(tmp_path, source, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with following("d", "copy", Command(HOOK)) as one:
        one.poll()
        one.tell_hooks()
        (tmp_path / "copy").rename(tmp_path / "away")
        one.poll()
        one.tell_hooks()
        assert tree(tmp_path / "copy") == tree(source)
        assert [entry[0][2] for entry in told(tmp_path)] == ["1", "1"]
        assert [entry[0][5] for entry in told(tmp_path)] == ["unknown", "unknown"]


def test_an_unchanged_poll_is_one_request_and_leaves_the_target_alone(tmp_path, source, nginx):
    (tmp_path / "d").rename(nginx.root / "d")
    with following(f"{nginx.url}/d", tmp_path / "copy") as one:
        one.poll()
        nginx.requests()
        before = {path: path.stat().st_mtime_ns for path in (tmp_path / "copy").rglob("*") if path.name != "follow"}
        for _ in range(3):
            one.poll()
        assert [(path.rsplit("/", 1)[1], status, size) for path, status, size in nginx.requests()] == [
            ("HEAD", 304, 0)
        ] * 3
        assert before == {
            path: path.stat().st_mtime_ns for path in (tmp_path / "copy").rglob("*") if path.name != "follow"
        }
        held = [
            os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{fd}")
        ]
        assert [name for name in held if str(tmp_path / "copy") in name] == [
            str(tmp_path / "copy/.headwater/follow.lock")
        ]
        puller("verify", tmp_path / "copy")


def test_a_host_without_tags_is_followed(tmp_path, source):
    def plain(request, right):
        return Reply(right.status, right.body)

    with hostile(tmp_path / "d", head(plain)) as host, following(host.url, tmp_path / "copy") as one:
        one.poll()
        host.paths()
        one.poll()
        assert host.paths() == ["HEAD"]
        assert metric(one, "headwater_polls_total", result="unchanged") == 1
        change(source, a="2")
        one.poll()
        assert tree(tmp_path / "copy") == tree(source)


def test_while_the_host_is_away_what_is_held_stays_and_the_job_turns_red(tmp_path, source):
    clock = Clock()
    with following(tmp_path / "d", tmp_path / "copy", clock=clock) as one:
        one.poll()
        (tmp_path / "d").rename(tmp_path / "away")
        waits = []
        for _ in range(6):
            waits.append(one.poll())
            clock.time += waits[-1]
        assert waits[0] < 60 < waits[3]
        assert max(waits) <= 450
        assert "has not succeeded for" in one.job.problems()[0]
        assert tree(tmp_path / "copy") == tree(source)
        status = puller("status", "--json", tmp_path / "copy").json["following"]
        assert (status["running"], status["failures"], status["pid"]) == (True, 6, os.getpid())
        assert "there is no dataset" in status["last_error"]
        assert "6 failed in a row" in puller("status", tmp_path / "copy").out
        (tmp_path / "away").rename(tmp_path / "d")
        one.poll()
        assert one.job.problems() == []
        assert read(str(tmp_path / "copy/.headwater/follow")).failures == 0
        assert metric(one, "headwater_failures_total", error="NotFound") == 6


def test_a_host_that_asks_to_be_left_alone_is_also_by_the_next_process(tmp_path, source):
    clock = Clock()

    def busy(request, right):
        return Reply(503, b"", {"Retry-After": "3600"})

    for target in ("empty", "filled"):
        with hostile(tmp_path / "d") as host:
            if target == "filled":
                puller("pull", host.url, tmp_path / target)
            host.rules = [busy]
            with following(host.url, tmp_path / target, clock=clock) as one:
                assert 3600 <= one.poll() <= 3632
                (tmp_path / target / "keep").touch()  # else an empty target is forgotten in the end
            host.paths()
            with following(host.url, tmp_path / target, clock=clock) as one:
                if target == "filled":
                    assert 3598 <= one.poll() <= 3632
                    assert host.paths() == []
                    clock.time += 3601
                    host.rules = []
                    assert one.poll() < 60
                    assert host.paths() == ["HEAD"]


def test_staleness_turns_the_job_red_and_is_logged_once_and_the_data_stay(tmp_path, source, monkeypatch):
    clock, logged = Clock(), []
    options = Options(max_staleness=7200)
    with following(tmp_path / "d", tmp_path / "copy", clock=clock, options=options) as one:
        monkeypatch.setattr(one._log, "warning", lambda text, **_: logged.append(text))
        one.poll()
        assert one.job.problems() == []
        since = moment(parse_head((tmp_path / "d/HEAD").read_bytes()).time + 7200)
        clock.time += 7300
        for _ in range(2):
            one.poll()
        stale = f"what is held is stale since {since}: the newest HEAD that the host gave is older than --max-staleness"
        assert one.job.problems() == [stale]
        assert logged == [f"{tmp_path}/copy: {stale}"]
        monkeypatch.setattr(one._log, "info", lambda text, **_: logged.append(text))
        change(source, a="2")
        clock.time = time.time()
        for _ in range(2):
            one.poll()
        assert one.job.problems() == []
        assert [text for text in logged if "no longer stale" in text] == [
            f"{tmp_path}/copy: what is held is no longer stale"
        ]


def test_a_local_edit_is_kept_and_told(tmp_path, source):
    with following(tmp_path / "d", tmp_path / "copy") as one:
        one.poll()
        (tmp_path / "copy/a").write_text("mine")
        change(source, a="theirs")
        one.poll()
        assert (tmp_path / "copy/a").read_text() == "mine"
        assert f"run `puller pull --overwrite {tmp_path / 'd'} {tmp_path / 'copy'}`" in one.job.problems()[0]
        assert metric(one, "headwater_failures_total", error="LocalEdits") == 1
        assert metric(one, "headwater_lag_versions") == 1
        puller("verify", "--repair", tmp_path / "copy", check=None)
        one.poll()
        assert one.job.problems() == []
        assert tree(tmp_path / "copy") == tree(source)


def test_metrics_count_rows_as_users_do(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"k": 1}\n{"k": 2}\n')
    publisher("publish", tmp_path / "rows.jsonl", tmp_path / "d", "--key", "k")
    with following(tmp_path / "d", tmp_path / "copy.jsonl") as one:
        one.poll()
        assert metric(one, "headwater_records") == 2


def test_what_waiting_does_not_change_ends_it_at_once(tmp_path, source):
    """Told, with the exit code of a pull; what is only missing yet is waited for."""
    rows, dest = tmp_path / "rows.jsonl", tmp_path / "rows"
    rows.write_text('{"k": 1}\n')
    publisher("publish", rows, dest, "--key", "k")
    with sqlite3.connect(tmp_path / "two.db") as db:
        db.executescript(
            "CREATE TABLE a (k INTEGER PRIMARY KEY); CREATE TABLE b (k INTEGER PRIMARY KEY); INSERT INTO a VALUES (1)"
        )
    db.close()
    publisher("publish", tmp_path / "two.db", tmp_path / "two")
    (tmp_path / "others").mkdir()
    (tmp_path / "others/file").write_text("theirs")
    for status, told, *arguments in [
        (2, "--atomic is for folders", "--atomic", dest, tmp_path / "c.db"),
        (2, "cannot tell what to make", dest, tmp_path / "c.txt"),
        (2, "cannot be kept in a folder", "--as", "folder", dest, tmp_path / "c"),
        (2, "has no table 'x'", "--table", "x", dest, tmp_path / "c.db"),
        (2, "holds one table, not 2", tmp_path / "two", tmp_path / "c.csv"),
        (2, "not the folder of a dataset", rows, tmp_path / "c"),
        (3, "`puller pull --adopt --dry-run ", tmp_path / "d", tmp_path / "others"),
    ]:
        ended = puller("follow", *arguments, check=status)
        assert told in ended.err
        assert "next attempt" not in ended.err
    config = tmp_path / "follow.toml"
    config.write_text(
        f'[[follow]]\nurl = "{tmp_path}/d"\ntarget = "{tmp_path}/copy"\n'
        f'[[follow]]\nurl = "{dest}"\ntarget = "{tmp_path}/c.db"\natomic = true\n'
    )
    ended = puller("follow", "--config", config, check=2)
    assert f"follow.toml: [[follow]] 2 ({dest} -> {tmp_path}/c.db): " in ended.err
    config.write_text(config.read_text().replace("c.db", "c.txt").replace("atomic = true", ""))
    assert "cannot tell what to make" in puller("follow", "--config", config, check=2).err
    assert tree(tmp_path / "others") == {"file": ("f", b"theirs")}
    assert not [*tmp_path.glob("c.*")]


def test_two_jobs_are_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("t1")
    config = tmp_path / "follow.toml"

    def told(*targets: str) -> str:
        config.write_text("".join(f'[[follow]]\nurl = "{tmp_path}/none"\ntarget = "{target}"\n' for target in targets))
        return puller("follow", "--config", config, check=2).err

    for other in ("t1", "./t1", "t1/", f"{tmp_path}/t1", "link"):
        assert "two jobs have the same target: " in told("t1", "t10", other)
    for other in ("t1/a", "link/a.db"):
        assert "two jobs have targets of which one is in the other: " in told(other, "t10", "t1")
    two = "postgresql://u:secret@127.0.0.1:1/d", "postgresql://u:secret@127.0.0.1:1/d"
    assert "secret" not in told(*two)
    assert {*tmp_path.iterdir()} == {tmp_path / "link", config}


def test_what_was_followed_before_is_not_given_up(tmp_path, source):
    """The host's dataset may become what it was."""
    with following(tmp_path / "d", tmp_path / "copy") as one:
        one.poll()
    (tmp_path / "d").rename(tmp_path / "away")
    (tmp_path / "d").write_text("no folder")
    with following(tmp_path / "d", tmp_path / "copy") as one:
        assert one.poll() > 0
        assert "not the folder of a dataset" in one.job.failure.reason
        (tmp_path / "d").unlink()
        (tmp_path / "away").rename(tmp_path / "d")
        one.poll()
        assert one.job.problems() == []


def test_parts_are_followed(tmp_path, source):
    (source / "eu").mkdir()
    (source / "eu/1").write_text("1")
    change(source)
    with following(tmp_path / "d", tmp_path / "copy", options=Options(parts=["eu/"])) as one:
        one.poll()
        change(source, a="not of this part")
        (source / "eu/1").write_text("2")
        change(source)
        one.poll()
        one.poll()
        assert tree(tmp_path / "copy") == {"eu/1": ("f", b"2")}
        assert metric(one, "headwater_polls_total", result="unchanged") == 1


class Posted:
    """A web server that answers posts with `status`."""

    def __init__(self) -> None:
        from http.server import BaseHTTPRequestHandler, HTTPServer

        posted = self
        self.status, self.bodies, self.users = 500, [], set()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                posted.users.add(self.headers["Authorization"])
                posted.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(posted.status)
                self.end_headers()

            def log_message(self, *_) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://user:secret@127.0.0.1:{self.server.server_address[1]}/hook"


def test_a_web_hook_is_told_until_it_takes_it(tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"k": 1, "v": 1}\n{"k": 2, "v": 1}\n')
    publisher("publish", rows, tmp_path / "d", "--key", "k")
    clock, web = Clock(), Posted()
    try:
        with following(tmp_path / "d", tmp_path / "copy.db", WebHook(web.url), clock=clock) as one:
            one.poll()
            web.status = 204
            one.tell_hooks()
            rows.write_text('{"k": 1, "v": 2}\n{"k": 2, "v": 1}\n{"k": 3, "v": 1}\n')
            publisher("publish", rows, tmp_path / "d")
            web.status = 500
            one.poll()
            one.tell_hooks()
            assert "/hook answers 500; it will be told again" in one.job.problems()[0]
            assert "secret" not in one.job.problems()[0]
            web.status = 302
            clock.time += 2
            one.tell_hooks()
            web.status = 200
            clock.time += 5
            one.tell_hooks()
            assert one.job.problems() == []
    finally:
        web.server.shutdown()
        web.server.server_close()
    assert web.users == {"Basic dXNlcjpzZWNyZXQ="}
    assert [body["version"] for body in web.bodies] == [1, 2, 2, 2]
    assert (web.bodies[0]["previous"], web.bodies[0]["changes"]) == (None, None)
    assert web.bodies[3] | {"url": ""} == {
        "dataset": "d",
        "kind": "table",
        "epoch": 1,
        "version": 2,
        "previous": {"epoch": 1, "version": 1},
        "target": str(tmp_path / "copy.db"),
        "url": "",
        "changed": 2,
        "changes": [
            {"table": "d", "key": [1], "change": "changed"},
            {"table": "d", "key": [3], "change": "added"},
        ],
    }


def start(*arguments: object, **environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "puller.cli", "follow", *map(str, arguments)],
        stderr=subprocess.PIPE,
        env=os.environ | environment,
    )


def until(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def status_of(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    except OSError:
        return 0


def test_the_service_from_start_to_stop(tmp_path, source):
    """One process, two targets: probes, systemd, SIGHUP, the lock, SIGTERM."""
    port = free_port()
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"k": 1}\n')
    (tmp_path / "follow.toml").write_text(
        f"""
        interval = "1h"
        log_format = "json"
        metrics_file = "{tmp_path}/headwater.prom"
        [[follow]]
        url = "{tmp_path}/d"
        target = "{tmp_path}/copy"
        exec = "cat >> {tmp_path}/ran; echo $HEADWATER_VERSION >> {tmp_path}/ran"
        [[follow]]
        url = "{tmp_path}/rows"
        target = "{tmp_path}/copy.db"
        """
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "systemd"))
        systemd.settimeout(20)
        process = start(
            *("--config", tmp_path / "follow.toml"),
            HEADWATER_LISTEN=f"127.0.0.1:{port}",
            NOTIFY_SOCKET=str(tmp_path / "systemd"),
            WATCHDOG_USEC="3000000",
        )
        try:
            until(lambda: (tmp_path / "copy/c").exists())
            assert status_of(port, "/healthz") == 503  # the second dataset is not there yet
            assert status_of(port, "/livez") == 200
            publisher("publish", rows, tmp_path / "rows", "--key", "k")
            change(source, a="2")
            process.send_signal(signal.SIGHUP)
            until(lambda: status_of(port, "/healthz") == 200)
            until(lambda: (tmp_path / "copy/a").read_text() == "2")
            until(lambda: "\n2\n" in (tmp_path / "ran").read_text())
            assert (tmp_path / "ran").read_text() == '1\n{"path":"a","change":"changed"}\n2\n'
            assert sqlite3.connect(tmp_path / "copy.db").execute("SELECT * FROM rows").fetchall() == [(1,)]
            heard = []
            while "READY=1" not in heard:
                heard.append(systemd.recv(1000).decode())
            assert "WATCHDOG=1" in heard
            assert heard.index("READY=1") > 1  # not before both are there
            second = puller("follow", tmp_path / "d", tmp_path / "copy", check=1)
            assert f"is followed already, by process {process.pid} on" in second.err
            assert puller("status", "--json", tmp_path / "copy.db").json["following"]["running"]
            process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            _, log = process.communicate(timeout=20)
            assert process.returncode == 0
            assert time.monotonic() - begun < 10
        finally:
            process.kill()
            process.wait()
        while heard[-1] != "STOPPING=1":
            heard.append(systemd.recv(1000).decode())
    messages = [json.loads(line) for line in log.decode().splitlines()]
    assert [m["version"] for m in messages if m.get("way")] == [1, 1, 2] or len(
        [m for m in messages if m.get("way")]
    ) == 3
    assert 'headwater_version{target="' in (tmp_path / "headwater.prom").read_text()
    assert not puller("status", "--json", tmp_path / "copy").json["following"]["running"]


def test_it_stops_though_the_host_is_slow_and_goes_on_later(tmp_path, source):
    """SIGTERM in the middle of a download: no file of it is waited for, and the next process takes up what came."""
    for n in range(3):
        (source / f"large{n}").write_bytes(random.Random(n).randbytes(1 << 20))
    change(source)
    release = threading.Event()

    def slow(request, right):
        if len(host.asked) > 5:
            release.wait(30)

    with hostile(tmp_path / "d", files(slow)) as host:
        process = start(host.url, tmp_path / "copy", HEADWATER_QUIET="1")
        until(lambda: len(host.asked) > 5)
        process.terminate()
        begun = time.monotonic()
        process.communicate(timeout=25)
        assert time.monotonic() - begun < 10  # a request has 30 s
        assert process.returncode == 0
        release.set()
        before = len(host.asked)
        with following(host.url, tmp_path / "copy") as one:
            one.poll()
            assert tree(tmp_path / "copy") == tree(source)
        again = [request.path for request in host.asked[before:]]
        assert again
        assert len(again) < before


def test_nothing_is_left_where_nothing_was_ever_held(tmp_path, source):
    with following(tmp_path / "none", tmp_path / "copy") as one:
        one.poll()
        assert not one.job.ready
    assert os.listdir(tmp_path / "copy") == []
    (tmp_path / "empty").mkdir()
    with following(tmp_path / "none", tmp_path / "empty/copy.db") as one:
        one.poll()
    assert os.listdir(tmp_path / "empty") == []


@pytest.mark.parametrize("polls", [150, pytest.param(2880, marks=pytest.mark.slow)])
def test_a_day_of_polls_leaks_nothing(tmp_path, source, nginx, polls):
    """2,880 polls 30 s apart, a change after every fifty, an hourly unconditional one; nginx cuts connections now and then.

    What leaks grows in each third of them, by something a poll; caches, pools and the memory of the system's allocator do not.
    """
    (tmp_path / "d").rename(nginx.root / "d")
    clock = Clock()
    with following(f"{nginx.url}/d", tmp_path / "copy", Command("cat > /dev/null"), clock=clock) as one:

        def run(count: int) -> list[int]:
            for n in range(count):
                if n % 50 == 0:
                    (source / "a").write_text(f"{clock.time}")
                    publisher("publish", source, nginx.root / "d")
                one.poll()
                one.tell_hooks()
                clock.time += 30
            gc.collect()
            return [
                len(os.listdir("/proc/self/fd")),
                threading.active_count(),
                len(gc.get_objects()),
                sys.getallocatedblocks(),
                resident(),
            ]

        third = polls // 3
        levels = [run(51), *(run(third) for _ in range(3))]
        steps = [map(int.__sub__, after, before) for before, after in itertools.pairwise(levels)]
        descriptors, threads, objects, blocks, memory = map(min, zip(*steps, strict=True))
        assert max(descriptors, threads) <= 0
        assert max(objects, blocks) < third
        assert memory < 1 << 20
        assert tree(tmp_path / "copy") == tree(source)
        assert metric(one, "headwater_polls_total", result="failed") == 0


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_postgresql_database_has_one_follower_for_as_long_as_that_is_connected(new_database, tmp_path):
    copy, root = new_database(), tmp_path / "d"
    publish_records(root, "bytes", {b"k": b"1"})
    name = f"process {os.getpid()} on {socket.gethostname()}"
    with following(root, copy.url) as one:
        one.poll()
        with pytest.raises(TargetError, match=f"is followed already, by {name}"), following(root, copy.url):
            pass
        assert (
            len(copy.rows(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{name}'"))
            == 1
        )
        publish_records(root, "bytes", {b"k": b"2"})
        with following(root, copy.url) as two:
            one.poll()
            assert "is followed already" in one.job.failure.reason
            assert copy.rows("SELECT value FROM records") == [(b"1",)]
            two.poll()
        one.poll()
        assert one.job.failure is None
        assert copy.rows("SELECT value FROM records") == [(b"2",)]


def test_a_database_that_is_not_there_yet_is_waited_for(tmp_path):
    publish_records(tmp_path / "d", "bytes", {b"k": b"1"})
    with following(tmp_path / "d", f"postgresql://me@127.0.0.1:{free_port()}/x") as one:
        one.poll()
        assert "cannot be reached" in one.job.failure.reason
