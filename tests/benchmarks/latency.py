"""A pull through a cache that is 50 ms away, against `curl --parallel` of the same files: python -m tests.benchmarks.latency

Publishes A/tree and C/rows.jsonl of $BENCH_DATA (see `tests.benchmarks.run`) behind nginx, puts nginx as a cache before
it, warm, and a TCP proxy before that which delays each direction by half of --latency, and of which all connections
together carry --rate bytes a second. Both sides go through it. `curl` gets exactly the files that the pull asked for and
writes them to a folder. "Fetch" asks for them as a pull does and verifies them; a pull decodes and applies them as well.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.benchmarks.run import DATA, PUBLISHER, PULLER, compare
from tests.conftest import free_port, start_cache, start_nginx

FETCH = """
import gc
import sys
from concurrent.futures import ThreadPoolExecutor
from puller.fetch import CONNECTIONS, open_fetcher
from puller.heads import read_heads
from puller.tree import Reader
fetcher = open_fetcher(sys.argv[1])
head = read_heads(sys.argv[1], fetcher, None)[0][0]
with ThreadPoolExecutor(CONNECTIONS) as pool:
    reader = Reader(fetcher, pool)
    found = reader.fetched("chunks", reader.leaves("chunks", head.snapshot))
    print(sum(len(data) for _, data in found))
fetcher.close()
gc.freeze()
"""
"""All files of the snapshot, in the order and with the budget of a pull, each checked against its name; ended as commands are."""
READ = 1 << 18
AHEAD = 1 << 24
"""Bytes that one direction of a connection may hold back."""


class Link:
    """One direction of the link: its delay in seconds, and the bytes a second that all connections share."""

    def __init__(self, seconds: float, rate: float) -> None:
        self.seconds = seconds
        self.rate = rate
        self.free = 0.0

    def due(self, now: float, size: int) -> float:
        """When so many bytes that come now are through."""
        self.free = max(self.free, now) + size / self.rate
        return self.free + self.seconds


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, link: Link) -> None:
    """Hand on what comes, as late as the link has it."""
    loop = asyncio.get_running_loop()
    parts: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(AHEAD // READ)

    async def deliver() -> None:
        while True:
            due, data = await parts.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                writer.close()
                return
            writer.write(data)
            await writer.drain()

    delivery = asyncio.create_task(deliver())
    with suppress(OSError):
        while data := await reader.read(READ):
            await parts.put((link.due(loop.time(), len(data)), data))
    await parts.put((link.due(loop.time(), 0), b""))
    with suppress(OSError):
        await delivery


async def _serve(port: int, to: int, seconds: float, rate: float) -> None:
    up, down = Link(seconds, rate), Link(seconds, rate)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection("127.0.0.1", to, limit=READ)
        await asyncio.gather(_carry(reader, there[1], up), _carry(there[0], writer, down))

    server = await asyncio.start_server(connected, "127.0.0.1", port, limit=READ, backlog=512)
    await server.serve_forever()


@contextmanager
def delayed(to: int, latency: float, rate: float) -> Iterator[int]:
    """The port of a proxy, in a process of its own, before port `to`; a round trip through it takes `latency` seconds."""
    port = free_port()
    command = [sys.executable, "-m", "tests.benchmarks.latency", "--proxy", *map(str, (port, to, latency / 2, rate))]
    with subprocess.Popen(command) as process:
        time.sleep(1)
        try:
            yield port
        finally:
            process.terminate()


def row(title: str, url: str, logged: list[str], pull: str, scratch: Path, rounds: int) -> None:
    """One row: `pull` against curl of the paths in `logged`."""
    out, names = scratch / "out", scratch / "names"
    base = url.rpartition("/")[0]
    names.write_text("".join(f'url = "{base}{path}"\noutput = "{out}/{n}"\n' for n, path in enumerate(logged)))

    def clean() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()

    curl = f"curl -sSf --parallel --parallel-immediate --config {names} 2> {scratch}/progress"
    compare(f"{title}, {len(logged)} files / `curl --parallel`", pull, curl, clean, rounds)


def main() -> None:
    """Run the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/headwater-latency"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latency", type=float, default=0.05)
    parser.add_argument("--rate", type=float, default=125e6)
    parser.add_argument("--proxy", nargs=4)
    arguments = parser.parse_args()
    if arguments.proxy:
        port, to, seconds, rate = arguments.proxy
        asyncio.run(_serve(int(port), int(to), float(seconds), float(rate)))
        return
    scratch: Path = arguments.scratch
    shutil.rmtree(scratch, ignore_errors=True)
    (scratch / "cached").mkdir(parents=True)
    os.environ["XDG_CACHE_HOME"] = str(scratch / "cache-home")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with start_nginx(scratch / "nginx") as nginx, start_cache(scratch / "cached", nginx.url, valid="200 1h") as cache:
        for source, name, options in (("A/tree", "a", ""), ("C/rows.jsonl", "c", "--key key")):
            command = f"{PUBLISHER} publish -q {options} {DATA}/{source} {nginx.root}/{name}"
            subprocess.run(command, shell=True, check=True)
        (scratch / "fetch.py").write_text(FETCH)
        link = f"round trip {arguments.latency * 1000:.0f} ms, {arguments.rate * 8 / 1e6:,.0f} Mbit/s"
        print(f"{os.cpu_count()} cores, {link}, median of {arguments.rounds}")
        print("| what | headwater | rival | ratio |\n| --- | --- | --- | --- |", flush=True)
        with delayed(int(cache.url.rpartition(":")[2]), arguments.latency, arguments.rate) as port:
            for name, target in (("a", None), ("a", "copy"), ("c", None), ("c", "copy.jsonl")):
                url = f"http://127.0.0.1:{port}/{name}"
                pull = f"{PULLER} pull -q {url} {scratch}/out/{target}"
                if target is None:
                    pull = f"{sys.executable} {scratch}/fetch.py {url}"
                (scratch / "out").mkdir(exist_ok=True)
                cache.requests()
                subprocess.run(pull, shell=True, check=True, stdout=subprocess.DEVNULL)
                logged = [path.partition(":")[0] for path, _, _ in cache.requests()]
                title = f"{name.upper()}: " + ("fetch" if target is None else f"pull into {target}")
                row(title, url, logged, pull, scratch, arguments.rounds)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
