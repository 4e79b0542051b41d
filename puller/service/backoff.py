"""How long to wait: jittered intervals, and pauses that grow after failures. Pure: randomness is handed in."""

from __future__ import annotations

from collections.abc import Callable

JITTER = 0.1
Random = Callable[[], float]
"""Gives numbers from [0, 1), as `random.random` does."""


def jittered(seconds: float, random: Random, share: float = JITTER) -> float:
    """`seconds`, more or less by up to `share` of it."""
    return seconds * (1 - share + 2 * share * random())


def pause(failures: int, random: Random, *, first: float, longest: float) -> float:
    """Seconds to wait after so many failures in a row (at least one): from half of to one and a half times what is due.

    Due is `first` after one failure, twice as much after each further one, and never more than `longest`.
    """
    due = min(longest, first * 2.0 ** min(failures - 1, 64))
    return jittered(due, random, 0.5)
