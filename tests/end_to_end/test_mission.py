"""The mission's own test: a slow puller of a live dataset, killed twice, ends at a HEAD published after it started."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from publisher.build import make_pool
from publisher.commit import GRACE
from publisher.gc import collect
from publisher.publish import Options, publish
from publisher.sources import open_source
from puller.stores import open_store
from tests.clocked import ClockedFolder
from tests.conftest import puller, tree


class Slow(BaseHTTPRequestHandler):
    """Serves a folder at a limited rate; counts what was sent whole."""

    protocol_version = "HTTP/1.1"
    root = None
    rate = 0
    sent: Counter = Counter()
    lock = threading.Lock()

    def do_GET(self):
        path = self.root / self.path.lstrip("/")
        try:
            data = path.read_bytes()
        except OSError:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            if path.name == "HEAD":
                self.wfile.write(data)
                return
            with self.lock:  # one body after the other, so that a killed puller got some of them whole
                for n in range(0, len(data), 16384):
                    part = data[n : n + 16384]
                    time.sleep(len(part) / self.rate)
                    self.wfile.write(part)
        except OSError:
            self.close_connection = True
            return
        self.sent[self.path] += 1

    def log_message(self, *arguments):
        pass


def live(tmp_path, seconds, size, hours=0.0):
    """Run the test; return how often each file was sent whole, and the versions seen.

    With `hours`, that much time passes from version to version, and what is older than a day is collected all the while;
    the number of files that went is returned as well.
    """
    r = random.Random(3)
    source, dest, copy = tmp_path / "s", tmp_path / "d", tmp_path / "c"
    source.mkdir()
    store = ClockedFolder(str(dest)) if hours else open_store(str(dest))
    removed = 0
    for n in range(size // 20_000):
        (source / f"f{n}").write_bytes(r.randbytes(20_000))

    def commit():
        publish(
            store,
            lambda name, schema: open_source(
                str(source), None, key=(), tables=(), name=name, schema=schema, strict=False
            ),
            "data",
            Options(keep=GRACE if hours else None),
        )

    commit()
    stop = threading.Event()

    def write():
        while not stop.is_set():
            (source / f"f{r.randrange(size // 20_000)}").write_bytes(r.randbytes(20_000))
            commit()
            if hours:
                store.now += hours * 3600
            time.sleep(0.2)

    def clear():
        nonlocal removed
        while not stop.is_set():
            with make_pool(store.threads) as pool:
                removed += collect(store, pool, keep=GRACE, keep_versions=0).files_removed
            time.sleep(0.1)

    handler = type("Handler", (Slow,), {"root": dest, "rate": size / seconds, "sent": Counter()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    writers = [threading.Thread(target=work) for work in ([write, clear] if hours else [write])]
    for writer in writers:
        writer.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        start = time.time()
        for _ in range(2):
            process = subprocess.Popen(
                [sys.executable, "-m", "puller.cli", "pull", url, copy], stderr=subprocess.PIPE, stdout=subprocess.PIPE
            )
            time.sleep(seconds / 3)
            assert process.poll() is None, process.communicate()
            process.send_signal(signal.SIGKILL)
            process.communicate()
        first = puller("pull", "--json", url, copy).json
        took = time.time() - start
        stop.set()
        for writer in writers:
            writer.join()
        last = puller("pull", "--json", url, copy).json
    finally:
        stop.set()
        for writer in writers:
            writer.join()
        server.shutdown()
        server.server_close()
    assert tree(copy) == tree(source)
    shutil.rmtree(copy)
    return handler.sent, first, last, took, removed


def check(sent, first, last, took, removed, seconds, collected=False):
    assert (removed > 0) == collected
    assert took > seconds * 0.7
    assert first["to"]["version"] > 3
    assert last["to"]["version"] >= first["to"]["version"]
    twice = {path: n for path, n in sent.items() if n > 1}
    assert len(twice) <= 2, twice  # sent whole, and killed before it was kept: at most what was under way
    assert sum(sent.values()) > 15


def test_a_slow_puller_of_a_live_dataset(tmp_path):
    check(*live(tmp_path, 6, 20_000_000), 6)


@pytest.mark.slow
def test_a_slow_puller_beside_garbage_collection(tmp_path):
    """It takes longer than versions are kept: what it began with is collected while it fetches."""
    check(*live(tmp_path, 6, 20_000_000, hours=3), 6, collected=True)


@pytest.mark.slow
def test_a_puller_that_takes_over_a_minute_beside_garbage_collection(tmp_path):
    check(*live(tmp_path, 75, 100_000_000, hours=2), 75, collected=True)


@pytest.mark.slow
def test_a_puller_that_takes_over_a_minute(tmp_path):
    check(*live(tmp_path, 75, 100_000_000), 75)
