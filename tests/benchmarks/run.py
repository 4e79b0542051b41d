"""Times whole processes beside their rivals, in one run: python -m tests.benchmarks.run [A] [C] [memory]

Data are read from $BENCH_DATA: `A/tree` and `A/tree-next` (a folder and its next state), `C/rows.jsonl` (rows with the
key field "key"). Everything is written below --scratch, which should be on tmpfs. Each number is the median of --rounds
rounds; the rivals take turns, and the spread is (slowest - fastest) / median. `memory` has no rival: it times pulls of
C's rows into a `puller.Replica` in one process, its start excluded, and small pulls after them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.conftest import start_nginx

DATA = Path(os.environ.get("BENCH_DATA", Path.home() / ".cache/headwater-bench"))
PUBLISHER = f"{sys.executable} -m publisher.cli"
PULLER = f"{sys.executable} -m puller.cli"


def timed(command: str, prepare: Callable[[], None]) -> float:
    """Seconds that a shell command takes, after `prepare`."""
    prepare()
    start = time.perf_counter()
    subprocess.run(["bash", "-o", "pipefail", "-c", command], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def compare(title: str, ours: str, rival: str, prepare: Callable[[], None], rounds: int) -> None:
    """Print a row: our seconds, the rival's, and their ratio."""
    times: dict[str, list[float]] = {ours: [], rival: []}
    for _ in range(rounds):
        for command in (ours, rival):
            times[command].append(timed(command, prepare))
    us, them = (statistics.median(times[c]) for c in (ours, rival))
    spread = [(max(times[c]) - min(times[c])) / statistics.median(times[c]) for c in (ours, rival)]
    print(f"| {title} | {us:.2f} s ± {spread[0]:.0%} | {them:.2f} s ± {spread[1]:.0%} | {us / them:.2f} |", flush=True)


def main() -> None:
    """Run the rows asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="*", help="A, C, memory, or all of them (the default)")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/headwater-bench"))
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    scratch: Path = arguments.scratch
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, median of {arguments.rounds}, scratch {scratch}")
    print("| what | headwater | rival | ratio |\n| --- | --- | --- | --- |")
    with start_nginx(scratch / "nginx") as nginx:
        if not arguments.data or "A" in arguments.data:
            folder(nginx.root, nginx.url, scratch, arguments.rounds)
        if not arguments.data or "C" in arguments.data:
            rows(nginx.root, nginx.url, scratch, arguments.rounds)
        if not arguments.data or "memory" in arguments.data:
            memory(nginx.root, nginx.url, arguments.rounds)
    shutil.rmtree(scratch)


def memory(root: Path, url: str, rounds: int) -> None:
    """C into the memory of a program: the whole of it, then 1 % of changes, with and without a listener."""
    publish = f"{PUBLISHER} publish --key key --name c"
    subprocess.run(f"{publish} {DATA}/C/rows.jsonl {root}/memory", shell=True, check=True, stdout=sys.stderr)
    script = """
import sys, time
import puller, puller.fetch, urllib3
url, rounds = sys.argv[1], int(sys.argv[2])
def timed(pull, *arguments):
    start = time.perf_counter()
    outcome = pull(*arguments)
    print(outcome.plan.way, outcome.records, time.perf_counter() - start, flush=True)
replicas = [puller.Replica(url) for _ in range(2)]
for _ in range(rounds):
    with puller.Replica(url) as replica:
        timed(replica.pull)
for replica in replicas:
    replica.pull()
sys.stdin.readline()
timed(replicas[0].pull)
timed(replicas[1].pull, lambda change: None)
"""
    command = [sys.executable, "-c", script, f"{url}/memory", str(rounds)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        lines = [process.stdout.readline().split() for _ in range(rounds)]
        times = [float(seconds) / int(records) * 1e6 for _, records, seconds in lines]
        spread = (max(times) - min(times)) / statistics.median(times)
        print(
            f"| C pull into memory, a million rows | {statistics.median(times):.2f} s ± {spread:.0%} | | |", flush=True
        )
        subprocess.run(f"{publish} {DATA}/C/rows-next.jsonl {root}/memory", shell=True, check=True, stdout=sys.stderr)
        process.stdin.write("go on\n")
        process.stdin.flush()
        for what in ("", ", changes told"):
            way, _, seconds = process.stdout.readline().split()
            print(f"| C pull of the next state into memory, by {way}{what} | {float(seconds):.2f} s | | |", flush=True)


def folder(root: Path, url: str, scratch: Path, rounds: int) -> None:
    """A: a folder, against tar and zstd."""
    tree, out = DATA / "A/tree", scratch / "out"

    def clean() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()

    tar = f"tar -C {tree} -cf - . | zstd -q -3 -T2"
    compare(
        "A publish / `tar \\| zstd -3 -T2`",
        f"{PUBLISHER} publish {tree} {out}/a",
        f"{tar} > {out}/a.tar.zst",
        clean,
        rounds,
    )
    subprocess.run(
        f"{PUBLISHER} publish {tree} {root}/a; {tar} > {root}/a.tar.zst", shell=True, check=True, stdout=sys.stderr
    )
    link_plain(root)
    compare(
        "A pull / `curl \\| zstd -d \\| tar x`",
        f"{PULLER} pull {url}/a {out}/copy",
        f"mkdir {out}/copy; curl -sf {url}/plain/chunks/aa/{'a' * 64}.zst | zstd -qd | tar -C {out}/copy -xf -",
        clean,
        rounds,
    )


def link_plain(root: Path) -> None:
    """Put the tar where the server's configuration serves files."""
    place = root / "plain/chunks/aa"
    place.mkdir(parents=True)
    os.link(root / "a.tar.zst", place / f"{'a' * 64}.zst")


def rows(root: Path, url: str, scratch: Path, rounds: int) -> None:
    """C: a table, against zstd of its file."""
    source, out = DATA / "C/rows.jsonl", scratch / "out"

    def clean() -> None:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()

    compare(
        "C publish / `zstd -3 -T2`",
        f"{PUBLISHER} publish {source} {out}/c --key key",
        f"zstd -q -3 -T2 {source} -o {out}/c.zst",
        clean,
        rounds,
    )


if __name__ == "__main__":
    main()
