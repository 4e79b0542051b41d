"""A host that serves a published folder, except where a rule says otherwise: what hosts and caches get wrong, on demand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

PAGE = b"<!DOCTYPE html>\n<html><head><title>Welcome</title></head><body>Please log in</body></html>"


@dataclass
class Reply:
    """An answer. `body` is sent as it is; `length` is the Content-Length, if not the body's (-1: none at all)."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    length: int | None = None
    trickle: float = 0.0
    """Seconds between the bytes of endless headers that stand in for an answer."""


@dataclass(frozen=True)
class Request:
    """What was asked for: the path below the host's root, and the headers."""

    path: str
    headers: dict[str, str]


Rule = Callable[[Request, Reply], Reply | None]
"""What is sent in place of the right reply; None: that one."""


class Host:
    """Serves `root` at `url`. `asked` lists the requests; `rules` are tried in turn."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rules: list[Rule] = []
        self.asked: list[Request] = []
        self.url = ""
        self.lock = threading.Lock()

    def paths(self) -> list[str]:
        """The paths that were asked for since the last call."""
        with self.lock:
            found = [request.path for request in self.asked]
            self.asked.clear()
        return found

    def reply(self, request: Request) -> Reply:
        with self.lock:
            self.asked.append(request)
        file = self.root / request.path
        right = Reply(404, b"not found") if not file.is_file() else Reply(200, file.read_bytes(), {"ETag": '"1"'})
        if right.status == 200:
            right.headers["ETag"] = f'"{hash(right.body):x}"'
        for rule in self.rules:
            other = rule(request, right)
            if other is not None:
                return other
        if request.headers.get("if-none-match") == right.headers.get("ETag", ""):
            return Reply(304, b"", right.headers)
        return right


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    host: Host

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.host.reply(Request(self.path.lstrip("/"), headers))
        with suppress(OSError):
            if reply.trickle:
                self.drip(reply)
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            length = len(reply.body) if reply.length is None else reply.length
            if length >= 0 and reply.status != 304:
                self.send_header("Content-Length", str(length))
            self.close_connection = reply.length is not None
            self.end_headers()
            if reply.status != 304:
                self.wfile.write(reply.body)

    def drip(self, reply: Reply) -> None:
        self.close_connection = True
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        while True:
            self.wfile.write(b"x")
            time.sleep(reply.trickle)

    def log_message(self, *arguments: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 128


@contextmanager
def hostile(root: Path, *rules: Rule) -> Iterator[Host]:
    """A host with some rules."""
    host = Host(root)
    host.rules = list(rules)
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"host": host}))
    host.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield host
    finally:
        server.shutdown()
        server.server_close()


def files(rule: Rule) -> Rule:
    """A rule for immutable files alone."""
    return lambda request, right: None if request.path == "HEAD" else rule(request, right)


def head(rule: Rule) -> Rule:
    """A rule for HEAD alone."""
    return lambda request, right: rule(request, right) if request.path == "HEAD" else None


def first(times: int, rule: Rule) -> Rule:
    """A rule that holds for the first times that a path is asked for."""
    seen: dict[str, int] = {}

    def limited(request: Request, right: Reply) -> Reply | None:
        seen[request.path] = seen.get(request.path, 0) + 1
        return rule(request, right) if seen[request.path] <= times else None

    return limited


def always(reply: Reply) -> Rule:
    """The same reply to everything."""
    return lambda _request, _right: reply
