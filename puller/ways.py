"""The ways that are left from what a copy holds to HEAD, and the cheapest of them by the diffs that HEAD and its log list."""

from __future__ import annotations

from collections.abc import Collection

from puller.errors import ChecksumMismatch, Corrupt, FetchError, HeadwaterError
from puller.partcopy import Extent, narrowed
from puller.plan import Plan, Reason, Way, is_good, plan, route, starts
from puller.targets.base import State
from puller.tree import Reader
from puller.wire.head import Head
from puller.wire.nodes import Diff

CHANGES = (Way.NOTHING, Way.PATCH, Way.DIFFS)
"""The ways that change no more than what was published since."""
MOST_DAMAGED = 3
"""Damaged diffs that a pull goes round before it gives up."""


def read_diffs(
    reader: Reader,
    head: Head,
    position: tuple[int, int] | None,
    *,
    without: Collection[bytes] = (),
    from_snapshot: bool = False,
    via: int | None = None,
) -> list[Diff]:
    """HEAD's diffs, and as much of the log as it takes to have a good way from `position`, and one from the snapshot.

    `without` names the roots of diffs that are of no use. The way from the snapshot is looked for only if there is none
    from `position` or it may cost less, or if it is asked for (`from_snapshot`). `via` is a version between that the way
    is to lead over.
    """
    diffs = [diff for diff in head.diffs if diff.tree.ref.sha256 not in without]
    covered = not from_snapshot or route(head.snapshot_version, head.version, diffs) is not None
    if position is not None and via is not None:
        covered = covered and None not in (route(position[1], via, diffs), route(via, head.version, diffs))
    if head.log is None or (covered and is_good(position, head, diffs)):
        return diffs
    log = reader.log(head.log)
    for start in starts(position, head):
        diffs = reader.search(log, start, head.version, diffs, without)
    if position is not None and via is not None:
        diffs = reader.search(log, position[1], via, diffs, without)
    return diffs


class Ways:
    """The ways of one pull: those that are closed, and why."""

    def __init__(self, reader: Reader, closed: dict[Way, Reason]) -> None:
        self.closed = closed
        self.way = Way.NOTHING
        """The one that was chosen last."""
        self.trusting = True
        """Whether a resync goes by the checksums of ranges, and looks at nothing that they say is right."""
        self._reader = reader
        self._damaged: set[bytes] = set()

    def close(self, reason: Reason, *ways: Way) -> None:
        """Close some ways for the rest of the pull."""
        self.closed |= dict.fromkeys(ways, reason)

    def give_up(self, error: HeadwaterError) -> bool:
        """Close the way that was chosen and failed, or a part of it; say whether another is left to try."""
        if self.way is Way.PATCH:
            self.close(Reason.PATCH_FAILED, Way.PATCH)
        elif isinstance(error, (Corrupt, FetchError)) and error.diff is not None:
            self._damaged.add(error.diff)
            return len(self._damaged) <= MOST_DAMAGED
        elif self.way is Way.DIFFS:
            self.close(Reason.DIFFS_FAILED, Way.PATCH, Way.DIFFS)
        elif self.way is Way.RESYNC and isinstance(error, ChecksumMismatch):
            if self.trusting:
                self.trusting = False
            else:
                self.close(Reason.RESYNC_FAILED, Way.RESYNC)
        else:
            return False
        return True

    def choose(
        self, head: Head, state: State | None, extent: Extent, closed: dict[Way, Reason], *, costs_all: bool
    ) -> Plan:
        """The cheapest way to `head` but for those that are `closed`; `costs_all`: what the others cost is to be known, too."""
        self.way = Way.NOTHING
        chosen = self._plan(head, state, extent, closed, whole=costs_all or Way.DIFFS in closed)
        self.way = chosen.way
        if self.way is Way.RESYNC:
            assert state is not None
            known = state.epoch == head.epoch and head.snapshot_version <= state.version <= head.version
            self.trusting = self.trusting and known
        return chosen

    def _plan(self, head: Head, state: State | None, extent: Extent, closed: dict[Way, Reason], *, whole: bool) -> Plan:
        position = None if state is None else state.position
        via = head.snapshot_version if extent.may_prove(state, head) else None
        diffs = read_diffs(self._reader, head, position, without=self._damaged, from_snapshot=whole, via=via)
        chosen = plan(position, head, diffs, closed=closed, via=via)
        if extent.within is None:
            return chosen
        held = None if whole or via is not None or state is None else state.records / max(1, head.records)
        cheaper, diffs = narrowed(self._reader, head, diffs, chosen, extent.within, share=held)
        return plan(position, cheaper, diffs, closed=closed, via=via)
