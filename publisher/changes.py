"""What changed between two states that are read side by side. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import compress
from operator import ne

from puller.runs import Cursor, spans
from puller.wire.nodes import Run, Value


@dataclass(frozen=True)
class Changed:
    """Changed records in key order: the new value (None: deleted) and the old one (None: added) of each key."""

    keys: list[bytes]
    values: list[Value]
    before: list[Value]


Settle = Callable[[bytes, object, Value], Value]
"""Makes a value of what a source gave for a key, knowing the value that was there before."""


def compare(before: Iterable[Run], after: Iterable[Run], settle: Settle | None = None) -> Iterator[Changed]:
    """The changes that lead from one state to another; `settle` is asked about values that are not bytes."""
    for parts in spans([Cursor(before), Cursor(after)]):
        runs = dict(parts)
        old_keys, old = runs.get(0, ([], []))
        keys, new = runs.get(1, ([], []))
        if keys == old_keys and new == old:
            continue
        known = None if keys == old_keys else dict(zip(old_keys, old, strict=True))
        was = old if known is None else list(map(known.get, keys))
        changed: dict[bytes, tuple[Value, Value]] = {}
        for n in compress(range(len(keys)), map(ne, new, was)):
            value = new[n]
            now = value if settle is None or isinstance(value, bytes) else settle(keys[n], value, was[n])
            if now != was[n]:
                changed[keys[n]] = now, was[n]
        if known is not None:
            changed.update((key, (None, known[key])) for key in known.keys() - set(keys))
        if changed:
            ordered = sorted(changed)
            yield Changed(ordered, [changed[k][0] for k in ordered], [changed[k][1] for k in ordered])
