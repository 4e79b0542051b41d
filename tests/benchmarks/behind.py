"""What a puller k versions behind fetches, and what that costs to write: python -m tests.benchmarks.behind [workload …]

For each workload a history is published with the publisher's own parts into memory, every HEAD kept. Then pullers
that hold random versions meet random HEADs: the real planner reads the log and fetches, requests are counted (HEAD,
log, diffs, snapshot), and the bytes of what it fetched are set against one absolute diff over exactly its way, which
is what a server with unlimited work could send. The distances k are spread evenly over log k: a puller minutes behind
counts as much as one that is weeks behind.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import msgspec

from publisher.build import Sink, TreeBuilder
from publisher.commit import first_head, follow
from publisher.published import Published, StoreFetcher
from puller.errors import NotFound
from puller.plan import Plan, Way, plan
from puller.runs import merge
from puller.tree import Reader
from puller.ways import read_diffs
from puller.wire.checksum import MODULUS, record_hashes, sum_hashes
from puller.wire.codec import CHUNKS, DIFFS, Ref, seal
from puller.wire.head import Head
from puller.wire.nodes import Diff, Tree, Value

WORDS = ["green", "black", "white", "fine", "ground", "whole", "roasted", "fair", "organic", "small", "large", "daily"]


class MemoryStore:
    """A store's immutable files in memory."""

    where = "memory"

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.written = 0
        self.areas = {CHUNKS: 0, DIFFS: 0}

    def get(self, path: str) -> bytes:
        try:
            return self.files[path]
        except KeyError:
            raise NotFound(path) from None

    def put(self, path: str, data: bytes) -> None:
        self.written += len(data)
        self.areas[path.partition("/")[0]] += len(data)
        self.files[path] = data


class Counting:
    """A sink that keeps nothing."""

    area = DIFFS

    def put(self, raw: bytes, links: object = ()) -> Ref:
        return seal(raw, 3)[0]


def row(r: random.Random) -> bytes:
    """A value such as a catalogue has: some of it compresses, some does not."""
    words = " ".join(r.choices(WORDS, k=6))
    return msgspec.msgpack.encode([words, round(r.uniform(1, 500), 2), r.randrange(10**6), r.random()])


Change = dict[bytes, Value]


def mixed(r: random.Random, versions: int) -> Iterator[Change]:
    """Of 20,000 records 200 change at random in each version, and of 50 hot ones every second."""
    yield {b"item-%06d" % n: row(r) for n in range(20_000)}
    for _ in range(versions - 1):
        names = [*r.sample(range(20_000), 200), *r.sample(range(20_000, 20_050), 25)]
        yield {b"item-%06d" % n: row(r) for n in names}


def inserts(r: random.Random, versions: int) -> Iterator[Change]:
    """Each version adds 200 records with random keys."""
    for _ in range(versions):
        yield {b"item-%s" % r.randbytes(8).hex().encode(): row(r) for _ in range(200)}


def wide(r: random.Random, versions: int) -> Iterator[Change]:
    """Of 500,000 records 200 change at random in each version."""
    yield {b"item-%06d" % n: row(r) for n in range(500_000)}
    for _ in range(versions - 1):
        yield {b"item-%06d" % n: row(r) for n in r.sample(range(500_000), 200)}


WORKLOADS = {"mixed": mixed, "inserts": inserts, "wide": wide}


@dataclass
class History:
    """A published history: the HEAD of each version (from index 1), and what writing its diffs cost in bytes."""

    store: MemoryStore
    heads: list[Head]
    diffs: list[Diff] = field(default_factory=list)
    narrow: int = 0
    """Bytes of the diffs over a single version."""
    wider: int = 0
    """Bytes of the diffs over several."""
    logs: int = 0
    """Bytes of log files."""
    snapshots: int = 0
    """Bytes of snapshots after the first."""


def build(changes: Iterator[Change], pool: ThreadPoolExecutor) -> History:
    """Publish one version after the other, as `publisher.publish` does once it knows what changed."""
    store = MemoryStore()
    hashes: dict[bytes, int | None] = {}
    change = next(changes)
    checksum = _take(hashes, change)
    first = _tree(change, Sink(store, CHUNKS, None), pool)
    head = first_head("data", "bytes", first, checksum, len(hashes), 30, 1, None)
    history = History(store, [head, head])
    was = Published(store, pool, head, b"", "")
    for change in changes:
        last = Diff(head.version, head.version + 1, _tree(change, Sink(store, DIFFS, None), pool))
        checksum = (checksum + _take(hashes, change)) % MODULUS
        before = dict(store.areas)
        new = follow(was, last, checksum, len(hashes), now=lambda: 1)
        wider = sum(diff.tree.bytes for diff in new.diffs[1:])
        history.snapshots += store.areas[CHUNKS] - before[CHUNKS]
        history.wider += wider
        history.logs += store.areas[DIFFS] - before[DIFFS] - wider
        history.narrow += last.tree.bytes
        history.heads.append(new.head)
        history.diffs += new.diffs
        head, was = new.head, was.succeeded(new.head, b"", "", new)
    return history


def _take(hashes: dict[bytes, int | None], change: Change) -> int:
    """Take up a change; return what it adds to the checksum."""
    keys = list(change)
    new = record_hashes(keys, [change[key] for key in keys])
    grown = sum_hashes(new) - sum_hashes([hashes.get(key) for key in keys])
    hashes.update(zip(keys, new, strict=True))
    return grown


def _tree(change: Change, sink: Sink, pool: ThreadPoolExecutor) -> Tree:
    builder = TreeBuilder(sink, pool)
    keys = sorted(change)
    builder.add(keys, [change[key] for key in keys])
    return builder.finish()


@dataclass
class Pulled:
    """What one puller did."""

    start: int
    end: int
    chosen: Plan
    requests: int
    fetched: int
    """Stored bytes of diffs and chunks."""
    log: int
    """Stored bytes of log files."""
    absolute: int
    """Stored bytes of one absolute diff (start, end]."""

    @property
    def behind(self) -> int:
        return self.end - self.start

    @property
    def allowed(self) -> float:
        """Requests it may take."""
        return 3 + 7 * math.log(self.behind, 8)

    @property
    def ratio(self) -> float:
        return self.fetched / self.absolute


def pull(history: History, start: int, end: int, pool: ThreadPoolExecutor) -> Pulled:
    """Let a puller at version `start` meet the HEAD of version `end`."""
    head = history.heads[end]
    fetcher = StoreFetcher(history.store)
    reader = Reader(fetcher, pool)
    position = (1, start)
    known = read_diffs(reader, head, position)
    log = fetcher.received
    chosen = plan(position, head, known)
    streams = [reader.diff(step.diff) for step in chosen.steps]
    if chosen.way is Way.BOOTSTRAP:
        streams.insert(0, reader.snapshot(head.snapshot))
    for _ in merge(streams):
        pass
    return Pulled(
        start, end, chosen, 1 + fetcher.requests, fetcher.received - log, log, absolute(history, start, end, pool)
    )


def absolute(history: History, start: int, end: int, pool: ThreadPoolExecutor) -> int:
    """The bytes of the diff (start, end], built from diffs over exactly that way."""
    reader = Reader(StoreFetcher(history.store), pool)
    within = [diff for diff in history.diffs if start <= diff.a and diff.b <= end]
    way: list[Diff] = []
    at = start
    best: dict[int, Diff] = {}
    for diff in within:
        if diff.a not in best or diff.b > best[diff.a].b:
            best[diff.a] = diff
    while at < end:
        way.append(best[at])
        at = best[at].b
    builder = TreeBuilder(Counting(), pool)
    for keys, values in merge([reader.diff(diff) for diff in way]):
        builder.add(keys, values)
    return builder.finish().bytes


def samples(r: random.Random, versions: int, pullers: int) -> Iterator[tuple[int, int]]:
    """So many (start, end): the distances k spread evenly over their logarithm, the HEADs at random."""
    for n in range(pullers):
        k = min(versions - 1, int(versions ** ((n + 0.5) / pullers)))
        end = r.randint(k + 1, versions)
        yield end - k, end


def main() -> None:
    """Print a table for each workload."""
    parser = argparse.ArgumentParser()
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--versions", type=int, default=5000)
    parser.add_argument("--pullers", type=int, default=400)
    parser.add_argument("--worst", type=int, default=3)
    arguments = parser.parse_args()
    with ThreadPoolExecutor(2) as pool:
        for name in arguments.workloads:
            r = random.Random(1)
            begun = time.perf_counter()
            history = build(WORKLOADS[name](r, arguments.versions), pool)
            print(f"\n{name}: {arguments.versions:,} versions ({time.perf_counter() - begun:.0f} s)", flush=True)
            single = history.narrow
            print(
                f"written, times the {single / 1e6:.1f} MB of single-version diffs: wider diffs {history.wider / single:.2f}, "
                f"logs {history.logs / single:.2f}, snapshots {history.snapshots / single:.2f}"
            )
            done = [pull(history, *way, pool) for way in samples(r, arguments.versions, arguments.pullers)]
            report(done, arguments.worst)


def report(done: list[Pulled], worst: int) -> None:
    """Print the distribution, over all and by distance."""
    print(
        "| k | pullers | requests: mean, most | most of allowed | bytes: median, p90, worst | log bytes, mean | ways |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    groups = [("all", done)]
    groups += [(f"{8**n}-{8 ** (n + 1) - 1}", [p for p in done if 8**n <= p.behind < 8 ** (n + 1)]) for n in range(5)]
    for title, group in groups:
        if not group:
            continue
        ratios = sorted(p.ratio for p in group)
        ways = {way.value: sum(p.chosen.way is way for p in group) for way in Way}
        print(
            f"| {title} | {len(group)} | {statistics.mean(p.requests for p in group):.1f}, {max(p.requests for p in group)} | "
            f"{max(p.requests / p.allowed for p in group):.2f} | "
            f"{statistics.median(ratios):.3f}, {ratios[int(0.9 * len(ratios))]:.2f}, {ratios[-1]:.2f} | "
            f"{statistics.mean(p.log for p in group):,.0f} | {', '.join(f'{n} {w}' for w, n in ways.items() if n)} |"
        )
    for p in sorted(done, key=lambda p: -p.ratio)[:worst]:
        print(f"worst bytes: {describe(p)}")
    for p in sorted(done, key=lambda p: -p.requests / p.allowed)[:worst]:
        print(f"most requests: {describe(p)}")


def describe(p: Pulled) -> str:
    """A puller in a line."""
    steps = " ".join(f"{s.diff.a}-{s.diff.b}" for s in p.chosen.steps)
    return (
        f"{p.start} -> {p.end} (k = {p.behind}): {p.requests} requests of {p.allowed:.1f}, {p.fetched:,} bytes against "
        f"{p.absolute:,} ({p.ratio:.2f}), {p.chosen.way.value} {steps}"
    )


if __name__ == "__main__":
    main()
