"""What a store is: where a dataset's files are written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from puller.errors import HeadwaterError, NotFound
from puller.wire.head import HEAD

Token = str
"""Stands for the bytes of a HEAD that was read; `ABSENT` for there being none."""

ABSENT: Token = ""

SUPERSEDED: Token = "superseded"
"""Stands for a HEAD that another one has replaced already: no HEAD that is read has it."""

OURS = frozenset({HEAD, "chunks", "diffs", "heads", "trust"})
"""What lies at the top of a dataset."""


class StoreError(HeadwaterError):
    """The store cannot be written; what is published there stays as it was, if the message does not say otherwise."""


class Unclear(HeadwaterError):
    """A swap of HEAD was sent, and it is not known whether it took effect, or still will: only reading can tell."""

    exit_code = 4


TEMPORARY = ".tmp-"
"""How the names of files begin that were never finished."""


MARK = ".tmp-mirror"
"""Lies in a mirror while it is written, or was left so: a file that is there need not be whole, nor all that it needs."""
COLLECTED = b"files were collected here\n"
"""The content of `MARK` after a garbage collection: each file is whole, but all that it needs may not be there."""


def read_mark(get: Callable[[str], bytes]) -> bytes | None:
    """The content of `MARK` in a store whose files `get` gives; None where there is no such file."""
    try:
        return get(MARK)
    except NotFound:
        return None


class Listed(NamedTuple):
    """A file in a store: its path, its bytes, and when it was last written, in Unix seconds by the store's clock."""

    path: str
    size: int
    written: float


class Store(Protocol):
    """Files by path. All methods but `swap_head` may be called from several threads at once.

    `get` and `read_head` raise NotFound for proven absence only; an outage or a denied read is Unavailable or
    another error, never absence.
    """

    where: str
    written: int
    """Stored bytes of the files that were put."""
    threads: int
    """How many requests at once it takes to keep the store busy, beyond those that the processors need."""

    def get(self, path: str) -> bytes:
        """The bytes of a file, also of one that was put and is not durable yet."""
        ...

    def size_of(self, path: str) -> int | None:
        """The number of bytes of a file; None where there is provably none."""
        ...

    def put(self, path: str, data: bytes) -> None:
        """Write an immutable file whole; writing the same bytes again is harmless. Durable after `flush`.

        It may be written later: then errors are raised by `flush`, too.
        """
        ...

    def create(self, path: str, data: bytes) -> bool:
        """Write a file durably unless there is one at `path` already; say whether it was written.

        What is there already may be this very file, if an answer got lost on the way.
        """
        ...

    def flush(self) -> None:
        """Make everything durable that was put since HEAD was read.

        Raises Conflict where something of it was collected meanwhile, and all has to be put again.
        """
        ...

    def read_head(self) -> tuple[bytes, Token]:
        """The bytes of HEAD and their token. What failed to be written before is forgotten: it is put again."""
        ...

    def swap_head(self, expected: Token, data: bytes, time: int) -> Token:
        """Replace HEAD durably if `expected` still stands for it. `time` is the HEAD's own, in Unix seconds.

        Raises puller.errors.Conflict, and changes nothing, if it does not; Unclear if that is not certain.
        """
        ...

    def list(self, prefix: str) -> Iterator[str]:
        """The paths that begin with `prefix`, all of them, in any order."""
        ...

    def files(self, prefix: str) -> Iterator[Listed]:
        """As `list`, with sizes and times, and with files that were never finished."""
        ...

    def clock(self) -> float:
        """The time by the store's clock, in Unix seconds."""
        ...

    def delete(self, path: str) -> None:
        """Remove a file; harmless if there is none."""
        ...

    def collect(self, paths: Sequence[str], before: float, unless: Callable[[], bool] | None = None) -> set[str]:
        """Remove those of some files that were last written before a time by the store's clock; return these.

        What is put at the same time, even if it was written long ago before that, stays, or `flush` raises Conflict to
        whoever put it. `unless` is asked once nothing else can come between: if it says yes, nothing is removed.
        """
        ...

    def foreign(self) -> str | None:
        """A name in the store that is no part of a dataset, or None. An unfinished dataset has none."""
        ...

    def probe(self) -> None:
        """Find out whether the store swaps and creates as promised. Raises Refused if it does not."""
        ...
