"""Reading published datasets: the wire format, fetchers, planning, and targets that keep exact copies.

For programs: `Replica` (a mapping that follows a dataset), `View`, `Change`, `File`; `Feed` (the changes of a dataset, in
order), `Event`, `Omitted`, `UNKNOWN`; and the errors' base, `HeadwaterError`; the errors themselves are in `puller.errors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from puller.errors import HeadwaterError
    from puller.events import Change
    from puller.feed import Feed
    from puller.forms import File
    from puller.pull import Outcome
    from puller.replica import Replica, View
    from puller.transitions import UNKNOWN, Event, Omitted

__all__ = ["UNKNOWN", "Change", "Event", "Feed", "File", "HeadwaterError", "Omitted", "Outcome", "Replica", "View"]

_HOMES = {
    "UNKNOWN": "puller.transitions",
    "Change": "puller.events",
    "Event": "puller.transitions",
    "Feed": "puller.feed",
    "File": "puller.forms",
    "HeadwaterError": "puller.errors",
    "Omitted": "puller.transitions",
    "Outcome": "puller.pull",
    "Replica": "puller.replica",
    "View": "puller.replica",
}


def __getattr__(name: str) -> Any:
    """Load a name of `__all__` where it is first used: commands start without what they do not need."""
    if name not in _HOMES:
        raise AttributeError(f"module 'puller' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
