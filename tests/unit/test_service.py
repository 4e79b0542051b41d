"""What services share: metrics, health, logs, settings, systemd, and stopping."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable

import click
import pytest

from puller.console import Duration
from puller.errors import TargetError, UsageError
from puller.service.backoff import jittered, pause
from puller.service.job import STALLED, Job, Stopped
from puller.service.log import Log, about
from puller.service.metrics import Registry
from puller.service.notify import Notifier, without_systemd
from puller.service.process import Service, write_atomically
from puller.service.settings import ServiceCommand, Settings, service_options, settings
from puller.service.settings import made as each_made
from puller.service.web import parse_address


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def idle(job: Job) -> None:
    job.succeeded(60)
    while True:
        job.wait(60)


def made(run: Callable[[Job], None] = idle, name: str = "one") -> Job:
    clock = Clock()
    job = Job(name, run, now=clock, clock=clock)
    job.test_clock = clock  # type: ignore[attr-defined]
    return job


def test_metrics_are_told_in_prometheus_format():
    registry = Registry()
    bytes_ = registry.counter("hw_bytes_total", "Bytes\nand \\ more.", ["target"])
    bytes_.add(3, target='a"\\\n')
    bytes_.add(4, target='a"\\\n')
    bytes_.add(1, target="\udc80")
    lag = registry.gauge("hw_lag_seconds", "Lag.")
    lag.follow(lambda: 1.5)
    registry.gauge("hw_nothing", "No sample.")
    registry.gauge("hw_unknown", "Not known now.").follow(lambda: None)
    registry.gauge("hw_ever", "x").set(float("inf"))
    assert registry.text().splitlines() == [
        r"# HELP hw_bytes_total Bytes\nand \\ more.",
        "# TYPE hw_bytes_total counter",
        r'hw_bytes_total{target="a\"\\\n"} 7',
        r'hw_bytes_total{target="\udc80"} 1',
        "# HELP hw_lag_seconds Lag.",
        "# TYPE hw_lag_seconds gauge",
        "hw_lag_seconds 1.5",
        "# HELP hw_ever x",
        "# TYPE hw_ever gauge",
        "hw_ever Inf",
    ]
    assert bytes_.value(target='a"\\\n') == 7
    with pytest.raises(ValueError, match="_total"):
        registry.counter("hw_bytes", "x")
    with pytest.raises(ValueError, match="taken"):
        registry.gauge("hw_ever", "x")
    with pytest.raises(ValueError, match="labels"):
        bytes_.add(1)


def test_a_job_is_red_until_it_succeeds_and_when_that_is_too_long_ago():
    job = made()
    assert job.problems() == ["has not succeeded yet"]
    assert job.failed("no host") == 1
    assert job.failed("no host") == 2
    assert job.problems() == ["has not succeeded yet: no host"]
    job.mark("refused", "no host")
    assert job.problems() == ["has not succeeded yet: no host"]
    job.mark("refused", None)
    job.succeeded(30)
    assert job.ready
    assert job.problems() == []
    job.failed("no host")
    assert job.problems() == []
    job.test_clock.time += 31
    assert job.problems() == ["has not succeeded for 31 s: no host"]
    job.succeeded(30)
    job.mark("stale", "is stale")
    job.mark("exec", "its command fails")
    assert job.problems() == ["is stale", "its command fails"]
    job.mark("stale", None)
    job.mark("exec", None)
    assert job.problems() == []


def test_what_an_earlier_process_did_counts():
    job = made()
    job.took_over(None, 30)
    assert job.ready
    assert job.problems() == []
    job.test_clock.time += 31
    assert job.problems() == ["has not succeeded lately"]


def test_a_job_that_gives_no_sign_of_life_is_hung_and_one_that_waits_is_not():
    job = made()
    job.hurry()
    assert job.wait(90_000)  # at once, though it may have waited for a day
    job.test_clock.time += 90_000
    assert job.alive
    job.test_clock.time += STALLED
    assert not job.alive
    job.check()
    assert job.alive
    job.stop()
    with pytest.raises(Stopped):
        job.check()
    with pytest.raises(Stopped):
        job.wait(1)


def test_pauses_grow_to_a_bound_and_are_jittered():
    assert [pause(n, lambda: 0.5, first=1, longest=60) for n in (1, 2, 3, 6, 7, 10**6)] == [1, 2, 4, 32, 60, 60]
    assert pause(3, lambda: 0.0, first=1, longest=60) == 2
    assert pause(3, lambda: 0.999, first=1, longest=60) < 6
    assert (jittered(30, lambda: 0.0), jittered(30, lambda: 0.5)) == (27, 30)


def test_log_lines_are_text_or_json():
    text, lines = io.StringIO(), io.StringIO()
    Log("text", "info", text, lambda: 1.5, {}).warning("a\x1b[0m line", x=1)
    Log("text", "info", text, lambda: 1.5, {"JOURNAL_STREAM": "8:1"}).info("plain")
    Log("text", "error", text, lambda: 1.5, {}).info("not told")
    assert text.getvalue() == "1970-01-01T00:00:01.500Z warning: a\\x1b[0m line\nplain\n"
    Log("json", "debug", lines, lambda: 1.5, {}).debug("pulled", version=3, path="\udc80")
    assert json.loads(lines.getvalue()) == {
        "time": "1970-01-01T00:00:01.500Z",
        "level": "debug",
        "message": "pulled",
        "version": 3,
        "path": "\\udc80",
    }


def test_a_log_that_cannot_be_written_stops_nothing():
    class Gone(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    stream = Gone()
    Log("text", "info", stream).info("nobody reads this")
    assert "nobody" in stream.getvalue()


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(tmp_path, abstract):
    name = f"\0headwater-{os.getpid()}" if abstract else str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name)
        systemd.settimeout(5)
        shown = name.replace("\0", "@")
        notifier = Notifier({"NOTIFY_SOCKET": shown, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())})
        assert notifier.watchdog == 3
        notifier.send("READY=1", "STATUS=two\nlines")
        assert systemd.recv(100) == b"READY=1\nSTATUS=two lines"
        assert Notifier({"NOTIFY_SOCKET": shown, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}).watchdog is None
    notifier.send("WATCHDOG=1")  # nobody there
    assert Notifier({}).watchdog is None
    assert without_systemd({"NOTIFY_SOCKET": "x", "WATCHDOG_PID": "1", "A": "b"}) == {"A": "b"}


def test_addresses_to_listen_on():
    assert parse_address("0.0.0.0:91") == ("0.0.0.0", 91)
    assert parse_address(":91") == ("127.0.0.1", 91)
    assert parse_address("[::1]:91") == ("::1", 91)
    for bad in ("91", "host:", "host:x", "host:70000"):
        with pytest.raises(UsageError, match="HOST:PORT"):
            parse_address(bad)


def test_a_file_is_replaced_at_once(tmp_path):
    path = tmp_path / "metrics.prom"
    write_atomically(str(path), "a 1\n")
    write_atomically(str(path), "a 2\n")
    assert path.read_text() == "a 2\n"
    assert os.listdir(tmp_path) == ["metrics.prom"]
    with pytest.raises(TargetError, match="cannot be written"):
        write_atomically(str(tmp_path / "none" / "x"), "")


def get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_service_answers_probes_hurries_and_stops(tmp_path, capfd):
    hurried, port = [], []
    metrics = tmp_path / "m.prom"
    service = Service("test", Settings("127.0.0.1:0", str(metrics), "json"))

    def work(job: Job) -> None:
        with service.step(job):
            probe(503)
        job.succeeded(60)
        probe(200)
        os.kill(os.getpid(), signal.SIGHUP)
        hurried.append(job.wait(60))
        os.kill(os.getpid(), signal.SIGTERM)
        job.wait(60)

    def probe(status: int) -> None:
        for line in capfd.readouterr().err.splitlines():
            port.append(json.loads(line)["port"])
        base = f"http://127.0.0.1:{port[0]}"
        assert get(f"{base}/healthz")[0] == status
        assert get(f"{base}/livez") == (200, "ok\n")
        assert f'headwater_healthy{{job="one"}} {int(status == 200)}' in get(f"{base}/metrics?x")[1]
        assert get(f"{base}/other")[0] == 404

    assert service.run([Job("one", work)]) == 0
    assert hurried == [True]
    assert not service.abandoned
    assert 'headwater_healthy{job="one"} 1' in metrics.read_text()
    assert [t for t in threading.enumerate() if t.name in ("web", "one") and t.is_alive()] == []


def test_a_job_that_does_not_end_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("puller.service.process.GRACE", 0.1)
    release = threading.Event()

    def deaf(job: Job) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        release.wait(30)

    service = Service("test", Settings(level="error"))
    begun = time.monotonic()
    assert service.run([Job("one", deaf)]) == 0
    assert service.abandoned
    assert time.monotonic() - begun < 10
    release.set()


def test_a_fault_of_ours_ends_the_process(capfd):
    def faulty(job: Job) -> None:
        raise KeyError("a fault")

    assert Service("test", Settings()).run([Job("one", faulty), made(name="two")]) == 1
    assert "KeyError: 'a fault'" in capfd.readouterr().err


@click.command("run", cls=ServiceCommand, table="job")
@click.argument("url")
@click.option("--mirror", "mirrors", multiple=True)
@click.option("--secret")
@click.option("--interval", type=Duration(1, 3600))
@click.option("--adopt", is_flag=True)
@service_options
def command(jobs, **shared):
    return jobs, settings(shared)


def resolved(monkeypatch, *arguments: str, **environment: str):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return command.main(list(arguments), standalone_mode=False)


FILE = """
interval = 5
listen = ":80"
[[job]]
url = "a"
mirror = ["x", "y"]
[[job]]
url = "b"
interval = 7
adopt = true
"""


def test_flags_count_before_variables_before_the_file(tmp_path, monkeypatch):
    path = tmp_path / "jobs.toml"
    path.write_text(FILE)
    jobs, process = resolved(monkeypatch, "--config", str(path))
    plain = {"secret": None, "adopt": False, "mirrors": ()}
    assert jobs == [
        {**plain, "url": "a", "mirrors": ("x", "y"), "interval": 5},
        {**plain, "url": "b", "interval": 7, "adopt": True},
    ]
    assert process == Settings(":80")
    variables = {
        "HEADWATER_CONFIG": str(path),
        "HEADWATER_INTERVAL": "8",
        "HEADWATER_MIRROR": "p q\nr",
        "HEADWATER_SECRET": "S",
    }
    jobs, process = resolved(monkeypatch, "-v", "--log-format", "json", **variables)
    assert [(job["interval"], job["mirrors"], job["secret"]) for job in jobs] == [(8, ("p q", "r"), None)] * 2
    assert process == Settings(":80", None, "json", "debug")
    jobs, _ = resolved(monkeypatch, "--interval", "9")
    assert {job["interval"] for job in jobs} == {9}


@pytest.mark.parametrize(
    ("text", "arguments", "told"),
    [
        ("intervall = 3", (), "'intervall' is no setting here; did you mean interval?"),
        ("[[job]]\nlisten = 'x'", (), "jobs.toml: [[job]] 1: 'listen' is no setting here"),
        ("[job]\nurl = 'x'", (), "write a job as [[job]]"),
        ("config = 'x'", (), "'config' is no setting"),
        ("[[job]]\nurl = 'x'", ("url",), "give one or the other"),
        ("a = ", (), "is not TOML"),
    ],
)
def test_slips_in_the_file_are_told(tmp_path, monkeypatch, text, arguments, told):
    path = tmp_path / "jobs.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        resolved(monkeypatch, "--config", str(path), *arguments)
    assert told in str(error.value)


def test_what_is_made_of_a_job_may_find_slips_too(tmp_path, monkeypatch):
    def make(job):
        if job["url"] == "b":
            raise UsageError("b cannot be")
        return job["url"]

    @click.command("run", cls=ServiceCommand, table="job")
    @click.argument("url")
    @service_options
    def command(jobs, **shared):
        return each_made(jobs, make)

    path = tmp_path / "jobs.toml"
    path.write_text("[[job]]\nurl = 'a'\n[[job]]\nurl = 'c'")
    assert command.main(["--config", str(path)], standalone_mode=False) == ["a", "c"]
    path.write_text("[[job]]\nurl = 'a'\n[[job]]\nurl = 'b'")
    with pytest.raises(UsageError, match=r"jobs.toml: \[\[job\]\] 2 \(b\): b cannot be"):
        command.main(["--config", str(path)], standalone_mode=False)
    with pytest.raises(UsageError, match=r"^b cannot be"):
        command.main(["b"], standalone_mode=False)
    path.write_text("listen = ':80'")
    with pytest.raises(click.BadParameter, match=r"^'there' is no address"):  # the flag's fault, not the file's
        command.main(["--config", str(path), "--listen", "there", "a"], standalone_mode=False)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("30s", 30),
        ("90", 90),
        (7, 7),
        ("2h", 7200),
        ("1.5m", 90),
        ("4w", 2419200),
        ("0.2", 0.2),
        (0.2, 0.2),
        ("0.5s", 0.5),
    ],
)
def test_spans_of_time(value, seconds):
    found = Duration(0.05, fractions=True).convert(value, None, None)
    assert (found, type(found)) == (seconds, type(seconds))


@pytest.mark.parametrize("value", ["", "s", "0", "-1", "1 d", "7 days", "1e3", "1.5", 0.2, True, "5y", "٣s", "2d"])
def test_what_is_no_span_of_time(value):
    with pytest.raises(click.BadParameter):
        Duration(1, 86400).convert(value, None, None)


def test_a_name_is_said_once():
    assert about("p.jsonl", "it is gone") == "p.jsonl: it is gone"
    assert about("p.jsonl", "p.jsonl: line 3: no") == "p.jsonl: line 3: no"
    assert about("/a/s", "/a/s/file cannot be read") == "/a/s/file cannot be read"
    assert about("d", "damaged") == "d: damaged"


def test_a_variable_that_nobody_knows_is_told(monkeypatch):
    with pytest.raises(UsageError, match="HEADWATER_INTERVALL is no setting here; did you mean HEADWATER_INTERVAL"):
        resolved(monkeypatch, "url", HEADWATER_INTERVALL="3")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "[[job]]\nurl = 'x'\n[[job]]\nurl = ['x']",
            "jobs.toml: [[job]] 2 (['x']): url = ['x']: one value is meant here",
        ),
        ("[[job]]\nurl = 7", "jobs.toml: [[job]] 1 (7): url = 7: a text is meant here, in quotes"),
        ("adopt = [true]", "jobs.toml: adopt = [True]: one value is meant here"),
        ("[[job]]\nurl = 'x'\ninterval = 'often'", "jobs.toml: [[job]] 1 (x): Invalid value for '--interval': 'often'"),
        ("url = 'x'\ninterval = 0", "jobs.toml: Invalid value for '--interval': 0 is"),
        ("listen = 'here'\n[[job]]\nurl = 'x'", "jobs.toml: [[job]] 1 (x): Invalid value for '--listen': 'here' is no"),
    ],
)
def test_values_of_another_type_are_told(tmp_path, monkeypatch, text, told):
    path = tmp_path / "jobs.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as error:
        resolved(monkeypatch, "--config", str(path))
    assert told in str(error.value)
