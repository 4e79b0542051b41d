"""A small HTTP server for trying a published dataset, with the cache headers that a real host should send."""

from __future__ import annotations

import hashlib
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from puller.errors import HeadwaterError, NotFound
from puller.stores import open_store
from puller.stores.base import Store
from puller.stores.headers import cache_control, content_type
from puller.wire.head import HEAD

_PATH = re.compile(r"/(HEAD|heads/\d+-\d+|trust/\d+|(?:chunks|diffs)/[0-9a-f]{2}/[0-9a-f]{64}\.zst)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "headwater"
    store: Store
    head: bytes | None = None
    quiet = False

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        match = _PATH.fullmatch(self.path.split("?")[0])
        plain = {"Content-Type": "text/plain", "Cache-Control": "no-store"}
        try:
            data = self._read(match[1]) if match else None
        except HeadwaterError as error:
            self._send(503, f"{error}\n".encode(), plain, body=body)
            return
        if match is None or data is None:
            self._send(404, b"not found\n", plain, body=body)
            return
        tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        headers = {
            "ETag": tag,
            "Cache-Control": cache_control(match[1]),
            "Content-Type": content_type(match[1]),
            "Access-Control-Allow-Origin": "*",
        }
        if self.headers.get("If-None-Match") == tag:
            self._send(304, b"", headers, body=False)
        else:
            self._send(200, data, headers, body=body)

    def _read(self, path: str) -> bytes | None:
        if path == HEAD and self.head is not None:
            return self.head
        try:
            return self.store.get(path)
        except NotFound:
            return None

    def _send(self, status: int, data: bytes, headers: dict[str, str], *, body: bool) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 304:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        if not self.quiet:
            super().log_message(format, *args)


def make_server(
    address: str | Store, host: str, port: int, *, quiet: bool, head: bytes | None = None
) -> ThreadingHTTPServer:
    """A server for the dataset in a store, or at a store's address; only files of a dataset are served.

    `head` is served in place of the HEAD that is there.
    """
    store = open_store(address) if isinstance(address, str) else address
    handler = type("Handler", (_Handler,), {"store": store, "head": head, "quiet": quiet})
    return ThreadingHTTPServer((host, port), handler)
