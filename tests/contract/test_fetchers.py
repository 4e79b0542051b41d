"""One suite for every fetcher, on real hosts; and hosts that misbehave."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from publisher.serve import make_server
from puller.errors import Corrupt, FetchError, NotFound, Unavailable, UsageError, Withheld
from puller.fetch import FolderFetcher, Retrying, open_fetcher
from puller.http import HttpFetcher
from puller.s3 import S3Fetcher
from tests.buckets import KEYS

FIELDS = {"epoch": 1, "version": 1, "time": 1, "kind": "bytes", "checksum": "0" * 32, "records": 0, "diffs": []}
FIELDS |= {"snapshot": {"version": 1, "tree": ["0" * 64, 9, 9]}, "interval": 30, "publish_id": "0" * 32, "needs": []}


def head_at(version):
    return f"headwater/1 test\n{json.dumps(FIELDS | {'version': version, 'trust': 0})}\n\n".encode()


HEAD = head_at(1)
NAME = "ab" * 32
FILE = f"chunks/ab/{NAME}.zst"
DATA = bytes(range(256)) * 9000


def serve(server):
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_address[1]}"


class InBucket:
    """A file in a bucket, as a path would be one in a folder."""

    def __init__(self, bucket, key):
        self.bucket, self.key = bucket, key

    def __truediv__(self, name):
        return InBucket(self.bucket, f"{self.key}/{name}")

    def write_bytes(self, data):
        self.bucket.client.put_object(Bucket=self.bucket.name, Key=self.key, Body=data)

    def unlink(self):
        self.bucket.client.delete_object(Bucket=self.bucket.name, Key=self.key)


@pytest.fixture(params=["folder", "file-url", "nginx", "serve", "s3", "s3 of rclone", "mirrors", "mirrors-one-folder"])
def host(request, nginx):
    if request.param.startswith("s3"):
        bucket = request.getfixturevalue("bucket" if request.param == "s3" else "careless_bucket")
        place = InBucket(bucket, "a/b")
        (place / FILE).write_bytes(DATA)
        (place / "HEAD").write_bytes(HEAD)
        fetcher = open_fetcher(f"{bucket.url}/a/b")
        yield place, fetcher
        fetcher.close()
        return
    root = nginx.root
    (root / "chunks/ab").mkdir(parents=True)
    (root / FILE).write_bytes(DATA)
    (root / "HEAD").write_bytes(HEAD)
    server = None
    if request.param == "folder":
        fetcher = open_fetcher(str(root))
    elif request.param == "file-url":
        fetcher = open_fetcher(f"file://{root}")
    elif request.param == "nginx":
        fetcher = open_fetcher(nginx.url)
    elif request.param == "mirrors":
        fetcher = open_fetcher(nginx.url, [f"{nginx.url}/"])
    elif request.param == "mirrors-one-folder":
        fetcher = open_fetcher(str(root), [nginx.url])
    else:
        server = make_server(str(root), "127.0.0.1", 0, quiet=True)
        fetcher = open_fetcher(serve(server))
    yield root, fetcher
    fetcher.close()
    if server:
        server.shutdown()
        server.server_close()


def test_gives_whole_files_and_shows_longer_ones(host):
    _, fetcher = host
    assert fetcher.fetch(FILE, len(DATA)) == DATA
    assert fetcher.fetch(FILE, 1000) == DATA[:1001]
    assert fetcher.fetch(FILE, len(DATA) + 5) == DATA
    assert fetcher.requests == 3
    assert fetcher.received == 2 * len(DATA) + 1001


def test_bytes_that_do_not_pass_the_check_are_not_returned(host):
    _, fetcher = host
    seen = []

    def check(data):
        seen.append(data)
        raise Corrupt("damaged")

    with pytest.raises(Corrupt):
        fetcher.fetch(FILE, len(DATA), check)
    assert set(seen) == {DATA}
    assert fetcher.fetch(FILE, len(DATA), seen.append) == DATA


def test_absence_is_not_found(host):
    root, fetcher = host
    with pytest.raises(NotFound):
        fetcher.fetch(f"chunks/cd/{'cd' * 32}.zst", 10)
    (root / "HEAD").unlink()
    with pytest.raises(NotFound):
        fetcher.fetch_head(None)


def test_head_is_conditional(host):
    root, fetcher = host
    first = fetcher.fetch_head(None)
    assert first.data == HEAD
    again = fetcher.fetch_head(first.etag)
    assert (again.data, again.etag) == (None, first.etag)
    (root / "HEAD").write_bytes(head_at(10))
    changed = fetcher.fetch_head(first.etag)
    assert changed.data == head_at(10)
    assert changed.etag != first.etag
    assert fetcher.fetch_head(None).data == head_at(10)
    assert fetcher.fetch_head("a tag of another address").data == head_at(10)


def test_many_threads_at_once(host):
    _, fetcher = host
    results = []
    threads = [threading.Thread(target=lambda: results.append(fetcher.fetch(FILE, len(DATA)))) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [DATA] * 20


class Bad(BaseHTTPRequestHandler):
    """Answers by the path's last part."""

    protocol_version = "HTTP/1.1"
    hits: list[str] = []
    peers: set[object] = set()

    def do_GET(self):
        self.peers.add(self.client_address)
        what = self.path.rpartition("/")[2]
        self.hits.append(what)
        if what.isdigit():
            self.answer(int(what), b"an error page", {"Retry-After": "7"} if what in ("429", "503") else {})
        elif what == "same":
            self.answer(302, b"", {"Location": "/found"})
        elif what == "other":
            self.answer(302, b"", {"Location": "http://127.0.0.2:9/found"})
        elif what == "loop":
            self.answer(302, b"", {"Location": "/loop"})
        elif what == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
            self.close_connection = True
        elif what == "endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * 65536)
            except OSError:
                self.close_connection = True
        elif what == "flaky":
            if self.hits.count("flaky") < 3:
                self.answer(503, b"", {})
            else:
                self.answer(200, b"found", {})
        elif what == "lengths":
            self.send_response(200)
            self.send_header("Content-Length", "5")
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"found!")
        elif what == "last":
            self.answer(200, b"found", {})
            self.close_connection = True  # without saying so
        elif what == "chunked":
            self.answer(200, b"", {"Transfer-Encoding": "chunked"})
            self.wfile.write(b"3\r\nfou\r\n2;x=y\r\nnd\r\n0\r\nTrailer: t\r\n\r\n")
        elif what == "authorization":
            self.answer(200, self.headers["Authorization"].encode(), {})
        elif what == "gzip":
            self.answer(200, b"\x1f\x8bnot decoded", {"Content-Encoding": "gzip"})
        else:
            self.answer(200, b"found", {})

    def answer(self, status, body, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Transfer-Encoding" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def bad():
    Bad.hits, Bad.peers = [], set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Bad)
    fetcher = HttpFetcher(serve(server))
    yield fetcher
    fetcher.close()
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("404", NotFound),
        ("410", NotFound),
        ("403", Withheld),
        ("401", FetchError),
        ("400", FetchError),
        ("204", FetchError),
        ("206", Unavailable),
        ("304", FetchError),
        ("500", Unavailable),
        ("503", Unavailable),
        ("429", Unavailable),
        ("cut", Unavailable),
        ("lengths", Unavailable),
        ("loop", FetchError),
        ("other", FetchError),
    ],
)
def test_errors_of_hosts(bad, path, error):
    with pytest.raises(error) as caught:
        bad.fetch(path, 1000)
    assert type(caught.value) is error
    if path in ("429", "503"):
        assert caught.value.retry_after == 7
    assert bad.fetch("found", 100) == b"found"


@pytest.mark.parametrize(
    ("fate", "error"),
    [
        ("drop", Unavailable),
        ("lose", Unavailable),
        ("refuse", Unavailable),
        ("fail", Unavailable),
        ("truncate", Unavailable),
    ],
)
def test_errors_of_buckets(bucket, fate, error):
    bucket.client.put_object(Bucket=bucket.name, Key="x", Body=DATA)
    fetcher = S3Fetcher(bucket.url)
    bucket.proxy.fate = lambda _request: fate
    with pytest.raises(error):
        fetcher.fetch("x", len(DATA))
    bucket.proxy.fate = lambda _request: "pass"
    assert fetcher.fetch("x", len(DATA)) == DATA
    assert bucket.proxy.count() == 2
    fetcher.close()


def test_what_a_bucket_refuses_is_no_absence(bucket, monkeypatch):
    fetcher = S3Fetcher("s3://no-such-bucket/x")
    with pytest.raises(FetchError, match="there is no bucket no-such-bucket at http") as caught:
        fetcher.fetch_head(None)
    assert not isinstance(caught.value, NotFound)
    fetcher.close()
    for name in KEYS:
        monkeypatch.delenv(name)
    fetcher = S3Fetcher(bucket.url)
    with pytest.raises(FetchError, match="no AWS credentials were found"):
        fetcher.fetch_head(None)
    fetcher.close()


def test_redirects_within_the_origin_are_followed(bad):
    assert bad.fetch("same", 100) == b"found"


def test_connections_are_used_again_where_the_host_keeps_them_open(bad):
    for _ in range(3):
        assert bad.fetch("chunked", 100) == bad.fetch("found", 100) == b"found"
    assert len(Bad.peers) == 1
    for _ in range(3):
        assert bad.fetch("last", 100) == b"found"
        time.sleep(0.05)
    assert len(Bad.peers) == 3


def test_a_user_and_a_password_are_sent_and_not_shown(bad):
    fetcher = HttpFetcher(bad.base.replace("//", "//us%65r:pass%40word@"))
    assert fetcher.fetch("authorization", 100) == b"Basic dXNlcjpwYXNzQHdvcmQ="
    with pytest.raises(NotFound) as caught:
        fetcher.fetch("404", 100)
    assert "word" not in str(caught.value)
    fetcher.close()


def test_an_endless_body_is_cut_off(bad):
    assert len(bad.fetch("endless", 100_000)) == 100_001
    assert bad.fetch("found", 100) == b"found"


def test_content_encoding_is_not_undone(bad):
    assert bad.fetch("gzip", 100) == b"\x1f\x8bnot decoded"


def test_retries_are_bounded_and_honour_the_host(bad):
    pauses = []
    retrying = Retrying(bad, attempts=3, sleep=pauses.append, jitter=lambda: 0.5)
    assert retrying.fetch("flaky", 100) == b"found"
    assert pauses == [0.2, 0.4]
    pauses.clear()
    with pytest.raises(Unavailable):
        retrying.fetch("503", 100)
    assert pauses == [7, 7]
    pauses.clear()
    with pytest.raises(NotFound):
        retrying.fetch("404", 100)
    assert pauses == []


def test_a_proxy_of_the_environment_is_used(bad, monkeypatch):
    monkeypatch.setenv("http_proxy", bad.base)
    proxied = HttpFetcher("http://data.invalid/x")
    assert proxied.fetch("found", 100) == b"found"
    proxied.close()
    monkeypatch.setenv("no_proxy", "data.invalid")
    direct = HttpFetcher("http://data.invalid/x")
    with pytest.raises(Unavailable):
        direct.fetch("found", 100)


class Tunnel(BaseHTTPRequestHandler):
    """A proxy that lets CONNECT through, but not to everybody."""

    asked: list[str] = []

    def do_CONNECT(self):
        self.asked.append(self.path)
        if self.path.startswith("denied"):
            self.send_error(403)
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port))) as there:
            self.send_response(200)
            self.end_headers()
            away = threading.Thread(target=self.carry, args=(self.connection, there))
            away.start()
            self.carry(there, self.connection)
            away.join()

    def carry(self, source, to):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)

    def log_message(self, *arguments):
        pass


@pytest.fixture
def tls(tmp_path, nginx):
    """A host over TLS, and the certificate that it can be trusted by."""
    (nginx.root / "HEAD").write_bytes(HEAD)
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes"]
    files = ["-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")]
    subprocess.run(["openssl", "req", "-x509", "-newkey", "rsa:2048", *names, *files], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    server = make_server(str(nginx.root), "127.0.0.1", 0, quiet=True)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    yield serve(server).replace("http:", "https:"), str(tmp_path / "cert")
    server.shutdown()
    server.server_close()


def test_https_with_a_certificate_that_is_trusted_and_one_that_is_not(tls, monkeypatch):
    url, certificate = tls
    untrusting = HttpFetcher(url)
    with pytest.raises(Unavailable, match="certificate"):
        untrusting.fetch_head(None)
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    trusting = HttpFetcher(url)
    assert trusting.fetch_head(None).data == HEAD
    monkeypatch.undo()
    for fetcher in (untrusting, trusting):
        fetcher.close()


def test_https_through_a_proxy(tls, monkeypatch):
    url, certificate = tls
    Tunnel.asked = []
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Tunnel)
    monkeypatch.setenv("https_proxy", serve(proxy).removeprefix("http://"))
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    fetcher = HttpFetcher(url)
    assert fetcher.fetch_head(None).data == fetcher.fetch_head(None).data == HEAD
    assert Tunnel.asked == [url.removeprefix("https://")]
    denied = HttpFetcher("https://denied.invalid")
    with pytest.raises(Unavailable, match="the proxy does not let it through"):
        denied.fetch_head(None)
    for bad, why in (
        ("https://me:gehe1m@127.0.0.1:9", "itself reached by https"),
        ("socks5://h:9", "kind socks5:// are not"),
    ):
        monkeypatch.setenv("https_proxy", bad)
        with pytest.raises(UsageError, match=f"{why}.*Name one with http://") as told:
            HttpFetcher(url)
        assert "gehe1m" not in str(told.value)
    for one in (fetcher, denied):
        one.close()
    proxy.shutdown()
    proxy.server_close()


def test_nobody_there():
    fetcher = HttpFetcher("http://127.0.0.1:9")
    with pytest.raises(Unavailable):
        fetcher.fetch("x", 1)


def test_an_unreadable_folder_is_no_absence(tmp_path):
    (tmp_path / "HEAD").mkdir()
    with pytest.raises(Unavailable):
        FolderFetcher(str(tmp_path)).fetch_head(None)


@pytest.mark.parametrize(
    "address",
    ["http://h:port/x", "s3://", "s3://b/x?y=1", "ftp://h/x", "http:///x", "http://h/x?y=1", "file://other/x"],
)
def test_addresses_that_cannot_be(address):
    with pytest.raises(UsageError):
        open_fetcher(address)
