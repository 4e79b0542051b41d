"""The log stays short and complete however long history gets."""

from __future__ import annotations

from publisher.history import DIFFS_KEPT, SEGMENTS_KEPT, grow
from puller.wire.codec import Ref
from puller.wire.nodes import Diff, Log, Tree, decode_log, encode_log


def test_long_history_is_complete_and_shallow():
    files: dict[bytes, bytes] = {}

    def put(log: Log) -> Ref:
        data = encode_log(log)
        name = len(files).to_bytes(32, "big")
        files[name] = data
        return Ref(name, len(data), len(data))

    log, versions = Log([], []), 100_000
    tree = Tree(Ref(bytes(32), 1, 1), 0, 1, 1)
    longest = 0
    for version in range(versions):
        log = grow(log, Diff(version, version + 1, tree), put)
        longest = max(longest, len(log.diffs) + len(log.segments))
    assert longest < 2 * DIFFS_KEPT + 6 * SEGMENTS_KEPT

    found: list[int] = []
    deepest = 0

    def walk(part: Log, depth: int) -> None:
        nonlocal deepest
        deepest = max(deepest, depth)
        for segment in part.segments:
            inner = decode_log(files[segment.ref.sha256])
            assert all(segment.a <= d.a and d.b <= segment.b for d in inner.diffs)
            assert segment.widest >= max((d.b - d.a for d in inner.diffs), default=1)
            walk(inner, depth + 1)
        found.extend(d.b for d in part.diffs)

    walk(log, 0)
    assert sorted(found) == list(range(1, versions + 1))
    assert deepest <= 3
