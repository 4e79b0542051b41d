"""The Caddy configurations, in real servers: an origin, and a proxy before it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT, free_port, puller
from tests.infra.serving import (
    ABSENT,
    check_asks_for_whole_files,
    check_origin,
    get,
    misbehaving,
    publish_two_versions,
    replaced,
)

CONFIGURATIONS = sorted((ROOT / "infra/caddy").glob("*.Caddyfile"))


def caddy(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    program = shutil.which("caddy")
    assert program, "caddy is missing: .ci/test installs it"
    return subprocess.Popen(
        [program, *arguments],
        env=os.environ | {"HOME": str(tmp_path), "XDG_DATA_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@contextmanager
def running(tmp_path: Path, name: str, *pairs: tuple[str, str]):
    """Caddy with a configuration as it is, but its port (and `pairs`) replaced."""
    port = free_port()
    text = (ROOT / "infra/caddy" / name).read_text()
    config = tmp_path / name
    config.write_text(replaced(text, *((old, new.format(port=port)) for old, new in pairs)))
    with (tmp_path / f"{name}.log").open("w") as log:
        process = caddy(tmp_path, "run", "--adapter", "caddyfile", "--config", str(config))
        try:
            for _ in range(200):
                with socket.socket() as s:
                    if s.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None, process.stdout.read()
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            log.write(process.communicate(timeout=20)[0])


@contextmanager
def origin(tmp_path: Path):
    root = ("/srv/data", str(tmp_path / "data"))
    with running(tmp_path, "origin.Caddyfile", ("\n:8080 {", "\nhttp://127.0.0.1:{port} {{"), root) as url:
        yield url


@contextmanager
def proxy(tmp_path: Path, url: str):
    listen = ("\n:8081 {", "\nhttp://127.0.0.1:{port} {{")
    with running(tmp_path, "proxy.Caddyfile", listen, ("http://127.0.0.1:8080", url)) as proxy_url:
        yield proxy_url


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda p: p.name)
def test_configurations_are_valid(path, tmp_path):
    process = caddy(tmp_path, "validate", "--adapter", "caddyfile", "--config", str(path))
    assert "Valid configuration" in process.communicate(timeout=60)[0]
    assert process.returncode == 0
    formatted = caddy(tmp_path, "fmt", str(path))
    assert formatted.communicate(timeout=60)[0] == path.read_text()


def test_origin_and_proxy_send_what_caches_need(tmp_path):
    root = tmp_path / "data/catalogue"
    publish_two_versions(tmp_path / "source", root)
    with origin(tmp_path) as url:
        check_origin(f"{url}/catalogue", root)
        with proxy(tmp_path, url) as through:
            check_origin(f"{through}/catalogue", root)
            puller("pull", f"{through}/catalogue", tmp_path / "copy")
    assert (tmp_path / "copy/tea").read_bytes() == (tmp_path / "source/tea").read_bytes()


def test_a_proxy_asks_for_whole_files(tmp_path):
    port = free_port()
    with proxy(tmp_path, f"http://127.0.0.1:{port}") as url:
        check_asks_for_whole_files(url, port)


def test_a_proxy_lets_no_error_be_kept(tmp_path):
    wrong = [
        (404, {"Cache-Control": "max-age=3600"}, b"not found"),
        (503, {"Cache-Control": "max-age=3600", "Retry-After": "7"}, b"later"),
    ]
    port = free_port()
    with proxy(tmp_path, f"http://127.0.0.1:{port}") as url:
        with misbehaving(port, wrong):
            for status, retry in [(404, None), (503, "7")]:
                got = get(url, ABSENT)
                assert (got.status, got.headers["Retry-After"]) == (status, retry)
                assert got.headers.get_all("Cache-Control") == ["no-store"]
        got = get(url, ABSENT)
        assert (got.status, got.headers.get_all("Cache-Control")) == (502, ["no-store"])
