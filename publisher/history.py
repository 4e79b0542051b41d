"""The log of diffs, kept short however long history gets: older parts move into files of their own. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from puller.wire.codec import Ref
from puller.wire.nodes import Diff, Log, Segment

DIFFS_KEPT = 16
"""Diffs of a width that move into a segment together; up to twice as many stay in the newest log."""
SEGMENTS_KEPT = 16
"""Segments of a size that move into a larger one together."""
BEYOND = 6
"""Diffs that HEAD lists beyond a log before another one is due soon."""

T = TypeVar("T", Diff, Segment)
K = TypeVar("K", bound=Hashable)


def grow(log: Log, put: Callable[[Log], Ref]) -> Log:
    """The log for a new file of it: the oldest part of what is too long for that is handed to `put`.

    Only one part, so that no version writes many files; there are more new files than parts. Diffs of different widths
    never share a segment: a reader far behind wants narrow ones near its ends only.
    """
    for width, group in _classes(log.diffs, lambda d: d.b - d.a).items():
        if len(group) >= 2 * DIFFS_KEPT:
            old = group[:DIFFS_KEPT]
            segment = Segment(old[0].a, old[-1].b, width, put(Log(old, [])))
            return Log(_without(log.diffs, old), [*log.segments, segment])
    full = _full(log.segments)
    if full is None:
        return log
    widest = max(s.widest for s in full)
    segment = Segment(min(s.a for s in full), max(s.b for s in full), widest, put(Log([], full)))
    return Log(log.diffs, [*_without(log.segments, full), segment])


def shorten(log: Log, version: int, needed: Iterable[Diff]) -> Log:
    """The log without what leads no further than to `version`, but for the diffs that are needed all the same."""
    old = [d for d in needed if d.b <= version]
    return Log([*old, *(d for d in log.diffs if d.b > version)], [s for s in log.segments if s.b > version])


def is_due(log: Log, filed: Log, listed: Sequence[Diff], *, alone: bool) -> bool:
    """Whether the log needs a new file: what the last one says, with what HEAD lists, is not all of it, or too much.

    One that would be due soon is written where the version's own diff is `alone`, without a wider one: no version writes
    many files then.
    """
    beyond = set(log.diffs).difference(filed.diffs)
    return not beyond.issubset(listed) or (alone and bool(filed.diffs) and len(beyond) > BEYOND)


def _full(segments: list[Segment]) -> list[Segment] | None:
    """The oldest segments of a width and size of which there are too many."""
    for group in _classes(segments, lambda s: (s.widest, _height(s))).values():
        if len(group) >= 2 * SEGMENTS_KEPT:
            return group[:SEGMENTS_KEPT]
    return None


def _height(segment: Segment) -> int:
    height, diffs = 0, (segment.b - segment.a) // segment.widest
    while diffs >= DIFFS_KEPT * SEGMENTS_KEPT // 2:
        diffs //= SEGMENTS_KEPT
        height += 1
    return height


def _classes(items: Sequence[T], name: Callable[[T], K]) -> dict[K, list[T]]:
    found: dict[K, list[T]] = defaultdict(list)
    for item in sorted(items, key=lambda item: item.b):
        found[name(item)].append(item)
    return found


def _without(items: Sequence[T], gone: Sequence[T]) -> list[T]:
    numbers = set(map(id, gone))
    return [item for item in items if id(item) not in numbers]
