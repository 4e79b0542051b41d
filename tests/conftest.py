"""Fixtures: the real commands as processes, and a real nginx."""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.buckets import KEYS, NO_SETTINGS, Proxy, free_port, s3_client, start_moto, start_proxy, start_rclone
from tests.warm import Warm

ROOT = Path(__file__).parent.parent
NGINX = shutil.which("nginx") or "/usr/sbin/nginx"


@dataclass
class Done:
    """A finished command."""

    status: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


def command(name: str, *arguments: object, check: int | None = 0, stdin: bytes | None = None, **options) -> Done:
    """Run `publisher` or `puller` as a process; `check` is the exit status it must have (None: any)."""
    status, out, err = warm().run([name, *map(str, arguments)], stdin, **options)
    result = Done(status, out.decode(), err.decode())
    assert "Traceback" not in result.err, result.err
    assert check is None or result.status == check, (result.status, result.out, result.err)
    return result


@cache
def warm() -> Warm:
    """The process that runs this process's commands."""
    process = Warm(Path(tempfile.mkdtemp()))
    atexit.register(process.close)
    return process


def publisher(*arguments: object, **options) -> Done:
    return command("publisher", *arguments, **options)


def puller(*arguments: object, **options) -> Done:
    return command("puller", *arguments, **options)


@dataclass
class Nginx:
    """A running nginx that serves `root` at `url`."""

    root: Path
    url: str
    log: Path

    def requests(self) -> list[tuple[str, int, int]]:
        """(path, status, body bytes) of every request since the last call."""
        time.sleep(0.05)
        lines = self.log.read_text().splitlines()
        os.truncate(self.log, 0)
        return [(path, int(status), int(size)) for path, status, size in map(str.split, lines)]


@contextmanager
def start_nginx(base: Path) -> Iterator[Nginx]:
    """nginx with the configuration in infra/, its folder and port replaced, with everything below `base`."""
    root, port = base / "data", free_port()
    root.mkdir(parents=True)
    site = (ROOT / "infra/nginx/headwater.conf").read_text()
    site, listens = re.subn(r"listen 8080;", f"listen 127.0.0.1:{port};", site)
    site, roots = re.subn(r"root /srv/data;", f"root {root};", site)
    assert (listens, roots) == (1, 1)
    with run_nginx(base, site, port) as log:
        yield Nginx(root, f"http://127.0.0.1:{port}", log)


@contextmanager
def start_cache(base: Path, origin: str, *, valid: str, bypass: bool = False) -> Iterator[Nginx]:
    """nginx as a cache before `origin`, which keeps what it is given as long as `valid` says, whatever the origin says.

    `bypass`: whoever asks with Cache-Control is given what the origin has. A line of the log has the cache's status.
    """
    root, port = base / "cache", free_port()
    root.mkdir(parents=True)
    site = f"""
proxy_cache_path {root} keys_zone=zone:1m inactive=1d;
server {{
    listen 127.0.0.1:{port};
    location / {{
        proxy_pass {origin};
        proxy_http_version 1.1;
        proxy_cache zone;
        proxy_cache_valid {valid};
        proxy_ignore_headers Cache-Control Expires;
        {"proxy_cache_bypass $http_cache_control;" if bypass else ""}
    }}
}}
"""
    with run_nginx(base, site, port, log_format="$uri:$upstream_cache_status $status $body_bytes_sent") as log:
        yield Nginx(root, f"http://127.0.0.1:{port}", log)


@contextmanager
def run_nginx(base: Path, site: str, port: int, log_format: str = "$uri $status $body_bytes_sent") -> Iterator[Path]:
    """nginx with `site` in its http block, until it listens on `port`; gives its access log. Everything is below `base`."""
    log = base / "access.log"
    base.mkdir(parents=True, exist_ok=True)
    (base / "site.conf").write_text(site)
    (base / "nginx.conf").write_text(
        f"""
daemon off; pid {base}/nginx.pid; error_log {base}/error.log; worker_processes 1;
{"user root;" if os.geteuid() == 0 else ""}
events {{ }}
http {{
    log_format short '{log_format}';
    access_log {base}/access.log short;
    client_body_temp_path {base}/t1; proxy_temp_path {base}/t2; fastcgi_temp_path {base}/t3;
    uwsgi_temp_path {base}/t4; scgi_temp_path {base}/t5;
    sendfile on;
    include {base}/site.conf;
}}
"""
    )
    process = subprocess.Popen([NGINX, "-c", str(base / "nginx.conf"), "-e", str(base / "error.log")])
    try:
        for _ in range(100):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            raise AssertionError((base / "error.log").read_text())
        yield log
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory) -> None:
    """What publishers remember of their sources, and the keys and secrets they make, stay with the tests."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))
    os.environ.pop("HEADWATER_SIGNING_KEY", None)
    os.environ.pop("HEADWATER_SECRET", None)
    os.environ.pop(
        "PYTHONDONTWRITEBYTECODE", None
    )  # the commands that tests start come compiled, as they are installed


@pytest.fixture(scope="session")
def nginx_server(tmp_path_factory) -> Iterator[Nginx]:
    """One nginx for all tests."""
    with start_nginx(tmp_path_factory.mktemp("nginx")) as server:
        yield server


@pytest.fixture
def nginx(nginx_server, request) -> Nginx:
    """The server, with a folder of this test's own."""
    root = nginx_server.root / re.sub(r"\W", "-", request.node.name)
    root.mkdir()
    nginx_server.requests()
    return Nginx(root, f"{nginx_server.url}/{root.name}", nginx_server.log)


@pytest.fixture(scope="session")
def moto_port(tmp_path_factory) -> Iterator[int]:
    """One S3 server, moto's, for all tests; its listings have pages of 50 names."""
    with start_moto(tmp_path_factory.mktemp("moto"), MOTO_S3_DEFAULT_MAX_KEYS="50") as port:
        yield port


@pytest.fixture(scope="session")
def rclone_port(tmp_path_factory) -> Iterator[int]:
    """One S3 server that ignores conditions, rclone's, for all tests."""
    with start_rclone(tmp_path_factory.mktemp("rclone")) as port:
        yield port


@dataclass
class Bucket:
    """A bucket of a test's own, which the environment leads to; the proxy sees the requests."""

    name: str
    proxy: Proxy
    client: Any

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def listed(self) -> list[str]:
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name)
        return [item["Key"] for page in pages for item in page.get("Contents", ())]


@cache
def client_of(port: int) -> Any:
    return s3_client(f"http://127.0.0.1:{port}")


@contextmanager
def bucket_at(port: int, request, monkeypatch) -> Iterator[Bucket]:
    name = f"b{abs(hash(request.node.nodeid)):x}"
    for variable, value in (KEYS | NO_SETTINGS).items():
        monkeypatch.setenv(variable, value)
    client = client_of(port)
    client.create_bucket(Bucket=name)
    with start_proxy(port) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield Bucket(name, proxy, client)


@pytest.fixture
def bucket(moto_port, request, monkeypatch) -> Iterator[Bucket]:
    """A bucket that keeps to conditional writes."""
    with bucket_at(moto_port, request, monkeypatch) as found:
        yield found


@pytest.fixture
def careless_bucket(rclone_port, request, monkeypatch) -> Iterator[Bucket]:
    """A bucket that ignores conditions."""
    with bucket_at(rclone_port, request, monkeypatch) as found:
        yield found


def tree(path: Path) -> dict[str, tuple[str, bytes]]:
    """What lies in a folder: type and content by relative path; non-empty folders are left out, and .headwater."""
    found = {}
    for folder, folders, names in os.walk(path):
        if ".headwater" in folders:
            folders.remove(".headwater")
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        if not folders and not names and folder != str(path):
            found[os.path.relpath(folder, path)] = ("d", b"")
        for name in names + links:
            full = os.path.join(folder, name)
            relative = os.path.relpath(full, path)
            if os.path.islink(full):
                found[relative] = ("l", os.fsencode(os.readlink(full)))
            else:
                kind = "x" if os.stat(full).st_mode & 0o100 else "f"
                found[relative] = (kind, Path(full).read_bytes())
    return found


def lines(path: Path) -> list[dict]:
    """The rows of a JSON Lines file, nulls left out."""
    rows = map(json.loads, path.read_text().splitlines())
    return [{k: v for k, v in row.items() if v is not None} for row in rows]
