"""The service's own small HTTP server: `/healthz`, `/livez` and `/metrics`, for probes and Prometheus."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from puller.errors import UsageError

Page = Callable[[], tuple[int, str, str]]
"""Gives status, content type and text; called from any thread."""
MOST_AT_ONCE = 16
PATIENCE = 5.0
"""Seconds that a client has for each read or write."""
LOCAL = "127.0.0.1"


def parse_address(text: str) -> tuple[str, int]:
    """The host and port in HOST:PORT, [IPV6]:PORT or :PORT (this machine only). Raises UsageError."""
    host, colon, port = text.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise UsageError(f"{text!r} is no address to listen on: write HOST:PORT, as 127.0.0.1:9100 or 0.0.0.0:9100")
    return host.removeprefix("[").removesuffix("]") or LOCAL, int(port)


class _Handler(BaseHTTPRequestHandler):
    timeout = PATIENCE
    server: Server
    server_version = "headwater"
    sys_version = ""

    def do_GET(self) -> None:
        page = self.server.pages.get(self.path.partition("?")[0])
        status, kind, text = (404, "text/plain; charset=utf-8", "not found\n") if page is None else page()
        body = text.encode("utf-8", "backslashreplace")
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Probes are not worth a line each."""


class Server(ThreadingHTTPServer):
    """Serves `pages` by their paths, from daemon threads, few at a time."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, address: str, pages: Mapping[str, Page]) -> None:
        """Listen. Raises UsageError where that is impossible."""
        host, port = parse_address(address)
        self.pages = pages
        self._stopping = False
        self._places = threading.BoundedSemaphore(MOST_AT_ONCE)
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise UsageError(
                f"cannot listen on {address}: {error.strerror}; another process may have the port"
            ) from error
        self._thread = threading.Thread(target=self._serve, name="web", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stopping:
            self.handle_request()

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""

    @property
    def port(self) -> int:
        """The port that was given, or found where 0 was asked for."""
        return int(self.server_address[1])

    def stop(self) -> None:
        """Listen no more."""
        self._stopping = True
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for a connection
        self._thread.join(PATIENCE)
        self.server_close()
