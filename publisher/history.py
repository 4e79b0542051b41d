"""The log of diffs, kept short however long history gets: older parts move into files of their own. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from puller.wire.codec import Ref
from puller.wire.nodes import Diff, Log, Segment

DIFFS_KEPT = 512
SEGMENTS_KEPT = 32


def grow(log: Log, diff: Diff, put: Callable[[Log], Ref]) -> Log:
    """The log with one more diff; what gets too long for it is handed to `put`, oldest first."""
    diffs = [*log.diffs, diff]
    segments = list(log.segments)
    if len(diffs) >= 2 * DIFFS_KEPT:
        old, diffs = diffs[:DIFFS_KEPT], diffs[DIFFS_KEPT:]
        segments.append(_segment(Log(old, []), put))
    while (full := _full_class(segments)) is not None:
        group = [s for s in segments if _height(s) == full][:SEGMENTS_KEPT]
        at = segments.index(group[0])
        segments[at : at + len(group)] = [_segment(Log([], group), put)]
    return Log(diffs, segments)


def _segment(log: Log, put: Callable[[Log], Ref]) -> Segment:
    spans = [(d.a, d.b, d.b - d.a) for d in log.diffs] + [(s.a, s.b, s.widest) for s in log.segments]
    return Segment(min(a for a, _, _ in spans), max(b for _, b, _ in spans), max(w for _, _, w in spans), put(log))


def _height(segment: Segment) -> int:
    height, width = 0, segment.b - segment.a
    while width >= DIFFS_KEPT * SEGMENTS_KEPT // 2:
        width //= SEGMENTS_KEPT
        height += 1
    return height


def _full_class(segments: list[Segment]) -> int | None:
    counts = Counter(map(_height, segments))
    return next((height for height, n in sorted(counts.items()) if n >= 2 * SEGMENTS_KEPT), None)
