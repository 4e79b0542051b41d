"""The clock by which processes give up in time: it goes on while the machine sleeps."""

from __future__ import annotations

import time


def uptime() -> float:
    """Seconds since some moment, those included in which the machine slept."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
