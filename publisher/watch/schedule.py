"""When a watched source is published: after a change has settled, and now and then in any case. Pure: the time is handed in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from puller.service.backoff import jittered, pause

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds between attempts while something is away."""
MOST_SETTLES = 60
"""How many times the quiet time a change may wait for quiet."""


@dataclass(frozen=True)
class Times:
    """Seconds: the quiet after which a change counts as settled, between looks at everything, and between looks for signs."""

    settle: float
    full: float
    tick: float

    @property
    def most(self) -> float:
        """How long a source may keep changing before it is published nevertheless."""
        return max(5.0, self.settle * MOST_SETTLES)

    @property
    def good_for(self) -> float:
        """For how long a source is well after an attempt that succeeded."""
        return self.full * 2 + 120


class Schedule:
    """The state of one source: what may have changed, since when, and how long attempts have to wait.

    All times are seconds of a clock that never jumps.
    """

    def __init__(self, times: Times, now: float, random: Callable[[], float]) -> None:
        self._times = times
        self._random = random
        self._since: float | None = None
        self._begun = self._last = now
        self._paths: set[bytes] | None = set()
        self._full_at = now
        self._not_before = now
        self._retry_at: float | None = None
        self._held = False
        self.failures = 0
        """Attempts in a row that failed."""

    def noticed(self, at: float, paths: set[bytes] | None) -> None:
        """At this time, these paths may have changed; None: everything may have.

        A refused source is tried again from now on.
        """
        self._since = at if self._since is None or self._held else self._since
        self._last = max(self._last, at)
        self._add(paths)
        self._held = False

    def hurry(self, now: float) -> None:
        """Look at everything, now."""
        self._full_at = self._not_before = now

    @property
    def is_dirty(self) -> bool:
        """Whether something is to be published that is not yet."""
        return self._since is not None

    def due_in(self, now: float) -> float:
        """Seconds until the next attempt; at most 0 if it is due."""
        at = self._full_at if self._retry_at is None else min(self._full_at, self._retry_at)
        if self._since is not None and not self._held:
            at = min(at, self._last + self._times.settle, self._since + self._times.most)
        return max(at, self._not_before) - now

    def begin(self, now: float) -> set[bytes] | None:
        """Begin an attempt: the paths that it has to look at, or None for everything. It ends with one of the next three."""
        if now >= self._full_at:
            self._paths = None
            self._full_at = now + jittered(self._times.full, self._random)
        taken, self._paths = self._paths, set()
        self._begun = self._since if self._since is not None else now
        self._since = self._retry_at = None
        self._held = False
        return taken

    def succeeded(self) -> None:
        """What `begin` gave is published, or was found to be no change."""
        self.failures = 0

    def failed(self, now: float, paths: set[bytes] | None, *, source: bool) -> float:
        """The attempt at these paths failed and is repeated after a pause, which is returned in seconds.

        Where the fault is in the source, its next change ends the pause.
        """
        self.failures += 1
        wait = pause(self.failures, self._random, first=FIRST_PAUSE, longest=LONGEST_PAUSE)
        self._restore(paths, hold=source)
        if source:
            self._retry_at = now + wait
        else:
            self._not_before = now + wait
        return wait

    def refused(self, paths: set[bytes] | None) -> None:
        """The attempt at these paths was refused: it is repeated at the next change, and when everything is looked at."""
        self._restore(paths, hold=True)

    def _restore(self, paths: set[bytes] | None, *, hold: bool) -> None:
        self._held = hold and self._since is None
        self._since = self._begun
        self._add(paths)

    def _add(self, paths: set[bytes] | None) -> None:
        self._paths = None if paths is None or self._paths is None else self._paths | paths


class Chore:
    """Something to be done now and then, beside publishing: the first time at a random moment within the period."""

    def __init__(self, period: float, now: float, random: Callable[[], float]) -> None:
        self._period = period
        self._random = random
        self._at = now + period * random()

    def is_due(self, now: float) -> bool:
        """Whether it is time; the next time is a jittered period later."""
        if now < self._at:
            return False
        self._at = now + jittered(self._period, self._random)
        return True


def nears_expiry(time: int, expires: int | None, now: float) -> bool:
    """Whether over half of a HEAD's lifetime is over, at `now` in Unix seconds."""
    return expires is not None and expires - now < (expires - time) / 2
