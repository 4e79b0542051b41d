"""Real S3 servers for tests (moto's, rclone's), and an HTTP proxy that does to requests what networks do."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEYS = {"AWS_ACCESS_KEY_ID": "testing-key", "AWS_SECRET_ACCESS_KEY": "testing-secret-key"}
NO_SETTINGS = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@contextmanager
def running(arguments: list[object], port: int, log: Path, **environment: str) -> Iterator[int]:
    """A server as a process, until it answers on its port."""
    with log.open("wb") as out:
        process = subprocess.Popen([*map(str, arguments)], stdout=out, stderr=out, env=os.environ | environment)
    try:
        for _ in range(400):
            with socket.socket() as s:
                if s.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        else:
            raise AssertionError(log.read_text())
        yield port
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def start_moto(base: Path, **environment: str) -> Iterator[int]:
    """moto's server, which keeps to conditional writes; yields its port."""
    port = free_port()
    with running([sys.executable, "-m", "moto.server", "-p", port], port, base / "moto.log", **environment):
        yield port


@contextmanager
def start_rclone(base: Path) -> Iterator[int]:
    """`rclone serve s3`, which ignores conditions; buckets are folders in `base`; yields its port."""
    port = free_port()
    program = shutil.which("rclone", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    keys = ",".join(KEYS.values())
    command = [program, "serve", "s3", base, "--addr", f"127.0.0.1:{port}", "--auth-key", keys, "--config", os.devnull]
    with running(command, port, base.parent / "rclone.log"):
        yield port


@dataclass
class Request:
    """A request that came through the proxy; `beside` is how many were under way when it came, itself included."""

    method: str
    path: str
    headers: dict[str, str]
    beside: int
    status: int = 0
    answer: dict[str, str] = field(default_factory=dict)

    @property
    def is_conditional(self) -> bool:
        return self.method == "PUT" and bool({"if-match", "if-none-match"} & set(self.headers))


Fate = Callable[[Request], str]
"""pass, refuse (503), fail (500, after it took effect), drop (before), lose (the answer), stall and lose, truncate, corrupt,
unknown (501), unconditional (without the condition)."""


class Proxy(ThreadingHTTPServer):
    """Stands before an S3 server. Conditional writes pass one at a time, as S3 has it: moto looks, then writes."""

    daemon_threads = True
    request_queue_size = 100

    def __init__(self, upstream: int, fate: Fate = lambda _request: "pass", delay: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.fate = fate
        self.delay = delay
        self.stall = 1.0
        self.requests: list[Request] = []
        self.under_way = 0
        self.lock = threading.Lock()
        self.conditional = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request, client_address):
        pass

    def count(self, method: str | None = None) -> int:
        return sum(method in (None, request.method) for request in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Proxy

    def setup(self) -> None:
        super().setup()
        self.upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream)

    def finish(self) -> None:
        self.upstream.close()
        with contextlib.suppress(OSError):
            super().finish()

    def handle_any(self) -> None:
        server = self.server
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with server.lock:
            server.under_way += 1
            headers = {name.lower(): value for name, value in self.headers.items()}
            request = Request(self.command, self.path, headers, server.under_way)
            server.requests.append(request)
        try:
            time.sleep(server.delay)
            self.meet(request, body, server.fate(request))
        finally:
            with server.lock:
                server.under_way -= 1

    do_GET = do_PUT = do_DELETE = do_HEAD = do_POST = handle_any

    def meet(self, request: Request, body: bytes, fate: str) -> None:
        if fate == "drop":
            self.close_connection = True
            return
        if fate == "refuse":
            self.answer(503, [], b"<Error><Code>SlowDown</Code></Error>")
            return
        if fate == "unknown":
            request.status = 501
            self.answer(501, [], b"<Error><Code>NotImplemented</Code></Error>")
            return
        if fate == "unconditional":
            del self.headers["If-Match"], self.headers["If-None-Match"]
        with self.server.conditional if request.is_conditional else contextlib.nullcontext():
            status, headers, data = self.forward(body)
        request.status, request.answer = status, {name.lower(): value for name, value in headers}
        if fate == "stall":
            time.sleep(self.server.stall)
        if fate in ("lose", "stall"):
            self.close_connection = True
        elif fate == "fail":
            self.answer(500, [], b"<Error><Code>InternalError</Code></Error>")
        elif fate == "corrupt" and data:
            self.answer(status, headers, data[:-1] + bytes([data[-1] ^ 1]))
        elif fate == "truncate" and data:
            self.answer(status, headers, data, len(data) // 2)
            self.close_connection = True
        else:
            self.answer(status, headers, data)

    def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        for attempt in range(2):
            try:
                self.upstream.request(self.command, self.path, body, dict(self.headers.items()))
                response = self.upstream.getresponse()
                data = response.read()
                break
            except (http.client.BadStatusLine, ConnectionError):
                self.upstream.close()  # the server had closed a connection that was kept: nothing was read of the request
                assert attempt == 0
        kept = [
            (n, v)
            for n, v in response.getheaders()
            if n.lower() not in ("connection", "transfer-encoding", "content-length", "date", "server")
        ]
        return response.status, kept, data

    def answer(self, status: int, headers: list[tuple[str, str]], data: bytes, upto: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        if status not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[:upto])

    def log_message(self, *arguments):
        pass


@contextmanager
def start_proxy(upstream: int, fate: Fate = lambda _request: "pass", delay: float = 0.0) -> Iterator[Proxy]:
    server = Proxy(upstream, fate, delay)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


def s3_client(url: str):
    """boto3, as anybody would use it."""
    import boto3

    return boto3.session.Session().client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
    )
