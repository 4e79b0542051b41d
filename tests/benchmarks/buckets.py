"""Publishing to a bucket, against `aws s3 sync`, and puts at a distance. By hand: `python -m tests.benchmarks.buckets TREE`.

TREE is a folder of many small files; both tools copy it to moto's server on this machine, whose log counts the requests.
`--aws PROGRAM` is the rival (from PyPI's awscli, in an environment of its own). Then 1,000 chunks of 64 KiB are put through a
proxy, a process of its own, that answers 30 ms late.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from tests.buckets import KEYS, NO_SETTINGS, s3_client, start_moto

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
        copying(arguments.tree, arguments.aws, scratch)
        distant(port)
    shutil.rmtree(scratch)


def copying(tree: Path, aws: str, scratch: Path) -> None:
    """The tree into a bucket, by both."""
    log = scratch / "moto.log"
    files = sum(path.is_file() for path in tree.rglob("*"))
    print(f"{files:,} files", flush=True)
    ours = [sys.executable, "-m", "publisher.cli", "publish", tree, "s3://bench/ours"]
    for name, command in (
        ("publisher publish", ours),
        ("the same, nothing new", ours),
        ("aws s3 sync", [aws, "s3", "sync", "--quiet", tree, "s3://bench/theirs"]),
        ("the same, nothing new", [aws, "s3", "sync", "--quiet", tree, "s3://bench/theirs"]),
    ):
        before, start = requests(log), time.perf_counter()
        subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL)
        took = time.perf_counter() - start
        print(f"| {name} | {took:.2f} s | {requests(log) - before:,} requests |", flush=True)


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
