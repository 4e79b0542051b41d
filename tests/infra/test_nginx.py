"""The nginx configurations, in real servers: an origin, and a cache before it whose staleness is real."""

from __future__ import annotations

import http.client
import re
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import NGINX, ROOT, Nginx, free_port, publisher, puller, run_nginx
from tests.infra.serving import (
    ABSENT,
    IMMUTABLE,
    MUTABLE,
    check_asks_for_whole_files,
    check_origin,
    files,
    get,
    misbehaving,
    publish_two_versions,
    replaced,
)


@dataclass
class Site:
    """A cache at `url`, and its origin with `root`, which can be stopped and started."""

    base: Path
    port: int = field(default_factory=free_port)
    url: str = ""
    origin: Nginx | None = None
    stack: ExitStack = field(default_factory=ExitStack)

    @property
    def root(self) -> Path:
        return self.base / "data"

    def start_origin(self, head: str = "max-age=1, stale-if-error=2") -> Nginx:
        """The configuration as it is, but HEAD lives for 1 second, and for 2 more where the origin fails."""
        self.root.mkdir(exist_ok=True)
        site = replaced(
            (ROOT / "infra/nginx/headwater.conf").read_text(),
            ("listen 8080;", f"listen 127.0.0.1:{self.port};"),
            ("root /srv/data;", f"root {self.root};"),
            ("max-age=5, stale-while-revalidate=10, stale-if-error=3600", head),
        )
        log = self.stack.enter_context(run_nginx(self.base / "origin", site, self.port))
        self.origin = Nginx(self.root, f"http://127.0.0.1:{self.port}", log)
        return self.origin

    def stop_origin(self) -> None:
        self.stack.close()


def cache_site(cache: Path, port: int, origin: int) -> str:
    return replaced(
        (ROOT / "infra/nginx/cache.conf").read_text(),
        ("listen 8081;", f"listen 127.0.0.1:{port};"),
        ("/var/cache/nginx-headwater", str(cache)),
        ("server 127.0.0.1:8080;", f"server 127.0.0.1:{origin};"),
    )


@pytest.fixture
def site(tmp_path):
    site, port = Site(tmp_path), free_port()
    with run_nginx(tmp_path / "cache", cache_site(tmp_path / "kept", port, site.port), port):
        site.url = f"http://127.0.0.1:{port}"
        yield site
        site.stop_origin()


@pytest.fixture
def catalogue(tmp_path):
    """A small folder, published below the origin of `site` as `catalogue`."""
    source = tmp_path / "catalogue"
    source.mkdir()
    (source / "tea").write_bytes(b"green" * 100)
    publisher("publish", source, tmp_path / "data/catalogue", "--interval", 1)
    return source


def publish_another(site: Site, catalogue: Path) -> None:
    (catalogue / "tea").write_bytes(b"black" * 100)
    publisher("publish", catalogue, site.root / "catalogue")


def version(head: bytes) -> int:
    return int(re.search(rb'"version":(\d+)', head)[1])


def test_configurations_are_valid_together(tmp_path):
    """As they are, in one http block; only what is kept goes elsewhere, because nginx creates the folder."""
    cache = replaced(
        (ROOT / "infra/nginx/cache.conf").read_text(), ("/var/cache/nginx-headwater", str(tmp_path / "kept"))
    )
    (tmp_path / "cache.conf").write_text(cache)
    includes = f"include {ROOT}/infra/nginx/headwater.conf; include {tmp_path}/cache.conf;"
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid; events {{ }} http {{ access_log off; {includes} }}")
    done = subprocess.run(
        [NGINX, "-t", "-c", tmp_path / "nginx.conf", "-e", tmp_path / "error.log"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "[warn]" not in done.stderr


def test_the_origin_sends_what_caches_need(nginx, tmp_path):
    publish_two_versions(tmp_path / "source", nginx.root / "catalogue")
    check_origin(f"{nginx.url}/catalogue", nginx.root / "catalogue")
    got = get(nginx.url, files(nginx.root, "catalogue/chunks/*/*.zst")[0])
    assert "Accept-Ranges" not in got.headers


def test_a_cache_hands_on_what_caches_need(site, tmp_path):
    """Here with HEAD's lifetime as it is in the configuration."""
    publish_two_versions(tmp_path / "source", site.root / "catalogue")
    site.start_origin(head=MUTABLE.removesuffix(", no-transform").removeprefix("public, "))
    for _ in range(2):
        check_origin(f"{site.url}/catalogue", site.root / "catalogue")


def test_a_cache_keeps_immutable_files_and_answers_for_a_dead_origin(site, catalogue, tmp_path):
    origin = site.start_origin()
    puller("pull", f"{site.url}/catalogue", tmp_path / "one")
    asked = [path for path, _, _ in origin.requests()]
    puller("pull", f"{site.url}/catalogue", tmp_path / "two")
    again = [path for path, _, _ in origin.requests()]
    assert sorted(asked)[0] == "/catalogue/HEAD"
    assert len(asked) >= 2
    assert set(again) <= {"/catalogue/HEAD"}

    site.stop_origin()
    puller("pull", f"{site.url}/catalogue", tmp_path / "three")
    assert (tmp_path / "three/tea").read_bytes() == (catalogue / "tea").read_bytes()
    chunk = files(site.root, "catalogue/chunks/*/*.zst")[0]
    got = get(site.url, chunk, Range="bytes=1-3", Accept_Encoding="gzip")
    assert (got.status, got.cached, got.body) == (200, "HIT", (site.root / chunk).read_bytes())
    assert got.headers["Cache-Control"] == IMMUTABLE
    assert not {"Content-Encoding", "Accept-Ranges"} & set(got.headers)
    assert get(site.url, chunk, "HEAD").cached == "HIT"
    assert get(site.url, chunk, If_None_Match=got.headers["ETag"]).status == 304
    assert get(site.url, chunk, "POST").status == 403
    assert get(site.url, f"catalogue/{ABSENT}").status == 502


def test_a_cache_asks_for_whole_files(site):
    check_asks_for_whole_files(site.url, site.port)


@pytest.mark.slow
def test_head_is_stale_for_as_long_as_it_says_then_fresh(site, catalogue):
    site.start_origin()
    assert get(site.url, "catalogue/HEAD").cached == "MISS"
    publish_another(site, catalogue)
    while (got := get(site.url, "catalogue/HEAD")).cached == "HIT":
        assert version(got.body) == 1
        time.sleep(0.1)
    assert (version(got.body), got.cached) == (2, "EXPIRED")
    assert get(site.url, "catalogue/HEAD").cached == "HIT"

    site.stop_origin()
    seen = []
    while (got := get(site.url, "catalogue/HEAD")).status == 200:
        assert version(got.body) == 2
        seen.append(got.cached)
        time.sleep(0.1)
    assert set(seen) == {"HIT", "STALE"}
    assert got.status == 502

    publish_another(site, catalogue)
    (catalogue / "tea").write_bytes(b"white")
    publisher("publish", catalogue, site.root / "catalogue")
    site.start_origin()
    got = get(site.url, "catalogue/HEAD")
    assert (got.status, version(got.body)) == (200, 3)


def test_an_absent_file_is_there_as_soon_as_it_is_published(site):
    site.start_origin()
    for path in (ABSENT, "HEAD", "heads/1-1", "trust/1"):
        got = get(site.url, f"new/{path}")
        assert (got.status, got.headers["Cache-Control"]) == (404, "no-store")
        (site.root / "new" / path).parent.mkdir(parents=True, exist_ok=True)
        (site.root / "new" / path).write_bytes(b"now")
        got = get(site.url, f"new/{path}")
        assert (got.status, got.body, got.cached) == (200, b"now", "MISS")
        assert get(site.url, f"new/{path}").cached == "HIT"


def test_many_who_want_one_file_are_one_request(site):
    origin = site.start_origin()
    (site.root / ABSENT).parent.mkdir(parents=True)
    (site.root / ABSENT).write_bytes(bytes(4 << 20))
    with ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda _: len(get(site.url, ABSENT).body), range(24)))
    assert found == [4 << 20] * 24
    assert origin.requests() == [(f"/{ABSENT}", 200, 4 << 20)]


@pytest.mark.parametrize("path", [ABSENT, "HEAD", "heads/1-1"])
def test_what_is_wrong_is_not_kept(site, path):
    wrong = [
        (200, {"Content-Type": "text/html"}, b"<p>please log in"),
        (200, {"Content-Encoding": "gzip"}, b"packed"),
        (404, {"Cache-Control": "max-age=3600"}, b"not found"),
        (403, {"Cache-Control": IMMUTABLE}, b"denied"),
        (503, {"Cache-Control": "max-age=3600", "Retry-After": "1"}, b"later"),
        (302, {"Location": "https://elsewhere.example/", "Cache-Control": "max-age=3600"}, b""),
        (200, {"Content-Length": "1000"}, b"cut off"),
    ]
    right = (200, {"Cache-Control": "max-age=60", "Vary": "*", "Set-Cookie": "a=b"}, b"right")
    site.stack.enter_context(misbehaving(site.port, [*wrong, right]))
    for status, _, body in wrong[:-1]:
        got = get(site.url, path)
        assert (got.status, got.body, got.cached) == (status, body, "MISS")
        assert status == 200 or got.headers.get_all("Cache-Control") == ["no-store"]
    with pytest.raises(http.client.IncompleteRead):
        get(site.url, path)
    assert get(site.url, path).body == b"right"
    assert get(site.url, path).cached == "HIT"
