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

MOST_PATCHED = 32 * 1024 * 1024
"""Bytes of steps up to which patches are used: what they give is held in memory until all of it is known."""
REQUEST_COST = 8 * 1024
"""What a request counts for beside its bytes, in bytes."""
SHARE_OF_REQUEST = 128
"""Between diffs and the snapshot, a request counts for at least this part of the bytes."""


class Way(StrEnum):
    """How a target gets to HEAD."""

    NOTHING = "nothing"
    PATCH = "patch"
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
    DATA_MISSING = "data_missing"
    """What was pulled is not there any more."""
    SCHEMA_CHANGED = "schema_changed"
    """The target cannot follow a change of the schema row by row."""
    DIFFS_FAILED = "diffs_failed"
    """Diffs were damaged, or did not give the checksum that HEAD promises."""
    NEW_EPOCH = "new_epoch"
    """The publisher restarted history."""
    NO_DIFFS = "no_diffs"
    """No diffs lead from the target's version to HEAD."""
    PATCH_CHEAPEST = "patch_cheapest"
    """Patches cost least: the target holds exactly the version that they were made for."""
    DIFFS_CHEAPEST = "diffs_cheapest"
    """Diffs cost less than the snapshot."""
    SNAPSHOT_CHEAPER = "snapshot_cheaper"
    """The snapshot costs less than the diffs."""


@dataclass(frozen=True)
class Step:
    """A diff to apply, or the patch beside it."""

    diff: Diff
    patched: bool = False

    @property
    def tree(self) -> Tree:
        """What is to be fetched."""
        return self.diff.patch if self.patched and self.diff.patch is not None else self.diff.tree


@dataclass(frozen=True)
class Plan:
    """A way to HEAD: the steps to take in order (after the snapshot, where the way is BOOTSTRAP), and its cost.

    `bytes` are stored bytes to fetch and `files` the files they are in, as HEAD declares them.
    """

    way: Way
    reason: Reason
    steps: list[Step] = field(default_factory=list)
    bytes: int = 0
    files: int = 0


def route(start: int, end: int, diffs: Iterable[Diff]) -> list[Diff] | None:
    """The cheapest diffs that lead from version `start` to `end`, or None.

    A diff (a, b] may be applied to any version from a to b, so it leads on from each of them (SPEC 5.6).
    """
    way = walk(start, end, diffs, patches=False)
    return None if way is None else [step.diff for step in way]


def walk(start: int, end: int, diffs: Iterable[Diff], *, patches: bool) -> list[Step] | None:
    """The cheapest steps from version `start` to `end`, or None; a patch leads on from its diff's first version only."""
    useful = sorted((d for d in diffs if start < d.b <= end), key=lambda d: d.b)
    cheapest = {start: 0}
    versions, costs = [start], [0]  # both ascend: a version that costs more than a later one is of no use to diffs
    came: dict[int, tuple[int, Step]] = {}
    for b, group in groupby(useful, key=lambda d: d.b):
        steps = []
        for diff in group:
            at = bisect_left(versions, diff.a)
            if at < len(versions):
                steps.append((costs[at] + _tree_cost(diff.tree), versions[at], Step(diff)))
            if patches and diff.patch is not None and diff.a in cheapest:
                steps.append((cheapest[diff.a] + _tree_cost(diff.patch), diff.a, Step(diff, patched=True)))
        if not steps:
            continue
        cost, origin, step = min(steps, key=lambda step: step[0])
        came[b] = origin, step
        cheapest[b] = cost
        while costs and costs[-1] >= cost:
            versions.pop()
            costs.pop()
        versions.append(b)
        costs.append(cost)
    return _trace(start, end, came)


def _tree_cost(tree: Tree) -> int:
    return tree.bytes + tree.files * REQUEST_COST


def _trace(start: int, end: int, came: dict[int, tuple[int, Step]]) -> list[Step] | None:
    way = []
    while end != start:
        if end not in came:
            return None
        end, step = came[end]
        way.append(step)
    return way[::-1]


def gaps(start: int, end: int, diffs: Iterable[Diff]) -> list[tuple[int, int]]:
    """The stretches between two versions that no diff covers; without any, diffs lead from `start` to `end`."""
    found = []
    for diff in sorted(diffs, key=lambda d: d.a):
        if diff.a >= end:
            break
        if diff.a > start:
            found.append((start, diff.a))
        start = max(start, diff.b)
    return [*found, (start, end)] if start < end else found


def starts(position: tuple[int, int] | None, head: Head) -> list[int]:
    """The versions from which a way to HEAD's is looked for: the snapshot's, and that of a position of HEAD's epoch."""
    known = position is not None and position[0] == head.epoch
    return [head.snapshot_version, *([position[1]] if known and position is not None else [])]


def is_good(position: tuple[int, int] | None, head: Head, diffs: Sequence[Diff]) -> bool:
    """Whether `diffs` lead from `position` to HEAD so well that reading the log is not worth it.

    They do if the snapshot cannot be cheaper, and if what their way holds for versions before it began, or twice, is
    less than the log.
    """
    *_, start = starts(position, head)
    way = route(start, head.version, diffs)
    if way is None or head.log is None:
        return way is not None
    if len(starts(position, head)) > 1 and sum(map(_tree_cost, (d.tree for d in way))) > _tree_cost(head.snapshot):
        return route(head.snapshot_version, head.version, diffs) is not None
    twice = 0
    for diff in way:
        twice += diff.tree.bytes * max(0, start - diff.a) // (diff.b - diff.a)
        start = diff.b
    return twice <= head.log.stored + REQUEST_COST


def plan(
    position: tuple[int, int] | None,
    head: Head,
    diffs: Sequence[Diff],
    *,
    anew: Reason | None = None,
    patches: bool = False,
) -> Plan:
    """The way from `position` (epoch and version, None for an empty target) to `head`.

    `diffs` are those known: HEAD's, and the log's where those do not cover the way. `anew` is a reason to take the
    snapshot whatever it costs. `patches` says that the target
    can give the values it holds, which patches need. Raises Invalid if the diffs do not even lead from the snapshot
    to HEAD.
    """
    known = position is not None and position[0] == head.epoch and anew is None
    if known and position == (head.epoch, head.version):
        return Plan(Way.NOTHING, Reason.CURRENT)
    after = walk(head.snapshot_version, head.version, diffs, patches=False)
    way = walk(position[1], head.version, diffs, patches=patches) if known and position is not None else None
    if after is None and way is None:
        raise Invalid("HEAD and its log name no way from the snapshot to HEAD's version")
    by_steps = None if way is None else _by_steps(way)
    if by_steps is not None and by_steps.way is Way.PATCH and by_steps.bytes > MOST_PATCHED:
        return plan(position, head, diffs)
    if after is None and by_steps is not None:
        return by_steps
    reason = anew or _bootstrap_reason(position, head)
    snapshot = _plan(Way.BOOTSTRAP, reason, after or [], head.snapshot)
    if by_steps is None:
        return snapshot
    request = max(REQUEST_COST, min(by_steps.bytes, snapshot.bytes) // SHARE_OF_REQUEST)
    dearer = by_steps.bytes + by_steps.files * request > snapshot.bytes + snapshot.files * request
    return replace(snapshot, reason=Reason.SNAPSHOT_CHEAPER) if dearer else by_steps


def _by_steps(steps: list[Step]) -> Plan:
    if any(step.patched for step in steps):
        return _plan(Way.PATCH, Reason.PATCH_CHEAPEST, steps)
    return _plan(Way.DIFFS, Reason.DIFFS_CHEAPEST, steps)


def _bootstrap_reason(position: tuple[int, int] | None, head: Head) -> Reason:
    if position is None:
        return Reason.NEW_TARGET
    return Reason.NO_DIFFS if position[0] == head.epoch else Reason.NEW_EPOCH


def _plan(way: Way, reason: Reason, steps: list[Step], snapshot: Tree | None = None) -> Plan:
    trees = [step.tree for step in steps] + ([] if snapshot is None else [snapshot])
    return Plan(way, reason, steps, sum(tree.bytes for tree in trees), sum(tree.files for tree in trees))
