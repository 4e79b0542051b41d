"""Which diffs are written and listed: levels of ever wider ones, merged from narrower ones, never from two states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from publisher.build import Sink, TreeBuilder
from puller.errors import Invalid
from puller.plan import route
from puller.tree import Reader
from puller.wire.codec import DIFFS
from puller.wire.head import MAX_WRITTEN, Head, format_head
from puller.wire.nodes import Diff
from puller.wire.note import DASH

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

BASE = 4
"""A level's diffs are this many times as wide as those of the level below."""
LISTED = (8, 4)
"""HEAD lists so many of the newest diffs of the two lowest levels, and one of each other."""
SIGNATURES = 2
"""HEAD has room for the lines of so many Ed25519 signatures by keys that are called like the dataset, and to expire."""


def due(version: int) -> tuple[int, int] | None:
    """The diff (a, b] that is due at `version` beside the one from the version before: one at most, so that no version
    writes many files.

    Diffs that are 4 wide end at multiples of 4, and are made there; those 16 wide end at multiples of 16, and are made a
    version later; of 64, two; and so on, past the multiples of 4. Near the beginning of history, they begin at version 1.
    """
    width, lag = BASE, 0
    while width <= version - lag:
        if version % width == lag:
            return max(version - lag - width, 1), version - lag
        width, lag = width * BASE, lag + 1 + ((lag + 1) % BASE == 0)
    return None


def widen(
    last: Diff, most: int, known: Sequence[Diff], reader: Reader, sink: Sink, pool: ThreadPoolExecutor
) -> Diff | None:
    """The diff that is due at the version of `last`, made from narrower ones among it and those that are `known`.

    None where none is due, where these do not lead over its width any more, or where they cost more than `most`, the bytes
    of the snapshot.
    """
    ends = due(last.b)
    if ends is None:
        return None
    way = route(*ends, [diff for diff in [*known, last] if diff.b - diff.a < ends[1] - ends[0]])
    if way is None or len(way) < 2 or sum(diff.tree.bytes for diff in way) > most:
        return None
    builder = TreeBuilder(sink, pool)
    for keys, values in reader.merged([(DIFFS, diff.tree) for diff in way]):
        builder.add(keys, values)
    tree = builder.finish()
    # What a reader has to fetch for large values is known for single versions only; merged, it is no more.
    files, size = (sum(hints) for hints in zip(*((d.tree.files, d.tree.bytes) for d in way), strict=True))
    tree = msgspec.structs.replace(tree, files=min(tree.files, files), bytes=min(tree.bytes, size))
    return Diff(*ends, tree)


def choose_listed(diffs: Sequence[Diff]) -> list[Diff]:
    """Those of the known diffs that HEAD is to list, the most useful first."""
    newest = sorted(diffs, key=lambda d: -d.b)
    levels = sorted(set(map(_level, newest)))
    chosen: list[Diff] = []
    for number, level in enumerate(levels):
        chosen += [d for d in newest if _level(d) == level][: LISTED[number] if number < len(LISTED) else 1]
    return sorted(chosen, key=lambda d: (-d.b, d.b - d.a))


def _level(diff: Diff) -> int:
    """A name for the level of a diff: those from version 1 are a little narrower than their level's others."""
    return (diff.b - diff.a - 1).bit_length()


def fit(head: Head) -> Head:
    """`head` with as many of its diffs as it has room for; the log has them all."""
    line = len(f"{DASH} {head.name} \n".encode()) + 92
    room = SIGNATURES * line + (0 if head.expires is not None else len(',"expires":1234567890'))
    while True:
        try:
            if len(format_head(head)) <= MAX_WRITTEN - room:
                return msgspec.structs.replace(head, diffs=head.diffs[::-1])
        except Invalid:
            if not head.diffs:
                raise
        if head.log is None:
            raise Invalid("HEAD has no room for its diffs, and no log that lists them")
        head = msgspec.structs.replace(head, diffs=head.diffs[:-1])
