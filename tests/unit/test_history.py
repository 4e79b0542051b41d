"""The log stays short and complete however long history gets, and a reader needs little of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from publisher.history import grow
from puller.plan import route
from puller.tree import Reader
from puller.wire.codec import Ref
from puller.wire.nodes import Diff, Log, Segment, Tree, decode_log, encode_log

VERSIONS = 40_000


def tree(size):
    return Tree(Ref(bytes(32), 1, 1), 0, 1, size)


class Files:
    """Log files in memory; counts what is read."""

    def __init__(self):
        self.data: list[bytes] = []
        self.reads = 0

    def put(self, log: Log) -> Ref:
        data = encode_log(log)
        self.data.append(data)
        return Ref((len(self.data) - 1).to_bytes(32, "big"), len(data), len(data))

    def read(self, ref: Ref, within: Segment | None = None) -> Log:
        self.reads += 1
        return decode_log(self.data[int.from_bytes(ref.sha256, "big")], within)


@pytest.fixture(scope="module", params=[1, pytest.param(8, marks=pytest.mark.slow)])
def history(request):
    """A long history, with diffs of one width or of eight."""
    files, log, longest = Files(), Log([], []), 0
    for version in range(1, VERSIONS + 1):
        widths = [4**n for n in range(request.param) if version % 4**n == 0]
        log = Log([*log.diffs, *(Diff(version - w, version, tree(1000 * w)) for w in widths)], log.segments)
        if version % 8 == 0:  # not every version has a file of the log
            log = grow(log, files.put)
        longest = max(longest, len(encode_log(log)))
    return files, log, longest, request.param


def test_nothing_is_lost_and_nothing_twice(history):
    files, log, longest, levels = history
    found: list[tuple[int, int]] = []
    deepest = 0

    def walk(part: Log, depth: int) -> None:
        nonlocal deepest
        deepest = max(deepest, depth)
        found.extend((d.a, d.b) for d in part.diffs)
        for segment in part.segments:
            walk(files.read(segment.ref, segment), depth + 1)

    walk(log, 0)
    expected = [(b - 4**n, b) for n in range(levels) for b in range(4**n, VERSIONS + 1, 4**n)]
    assert sorted(found) == sorted(expected)
    assert deepest <= 4
    assert longest < 40_000


@pytest.mark.parametrize("behind", [1, 10, 100, 1000, 10_000, 39_000])
def test_a_reader_needs_few_segments(history, behind):
    files, log, _, levels = history
    with ThreadPoolExecutor(1) as pool:
        reader = Reader(None, pool)
        reader.log = files.read
        files.reads = 0
        diffs = reader.listed(log, VERSIONS - behind, VERSIONS)
        way = route(VERSIONS - behind, VERSIONS, diffs)
        if levels > 1:
            assert way is not None
            assert files.reads <= 16
            assert len(way) <= 50
        else:
            assert files.reads <= 8
            every = reader.listed(log, VERSIONS - behind, VERSIONS, least=1)
            assert len(route(VERSIONS - behind, VERSIONS, every)) == behind
