"""What a source is: one consistent state of a dataset, read in key order."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from puller.wire.codec import MAX_INLINE
from puller.wire.nodes import Run
from puller.wire.rows import MAX_INDEXES

if TYPE_CHECKING:
    from publisher.large import Stream


class LazyFile(Protocol):
    """A value too large to be handed over whole: `prefix` and then the bytes of the stream it opens."""

    prefix: bytes

    def open(self) -> Stream: ...


@dataclass
class Report:
    """What a source left out, as (name, reason), and what it read."""

    skipped: list[tuple[str, str]] = field(default_factory=list)
    bytes_read: int = 0
    warnings: list[str] = field(default_factory=list)
    private: int = 0
    """Files that not everybody may read."""


def left_out_index(found: int, *, partial: bool, plain: bool) -> str | None:
    """Why an index of a database's table is no part of a dataset, where `found` of the table's are; None: it is one."""
    if partial:
        return "it is an index of some rows only"
    if not plain:
        return "it is an index over more than plain columns"
    return f"a dataset has at most {MAX_INDEXES} indexes a table" if found >= MAX_INDEXES else None


class Source(Protocol):
    """Reads a state. `report` is complete once `runs` is exhausted.

    A value in a run may be a LazyFile in place of a Value.
    """

    kind: str
    report: Report

    def runs(self) -> Iterator[Run]:
        """All records but those of `lead`, in key order. May be called again, and then reads again."""
        ...

    def lead(self) -> Run:
        """Records below all others that are known only when `runs` is exhausted."""
        ...


@runtime_checkable
class Remembering(Protocol):
    """A source that can tell what did not change since it was last published, without reading that again."""

    def recall(self, state: bytes) -> list[bytes] | None:
        """The keys, in order, whose records may differ from those of the published state; None: it is not known.

        `state` names it. Where keys are given, `runs` then gives the records of these only.
        """
        ...

    def remember(self, state: bytes) -> None:
        """Note that what was read is published, as the state that `state` names."""
        ...


@runtime_checkable
class Tracked(Protocol):
    """A source that is told of changes, and reads everything now and then to see whether it was told of all."""

    expected: set[bytes] | None
    """The keys that it was told of, once `runs` is exhausted; None: nothing was checked."""


class LazyRow:
    """A row over 1 MiB, given as a stream so that it is stored in pieces."""

    prefix = b""

    def __init__(self, value: bytes) -> None:
        self._value = value

    def open(self) -> Stream:
        """The row's bytes."""
        return io.BytesIO(self._value)


def lazily(values: list[Any]) -> list[Any]:
    """Rows as a run has them: large ones as streams."""
    if max(map(len, values), default=0) <= MAX_INLINE:
        return values
    return [value if len(value) <= MAX_INLINE else LazyRow(value) for value in values]


class Unsorted(Exception):
    """A source that was read as it came turned out not to be in key order: call `runs` again."""
