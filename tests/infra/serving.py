"""What the tests of servers share: requests as they are, and what every origin of datasets must send."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from tests.conftest import publisher

IMMUTABLE = "public, max-age=31536000, immutable, no-transform"
MUTABLE = "public, max-age=5, stale-while-revalidate=10, stale-if-error=3600, no-transform"
ABSENT = f"chunks/ab/{'ab' * 32}.zst"


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    """The text with each string replaced; each must be there."""
    for old, new in pairs:
        assert old in text, old
        text = text.replace(old, new)
    return text


@dataclass
class Got:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def cached(self) -> str:
        return self.headers["X-Cache-Status"]


def get(base: str, path: str, method: str = "GET", **headers: str) -> Got:
    parts = urlsplit(base)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    try:
        connection.request(method, f"{parts.path}/{path}", headers={k.replace("_", "-"): v for k, v in headers.items()})
        response = connection.getresponse()
        return Got(response.status, response.headers, response.read())
    finally:
        connection.close()


def files(folder: Path, pattern: str) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob(pattern))


def publish_two_versions(source: Path, dest: Path) -> None:
    """A small folder, published, changed and published again."""
    source.mkdir()
    for content in (b"green", b"black"):
        (source / "tea").write_bytes(content * 100)
        publisher("publish", source, dest)
    (dest / "chunks/secret").write_bytes(b"")


def check_origin(base: str, root: Path) -> None:
    """Whether two published versions, in `root` and served at `base`, come with the headers that caches need."""
    for pattern, cache_control, kind in [
        ("HEAD", MUTABLE, "text/plain; charset=utf-8"),
        ("heads/*", IMMUTABLE, "text/plain; charset=utf-8"),
        ("chunks/*/*.zst", IMMUTABLE, "application/octet-stream"),
        ("diffs/*/*.zst", IMMUTABLE, "application/octet-stream"),
    ]:
        found = files(root, pattern)
        assert found
        for path in found:
            got = get(base, path, Accept_Encoding="gzip, br", Range="bytes=1-3")
            assert (got.status, got.body) == (200, (root / path).read_bytes())
            assert (got.headers.get_all("Cache-Control"), got.headers["Content-Type"]) == ([cache_control], kind)
            assert got.headers["Access-Control-Allow-Origin"] == "*"
            assert not {"Content-Encoding", "Set-Cookie", "Vary"} & set(got.headers)
            again = get(base, path, If_None_Match=got.headers["ETag"])
            assert (again.status, again.headers["Cache-Control"]) == (304, cache_control)
            assert get(base, path, "HEAD").headers["Content-Length"] == str(len(got.body))
    for path in (ABSENT, "chunks/secret", "", "heads/", "trust/2", "HEAD.bak", "../data"):
        got = get(base, path)
        assert (got.status, got.headers.get_all("Cache-Control")) == (404, ["no-store"])
    got = get(base, "HEAD", "POST")
    assert got.status in (403, 404, 405)
    assert got.headers["Cache-Control"] == "no-store"


class Misbehaving(BaseHTTPRequestHandler):
    """Gives each of `answers` once: status, headers, body. Notes with which headers it was asked."""

    protocol_version = "HTTP/1.1"
    answers: list[tuple[int, dict[str, str], bytes]] = []
    asked: list[http.client.HTTPMessage] = []

    def do_GET(self):
        self.asked.append(self.headers)
        status, headers, body = self.answers.pop(0)
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *_):
        pass


@contextmanager
def misbehaving(port: int, answers: list[tuple[int, dict[str, str], bytes]]) -> Iterator[list[http.client.HTTPMessage]]:
    """Such a host; gives the headers of each request."""
    asked: list[http.client.HTTPMessage] = []
    handler = type("Handler", (Misbehaving,), {"answers": answers, "asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield asked
    finally:
        server.shutdown()
        server.server_close()


def check_asks_for_whole_files(base: str, port: int) -> None:
    """Whether what serves `base` asks its origin, at `port`, for whole and plain files, and gives them as they came."""
    body = b"the whole file"
    headers = {"Cache-Control": IMMUTABLE, "ETag": '"a"', "Accept-Ranges": "bytes"}
    with misbehaving(port, [(200, headers, body)] * 2) as asked:
        for _ in range(2):
            got = get(base, ABSENT, Range="bytes=1-3", Accept_Encoding="gzip, br")
            assert (got.status, got.body) == (200, body)
            assert not {"Content-Encoding", "Content-Range"} & set(got.headers)
    assert {(headers["Range"], headers["Accept-Encoding"]) for headers in asked} == {(None, "identity")}
