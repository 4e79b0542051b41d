"""Batches: what a commit costs, by the size of the dataset. Run by hand:

    python -m tests.benchmarks.batches [RECORDS …] [--commits 1024] [--folder DIR]

For each number of records (10,000 and 1,000,000 if none is given): a dataset of so many records of 157 bytes is made in DIR
(a temporary folder), then a fresh process, whose cache is empty, opens it and publishes batches of 1,000 random changes. The
table gives the median, the mean and the longest of the commits after the first, all level merges and carried snapshots
included, and the processor time of the mean one, which is what to look at on a machine that does other things as well; the
first commit, which builds the cache; the same from a process that finds the cache; a batch of three keys without a cache;
and the largest resident set of the process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

KEYS, VALUE = 1000, 144


def key(n: int) -> bytes:
    return b"key-%09d" % n


def value(r: random.Random) -> bytes:
    """As compressible as text: half of it is random hexadecimal digits."""
    return (b'{"price": %d, "name": "' % r.randrange(10**6) + r.randbytes(40).hex().encode()).ljust(VALUE, b"-")


def make(dest: str, records: int) -> None:
    """One publish of the whole state."""
    from publisher.publish import Options, publish
    from publisher.sources.base import Report
    from puller.stores import open_store

    class Source:
        kind = "bytes"
        report = Report()

        def runs(self):
            r = random.Random(records)
            for start in range(0, records, 5000):
                keys = [key(n) for n in range(start, min(start + 5000, records))]
                yield keys, [value(r) for _ in keys]

        def lead(self):
            return [], []

    publish(open_store(dest), lambda name, schema: Source(), "bench", Options())


def commit(dataset, r: random.Random, records: int, changes: int) -> float:
    puts = {key(n): value(r) for n in r.sample(range(records), changes)}
    start = time.perf_counter()
    with dataset.batch() as batch:
        for k, v in puts.items():
            batch[k] = v
    return time.perf_counter() - start


def measure(dest: str, records: int, commits: int, changes: int) -> dict:
    """In this process: open, the first commit, and those that follow."""
    import publisher

    r = random.Random()
    start = time.perf_counter()
    with publisher.open(dest) as dataset:
        first = time.perf_counter() - start + commit(dataset, r, records, changes)
        cpu, times = time.process_time(), []
        for _ in range(commits - 1):
            times.append(commit(dataset, r, records, changes))
        cpu = (time.process_time() - cpu) / max(1, len(times))
    return {
        "first": first,
        "times": times,
        "cpu": cpu,
        "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def process(cache: Path, *arguments: object) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.batches", "--measure", *map(str, arguments)],
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return json.loads(done.stdout)


def bench(base: Path, records: int, commits: int) -> None:
    dest, cache = base / f"data-{records}", base / "cache"
    subprocess.run([sys.executable, "-m", "tests.benchmarks.batches", "--make", dest, str(records)], check=True)
    few = process(cache, dest, records, 1, 3)
    shutil.rmtree(cache, ignore_errors=True)
    found = process(cache, dest, records, commits, KEYS)
    warm = process(cache, dest, records, 1, KEYS)
    ms = [t * 1000 for t in found["times"]]
    print(
        f"{records:>12,} {statistics.median(ms):>9.1f} {statistics.mean(ms):>9.1f} {max(ms):>9.0f} {found['cpu'] * 1000:>8.1f} "
        f"{found['first']:>10.2f} {warm['first']:>10.2f} {few['first']:>10.2f} {found['rss']:>8.0f}",
        flush=True,
    )
    shutil.rmtree(dest)
    shutil.rmtree(cache)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("records", nargs="*", type=int, default=[10_000, 1_000_000])
    parser.add_argument("--commits", type=int, default=1024)
    parser.add_argument("--folder")
    parser.add_argument("--make", nargs=2)
    parser.add_argument("--measure", nargs=4)
    options = parser.parse_args()
    if options.make:
        return make(options.make[0], int(options.make[1]))
    if options.measure:
        dest, *numbers = options.measure
        print(json.dumps(measure(dest, *map(int, numbers))))
        return None
    print("     records median ms   mean ms longest ms   cpu ms    first s     warm s   3 keys s   RSS MB")
    with tempfile.TemporaryDirectory(dir=options.folder) as base:
        for records in options.records:
            bench(Path(base), records, options.commits)
    return None


if __name__ == "__main__":
    main()
