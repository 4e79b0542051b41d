"""How far back the log goes: diffs that no version within the promise needs are left out, so that they can be collected."""

from __future__ import annotations

from collections.abc import Iterable

from publisher.history import shorten
from publisher.published import Published
from puller.errors import NotFound
from puller.wire.head import archive_path, parse_head
from puller.wire.nodes import Diff, Log

EVERY = 16
"""Versions between two looks at how old the diffs are, each of which reads a few superseded HEADs."""


def retained(log: Log, was: Published, needed: Iterable[Diff], now: float) -> Log:
    """The log of the next version, without the diffs that no version needs which can still be pulled, if HEAD has `keep`.

    Those in `needed` stay: they lead on from the snapshot. Files are collected only once no version within the promise
    names them, so whoever has read an older log finds all that it lists. Not every log that is written is looked at.
    """
    head = was.head
    last = max((diff.b for diff in was.filed.diffs), default=0)
    if head.keep is None or (head.version + 1) // EVERY == last // EVERY:
        return log
    return shorten(log, _oldest(was, now - head.keep), needed)


def _oldest(was: Published, since: float) -> int:
    """The oldest version that was superseded after `since`, or else HEAD's. What has no archived HEAD is older."""
    low, high = 1, was.head.version
    while low < high:
        middle = (low + high) // 2
        if _time(was, middle + 1) > since:
            high = middle
        else:
            low = middle + 1
    return high


def _time(was: Published, version: int) -> int:
    """When a version was published; 0 where its HEAD is not kept any more."""
    if version == was.head.version:
        return was.head.time
    try:
        return parse_head(was.store.get(archive_path(was.head.epoch, version))).time
    except NotFound:
        return 0
