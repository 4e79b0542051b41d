"""One poll after the other of one dataset into one target: what is known and open stays so in between."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from puller.errors import HeadwaterError, Undecided
from puller.fetch import open_fetcher
from puller.follow.noted import Noted
from puller.heads import Found, read_heads
from puller.mirrors import Health
from puller.progress import Progress
from puller.pull import Options, Outcome, must_read, pull
from puller.targets.base import State, Target
from puller.wire.head import Head

Seen = Callable[[Target], None]
Make = Callable[[str | None], Target]
"""Opens the target, given the dataset's kind where that is known."""


class Poller:
    """Polls into the target at `path`, which `make` opens. `state` is what it holds, None before a first pull.

    `seen` is called with each target that was opened, before anything is written to it; it may raise. Between polls the
    connection to the host stays open, and nothing of the target does: other commands may use it.
    """

    def __init__(
        self,
        url: str,
        path: str,
        mirrors: Sequence[str],
        options: Options,
        make: Make,
        seen: Seen,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.url = url
        self.path = path
        self.health = Health(now)
        self.fetcher = open_fetcher(url, mirrors, self.health)
        self.state: State | None = None
        self._make = make
        self._options = options
        self._seen = seen
        self._now = now
        self._places: tuple[str, ...] = (path,)
        self._there: object = None

    def look(self) -> None:
        """Read what the target holds, finishing what a killed process left half done. Raises HeadwaterError."""
        with suppress(Undecided):
            target = self._open(None)
            try:
                self._take(target)
            finally:
                target.close()

    def poll(self, noted: Noted, progress: Progress) -> Outcome | None:
        """Bring the target to the newest version; None where it was known to hold that. Raises HeadwaterError.

        An unchanged HEAD costs one request, and neither opens the target nor writes anything.
        """
        self.health.notes.clear()
        state, found = self.state, None
        if state is not None and self._is_known(state):
            found = read_heads(self.url, self.fetcher, state.etag)
            if self._is_same(state, found):
                return None
        return self._pull(found, noted, progress)

    def close(self) -> None:
        """Let go of connections."""
        self.fetcher.close()

    def _is_known(self, state: State) -> bool:
        """Whether "not modified" would say that there is nothing to do."""
        current = state.seen[:2] == state.position and state.behind is None
        return current and not must_read(state, self._options, int(self._now())) and self._there == self._identity()

    def _is_same(self, state: State, found: list[Found]) -> bool:
        head, answer = found[0]
        return head is None or (
            answer.data is not None and hashlib.sha256(answer.data).hexdigest() == state.verified and state.etag is None
        )

    def _pull(self, found: list[Found] | None, noted: Noted, progress: Progress) -> Outcome:
        opened: list[Target] = []

        def find(head: Head | None) -> Target:
            for old in opened:
                old.close()
            opened[:] = [self._open(None if head is None else head.kind)]
            return opened[0]

        try:
            return pull(
                self.url, self.fetcher, find, self._options, progress=progress, now=self._now, watch=noted,
                health=self.health, found=found,
            )  # fmt: skip
        finally:
            for target in opened:
                with suppress(HeadwaterError):
                    self._take(target)
                target.close()

    def _open(self, kind: str | None) -> Target:
        target = self._make(kind)
        try:
            self._seen(target)
        except BaseException:
            target.close()
            raise
        return target

    def _take(self, target: Target) -> None:
        self.state = target.state()
        self._places = (self.path,) if target.partial is None else (self.path, os.path.dirname(target.partial) or ".")
        self._there = self._identity()

    def _identity(self) -> object:
        """What tells that the target, or its bookkeeping, was taken away or replaced."""
        try:
            stats = list(map(os.stat, self._places))
        except OSError:
            return None
        return [(stat.st_dev, stat.st_ino) for stat in stats]
