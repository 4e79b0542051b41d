"""The cheapest way from a position to HEAD, with a reason. Pure: no I/O, no clock."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import groupby

from puller.errors import Invalid
from puller.wire.head import Head
from puller.wire.nodes import Diff, Tree

REQUEST_COST = 32 * 1024
"""What a request counts for beside its bytes, in bytes."""


class Way(StrEnum):
    """How a target gets to HEAD."""

    NOTHING = "nothing"
    DIFFS = "diffs"
    BOOTSTRAP = "bootstrap"


class Reason(StrEnum):
    """Why the planner chose a way."""

    CURRENT = "current"
    """The target holds HEAD's version."""
    OLDER_HEAD = "older_head"
    """The host serves an older HEAD than was seen before, as lagging caches do."""
    NEW_TARGET = "new_target"
    """The target holds nothing yet."""
    OVERWRITE = "overwrite"
    """The user asked for everything to be written again."""
    NEW_EPOCH = "new_epoch"
    """The publisher restarted history."""
    NO_DIFFS = "no_diffs"
    """No diffs lead from the target's version to HEAD."""
    DIFFS_CHEAPEST = "diffs_cheapest"
    """Diffs cost less than the snapshot."""
    SNAPSHOT_CHEAPER = "snapshot_cheaper"
    """The snapshot costs less than the diffs."""


@dataclass(frozen=True)
class Plan:
    """A way to HEAD: the diffs to apply in order (after the snapshot, where the way is BOOTSTRAP), and its cost.

    `bytes` are stored bytes to fetch and `files` the files they are in, as HEAD declares them.
    """

    way: Way
    reason: Reason
    diffs: list[Diff] = field(default_factory=list)
    bytes: int = 0
    files: int = 0


def route(start: int, end: int, diffs: Iterable[Diff]) -> list[Diff] | None:
    """The cheapest diffs that lead from version `start` to `end`, or None.

    A diff (a, b] may be applied to any version from a to b, so it leads on from each of them (SPEC 5.6).
    """
    useful = sorted((d for d in diffs if start < d.b <= end), key=lambda d: d.b)
    versions, costs = [start], [0]  # both ascend: a version that costs more than a later one is of no use
    came: dict[int, tuple[int, Diff]] = {}
    for b, group in groupby(useful, key=lambda d: d.b):
        steps = []
        for diff in group:
            at = bisect_left(versions, diff.a)
            if at < len(versions):
                steps.append((costs[at] + diff.tree.bytes + diff.tree.files * REQUEST_COST, versions[at], diff))
        if not steps:
            continue
        cost, origin, diff = min(steps, key=lambda step: step[0])
        came[b] = origin, diff
        while costs[-1] >= cost:
            versions.pop()
            costs.pop()
        versions.append(b)
        costs.append(cost)
    return _trace(start, end, came)


def _trace(start: int, end: int, came: dict[int, tuple[int, Diff]]) -> list[Diff] | None:
    way = []
    while end != start:
        if end not in came:
            return None
        end, diff = came[end]
        way.append(diff)
    return way[::-1]


def covers(position: tuple[int, int] | None, head: Head, diffs: Sequence[Diff]) -> bool:
    """Whether `diffs` lead to HEAD's version from its snapshot, and from `position` where it is of this epoch."""
    starts = [head.snapshot_version]
    if position is not None and position[0] == head.epoch:
        starts.append(position[1])
    return all(route(start, head.version, diffs) is not None for start in starts)


def plan(position: tuple[int, int] | None, head: Head, diffs: Sequence[Diff], *, overwrite: bool = False) -> Plan:
    """The way from `position` (epoch and version, None for an empty target) to `head`.

    `diffs` are those known: HEAD's, and the log's where those do not cover the way. Raises Invalid if they do not
    even lead from the snapshot to HEAD.
    """
    known = position is not None and position[0] == head.epoch and not overwrite
    if known and position == (head.epoch, head.version):
        return Plan(Way.NOTHING, Reason.CURRENT)
    after = route(head.snapshot_version, head.version, diffs)
    way = route(position[1], head.version, diffs) if known and position is not None else None
    if after is None and way is None:
        raise Invalid("HEAD and its log name no way from the snapshot to HEAD's version")
    by_diffs = None if way is None else _plan(Way.DIFFS, Reason.DIFFS_CHEAPEST, way)
    if after is None and by_diffs is not None:
        return by_diffs
    reason = _bootstrap_reason(position, head, overwrite)
    snapshot = _plan(Way.BOOTSTRAP, reason, after or [], head.snapshot)
    if by_diffs is None:
        return snapshot
    return by_diffs if _cost(by_diffs) <= _cost(snapshot) else replace(snapshot, reason=Reason.SNAPSHOT_CHEAPER)


def _bootstrap_reason(position: tuple[int, int] | None, head: Head, overwrite: bool) -> Reason:
    if overwrite:
        return Reason.OVERWRITE
    if position is None:
        return Reason.NEW_TARGET
    return Reason.NO_DIFFS if position[0] == head.epoch else Reason.NEW_EPOCH


def _plan(way: Way, reason: Reason, diffs: list[Diff], snapshot: Tree | None = None) -> Plan:
    trees = [diff.tree for diff in diffs] + ([] if snapshot is None else [snapshot])
    return Plan(way, reason, diffs, sum(tree.bytes for tree in trees), sum(tree.files for tree in trees))


def _cost(plan: Plan) -> int:
    return plan.bytes + plan.files * REQUEST_COST
