"""The cheapest way from a position to HEAD, with a reason. Pure: no I/O, no clock."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
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
"""Between two ways, a request counts for at least this part of the bytes."""


class Way(StrEnum):
    """How a target gets to HEAD, from the one that asks least of the host to the one that asks most."""

    NOTHING = "nothing"
    PATCH = "patch"
    DIFFS = "diffs"
    RESYNC = "resync"
    """Only the chunks whose range differs from what is held, then diffs."""
    BOOTSTRAP = "bootstrap"
    """All chunks, then diffs."""


class Reason(StrEnum):
    """Why a way was chosen, or is closed."""

    CURRENT = "current"
    """The target holds HEAD's version."""
    OLDER_HEAD = "older_head"
    """The host serves an older HEAD than was seen before, as lagging caches do."""
    NEW_TARGET = "new_target"
    """The target holds nothing yet."""
    OVERWRITE = "overwrite"
    """The user asked for everything to be looked at again."""
    DATA_MISSING = "data_missing"
    """What was pulled is not there any more."""
    SCHEMA_CHANGED = "schema_changed"
    """The target cannot follow a change of the schema row by row."""
    PATCH_FAILED = "patch_failed"
    """A patch was damaged, or made for other values than are held."""
    DIFFS_FAILED = "diffs_failed"
    """Diffs were damaged, or did not give the checksum that HEAD promises."""
    RESYNC_FAILED = "resync_failed"
    """What is held could not be read, or did not give the checksum that HEAD promises."""
    NEW_EPOCH = "new_epoch"
    """The publisher restarted history."""
    OLDER_VERSION = "older_version"
    """The version asked for is older than the one held: diffs lead forward only."""
    PARTS_CHANGED = "parts_changed"
    """Other parts of the dataset are to be held than are."""
    PARTIAL_COPY = "partial_copy"
    """Patches need the values of all keys that they name, and only parts are held."""
    HISTORY_UNKNOWN = "history_unknown"
    """The HEAD of the version that is held is not on the host any more: history may have been forked since."""
    NO_DIFFS = "no_diffs"
    """No diffs lead there."""
    NO_PATCHES = "no_patches"
    """No patch leads there."""
    NO_VALUES = "no_values"
    """The target cannot look up the values that patches need."""
    TOO_LARGE = "too_large"
    """The patches are too large to be held in memory."""
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
class Candidate:
    """A way, what it would cost, and why it is closed (None: it is open).

    `bytes` are stored bytes to fetch and `files` the files they are in, as HEAD declares them; for RESYNC the most
    that there can be.
    """

    way: Way
    closed: Reason | None = None
    steps: list[Step] = field(default_factory=list)
    bytes: int = 0
    files: int = 0

    def cost(self, request: int) -> int:
        """Bytes, where a request counts for so many."""
        return self.bytes + self.files * request


@dataclass(frozen=True)
class Plan:
    """A way to HEAD and why; the steps to take in order (after the snapshot, for RESYNC and BOOTSTRAP), and its cost.

    `bytes` and `files` are as in Candidate, and `candidates` all ways that were looked at.
    """

    way: Way
    reason: Reason
    steps: list[Step] = field(default_factory=list)
    bytes: int = 0
    files: int = 0
    candidates: list[Candidate] = field(default_factory=list)


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


def _walk_over(start: int, via: int | None, end: int, diffs: Sequence[Diff]) -> list[Step] | None:
    """The cheapest diffs from version `start` to `end`, over `via` if that lies between, or None."""
    if via is None or not start < via < end:
        return walk(start, end, diffs, patches=False)
    first, rest = walk(start, via, diffs, patches=False), walk(via, end, diffs, patches=False)
    return None if first is None or rest is None else first + rest


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
    known = position is not None and position[0] == head.epoch and position[1] <= head.version
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
    closed: Mapping[Way, Reason] | None = None,
    via: int | None = None,
) -> Plan:
    """The way from `position` (epoch and version, None for an empty target) to `head`.

    `diffs` are those known: HEAD's, and the log's where those do not cover the way. `closed` names ways that are not
    to be taken, with the reason. Diffs have to lead over the version `via`, if it lies between. Raises Invalid if no way
    is left. For a copy of parts, the trees in `head` and `diffs` are to say what these cost.
    """
    shut = dict(closed or {})
    if position == (head.epoch, head.version) and Way.NOTHING not in shut:
        return Plan(Way.NOTHING, Reason.CURRENT)
    by_diffs = _diffs(position, head, diffs, via)
    candidates = [_patch(position, head, diffs), by_diffs, *_snapshots(position, head, diffs)]
    candidates = [replace(c, closed=shut.get(c.way, c.closed)) for c in candidates]
    open_ways = [c for c in candidates if c.closed is None]
    if not open_ways:
        raise Invalid("HEAD and its log name no way from the snapshot to HEAD's version")
    request = max(REQUEST_COST, min(c.bytes for c in open_ways) // SHARE_OF_REQUEST)
    best = min(open_ways, key=lambda c: c.cost(request))
    return Plan(best.way, _reason(best, candidates), best.steps, best.bytes, best.files, candidates)


def _reason(best: Candidate, candidates: list[Candidate]) -> Reason:
    """Why a way was chosen: it is cheapest, or those that ask less of the host are closed."""
    if best.way is Way.PATCH:
        return Reason.PATCH_CHEAPEST
    if best.way is Way.DIFFS:
        return Reason.DIFFS_CHEAPEST
    before = candidates[candidates.index(best) - 1]
    return before.closed or Reason.SNAPSHOT_CHEAPER


def _no_steps(position: tuple[int, int] | None, head: Head) -> Reason | None:
    """Why no diff can lead from a position to `head`, whatever diffs there are."""
    if position is None:
        return Reason.NEW_TARGET
    if position[0] != head.epoch:
        return Reason.NEW_EPOCH
    return Reason.OLDER_VERSION if position[1] > head.version else None


def _patch(position: tuple[int, int] | None, head: Head, diffs: Sequence[Diff]) -> Candidate:
    reason = _no_steps(position, head)
    way = None if reason or position is None else walk(position[1], head.version, diffs, patches=True)
    if not way or not any(step.patched for step in way):
        return Candidate(Way.PATCH, reason or Reason.NO_PATCHES)
    found = _candidate(Way.PATCH, way)
    return replace(found, closed=Reason.TOO_LARGE) if sum(map(_staged_bytes, way)) > MOST_PATCHED else found


def _staged_bytes(step: Step) -> int:
    """Stored bytes of a step that are held in memory: not those of large values, where it is a lone leaf that names them."""
    return step.tree.ref.stored if step.tree.level == 0 else step.tree.bytes


def _diffs(position: tuple[int, int] | None, head: Head, diffs: Sequence[Diff], via: int | None) -> Candidate:
    reason = _no_steps(position, head)
    way = None if reason or position is None else _walk_over(position[1], via, head.version, diffs)
    return Candidate(Way.DIFFS, reason or Reason.NO_DIFFS) if way is None else _candidate(Way.DIFFS, way)


def _snapshots(position: tuple[int, int] | None, head: Head, diffs: Sequence[Diff]) -> list[Candidate]:
    after = walk(head.snapshot_version, head.version, diffs, patches=False)
    if after is None:
        return [Candidate(way, Reason.NO_DIFFS) for way in (Way.RESYNC, Way.BOOTSTRAP)]
    resync = _candidate(Way.RESYNC, after, head.snapshot)
    nothing = Reason.NEW_TARGET if position is None else None
    return [replace(resync, closed=nothing), replace(resync, way=Way.BOOTSTRAP)]


def _candidate(way: Way, steps: list[Step], snapshot: Tree | None = None) -> Candidate:
    trees = [step.tree for step in steps] + ([] if snapshot is None else [snapshot])
    return Candidate(way, None, steps, sum(tree.bytes for tree in trees), sum(tree.files for tree in trees))
