"""When to poll: a pure function of what came of the last poll, and of randomness that is handed in."""

from __future__ import annotations

import math
from dataclasses import dataclass

from puller.service.backoff import JITTER, Random, jittered, pause

LONGEST = 300.0
"""Seconds between polls after many failures; an interval that is longer stays."""
GOOD_FOR = 10
"""Intervals that may pass without a successful poll before a follower is red; at least `LONGEST` seconds."""


@dataclass(frozen=True)
class Schedule:
    """Seconds to wait. `interval` is in seconds, `random` gives numbers from [0, 1).

    Pullers that start together poll evenly from their first poll on: how many requests a host gets in any second does not
    depend on when its pullers were restarted.
    """

    random: Random

    def first(self, interval: float, *, holds: bool) -> float:
        """Before the first poll: what is left of a jittered interval that was going on when the process started.

        Long intervals are more likely to be going on than short ones, hence the root; with any other first delay the
        polls of many pullers would come in waves. A target that holds nothing is of no use until it is filled, and its
        chunks cost the host far more than the poll before them: it starts at once.
        """
        if not holds:
            return 0.0
        shortest, longest = (1 - JITTER) ** 2, (1 + JITTER) ** 2
        return interval * math.sqrt(shortest + (longest - shortest) * self.random()) * self.random()

    def after_success(self, interval: float) -> float:
        """After a poll, whether or not there was something new."""
        return jittered(interval, self.random)

    def after_failure(self, interval: float, failures: int, rest: float = 0.0) -> float:
        """After so many failures in a row. `rest` is how long the host wants to be left alone: never less than that."""
        due = pause(failures, self.random, first=interval, longest=max(interval, LONGEST))
        return max(due, rest + interval * self.random()) if rest else due


def good_for(interval: float) -> float:
    """How long a successful poll suffices."""
    return max(GOOD_FOR * interval, LONGEST)
