"""A small HTTP server for trying a published dataset, with the cache headers that a real host should send."""

from __future__ import annotations

import hashlib
import os
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from puller.wire.head import HEAD

IMMUTABLE = "public, max-age=31536000, immutable, no-transform"
MUTABLE = "public, max-age=5, stale-while-revalidate=10, stale-if-error=3600, no-transform"
_PATH = re.compile(r"/(HEAD|heads/\d+-\d+|trust/\d+|(?:chunks|diffs)/[0-9a-f]{2}/[0-9a-f]{64}\.zst)")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "headwater"
    root = ""
    quiet = False

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        match = _PATH.fullmatch(self.path.split("?")[0])
        data = self._read(match[1]) if match else None
        if match is None or data is None:
            self._send(404, b"not found\n", {"Content-Type": "text/plain", "Cache-Control": "no-store"}, body=body)
            return
        tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
        headers = {
            "ETag": tag,
            "Cache-Control": MUTABLE if match[1] == HEAD else IMMUTABLE,
            "Content-Type": "text/plain; charset=utf-8" if "." not in match[1] else "application/octet-stream",
            "Access-Control-Allow-Origin": "*",
        }
        if self.headers.get("If-None-Match") == tag:
            self._send(304, b"", headers, body=False)
        else:
            self._send(200, data, headers, body=body)

    def _read(self, path: str) -> bytes | None:
        try:
            with open(os.path.join(self.root, path), "rb") as file:
                return file.read()
        except OSError:
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


def make_server(root: str, host: str, port: int, *, quiet: bool) -> ThreadingHTTPServer:
    """A server for the dataset in the folder `root`; only files of a dataset are served."""
    handler = type("Handler", (_Handler,), {"root": root, "quiet": quiet})
    return ThreadingHTTPServer((host, port), handler)
