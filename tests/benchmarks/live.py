"""Watching and following: python -m tests.benchmarks.live [ROW ...]

A ROW is `live` or `idle`. `live` is how long it takes from a change of one file in A/tree of $BENCH_DATA (see
`tests.benchmarks.run`) until a copy has it: `publisher watch --settle 0.2`, nginx and `puller follow --interval 1s` as
processes on this machine, --rounds changes at random moments. `idle` is the CPU time (user and system) of a poll that finds
nothing new, with everything that a follower does around it, of nginx and of a local folder.
"""

from __future__ import annotations

import argparse
import random
import shutil
import statistics
import subprocess
import time
from pathlib import Path

from puller.follow.following import Follow, Following
from puller.follow.meters import Meters
from puller.service.process import Service
from puller.service.settings import Settings
from tests.benchmarks.run import DATA, PUBLISHER, PULLER, prepare
from tests.conftest import Nginx, start_nginx

POLLS = 2000


def live(nginx: Nginx, scratch: Path, rounds: int) -> None:
    """From a change to its arrival."""
    source, copy = scratch / "source", scratch / "copy"
    shutil.copytree(DATA / "A/tree", source)
    paths = sorted(path for path in source.rglob("*") if path.is_file())
    watch = f"exec {PUBLISHER} watch -q --settle 0.2 {source} {nginx.root}/live"
    follow = f"exec {PULLER} follow -q --interval 1s {nginx.url}/live {copy}"
    took = []
    with subprocess.Popen(watch, shell=True) as watcher, subprocess.Popen(follow, shell=True) as follower:
        try:
            wait_for(copy / paths[-1].relative_to(source), paths[-1].read_bytes())
            time.sleep(2)
            for number in range(rounds):
                time.sleep(random.uniform(1.5, 3))
                path = random.choice(paths)
                content = b"%d " % number + path.read_bytes()
                path.write_bytes(content)
                start = time.perf_counter()
                wait_for(copy / path.relative_to(source), content)
                took.append(time.perf_counter() - start)
        finally:
            for process in (follower, watcher):
                process.terminate()
    median, longest = statistics.median(took), max(took)
    print(
        f"| one file of A changed, until a copy has it ({rounds} changes) | {median:.2f} s, at most {longest:.2f} s |",
        flush=True,
    )


def wait_for(path: Path, content: bytes) -> None:
    """Until a file has this content."""
    end = time.monotonic() + 120
    while not path.exists() or path.stat().st_size != len(content) or path.read_bytes() != content:
        if time.monotonic() > end:
            raise TimeoutError(f"{path} did not arrive")
        time.sleep(0.002)


def idle(nginx: Nginx, scratch: Path) -> None:
    """CPU time of a poll that finds nothing new."""
    small = scratch / "small"
    small.mkdir()
    for number in range(100):
        (small / f"{number}").write_text("x" * number)
    subprocess.run(f"{PUBLISHER} publish -q {small} {nginx.root}/idle", shell=True, check=True)
    for what, url in (("nginx", f"{nginx.url}/idle"), ("a local folder", f"{nginx.root}/idle")):
        service = Service("benchmark", Settings(level="warning"))
        following = Following(Follow(url, str(scratch / f"idle-{len(url)}")), service, Meters(service.registry))
        following.begin()
        for _ in range(100):
            following.poll()
        start, cpu = time.perf_counter(), time.process_time()
        for _ in range(POLLS):
            following.poll()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - start
        print(
            f"| idle poll of {what}, CPU time ({POLLS:,} polls) | {cpu / POLLS * 1000:.3f} ms of {wall / POLLS * 1000:.3f} ms |"
        )
        following.close()


def main() -> None:
    """Run the rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("rows", nargs="*", help="live, idle; both by default")
    parser.add_argument("--scratch", type=Path, default=Path("/dev/shm/headwater-live"))
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    scratch: Path = arguments.scratch
    prepare(scratch)
    print("| what | |\n| --- | --- |")
    with start_nginx(scratch / "nginx") as nginx:
        if not arguments.rows or "idle" in arguments.rows:
            idle(nginx, scratch)
        if not arguments.rows or "live" in arguments.rows:
            live(nginx, scratch, arguments.rounds)
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
