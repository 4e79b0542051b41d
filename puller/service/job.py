"""A job of a service: one thing that it looks after, in a thread of its own; and whether that goes well."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

STALLED = 3600.0
"""Seconds of work without a sign of life after which a job counts as hung: the longest single step takes less."""


class Stopped(BaseException):
    """The service was asked to stop. It is no error: what handles errors lets it pass, and what was held is still held."""


@dataclass(frozen=True)
class Failure:
    """What went wrong last, and how often in a row, and when (Unix seconds)."""

    reason: str
    count: int
    at: float


class Job:
    """What a job's thread and its service say to each other.

    It is red until it is `ready`, when its last success is older than was said to suffice, and while
    it is marked red. `run` is called in the job's thread and returns when it was `stopping`.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[Job], None],
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.run = run
        self.ready = False
        """Whether it has ever succeeded: there is something to go on with."""
        self.last_success: float | None = None
        """Unix seconds."""
        self.failure: Failure | None = None
        """None once it succeeds again."""
        self.on_change: Callable[[], None] = lambda: None
        """Called, from any thread, when something turned that somebody may wait for."""
        self._now, self._clock = now, clock
        self._good_until = float("-inf")
        self._marks: dict[str, str] = {}
        self._status = "starting"
        self._alive_until = clock() + STALLED
        self._bell = threading.Condition()
        self._hurried = False
        self.is_stopping = False

    def wait(self, seconds: float) -> bool:
        """Wait so long; True if the service was told to go on at once (SIGHUP). Raises Stopped when it has to stop."""
        with self._bell:
            end = self._clock() + seconds
            self._alive_until = end + STALLED
            while not self.is_stopping and not self._hurried and (left := end - self._clock()) > 0:
                self._bell.wait(min(left, threading.TIMEOUT_MAX))
            self.check()
            hurried, self._hurried = self._hurried, False
            return hurried

    def check(self) -> None:
        """Say that the job is alive. Raises Stopped when it has to stop: call it between steps, and in long ones."""
        self._alive_until = max(self._alive_until, self._clock() + STALLED)
        if self.is_stopping:
            raise Stopped("the service stops; what was there was kept")

    def hurry(self) -> None:
        """End the wait under way, or the next one, at once."""
        with self._bell:
            self._hurried = True
            self._bell.notify_all()

    def stop(self) -> None:
        """Ask the job to end."""
        with self._bell:
            self.is_stopping = True
            self._bell.notify_all()

    def succeeded(self, good_for: float) -> None:
        """It did what it is for; without another success it turns red after so many seconds."""
        news = not self.ready or self.failure is not None
        self._good_until = self._clock() + good_for
        self.ready, self.last_success, self.failure = True, self._now(), None
        if news:
            self.on_change()

    def failed(self, error: object) -> int:
        """It could not do what it is for; how many times in a row that is by now."""
        count = 1 if self.failure is None else self.failure.count + 1
        self.failure = Failure(str(error), count, self._now())
        self.on_change()
        return count

    def mark(self, what: str, reason: str | None) -> None:
        """Be red for a reason of one's own, or (None) no more: stale data, a command that fails."""
        marks = {name: text for name, text in {**self._marks, what: reason}.items() if text is not None}
        if marks != self._marks:
            self._marks = marks
            self.on_change()

    @property
    def status(self) -> str:
        """What it is doing, or holds, for people."""
        return self._status

    @status.setter
    def status(self, text: str) -> None:
        if text != self._status:
            self._status = text
            self.on_change()

    def took_over(self, last_success: float | None, good_for: float) -> None:
        """An earlier process has succeeded (at a Unix time, where that is known): the job is ready, and well for so long."""
        self.ready, self.last_success = True, last_success
        self._good_until = self._clock() + good_for

    @property
    def alive(self) -> bool:
        """Whether it waits, or gave a sign of life within the last hour."""
        return self._clock() < self._alive_until

    def problems(self) -> list[str]:
        """Why it is red; nothing if it is well."""
        marks = list(self._marks.values())
        if self.ready and self._clock() <= self._good_until:
            return marks
        since = "yet"
        if self.ready:
            since = "lately" if self.last_success is None else f"for {self._now() - self.last_success:.0f} s"
        if self.failure is None:
            return [f"has not succeeded {since}", *marks]
        reason = self.failure.reason
        return [f"has not succeeded {since}: {reason}", *(mark for mark in marks if mark != reason)]
